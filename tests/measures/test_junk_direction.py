from functools import cache

import numpy as np
import pytest
import tiny
import torch

from undo_probe.activations import residual_streams
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answers_correct
from undo_probe.interventions import ablate
from undo_probe.linalg import project_out
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.junk_direction import (
    control_directions,
    direction_resamples,
    junk_direction,
    junk_measures,
    mean_direction,
)
from undo_probe.models import HookedTransformer, clone
from undo_probe.subspace import Subspace

POST = "blocks.0.hook_resid_post"


def planted_vector() -> torch.Tensor:
    vector = torch.randn(16, generator=torch.Generator().manual_seed(7))
    return vector - vector.mean()


@cache
def pair() -> tuple[HookedTransformer, HookedTransformer]:
    """A model, and the same with a constant vector added to its stream by the first block."""
    original = tiny.model()
    shifted = clone(original)
    with torch.no_grad():
        shifted.blocks[0].mlp.b_out += 10 * planted_vector()  # type: ignore[operator]
    return shifted, original


def test_a_planted_shift_is_found_with_share_one_and_cosine_one() -> None:
    shifted, original = pair()
    junk = junk_direction(shifted, original, tiny.task().rows("forget_T"), 0)
    assert torch.cosine_similarity(junk.direction, planted_vector(), dim=0) > 1 - 1e-5
    assert junk.hook == POST
    assert junk.evidence["share"] > 1 - 1e-5
    assert junk.evidence["stability_low"] > 1 - 1e-5
    assert junk.evidence["norm"] == pytest.approx(10 * float(planted_vector().norm()), rel=1e-4)


def test_the_mean_is_the_originals() -> None:
    shifted, original = pair()
    rows = tiny.task().rows("forget_V")
    junk = junk_direction(shifted, original, rows, POST)
    states = residual_streams(original, rows.tokens, rows.read_position)[POST][:, 0]
    assert junk.mean is not None
    torch.testing.assert_close(junk.mean, states.mean(0))


def test_a_shift_without_direction_has_a_small_share_and_no_stability() -> None:
    draw = torch.Generator().manual_seed(0)
    shift = torch.randn(200, 16, generator=draw)
    families = np.repeat(np.arange(50), 4)
    cosines = direction_resamples(shift, families, 100, 0) @ mean_direction(shift)
    assert cosines.mean() < 0.9
    assert Subspace.from_vectors(mean_direction(shift[:100])).share(shift[100:]).mean() < 0.15


def test_equal_models_have_no_junk_direction() -> None:
    _, original = pair()
    with pytest.raises(UndoProbeError, match="no junk direction"):
        junk_direction(original, original, tiny.task().rows("forget_T"), 0)
    with pytest.raises(UndoProbeError, match="no block 5"):
        junk_direction(*pair(), tiny.task().rows("forget_T"), 5)
    with pytest.raises(UndoProbeError, match="no hook point of a block"):
        junk_direction(*pair(), tiny.task().rows("forget_T"), "resid_post")


def test_controls_are_unit_directions_of_every_kind_and_components_avoid_the_junk() -> None:
    shifted, original = pair()
    rows = tiny.task().rows("forget_T")
    junk = junk_direction(shifted, original, rows, 0)
    kinds = control_directions(shifted, original, tiny.task(), rows, junk, 20, "read", 0)
    assert set(kinds) == {"isotropic", "covariance", "components", "retain"}
    assert [len(kinds[kind]) for kind in ("isotropic", "covariance", "retain")] == [20] * 3
    assert len(kinds["components"]) == 15
    for direction in kinds["components"]:
        assert abs(direction.direction @ junk.direction) < 1e-4


def test_covariance_controls_lie_where_the_states_vary() -> None:
    shifted, original = pair()
    rows = tiny.task().rows("forget_T")
    junk = junk_direction(shifted, original, rows, 0)
    kinds = control_directions(shifted, original, tiny.task(), rows, junk, 20, "read", 0)
    states = residual_streams(shifted, rows.tokens, rows.read_position)[POST][:, 0]
    centred = states - states.mean(0)

    def spread(kind: str) -> float:
        return float(np.mean([float((centred @ d.direction).var()) for d in kinds[kind]]))

    assert spread("covariance") > 1.2 * spread("isotropic")


def test_measures_report_recovery_beside_every_control() -> None:
    shifted, original = pair()
    task, placebo = tiny.task(), Subspace.random(16, 1, 3, POST)
    found = junk_measures(
        shifted, original, task, planted_vector(), 0, answers_correct, controls=20, placebo_direction=placebo
    )
    statistics = {(f.measure, f.task_split, f.subset): f for f in found if isinstance(f, Statistic)}
    items = {(f.measure, f.task_split, f.subset): f for f in found if isinstance(f, ItemScores)}
    for subset in ("raw", "mean removed"):
        cosine = statistics["junk_cosine", "forget", subset]
        assert cosine.value == pytest.approx(1, abs=1e-5)
        assert cosine.control_value is not None and 0.2 < cosine.control_value < 0.8
    share = items["junk_share", "forget", "held-out half"]
    assert share.values.mean() > 1 - 1e-5 and share.control_value is not None and share.control_value < 0.3
    for split in ("forget", "retain"):
        for kind in ("isotropic", "covariance", "components", "retain", "placebo"):
            control = statistics["ablated_accuracy", split, kind]
            assert control.low is not None and control.high is not None and control.value is not None
            assert control.low <= control.value <= control.high
        before, after = (
            items["ablated_accuracy", split, s].values for s in ("no ablation", "junk direction")
        )
        gain = items["junk_recovery", split, "junk direction"]
        assert gain.control_value is not None and gain.control_value >= before.mean()
        assert gain.values.mean() == pytest.approx(after.mean() - gain.control_value)
        assert ("ablated_accuracy", split, "junk direction in the original") in items
    halves = {tuple(f.families) for f in found if isinstance(f, ItemScores) and f.task_split == "forget"}
    assert len(halves) == 1 and len(next(iter(halves))) < len(task.rows("forget_T")) + len(
        task.rows("forget_V")
    )


def test_the_ablated_model_and_a_model_without_the_shift_differ_in_the_junk_only() -> None:
    shifted, original = pair()
    rows = tiny.task().rows("forget_V")
    junk = junk_direction(shifted, original, rows, 0)
    with ablate(shifted, junk):
        inside = residual_streams(shifted, rows.tokens, rows.read_position)[POST]
    with ablate(original, junk):
        plain = residual_streams(original, rows.tokens, rows.read_position)[POST]
    torch.testing.assert_close(
        project_out(inside, junk.basis), project_out(plain, junk.basis), atol=1e-4, rtol=1e-4
    )
    assert tiny.hook_count(shifted) == tiny.hook_count(original) == 0
