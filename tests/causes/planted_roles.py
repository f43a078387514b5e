"""Heads whose sink is there for one known reason, built by hand into one layer of a small decoder.

Every embedding has the same norm and every norm a gain of 1, so normed vectors are known. One embedding channel says "I am the first
token", one carries a gate g(token) of -1 or 1, one is 1 everywhere, the rest is random content. The slowest rotary pair turns by less than
1e-6 over an input, so a query made of (constant + gate * g) and a key made of "first" give the sink the logit that we choose; all other
logits are 0. The value of the first token is `bias`, that of all others `update` (plus content, if asked), and the head writes into its own
channels of the stream, which the head of the model reads with random weights:

    kind       gate      value of the sink     value of the others    what the sink is for
    fixed      no        1                     0                      a constant: p is near 1 everywhere
    context    yes       1                     0                      a bias that the gate switches
    scale      yes       0                     1                      scales a useful update
    both       yes       -1                    1                      both
    idle       yes       0                     0                      nothing
"""

from __future__ import annotations

from typing import Any

import torch

from skerry.corpus.batch import Batch

FIRST, VOCABULARY, WIDTH, HEAD_WIDTH, LAYER = 1, 96, 80, 8, 1
KINDS = ("fixed", "context", "scale", "both", "idle")
CONSTANT, IS_FIRST, GATE = 0, 1, 2
# Channels that heads write: none of them carries an embedding.
OUTPUTS = 32
# kind -> (constant part of the sink's logit, part with the gate's sign, value of the sink, value of the others)
_RECIPES = {
    "fixed": (12.0, 0.0, 1.0, 0.0),
    "context": (3.0, 4.0, 1.0, 0.0),
    "scale": (3.0, 4.0, 0.0, 1.0),
    "both": (3.0, 4.0, -1.0, 1.0),
    "idle": (3.0, 4.0, 0.0, 0.0),
}


@torch.no_grad()
def planted_roles(*, strength: float = 2.0, content: float = 0.0, seed: int = 0, **config: Any) -> Any:
    """A two-layer llama without feed-forward whose second layer has one head of each of `KINDS`, in this order.

    Args:
        strength: Size of what a head writes.
        content: Size of the part of ordinary values that depends on the token.
        seed: Of embeddings and the head of the model.
        config: Changes to the configuration.
    """
    import transformers

    num_heads = len(KINDS)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
            head_dim=HEAD_WIDTH,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 1e12},
            tie_word_embeddings=False,
            rms_norm_eps=1e-12,
            **config,
        )
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.zero_()
    for name, p in model.named_parameters():
        if "norm" in name:
            p.fill_(1.0)
    _embed(model.model.embed_tokens.weight, generator)
    model.lm_head.weight.normal_(std=WIDTH**-0.5, generator=generator)
    attention = model.model.layers[LAYER].self_attn
    slowest = HEAD_WIDTH // 2 - 1
    for h, kind in enumerate(KINDS):
        constant, gate, sink, others = _RECIPES[kind]
        rows = slice(h * HEAD_WIDTH, (h + 1) * HEAD_WIDTH)
        query, key, value = (p.weight[rows] for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        query[slowest, CONSTANT], query[slowest, GATE] = constant, gate
        key[slowest, IS_FIRST] = HEAD_WIDTH**0.5 / 4.0  # the embedding has 4 there
        value[0, CONSTANT], value[0, IS_FIRST] = others, (sink - others) / 4.0
        if content:
            value[1:, OUTPUTS - 16 : OUTPUTS] = content * torch.randn(HEAD_WIDTH - 1, 16, generator=generator)
        written = OUTPUTS + 6 * h + torch.arange(6)
        attention.o_proj.weight[written, rows.start] = strength * torch.randn(6, generator=generator)
    return model


def _embed(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Rows of norm sqrt(width), so that the norm of the first block changes nothing; 4, 1 or -1 in the channels with a meaning."""
    weight[:, CONSTANT] = 1.0
    weight[:, GATE] = torch.where(torch.rand(VOCABULARY, generator=generator) < 0.5, -1.0, 1.0)
    weight[FIRST, GATE], weight[FIRST, IS_FIRST] = 0.0, 4.0
    content = torch.randn(VOCABULARY, OUTPUTS - 3, generator=generator)
    left = WIDTH - weight[:, :3].square().sum(1)
    weight[:, 3:OUTPUTS] = content * (left.sqrt() / content.norm(dim=1))[:, None]


def role_inputs(*, num_samples: int = 24, length: int = 16, seed: int = 0) -> list[Batch]:
    """Random tokens behind the first token, in batches of 12."""
    ids = torch.randint(4, VOCABULARY, (num_samples, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = FIRST
    keep, sample = torch.ones_like(ids, dtype=torch.bool), torch.arange(num_samples)
    return [Batch(ids[i : i + 12], keep[i : i + 12], sample[i : i + 12]) for i in range(0, num_samples, 12)]
