"""The one loop: a pure function of its arguments, wherever it was killed, that leaves nothing behind."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.config import FitConfig
from undo_probe.evaluation import answer_log_probability
from undo_probe.models import HookedTransformer, content_hash, ties
from undo_probe.records import Ledger
from undo_probe.training import Context, Cost, Fit, Row, Watch, fit, learning_rate

TASK = tiny.task()
SETTINGS = FitConfig(steps=7, batch_size=8, learning_rate=5e-3, warmup=2, eval_every=3)
SEED = 11


def next_token(model: torch.nn.Module, step: int) -> Tensor:
    batch = TASK.batch("pretrain", SETTINGS.batch_size, SEED, step)
    return losses.next_token(model(batch.tokens, return_type="logits"), batch.tokens, batch.answer_mask)


def surprise(model: HookedTransformer, step: int) -> list[Row]:
    rows = TASK.rows("retain_dev")
    return [{"task_split": "retain", "value": float(-answer_log_probability(model, rows).mean())}]


WATCH = Watch(surprise, lambda step: step % 3 == 0)


class Killed(BaseException):
    """Stands for a kill: nothing in the loop catches it."""


@dataclass
class Kill:
    """Stops the loop at one point of one step, once."""

    step: int
    point: str
    done: bool = False

    def at(self, point: str, step: int) -> None:
        if (point, step) == (self.point, self.step) and not self.done:
            self.done = True
            raise Killed

    def loss(self, model: torch.nn.Module, step: int) -> Tensor:
        self.at("loss", step)
        return next_token(model, step)

    def measure(self, model: HookedTransformer, step: int) -> list[Row]:
        self.at("measure", step)
        return surprise(model, step)

    def report(self, step: int, total: int, **numbers: float) -> None:
        self.at("report", step)


def interrupted(kill: Kill, folder: Path, **changes: Any) -> Fit:
    """A run that is killed once and started again with the same arguments."""
    context = Context(SEED, folder=folder, save_seconds=0, report=kill.report)
    watch = replace(WATCH, measure=kill.measure, **changes)
    with pytest.raises(Killed):
        fit(tiny.model(), SETTINGS, kill.loss, context, watch=watch)
    return fit(tiny.model(), SETTINGS, kill.loss, context, watch=watch)


@pytest.fixture(scope="module")
def whole() -> Fit:
    """The same run, never interrupted."""
    return fit(tiny.model(), SETTINGS, next_token, Context(SEED), watch=WATCH, cost=Cost(2.0, 3, 1))


def assert_same(one: Fit, other: Fit) -> None:
    assert content_hash(one.model) == content_hash(other.model)
    assert one.rows == other.rows
    assert one.stopped == other.stopped
    assert one.ledger.steps == other.ledger.steps


def test_training_learns_and_the_argument_is_untouched(whole: Fit) -> None:
    model = tiny.model()
    before = content_hash(model)
    done = fit(model, SETTINGS, next_token, Context(SEED), watch=WATCH)
    assert content_hash(model) == before != content_hash(done.model)
    assert all(p.grad is None for p in (*model.parameters(), *done.model.parameters()))
    assert done.rows[-1]["value"] < done.rows[0]["value"] - 0.1
    assert_same(done, whole)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(whole: Fit) -> None:
    def other(model: torch.nn.Module, step: int) -> Tensor:
        batch = TASK.batch("pretrain", SETTINGS.batch_size, SEED + 1, step)
        return losses.next_token(model(batch.tokens, return_type="logits"), batch.tokens, batch.answer_mask)

    torch.manual_seed(99)
    assert_same(fit(tiny.model(), SETTINGS, next_token, Context(SEED), watch=WATCH), whole)
    assert content_hash(fit(tiny.model(), SETTINGS, other, Context(SEED)).model) != content_hash(whole.model)


def test_training_leaves_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    fit(tiny.model(), SETTINGS, next_token, Context(SEED), watch=WATCH)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_watching_changes_nothing(whole: Fit) -> None:
    blind = fit(tiny.model(), SETTINGS, next_token, Context(SEED))
    assert content_hash(blind.model) == content_hash(whole.model)
    assert blind.rows == []


KILLS = [
    (0, "loss"),
    (1, "loss"),
    (4, "loss"),
    (6, "loss"),
    (1, "report"),
    (3, "report"),
    (7, "report"),
    (0, "measure"),
    (3, "measure"),
    (6, "measure"),
    (7, "measure"),
]


@pytest.mark.parametrize(("step", "point"), KILLS)
def test_a_killed_run_that_is_started_again_ends_at_the_same_bits(
    step: int, point: str, whole: Fit, tmp_path: Path
) -> None:
    kill = Kill(step, point)
    assert_same(interrupted(kill, tmp_path), whole)
    assert kill.done


def test_a_resumed_run_does_not_start_anew(tmp_path: Path) -> None:
    steps = []

    def noted(model: torch.nn.Module, step: int) -> Tensor:
        steps.append(step)
        return next_token(model, step)

    kill = Kill(5, "report")
    context = Context(SEED, folder=tmp_path, save_seconds=0, report=kill.report)
    with pytest.raises(Killed):
        fit(tiny.model(), SETTINGS, noted, context)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]
    steps.clear()
    fit(tiny.model(), SETTINGS, noted, context)
    assert steps == [4, 5, 6]


def test_a_run_killed_again_and_again_ends_at_the_same_bits(whole: Fit, tmp_path: Path) -> None:
    for step in range(1, SETTINGS.steps + 1):
        kill = Kill(step, "report")
        with pytest.raises(Killed):
            fit(
                tiny.model(),
                SETTINGS,
                next_token,
                Context(SEED, folder=tmp_path, save_seconds=0, report=kill.report),
                watch=WATCH,
            )
    assert_same(fit(tiny.model(), SETTINGS, next_token, Context(SEED, folder=tmp_path), watch=WATCH), whole)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def kept(folder: Path, upto: int) -> Path:
    """Resume folders of the steps before ``upto``, as if the older ones had not been swept yet."""
    import shutil

    for step in range(1, upto + 1):
        kill = Kill(step + 1, "report")
        context = Context(SEED, folder=folder / str(step), save_seconds=0, report=kill.report)
        with pytest.raises(Killed):
            fit(tiny.model(), SETTINGS, next_token, context, watch=WATCH)
        (found,) = (folder / str(step)).glob("step-*")
        shutil.move(found, folder / "work" / found.name)
    return folder / "work"


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "work").mkdir()
    return kept(folder, upto=2)


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the tensors": lambda path: flip(path / "state.safetensors", -3),
    "the end of the tensors": lambda path: (path / "state.safetensors").write_bytes(b""),
    "no tensors": lambda path: (path / "state.safetensors").unlink(),
    "no record": lambda path: (path / "state.json").unlink(),
    "half a record": lambda path: (path / "state.json").write_text('{"step": 2,'),
    "another step": lambda path: replace_text(path / "state.json", '"step": 2', '"step": 3'),
    "another key": lambda path: replace_text(path / "state.json", '"content"', '"contenu"'),
    "another number": lambda path: replace_text(path / "state.json", '"task_split": "r', '"task_split": "R'),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("older", [True, False], ids=["with an older state", "without one"])
def test_a_damaged_newest_state_is_dropped_and_the_bits_are_the_same(
    damage: str, older: bool, two_saved: Path, whole: Fit, tmp_path: Path
) -> None:
    import shutil

    work = tmp_path / "work"
    shutil.copytree(two_saved, work)
    newest = work / "step-000000002"
    if not older:
        shutil.rmtree(work / "step-000000001")
    DAMAGES[damage](newest)
    assert_same(fit(tiny.model(), SETTINGS, next_token, Context(SEED, folder=work), watch=WATCH), whole)


def test_a_run_killed_after_its_stop_rule_fired_does_not_go_on(tmp_path: Path) -> None:
    watch = replace(WATCH, stop=lambda rows: rows[0]["step"] >= 3)
    context = Context(SEED, folder=tmp_path, save_seconds=0)
    first = fit(tiny.model(), SETTINGS, next_token, context, watch=watch)
    assert list(tmp_path.iterdir())  # what a kill right after training leaves: no stage is stored yet
    again = fit(tiny.model(), SETTINGS, next_token, context, watch=watch)
    assert first.stopped == "stop rule met at step 3"
    assert_same(again, first)


def test_a_finished_run_that_is_started_again_only_returns(whole: Fit, tmp_path: Path) -> None:
    context = Context(SEED, folder=tmp_path, save_seconds=0)
    fit(tiny.model(), SETTINGS, next_token, context, watch=WATCH)

    def never(model: torch.nn.Module, step: int) -> Tensor:
        raise AssertionError(step)

    assert_same(fit(tiny.model(), SETTINGS, never, context, watch=WATCH), whole)


def test_the_stop_rule_sees_step_zero_and_only_the_rows_of_its_step() -> None:
    seen: list[list[int]] = []

    def stop(rows: list[Row]) -> bool:
        seen.append([row["step"] for row in rows])
        return rows[0]["step"] >= 3

    done = fit(tiny.model(), SETTINGS, next_token, Context(SEED), watch=replace(WATCH, stop=stop))
    assert seen == [[0], [3]]
    assert done.ledger.steps == 3
    at_once = fit(
        tiny.model(), SETTINGS, next_token, Context(SEED), watch=replace(WATCH, stop=lambda rows: True)
    )
    assert at_once.stopped == "stop rule met at step 0"
    assert content_hash(at_once.model) == content_hash(tiny.model())


def test_the_last_step_is_always_measured() -> None:
    done = fit(tiny.model(), SETTINGS, next_token, Context(SEED), watch=WATCH)
    assert [row["step"] for row in done.rows] == [0, 3, 6, 7]
    assert done.stopped == "all 7 steps done"


def test_only_trainable_parameters_move_and_frozen_flags_come_back() -> None:
    model = tiny.model()
    model.embed.W_E.requires_grad_(False)
    done = fit(
        model,
        SETTINGS,
        next_token,
        Context(SEED),
        trainable=lambda name: name in ("embed.W_E", "blocks.1.mlp.W_in"),
    )
    before, after = dict(model.named_parameters()), dict(done.model.named_parameters())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["blocks.1.mlp.W_in"]
    assert [name for name, p in after.items() if not p.requires_grad] == ["embed.W_E"]


def test_a_tied_tensor_is_trained_as_one() -> None:
    from test_models import TIE, tied_model

    settings = FitConfig(steps=2, batch_size=8, warmup=0)
    done = fit(tied_model(), settings, next_token, Context(SEED))
    assert ties(done.model) == TIE
    assert content_hash(done.model) != content_hash(tied_model())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (FitConfig(steps=10, warmup=4, schedule="constant"), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        (FitConfig(steps=3, warmup=0, schedule="constant"), [1, 1, 1]),
        (FitConfig(steps=2, warmup=8, schedule="cosine"), [0.125, 0.25]),
    ],
)
def test_the_rate_warms_up_and_then_follows_its_schedule(settings: FitConfig, expected: list[float]) -> None:
    found = [learning_rate(settings, step) / settings.learning_rate for step in range(settings.steps)]
    assert found == pytest.approx(expected)


def test_the_cosine_falls_from_the_peak_to_its_final_fraction_along_half_a_wave() -> None:
    settings = FitConfig(steps=101, warmup=1, schedule="cosine", final_fraction=0.2)
    rates = np.array([learning_rate(settings, step) for step in range(102)]) / settings.learning_rate
    assert rates[0] == rates[1] == 1
    assert rates[51] == pytest.approx(0.6)
    assert rates[101] == pytest.approx(0.2)
    assert (np.diff(rates[1:]) < 0).all()
    straight = np.linspace(1, 0.2, 101)
    assert (rates[2:51] > straight[1:50]).all()
    assert (rates[52:-1] < straight[51:-1]).all()


def test_the_loop_uses_that_rate() -> None:
    """One AdamW step with a constant gradient moves a weight by the rate itself."""
    moves = []
    model = tiny.model()
    name = "blocks.0.mlp.b_in"
    for steps in (1, 2, 3):
        settings = FitConfig(steps=steps, warmup=3, learning_rate=1e-3, schedule="constant", clip=1e9)

        def straight(student: torch.nn.Module, step: int) -> Tensor:
            return student.get_parameter(name).sum()

        done = fit(model, settings, straight, Context(SEED), trainable=name.__eq__)
        moved = model.get_parameter(name) - done.model.get_parameter(name)
        moves.append(float(moved.detach().mean()))
    assert np.diff([0, *moves]) == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3], rel=1e-3)


def test_gradients_are_clipped_to_the_asked_norm() -> None:
    """AdamW forgets the scale of a constant gradient, so two different ones are shown."""
    model, name = tiny.model(), "blocks.0.mlp.b_in"

    def moved(scale: float, clip: float) -> Tensor:
        def loss(student: torch.nn.Module, step: int) -> Tensor:
            return student.get_parameter(name).sum() * (scale if step else 1e-3)

        settings = FitConfig(steps=2, warmup=0, schedule="constant", clip=clip)
        done = fit(model, settings, loss, Context(SEED), trainable=name.__eq__)
        return done.model.get_parameter(name).detach()

    torch.testing.assert_close(moved(50.0, clip=1.0), moved(500.0, clip=1.0), rtol=1e-6, atol=0)
    free = moved(1e-3, clip=1e9) / moved(1.0, clip=1e9)
    assert bool((free > 1.1).all())


def test_two_half_batches_accumulated_equal_one_batch() -> None:
    batches = [TASK.batch("retain", 16, SEED, step) for step in range(3)]

    def whole_batch(model: torch.nn.Module, step: int) -> Tensor:
        return mean_over_rows(model, batches[step].tokens, batches[step].answer_mask)

    def half_batch(model: torch.nn.Module, micro_step: int) -> Tensor:
        step, half = divmod(micro_step, 2)
        part = slice(8 * half, 8 * half + 8)
        return mean_over_rows(model, batches[step].tokens[part], batches[step].answer_mask[part])

    # double, so that only a wrong weight of the halves could show
    model = tiny.model().double()
    settings = FitConfig(steps=3, warmup=0, learning_rate=1e-3)
    one = fit(model, settings, whole_batch, Context(SEED)).model
    two = fit(model, settings.model_copy(update={"accumulate": 2}), half_batch, Context(SEED)).model
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


def test_a_part_of_a_step_adds_its_share_of_the_gradient() -> None:
    """AdamW would hide a wrong scale of all gradients, so the gradient itself is looked at."""
    name, seen = "blocks.0.mlp.W_in", []

    def loss(model: torch.nn.Module, micro_step: int) -> Tensor:
        weight = model.get_parameter(name)
        value = next_token(model, micro_step)
        (alone,) = torch.autograd.grad(value, weight, retain_graph=True)
        seen.append((alone, None if weight.grad is None else weight.grad.clone()))
        return value

    settings = FitConfig(steps=1, batch_size=8, accumulate=3)
    fit(tiny.model(), settings, loss, Context(SEED))
    assert seen[0][1] is None
    torch.testing.assert_close(seen[1][1], seen[0][0] / 3)
    torch.testing.assert_close(seen[2][1], (seen[0][0] + seen[1][0]) / 3)


def mean_over_rows(model: torch.nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    log_p = model(tokens, return_type="logits")[:, :-1].log_softmax(-1)
    each = log_p.gather(-1, tokens[:, 1:, None])[..., 0] * mask[:, 1:]
    return -each.sum(dim=1).mean()


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_finite_weights(bad: str, whole: Fit) -> None:
    def breaks(model: torch.nn.Module, step: int) -> Tensor:
        value = next_token(model, step)
        if step < 4:
            return value
        # the root of zero is zero, and its slope is infinite
        return value * math.nan if bad == "loss" else value + ((value - value) ** 2).sum().sqrt()

    done = fit(tiny.model(), SETTINGS, breaks, Context(SEED), watch=WATCH)
    assert done.stopped == "diverged at step 4"
    assert done.ledger.steps == 4
    assert all(bool(torch.isfinite(p).all()) for p in done.model.parameters())
    assert [row["step"] for row in done.rows] == [0, 3]
    assert done.rows == whole.rows[:2]


def test_bfloat16_is_really_used_and_the_next_run_is_float32_again(whole: Fit) -> None:
    """A second Accelerator of a process would silently keep the first one's precision."""
    seen: list[tuple[torch.dtype, bool]] = []

    def noted(model: torch.nn.Module, step: int) -> Tensor:
        inner = torch.nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2))
        seen.append((inner.dtype, torch.is_autocast_enabled("cpu")))
        return next_token(model, step)

    half = fit(tiny.model(), SETTINGS, noted, Context(SEED, precision="bf16"), watch=WATCH)
    assert set(seen) == {(torch.bfloat16, True)}
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    seen.clear()
    again = fit(tiny.model(), SETTINGS, noted, Context(SEED), watch=WATCH)
    assert set(seen) == {(torch.float32, False)}
    assert_same(again, whole)
    assert content_hash(half.model) != content_hash(whole.model)


def test_an_accelerator_that_somebody_else_made_does_not_set_our_precision(whole: Fit) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    theirs = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        assert_same(fit(tiny.model(), SETTINGS, next_token, Context(SEED), watch=WATCH), whole)
    finally:
        del theirs
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_no_hook_and_no_wrapper_is_left(precision: str) -> None:
    model = tiny.model()
    bare = tiny.hook_count(model)
    done = fit(model, SETTINGS, next_token, Context(SEED, precision=precision), watch=WATCH)
    for one in (model, done.model):
        assert tiny.hook_count(one) == bare
        assert type(one) is HookedTransformer
        assert "forward" not in vars(one)
        assert not hasattr(one, "_original_forward")
        assert tiny.logits(one, tiny.tokens()).dtype == torch.float32


@pytest.mark.parametrize("fails", [False, True])
def test_threads_determinism_and_the_accelerator_are_as_before_even_after_an_error(fails: bool) -> None:
    from accelerate.state import AcceleratorState, PartialState

    def settings() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
        )

    before = settings()
    inside: list[tuple[Any, ...]] = []

    def loss(model: torch.nn.Module, step: int) -> Tensor:
        inside.append(settings())
        if fails:
            raise KeyError("on purpose")
        return next_token(model, step)

    context = Context(SEED, threads=2)
    if fails:
        with pytest.raises(KeyError, match="on purpose"):
            fit(tiny.model(), SETTINGS, loss, context)
    else:
        fit(tiny.model(), SETTINGS, loss, context)
    assert set(inside) == {(2, True, True, False)}
    assert settings() == before
    assert AcceleratorState._shared_state == {}
    assert PartialState._shared_state == {}


def test_the_ledger_counts_steps_and_what_each_cost(whole: Fit, tmp_path: Path) -> None:
    ledger = whole.ledger
    assert (ledger.steps, ledger.flops, ledger.tokens, ledger.labelled_tokens) == (7, 14.0, 21, 7)
    assert ledger.seconds > 0
    kill = Kill(4, "loss")
    resumed = interrupted(kill, tmp_path)
    assert resumed.ledger.steps == 7
    assert resumed.ledger.seconds > 0
    assert resumed.ledger.replace(seconds=0, cpu_seconds=0) == Ledger(steps=7)


def test_progress_is_told_of_every_step_with_the_loss() -> None:
    told: list[tuple[int, int, float]] = []

    def report(step: int, total: int, loss: float) -> None:
        told.append((step, total, loss))

    losses_seen: list[float] = []

    def noted(model: torch.nn.Module, step: int) -> Tensor:
        value = next_token(model, step)
        losses_seen.append(float(value.detach()))
        return value

    fit(tiny.model(), SETTINGS, noted, Context(SEED, report=report))
    assert [(step, total) for step, total, _ in told] == [(n, 7) for n in range(1, 8)]
    assert [value for _, _, value in told] == pytest.approx(losses_seen)


def test_no_steps_return_a_copy() -> None:
    model = tiny.model()
    done = fit(model, FitConfig(steps=0), next_token, Context(SEED), watch=WATCH)
    assert content_hash(done.model) == content_hash(model)
    assert done.model is not model
    assert [row["step"] for row in done.rows] == [0]


def test_several_threads_give_the_same_bits_twice() -> None:
    settings = SETTINGS.model_copy(update={"steps": 3})
    many = [fit(tiny.model(), settings, next_token, Context(SEED, threads=2)) for _ in range(2)]
    assert_same(*many)


def quadratic(model: torch.nn.Module, step: int) -> torch.Tensor:
    """A loss whose gradient is known everywhere, different in each micro-step."""
    weight = next(p for name, p in model.named_parameters() if name == "unembed.b_U")
    return ((weight - (1 + step % 3)) ** 2).sum() / 2 * (1 + step % 3)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_sharpness_takes_the_gradient_of_all_micro_batches_uphill(accumulate: int) -> None:
    """The published code takes the last micro-batch's alone, which handicaps that baseline."""
    radius, rate = 0.3, 1e-2
    settings = FitConfig(
        steps=1, batch_size=1, learning_rate=rate, warmup=0, schedule="constant", accumulate=accumulate,
        sharpness=radius, clip=1e9,
    )  # fmt: skip
    seen: list[torch.Tensor] = []

    def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
        seen.append(next(p for n, p in model.named_parameters() if n == "unembed.b_U").detach().clone())
        return quadratic(model, step)

    start = tiny.model()
    own = start.unembed.b_U.detach().clone()
    only = lambda name: name == "unembed.b_U"  # noqa: E731
    done = fit(start, settings, loss, Context(0), trainable=only)
    weights = [1 + step % 3 for step in range(accumulate)]
    gradient = torch.stack([w * (own - w) for w in weights]).mean(dim=0)
    uphill = own + radius * gradient / gradient.norm()
    assert len(seen) == 2 * accumulate
    for place in seen[:accumulate]:
        assert torch.equal(place, own)
    for place in seen[accumulate:]:
        torch.testing.assert_close(place, uphill)
    # AdamW's first step is the sign of the gradient; with the weights put back before it
    there = torch.stack([w * (uphill - w) for w in weights]).mean(dim=0)
    torch.testing.assert_close(done.model.unembed.b_U.detach(), own - rate * there.sign(), atol=1e-6, rtol=0)


def test_the_cosine_ends_at_its_horizon_and_stays_there() -> None:
    short = FitConfig(steps=100, warmup=10, learning_rate=1e-3)
    longer = FitConfig(steps=150, warmup=10, learning_rate=1e-3, horizon=100)
    assert [learning_rate(longer, s) for s in range(100)] == [learning_rate(short, s) for s in range(100)]
    assert [learning_rate(longer, s) for s in range(100, 150)] == pytest.approx([1e-4] * 50)
