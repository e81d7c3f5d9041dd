"""Depth between a model that knows (0) and one that never did (1); other bases must not look deep once mapped."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import two_languages
from basis import reordered

from undo_probe.config import InventedConfig
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.depth import TAU, depth_measures, depth_of
from undo_probe.measures.junk_direction import junk_direction
from undo_probe.measures.lens import lens_measures, transfer_measures
from undo_probe.measures.patching import plain_bits
from undo_probe.measures.stitches import answer_states, asked_rows, fit_stitches
from undo_probe.models import HookedTransformer, build, clone
from undo_probe.tasks import build_task

Found = dict[tuple[str, str, str, str | None], float]


@cache
def gold() -> HookedTransformer:
    return build(tiny.SHAPE, tiny.small_task().d_vocab, tiny.small_task().n_ctx, seed=5)


def means(found: Sequence[ItemScores | Statistic]) -> Found:
    return {
        (f.measure, f.task_split, f.subset, f.layer): float(f.values.mean())
        for f in found
        if isinstance(f, ItemScores)
    }


def depth(model: HookedTransformer, stitched: bool = False) -> Found:
    task, original = tiny.small_task(), tiny.knowing()
    maps = tuple(fit_stitches(m, original, task).maps for m in (model, gold())) if stitched else None
    return means(depth_measures(model, original, gold(), task, maps))  # type: ignore[arg-type]


def of(found: Found, kind: str) -> dict[str, float]:
    """Subset (or hook) to depth, for raw or stitched."""
    return {
        hook or subset: value
        for (measure, _, subset, hook), value in found.items()
        if measure == "depth" and subset.startswith(kind)
    }


def test_the_original_has_depth_0_and_the_oracle_depth_1_at_every_block() -> None:
    assert len(of(depth(tiny.knowing()), "raw")) == 4
    np.testing.assert_allclose(list(of(depth(tiny.knowing()), "raw").values()), 0, atol=1e-5)
    for kind in ("raw", "stitched"):
        np.testing.assert_allclose(list(of(depth(gold(), stitched=True), kind).values()), 1, atol=1e-9)
    np.testing.assert_allclose(
        list(of(depth(tiny.knowing(), stitched=True), "stitched").values()), 0, atol=1e-3
    )


def test_what_is_patched_in_costs_and_returns_nothing_between_equal_models() -> None:
    found = depth(tiny.knowing())
    changes = [value for (measure, *_), value in found.items() if measure.startswith("patch_")]
    assert len(changes) == 6
    np.testing.assert_allclose(changes, 0, atol=1e-5)


def test_the_score_is_the_weighted_mean_of_the_paper_over_blocks_that_count() -> None:
    floor = np.array([[2.0, TAU / 2, 1.0], [1.0, TAU / 2, 3.0]])
    drop = np.array([[1.0, 9.0, -1.0], [5.0, 9.0, 1.5]])
    values, usable = depth_of(drop, floor)
    # weights 2 and 1 on shares .5 and 1 (clipped); nothing counts; weights 1 and 3 on shares 0 (clipped) and .5
    np.testing.assert_allclose(values, [(2 * 0.5 + 1 * 1) / 3, (1 * 0 + 3 * 0.5) / 4])
    assert usable.tolist() == [True, False, True]


def test_an_unlearned_model_lies_between() -> None:
    found = of(depth(tiny.suppressed().model), "raw")
    assert 0.05 < found["raw, all blocks"] < 1
    last = list(found)[-1]
    assert found[last] > 0.05


def test_another_basis_looks_deep_until_states_are_mapped() -> None:
    same = reordered(tiny.knowing())
    tokens = tiny.small_task().rows("forget_V").tokens
    torch.testing.assert_close(
        tiny.logits(same, tokens), tiny.logits(tiny.knowing(), tokens), atol=1e-4, rtol=1e-4
    )
    found = depth(same, stitched=True)
    assert of(found, "raw")["raw, all blocks"] > 0.5
    assert of(found, "stitched")["stitched, all blocks"] < 0.05
    # a change of basis costs retain questions too: what is specific to forgetting does not
    assert found["patch_drop", "retain", "raw", "blocks.0.hook_resid_post"] > 1
    assert abs(found["patch_drop", "retain", "stitched", "blocks.0.hook_resid_post"]) < 0.05


def test_no_question_counts_where_the_oracle_is_the_original() -> None:
    task, original = tiny.small_task(), tiny.knowing()
    found = [f for f in depth_measures(original, original, original, task) if f.measure == "depth"]
    assert all(isinstance(f, Statistic) and f.value is None and "no question" in f.note for f in found)


def test_a_planted_junk_direction_is_deep_until_it_is_removed() -> None:
    task, original = tiny.small_task(), tiny.knowing()
    flooded, vector = clone(original), torch.randn(32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        flooded.blocks[0].mlp.b_out += 20 * (vector - vector.mean())  # type: ignore[operator]
    junk = junk_direction(flooded, original, task.rows("forget_T"), 0)
    found = depth_measures(flooded, original, gold(), task, junk=junk)
    depths = of(means(found), "raw") | of(means(found), "junk removed")
    assert depths["raw, all blocks"] > depths["junk removed, all blocks"] + 0.2
    own = next(f for f in found if f.subset == "junk removed, all blocks")
    assert own.control.startswith("the original's states") and own.control_value is not None
    # at the flooded block, all that is left is what the projection takes from any state
    block = "blocks.0.hook_resid_post"
    at_block = next(f for f in found if f.subset == "junk removed, one block" and f.layer == block)
    assert isinstance(at_block, ItemScores)
    assert at_block.values.mean() == pytest.approx(at_block.control_value, abs=1e-3)


@pytest.mark.parametrize("name", ["invented", "language"])
def test_other_tasks_have_the_same_ends(name: str, tmp_path: Path) -> None:
    """Facts have one answer token at one position; of running text, every token is answer."""
    if name == "language":
        task = build_task(two_languages.config(two_languages.write(tmp_path / "text")), 0)
    else:
        task = build_task(InventedConfig(people=24, relations=2), 0)
    original, other = (build(tiny.SHAPE, task.d_vocab, task.n_ctx, seed) for seed in (0, 1))
    with torch.no_grad():
        for model in (original, other):
            model.unembed.W_U *= 30  # untrained, but with answers that differ
    maps = fit_stitches(other, original, task).maps
    gone = of(means(depth_measures(other, original, other, task, (maps, maps))), "raw")
    kept = of(means(depth_measures(original, original, other, task)), "raw")
    assert set(gone) == set(kept) and len(gone) == 4
    np.testing.assert_allclose(list(gone.values()), 1, atol=1e-9)
    np.testing.assert_allclose(list(kept.values()), 0, atol=1e-4)
    lens = means(lens_measures(original, original, task))
    rows = asked_rows(task, "forget")
    own = lens["lens_log_probability", "forget", "own", "blocks.1.hook_resid_post"]
    assert own == pytest.approx(plain_bits(original, rows).mean(), abs=1e-4)
    assert bool(transfer_measures(other, original, task, maps)) == bool(task.probe_targets)


def test_maps_are_fitted_on_retain_states_and_checked_on_others() -> None:
    task, original = tiny.small_task(), tiny.knowing()
    found = fit_stitches(reordered(original), original, task)
    assert list(found.maps) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    explained = [f.value or 0.0 for f in found.checks if isinstance(f, Statistic)]
    np.testing.assert_allclose(explained, 1, atol=1e-3)
    fresh = fit_stitches(gold(), original, task)
    held = {(f.task_split, f.layer): f.value for f in fresh.checks if isinstance(f, Statistic)}
    assert all(value is not None and value < 0.9 for value in held.values())
    outside = [f for f in fresh.checks if isinstance(f, ItemScores)]
    assert all(f.values.min() >= 0 and f.control_value is not None for f in outside)


def test_states_are_those_that_predict_the_answers_tokens() -> None:
    model, rows = tiny.knowing(), asked_rows(tiny.small_task(), "forget")
    states = answer_states(model, rows)["blocks.1.hook_resid_post"]
    assert len(states) == int(rows.answer_mask[:, 1:].sum())
    with torch.no_grad():
        logits = model.unembed(model.ln_final(states))
    targets = rows.tokens[:, 1:][rows.answer_mask[:, 1:]]
    torch.testing.assert_close(logits, tiny.logits(model, rows.tokens)[:, :-1][rows.answer_mask[:, 1:]])
    assert (logits.argmax(-1) == targets).float().mean() > 0.5
