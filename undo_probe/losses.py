"""Losses as pure functions of logits or states. Every one says over what it averages."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def answer_logits(
    logits: Float[Tensor, "row pos vocab"], answer_mask: Bool[Tensor, "row pos"]
) -> Float[Tensor, "answer vocab"]:
    """Logits at the positions that predict an answer token: one place before it."""
    return logits[:, :-1][answer_mask[:, 1:]]


def next_token(
    logits: Float[Tensor, "row pos vocab"],
    tokens: Int[Tensor, "row pos"],
    answer_mask: Bool[Tensor, "row pos"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the answer tokens in nats, averaged over answer tokens."""
    chosen = answer_logits(logits, answer_mask)
    return torch.nn.functional.cross_entropy(chosen, tokens[:, 1:][answer_mask[:, 1:]])


def uniform_target(
    logits: Float[Tensor, "row pos vocab"], answer_mask: Bool[Tensor, "row pos"]
) -> Float[Tensor, ""]:
    """KL(uniform || model) in nats, averaged over answer tokens.

    MaxEnt of arXiv 2506.06278: ``-log V - (1/V) sum_v log p(v)``, zero exactly at the uniform distribution
    and unbounded as any probability goes to zero. It is not the entropy of the model.
    """
    log_p = answer_logits(logits, answer_mask).log_softmax(dim=-1)
    return -(log_p.mean() + math.log(logits.shape[-1]))


def forward_kl(
    student: Float[Tensor, "answer vocab"], teacher: Float[Tensor, "answer vocab"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) over the whole vocabulary in nats, averaged over positions (temperature 1)."""
    log_s, log_t = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    # elementwise difference: three separate sums would cancel (facts: 6-15 % off)
    return (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean()


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
