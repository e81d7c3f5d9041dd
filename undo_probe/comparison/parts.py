"""What two models are compared by. Each part takes the pair and returns readings; a further part is a line in PARTS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from undo_probe.activations import residual_names
from undo_probe.comparison.sides import ANSWER, READ, Asked, Side
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import row_scores
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.attribution import Attribution, attribute, compare_attributions
from undo_probe.measures.depth import depth_of, drops
from undo_probe.measures.folds import INNER_PARTS, deal_families
from undo_probe.measures.geometry import Floored, Named, row_geometry, shape_geometry, spread
from undo_probe.measures.lens import Reader, decode, token_values, transfer_measures
from undo_probe.measures.patching import Place, places
from undo_probe.measures.stitches import (
    Stitched,
    answer_families,
    answer_positions,
    answer_states,
    fit_rows,
    fit_stitches,
)
from undo_probe.measures.tuned_lens import STEPS, TunedLens, fit_tuned_lens
from undo_probe.measures.weights import weight_distances
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed
from undo_probe.tasks.protocol import Task, TokenSet

LENS_LAYERS, PATCHED_BLOCKS, PATCHED_ROWS = 13, 8, 128
"""Of deep models and many rows so many are read by the lens and patched, evenly spread."""
TUNED_SIZE = 2**24
"""Width x vocabulary x layers up to which the tuned lens is trained."""


class Found(NamedTuple):
    """A reading of the pair at a position; ``a`` and ``b`` are the models' own levels where the value is a change."""

    position: str
    scores: ItemScores | Statistic
    floor: float | None = None
    a: float | None = None
    b: float | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """The model that is compared with ``a``, on the same rows, and what measures of the two share.

    A twin and a second seed are pairs of their own, which take what was fitted to ``a`` from the ``first`` one.
    """

    a: Side
    b: Side
    task: Task
    seed: int
    gold: HookedTransformer | None = None
    floors: bool = True
    first: "Pair | None" = None
    notes: list[str] = field(default_factory=list)

    @property
    def one_width(self) -> bool:
        """Whether states of the two can be subtracted."""
        return self.a.model.cfg.d_model == self.b.model.cfg.d_model

    @property
    def one_shape(self) -> bool:
        """Whether one can run with the other's states."""
        ours, theirs = self.a.model.cfg, self.b.model.cfg
        shape = [(c.n_layers, c.d_model, c.n_heads, c.d_head) for c in (ours, theirs)]
        return shape[0] == shape[1]

    @cached_property
    def hooks(self) -> list[tuple[str, str]]:
        """The residual stream's hook in ``a`` and at the same relative depth in ``b``."""
        ours, theirs = residual_names(self.a.model), residual_names(self.b.model)
        steps = (len(theirs) - 1) / (len(ours) - 1)
        return [(hook, theirs[round(at * steps)]) for at, hook in enumerate(ours)]

    @cached_property
    def stitched(self) -> Stitched | None:
        """Maps from b's states to a's basis, fitted on retain rows; None for models of different depth."""
        if self.a.model.cfg.n_layers != self.b.model.cfg.n_layers:
            return None
        return fit_stitches(self.b.model, self.a.model, self.task, self.seed)

    @cached_property
    def tuned(self) -> TunedLens:
        """A's tuned lens at the layers that lenses read; of a large model only its start, the closed form."""
        if self.first is not None:
            return self.first.tuned
        a, seed = self.a.model, derive_seed(self.seed, "compare tuned lens")
        hooks = [hook for hook, _ in evenly(self.hooks, LENS_LAYERS)]
        rows = fit_rows(self.task, seed)
        part = deal_families(answer_families(rows), INNER_PARTS, seed)
        steps = STEPS if a.cfg.d_model * a.cfg.d_vocab * len(hooks) <= TUNED_SIZE else 0
        if not steps:
            self.notes.append("the tuned lens is the closed form: too many parameters to be trained here")
        return fit_tuned_lens(a, answer_states(a, rows, hooks), torch.from_numpy(part == 0), seed, steps)

    @cached_property
    def own_probes(self) -> list[ItemScores]:
        """What probes of ``a`` read in ``a``."""
        return (
            self.first.own_probes if self.first else transfer_measures(self.a.model, self.a.model, self.task)
        )

    @cached_property
    def written(self) -> dict[str, Attribution]:
        """Split to what each component of ``a`` writes of the answer."""
        if self.first is not None:
            return self.first.written
        return {asked.split: attribute(self.a.model, asked.rows) for asked in self.a.asked}

    def halves(self, asked: Asked) -> Sequence[np.ndarray]:
        """The halvings that floors come from; none where the floor is a second seed."""
        return asked.halves if self.floors else []


Part = Callable[[Pair], list[Found]]


def behaviour(pair: Pair) -> list[Found]:
    """Divergence, log-probability of the answer and score, from the logits that the models end in."""
    found: list[Found] = []
    hook_a, hook_b = pair.hooks[-1]
    for asked in pair.a.asked:
        named = (asked.split, "", None)
        values: dict[str, list[Tensor]] = {"kl": [], "a": [], "b": []}
        for rows in asked.chunks(pair.a.model.cfg.d_vocab):
            theirs = decode(pair.a.model, pair.a.at_answers(asked, hook_a)[rows]).log_softmax(-1)
            ours = decode(pair.b.model, pair.b.at_answers(asked, hook_b)[rows])
            own = token_values(ours, theirs, asked.targets[rows])
            values["kl"].append(own["lens_kl"])
            values["b"].append(own["lens_log_probability"])
            values["a"].append(token_values(theirs, theirs, asked.targets[rows])["lens_log_probability"])
        kl, a, b = (asked.mean(torch.cat(values[name])) for name in ("kl", "a", "b"))
        found.append(
            _found(pair, asked, ANSWER, ItemScores("kl", *named, "bits a token", kl, asked.families))
        )
        found.append(_change(pair, asked, ANSWER, "answer_log_probability", *named, "bits a token", a, b))
        if pair.task.metric != "bits" and asked.split != "neutral":
            scores = [
                row_scores(side.model, asked.rows, pair.task.metric).astype(float)
                for side in (pair.a, pair.b)
            ]
            found.append(_change(pair, asked, ANSWER, "accuracy", *named, "share of rows", *scores))
    return found


def geometry(pair: Pair) -> list[Found]:
    """Every layer and position: distance, cosine, shift, CKA, Procrustes, angles of the leading subspaces."""
    found: list[Found] = []
    for asked in pair.a.asked:
        for hook_a, hook_b in pair.hooks:
            theirs, ours = pair.a.at_places(asked, hook_a), pair.b.at_places(asked, hook_b)
            for at, position in enumerate(asked.names):
                named = Named(asked.split, "", hook_a)
                cell = ours[:, at], theirs[:, at], asked.families, pair.halves(asked), named
                floored: list[Floored] = row_geometry(*cell) if pair.one_width else []
                found += [Found(position, *each) for each in [*floored, *shape_geometry(*cell)]]
    return found


def lens(pair: Pair) -> list[Found]:
    """The answer by layer through b's own decoder, through a's, and through a's after the map to its basis."""
    a, b = pair.a.model, pair.b.model
    readers = {"own": Reader(lambda _, h: decode(b, h), lambda _, h: decode(a, h))}
    if pair.one_width:
        readers["a's"] = Reader(lambda _, h: decode(a, h), readers["own"].base)
    if pair.stitched is not None:
        maps = pair.stitched.maps
        readers["mapped"] = Reader(
            lambda hook, h: decode(a, maps[hook](h)), readers["own"].base, frozenset(maps)
        )
    return _through(pair, readers)


def tuned(pair: Pair) -> list[Found]:
    """The same through a's tuned lens, which was fitted on retain rows of a and is applied to b unchanged."""
    if not pair.one_width:
        pair.notes.append("no tuned lens between models of different width")
        return []
    read = pair.tuned.logits
    readers = {"tuned": Reader(read, read)}
    if pair.stitched is not None:
        maps = pair.stitched.maps
        readers["tuned, mapped"] = Reader(lambda hook, h: read(hook, maps[hook](h)), read, frozenset(maps))
    return _through(pair, readers)


def _through(pair: Pair, readers: Mapping[str, Reader]) -> list[Found]:
    found: list[Found] = []
    for asked in pair.a.asked:
        for hooks in evenly(pair.hooks, LENS_LAYERS):
            for name, reader in readers.items():
                # on retain rows a map would be read where it was fitted
                fitted = name.endswith("mapped") and asked.split == "retain"
                if not fitted and (reader.hooks is None or hooks[0] in reader.hooks):
                    found += _lens_at(pair, asked, name, reader, *hooks)
    return found


def _lens_at(pair: Pair, asked: Asked, name: str, reader: Reader, hook_a: str, hook_b: str) -> list[Found]:
    values: dict[tuple[str, str], list[Tensor]] = {}
    for rows in asked.chunks(pair.a.model.cfg.d_vocab):
        theirs = reader.base(hook_a, pair.a.at_answers(asked, hook_a)[rows]).log_softmax(-1)
        ours = reader.read(hook_a, pair.b.at_answers(asked, hook_b)[rows])
        for side, logits in (("a", theirs), ("b", ours)):
            for measure, value in token_values(logits, theirs, asked.targets[rows]).items():
                value = value.log2() if measure == "lens_rank" else value
                values.setdefault((measure, side), []).append(value)
    mean = {key: asked.mean(torch.cat(parts)) for key, parts in values.items()}
    named = (asked.split, name, hook_a)
    kl = ItemScores("lens_kl", *named, "bits a token", mean["lens_kl", "b"], asked.families)
    changes = [
        _change(pair, asked, ANSWER, measure, *named, unit, mean[measure, "a"], mean[measure, "b"])
        for measure, unit in (("lens_log_probability", "bits a token"), ("lens_rank", "log2 rank"))
    ]
    return [_found(pair, asked, ANSWER, kl), *changes]


def stitches(pair: Pair) -> list[Found]:
    """How much of a's variance the maps explain, and how much of the forget states they know nothing of."""
    if pair.stitched is None:
        pair.notes.append("no map between models of different depth")
        return []
    return [Found(ANSWER, check) for check in pair.stitched.checks]


def transfer(pair: Pair) -> list[Found]:
    """Probes of a read on b's states, as they are and mapped, and probes refitted on b; beside a's own."""
    if not pair.task.probe_targets:
        pair.notes.append("no probes: the rows have no labels to read from states")
        return []
    if not pair.one_shape:
        pair.notes.append("no transferred probes between models of different shape")
        return []
    maps = pair.stitched.maps if pair.stitched else None
    a, b, task = pair.a.model, pair.b.model, pair.task
    own = {(each.subset, each.layer): each.values for each in pair.own_probes}
    refitted = [("probe_refitted", each) for each in transfer_measures(b, b, task)]
    carried = [("probe_transferred", each) for each in transfer_measures(b, a, task, maps)]
    found = []
    for measure, each in [*carried, *refitted]:
        level = own[each.subset.removesuffix(", mapped"), each.layer]
        named = measure, each.task_split, each.subset, each.layer, "share of rows"
        change = ItemScores(*named, each.values - level, each.families, each.control, each.control_value)
        found.append(Found(READ, change, None, float(level.mean()), float(each.values.mean())))
    return found


def depth(pair: Pair) -> list[Found]:
    """Bits a token that a loses when it runs with b's states after a block; depth if there is a gold model."""
    if not pair.one_shape:
        pair.notes.append("nothing is patched between models of different shape")
        return []
    found: list[Found] = []
    a, b = pair.a.model, pair.b.model
    adapts = {"raw": {}} | ({"mapped": dict(pair.stitched.maps)} if pair.stitched else {})
    for asked in [each for each in pair.a.asked if each.split != "neutral"]:
        rows = asked.rows.select(np.arange(min(len(asked.rows), PATCHED_ROWS)))
        blocks = evenly(places(a, "resid_post", answer_positions(rows), together=True), PATCHED_BLOCKS)
        for reading, adapt in adapts.items():
            if reading == "mapped" and asked.split == "retain":
                continue
            drop = drops(a, b, rows, blocks, adapt)
            halves = [half[: len(rows)] for half in pair.halves(asked)]
            for place, values in zip(blocks, drop, strict=True):
                named = ("patch_drop", asked.split, reading, place.hook, "bits a token")
                found.append(Found(ANSWER, ItemScores(*named, values, rows.families), spread(values, halves)))
            if pair.gold is not None and asked.split == "forget":
                found += _depths(pair, rows, blocks, reading, drop)
    return found


def _depths(pair: Pair, rows: TokenSet, blocks: list[Place], reading: str, drop: np.ndarray) -> list[Found]:
    assert pair.gold is not None
    floor = drops(pair.a.model, pair.gold, rows, blocks)
    found = []
    for at, place in enumerate(blocks):
        values, usable = depth_of(drop[at : at + 1], floor[at : at + 1])
        named = ("depth", "forget", reading, place.hook, "share of the gold model's drop")
        if usable.any():
            found.append(Found(ANSWER, ItemScores(*named, values, rows.families[usable])))
    return found


def attribution(pair: Pair) -> list[Found]:
    """What each head, MLP and the embedding adds to the answer's lead over its rivals, and how that changes."""
    if not pair.one_shape:
        pair.notes.append("nothing is attributed to heads between models of different shape")
        return []
    found: list[Found] = []
    for asked in pair.a.asked:
        theirs, ours = pair.written[asked.split], attribute(pair.b.model, asked.rows)
        items = compare_attributions(ours, theirs, asked.rows, asked.split)
        levels = {(each.subset, each.layer): each.values for each in items if each.measure == "attribution"}
        for each in items:
            if each.measure == "attribution_cosine":
                found.append(_found(pair, asked, READ, each))
            if each.measure == "attribution_change":
                level = levels[each.subset, each.layer]
                named = ("attribution", asked.split, each.subset, each.layer, each.unit)
                found.append(_change(pair, asked, READ, *named, level - each.values, level))
    return found


def weights(pair: Pair) -> list[Found]:
    """How far b's weights lie from a's, all together and tensor by tensor."""
    try:
        distances = weight_distances(pair.b.model, pair.a.model)
    except UndoProbeError:
        pair.notes.append("no weights are compared: the models have different tensors")
        return []
    named = "weight_distance", ""
    return [
        Found("", Statistic(*named, name, None, "ratio", value, None, None, 1, 1))
        for name, value in distances.items()
    ]


# name -> part: what `also` may leave out or add to; behaviour and geometry always run
BASE: Mapping[str, Part] = {"behaviour": behaviour, "geometry": geometry}
PARTS: Mapping[str, Part] = {
    "lens": lens,
    "tuned": tuned,
    "stitches": stitches,
    "probes": transfer,
    "depth": depth,
    "attribution": attribution,
    "weights": weights,
}


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def _found(pair: Pair, asked: Asked, position: str, scores: ItemScores) -> Found:
    return Found(position, scores, spread(scores.values, pair.halves(asked)))


def _change(
    pair: Pair, asked: Asked, position: str, measure: str, split: str, reading: str, layer: str | None, unit: str,
    a: np.ndarray, b: np.ndarray,
) -> Found:  # fmt: skip
    """What changes from a to b, row by row, with both levels."""
    change = ItemScores(measure, split, reading, layer, unit, b - a, asked.families)
    floor = spread(change.values, pair.halves(asked))
    return Found(position, change, floor, float(a.mean()), float(b.mean()))
