"""Direct logit attribution: which head, MLP or embedding writes the answer, in each model and between two.

The final norm is frozen at the scale it has in the model itself; what is left from the residual stream to a logit is
linear, so that the contributions of everything that wrote into the stream add up to the logit exactly. A contribution
is no cause: a head whose work a later block undoes contributes all the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe.activations import harvest_points
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import LOGITS
from undo_probe.measures import ItemScores
from undo_probe.measures.stitches import asked_rows
from undo_probe.models import HookedTransformer
from undo_probe.tasks.protocol import Task, TokenSet

UNIT = "logits"
BIAS = "bias"
_NORMS = {"LN": True, "LNPre": True, "RMS": False, "RMSPre": False}
"""Whether a norm takes the mean out first."""


@dataclass(frozen=True)
class Component:
    """Something that writes into the residual stream: its hook point (none for the biases at the end) and name."""

    hook: str | None
    name: str


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each component adds to the answer's lead, a value a row; over components they sum to ``lead``.

    The last component is ``bias``: what the final norm's and the unembedding's bias add whatever the question.
    """

    components: tuple[Component, ...]
    values: Float[Tensor, "component row"]

    @property
    def lead(self) -> Float[Tensor, " row"]:
        """The answer token's logit less the mean of its rivals'."""
        return self.values.sum(0)

    @property
    def written(self) -> Float[Tensor, "component row"]:
        """The contributions without the bias, whose sum is the lead less the bias."""
        return self.values[:-1]


def attribute(model: HookedTransformer, rows: TokenSet) -> Attribution:
    """The answer's first token against its rivals, taken apart where it is read.

    The lead is the token's logit less the mean logit of the other options (of first tokens that are not the answer's),
    or of the whole vocabulary where the rows have no options. Of running text it is the last token of each row. A soft
    cap on the logits is left out: the lead is that of the logits before it.

    Args:
        model: one whose blocks add to a residual stream that a last LayerNorm or RMSNorm, or none, reads.
        rows: what is asked.

    Raises:
        UndoProbeError: the model's final norm is another.
    """
    norm = model.cfg.normalization_type
    if norm is not None and norm not in _NORMS:
        raise UndoProbeError(
            f"cannot take logits apart behind the norm {norm!r}: expected one of {', '.join(_NORMS)}, or none"
        )
    # a row's heads, each as wide as the stream, are what takes memory
    width = model.cfg.n_layers * (model.cfg.n_heads + 2) * model.cfg.d_model
    size = max(1, LOGITS // max(width, model.cfg.d_vocab))
    parts: list[Tensor] = []
    components: list[Component] = []
    for start in range(0, len(rows), size):
        part = rows.select(np.arange(start, min(start + size, len(rows))))
        components, written, final = _written(model, part)
        direction, offset = _direction(model, part)
        with torch.no_grad():
            added = torch.einsum("crd,rd->cr", _normed(model, written, final), direction)
        parts.append(torch.cat([added, offset[None]]))
    return Attribution((*components, Component(None, BIAS)), torch.cat(parts, dim=1).double())


def attribution_measures(
    model: HookedTransformer, original: HookedTransformer, task: Task
) -> list[ItemScores]:
    """Who writes the answer in a model, on V and on held-out retain rows, and what of that is the original's.

    Args:
        model: the model that is taken apart.
        original: what it is compared with.
        task: gives the rows.

    Returns:
        ``attribution`` of every component (layer: its hook point, subset: its name) and of all together (subset
        ``lead``), ``attribution_change``, the same less the original's, and ``attribution_cosine``, between the two
        models' contributions of a row over all heads, MLPs and the embedding; a value a row.

    Raises:
        UndoProbeError: as :func:`attribute`, or the models differ in blocks or heads.
    """
    found: list[ItemScores] = []
    for split in ("forget", "retain"):
        rows = asked_rows(task, split)
        found += compare_attributions(attribute(model, rows), attribute(original, rows), rows, split)
    return found


def compare_attributions(
    ours: Attribution, theirs: Attribution, rows: TokenSet, split: str
) -> list[ItemScores]:
    """The readings of :func:`attribution_measures` from two attributions of the same rows."""
    if ours.components != theirs.components:
        raise UndoProbeError(
            f"the two models have {len(ours.components)} and {len(theirs.components)} components: compare models of "
            "one shape"
        )
    change = ours.values - theirs.values
    cosine = torch.nn.functional.cosine_similarity(ours.written, theirs.written, dim=0)
    found = []
    for measure, values in (("attribution", ours.values), ("attribution_change", change)):
        named = [(component.name, component.hook) for component in ours.components]
        each = [*zip(named, values, strict=True), (("lead", None), values.sum(0))]
        found += [
            ItemScores(measure, split, name, hook, UNIT, line.numpy(), rows.families)
            for (name, hook), line in each
        ]
    found.append(
        ItemScores("attribution_cosine", split, "components", None, "cosine", cosine.numpy(), rows.families)
    )
    return found


def _written(model: HookedTransformer, rows: TokenSet) -> tuple[list[Component], Tensor, Tensor]:
    """What every component adds to the stream where the answer is read, float32, and the stream at the end."""
    blocks = range(model.cfg.n_layers)
    inner = ["attn.hook_z", "hook_attn_out", *([] if model.cfg.attn_only else ["hook_mlp_out"])]
    after = bool(model.cfg.use_normalization_before_and_after)
    inner += ["ln1_post.hook_scale"] if after else []
    first, last = "blocks.0.hook_resid_pre", f"blocks.{blocks[-1]}.hook_resid_post"
    names = [first, *(f"blocks.{block}.{point}" for block in blocks for point in inner), last]
    places = torch.as_tensor(rows.read_position).expand(len(rows))
    found = {n: x[:, 0].float() for n, x in harvest_points(model, rows.tokens[:, :-1], names, places).items()}
    components, values = [Component(first, "embedding")], [found[first]]
    for block in blocks:
        attention = model.blocks[block].attn
        with torch.no_grad():
            z = found[f"blocks.{block}.attn.hook_z"]
            heads = torch.einsum("rhe,hed->hrd", z, attention.W_O.float().cpu())
            if after:
                heads = _scaled(
                    model, model.blocks[block].ln1_post, heads, found[f"blocks.{block}.{inner[-1]}"]
                )
        components += [Component(f"blocks.{block}.attn.hook_z", f"head {head}") for head in range(len(heads))]
        out = f"blocks.{block}.hook_attn_out"
        # what the heads do not say: the output bias, and the bias of a norm behind it
        components.append(Component(out, "attention bias"))
        values += [*heads, found[out] - heads.sum(0)]
        if not model.cfg.attn_only:
            components.append(Component(f"blocks.{block}.hook_mlp_out", "MLP"))
            values.append(found[f"blocks.{block}.hook_mlp_out"])
    return components, torch.stack(values), found[last]


def _direction(model: HookedTransformer, rows: TokenSet) -> tuple[Tensor, Tensor]:
    """What the stream is read along after the norm, for each row, and what biases add; float32."""
    places = torch.as_tensor(rows.read_position).expand(len(rows))
    every = torch.arange(len(rows))
    right = rows.tokens[every, places + 1]
    weights = torch.full((len(rows), model.cfg.d_vocab), -1 / model.cfg.d_vocab)
    if rows.options is not None:
        offered = rows.options if rows.options.dim() == 2 else rows.options[:, :, 0]
        rivals = (offered >= 0) & (offered != right[:, None])
        weights = torch.zeros_like(weights)
        share = -1 / rivals.sum(1, keepdim=True).clamp_min(1) * rivals
        weights.scatter_add_(1, offered.clamp_min(0), share.float())
    weights[every, right] += 1
    with torch.no_grad():
        direction = weights @ model.W_U.float().cpu().T
        offset = weights @ model.b_U.float().cpu()
        final_bias = getattr(getattr(model, "ln_final", None), "b", None)
        if final_bias is not None:
            offset = offset + direction @ final_bias.float().cpu()
    return direction, offset


def _normed(model: HookedTransformer, written: Tensor, final: Tensor) -> Tensor:
    """The components behind the final norm, its scale frozen at what it is for the whole stream."""
    if model.cfg.normalization_type is None:
        return written
    centred = final - final.mean(-1, keepdim=True) if _NORMS[model.cfg.normalization_type] else final
    scale = (centred.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    return _scaled(model, model.ln_final, written, scale)


def _scaled(model: HookedTransformer, norm: torch.nn.Module, parts: Tensor, scale: Tensor) -> Tensor:
    """Parts of what a norm reads as parts of what it gives, less its bias."""
    if _NORMS[model.cfg.normalization_type or "RMS"]:
        parts = parts - parts.mean(-1, keepdim=True)
    weight = getattr(norm, "w", None)
    return parts / scale if weight is None else parts / scale * weight.float().cpu()
