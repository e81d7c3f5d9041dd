"""Distillation copies what the teacher says, stops when retain is back, and brings back nothing else."""

from pathlib import Path

import pytest
import tiny
import torch

from undo_probe import losses
from undo_probe.activations import residual_streams
from undo_probe.config import DistillConfig, NoiseRule
from undo_probe.models import HookedTransformer, content_hash
from undo_probe.stages import StageResult
from undo_probe.stages.distill import distill
from undo_probe.stages.noise import noise
from undo_probe.stages.teacher import TopKTeacher
from undo_probe.training import Context

TASK = tiny.small_task()
# held-out sums stay unknown to so small a model: the stop rule waits for an accuracy it never reaches
LONG = DistillConfig(steps=120, batch_size=64, learning_rate=4e-3, warmup=10, tolerance=0.0, eval_every=120)


def divergence(student: HookedTransformer, teacher: HookedTransformer, split: str) -> float:
    rows = TASK.rows(split)
    pair = (losses.answer_logits(tiny.logits(m, rows.tokens), rows.answer_mask) for m in (student, teacher))
    return float(losses.forward_kl(*pair))


def noised(model: HookedTransformer) -> HookedTransformer:
    return noise(model, NoiseRule(), 0.5, seed=0).model


@pytest.fixture(scope="module")
def undo() -> StageResult:
    """The suppressed model, damaged and distilled from itself."""
    return distill(noised(tiny.suppressed().model), tiny.suppressed().model, TASK, LONG, Context(seed=0))


@pytest.fixture(scope="module")
def twin() -> StageResult:
    """The same for the model that knows: a change of basis without loss of knowledge."""
    return distill(noised(tiny.knowing()), tiny.knowing(), TASK, LONG, Context(seed=0))


def test_alpha_zero_is_a_finished_student_with_loss_zero() -> None:
    teacher = tiny.suppressed().model
    student = noise(teacher, NoiseRule(), 0.0, seed=0).model
    done = distill(student, teacher, TASK, DistillConfig(), Context(seed=0))
    assert done.stopped == "stop rule met at step 0"
    assert (done.ledger.steps, done.ledger.flops) == (0, 0)
    assert content_hash(done.model) == content_hash(teacher)
    assert divergence(done.model, teacher, "forget_T") == 0


def test_the_student_comes_to_say_what_the_teacher_says(undo: StageResult) -> None:
    teacher = tiny.suppressed().model
    for split in ("retain_train", "forget_T"):
        start = divergence(noised(teacher), teacher, split)
        assert divergence(undo.model, teacher, split) < 0.2 * start
    damaged = tiny.accuracy(noised(teacher), "retain_train")
    assert damaged < 0.7 < 0.9 < tiny.accuracy(undo.model, "retain_train")


def test_a_suppressing_teacher_does_not_give_the_capability_back(undo: StageResult) -> None:
    for split in ("forget_T", "forget_V"):
        assert tiny.accuracy(undo.model, split) < 0.4


def test_the_twin_of_a_teacher_that_knows_regains_it(twin: StageResult) -> None:
    assert tiny.accuracy(noised(tiny.knowing()), "forget_T") < 0.7
    assert tiny.accuracy(twin.model, "forget_T") > 0.9
    assert tiny.accuracy(twin.model, "retain_train") > 0.9


def test_teacher_and_student_are_untouched() -> None:
    teacher, student = tiny.knowing(), noised(tiny.knowing())
    before = content_hash(teacher), content_hash(student)
    training = teacher.training
    distill(student, teacher, TASK, DistillConfig(steps=2, batch_size=8, tolerance=0.0), Context(seed=0))
    assert (content_hash(teacher), content_hash(student)) == before
    assert teacher.training == training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_no_label_is_used() -> None:
    """A teacher that says nothing gives a student that says nothing, whatever is true."""
    silent = tiny.model(d_model=32)
    with torch.no_grad():
        silent.unembed.W_U.zero_()
        silent.unembed.b_U.zero_()
    done = distill(tiny.knowing(), silent, TASK, LONG, Context(seed=0))
    assert done.ledger.labelled_tokens == 0
    assert divergence(done.model, silent, "forget_T") < 0.1 * divergence(tiny.knowing(), silent, "forget_T")
    assert tiny.accuracy(done.model, "retain_train") < 0.5


def test_the_stop_rule_is_retain_accuracy_within_the_tolerance_of_the_teacher() -> None:
    """Seen on a task whose held-out sums can be guessed: the teacher's own score is the goal."""
    teacher = tiny.model()
    settings = DistillConfig(steps=4, batch_size=8, eval_every=2)
    at_once = distill(tiny.model(seed=5), teacher, tiny.task(), settings, Context(seed=0))
    # both are near zero on retain_dev, so the student is within 5 points
    assert at_once.stopped == "stop rule met at step 0"
    strict = settings.model_copy(update={"tolerance": 0.0})
    never = distill(tiny.model(seed=5), teacher, tiny.task(), strict, Context(seed=0))
    assert never.stopped == "all 4 steps done"
    assert sorted({row["step"] for row in never.rows}) == [0, 2, 4]


def test_a_step_costs_the_student_three_forwards_and_the_teacher_one(undo: StageResult) -> None:
    assert undo.ledger.tokens == 120 * 64 * TASK.n_ctx
    assert undo.ledger.flops == pytest.approx(4 * tiny.forward_flops(tiny.knowing(), 120 * 64))


def test_in_chunks_over_the_vocabulary_the_student_becomes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what it says: Adam makes steps of the rounding error where the gradient is zero (key biases)."""
    settings = DistillConfig(steps=5, batch_size=16, tolerance=0.0, stop="never", eval_every=5)
    rows, said = tiny.tokens(), []
    for limit in (10**6, 1):
        monkeypatch.setattr("undo_probe.stages.distill.CHUNKED_FROM", limit)
        done = distill(tiny.model(seed=5), tiny.model(seed=6), tiny.task(), settings, Context(seed=0))
        said.append(tiny.logits(done.model, rows))
    torch.testing.assert_close(said[1], said[0], atol=1e-5, rtol=1e-4)
    assert (said[0] - tiny.logits(tiny.model(seed=5), rows)).abs().max() > 1e-2


FEW = DistillConfig(steps=6, batch_size=16, tolerance=0.0, stop="never", eval_every=6)


def taught(settings: DistillConfig, context: Context | None = None) -> HookedTransformer:
    return distill(tiny.model(seed=5), tiny.model(seed=6), tiny.task(), settings, context or Context(0)).model


def test_the_teachers_whole_vocabulary_as_its_likeliest_tokens_is_the_plain_loss() -> None:
    """In what the student says: Adam makes steps of the rounding error where the gradient is zero."""
    rows = tiny.tokens()
    plain, listed = taught(FEW), taught(FEW.model_copy(update={"top_k": 99}))
    torch.testing.assert_close(tiny.logits(listed, rows), tiny.logits(plain, rows), atol=1e-4, rtol=1e-3)
    few = taught(FEW.model_copy(update={"top_k": 2}))
    assert (tiny.logits(few, rows) - tiny.logits(plain, rows)).abs().max() > 1e-2


def test_kept_answers_of_the_teacher_change_no_bit_and_spare_its_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FEW.model_copy(update={"top_k": 3})
    expected = content_hash(taught(settings))
    kept = Context(0, cache=tmp_path)
    assert content_hash(taught(settings, kept)) == expected
    asked: list[int] = []
    ask = TopKTeacher._ask
    monkeypatch.setattr(TopKTeacher, "_ask", lambda self, step: asked.append(step) or ask(self, step))
    assert content_hash(taught(settings, kept)) == expected
    assert not asked
    # another batch order is another file; a damaged one is asked for again
    taught(settings, Context(1, cache=tmp_path))
    assert asked == list(range(50))
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3] + b"\1\2\3")
    assert content_hash(taught(settings, kept)) == expected
    assert len(asked) == 100


def test_reverse_kl_filtered_text_and_matched_streams_are_other_students() -> None:
    changes = [{}, {"loss": "reverse_kl"}, {"text": "retain"}, {"activations": 1.0}]
    hashes = {content_hash(taught(FEW.model_copy(update=change))) for change in changes}
    assert len(hashes) == len(changes)


def test_without_the_teachers_forget_text_no_forget_prompt_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    batch = type(tiny.task()).batch
    monkeypatch.setattr(
        type(tiny.task()), "batch", lambda self, *words: shown.append(words[0]) or batch(self, *words)
    )
    taught(FEW)
    taught(FEW.model_copy(update={"text": "retain"}))
    assert shown == ["distill"] * 6 + ["retain"] * 6


def test_matching_activations_brings_the_streams_together() -> None:
    rows = tiny.task().rows("forget_T")
    place = rows.read_position
    theirs = residual_streams(tiny.model(seed=6), rows.tokens, place)

    def apart(weight: float) -> float:
        settings = FEW.model_copy(update={"steps": 40, "activations": weight})
        own = residual_streams(taught(settings), rows.tokens, place)
        pairs = [(own[name], theirs[name]) for name in list(own)[1:]]
        return float(torch.stack([losses.stream_distance(a[:, 0], b[:, 0]) for a, b in pairs]).mean())

    assert apart(10.0) < 0.7 * apart(0.0)


def test_no_hook_stays_on_a_teacher_whose_streams_were_matched() -> None:
    teacher = tiny.model(seed=6)
    settings = FEW.model_copy(update={"activations": 1.0, "top_k": 2})
    student = distill(tiny.model(seed=5), teacher, tiny.task(), settings, Context(0)).model
    for model in (teacher, student):
        assert not any(module._forward_hooks for module in model.modules())


def test_the_stop_rule_may_also_ask_that_the_forget_set_stays_unknown() -> None:
    """A teacher that knows nothing; a student that does: its retain accuracy is back at step 0."""
    teacher = tiny.suppressed().model
    settings = DistillConfig(steps=2, batch_size=8, eval_every=1, tolerance=0.5)
    plain = distill(tiny.knowing(), teacher, TASK, settings, Context(0))
    asked = settings.model_copy(update={"forget_tolerance": 0.05})
    strict = distill(tiny.knowing(), teacher, TASK, asked, Context(0))
    assert (plain.stopped, strict.stopped) == ("stop rule met at step 0", "all 2 steps done")
