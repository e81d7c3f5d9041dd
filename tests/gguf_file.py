"""A small Llama model as llama.cpp would write it: what a user may have downloaded."""

from pathlib import Path
from typing import Any

from torch import Tensor

# llama.cpp's names; those of a block stand behind blk.N
TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbours by rotary positions, Hugging Face the halves of a head."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def write(theirs: Any, path: Path, scaled: float | None = None, tokenizer: bool = False) -> Path:
    """A transformers Llama as a GGUF file in float32; ``scaled`` stretches its positions."""
    import gguf

    config = theirs.config
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    out.add_name("small")
    if scaled is not None:
        out.add_rope_scaling_factor(scaled)
    if tokenizer:
        tokens = [chr(code) for code in range(33, 127)]
        merged = [one + two for one in "abcdefghi" for two in "abcdefghijklm"]
        out.add_tokenizer_model("gpt2")
        out.add_token_list([*tokens, *merged])
        out.add_token_merges([f"{pair[0]} {pair[1]}" for pair in merged])
        out.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
        out.add_bos_token_id(0)
        out.add_eos_token_id(1)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {"token_embd": theirs.model.embed_tokens, "output_norm": theirs.model.norm}
    if not config.tie_word_embeddings:
        tensors["output"] = theirs.lm_head
    for index, block in enumerate(theirs.model.layers):
        tensors |= {f"blk.{index}.{name}": block.get_submodule(place) for place, name in TENSORS.items()}
    for name, module in tensors.items():
        turned = heads.get(name.rpartition(".")[2])
        weight = module.weight.detach()
        out.add_tensor(f"{name}.weight", (interleaved(weight, turned) if turned else weight).numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
