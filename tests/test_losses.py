"""Each loss equals its published formula, computed another way, and has the properties that define it."""

import math

import numpy as np
import pytest
import references.losses as published
import tiny
import torch
from torch import Tensor

from undo_probe import losses


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    rows = tiny.task().rows("forget_T")
    logits = torch.randn(8, *rows.tokens.shape[1:], len(tiny.task().vocabulary), dtype=torch.float64) * 3
    return logits, rows.tokens[:8], rows.answer_mask[:8]


def test_answers_are_read_one_place_before_them(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, tokens, mask = batch
    expected = torch.stack([place for place, _ in published.answers(logits, tokens, mask)])
    assert torch.equal(losses.answer_logits(logits, mask), expected)


def test_the_last_position_of_a_row_may_be_left_out(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, tokens, mask = batch
    for loss in (losses.next_token, losses.answer_log_probability):
        assert torch.equal(loss(logits[:, :-1], tokens, mask), loss(logits, tokens, mask))
    assert torch.equal(losses.uniform_target(logits[:, :-1], mask), losses.uniform_target(logits, mask))
    without_two = logits[:, :-2]
    with pytest.raises((IndexError, RuntimeError)):
        losses.next_token(without_two, tokens, mask)


def test_next_token_is_the_mean_surprise_at_answer_tokens(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, tokens, mask = batch
    assert float(losses.next_token(logits, tokens, mask)) == pytest.approx(
        published.cross_entropy(logits, tokens, mask), rel=1e-12
    )
    changed = logits.clone()
    changed[:, :5] += torch.randn_like(changed[:, :5])  # prompt positions do not count
    assert torch.equal(losses.next_token(changed, tokens, mask), losses.next_token(logits, tokens, mask))


def test_maxent_is_the_divergence_from_uniform(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, tokens, mask = batch
    torch.testing.assert_close(
        losses.uniform_target(logits, mask), published.maxent(logits, tokens, mask), rtol=1e-12, atol=1e-12
    )


def test_maxent_is_zero_exactly_at_uniform_and_unbounded(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, _, mask = batch
    assert float(losses.uniform_target(torch.full_like(logits, 2.5), mask)) == pytest.approx(0, abs=1e-12)
    sure = torch.zeros_like(logits)
    sure[..., 0] = 1e4
    assert float(losses.uniform_target(sure, mask)) > 1e3
    assert float(losses.uniform_target(logits, mask)) > 0


def test_the_gradient_of_maxent_is_probability_minus_uniform(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, _, mask = batch
    logits.requires_grad_()
    losses.uniform_target(logits, mask).backward()
    assert logits.grad is not None
    answers = int(mask.sum())
    expected = (losses.answer_logits(logits, mask).softmax(-1) - 1 / logits.shape[-1]) / answers
    torch.testing.assert_close(losses.answer_logits(logits.grad, mask), expected)


def test_forward_kl_equals_torch_and_its_direction_matters() -> None:
    student, teacher = torch.randn(2, 40, 17, dtype=torch.float64) * 2
    ours = losses.forward_kl(student, teacher)
    torch.testing.assert_close(ours, published.forward_kl(student, teacher), rtol=1e-12, atol=1e-12)
    assert abs(float(ours - losses.forward_kl(teacher, student))) > 1e-3


def test_forward_kl_is_never_negative_and_zero_only_between_equals() -> None:
    student, teacher = torch.randn(2, 40, 17)
    assert float(losses.forward_kl(student, teacher)) > 0
    assert float(losses.forward_kl(teacher, teacher)) == 0
    assert float(losses.forward_kl(teacher + 3, teacher)) == pytest.approx(0, abs=1e-6)  # same odds


def test_forward_kl_keeps_its_digits_where_student_and_teacher_almost_agree() -> None:
    teacher = torch.randn(30, 17, dtype=torch.float64) * 8
    student = teacher + 0.03 * torch.randn(30, 17, dtype=torch.float64)
    exact = float(published.forward_kl(student, teacher))
    single = float(losses.forward_kl(student.float(), teacher.float()))
    assert single == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("retain_weight", [0.0, 1.0, 1200.0])
def test_rmu_equals_the_published_loss(retain_weight: float) -> None:
    forget, retain, before = torch.randn(3, 12, 16, dtype=torch.float64)
    unit = torch.nn.functional.normalize(torch.rand(16, dtype=torch.float64), dim=0)
    expected = published.rmu(forget.numpy(), unit.numpy(), 6.5, retain.numpy(), before.numpy(), retain_weight)
    assert float(losses.rmu(forget, 6.5 * unit, retain, before, retain_weight)) == pytest.approx(expected)


def test_rmu_is_zero_exactly_where_it_wants_to_be() -> None:
    target, kept = torch.randn(16), torch.randn(5, 16)
    assert float(losses.rmu(target.expand(7, 16), target, kept, kept, 100.0)) == 0
    moved = kept + 0.1
    assert float(losses.rmu(target.expand(7, 16), target, moved, kept, 100.0)) == pytest.approx(1.0, rel=1e-5)


def test_cross_entropy_of_a_uniform_model_is_log_of_the_vocabulary(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    logits, tokens, mask = batch
    flat = losses.next_token(torch.zeros_like(logits), tokens, mask)
    assert float(flat) == pytest.approx(math.log(logits.shape[-1]))


def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    logits, tokens, mask = batch
    found = losses.answer_log_probability(logits, tokens, mask)
    assert found.tolist() == pytest.approx(published.row_log_probabilities(logits, tokens, mask), rel=1e-10)


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.5])
def test_npo_and_simnpo_are_their_published_forms(batch: tuple[Tensor, Tensor, Tensor], beta: float) -> None:
    logits, tokens, mask = batch
    policy = losses.answer_log_probability(logits, tokens, mask)
    reference = losses.answer_log_probability(logits.flip(0), tokens, mask)
    expected = published.npo(policy.tolist(), reference.tolist(), beta)
    assert float(losses.npo(policy, reference, beta)) == pytest.approx(expected, rel=1e-9)
    lengths = mask.sum(dim=1)
    for gamma in (0.0, 0.7):
        expected = published.simnpo(policy.tolist(), lengths.tolist(), beta, gamma)
        assert float(losses.simnpo(policy, lengths, beta, gamma)) == pytest.approx(expected, rel=1e-9)


def test_npo_becomes_gradient_ascent_as_beta_vanishes_and_stops_where_the_answer_is_gone(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    logits, tokens, mask = batch
    logits.requires_grad_()
    reference = losses.answer_log_probability(logits.detach(), tokens, mask)

    def gradient(beta: float, lower: float) -> Tensor:
        loss = losses.npo(losses.answer_log_probability(logits, tokens, mask) - lower, reference, beta)
        return torch.autograd.grad(loss, logits)[0]

    ascent = torch.autograd.grad(losses.answer_log_probability(logits, tokens, mask).mean(), logits)[0]
    torch.testing.assert_close(gradient(1e-6, 0.0), ascent)
    assert float(gradient(1.0, 30.0).norm()) < 1e-10 * float(gradient(1.0, 0.0).norm())


def test_undial_is_its_published_form_and_without_strength_only_the_reference(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    logits, tokens, mask = batch
    student, teacher = (losses.answer_logits(each, mask) for each in (logits, logits.flip(0)))
    true = tokens[:, 1:][mask[:, 1:]]
    expected = published.undial(student.numpy(), teacher.numpy(), true.tolist(), 3.0)
    assert float(losses.undial(student, teacher, true, 3.0)) == pytest.approx(expected, rel=1e-9)
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    own = losses.undial(student, teacher, true, 0.0) - entropy
    torch.testing.assert_close(own, losses.forward_kl(student, teacher))


def test_mmd_is_its_published_form_and_falls_as_samples_come_together() -> None:
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    other = torch.randn(7, 4, generator=draw, dtype=torch.float64) + 1
    assert float(losses.mmd(one, other)) == pytest.approx(published.mmd(one.numpy(), other.numpy()), rel=1e-9)
    assert float(losses.mmd(one, one.clone())) == pytest.approx(0, abs=1e-12)
    assert float(losses.mmd(one, other)) < float(losses.mmd(one, other + 2))


def test_reverse_kl_is_forward_kl_with_the_roles_exchanged(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, _, mask = batch
    one, other = (losses.answer_logits(each, mask) for each in (logits, logits.flip(0)))
    expected = (one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(losses.reverse_kl(one, other), expected)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_chunked_kl_has_the_value_and_the_gradients_of_the_whole_one(chunk: int) -> None:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)

    states, weight, bias = random(13, 6), random(6, 40), random(40)
    teacher, teacher_weight, teacher_bias = random(13, 8), random(8, 40), random(40)
    own = (states, weight, bias)
    whole = losses.forward_kl(states @ weight + bias, (teacher @ teacher_weight + teacher_bias).detach())
    expected = torch.autograd.grad(3 * whole, own)
    loss = losses.chunked_forward_kl(states, (weight, bias), teacher, (teacher_weight, teacher_bias), chunk)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=1e-12)
    (3 * loss).backward()
    for found, wanted in zip((each.grad for each in own), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert teacher.grad is None
    assert teacher_weight.grad is None


def likeliest(teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, tokens = teacher.log_softmax(dim=-1).topk(k, dim=-1)
    return values, tokens


def test_the_divergence_over_the_likeliest_tokens_lumps_the_rest() -> None:
    student, teacher = torch.randn(2, 6, 9, dtype=torch.float64)
    p, q = teacher.softmax(dim=-1), student.softmax(dim=-1)
    for k in (1, 3, 8):
        log_p, tokens = likeliest(teacher, k)
        total = 0.0
        for row in range(6):
            kept = tokens[row].tolist()
            pairs = [(p[row, t], q[row, t]) for t in kept]
            pairs.append((1 - p[row, kept].sum(), 1 - q[row, kept].sum()))
            total += sum(float(a) * math.log(float(a) / float(b)) for a, b in pairs) / 6
        assert float(losses.topk_kl(student, log_p, tokens)) == pytest.approx(total, rel=1e-9)


def test_the_divergence_over_the_likeliest_tokens_grows_to_the_whole_one() -> None:
    student, teacher = torch.randn(2, 20, 9, dtype=torch.float64)
    found = [float(losses.topk_kl(student, *likeliest(teacher, k))) for k in range(1, 10)]
    assert (np.diff(found) > -1e-12).all()  # the last step adds nothing but rounding
    assert found[-1] == pytest.approx(float(losses.forward_kl(student, teacher)), rel=1e-12)
    assert found[0] > 0


def test_a_sure_teacher_leaves_no_rest_and_no_broken_gradient() -> None:
    student = torch.zeros(1, 5, requires_grad=True)
    teacher = torch.tensor([[200.0, 0.0, 0.0, 0.0, 0.0]])
    losses.topk_kl(student, *likeliest(teacher, 2)).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, student.softmax(-1).detach() - torch.eye(5)[:1])


def test_the_distance_of_streams_is_a_share_of_the_teachers_norm() -> None:
    teacher = torch.randn(7, 4, dtype=torch.float64)
    assert float(losses.stream_distance(teacher, teacher)) == 0
    assert float(losses.stream_distance(torch.zeros_like(teacher), teacher)) == pytest.approx(1)
    moved = teacher + 0.1 * teacher
    assert float(losses.stream_distance(moved, teacher)) == pytest.approx(0.01)
