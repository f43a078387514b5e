"""The first token of every input becomes a learned key and value per head, and leaves the sequence. Exact: nothing is trained.

In a causal model whose inputs all begin with one token, that token sees only itself: in every layer its key k0 and its value v0 are the
same in every input. With y the attention over the other tokens,

    out_i = (1 - p_i) y_i + p_i v0,      p_i = e^s_i / (e^s_i + sum_j>0 e^l_ij),      s_i = q_i . k0 scale

which is `kv-bias` attention with k' = k0 and v' = v0. The token is then needed by nobody but its own prediction. Without it the others
move one place to the front; rotary logits depend on differences of places alone, so k' is k0 turned back by one place, R(-1) k0, and every
product with it stays the same.

What is lost: the prediction at the first token, a constant distribution over what an input may begin with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from skerry.anatomy.attention import AttentionView
from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.quiet import quiet
from skerry.anatomy.watch import watch
from skerry.corpus.batch import Batch
from skerry.errors import NotPossible
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.positions import Places, Rotary, Rotation, rotate

EXACT = "kv-bias"


class Constants(NamedTuple):
    """What attention reads of the first token, per layer.

    Attributes:
        token: Its id.
        keys: [kv_head channel] each, after norms, at place 0.
        values: [kv_head channel] each.
    """

    token: int
    keys: list[Tensor]
    values: list[Tensor]


def first_token(batches: Sequence[Batch]) -> int:
    """The token that all inputs begin with.

    Raises:
        NotPossible: They begin with several, or with padding.
    """
    firsts = torch.cat([b.input_ids[:, 0] for b in batches])
    kept = torch.cat([b.keep[:, 0] for b in batches])
    tokens = firsts[kept].unique().tolist()
    if len(tokens) != 1 or not bool(kept.all()):
        raise NotPossible(
            f"the inputs begin with {len(tokens)} different tokens{'' if bool(kept.all()) else ', some with padding'}; a token can be "
            "folded only where every input begins with it: put a beginning-of-sequence token in front (--bos with)"
        )
    return int(tokens[0])


def sink_constants(anatomy: Anatomy, token: int) -> Constants:
    """Keys and values of an input's first token, of any causal model whose attention can be watched.

    Args:
        anatomy: The model; it is left as it is.
        token: The token.

    Raises:
        NotPossible: The architecture does not show keys and values.
    """
    seen: dict[int, AttentionView] = {}
    with quiet(anatomy.model), watch(anatomy, (), on_attention=lambda view: seen.update({view.layer: view})):
        run(anatomy, torch.tensor([[token]]))
    layers = range(anatomy.dims.num_layers)
    hidden = [i for i in layers if i not in seen or seen[i].key is None or seen[i].value is None]
    if hidden:
        raise NotPossible(
            f"{type(anatomy.model).__name__} does not show keys and values of block {hidden[0]}: attention computed in code of its own, "
            "or no attention at all, cannot be folded"
        )
    keys = [seen[i].key[0, :, 0].clone() for i in layers]  # type: ignore[index]
    values = [seen[i].value[0, :, 0].clone() for i in layers]  # type: ignore[index]
    return Constants(token, keys, values)


def fold(decoder: DecoderForCausalLM, constants: Constants) -> DecoderForCausalLM:
    """A decoder of its own that reads inputs without their first token and gives the same logits behind it.

    Args:
        decoder: With softmax attention; it is left as it is.
        constants: Of the token that is folded.
    """
    config = config_of(decoder)
    folded = with_attention(decoder, EXACT)
    heads = config.num_attention_heads // config.num_key_value_heads
    with torch.no_grad():
        for layer, key, value in zip(folded.model.layers, constants.keys, constants.values, strict=True):
            variant = cast(Any, layer).self_attn.variant
            variant.key_bias.copy_(_one_back(key, config).repeat_interleave(heads, dim=0))
            variant.value_bias.copy_(value.repeat_interleave(heads, dim=0))
    folded.config.max_position_embeddings = max(1, config.max_position_embeddings - 1)
    folded.config.bos_token_id = None
    folded.config.folded_token = constants.token
    if folded.generation_config is not None:
        folded.generation_config.bos_token_id = None
    return folded


def _one_back(key: Float[Tensor, "kv_head channel"], config: DecoderConfig) -> Tensor:
    """R(-1) k, in float64."""
    if config.position != "rope":
        return key
    wide = key.double()
    one = Rotary(config.head_dim, config.rope_theta)(Places(1, 2), wide)
    return rotate(wide[None, :, None], Rotation(one.cos, -one.sin))[0, :, 0]


def config_of(decoder: DecoderForCausalLM) -> DecoderConfig:
    """Its configuration."""
    return cast(DecoderConfig, decoder.config)


def with_attention(decoder: DecoderForCausalLM, attention: str) -> DecoderForCausalLM:
    """A copy of a decoder with another attention variant, whose own parameters are at their starting values.

    Args:
        decoder: It is left as it is.
        attention: Name of the variant.
    """
    config = copy.deepcopy(config_of(decoder))
    config.attention, config.attention_options = attention, {}
    first = next(decoder.parameters())
    with torch.random.fork_rng(devices=[]):
        other: Any = DecoderForCausalLM(config)
    other = other.to(device=first.device, dtype=first.dtype).eval()
    shared = {n: t for n, t in decoder.state_dict().items() if ".self_attn.variant." not in n}
    other.load_state_dict(shared, strict=False)
    other.generation_config = copy.deepcopy(decoder.generation_config)
    return cast(DecoderForCausalLM, other)
