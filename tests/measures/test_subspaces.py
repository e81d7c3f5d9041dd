"""Directions that rows share, updates inside them, and selectivity: against plain sums on small models."""

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from undo_probe.linalg import StreamedPCA
from undo_probe.linear_maps import kept_places, token_vectors
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.selectivity import selectivity
from undo_probe.measures.subspaces import (
    BANDS,
    SIDES,
    answer_loss,
    in_bands,
    mlp_maps,
    relearned,
    shared_variance,
    subspace_measures,
    update_energy,
    vectors_seen,
)
from undo_probe.models import HookedTransformer, clone
from undo_probe.task_config import InventedConfig
from undo_probe.tasks.invented import InventedTask
from undo_probe.tasks.protocol import TokenSet
from undo_probe.training import Context


def plain(model: HookedTransformer, rows: TokenSet) -> dict[tuple[str, str], np.ndarray]:
    """Vectors of all rows at once, without the streaming and the parts."""
    maps = mlp_maps(model)
    found = token_vectors(
        model,
        maps,
        rows.tokens,
        kept_places(rows.answer_mask),
        lambda m, tokens: answer_loss(rows, m, tokens),
    )
    read = {("inputs", each.weight): found.inputs[each.inputs] for each in maps}
    return {
        place: vectors.double().numpy()
        for place, vectors in {
            **read,
            **{("gradients", each.weight): found.gradients[each.outputs] for each in maps},
        }.items()
    }


def values(found: list[ItemScores | Statistic], measure: str) -> dict[tuple[str, str | None], float | None]:
    return {
        (f.subset, f.layer): float(f.values.mean()) if isinstance(f, ItemScores) else f.value
        for f in found
        if f.measure == measure
    }


def test_places_that_count_end_before_the_answer() -> None:
    rows = tiny.small_task().rows("forget_T")
    places = kept_places(rows.answer_mask)
    assert not places[:, 0].any()
    for mask, answer in zip(places, rows.answer_mask, strict=True):
        assert mask[1 : int(answer.nonzero().max())].all() and not mask[int(answer.nonzero().max()) :].any()


def test_bands_take_all_of_a_vector_and_chance_is_their_width() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = StreamedPCA(24).update(torch.randn(200, 24, generator=draw).double() + 1)
    basis = in_bands(seen.components(20))
    rows = torch.randn(9, 24, generator=draw).double()
    torch.testing.assert_close(basis.energies(rows).sum(1), rows.square().sum(1))
    assert basis.chance == pytest.approx([1 / 24, 4 / 24, 12 / 24, 4 / 24, 3 / 24])
    # the mean's direction is a band of its own: what is left of it lies nowhere else
    np.testing.assert_allclose(basis.energies(seen.mean[None])[0, 1:], 0, atol=1e-18)


def test_shared_variance_is_the_share_of_an_ordinary_pca() -> None:
    model, task = tiny.knowing(), tiny.small_task()
    taught, asked = task.rows("forget_T"), task.rows("retain_test")
    maps = mlp_maps(model)
    found = values(
        list(
            shared_variance(
                model,
                maps,
                asked,
                vectors_seen(model, maps, taught),
                vectors_seen(model, maps, asked),
                "retain",
            )
        ),
        "shared_variance",
    )
    ours, theirs = plain(model, taught), plain(model, asked)
    for (side, weight), vectors in theirs.items():
        centred = vectors - vectors.mean(0)
        own = ours[side, weight]
        left = np.linalg.svd(own - own.mean(0), full_matrices=False)[2][:16]
        joined = np.linalg.qr(np.concatenate([own.mean(0, keepdims=True), left]).T)[0]
        expected = np.square(centred @ joined).sum() / np.square(centred).sum()
        leading = sum(found[f"{side}, {band}", weight] or 0.0 for band in ("mean", "1–4", "5–16"))
        assert leading == pytest.approx(expected, abs=2e-3)
        assert sum(found[f"{side}, {band}", weight] or 0.0 for band in BANDS) == pytest.approx(1)


def test_an_update_inside_known_components_is_found_there() -> None:
    model, task = tiny.knowing(), tiny.small_task()
    rows = task.rows("forget_T")
    seen = vectors_seen(model, mlp_maps(model), rows)
    after = clone(model)
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            if name.endswith("mlp.W_in"):
                # behind the mean's direction, components by rank: the third one, and the eighth
                read = in_bands(seen.leading("inputs", name, 64)).directions[:, 3]
                written = in_bands(seen.leading("gradients", name, 64)).directions[:, 8]
                parameter += torch.outer(read, written).to(parameter)
    found = values(list(update_energy("made", model, after, seen)), "update_energy")
    assert found["made: W_in inputs, 1–4", None] == pytest.approx(1, abs=1e-5)
    assert found["made: W_in gradients, 5–16", None] == pytest.approx(1, abs=1e-5)
    assert found["made: W_out inputs, mean", None] is None


def invented() -> InventedTask:
    config = InventedConfig(people=60, relations=2, forget_share=0.5)
    return InventedTask(config, seed=0)


def gradient(model: HookedTransformer, rows: TokenSet) -> Tensor:
    copy = clone(model)
    answer_loss(rows, copy, rows.tokens).backward()
    named = dict(copy.named_parameters())
    found = [named[each.weight].grad for each in mlp_maps(copy)]
    return torch.cat([each.flatten() for each in found if each is not None]).double()


def test_selectivity_without_collapse_is_the_cosine_of_gradients_and_all_of_it_leaves_little() -> None:
    task = invented()
    model = tiny.build(tiny.SHAPE, task.d_vocab, task.n_ctx, 0)
    found = selectivity(model, task)
    assert all(parameter.grad is None for parameter in model.parameters())
    by_subset = {item.subset: item for item in found}
    kinds = {item.subset.partition(", ")[0] for item in found}
    assert kinds == {"paraphrase", "other forget facts", "sibling", "unrelated"}
    relation, other = task.relations

    def of(split: str, kind: str) -> TokenSet:
        rows = task.rows(split)
        return rows.select(rows.operations == kind)

    update = gradient(model, of("forget_T_trained", relation))
    for kind, rows in (
        ("paraphrase", of("forget_T", relation)),
        ("other forget facts", of("forget_V", relation)),
        ("sibling", of("retain_test", relation)),
        ("unrelated", of("retain_test", other)),
    ):
        expected = torch.nn.functional.cosine_similarity(update, gradient(model, rows), dim=0)
        item = by_subset[f"{kind}, k=0"]
        assert item.values[list(item.families).index(relation)] == pytest.approx(float(expected), abs=1e-4)
        assert item.task_split == ("retain" if kind in ("sibling", "unrelated") else "forget")


def test_measures_leave_the_model_as_it_is_and_name_every_block() -> None:
    model, task = tiny.knowing(), tiny.small_task()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    attack = tiny.preset("tiny").attack.model_copy(update={"steps": 3, "batch_size": 16})
    attacked = relearned(model, task, attack, Context(seed=1))
    found = subspace_measures(model, task, {"relearning": (model, attacked)})
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert tiny.hook_count(model) == 0
    layers = {f.layer for f in found if f.measure == "subspace_overlap"}
    assert layers == {f"blocks.{block}.mlp.{end}" for block in range(2) for end in ("W_in", "W_out")}
    for measure in ("subspace_overlap", "shared_variance", "update_energy"):
        assert all(-1e-6 <= (v or 0.0) <= 1 + 1e-6 for v in values(found, measure).values())
    for (side, _), value in values(found, "effective_dimension").items():
        assert side in SIDES and value is not None and value >= 1
    energies = values(found, "update_energy")
    total = sum(energies[f"relearning: W_in inputs, {band}", None] or 0.0 for band in BANDS)
    assert total == pytest.approx(1, abs=1e-5)
