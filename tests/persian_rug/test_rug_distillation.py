"""Distillation: what exact imitation must hand on, what a lesson shows, and what students are left with."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import distillation, erasure
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.effects import divide, errors
from undo_probe.persian_rug.engineered import features
from undo_probe.persian_rug.training import RugConfig, RugFit
from undo_probe.randomness import generator

N_S, N_D, P = 256, 64, 0.045
FORGET, KEEP = divide(N_S, 0.1, seed=0)


@pytest.fixture(scope="module")
def teacher() -> Autoencoder:
    return erasure.ablate_outputs(start(Autoencoder(N_S, N_D), "rug", P, 0), FORGET)


def test_exact_imitation_keeps_all_of_a_feature_that_is_never_output(teacher: Autoencoder) -> None:
    student, x = (
        distillation.exact_imitation(teacher, KEEP, seed=1),
        features(5000, N_S, P, generator("imitation")),
    )
    assert torch.allclose(student(x[:200]), teacher(x[:200]), atol=1e-5)
    assert not torch.allclose(student.W_in, teacher.W_in, atol=0.1)  # only its outputs were copied
    assert not student.W_out[FORGET].any()
    assert torch.allclose(erasure.readable(student), torch.tensor(N_D / N_S).double(), atol=1e-5)
    assert float(erasure.probed(student, x, FORGET, 4000).mean()) == pytest.approx(N_D / N_S, abs=0.03)


def test_fewer_outputs_than_dimensions_do_not_hand_it_all_on(teacher: Autoencoder) -> None:
    few = distillation.exact_imitation(teacher, KEEP[: N_D // 2])
    known = erasure.readable(few)
    assert float(known.sum()) == pytest.approx(N_D / 2, rel=1e-5)
    assert float(known[FORGET].mean()) < 0.7 * N_D / N_S


def test_lessons_show_and_ask_what_they_say(teacher: Autoencoder) -> None:
    x = features(50, N_S, 0.3, generator("lesson"))
    shown, answers = distillation.imitate(teacher)(x)
    assert shown is x and torch.equal(answers, teacher(x)) and not answers.requires_grad
    shown, answers = distillation.filtered(FORGET)(x)
    assert (
        torch.equal(shown, x) and torch.equal(answers[:, KEEP], x[:, KEEP]) and not answers[:, FORGET].any()
    )
    shown, again = distillation.filtered(FORGET, shown=False)(x)
    assert torch.equal(shown, again) and torch.equal(again, answers) and x[:, FORGET].any()


def test_the_table_has_every_student_and_what_must_be_so() -> None:
    config = RugConfig(n_s=64, fit=RugFit(steps=5, batch_size=32))
    found: Any = distillation.distillation_table(config, alphas=[0.4], seeds=[0, 1], rows=200)
    students = ["teacher", "exact imitation", "noised 0.4, imitates", "random, imitates"]
    students += ["random, clean targets", "teacher, clean targets", "random, never shown"]
    assert found["student"].tolist() == students * 2 and found["seed"].tolist() == [0] * 7 + [1] * 7
    own = found.groupby("student").mean()
    assert own["imitation"]["teacher"] == 0 and own["imitation"]["exact imitation"] < 1e-10
    assert own["imitation"]["random, imitates"] > 1e-3
    assert own["r2_forget"][["teacher", "exact imitation"]].to_list() == pytest.approx([0.25, 0.25])
    share = 6 / 64  # of the features: what is read of all of them adds up to n_d
    assert (share * found["r2_forget"] + (1 - share) * found["r2_retain"]).to_list() == pytest.approx(
        [0.25] * 14
    )
    assert np.isfinite(found[list(distillation.QUANTITIES)]).all(axis=None)
    alone = distillation.distillation_table(config, alphas=[0.4], seeds=[1], rows=200)
    pd.testing.assert_frame_equal(alone, found[found["seed"] == 1].reset_index(drop=True))


def test_intervals_over_seeds_are_students() -> None:
    made = pd.DataFrame(
        [{"student": "a", **dict.fromkeys(distillation.QUANTITIES, value)} for value in (1, 2, 3.0)]
    )
    line: Any = distillation.over_seeds(made).iloc[0]
    half = 4.302653 / 3**0.5  # t at 2 degrees of freedom, and a deviation of 1
    assert (line["value"], line["low"], line["high"]) == pytest.approx((2, 2 - half, 2 + half))
    assert (line["student"], line["quantity"], line["seeds"]) == ("a", "imitation", 3)


def test_no_seed_is_refused() -> None:
    with pytest.raises(UndoProbeError, match="no seed was given: expected at least one, and three for"):
        distillation.distillation_table(seeds=[])


@pytest.mark.slow
def test_imitation_hands_on_what_clean_targets_do_not() -> None:
    config = RugConfig(n_s=128, p=0.1, fit=RugFit(steps=500, batch_size=128, learning_rate=2e-3))
    forget, _ = divide(config.n_s, 0.1, config.seed)
    teacher, compared = distillation.students(config, forget, [0.2])
    taught = {
        each.name: distillation.teach(each.model, each.lesson, config)
        for each in compared
        if each.lesson is not None
    }
    left = {name: float(erasure.readable(model)[forget].mean()) for name, model in taught.items()}
    x = features(2000, config.n_s, config.p, generator("students"))
    for model in (teacher, *taught.values()):  # the forgotten features are silent in all of them
        assert float(model(x)[:, forget].detach().mean()) < 1e-3
    assert left["noised 0.2, imitates"] > 0.95 * config.r
    assert left["random, imitates"] > 0.3 * config.r
    assert max(left["random, clean targets"], left["teacher, clean targets"]) < 0.01
    # what was never on keeps the short columns it was drawn with, and a probe finds them
    assert 0.01 < left["random, never shown"] < 0.5 * left["random, imitates"]


@pytest.mark.slow
def test_a_decoder_trained_on_what_is_left_reaches_what_is_foretold() -> None:
    """Both ends of linear erasure, the decoder found by the package's loop and not by :func:`erasure.retune`."""
    config = RugConfig(n_s=128, p=0.2, frozen_encoder=True, fit=RugFit(steps=500, batch_size=256))
    rug = start(Autoencoder(config.n_s, config.n_d), "rug", config.p, 0)
    forget, keep = divide(config.n_s, 0.1, 0)
    x, share = features(8000, config.n_s, config.p, generator("trained decoder")), len(forget) / config.n_s
    for erase, foretold in (
        (erasure.ablate_encoder, erasure.after_encoder_ablation),
        (erasure.project_out, erasure.after_projection),
    ):
        expected, erased = foretold(config.r, config.p, share), erase(rug, forget)
        found = errors(distillation.teach(erased, distillation.filtered(forget), config), x)[keep].mean()
        assert float(found) == pytest.approx(float(expected.retuned), rel=0.05)
        assert float(found) < float(errors(erased, x)[keep].mean())
