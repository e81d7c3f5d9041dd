"""The logit lens: what the answer's chances would be if a model stopped after each block.

Read through the model's own final norm and unembedding, through the original's (a fixed decoder, the same for all
models), and through the original's after the states were mapped to its basis. The fixed decoder also sees a change
of basis that loses nothing: beside it stands the twin, or the mapped reading.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe.activations import harvest_points, residual_names
from undo_probe.evaluation import LOGITS
from undo_probe.measures import ItemScores
from undo_probe.measures.linear_probe import LinearProbe
from undo_probe.measures.stitches import answer_positions, asked_rows, block_outputs
from undo_probe.models import HookedTransformer
from undo_probe.stitch import Stitch
from undo_probe.tasks.protocol import Task, TokenSet, join

Decode = Callable[[str, Tensor], Tensor]
"""Hook name and states to logits."""


@dataclass(frozen=True)
class Reader:
    """How a model's states are decoded, and how the original's are that the divergence is taken from.

    ``hooks`` are the points that it reads; None for all.
    """

    read: Decode
    base: Decode
    hooks: frozenset[str] | None = None


UNITS = {
    "lens_log_probability": "bits a token",
    "lens_rank": "rank (1 is first)",
    "lens_kl": "bits a token",
}


def lens_measures(
    model: HookedTransformer,
    original: HookedTransformer,
    task: Task,
    stitches: Mapping[str, Stitch] | None = None,
) -> list[ItemScores]:
    """The answer by layer, on V and on held-out retain rows, teacher-forced.

    Args:
        model: whose residual stream is read.
        original: whose decoder is the fixed one, and what the model is compared with.
        task: gives the rows.
        stitches: maps to the original's basis, for the mapped reading.

    Returns:
        For every layer and decoder (``own``, ``original's``, ``mapped``), a value a row: ``lens_log_probability`` and
        ``lens_rank`` of the answer's tokens, means over the answer, and again of its first token where an answer has
        several and a row is scored as a whole; ``lens_kl``, divergence from the original's own lens at that layer.
        Of the original, divergence is 0; at the last layer, the own decoder's reading is the model's own answer.
    """
    plain: Decode = lambda hook, h: decode(original, h)  # noqa: E731
    readers = {"own": Reader(lambda hook, h: decode(model, h), plain), "original's": Reader(plain, plain)}
    if stitches is not None:
        mapped = Reader(lambda hook, h: decode(original, stitches[hook](h)), plain, frozenset(stitches))
        readers["mapped"] = mapped
    return lens_readings(model, original, task, readers)


def lens_readings(
    model: HookedTransformer, original: HookedTransformer, task: Task, readers: Mapping[str, Reader]
) -> list[ItemScores]:
    """What each reader makes of every layer's states: the readings of :func:`lens_measures`, one subset a reader."""
    found: list[ItemScores] = []
    for split in ("forget", "retain"):
        rows = asked_rows(task, split)
        for name, part in _tokens_read(rows, task.metric == "exact").items():
            for hook in residual_names(model):
                here = {d: r for d, r in readers.items() if r.hooks is None or hook in r.hooks}
                found += _layer(model, original, rows, part, hook, here, split, name)
    return found


def decode(
    model: HookedTransformer, states: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows d_vocab"]:
    """Logits from residual states that have not been through the final norm yet, in float32 on the CPU."""
    with torch.no_grad():
        return decoded(model, states).cpu()


def decoded(
    model: HookedTransformer, states: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows d_vocab"]:
    """:func:`decode` where the model is, with gradients; a model's soft cap on its logits is part of it."""
    logits = model.unembed(model.ln_final(states.to(next(model.parameters()).device))).float()
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def transfer_measures(
    model: HookedTransformer,
    original: HookedTransformer,
    task: Task,
    stitches: Mapping[str, Stitch] | None = None,
    penalty: float = 1e-2,
) -> list[ItemScores]:
    """Probes trained on the original's states of T and W and read on a model's states of V, at the last prompt token.

    Args:
        model: whose states are read.
        original: whose states the probes are trained on; the model itself for refitted probes.
        task: without probe targets nothing is read.
        stitches: maps to the original's basis.
        penalty: of the probes, per row.

    Returns:
        ``transfer_accuracy`` a row for every block and target, as they are and, with ``stitches``, ``mapped`` (subset
        ``TARGET, mapped``); control: the best constant by operation of the training rows.
    """
    if not task.probe_targets:
        return []
    found: list[ItemScores] = []
    known, asked = join("forget_TW", task.rows("forget_T"), task.rows("forget_W")), asked_rows(task, "forget")
    hooks = block_outputs(original)
    theirs = harvest_points(original, known.tokens, hooks, known.read_position)
    ours = harvest_points(model, asked.tokens, hooks, asked.read_position)
    for hook in hooks:
        states = ours[hook][:, 0]
        for target in task.probe_targets:
            labels, true = known.labels[target].to_numpy(), asked.labels[target].to_numpy()
            probe = LinearProbe(penalty=penalty, tolerance=1e-6).fit(theirs[hook][:, 0], labels)
            floor = float((_constant(known, labels, asked) == true).mean())
            readings = {target: states} | ({f"{target}, mapped": stitches[hook](states)} if stitches else {})
            for subset, read in readings.items():
                right = (probe.predict(read) == true).astype(float)
                named = ("transfer_accuracy", "forget", subset, hook, "share")
                found.append(ItemScores(*named, right, asked.families, "constant by operation", floor))
    return found


def _constant(known: TokenSet, labels: np.ndarray, asked: TokenSet) -> np.ndarray:
    """The commonest label of each row's operation."""
    best = {}
    for operation in np.unique(known.operations):
        values, counts = np.unique(labels[known.operations == operation], return_counts=True)
        best[operation] = values[counts.argmax()]
    return np.array([best[operation] for operation in asked.operations])


@dataclass(frozen=True, eq=False)
class _Read:
    """Which answer tokens are read: their positions, and for each row which of them count."""

    positions: list[int]
    counts: Bool[Tensor, "row kept"]
    targets: Int[Tensor, "row kept"]


def _tokens_read(rows: TokenSet, whole: bool) -> dict[str, _Read]:
    """The whole answer, and its first token alone where that says something else."""
    positions = answer_positions(rows)
    counts = rows.answer_mask[:, 1:][:, positions]
    targets = rows.tokens[:, 1:][:, positions]
    found = {"": _Read(positions, counts, targets)}
    if whole and int(counts.sum(1).max()) > 1:
        first = int(rows.read_position)
        column = positions.index(first)
        here = slice(column, column + 1)
        found[", first token"] = _Read([first], counts[:, here], targets[:, here])
    return found


def _layer(
    model: HookedTransformer,
    original: HookedTransformer,
    rows: TokenSet,
    part: _Read,
    hook: str,
    readers: Mapping[str, Reader],
    split: str,
    name: str,
) -> list[ItemScores]:
    size = max(1, LOGITS // (len(part.positions) * model.cfg.d_vocab * 4))
    values: dict[tuple[str, str], list[Tensor]] = {}
    for start in range(0, len(rows), size):
        chunk = slice(start, start + size)
        tokens = rows.tokens[chunk]
        ours = harvest_points(model, tokens, [hook], part.positions)[hook]
        theirs = harvest_points(original, tokens, [hook], part.positions)[hook]
        bases = {base: base(hook, theirs).log_softmax(-1) for base in {r.base for r in readers.values()}}
        for decoder, reader in readers.items():
            logits, base = reader.read(hook, ours), bases[reader.base]
            for measure, each in token_values(logits, base, part.targets[chunk]).items():
                mean = (each * part.counts[chunk]).sum(1) / part.counts[chunk].sum(1)
                values.setdefault((measure, decoder), []).append(mean)
    return [
        ItemScores(
            measure, split, decoder + name, hook, UNITS[measure], torch.cat(parts).numpy(), rows.families
        )
        for (measure, decoder), parts in values.items()
    ]


def token_values(
    logits: Float[Tensor, "row kept vocab"],
    base: Float[Tensor, "row kept vocab"],
    targets: Int[Tensor, "row kept"],
) -> dict[str, Float[Tensor, "row kept"]]:
    """Log-probability and rank of each token, and divergence from ``base`` (log-probabilities), in bits."""
    log_p = logits.log_softmax(-1).double()
    own = log_p.gather(-1, targets[..., None])
    base = base.double()
    return {
        "lens_log_probability": own[..., 0] / np.log(2),
        "lens_rank": 1.0 + (log_p > own).sum(-1).double(),
        "lens_kl": (base.exp() * (base - log_p)).sum(-1).clamp_min(0) / np.log(2),
    }
