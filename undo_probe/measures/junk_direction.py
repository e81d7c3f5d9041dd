"""The junk direction: what RMU-like unlearning adds to forget states, and what removing it brings back.

The analysis of Arditi and Chughtai (2024), with the controls it lacked: the direction is fitted on one half
of the forget families and reported on the other, and stands beside directions that should do nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from undo_probe.activations import harvest_points
from undo_probe.errors import UndoProbeError
from undo_probe.interventions import ablate
from undo_probe.linalg import StreamedPCA, project_out
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.folds import deal_families
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed, generator
from undo_probe.subspace import Subspace
from undo_probe.tasks.protocol import Task, TokenSet, join

Position = Literal["read", "prompt"]
Accuracy = Callable[[HookedTransformer, TokenSet], Shaped[np.ndarray, " row"]]
RESAMPLES = 200


def junk_direction(
    unlearned: HookedTransformer,
    original: HookedTransformer,
    rows: TokenSet,
    layer: str | int,
    position: Position = "read",
    seed: int = 0,
) -> Subspace:
    """The direction of the mean shift of hidden states from the original to the unlearned model.

    Args:
        unlearned: the suppressed model.
        original: the model it was made from.
        rows: prompts on which the shift is taken, forget prompts as a rule.
        layer: a block (its output) or a hook name.
        position: the last prompt token, or the mean over all prompt tokens.
        seed: of the halves and resamples behind the evidence.

    Returns:
        A subspace of dimension 1 whose ``mean`` is the original's mean state. Its evidence: ``share``, the
        squared projection of each shift over its squared norm, on families the direction was not fitted on;
        ``stability`` and ``stability_low``, mean and 5 % quantile of the cosine over resampled families;
        ``norm``, length of the mean shift; ``n`` rows and ``n_clusters`` families.

    Raises:
        UndoProbeError: the two models' states do not differ.
    """
    hook = _hook(original, layer)
    before = _states(original, rows, hook, position)
    shift = _states(unlearned, rows, hook, position) - before
    direction = mean_direction(shift)
    half = deal_families(rows.families, 2, derive_seed(seed, "junk halves"))
    shares = torch.cat(
        [Subspace.from_vectors(mean_direction(shift[half != h])).share(shift[half == h]) for h in (0, 1)]
    )
    cosines = direction_resamples(shift, rows.families, RESAMPLES, seed) @ direction
    evidence: dict[str, Any] = {
        "share": float(shares.mean()),
        "stability": float(cosines.mean()),
        "stability_low": float(cosines.quantile(0.05)),
        "norm": float(shift.mean(0).norm()),
        "n": len(rows),
        "n_clusters": len(np.unique(rows.families)),
    }
    return Subspace.from_vectors(direction, hook, before.mean(0), evidence)


def mean_direction(shift: Float[Tensor, "row d_model"]) -> Float[Tensor, " d_model"]:
    """The unit vector along the mean of the shifts.

    Raises:
        UndoProbeError: the mean is zero.
    """
    mean = shift.mean(0)
    if not float(mean.norm()) > 0:
        raise UndoProbeError(
            "the two models have the same states on these rows, so there is no junk direction"
        )
    return mean / mean.norm()


def direction_resamples(
    shift: Float[Tensor, "row d_model"], families: Shaped[np.ndarray, " row"], draws: int, seed: int
) -> Float[Tensor, "draw d_model"]:
    """Mean directions of families drawn with replacement."""
    _, member = np.unique(families, return_inverse=True)
    count = int(member.max()) + 1
    drawn = np.random.default_rng(derive_seed(seed, "junk resamples")).multinomial(
        count, np.full(count, 1 / count), size=draws
    )
    means = torch.from_numpy(drawn[:, member]).to(shift) @ shift
    return means / means.norm(dim=1, keepdim=True)


def junk_measures(
    unlearned: HookedTransformer,
    original: HookedTransformer,
    task: Task,
    control_vector: Float[Tensor, " d_model"] | None,
    layer: str | int,
    accuracy: Accuracy,
    controls: int = 20,
    seed: int = 0,
    placebo_direction: Subspace | None = None,
    position: Position = "read",
) -> list[ItemScores | Statistic]:
    """What the junk direction is, and what ablating it returns, on families it was not fitted on.

    Args:
        unlearned: the suppressed model.
        original: the model it was made from.
        task: T and V are halved by family; retain accuracy is taken on held-out retain rows.
        control_vector: the vector that RMU pushed forget states to; None for other methods.
        layer: where the direction is fitted.
        accuracy: whether a model answers each row, for example ``evaluation.answers_correct``.
        controls: directions of each control kind.
        seed: of halves, resamples and control directions.
        placebo_direction: the direction found by the same estimator in the placebo RMU (of the oracle).
        position: where the direction is fitted.

    Returns:
        ``junk_share`` a row and ``junk_cosine`` with ``control_vector`` (raw and mean-removed);
        ``ablated_accuracy`` a row for the junk direction and for no ablation, and as a mean over draws (with
        minimum and maximum in place of an interval) for each control kind; ``junk_recovery``, a row's gain
        over the best control kind; the same direction ablated in the original. Directions are ablated from
        ``layer`` on, and the junk direction and isotropic ones in all blocks too (the published recipe, which
        in narrow models harms by itself).
    """
    forget = join("forget_TV", task.rows("forget_T"), task.rows("forget_V"))
    half = deal_families(forget.families, 2, derive_seed(seed, "junk halves"))
    fitted, held = forget.select(half == 0), forget.select(half == 1)
    junk = junk_direction(unlearned, original, fitted, layer, position, seed)
    kinds = control_directions(unlearned, original, task, fitted, junk, controls, position, seed)
    if placebo_direction is not None:
        kinds["placebo"] = [placebo_direction]
    found: list[ItemScores | Statistic] = [
        *_cosines(unlearned, original, fitted, junk, control_vector, position, seed),
        _share(unlearned, original, held, junk, kinds["isotropic"], position),
    ]
    for split, rows in (("forget", held), ("retain", task.rows("retain_test"))):
        found += _ablations(unlearned, original, rows, split, junk, kinds, accuracy)
    return found


def control_directions(
    unlearned: HookedTransformer,
    original: HookedTransformer,
    task: Task,
    fitted: TokenSet,
    junk: Subspace,
    controls: int,
    position: Position,
    seed: int,
) -> dict[str, list[Subspace]]:
    """Directions that should do nothing, by kind.

    ``isotropic``; ``covariance``, drawn from the unlearned model's activation covariance on forget and
    retain prompts; ``components``, its leading principal components orthogonal to the junk direction;
    ``retain``, the same estimator on resampled retain families.
    """
    retain = task.rows("retain_test")
    states = {rows.name: _states(unlearned, rows, junk.hook, position) for rows in (fitted, retain)}
    pca = StreamedPCA(junk.d_model)
    orthogonal = StreamedPCA(junk.d_model)
    for part in states.values():
        pca.update(part)
        orthogonal.update(project_out(part, junk.basis))
    values, vectors = torch.linalg.eigh(pca.covariance())
    noise = torch.randn(
        controls, junk.d_model, generator=generator(seed, "covariance controls"), dtype=torch.float64
    )
    drawn = (noise * values.clamp_min(0).sqrt()) @ vectors.T
    moved = states[retain.name] - _states(original, retain, junk.hook, position)
    kinds = {
        "isotropic": [Subspace.random(junk.d_model, 1, derive_seed(seed, i)) for i in range(controls)],
        "covariance": _directions(drawn.float(), junk.hook),
        "components": _directions(
            orthogonal.components(min(controls, junk.d_model - 1)).basis.T.float(), junk.hook
        ),
    }
    if float(moved.mean(0).norm()) > 0:
        resampled = direction_resamples(
            moved, retain.families, controls, derive_seed(seed, "retain controls")
        )
        kinds["retain"] = _directions(resampled, junk.hook)
    return kinds


def _directions(vectors: Tensor, hook: str) -> list[Subspace]:
    return [Subspace.from_vectors(vector, hook) for vector in vectors]


def _cosines(
    unlearned: HookedTransformer,
    original: HookedTransformer,
    rows: TokenSet,
    junk: Subspace,
    control_vector: Tensor | None,
    position: Position,
    seed: int,
) -> list[Statistic]:
    """Cosine with the known vector, with an interval over resampled families; raw and mean-removed."""
    if control_vector is None:
        return []
    shift = _states(unlearned, rows, junk.hook, position) - _states(original, rows, junk.hook, position)
    resamples = direction_resamples(shift, rows.families, RESAMPLES, derive_seed(seed, "junk cosine"))
    random = torch.randn(1000, junk.d_model, generator=generator(seed, "cosine control"))
    found = []
    for subset, centre in (("raw", False), ("mean removed", True)):

        def cosine(vectors: Tensor, centre: bool = centre) -> Tensor:
            a, b = vectors, control_vector.to(vectors)
            if centre:
                a, b = a - a.mean(-1, keepdim=True), b - b.mean()
            return a @ b / (a.norm(dim=-1) * b.norm())

        low, high = cosine(resamples).quantile(torch.tensor([0.025, 0.975])).tolist()
        chance = float(cosine(random).abs().quantile(0.95))
        value, clusters = float(cosine(junk.direction)), len(np.unique(rows.families))
        named = ("junk_cosine", "forget", subset, junk.hook, "cosine")
        control = ("isotropic, 95 % of absolute values", chance)
        found.append(Statistic(*named, value, low, high, len(rows), clusters, *control))
    return found


def _share(
    unlearned: HookedTransformer,
    original: HookedTransformer,
    held: TokenSet,
    junk: Subspace,
    isotropic: Sequence[Subspace],
    position: Position,
) -> ItemScores:
    shift = _states(unlearned, held, junk.hook, position) - _states(original, held, junk.hook, position)
    control = float(torch.stack([other.share(shift).mean() for other in isotropic]).mean())
    values = junk.share(shift).double().numpy()
    return ItemScores(
        "junk_share",
        "forget",
        "held-out half",
        junk.hook,
        "share",
        values,
        held.families,
        "isotropic",
        control,
    )


def _ablations(
    unlearned: HookedTransformer,
    original: HookedTransformer,
    rows: TokenSet,
    split: str,
    junk: Subspace,
    kinds: dict[str, list[Subspace]],
    accuracy: Accuracy,
) -> list[ItemScores | Statistic]:
    """Accuracy of one side with each direction ablated, row by row where it is one direction."""
    everywhere = list(range(unlearned.cfg.n_layers))
    behind = _behind(unlearned, junk.hook)

    def right(model: HookedTransformer, direction: Subspace | None, blocks: list[int] = behind) -> np.ndarray:
        if direction is None:
            return np.asarray(accuracy(model, rows), dtype=float)
        with ablate(model, direction, blocks):
            return np.asarray(accuracy(model, rows), dtype=float)

    before, after = right(unlearned, None), right(unlearned, junk)
    drawn = {kind: np.stack([right(unlearned, d) for d in directions]) for kind, directions in kinds.items()}
    published = np.stack([right(unlearned, d, everywhere) for d in kinds["isotropic"]])
    means = {kind: values.mean(0) for kind, values in drawn.items()} | {"no ablation": before}
    best = max(means, key=lambda kind: float(means[kind].mean()))
    level = float(means[best].mean())
    intact, touched = right(original, None), right(original, junk)

    def items(
        measure: str, subset: str, values: np.ndarray, control: str, control_value: float | None
    ) -> ItemScores:
        layer, families = junk.hook, rows.families
        return ItemScores(measure, split, subset, layer, "share", values, families, control, control_value)

    clusters = len(np.unique(rows.families))
    return [
        items("ablated_accuracy", "no ablation", before, "", None),
        items("ablated_accuracy", "junk direction", after, best, level),
        items("junk_recovery", "junk direction", after - means[best], best, level),
        items(
            "ablated_accuracy", "junk direction in the original", touched, "no ablation", float(intact.mean())
        ),
        items(
            "ablated_accuracy",
            "junk direction, all blocks",
            right(unlearned, junk, everywhere),
            "isotropic, all blocks",
            float(published.mean()),
        ),
        *(
            _control(split, kind, junk.hook, values.mean(1), clusters, float(before.mean()))
            for kind, values in {**drawn, "isotropic, all blocks": published}.items()
        ),
    ]


def _control(split: str, kind: str, hook: str, draws: np.ndarray, clusters: int, before: float) -> Statistic:
    named = ("ablated_accuracy", split, kind, hook, "share")
    spread = float(draws.mean()), float(draws.min()), float(draws.max())
    note = "low and high: least and greatest of n control directions"
    return Statistic(*named, *spread, len(draws), clusters, "no ablation", before, note)


def _behind(model: HookedTransformer, hook: str) -> list[int]:
    """The blocks that read a hook point; the last block where none is left."""
    block = int(hook.split(".")[1])
    first = block + 1 if hook.endswith("resid_post") else block
    return list(range(min(first, model.cfg.n_layers - 1), model.cfg.n_layers))


def _hook(model: HookedTransformer, layer: str | int) -> str:
    if isinstance(layer, str):
        if layer not in model.hook_dict or not layer.startswith("blocks."):
            raise UndoProbeError(
                f"{layer!r} is no hook point of a block: names look like blocks.0.hook_resid_post"
            )
        return layer
    if not 0 <= layer < model.cfg.n_layers:
        raise UndoProbeError(f"the model has no block {layer}: blocks go from 0 to {model.cfg.n_layers - 1}")
    return f"blocks.{layer}.hook_resid_post"


def _states(model: HookedTransformer, rows: TokenSet, hook: str, position: Position) -> Tensor:
    """States at the read position, or their mean over the prompt, in float32 or wider: (row, d_model)."""
    if position not in ("read", "prompt"):
        raise UndoProbeError(f"position is {position!r}: choose 'read' or 'prompt'")
    chosen = rows.read_position if position == "read" else rows.prompt_places()
    states = harvest_points(model, rows.tokens, [hook], chosen)[hook]
    return (states if states.dtype == torch.float64 else states.float()).mean(1)
