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

from undo_probe.config import ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_folder, digest, read_json, write_json
from undo_probe.fused import fuse
from undo_probe.randomness import derive_seed

with warnings.catch_warnings():
    # 3.x announces at import and at every construction that 4.0 removes this class; we pin below 4.
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.components.attention import Attention
    from transformer_lens.components.grouped_query_attention import GroupedQueryAttention
    from transformer_lens.components.layer_norm import LayerNorm

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
    "from_matrix",
    "load_model",
    "save_model",
    "to_device",
]

_WEIGHTS, _META = "model.safetensors", "model.json"
_CONFIG_FIELDS = (
    "n_layers d_model n_ctx d_head n_heads d_mlp d_vocab act_fn normalization_type final_rms eps "
    "positional_embedding_type gated_mlp n_key_value_heads rotary_dim rotary_base use_attn_scale attn_scale "
    "initializer_range init_mode parallel_attn_mlp output_logits_soft_cap attn_scores_soft_cap"
).split()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HookedTransformer.*", category=DeprecationWarning)
        yield


def _construct(shape: HookedTransformerConfig) -> HookedTransformer:
    """A HookedTransformer on the CPU with torch's global random state as it was."""
    with torch.random.fork_rng(devices=[]), _quiet():
        model = HookedTransformer(shape, move_to_device=False)
    fuse(model, attention=(Attention, GroupedQueryAttention), norm=(LayerNorm,))
    return model


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        model = _construct(shape)
    return to_device(model, device)


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
    _tie(copy, ties(model))
    with torch.no_grad():
        source = dict(model.named_parameters())
        for name, parameter in copy.named_parameters():
            parameter.data = parameter.data.to(source[name].dtype)
            parameter.copy_(source[name])
            parameter.requires_grad_(source[name].requires_grad)
        buffers = dict(model.named_buffers())
        for name, buffer in copy.named_buffers():
            buffer.copy_(buffers[name])
    copy.train(model.training)
    return copy


def ties(model: HookedTransformer) -> list[tuple[str, str]]:
    """Pairs (first name, later name) of parameters that are one tensor."""
    first: dict[int, str] = {}
    pairs = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            pairs.append((owner, name))
    return pairs


def _tie(model: HookedTransformer, pairs: list[tuple[str, str]]) -> None:
    for owner, name in pairs:
        module, _, leaf = name.rpartition(".")
        model.get_submodule(module)._parameters[leaf] = model.get_parameter(owner)


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


def save_model(model: HookedTransformer, folder: str | Path) -> str:
    """Writes ``model.safetensors`` and ``model.json`` (shape, ties, frozen parameters, content hash).

    Returns:
        The content hash.
    """
    with atomic_folder(folder) as target:
        return save_into(model, target)


def save_into(model: HookedTransformer, folder: Path) -> str:
    """:func:`save_model` into a folder that is already being written atomically."""
    content = save_tensors(weights(model), folder / _WEIGHTS)
    meta = {
        "format": 1,
        "config": {name: getattr(model.cfg, name) for name in _CONFIG_FIELDS},
        "ties": ties(model),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "content": content,
    }
    write_json(folder / _META, {**meta, "digest": digest(meta)})
    return content


def load_model(folder: str | Path, device: str = "cpu", expected: str | None = None) -> HookedTransformer:
    """The model that :func:`save_model` wrote, bit for bit.

    Args:
        folder: what :func:`save_model` wrote.
        device: where the model is put.
        expected: the content hash the caller knows; another model in the folder is refused.

    Raises:
        UndoProbeError: a file is missing, cut, changed, or of another model.
    """
    folder = Path(folder)
    meta = read_json(folder / _META)
    _check_meta(meta, folder / _META)
    if expected is not None and meta["content"] != expected:
        raise UndoProbeError(
            f"{folder} holds another model ({meta['content'][:12]}) than its record says ({expected[:12]})"
        )
    found = load_tensors(folder / _WEIGHTS, meta["content"])
    dtype = next(iter(found.values())).dtype  # what the forward pass rounds to
    model = _construct(HookedTransformerConfig(**meta["config"], dtype=dtype, device="cpu", seed=None))
    _tie(model, [(a, b) for a, b in meta["ties"]])
    own = dict(model.named_parameters())
    if set(own) != set(found):
        name = sorted(set(own) ^ set(found))[0]
        raise UndoProbeError(
            f"{folder / _WEIGHTS} and {_META} disagree about the parameter {name!r}: the folder is mixed"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.data = found[name].clone()
            parameter.requires_grad_(name not in meta["frozen"])
    return to_device(model, device)


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
        if name.rpartition(".")[2].startswith("W_") and not name.startswith(("embed", "pos_embed"))
    )
    attention = model.cfg.n_layers * context * model.cfg.n_heads * model.cfg.d_head
    return 2.0 * matrices + 4.0 * attention
