"""One kernel for attention and one for LayerNorm, wherever nobody looks between; gated MLPs without copies of weights.

HookedTransformer computes the first two in several steps so that each can be hooked. A module keeps its parameters,
its hook points and its library's forward pass; only its class changes, to a subclass that takes the short way
while no hook is on the points that the short way leaves out.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor


def fuse(
    model: torch.nn.Module, attention: tuple[type, ...], norm: tuple[type, ...], gated: tuple[type, ...]
) -> None:
    """Gives every module of exactly these classes its fused class, in place."""
    for module in model.modules():
        if type(module) in attention:
            module.__class__ = _attention(type(module))
        elif type(module) in norm:
            module.__class__ = _norm(type(module))
        elif type(module) in gated:
            module.__class__ = _gated(type(module))


def _looked_at(*points: Any) -> bool:
    return any(
        point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks
        for point in points
    )


@cache
def _norm(base: Any) -> Any:
    """The LayerNorm ``base`` in one kernel, unless its scale or normalised output is hooked."""

    class Fused(base):
        def forward(self, x: Tensor) -> Tensor:
            wide = x.dtype in (torch.float32, torch.float64) and x.dtype == self.w.dtype
            if not wide or _looked_at(self.hook_scale, self.hook_normalized):
                return super().forward(x)
            return torch.nn.functional.layer_norm(x, (self.length,), self.w, self.b, self.eps)

    Fused.__name__ = Fused.__qualname__ = f"Fused{base.__name__}"
    return Fused


@cache
def _gated(base: Any) -> Any:
    """The gated MLP ``base`` without a transposed copy of each weight in every pass, and of each gradient after it.

    The library copies them so that bfloat16 rounds as in transformers; so narrow types go its way.
    """

    class Fused(base):
        def forward(self, x: Tensor) -> Tensor:
            wide = x.dtype in (torch.float32, torch.float64) and x.dtype == self.W_gate.dtype
            if not wide or x.device != self.W_gate.device or self.cfg.is_layer_norm_activation():
                return super().forward(x)
            gate, linear = self.hook_pre(x @ self.W_gate), self.hook_pre_linear(x @ self.W_in)
            return self.hook_post(self.act_fn(gate) * linear + self.b_in) @ self.W_out + self.b_out

    Fused.__name__ = Fused.__qualname__ = f"Fused{base.__name__}"
    return Fused


@cache
def _attention(base: Any) -> Any:
    """The attention module ``base`` with one kernel for it, wherever nobody looks at scores or pattern.

    The library's own forward pass stays; only the three calls in it that make, mask and use the pattern are
    answered differently, and not when a hook, a padding mask, a cache or a variant needs the pattern.
    """

    class Fused(base):
        _waiting: tuple[Tensor, Tensor] | None = None

        def calculate_attention_scores(self, q: Tensor, k: Tensor) -> Tensor:
            self._waiting = None
            if not _masks_alone(self, q, k):
                return super().calculate_attention_scores(q, k)
            self._waiting = q, k
            # scores over no key: nothing to compute
            return q.new_empty(q.shape[0], q.shape[2], q.shape[1], 0)

        def apply_causal_mask(
            self, attn_scores: Tensor, past_kv_pos_offset: int = 0, attention_mask: Tensor | None = None
        ) -> Tensor:
            if self._waiting is not None and attention_mask is None:
                return attn_scores  # the kernel masks
            if self._waiting is not None:
                attn_scores, self._waiting = super().calculate_attention_scores(*self._waiting), None
            return super().apply_causal_mask(attn_scores, past_kv_pos_offset, attention_mask)

        def calculate_z_scores(self, v: Tensor, pattern: Tensor) -> Tensor:
            if self._waiting is None:
                return super().calculate_z_scores(v, pattern)
            (q, k), self._waiting = self._waiting, None
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
            k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
            z = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=1 / float(self.attn_scale)
            )
            return self.hook_z(z.transpose(1, 2))

    Fused.__name__ = Fused.__qualname__ = f"Fused{base.__name__}"
    return Fused


def _masks_alone(attention: Any, q: Tensor, k: Tensor) -> bool:
    cfg = attention.cfg
    return (
        not _looked_at(attention.hook_attn_scores, attention.hook_pattern)
        and q.shape[1] == k.shape[1]
        and cfg.positional_embedding_type in ("standard", "rotary", "shortformer")
        and (attention._attention_dir_override or cfg.attention_dir) == "causal"
        and attention.attn_type == "global"
        and cfg.attn_scores_soft_cap <= 0
        and not cfg.use_attention_sinks
    )
