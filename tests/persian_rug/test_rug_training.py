"""Training: any decoder and start, the same bits after a kill, and what it ends in."""

from pathlib import Path

import pytest
import torch

from undo_probe import persian_rug
from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import autoencoder, diagnostics, grid, rivals, training
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.engineered import features
from undo_probe.randomness import generator
from undo_probe.training import Context

SHORT = {"steps": 12, "eval_every": 4, "batch_size": 64}
QUICK = {"n_s": 32, "r": 0.5, "p": 0.2, "held_out": 512}


def trained(**settings) -> training.TrainedRug:  # noqa: ANN003
    return training.train(**{**QUICK, "fit": SHORT, **settings})


@pytest.mark.parametrize("decoder", autoencoder.DECODERS)
def test_every_decoder_learns(decoder: str) -> None:
    made = trained(
        decoder=decoder, start="tied", fit={**SHORT, "steps": 40, "learning_rate": 5e-3, "eval_every": 40}
    )
    assert made.curve[-1][1] < 0.8 * made.curve[0][1]
    assert made.loss.value == pytest.approx(made.curve[-1][1], rel=0.3) and made.loss.error > 0


def test_decoders_do_what_their_names_say() -> None:
    x = features(50, 32, 0.3, generator(0))
    found = {}
    for decoder in autoencoder.DECODERS:
        model = start(Autoencoder(32, 16, decoder, k=3), "tied", 0.3, seed=0)
        found[decoder] = model(x).detach()
    linear = found["linear"]
    assert torch.equal(found["relu"], torch.relu(linear))
    over = torch.where(linear > autoencoder.THRESHOLD, linear, 0.0)
    assert torch.allclose(found["jumprelu"], over, atol=1e-6)
    assert (found["topk"] > 0).sum(1).max() == 3
    assert torch.allclose(found["topk"].amax(1), torch.relu(linear).amax(1))
    assert torch.allclose(found["gated"], torch.relu(linear))  # until gate and scale are trained


def test_thresholds_and_gates_are_trained() -> None:
    for decoder, names in (("jumprelu", ["log_threshold"]), ("gated", ["log_scale", "b_gate"])):
        model = start(Autoencoder(32, 16, decoder), "tied", 0.3, seed=0)
        (model(features(200, 32, 0.3, generator(0))) - 0.1).square().sum().backward()
        for name in names:
            gradient = model.get_parameter(name).grad
            assert gradient is not None and float(gradient.abs().max()) > 0, name


def test_starts_are_what_they_say() -> None:
    tied = start(Autoencoder(32, 16), "tied", 0.2, seed=1)
    assert torch.allclose((tied.W_out @ tied.W_in).detach().diagonal(), torch.ones(32))
    exact, shaken = (start(Autoencoder(32, 16), "rug", 0.2, seed=1, jitter=jitter) for jitter in (0.0, 0.3))
    assert diagnostics.diagnose(exact, 0.2).spread["diagonal"] < 1e-6
    moved = (shaken.W_in - exact.W_in).detach().square().mean() / exact.W_in.detach().square().mean()
    assert float(moved) ** 0.5 == pytest.approx(0.3, rel=0.15)
    plain = start(Autoencoder(32, 16), "random", 0.2, seed=1)
    assert float((plain.W_out @ plain.W_in).detach().diagonal().mean()) == pytest.approx(0, abs=0.1)


def test_a_frozen_encoder_stays_and_seeds_decide() -> None:
    made = trained(frozen_encoder=True, start="rug")
    before = made.config.model()
    assert torch.equal(made.model.W_in, before.W_in) and not torch.equal(made.model.W_out, before.W_out)
    again, other = (
        trained(frozen_encoder=True, start="rug"),
        trained(frozen_encoder=True, start="rug", seed=1),
    )
    assert torch.equal(again.model.W_out, made.model.W_out) and again.curve == made.curve
    assert not torch.equal(other.model.W_out, made.model.W_out)


class Killed(BaseException):
    """Nothing catches it."""


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = trained()

    def kill(step: int, total: int, **numbers: float) -> None:
        if step == 7:
            raise Killed

    settings = training.rug_config(**QUICK, fit=SHORT)
    with pytest.raises(Killed):
        training.train(settings, context=Context(folder=tmp_path, save_seconds=0, report=kill))
    assert list(tmp_path.glob("step-*"))
    again = training.train(settings, context=Context(folder=tmp_path, save_seconds=0))
    assert torch.equal(again.model.W_in, whole.model.W_in) and again.curve == whole.curve


def test_a_grid_trains_what_is_missing_and_opens_the_rest(tmp_path: Path) -> None:
    base = training.rug_config(**QUICK, fit=SHORT)
    first = grid.train_grid(base, tmp_path, r=[0.25, 0.5], workers=1)
    seen: list[str] = []
    more = grid.train_grid(
        base, tmp_path, r=[0.25, 0.5], p=[0.2, 0.4], workers=1, progress=lambda name, *rest: seen.append(name)
    )
    assert {name.split(" seed")[0] for name in seen} == {"n_s=32 r=0.25 p=0.4", "n_s=32 r=0.5 p=0.4"}
    more.check()
    table = more.table()
    assert len(first.table()) == 2 and len(table) == 4
    direct = trained()
    line = table[(table["r"] == 0.5) & (table["p"] == 0.2)].iloc[0]
    assert line["loss"] == direct.loss.value and line["converged_gap"] == direct.converged_gap
    assert torch.equal(more.trained(base).model.W_in, direct.model.W_in)
    assert set(table["stopped"]) == {"all 12 steps done"}


def test_a_grid_is_opened_again_with_its_symmetry_and_curves(tmp_path: Path) -> None:
    base = training.rug_config(**QUICK, fit=SHORT)
    with pytest.raises(UndoProbeError, match="holds no trained rug of this version: `undo-probe rug train"):
        grid.open_grid(tmp_path)
    first = grid.train_grid(base, tmp_path, p=[0.2, 0.4], workers=1)
    again = grid.open_grid(tmp_path)
    assert {config.p for config in again.configs} == {0.2, 0.4}
    assert again.table().equals(first.table())
    made = again.trained(base)
    line = again.table().query("p == 0.2").iloc[0]
    assert line["spread_diagonal"] == diagnostics.diagnose(made.model, 0.2).spread["diagonal"]
    assert line["not_normal"] == diagnostics.not_normal(made.model, 0.2)
    curves = again.curves().query("p == 0.2")
    assert curves["loss"].tolist() == [loss / made.theory for _, loss in made.curve]


def test_training_begins_where_it_is_told_to() -> None:
    begin = start(Autoencoder(32, 16), "rug", 0.2, seed=3)
    before = begin.W_in.detach().clone()
    made = trained(begin=begin)
    own = training.train(start="rug", **QUICK, fit=SHORT)
    assert made.curve[0][1] == training.measured_loss(begin, 32, 0.2, 64, 0).value
    assert made.curve[0][1] != own.curve[0][1] and torch.equal(begin.W_in, before)


def test_the_figure_grid_has_the_papers_axes_and_a_dimension_everywhere() -> None:
    cells = grid.figure_cells()
    assert len(cells) == 800 and min(config.n_d for config in cells) == 1
    assert {config.n_s for config in cells} == {128, 1024} and len({config.p for config in cells}) == 20
    assert max(config.p for config in cells) == 0.8 == max(config.r for config in cells)
    rates = {config.n_d: config.fit.learning_rate for config in cells}
    assert rates[819] == pytest.approx(rates[1] / 819**0.5, rel=0.01)
    few = grid.figure_cells([64], [0.25], [0.1], seeds=(0, 1), fit={"steps": 7}, decoder="topk")
    assert [(config.seed, config.fit.steps, config.decoder) for config in few] == [
        (0, 7, "topk"),
        (1, 7, "topk"),
    ]


def test_a_plateau_is_where_the_loss_stands_still_in_log_time() -> None:
    steps = list(range(0, 3001, 50))
    fall = [1.0 if step <= 300 else max(0.3, 1 - (step - 300) / 1000) for step in steps]
    first, last = training.plateaus(steps, fall)
    assert (first.level, first.start, first.end, first.left) == (1.0, 50, 300, True)
    assert last.level == pytest.approx(0.3) and last.end == 3000 and not last.left
    assert training.plateaus(steps, [1 / (1 + step) for step in steps]) == []


def test_a_plateau_before_anything_is_learnt_does_not_count() -> None:
    made = trained()
    v = float(persian_rug.variance(0.2))
    curve = tuple((step, v if step < 300 else 0.5 * v) for step in range(0, 1000, 50))
    standing = training.TrainedRug(made.config, made.model, made.loss, curve, made.ledger, made.stopped)
    assert standing.plateau is not None and standing.plateau.level == pytest.approx(0.5 * v)
    assert standing.plateau_match == pytest.approx(0.5 * v / made.theory)


@pytest.mark.slow
def test_dense_features_train_to_the_rug() -> None:
    """Bar (b): n_s 256, r = p = 1/2."""
    made = training.train(n_s=256, r=0.5, p=0.5, fit={"steps": 1000})
    assert abs(made.converged_gap) < 0.02
    assert made.plateau_match == pytest.approx(1, abs=0.02)
    assert diagnostics.diagnose(made.model, 0.5).phase == "rug"


@pytest.mark.slow
def test_long_training_leaves_the_rug_for_digons() -> None:
    """The rug is passed, and is not where training ends; bar (c) itself takes longer and is in docs/log.md."""
    fit = {"steps": 2000, "learning_rate": 1e-3, "eval_every": 25}
    made = training.train(n_s=128, r=0.5, p=0.2, fit=fit)
    assert made.plateau is not None and made.plateau.left
    assert 0.9 < (made.plateau_match or 0) < 1.1
    assert made.converged_gap < -0.5
    assert made.loss.value < 1.3 * float(rivals.digon_loss(0.5, 0.2))
    assert diagnostics.diagnose(made.model, 0.2).phase == "digon"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_s": 8, "r": 0.01}, "r = 0.01 of n_s = 8 features is 0 dimensions: expected 1 to n_s - 1"),
        ({"fit": {"stps": 3}}, "fit.stps: .*the settings are n_s, r, p"),
        ({"k": 999}, "k is 999, but there are only 256 outputs"),
        ({"decoder": "softmax"}, "decoder: "),
    ],
)
def test_settings_that_make_no_autoencoder_are_refused(settings: dict, text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        training.rug_config(**settings)
    with pytest.raises(UndoProbeError, match="'relu' is no setting: write key=value"):
        training.settings_from(["relu"])


def test_words_become_settings() -> None:
    found = training.settings_from(["decoder=topk", "fit.steps=3", "fit.schedule=constant", "seed=2"])
    assert found == {"decoder": "topk", "fit": {"steps": 3, "schedule": "constant"}, "seed": 2}


def test_a_dry_run_says_what_a_grid_costs() -> None:
    cells = grid.combinations(training.rug_config(), n_s=[128, 8192], r=[0.1, 0.5])
    said = grid.costs(cells, workers=2)
    assert said.startswith("4 trainings, 6000 steps, ") and "hours in 2 processes" in said
    # weights, gradients and two moments of 2 * 8192 * 4096 numbers, and eight batches of 512 rows
    assert f"{(16 * 2 * 8192 * 4096 + 4 * 8 * 512 * 8192) / 1e9:.2g} GB in each" in said
