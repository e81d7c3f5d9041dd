"""Losses as pure functions of logits or states. Every one says over what it averages."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def answer_logits(
    logits: Float[Tensor, "row read vocab"], answer_mask: Bool[Tensor, "row pos"]
) -> Float[Tensor, "answer vocab"]:
    """Logits (or states) at the positions that predict an answer token: one place before it.

    The last position of a row predicts nothing: here and below ``logits`` may have it or not.
    """
    return logits[:, : answer_mask.shape[1] - 1][answer_mask[:, 1:]]


def next_token(
    logits: Float[Tensor, "row read vocab"],
    tokens: Int[Tensor, "row pos"],
    answer_mask: Bool[Tensor, "row pos"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the answer tokens in nats, averaged over answer tokens."""
    chosen = answer_logits(logits, answer_mask)
    return torch.nn.functional.cross_entropy(chosen, tokens[:, 1:][answer_mask[:, 1:]])


def uniform_target(
    logits: Float[Tensor, "row read vocab"], answer_mask: Bool[Tensor, "row pos"]
) -> Float[Tensor, ""]:
    """KL(uniform || model) in nats, averaged over answer tokens.

    MaxEnt of arXiv 2506.06278: ``-log V - (1/V) sum_v log p(v)``, zero exactly at the uniform distribution
    and unbounded as any probability goes to zero. It is not the entropy of the model.
    """
    log_p = answer_logits(logits, answer_mask).log_softmax(dim=-1)
    return -(log_p.mean() + math.log(logits.shape[-1]))


def answer_log_probability(
    logits: Float[Tensor, "row read vocab"],
    tokens: Int[Tensor, "row pos"],
    answer_mask: Bool[Tensor, "row pos"],
) -> Float[Tensor, " row"]:
    """Log-probability of each row's whole answer in nats."""
    log_p = logits[:, : tokens.shape[1] - 1].log_softmax(dim=-1)
    chosen = log_p.gather(-1, tokens[:, 1:, None])[..., 0]
    return (chosen * answer_mask[:, 1:]).sum(dim=1)


def npo(policy: Float[Tensor, " row"], reference: Float[Tensor, " row"], beta: float) -> Float[Tensor, ""]:
    """Negative preference optimisation (arXiv 2404.05868): ``-(2 / beta) log sigma(-beta log(p / p_ref))``.

    Averaged over rows; ``policy`` and ``reference`` are log-probabilities of whole answers. As beta goes to 0
    it becomes GradDiff's ascent; larger beta stops pushing sooner.
    """
    return -(2 / beta) * torch.nn.functional.logsigmoid(-beta * (policy - reference)).mean()


def simnpo(
    policy: Float[Tensor, " row"], length: Int[Tensor, " row"], beta: float, gamma: float
) -> Float[Tensor, ""]:
    """SimNPO (arXiv 2410.07163): ``-(2 / beta) log sigma(-(beta / |y|) log p - gamma)``, averaged over rows.

    NPO without a reference model and with the answer's length in tokens divided out.
    """
    return -(2 / beta) * torch.nn.functional.logsigmoid(-beta * policy / length - gamma).mean()


def undial(
    logits: Float[Tensor, "answer vocab"],
    reference: Float[Tensor, "answer vocab"],
    true: Int[Tensor, " answer"],
    strength: float,
) -> Float[Tensor, ""]:
    """UNDIAL (arXiv 2402.10052): imitate the reference with the true token's logit lowered by ``strength``.

    Cross-entropy from the adjusted distribution in nats, averaged over answer tokens.
    """
    lowered = torch.nn.functional.one_hot(true, logits.shape[-1]) * strength
    wanted = (reference - lowered).softmax(dim=-1)
    return -(wanted * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def mmd(one: Float[Tensor, "n width"], other: Float[Tensor, "m width"]) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy (biased) under five Gaussian kernels.

    Bandwidths are the mean squared distance of the pooled sample times 1/4, 1/2, 1, 2 and 4, held constant in
    the gradient; this is the form that RepNoise (arXiv 2405.14577) uses.
    """
    both = torch.cat([one, other])
    squares = torch.cdist(both, both).square()
    count = len(both)
    width = squares.detach().sum() / (count * (count - 1))
    kernel = torch.stack([torch.exp(-squares / (width * 2.0**power)) for power in range(-2, 3)]).sum(dim=0)
    n = len(one)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def reverse_kl(
    student: Float[Tensor, "answer vocab"], teacher: Float[Tensor, "answer vocab"]
) -> Float[Tensor, ""]:
    """KL(student || teacher) over the whole vocabulary in nats, averaged over positions (temperature 1)."""
    return forward_kl(teacher, student)


def forward_kl(
    student: Float[Tensor, "answer vocab"], teacher: Float[Tensor, "answer vocab"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) over the whole vocabulary in nats, averaged over positions (temperature 1)."""
    log_s, log_t = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    # elementwise difference: three separate sums would cancel (facts: 6-15 % off)
    return (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean()


def topk_kl(
    student: Float[Tensor, "answer vocab"],
    log_p: Float[Tensor, "answer k"],
    tokens: Int[Tensor, "answer k"],
) -> Float[Tensor, ""]:
    """KL(teacher || student) in nats where all but the teacher's ``k`` likeliest tokens count as one outcome.

    Averaged over positions. Never more than :func:`forward_kl`, which it is when ``k`` is the vocabulary.

    Args:
        student: logits.
        log_p: the teacher's log-probabilities of ``tokens``.
        tokens: different ones at each position.
    """
    log_q = student.log_softmax(dim=-1)
    kept = (log_p.exp() * (log_p - log_q.gather(-1, tokens))).sum(dim=-1)
    rest = (1 - log_p.exp().sum(dim=-1)).clamp_min(0.0)
    if tokens.shape[-1] == student.shape[-1]:
        return kept.mean()
    log_rest = log_q.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1)
    return (kept + torch.special.xlogy(rest, rest) - rest * log_rest).mean()


def stream_distance(
    student: Float[Tensor, "state d_model"], teacher: Float[Tensor, "state d_model"]
) -> Float[Tensor, ""]:
    """Squared distance of two residual streams as a share of the teacher's squared norm, over all states."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


def rmu(
    forget: Float[Tensor, "forget_state d_model"],
    target: Float[Tensor, " d_model"],
    retain: Float[Tensor, "retain_state d_model"],
    retain_before: Float[Tensor, "retain_state d_model"],
    retain_weight: float,
) -> Float[Tensor, ""]:
    """RMU (arXiv 2403.03218): squared distance of forget states to ``c u``, plus weighted retain distance.

    Both terms are averaged over states and width, as public implementations do; the paper sums over width,
    which changes neither the balance of the terms nor an Adam step.
    """
    away = torch.nn.functional.mse_loss(forget, target.expand_as(forget))
    kept = torch.nn.functional.mse_loss(retain, retain_before)
    return away + retain_weight * kept


def chunked_forward_kl(
    student: Float[Tensor, "answer d_student"],
    unembed: tuple[Float[Tensor, "d_student vocab"], Float[Tensor, " vocab"]],
    teacher: Float[Tensor, "answer d_teacher"],
    teacher_unembed: tuple[Float[Tensor, "d_teacher vocab"], Float[Tensor, " vocab"]],
    chunk: int = 256,
) -> Float[Tensor, ""]:
    """:func:`forward_kl` from final states, without ever holding the logits of more than ``chunk`` positions.

    Args:
        student: states after the final norm.
        unembed: the student's unembedding matrix and bias.
        teacher: the teacher's states after its final norm; no gradient flows to it.
        teacher_unembed: the teacher's unembedding.
        chunk: positions at a time.

    The gradient with respect to the logits, softmax minus softmax, is known in the forward pass, so it is
    carried on to states and unembedding there and only those are kept.
    """
    return _ChunkedKL.apply(student, *unembed, teacher, *teacher_unembed, chunk)


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, teacher_states, teacher_weight, teacher_bias, chunk) -> Tensor:
        count = len(states)
        on_states = torch.empty_like(states)
        on_weight, on_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        total = states.new_zeros(())
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                log_s = torch.addmm(bias, states[part], weight).log_softmax(dim=-1)
                log_t = torch.addmm(teacher_bias, teacher_states[part], teacher_weight).log_softmax(dim=-1)
                p_t = log_t.exp()
                # elementwise difference, as above
                total += log_t.sub_(log_s).mul_(p_t).sum()
                error = log_s.exp_().sub_(p_t).div_(count)
                on_states[part] = error @ weight.T
                on_weight.addmm_(states[part].T, error)
                on_bias += error.sum(dim=0)
        ctx.save_for_backward(on_states, on_weight, on_bias)
        return total / count

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        on_states, on_weight, on_bias = ctx.saved_tensors
        return gradient * on_states, gradient * on_weight, gradient * on_bias, None, None, None, None
