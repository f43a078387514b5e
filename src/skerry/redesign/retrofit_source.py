"""A trained model as skerry's own decoder with softmax attention, if it is one: the same parameters under the same names, the same outputs.

Nothing asks which architecture a model is. Its parameters must have the names and shapes of the decoder's, and its outputs on trial tokens
must be the decoder's up to rounding; what does not fit is refused with the names or the error.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from skerry.anatomy.model import Anatomy, text_config
from skerry.anatomy.watch import trial_ids
from skerry.errors import NotPossible
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.tame.transform import BOUNDS, FLOAT32_BOUND, outputs, relative_error

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
TRIAL_TOKENS = 24
_LISTED = 3


def as_decoder(anatomy: Anatomy) -> DecoderForCausalLM:
    """The model as a decoder that shares its parameters; the model is left as it is.

    Raises:
        NotPossible: It is no causal model of this shape; what does not fit is named.
    """
    model: Any = anatomy.model
    who = f"{type(model).__name__} (family {anatomy.family})"
    if not type(model).__name__.endswith("ForCausalLM"):
        raise NotPossible(
            f"{who} does not predict the next token; only a causal model has a first token that sees nothing but itself"
        )
    if isinstance(model, DecoderForCausalLM) and not model.config.equals_llama:
        raise NotPossible(
            f"{who} has {model.config.attention!r} attention already; a retrofit starts from softmax attention, RMSNorm, rotary positions "
            "and SwiGLU"
        )
    config = _config(anatomy, who)
    with torch.device("meta"):
        twin = DecoderForCausalLM(config)
    _load(twin, model, who)
    ids = trial_ids(model.config, TRIAL_TOKENS)
    bound = BOUNDS.get(next(model.parameters()).dtype, FLOAT32_BOUND)
    error = relative_error(_outputs(twin, ids), outputs(anatomy, ids))
    if not error <= bound:
        raise NotPossible(
            f"{who} has the parameters of skerry's decoder and computes something else (relative error {error:.1e}, {bound:.0e} is "
            "allowed): another activation, position scheme, window or scale"
        )
    return twin


def _outputs(model: DecoderForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    with torch.no_grad():
        return cast(torch.Tensor, model.eval()(ids.to(device), use_cache=False).logits).double()


def _config(anatomy: Anatomy, who: str) -> DecoderConfig:
    source = text_config(anatomy.config)
    rope = dict(getattr(source, "rope_parameters", None) or getattr(source, "rope_scaling", None) or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise NotPossible(
            f"{who} stretches its rotary positions ({kind!r}); skerry's decoder has plain ones only"
        )
    sizes = {
        name: getattr(source, name)
        for name in _SIZES
        if isinstance(getattr(source, name, None), (int, float))
    }
    needed = {"hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "intermediate_size"}
    if missing := sorted(needed - set(sizes)):
        raise NotPossible(
            f"{who} cannot become skerry's decoder: its configuration has no {', '.join(missing)}. The decoder has RMSNorm, rotary "
            "positions and a gated feed-forward"
        )
    theta = rope.get("rope_theta", getattr(source, "rope_theta", None)) or 10000.0
    return DecoderConfig(**sizes, rope_theta=float(theta))


def _load(twin: DecoderForCausalLM, model: nn.Module, who: str) -> None:
    """Our parameters become the model's."""
    theirs, ours = model.state_dict(), twin.state_dict()
    if extra := sorted(set(theirs) - set(ours)):
        raise NotPossible(
            f"{who} cannot become skerry's decoder: it has {_some(extra)}, which the decoder has no place for"
        )
    if missing := sorted(set(ours) - set(theirs)):
        raise NotPossible(f"{who} cannot become skerry's decoder: it has no {_some(missing)}")
    if wrong := sorted(name for name, t in theirs.items() if t.shape != ours[name].shape):
        name = wrong[0]
        raise NotPossible(
            f"{who} cannot become skerry's decoder: {name} is {list(theirs[name].shape)}, {list(ours[name].shape)} is expected"
        )
    twin.load_state_dict({name: t.detach() for name, t in theirs.items()}, assign=True)
    twin.tie_weights()


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
