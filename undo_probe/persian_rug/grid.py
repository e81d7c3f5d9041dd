"""Grids of trained autoencoders over sizes, ratios, rates and seeds, each in the stage store."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.files import FolderLock
from undo_probe.jobs import Job, Outcome, default_workers, values_of
from undo_probe.persian_rug.diagnostics import diagnose, not_normal
from undo_probe.persian_rug.engineered import Measured, features
from undo_probe.persian_rug.rivals import digon_loss, linear_loss
from undo_probe.persian_rug.training import VERSION, RugConfig, TrainedRug, rug_config, step_flops, train
from undo_probe.randomness import generator
from undo_probe.store import Store
from undo_probe.training import Context, resolve_device
from undo_probe.waves import Piece, compute, failures

if TYPE_CHECKING:
    import pandas as pd


KIND = "rug"
KEPT = 8
"""Tensors of the batch's size that a step holds at once."""
FIGURE_SIZES, FIGURE_AXIS = (128, 1024), (0.002001, 0.8, 20)
FIGURE_FIT = {"steps": 600, "batch_size": 128, "eval_every": 40}
FIGURE_RATE = 0.03
"""Learning rate times the root of ``r n_s`` (at least 1): a fixed share of what the tied weights are at the start."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Trained autoencoders in a folder: a table, and each of them."""

    store: Store
    configs: tuple[RugConfig, ...]
    outcomes: dict[str, Outcome]

    @property
    def failed(self) -> dict[str, Outcome]:
        """Key to outcome of the cells that failed; the same call tries them again."""
        return failures([_piece(config, self.store, "cpu") for config in self.configs], self.outcomes)

    def check(self) -> None:
        """Raises an error that names the failed cells, if there are any."""
        values_of(list(self.failed.values()))

    def trained(self, config: RugConfig) -> TrainedRug:
        """One of them, checked against its content hash."""
        return _opened(config, self.store)

    def table(self) -> "pd.DataFrame":
        """A line a finished cell: what was asked, loss and error, theory and rivals, both outputs, its symmetry."""
        import pandas as pd

        done = [config for config in self.configs if _key(config) in self.store]
        return pd.DataFrame([_line(_opened(config, self.store), self._said(config)) for config in done])

    def _said(self, config: RugConfig) -> dict[str, Any]:
        """The diagnosis that lies beside the weights; made anew for a cell that was stored without one."""
        known = self.store.entry(_key(config)).extra.get("symmetry")
        return _symmetry(_opened(config, self.store)) if known is None else known

    def curves(self) -> "pd.DataFrame":
        """The loss curve of every finished cell, over L*."""
        import pandas as pd

        done = [config for config in self.configs if _key(config) in self.store]
        lines = [
            {"n_s": config.n_s, "r": made.config.n_d / config.n_s, "p": config.p, "seed": config.seed, "step": step,
             "loss": loss / made.theory}
            for config in done for made in [_opened(config, self.store)] for step, loss in made.curve
        ]  # fmt: skip
        return pd.DataFrame(lines)


def train_grid(
    base: RugConfig,
    folder: str | Path,
    *,
    n_s: Sequence[int] = (),
    r: Sequence[float] = (),
    p: Sequence[float] = (),
    seeds: Sequence[int] = (),
    **how: Any,
) -> Grid:
    """Trains every combination by :func:`train_cells`; empty lists stand for the base's own value.

    Raises:
        UndoProbeError: a value no autoencoder can have, or the folder is in use.
    """
    return train_cells(combinations(base, n_s, r, p, seeds), folder, **how)


def train_cells(
    configs: Sequence[RugConfig],
    folder: str | Path,
    *,
    workers: int | None = None,
    backend: str = "loky",
    device: str = "cpu",
    progress: Callable[..., None] | None = None,
) -> Grid:
    """Trains each of these; what is done stays, what was cut short goes on from its last saved step.

    The cells of :mod:`undo_probe.sweep` are whole runs on a language model; below them lies what is used here too:
    the stage store and :mod:`undo_probe.waves`.

    Raises:
        UndoProbeError: the folder is in use.
    """
    store = Store(Path(folder))
    resolve_device(device)
    with FolderLock(store.folder):
        pieces = [[_piece(config, store, device)] for config in configs]
        outcomes = compute(pieces, store, workers or default_workers(), backend=backend, progress=progress)
    return Grid(store, tuple(configs), outcomes)


def open_grid(folder: str | Path) -> Grid:
    """All finished autoencoders in a folder, whatever grids they were trained in; made by these settings' version.

    Raises:
        UndoProbeError: there is none.
    """
    store = Store(Path(folder))
    whats = [store.entry(key).what for key in store.keys()]
    found = [
        rug_config(**what["settings"])
        for what in whats
        if what["kind"] == KIND and what["version"] == VERSION
    ]
    if not found:
        raise UndoProbeError(
            f"{folder} holds no trained rug of this version: `undo-probe rug train --out {folder}` makes some"
        )
    ordered = sorted(found, key=lambda config: (config.n_s, config.r, config.p, config.seed))
    return Grid(store, tuple(ordered), {})


def figure_cells(
    n_s: Sequence[int] = FIGURE_SIZES,
    r: Sequence[float] = (),
    p: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> tuple[RugConfig, ...]:
    """The 20 x 20 grid of (r, p) of the paper's figures, of short trainings that end on the plateau.

    Both axes run evenly from 0.002001 to 0.8 unless given; a ratio of less than one dimension becomes one. What costs
    time is the batch, and what the figures show is the symmetric state that training passes first, so batches are
    small and trainings short, from tied weights, which leave no output dead; the rate falls with the root of n_d, as
    those weights do: at few dimensions they have far to go, at many dense features diverge. Other ``settings`` go
    before these.
    """
    own = settings.pop("fit", {})
    axis = [float(value) for value in np.linspace(*FIGURE_AXIS)]
    base = {"start": "tied", "held_out": 2048, **settings}
    return tuple(
        rug_config(
            **base, n_s=n, r=max(ratio, 1 / n), p=rate, seed=seed,
            fit={**FIGURE_FIT, "learning_rate": FIGURE_RATE / max(ratio * n, 1) ** 0.5, **own},
        )
        for n, ratio, rate, seed in product(n_s, r or axis, p or axis, seeds)
    )  # fmt: skip


def costs(configs: Sequence[RugConfig], workers: int | None = None) -> str:
    """What :func:`train_cells` would cost here, in a sentence: steps, FLOPs, memory and time.

    Time is the processor's, as if nothing else ran: of matrix products, of drawing and clipping features, of Adam, and
    of what a step costs however small it is, each measured for some milliseconds on one thread; the memory of weights,
    gradients and Adam's two moments, and of a batch's activations.
    """
    workers = workers or default_workers()
    pace = _paces(configs[0].fit.batch_size)
    hours = sum(_seconds(config, pace) for config in configs) / workers / 3600
    flops = sum(step_flops(config) * config.fit.steps for config in configs)
    memory = max(16.0 * _weights(config) + 4 * KEPT * _entries(config) for config in configs)
    steps = sum(config.fit.steps for config in configs)
    return (
        f"{len(configs)} trainings, {steps} steps, {flops:.2g} FLOPs, up to {memory / 1e9:.2g} GB in each of {workers} "
        f"processes: about {hours:.2g} hours in {workers} processes at the {pace.product / 1e9:.0f} GFLOP/s that "
        "matrix products reach here"
    )


class _Pace(NamedTuple):
    """What one thread of this machine does in a second: FLOPs, entries of features, weights updated, empty steps."""

    product: float
    entry: float
    weight: float
    step: float


def _seconds(config: RugConfig, pace: _Pace) -> float:
    step = step_flops(config) / pace.product + _entries(config) / pace.entry + _weights(config) / pace.weight
    return config.fit.steps * (step + 1 / pace.step)


def _entries(config: RugConfig) -> float:
    return float(config.fit.batch_size * config.n_s)


def _weights(config: RugConfig) -> float:
    return 2.0 * config.n_s * config.n_d


def _paces(rows: int, width: int = 512) -> _Pace:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x, w = torch.ones(rows, width), torch.nn.Parameter(torch.ones(width, width))
        adam, source = torch.optim.AdamW([w], fused=True), generator(0, "pace")
        w.grad = torch.ones_like(w)
        with torch.no_grad():
            product_ = _rate(lambda: torch.mm(x, w), 2.0 * rows * width * width)
            entry = _rate(lambda: _touched(features(rows, width, 0.1, source)), float(rows * width))
            weight = _rate(adam.step, float(width * width))
    finally:
        torch.set_num_threads(threads)
    tiny = rug_config(n_s=4, r=0.5, held_out=64, fit={"steps": 20, "batch_size": 1})
    return _Pace(product_, entry, weight, _rate(lambda: train(tiny), 20.0, times=1))


def _touched(x: torch.Tensor) -> torch.Tensor:
    """What a step does to a batch entry by entry, forwards and backwards."""
    return (torch.relu(x + 0.1) - x).square() * (x > 0)


def _rate(call: Callable[[], Any], amount: float, times: int = 8) -> float:
    call()  # the first one of a size is slower
    begun = time.process_time()
    for _ in range(times):
        call()
    return times * amount / (time.process_time() - begun)


def combinations(
    base: RugConfig,
    n_s: Sequence[int] = (),
    r: Sequence[float] = (),
    p: Sequence[float] = (),
    seeds: Sequence[int] = (),
) -> tuple[RugConfig, ...]:
    """The base with every combination of these values; empty lists stand for its own."""
    axes = {"n_s": n_s, "r": r, "p": p, "seed": seeds}
    lists = [values or (getattr(base, name),) for name, values in axes.items()]
    settings = base.model_dump()
    return tuple(
        rug_config(**{**settings, **dict(zip(axes, values, strict=True))}) for values in product(*lists)
    )


def _what(config: RugConfig) -> dict[str, Any]:
    return {"kind": KIND, "version": VERSION, "settings": config.model_dump(mode="json")}


def _key(config: RugConfig) -> str:
    return Store.key(_what(config))


def _piece(config: RugConfig, store: Store, device: str) -> Piece:
    name = f"n_s={config.n_s} r={config.r:g} p={config.p:g} seed={config.seed}"
    job = Job(name, _train_into, (config, store.folder, device))
    return Piece(_key(config), (), job, step_flops(config) * config.fit.steps)


def _train_into(config: RugConfig, folder: Path, device: str, report: Any) -> None:
    store = Store(folder)
    made = train(config, context=Context(device=device, folder=store.work(_key(config)), report=report))
    store.write(
        _what(config),
        tensors={name: each.detach() for name, each in made.model.named_parameters()},
        rows=[{"step": step, "value": value} for step, value in made.curve],
        ledger=made.ledger,
        stopped=made.stopped,
        extra={"loss": made.loss.value, "error": made.loss.error, "symmetry": _symmetry(made)},
    )


def _opened(config: RugConfig, store: Store) -> TrainedRug:
    key = _key(config)
    entry, model = store.entry(key), config.model()
    model.load_state_dict(store.tensors(key))
    loss = Measured(entry.extra["loss"], entry.extra["error"])
    curve = tuple((row["step"], row["value"]) for row in entry.rows)
    return TrainedRug(config, model, loss, curve, entry.ledger, entry.stopped)


def _symmetry(made: TrainedRug) -> dict[str, Any]:
    """The diagnosis as flat numbers; empty where nothing is represented or there is no relu rug to compare with."""
    try:
        found = diagnose(made.model, made.config.p)
    except UndoProbeError:
        return {}
    plain = {key: value for key, value in asdict(found).items() if key not in ("shares", "spread")}
    spread = {f"spread_{key}": value for key, value in found.spread.items()}
    rejected = not_normal(made.model, made.config.p)
    numbers = {**plain, "dropped": found.shares["dropped"], "not_normal": rejected, **spread}
    # JSON has no word for what is not a number
    return {key: None if value != value else value for key, value in numbers.items()}


def _line(made: TrainedRug, symmetry: dict[str, Any]) -> dict[str, Any]:
    config, r = made.config, made.config.n_d / made.config.n_s
    return {
        "n_s": config.n_s,
        "r": r,
        "p": config.p,
        "seed": config.seed,
        "decoder": config.decoder,
        "steps": config.fit.steps,
        "loss": made.loss.value,
        "error": made.loss.error,
        "rug": made.theory,
        "digon": float(digon_loss(r, config.p)),
        "linear": float(linear_loss(r, config.p)),
        "plateau_match": made.plateau_match,
        "converged_gap": made.converged_gap,
        "stopped": made.stopped,
        **symmetry,
    }
