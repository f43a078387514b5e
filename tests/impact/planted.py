"""Models with an outlier that is put there on purpose, and whose function stays what it was."""

import torch
import zoo

from skerry.corpus.batch import Batch


@torch.no_grad()
def own_text(model, *, num_samples: int = 24, length: int = 24, seed: int = 0) -> list[Batch]:
    """Text that the model itself wrote: any change of it then raises the expected loss, by its divergence."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, model.config.vocab_size, (num_samples, 1), generator=g)
    while ids.shape[1] < length:
        probs = model(ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1, generator=g)], 1)
    halves = ids.split(num_samples // 2)
    numbers = torch.arange(num_samples).split(num_samples // 2)
    return [Batch(i, torch.ones_like(i, dtype=torch.bool), n) for i, n in zip(halves, numbers, strict=True)]


@torch.no_grad()
def outlier_channel(name: str = "llama", *, layer: int = 1, channel: int = 5, factor: float = 100.0):
    """A llama whose attention reads one channel `factor` times as large, and reads it with weights so many times smaller."""
    model = zoo.tiny(name)
    model.lm_head.weight *= 3
    block = model.model.layers[layer]
    block.input_layernorm.weight[channel] *= factor
    for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
        projection.weight[:, channel] /= factor
    return model


@torch.no_grad()
def outlier_token(*, token: int = 9, neuron: int = 3, size: float = 60.0):
    """A llama whose first feed-forward has a neuron that one token alone makes large, and that nothing reads.

    The embedding of the token lies along a direction that no other token and no writer of attention has.
    """
    model = zoo.tiny("llama")
    model.lm_head.weight *= 3
    direction = torch.zeros(model.config.hidden_size)
    direction[0] = 1.0
    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = 0.0
    embedding[token] = 8 * direction
    block = model.model.layers[0]
    block.self_attn.o_proj.weight[0] = 0.0
    block.input_layernorm.weight.abs_().clamp_min_(0.5)
    block.post_attention_layernorm.weight.abs_().clamp_min_(0.5)
    for projection in (block.mlp.gate_proj, block.mlp.up_proj):
        projection.weight[:, 0] = 0.0
        projection.weight[neuron] = size**0.5 * direction
    block.mlp.down_proj.weight[:, neuron] = 0.0
    return model
