"""Weights of a Hugging Face model into a HookedTransformer and back: nothing folded, nothing centred, nothing lost.

Both ways go through one table, which the library's converter of the family makes: our names, and for each a view of
the family's own tensor. Reading copies from the views, writing copies into them, so one is the inverse of the other.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.families import FIELDS, Settings, Shape, gpt2_settings, shape_of
from undo_probe.sources import Source, copy_tokenizer, huggingface_config, quiet
from undo_probe.ties import TIED, is_tied, ties

Convert = Callable[[str, Any, Any], dict[str, Tensor]]
"""(name of the library's converter, a transformers model, our configuration) to our names and views."""
_FREE = ("initializer_range", "init_mode")  # how a model began: nothing of what it computes


@dataclass(frozen=True)
class Origin:
    """The Hugging Face model that a model came from, without its weights.

    ``gains`` are those that the family stores less one, as stored: one plus a small number forgets its last bits.
    ``source`` is known until the model is saved: a place on one machine says nothing on another.
    """

    config: Settings
    gains: Mapping[str, Tensor] = field(default_factory=dict)
    source: Source | None = None


def origin_of(model: Any) -> Origin | None:
    """Where a model came from; None for one that was built here."""
    return getattr(model, "_origin", None)


def remember(model: Any, origin: Origin | None) -> None:
    """Notes where a model came from, in place."""
    model._origin = origin


def _table(theirs: Any, model: Any, shape: Shape, convert: Convert) -> dict[str, Tensor]:
    found = convert(shape.converter, theirs, model.cfg)
    return {**found, "embed.W_E": theirs.get_input_embeddings().weight}  # without a scale


def _less_one(theirs: Any, shape: Shape) -> dict[str, Tensor]:
    """Our names of the gains that the family stores less one, and its tensors."""
    if not shape.gains:
        return {}
    blocks = {
        f"blocks.{index}.{ours}.w": block.get_submodule(name).weight
        for index, block in enumerate(theirs.model.layers)
        for ours, name in shape.gains.items()
    }
    return {**blocks, "ln_final.w": theirs.model.norm.weight}


def _storages(theirs: Any) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in theirs.parameters()}


def _lacking(name: str, given: Tensor | None, family: set[int]) -> bool:
    """Whether a parameter of ours is a bias that the family does not have."""
    bias = name.rpartition(".")[2].startswith(("b_", "_b_"))
    return bias and (given is None or given.untyped_storage().data_ptr() not in family)


def take(model: Any, theirs: Any, shape: Shape, convert: Convert, source: Source) -> None:
    """Copies the weights of a transformers model into ours, and freezes the biases that the family lacks at zero.

    Raises:
        UndoProbeError: a weight has another shape, or the two do not compute the same.
    """
    family = _storages(theirs)
    with torch.no_grad():
        found = _table(theirs, model, shape, convert)
        for name, parameter in model.named_parameters():
            given = found.get(name)
            made_up = _lacking(name, given, family)
            # trained, it could not be written back
            parameter.requires_grad_(not made_up)
            if made_up:
                parameter.zero_()
            elif given is None or given.shape != parameter.shape:
                raise UndoProbeError(
                    f"{source.place} has no weight that fits {name} {tuple(parameter.shape)}"
                )
            else:
                parameter.copy_(given)
    gains = {name: gain.detach().clone() for name, gain in _less_one(theirs, shape).items()}
    remember(model, Origin(_settings(theirs.config), gains, source))
    _check_same(model, theirs, source.place)


def _settings(config: Any) -> Settings:
    """A transformers configuration as plain data, without the place it was read from."""
    found = json.loads(config.to_json_string(use_diff=False))
    return {
        name: value for name, value in found.items() if name not in ("_name_or_path", "transformers_version")
    }


def write(model: Any, folder: Path, convert: Convert, source: Source | None) -> None:
    """Writes a model as transformers does, into a folder that is already being written atomically.

    Args:
        model: in the precision it is written in.
        folder: where to.
        convert: the library's converters.
        source: a Hugging Face model, for the configuration of a model that has forgotten its own, and the tokenizer.

    Raises:
        UndoProbeError: no family holds the model exactly; the text says what does not fit.
    """
    origin = origin_of(model)
    source = source or (origin and origin.source)
    if origin is None and source is not None and source.kind != "checkpoint":
        origin = Origin(_settings(huggingface_config(source)))
    settings = origin.config if origin else _nearest(model)
    theirs = _blank(settings, next(model.parameters()).dtype)
    shape = shape_of(theirs.config.to_dict(), "the model")
    values = _fitting(model, shape, settings["model_type"])
    with torch.no_grad():
        found = _table(theirs, model, shape, convert)
        if origin is None:
            values = _unembedding_bias_in_final_norm(model, values)
        _give(values, found, theirs, shape, origin.gains if origin else {})
    _check_same(model, theirs, str(settings["model_type"]))
    with quiet():
        theirs.save_pretrained(folder)
    if source is not None:
        copy_tokenizer(source, folder)


def _nearest(model: Any) -> Settings:
    """The configuration of GPT-2 where that is what a model built here is."""
    settings = gpt2_settings(model.cfg, is_tied(model))
    like = type(model.cfg)(**shape_of(settings, "the model").fields, device="cpu", seed=None)
    for name in FIELDS:
        has, would = getattr(model.cfg, name), getattr(like, name)
        if name not in _FREE and has != would:
            raise UndoProbeError(
                f"no Hugging Face family holds this model exactly: its {name} is {has!r}, that of GPT-2, the nearest, "
                f"{would!r}. A model built here is written with model.normalization=LN; for one that was loaded before "
                "checkpoints noted their family, name the Hugging Face model it came from as the source."
            )
    return settings


def _blank(settings: Settings, dtype: torch.dtype) -> Any:
    """A transformers model whose weights are to be overwritten."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        config = AutoConfig.for_model(**settings)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()


def _fitting(model: Any, shape: Shape, family: str) -> dict[str, Tensor]:
    """Our weights by name, if their ties are those of the family."""
    wanted, found = [TIED] if shape.tied else [], ties(model)
    if found != wanted:
        one, other = next(pair for pair in (*wanted, *found) if (pair in wanted) != (pair in found))
        now = "are" if (one, other) in found else "are not"
        raise UndoProbeError(
            f"{one} and {other} {now} one tensor, unlike in the {family} configuration that the model is written with: "
            "copy models with models.clone, which keeps ties"
        )
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def _unembedding_bias_in_final_norm(model: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves the unembedding's bias, which GPT-2 has not, into the final norm's, where the states are wide enough."""
    bias, name = values["unembed.b_U"], "ln_final.b"
    if not bias.any():
        return values
    reading = model.unembed.W_U.detach().cpu().T.double()
    shift = torch.linalg.lstsq(reading, bias.double()[:, None], driver="gelsd").solution[:, 0]
    moved = (values[name].double() + shift).to(bias.dtype)
    left = (reading @ (moved.double() - values[name].double()) - bias.double()).abs().max()
    if float(left) > 1e-5 * max(1.0, float(bias.abs().max())):
        raise UndoProbeError(
            "no Hugging Face family holds this model exactly: its unembed.b_U is not zero, GPT-2 has no such bias, "
            f"and the final norm's carries it only for fewer tokens ({len(bias)}) than a state has numbers "
            f"({model.cfg.d_model})"
        )
    return {**values, name: moved, "unembed.b_U": torch.zeros_like(bias)}


def _give(
    values: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    theirs: Any,
    shape: Shape,
    gains: Mapping[str, Tensor],
) -> None:
    """Copies weights of ours into a transformers model."""
    family, less_one = _storages(theirs), _less_one(theirs, shape)
    for name, value in values.items():
        view = found.get(name)
        if name in less_one:
            stored = gains.get(name, value - 1)
            # where a gain is what it was read as, the number that it was read from
            less_one[name].copy_(torch.where(value == stored + 1, stored, value - 1))
        elif _lacking(name, view, family):
            if value.any():
                raise UndoProbeError(
                    f"{name} is not zero, and {theirs.config.model_type} has no such bias: it must stay frozen, as "
                    "up.load_model leaves it"
                )
        elif view is None or view.shape != value.shape:
            raise UndoProbeError(
                f"{theirs.config.model_type} has no weight that fits {name} {tuple(value.shape)}"
            )
        else:
            view.copy_(value)


def _check_same(model: Any, theirs: Any, what: str) -> None:
    """Compares the two on a few tokens: a setting that nobody thought of would show here."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    tokens = torch.arange(min(16, model.cfg.n_ctx))[None] * 97 % model.cfg.d_vocab
    with torch.no_grad():
        wanted = theirs.eval()(tokens).logits
        got = model(tokens.to(device), return_type="logits").cpu()
    apart = float((wanted - got).abs().max() / wanted.abs().max().clamp_min(1.0))
    if not apart < max(1e-3, 16 * torch.finfo(dtype).eps):
        raise UndoProbeError(
            f"{what} is not converted exactly: on a few tokens its logits and ours differ by {apart:.2g} of "
            "the largest. Some setting of it is not supported."
        )
