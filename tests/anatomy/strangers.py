"""Small random models of architectures that no family declares, from their configurations."""

import torch
import transformers

_IDS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_N = {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 4}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}

CONFIGS = {
    "mpt": {**_IDS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "codegen": {**_N, "n_embd": 64, "rotary_dim": 8},
    "xglm": {**_IDS, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "gpt_bigcode": _N,
    "gpt_neo": {**_IDS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "ctrl": {**_N, "dff": 48, "n_positions": 64},
    "openai-gpt": _N,
    "persimmon": _COMMON,
    "nemotron": _GROUPED,
    "biogpt": _COMMON,
    "modernbert": _COMMON,
    "big_bird": _COMMON,
    "lfm2": _GROUPED,
    "bart": {**_IDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    "t5": {**_IDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "albert": {**_COMMON, "embedding_size": 16, "num_hidden_layers": 3},
    "deberta-v2": {**_COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True},
    "xlnet": {**_IDS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "fnet": _COMMON,
    "longformer": {**_COMMON, "attention_window": [4, 4]},
    "reformer": {**_COMMON, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2, "feed_forward_size": 48, "attention_head_size": 8},
    "deepseek_v3": {**_COMMON, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    "qwen3_next": {**_GROUPED, **_EXPERTS, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "mamba": {**_COMMON, "state_size": 4, "time_step_rank": 8},
    "mamba2": {**_COMMON, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4, "expand": 2},
    "falcon_mamba": {**_COMMON, "state_size": 4, "time_step_rank": 8},
    "rwkv": {**_COMMON, "attention_hidden_size": 32, "context_length": 64},
    "jamba": {**_GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "recurrent_gemma": {**_GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
    "bamba": {**_GROUPED, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]},
}  # fmt: skip


def stranger(name, seed=0, **overrides):
    """A small random model without a head, in evaluation mode."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.for_model(name, **{**CONFIGS[name], **overrides})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return transformers.AutoModel.from_config(config).eval()
    finally:
        transformers.logging.set_verbosity(before)
