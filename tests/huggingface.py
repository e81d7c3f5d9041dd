"""Small random models of Hugging Face families, written to folders: what a user may have downloaded."""

from pathlib import Path
from typing import Any

import torch

COMMON = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_key_value_heads": 2,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CAPPED = {"query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
GPT2 = {"vocab_size": 211, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
# model_type and settings
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COMMON),
    "llama tied": ("llama", {**COMMON, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama 3.1": ("llama", {**COMMON, "rope_parameters": ROPE}),
    "mistral": ("mistral", {**COMMON, "sliding_window": 8}),
    "qwen2": ("qwen2", COMMON),
    "qwen3": ("qwen3", {**COMMON, "head_dim": 16}),
    "gemma": ("gemma", {**COMMON, "head_dim": 16}),
    "gemma2": ("gemma2", {**COMMON, "head_dim": 16, "sliding_window": 8, **CAPPED}),
    "gpt2": ("gpt2", GPT2),
    "neox": ("gpt_neox", {**COMMON, "rotary_pct": 0.5}),
    "neox sequential": ("gpt_neox", {**COMMON, "rotary_pct": 0.5, "use_parallel_residual": False}),
}


def build(style: str, seed: int = 0, **changes: Any) -> Any:
    """A transformers model whose every weight, gains and biases too, is away from where it starts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = STYLES[style]
    config = AutoConfig.for_model(kind, **{**settings, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write(model: Any, folder: Path) -> Path:
    """The model as ``save_pretrained`` writes it, without a bar."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        logging.enable_progress_bar()
    return folder
