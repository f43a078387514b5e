"""The configuration of the reference decoder: LLaMA's fields, and one word for every choice that LLaMA has made for good.

A configuration whose choices are all LLaMA's (softmax attention, RMSNorm, rotary positions, SwiGLU) is saved as LLaMA, so that plain
transformers loads it; see `decoder.py`.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from skerry.redesign.registering import register_models

MODEL_TYPE = "skerry"


class DecoderConfig(PreTrainedConfig):
    """Sizes and choices of a decoder.

    `attention`, `norm`, `position` and `feed_forward` are names that `variants()`, `norms()`, `positions()` and `feed_forwards()` list; the
    `*_options` are keyword arguments of the choice. Widths are in channels, `max_position_embeddings` in tokens.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers' own annotation)

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 256,
        intermediate_size: int | None = None,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 8,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        max_position_embeddings: int = 128,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 10000.0,
        initializer_range: float = 0.02,
        attention: str = "softmax",
        attention_options: dict[str, Any] | None = None,
        norm: str = "rmsnorm",
        norm_options: dict[str, Any] | None = None,
        position: str = "rope",
        feed_forward: str = "swiglu",
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **others: Any,
    ) -> None:
        """The feed-forward is 2 2/3 as wide as the stream, rounded up to 16, when `intermediate_size` is None; 4 times without a gate."""
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        # As many parameters with a gate as without one.
        gated = feed_forward in ("swiglu", "smooth-swiglu")
        self.intermediate_size = intermediate_size or (
            -(-hidden_size * 8 // 48) * 16 if gated else 4 * hidden_size
        )
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self.attention = attention
        self.attention_options = dict(attention_options or {})
        self.norm = norm
        self.norm_options = dict(norm_options or {})
        self.position = position
        self.feed_forward = feed_forward
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id
        super().__init__(**others)
        register_models()

    @property
    def equals_llama(self) -> bool:
        """Whether the decoder is LLaMA's, parameter for parameter."""
        choices = (self.attention, self.norm, self.position, self.feed_forward)
        options = self.attention_options or self.norm_options
        return choices == ("softmax", "rmsnorm", "rope", "swiglu") and not options

    @property
    def hidden_act(self) -> str:
        """The activation function of the feed-forward, as transformers calls it."""
        return {"gelu": "gelu", "relu2": "relu2"}.get(self.feed_forward, "silu")

    def check(self) -> None:
        """Refuse unknown choices and options, before anything is built.

        Raises:
            UnknownOption: With the near matches.
        """
        from skerry.redesign.feed_forwards import check_feed_forward
        from skerry.redesign.norms import check_norm
        from skerry.redesign.positions import check_position
        from skerry.redesign.variants import check_variant

        check_variant(self.attention, self.attention_options)
        check_norm(self.norm, self.norm_options)
        check_position(self.position)
        check_feed_forward(self.feed_forward)
