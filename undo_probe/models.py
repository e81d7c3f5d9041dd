"""Models: build, clone, tie, save and load. The only module that imports transformer_lens.

The raw weights are never processed (no folding, no centring): noising, training and exact comparison need
the parametrisation the model was trained in.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe import conversion
from undo_probe.config import ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.families import FIELDS, Shape
from undo_probe.files import atomic_folder, digest, read_json, write_json
from undo_probe.fused import fuse
from undo_probe.randomness import derive_seed
from undo_probe.sources import META, Source, find_source, huggingface_model, shape_from
from undo_probe.ties import TIED, is_tied, scale_embedding, scale_of, tie, ties

with warnings.catch_warnings():
    # 3.x announces at import and at every construction that 4.0 removes this class; we pin below 4.
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.components.attention import Attention
    from transformer_lens.components.grouped_query_attention import GroupedQueryAttention
    from transformer_lens.components.layer_norm import LayerNorm
    from transformer_lens.components.mlps.gated_mlp import GatedMLP

# CUDA's matrix products are deterministic only with this, read once, at the first product of the process
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__all__ = [
    "HookedTransformer",
    "as_matrix",
    "block_matrices",
    "build",
    "clone",
    "content_hash",
    "flops_per_token",
    "fresh_like",
    "from_matrix",
    "from_shape",
    "load_model",
    "save_model",
    "ties",
    "to_device",
]

_WEIGHTS = "model.safetensors"
_GAINS = "gains.safetensors"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HookedTransformer.*", category=DeprecationWarning)
        yield


def _construct(shape: HookedTransformerConfig, *, drawn: bool = False) -> HookedTransformer:
    """A HookedTransformer on the CPU, drawn from torch's global random state or not at all; that stays as it was."""
    # a seed of the shape's own, and weights that the library's loader was to bring, do not count
    said = shape.init_weights, shape.seed
    shape.init_weights, shape.seed = drawn, None
    with torch.random.fork_rng(devices=[]), _quiet():
        model = HookedTransformer(shape, move_to_device=False)
    model.cfg.init_weights, model.cfg.seed = said
    fuse(model, attention=(Attention, GroupedQueryAttention), norm=(LayerNorm,), gated=(GatedMLP,))
    return model


def _drawn(shape: HookedTransformerConfig, seed: int) -> HookedTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return _construct(shape, drawn=True)


def build(config: ModelConfig, d_vocab: int, n_ctx: int, seed: int, device: str = "cpu") -> HookedTransformer:
    """A freshly initialised model.

    The same seed gives the same bits; torch's global random state is left as it was (constructing a
    HookedTransformer moves it, so it happens in a fork).

    Args:
        config: the shape.
        d_vocab: vocabulary size.
        n_ctx: longest row, in tokens.
        seed: seed of the initial weights.
        device: where the model is put after it was drawn on the CPU.
    """
    shape = HookedTransformerConfig(
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_ctx=n_ctx,
        d_head=config.d_model // config.n_heads,
        n_heads=config.n_heads,
        d_mlp=config.d_mlp,
        d_vocab=d_vocab,
        act_fn=config.act_fn,
        normalization_type=config.normalization,
        device="cpu",
        seed=None,
    )
    return to_device(_drawn(shape, seed), device)


def fresh_like(model: HookedTransformer, seed: int, device: str = "cpu") -> HookedTransformer:
    """Random weights in the shape of ``model``, with its ties and what is frozen in it."""
    fresh = _drawn(deepcopy(model.cfg), seed)
    _alike(fresh, model)
    return to_device(fresh, device)


def from_shape(shape: Shape, seed: int = 0) -> HookedTransformer:
    """Random weights in a shape that came from a configuration."""
    fields = HookedTransformerConfig(**shape.fields, device="cpu", seed=None)
    model = _drawn(fields, seed)
    scale_embedding(model, shape.embed_scale)
    tie(model, [TIED] if shape.tied else [])
    return model


def _alike(copy: HookedTransformer, model: HookedTransformer) -> None:
    """Gives a model of the same shape the other's ties, scale, frozen parameters and origin."""
    conversion.remember(copy, conversion.origin_of(model))
    scale_embedding(copy, scale_of(model))
    tie(copy, ties(model))
    source = dict(model.named_parameters())
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(source[name].requires_grad)


def to_device(model: HookedTransformer, device: str | torch.device) -> HookedTransformer:
    """Moves the model in place, without the line that HookedTransformer prints about it."""
    model.to(device, print_details=False)
    return model


def clone(model: HookedTransformer) -> HookedTransformer:
    """A copy that shares nothing with the model, keeps ties and frozen parameters, and has no hook.

    The only way this package copies a model: ``copy.deepcopy`` silently unties shared tensors.
    """
    # a configuration of its own: moving a model to another device writes into it
    copy = _construct(deepcopy(model.cfg))
    to_device(copy, next(model.parameters()).device)
    _alike(copy, model)
    with torch.no_grad():
        source = dict(model.named_parameters())
        for name, parameter in copy.named_parameters():
            parameter.data = parameter.data.to(source[name].dtype)
            parameter.copy_(source[name])
        buffers = dict(model.named_buffers())
        for name, buffer in copy.named_buffers():
            buffer.copy_(buffers[name])
    copy.train(model.training)
    return copy


def weights(model: HookedTransformer) -> dict[str, Tensor]:
    """Parameter name to a detached, contiguous CPU tensor; a tied tensor once."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}


def content_hash(model: HookedTransformer) -> str:
    """sha256 over names, shapes, dtypes and bytes of the parameters: equal exactly when the models are."""
    return tensors_hash(weights(model))


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 of named tensors, in name order."""
    import hashlib

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)  # read where it lies, not copied
    return total.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> str:
    """Writes named tensors as safetensors and returns their content hash."""
    from safetensors.torch import save

    from undo_probe.files import write_bytes

    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(kept))
    return tensors_hash(kept)


def load_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    """Reads a safetensors file and checks its content hash.

    Raises:
        UndoProbeError: the file is missing, cut, changed in any bit, or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    advice = "Delete the folder that holds it and run again: only this stage is redone."
    try:
        found = parse(path.read_bytes())
    except FileNotFoundError as error:
        raise UndoProbeError(f"{path} is missing. {advice}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UndoProbeError(f"{path} cannot be read as safetensors ({error}). {advice}") from error
    actual = tensors_hash(found)
    if actual != expected:
        raise UndoProbeError(
            f"{path} is damaged: its content hash is {actual[:12]}, its record says {expected[:12]}. {advice}"
        )
    return found


def save_model(
    model: HookedTransformer,
    folder: str | Path,
    *,
    format: str = "undo_probe",
    source: str | Source | None = None,
) -> str:
    """Writes a model, for :func:`load_model`; in the Hugging Face format for transformers too.

    Args:
        model: what to write.
        folder: where to; nothing may be there yet.
        format: ``undo_probe``: ``model.safetensors`` and ``model.json`` (shape, ties, frozen parameters, content
            hash, and the Hugging Face configuration of a loaded model); ``huggingface``: as ``save_pretrained``
            does. Weights that have not changed since they were loaded are those of the source, bit for bit.
        source: of ``huggingface``: the model whose tokenizer lies beside, and whose configuration a checkpoint
            without one is written with; by default what the model was loaded from, until it is saved.

    Returns:
        The content hash.

    Raises:
        UndoProbeError: no family holds the model exactly; the text says what does not fit.
    """
    if format not in ("undo_probe", "huggingface"):
        raise UndoProbeError(f"format is {format!r}: expected undo_probe or huggingface")
    found = find_source(source) if isinstance(source, str) else source
    with atomic_folder(folder) as target:
        if format == "undo_probe":
            return save_into(model, target)
        conversion.write(model, target, _converted, found)
    return content_hash(model)


def save_into(model: HookedTransformer, folder: Path) -> str:
    """:func:`save_model` into a folder that is already being written atomically."""
    content = save_tensors(weights(model), folder / _WEIGHTS)
    meta = {
        "format": 1,
        "config": {name: getattr(model.cfg, name) for name in FIELDS},
        "ties": ties(model),
        "embed_scale": scale_of(model),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "content": content,
    }
    origin = conversion.origin_of(model)
    if origin is not None:
        meta["huggingface"] = origin.config
        if origin.gains:
            meta["gains"] = save_tensors(dict(origin.gains), folder / _GAINS)
    write_json(folder / META, {**meta, "digest": digest(meta)})
    return content


def load_model(
    source: str | Path,
    device: str = "cpu",
    expected: str | None = None,
    *,
    revision: str = "main",
    n_ctx: int | None = None,
) -> HookedTransformer:
    """A model with its raw weights: what :func:`save_model` wrote, bit for bit, or one of Hugging Face, in float32.

    Args:
        source: a folder of either, a GGUF file, an id on the Hugging Face hub, or ``smollm`` (see ``make smollm``).
        device: where the model is put.
        expected: the content hash the caller knows, of what :func:`save_model` wrote; another model is refused.
        revision: of a hub id.
        n_ctx: the longest row it will read, where its positions have no weights: masks are as wide as the context.

    Raises:
        UndoProbeError: a file is missing, cut, changed, or of another model; a family that is not converted.
    """
    found = find_source(str(source), revision)
    model = _load_own(Path(found.place), expected) if found.kind == "checkpoint" else _convert(found, n_ctx)
    return to_device(model, device)


def _load_own(folder: Path, expected: str | None) -> HookedTransformer:
    meta = read_json(folder / META)
    _check_meta(meta, folder / META)
    if expected is not None and meta["content"] != expected:
        raise UndoProbeError(
            f"{folder} holds another model ({meta['content'][:12]}) than its record says ({expected[:12]})"
        )
    found = load_tensors(folder / _WEIGHTS, meta["content"])
    dtype = next(iter(found.values())).dtype  # what the forward pass rounds to
    model = _construct(HookedTransformerConfig(**meta["config"], dtype=dtype, device="cpu", seed=None))
    scale_embedding(model, meta.get("embed_scale", 1.0))
    tie(model, [(a, b) for a, b in meta["ties"]])
    own = dict(model.named_parameters())
    if set(own) != set(found):
        name = sorted(set(own) ^ set(found))[0]
        raise UndoProbeError(
            f"{folder / _WEIGHTS} and {META} disagree about the parameter {name!r}: the folder is mixed"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.data = found[name].clone()
            parameter.requires_grad_(name not in meta["frozen"])
    if "huggingface" in meta:
        gains = load_tensors(folder / _GAINS, meta["gains"]) if "gains" in meta else {}
        conversion.remember(model, conversion.Origin(meta["huggingface"], gains))
    return model


def _convert(source: Source, n_ctx: int | None) -> HookedTransformer:
    """A Hugging Face model as a HookedTransformer that computes the same, with its ties."""
    theirs = huggingface_model(source)
    shape = shape_from(theirs.config, source)
    if n_ctx is not None and shape.fields.get("positional_embedding_type") == "rotary":
        shape = shape.resized(n_ctx=min(n_ctx, shape.fields["n_ctx"]))
    model = from_shape(shape)
    conversion.take(model, theirs, shape, _converted, source)
    return model


def _converted(converter: str, theirs: Any, shape: HookedTransformerConfig) -> dict[str, Tensor]:
    """The library's table of a family: our names, and its weights as we have them."""
    from transformer_lens.pretrained import weight_conversions

    return getattr(weight_conversions, converter)(theirs, shape)


def _check_meta(meta: dict[str, Any], path: Path) -> None:
    body = {key: value for key, value in meta.items() if key != "digest"}
    if digest(body) != meta.get("digest"):
        raise UndoProbeError(
            f"{path} is damaged: its digest does not fit its content. Restore it or make the model again."
        )


def block_matrices(model: HookedTransformer) -> list[str]:
    """Names of the weight matrices inside the blocks: no embedding, unembedding, bias or norm."""
    found = (name for name, _ in model.named_parameters() if name.startswith("blocks."))
    return [name for name in found if name.rpartition(".")[2].startswith(("W_", "_W_"))]


def as_matrix(name: str, tensor: Float[Tensor, "..."]) -> Float[Tensor, "fan_in fan_out"]:
    """A weight as the matrix it is, input rows by output columns, with the heads side by side.

    HookedTransformer keeps ``W_Q``, ``W_K`` and ``W_V`` as head x d_model x d_head, ``W_O`` as head x d_head x
    d_model.
    """
    if tensor.ndim == 2:
        return tensor
    return tensor.flatten(0, 1) if name.endswith("W_O") else tensor.transpose(0, 1).flatten(1)


def from_matrix(
    name: str, matrix: Float[Tensor, "fan_in fan_out"], shape: Sequence[int]
) -> Float[Tensor, "..."]:
    """The inverse of :func:`as_matrix`, for a weight of this name and shape."""
    if len(shape) == 2 or name.endswith("W_O"):
        return matrix.reshape(tuple(shape))
    return matrix.unflatten(1, (shape[0], shape[2])).transpose(0, 1)


def flops_per_token(model: HookedTransformer, context: int) -> float:
    """Forward FLOPs of one token in a row of ``context`` tokens, multiply-adds counted twice.

    Matrix parameters of blocks and unembedding, plus the attention scores and their use (Kaplan et al. 2020,
    table 1); embedding look-ups, norms and biases are not counted.
    """
    matrices = sum(
        p.numel()
        for name, p in model.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[2].startswith(("W_", "_W_")) and not name.startswith(("embed", "pos_embed"))
    )
    if is_tied(model):
        matrices += model.embed.W_E.numel()
    attention = model.cfg.n_layers * context * model.cfg.n_heads * model.cfg.d_head
    return 2.0 * matrices + 4.0 * attention
