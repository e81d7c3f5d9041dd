"""Families of Hugging Face models: what HookedTransformer needs to compute the same, from a configuration alone.

No weights and no library in here. Whatever a family's configuration may ask for and HookedTransformer would not do is
refused by name; that the rest is exact is checked on the loaded weights (see :func:`undo_probe.models.load_model`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from undo_probe.errors import UndoProbeError

Settings = Mapping[str, Any]
"""A configuration as its library gives it: every setting, defaults included."""
FIELDS = (
    "n_layers d_model n_ctx d_head n_heads d_mlp d_vocab act_fn normalization_type final_rms eps "
    "positional_embedding_type gated_mlp n_key_value_heads rotary_dim rotary_base use_attn_scale attn_scale "
    "initializer_range init_mode parallel_attn_mlp output_logits_soft_cap attn_scores_soft_cap "
    "use_qk_norm use_local_attn window_size attn_types use_normalization_before_and_after use_NTK_by_parts_rope "
    "NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor NTK_by_parts_factor NTK_original_ctx_len"
).split()
"""The fields of ``HookedTransformerConfig`` that decide what a model is."""


@dataclass(frozen=True)
class Shape:
    """A model without its weights.

    ``fields`` are those of ``HookedTransformerConfig``. ``tied`` says that the unembedding is the embedding,
    transposed; ``embed_scale`` multiplies what is looked up; ``converter`` is the library's function for the weights;
    ``gains`` names, norm by norm of a block, the family's own whose gains it stores less one.
    """

    fields: dict[str, Any]
    tied: bool = False
    embed_scale: float = 1.0
    converter: str = ""
    gains: Mapping[str, str] = field(default_factory=dict)

    def resized(self, **fields: Any) -> "Shape":
        """The same with some fields changed."""
        return replace(self, fields={**self.fields, **fields})


def _common(config: Settings, n_kv: str = "num_key_value_heads") -> dict[str, Any]:
    """What all families with rotary positions, RMSNorm and a gated MLP have."""
    heads = config["num_attention_heads"]
    d_head = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "n_layers": config["num_hidden_layers"],
        "d_model": config["hidden_size"],
        "n_heads": heads,
        "n_key_value_heads": config[n_kv],
        "d_head": d_head,
        "d_mlp": config["intermediate_size"],
        "d_vocab": config["vocab_size"],
        "n_ctx": config["max_position_embeddings"],
        "eps": config["rms_norm_eps"],
        "act_fn": config.get("hidden_act") or config["hidden_activation"],
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        **_rope(config),
        "initializer_range": config["initializer_range"],
    }


def _rope(config: Settings) -> dict[str, Any]:
    """Base and scaling of rotary positions; they moved into a table of their own with transformers 5."""
    table = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = table.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = table.get("rope_type") or table.get("type") or "default"
    if kind == "default":
        return {"rotary_base": base}
    if kind != "llama3":
        raise UndoProbeError(
            f"the model scales its rotary positions by {kind!r}: only 'default' and 'llama3' are converted"
        )
    return {
        "rotary_base": base,
        "use_NTK_by_parts_rope": True,
        "NTK_original_ctx_len": table["original_max_position_embeddings"],
        "NTK_by_parts_low_freq_factor": table["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": table["high_freq_factor"],
        "NTK_by_parts_factor": table["factor"],
    }


def _windows(config: Settings) -> dict[str, Any]:
    """Which layers see only the last tokens."""
    width, kinds = config.get("sliding_window"), config.get("layer_types")
    if not width or (kinds is None and not config.get("use_sliding_window", True)):
        return {}
    kinds = kinds or ["sliding_attention"] * config["num_hidden_layers"]
    if "sliding_attention" not in kinds:
        return {}
    types = ["local" if kind == "sliding_attention" else "global" for kind in kinds]
    return {"use_local_attn": True, "window_size": width, "attn_types": types}


def _grouped(fields: dict[str, Any]) -> dict[str, Any]:
    """As the converter wants it: None where every head has keys of its own."""
    alone = fields["n_key_value_heads"] == fields["n_heads"]
    return {**fields, "n_key_value_heads": None} if alone else fields


def _refuse(config: Settings, *names: str) -> None:
    for name in names:
        if config.get(name):
            raise UndoProbeError(
                f"the model has {name}={config[name]!r}, which is not converted: take another one"
            )


def _llama(config: Settings) -> Shape:
    _refuse(config, "attention_bias", "mlp_bias")
    return Shape(_grouped(_common(config)), converter="convert_llama_weights")


def _mistral(config: Settings) -> Shape:
    return Shape({**_common(config), **_windows(config)}, converter="convert_mistral_weights")


def _qwen2(config: Settings) -> Shape:
    return Shape({**_common(config), **_windows(config)}, converter="convert_qwen2_weights")


def _qwen3(config: Settings) -> Shape:
    _refuse(config, "attention_bias")
    fields = {**_grouped(_common(config)), **_windows(config), "use_qk_norm": True}
    return Shape(fields, converter="convert_qwen3_weights")


def _gemma(config: Settings) -> Shape:
    _refuse(config, "attention_bias")
    scale = float(config["hidden_size"]) ** 0.5
    gains = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
    return Shape(_common(config), embed_scale=scale, converter="convert_gemma_weights", gains=gains)


_GEMMA2_GAINS = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


def _gemma2(config: Settings) -> Shape:
    plain = replace(_gemma(config), gains=_GEMMA2_GAINS)
    return plain.resized(
        **_windows(config),
        act_fn=config["hidden_activation"],
        attn_scale=float(config["query_pre_attn_scalar"]) ** 0.5,
        attn_scores_soft_cap=config["attn_logit_softcapping"] or -1.0,
        output_logits_soft_cap=config["final_logit_softcapping"] or -1.0,
        use_normalization_before_and_after=True,
    )


def _gpt2(config: Settings) -> Shape:
    _refuse(config, "scale_attn_by_inverse_layer_idx", "add_cross_attention")
    fields = {
        "n_layers": config["n_layer"],
        "d_model": config["n_embd"],
        "n_heads": config["n_head"],
        "d_head": config["n_embd"] // config["n_head"],
        "d_mlp": config["n_inner"] or 4 * config["n_embd"],
        "d_vocab": config["vocab_size"],
        "n_ctx": config["n_positions"],
        "eps": config["layer_norm_epsilon"],
        "act_fn": config["activation_function"],
        "use_attn_scale": config["scale_attn_weights"],
        "normalization_type": "LN",
        "initializer_range": config["initializer_range"],
    }
    return Shape(fields, converter="convert_gpt2_weights")


def gpt2_settings(fields: Any, tied: bool) -> dict[str, Any]:
    """The GPT-2 configuration nearest to a ``HookedTransformerConfig``: the inverse of what is read from one."""
    return {
        "model_type": "gpt2",
        "n_layer": fields.n_layers,
        "n_embd": fields.d_model,
        "n_head": fields.n_heads,
        "n_inner": fields.d_mlp,
        "vocab_size": fields.d_vocab,
        "n_positions": fields.n_ctx,
        "layer_norm_epsilon": fields.eps,
        "activation_function": fields.act_fn,
        "scale_attn_weights": fields.use_attn_scale,
        "initializer_range": abs(fields.initializer_range),
        "tie_word_embeddings": tied,
        # the family's own lie outside a small vocabulary
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _neox(config: Settings) -> Shape:
    heads = config["num_attention_heads"]
    d_head = config["hidden_size"] // heads
    table = config.get("rope_parameters") or {}
    share = table.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    fields = {
        "n_layers": config["num_hidden_layers"],
        "d_model": config["hidden_size"],
        "n_heads": heads,
        "d_head": d_head,
        "d_mlp": config["intermediate_size"],
        "d_vocab": config["vocab_size"],
        "n_ctx": config["max_position_embeddings"],
        "eps": config["layer_norm_eps"],
        "act_fn": config["hidden_act"],
        "parallel_attn_mlp": config["use_parallel_residual"],
        "normalization_type": "LN",
        "positional_embedding_type": "rotary",
        **_rope(config),
        "rotary_dim": int(share * d_head),
        "initializer_range": config["initializer_range"],
    }
    return Shape(fields, converter="convert_neox_weights")


# model_type -> shape: adding a family is a function and a line
FAMILIES: dict[str, Callable[[Settings], Shape]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gpt_neox": _neox,
}

# what a dry run needs to know where there is no network: published configurations, every default filled in
KNOWN: dict[str, Settings] = {
    "google/gemma-2-2b": {
        "model_type": "gemma2",
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
        "initializer_range": 0.02,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention", "full_attention"] * 13,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    },
}


def shape_of(config: Settings, where: str) -> Shape:
    """The shape that a Hugging Face configuration describes; ``where`` names the model in errors.

    Raises:
        UndoProbeError: a family, or a setting of one, that is not converted.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UndoProbeError(f"{where} is a {family!r} model: expected one of {', '.join(FAMILIES)}")
    try:
        shape = FAMILIES[family](config)
    except KeyError as error:
        raise UndoProbeError(f"the configuration of {where} does not say {error.args[0]!r}") from None
    return replace(shape, tied=bool(config.get("tie_word_embeddings")))
