"""Harvest: stream a model's activations into an :class:`ActivationStore`, estimated first, resumed after a kill."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe.activation_store import (
    DTYPES,
    MAX_SHARD_BYTES,
    RECORD,
    TOKENS,
    ActivationStore,
    Layout,
    missing_shards,
    read_record,
    summary,
    write_shard,
)
from undo_probe.activations import find_points, kept_positions, stream_points
from undo_probe.errors import UndoProbeError
from undo_probe.files import FolderLock, digest, write_json
from undo_probe.models import HookedTransformer, content_hash, save_tensors, tensors_hash
from undo_probe.progress import PhaseProgress
from undo_probe.store import environment
from undo_probe.tasks.protocol import TokenSet

Positions = str | int | Sequence[int] | Tensor
SAMPLE_ROWS = 8
"""Rows that are run to learn the shapes and to estimate the time."""


@dataclass(frozen=True)
class Plan:
    """A harvest before it starts: what it is (``what``, hashed into the store's key), its size and its time."""

    what: dict[str, Any]
    layout: Layout
    tokens: Int[Tensor, "row pos"]
    kept: Bool[Tensor, "row pos"]
    seconds: float

    @property
    def key(self) -> str:
        """The store's key."""
        return digest(self.what)

    def __str__(self) -> str:
        """Size and time in one line."""
        lines = summary(self.what, self.layout)
        return f"{lines['hook points']}; {lines['items']}; {lines['size']}; about {self.seconds:.1f} s"


def harvest(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"] | TokenSet,
    points: str | Sequence[str],
    folder: str | Path,
    positions: Positions = "all",
    dtype: str = "float32",
    batch_size: int = 64,
    shard_mb: float = 64,
    variant: str = "",
    quiet: bool = False,
) -> ActivationStore:
    """Streams activations to disk; memory does not grow with the number of rows.

    Size and time are said before it starts. A harvest that was killed goes on at the first missing shard and ends
    at the same bits; one that is there already is opened.

    Args:
        model: left as it is; no hook stays.
        tokens: token ids, or the rows of a task.
        points: hook names, or what they end in for every block: ``resid_post``, ``attn.hook_z``.
        folder: an empty or new folder, or that of the same harvest.
        positions: ``all``, ``last`` (of a task's rows: the last token of the prompt, where the answer is read),
            ``answer`` (tokens of a task's answers), numbers, or a mask with one line a row.
        dtype: what is written: float32, float16 or bfloat16.
        batch_size: rows in one forward pass.
        shard_mb: size of a shard in megabytes, at most 256; about this much is held in memory.
        variant: what hooks on the model do to it (an ablation, say): part of the key, needed where there are any.
        quiet: say nothing.

    Raises:
        UndoProbeError: a point, position or setting does not fit; the folder holds something else; the disk is too
            small; a value is too large for float16.
    """
    plan = plan_harvest(model, tokens, points, positions, dtype, batch_size, shard_mb, variant)
    folder = Path(folder)
    with FolderLock(folder):
        layout = _begin(plan, folder)
        missing = missing_shards(folder, plan.key, layout)
        if missing:
            _check_space(folder, layout, len(missing))
            with nullcontext() if quiet else PhaseProgress("harvest") as shown:
                if shown:
                    shown.console.print(f"harvest: {plan}", highlight=False, markup=False, soft_wrap=True)
                _fill(model, plan, layout, folder, missing, shown.event if shown else _silent)
    return ActivationStore(folder)


def plan_harvest(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"] | TokenSet,
    points: str | Sequence[str],
    positions: Positions = "all",
    dtype: str = "float32",
    batch_size: int = 64,
    shard_mb: float = 64,
    variant: str = "",
) -> Plan:
    """Checks the arguments of :func:`harvest` and estimates its size and time from a few rows."""
    names = find_points(model, points)
    rows = (tokens.tokens if isinstance(tokens, TokenSet) else tokens).long().cpu()
    if rows.ndim != 2 or not rows.numel():
        raise UndoProbeError(f"tokens of shape {tuple(rows.shape)} cannot be harvested: give (row, pos)")
    kept = _mask(tokens, rows, positions)
    _check_settings(dtype, batch_size, shard_mb)
    _check_hooks(model, variant)
    what = {
        "kind": "activations",
        "version": 2,
        "model": content_hash(model),
        "tokens": tensors_hash({"tokens": rows}),
        "kept": tensors_hash({"kept": kept}),
        "points": names,
        "dtype": dtype,
        "variant": variant,
    }
    shapes, seconds = _sample(model, rows, names)
    layout = _layout(shapes, dtype, kept, batch_size, int(shard_mb * 10**6))
    return Plan(what, layout, rows, kept, seconds)


def _mask(
    given: Int[Tensor, "row pos"] | TokenSet, rows: Int[Tensor, "row pos"], positions: Positions
) -> Bool[Tensor, "row pos"]:
    """Where activations are kept."""
    if isinstance(positions, Tensor):
        if positions.dtype != torch.bool or positions.shape != rows.shape or not bool(positions.any()):
            raise UndoProbeError(
                f"a mask of positions is boolean, of the tokens' shape {tuple(rows.shape)} and somewhere True; got "
                f"{positions.dtype} of shape {tuple(positions.shape)}, {int(positions.sum())} True"
            )
        return positions.cpu()
    if positions == "answer" and isinstance(given, TokenSet):
        return given.answer_mask.cpu()
    kept = torch.zeros(rows.shape, dtype=torch.bool)
    if positions == "last":
        last = given.read_position if isinstance(given, TokenSet) else rows.shape[1] - 1
        kept[torch.arange(len(rows)), last] = True
        return kept
    if isinstance(positions, str) and positions != "all":
        raise UndoProbeError(
            f"positions={positions!r} is not known here: give 'all', 'last', numbers or a mask, or 'answer' with the "
            "rows of a task (task.rows(...)), which know where their answers are"
        )
    kept[:, kept_positions(None if isinstance(positions, str) else positions, rows.shape[1])] = True
    return kept


def _check_settings(dtype: str, batch_size: int, shard_mb: float) -> None:
    if dtype not in DTYPES:
        raise UndoProbeError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    if batch_size < 1 or not 0 < shard_mb * 10**6 <= MAX_SHARD_BYTES:
        raise UndoProbeError(
            f"batch_size={batch_size} and shard_mb={shard_mb} do not fit: a batch has at least one row, a shard more "
            f"than 0 and at most {MAX_SHARD_BYTES // 10**6} MB"
        )


def _check_hooks(model: HookedTransformer, variant: str) -> None:
    """The model's hash does not see hooks; a store of an ablated model must not pass for the model's own."""
    hooked = [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    if hooked and not variant:
        raise UndoProbeError(
            f"the model has a hook on {hooked[0]}, which changes its activations but not its hash: say what it does, "
            "for example variant='junk direction ablated', or remove it"
        )


def _sample(
    model: HookedTransformer, rows: Int[Tensor, "row pos"], names: Sequence[str]
) -> tuple[dict[str, list[int]], float]:
    """Shape of one item at each point, and the seconds that all rows would take."""
    shapes: dict[str, list[int]] = {}

    def note(name: str, _start: int, activation: Tensor) -> None:
        shapes[name] = list(activation.cpu().shape[2:])  # the way to memory is part of the time

    stream_points(model, rows[:1], names, note, 1)
    some = rows[:SAMPLE_ROWS]
    begin = time.perf_counter()
    stream_points(model, some, names, note, SAMPLE_ROWS)
    return {name: shapes[name] for name in names}, (time.perf_counter() - begin) * len(rows) / len(some)


def _layout(
    shapes: dict[str, list[int]], dtype: str, kept: Bool[Tensor, "row pos"], batch: int, limit: int
) -> Layout:
    """As many rows a shard as fit into ``limit`` bytes even where the most are kept, in whole batches."""
    longest = int(kept.sum(1).max())
    one = Layout(shapes, dtype, len(kept), int(kept.sum()), 1, 1)
    fits = limit // (longest * one.item_bytes)
    if not fits:
        raise UndoProbeError(
            f"one row takes {longest * one.item_bytes / 10**6:.1f} MB at these points, a shard is to have "
            f"{limit / 10**6:g} MB: choose fewer points or positions, or a larger shard_mb"
        )
    batch = min(batch, fits, len(kept))
    return Layout(shapes, dtype, len(kept), int(kept.sum()), min(fits, len(kept)) // batch * batch, batch)


def _begin(plan: Plan, folder: Path) -> Layout:
    """The layout to go on with: that of the harvest in the folder, else the plan's, which is written down."""
    if (folder / RECORD).is_file():
        known = read_record(folder)
        _check_same(folder, known["what"], plan.what)
        return Layout(**known["layout"])
    strangers = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if set(strangers) - {TOKENS}:
        raise UndoProbeError(
            f"{folder} is not empty and holds no activations ({sorted(strangers)[0]} lies there): choose another folder"
        )
    content = save_tensors({"tokens": plan.tokens, "kept": plan.kept}, folder / TOKENS)
    body = {
        "format": 1,
        "key": plan.key,
        "what": plan.what,
        "layout": asdict(plan.layout),
        "tokens": content,
        "environment": environment(),
    }
    write_json(folder / RECORD, {**body, "digest": digest(body)})
    return plan.layout


def _check_same(folder: Path, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in asked:
        if known[name] != asked[name]:
            there, here = (str(value)[:40] for value in (known[name], asked[name]))
            raise UndoProbeError(
                f"{folder} holds activations of another harvest: its {name} is {there}, asked for is {here}. Choose "
                "another folder"
            )


def _check_space(folder: Path, layout: Layout, shards: int) -> None:
    needed = layout.nbytes * shards // layout.shards
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UndoProbeError(
            f"{folder} needs {needed / 10**6:,.0f} MB, and {free / 10**6:,.0f} MB are free: choose another disk, fewer "
            "points or positions, or dtype='float16'"
        )


def _fill(
    model: HookedTransformer,
    plan: Plan,
    layout: Layout,
    folder: Path,
    shards: Sequence[int],
    report: Callable[[str, int, int | None, dict[str, float]], None],
) -> None:
    """Makes the shards that are missing, in one set of buffers."""
    counts = plan.kept.sum(1)
    most = max(int(counts[slice(*layout.rows_of(shard))].sum()) for shard in shards)
    buffers = {
        name: torch.empty(most, *shape, dtype=DTYPES[layout.dtype]) for name, shape in layout.shapes.items()
    }
    for shard in shards:
        report(f"shard {shard}", 0, None, {"cost": 1.0})
    for shard in shards:
        here = slice(*layout.rows_of(shard))
        _stream_into(model, plan.tokens[here], plan.kept[here], buffers, layout.batch_rows)
        items = int(counts[here].sum())
        write_shard(folder, plan.key, shard, {name: buffer[:items] for name, buffer in buffers.items()})
        report(f"shard {shard}", 1, 1, {})


def _silent(name: str, step: int, total: int | None, numbers: dict[str, float]) -> None:
    """Reports to nobody."""


def _stream_into(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"],
    kept: Bool[Tensor, "row pos"],
    buffers: Mapping[str, Float[Tensor, "item ..."]],
    batch_rows: int,
) -> None:
    starts = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)]).tolist()
    everything = bool(kept.all())

    def keep(name: str, start: int, activation: Tensor) -> None:
        stop = start + len(activation)
        # a mask would copy what is kept whole
        part = activation.flatten(0, 1) if everything else activation[kept[start:stop].to(activation.device)]
        _check_range(name, part, buffers[name].dtype)
        buffers[name][starts[start] : starts[stop]] = part

    stream_points(model, tokens, list(buffers), keep, batch_rows)


def _check_range(name: str, part: Float[Tensor, "item ..."], dtype: torch.dtype) -> None:
    """Float16 ends at 65504, which residual streams of real models do pass."""
    if dtype != torch.float16 or part.dtype == dtype or not part.numel():
        return
    largest = float(part.nan_to_num(0, 0, 0).abs().max())
    if largest > torch.finfo(dtype).max:
        raise UndoProbeError(
            f"{name} reaches {largest:.3g}, more than float16 holds: harvest with dtype='bfloat16' or 'float32'"
        )
