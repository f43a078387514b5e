"""A small, readable decoder: embedding, blocks of norm -> attention -> add, norm -> feed-forward -> add, norm, head.

Attention, norm, position and feed-forward are one choice each (`config.py`). Modules are named as LLaMA's, so a decoder whose choices
are LLaMA's is saved as LLaMA and loaded by transformers alone; every other one is loaded by the Auto classes once skerry is imported.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from skerry.anatomy.attention import through_interface
from skerry.anatomy.unseen import unseen
from skerry.redesign.config import MODEL_TYPE, DecoderConfig
from skerry.redesign.feed_forwards import make_feed_forward
from skerry.redesign.norms import has_norm_behind, make_norm
from skerry.redesign.positions import Learned, Places, Rotary, Rotation, rotate
from skerry.redesign.variant import Heads, Variant
from skerry.redesign.variants import variant
from skerry.redesign.variants.registers import Behind, Front, Registers


class Attention(nn.Module):
    """Projections around a variant."""

    is_causal = True

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.width = config, layer, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, heads * self.width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(heads * self.width, config.hidden_size, bias=False)
        self.variant = variant(config.attention)(config, layer, **config.attention_options)

    def forward(
        self,
        x: Tensor,
        *,
        rotation: Rotation | None,
        mask: Tensor | None,
        cache: Cache | None,
        front: Front | None = None,
    ) -> Tensor:
        """[sample position channel] to the same; `front` are the registers that every token sees."""
        shape = (*x.shape[:-1], -1, self.width)
        heads = Heads(*(p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)))
        query, key, value = self.variant.before(heads, x)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        own = self.variant if front is None else Behind(front)
        y = through_interface(self, own, query, key, value, mask)
        y = self.variant.after(y.transpose(1, 2), x)
        return cast(Tensor, self.o_proj(y.flatten(2)))


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the stream; a sandwich has norms behind them too."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return make_norm(config.norm, config.hidden_size, config.rms_norm_eps, **config.norm_options)

        behind = has_norm_behind(config.norm)
        self.input_layernorm = norm()
        self.self_attn = Attention(config, layer)
        self.post_self_attn_layernorm = norm() if behind else None
        self.post_attention_layernorm = norm()
        self.mlp = make_feed_forward(config.feed_forward, config.hidden_size, config.intermediate_size)
        self.post_mlp_layernorm = norm() if behind else None

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """[sample position channel] to the same; the keywords are attention's."""
        y = self.self_attn(self.input_layernorm(x), **how)
        x = x + (y if self.post_self_attn_layernorm is None else self.post_self_attn_layernorm(y))
        y = self.mlp(self.post_attention_layernorm(x))
        return cast(Tensor, x + (y if self.post_mlp_layernorm is None else self.post_mlp_layernorm(y)))


class DecoderPreTrained(PreTrainedModel):
    """What both models share."""

    config_class = DecoderConfig
    base_model_prefix = "model"
    _no_split_modules = ("Block",)  # type: ignore[assignment]
    _supports_sdpa = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, Variant):
            module.reset(std)
        elif isinstance(module, Decoder) and module.registers is not None:
            nn.init.normal_(module.registers, std=std)


class Decoder(DecoderPreTrained):
    """The decoder without its head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        config.check()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config.norm, config.hidden_size, config.rms_norm_eps, **config.norm_options)
        self.rotary = Rotary(config.head_dim, config.rope_theta) if config.position == "rope" else None
        length, width = config.max_position_embeddings, config.hidden_size
        self.embed_positions = Learned(length, width) if config.position == "learned" else None
        first = cast(Block, self.layers[0]).self_attn.variant
        count = first.num_registers if isinstance(first, Registers) else 0
        self.registers = nn.Parameter(torch.empty(1, count, width)) if count else None
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "sample position"] | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [sample position channel]; `attention_mask` is 0 at padding."""
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        cache = DynamicCache() if use_cache and past_key_values is None else past_key_values
        before = 0 if cache is None else cache.get_seq_length()
        length = before + x.shape[1]
        at = Places.of(before, length, attention_mask)
        if self.embed_positions is not None:
            x = x + self.embed_positions(at)
        fronts = self._fronts()
        ahead = 0 if self.registers is None else self.registers.shape[1]
        rotation = None if self.rotary is None else self.rotary(at, x, ahead=ahead)
        mask = _mask(attention_mask, x.shape[1], length)
        hidden = [x] if output_hidden_states else None
        for layer, front in zip(self.layers, fronts, strict=True):
            x = layer(x, rotation=rotation, mask=mask, cache=cache, front=front)
            if hidden is not None:
                hidden.append(x)
        x = self.norm(x)
        if hidden is not None:
            hidden[-1] = x
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache if use_cache else None,
            hidden_states=None if hidden is None else tuple(hidden),
        )

    def _fronts(self) -> list[Front | None]:
        """The registers' keys and values in every layer: their own run through the blocks, of which observers see nothing."""
        if self.registers is None:
            return [None] * len(self.layers)
        x, cache = cast(Tensor, self.registers), DynamicCache()
        fronts: list[Front | None] = []
        rotation = None if self.rotary is None else self.rotary(Places(0, x.shape[1]), x)
        with unseen():
            for layer, block in enumerate(self.layers):
                x = block(x, rotation=rotation, mask=None, cache=cache)
                kept: Any = cache.layers[layer]
                fronts.append(Front(kept.keys, kept.values))
        return fronts


def _mask(attention_mask: Tensor | None, num_queries: int, num_keys: int) -> Tensor | None:
    """Mask [sample 1 query key], bool, True where visible; None where the causal rule alone says it."""
    chunked = 1 < num_queries < num_keys
    if attention_mask is None or bool(attention_mask.bool().all()):
        if not chunked:
            return None
        device = "cpu" if attention_mask is None else attention_mask.device
        return _causal(num_queries, num_keys, device)[None, None]
    if attention_mask.dim() == 4:
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0
    seen = attention_mask.bool()[:, None, None, :num_keys]
    causal = _causal(num_queries, num_keys, attention_mask.device)
    # A query of padding sees itself: a row without a key would be NaN.
    own = torch.eye(num_keys, dtype=torch.bool, device=attention_mask.device)[num_keys - num_queries :]
    return (seen & causal) | own


def _causal(num_queries: int, num_keys: int, device: Any) -> Tensor:
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


class DecoderForCausalLM(DecoderPreTrained, GenerationMixin):
    """The decoder with a head that predicts the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "sample position"] | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        labels: Int[Tensor, "sample position"] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [sample position token]; with `labels` also the mean loss of the next token in nats, -100 left out."""
        out = self.model(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits: Float[Tensor, "sample position token"] = self.lm_head(out.last_hidden_state[:, kept])
        loss = None if labels is None else next_token_loss(logits, labels)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
        )

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        """As transformers does; as LLaMA where it is LLaMA."""
        if not self.config.equals_llama:
            super().save_pretrained(save_directory, **options)
            return
        from transformers import LlamaForCausalLM

        with torch.device("meta"):
            twin = LlamaForCausalLM(_llama_config(cast(DecoderConfig, self.config)))
        twin.load_state_dict(self.state_dict(), assign=True)
        twin.tie_weights()
        twin.to(dtype=self.dtype)  # type: ignore[call-arg]
        twin.generation_config = self.generation_config
        twin.save_pretrained(save_directory, **options)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of token t + 1 under the logits at t, in nats; labels [sample position], -100 left out."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def _llama_config(config: DecoderConfig) -> LlamaConfig:
    names = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
        max_position_embeddings rms_norm_eps initializer_range tie_word_embeddings bos_token_id eos_token_id pad_token_id"""
    same = {name: getattr(config, name) for name in names.split()}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return LlamaConfig(**same, rope_parameters=rope)


# So that checkpoints are loaded by transformers' Auto classes; names of LLaMA are left to LLaMA.
AutoConfig.register(MODEL_TYPE, DecoderConfig, exist_ok=True)
AutoModel.register(DecoderConfig, Decoder, exist_ok=True)
AutoModelForCausalLM.register(DecoderConfig, DecoderForCausalLM, exist_ok=True)
