"""A life of an outlier planted into a small random model: the block that makes it, the heads that rest on it, the block that takes it away.

A spike neuron of block b reads a direction that only the carrying token has and writes one residual channel through one entry of the down
projection. From then on the norm of that token is that channel, so a key that reads the channel is the same in every input: one group of
heads per block gives it most of its attention (all other keys and all values ignore the channel). In block e a second neuron writes the
opposite. Directions are solved from the model's own activations, block by block, so that the planted truth holds by construction:

    birth   act(...) = a at the token, about 0 elsewhere;  w.down[channel, neuron] = value / a
    sink    q . k / sqrt(head width) = LOGIT for keys of the token, and 0 through these channels for others
    exit    w.down[channel, exit neuron] = -cancellation * (what the stream holds there) / a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import zoo
from torch import Tensor

from skerry.anatomy import resolve
from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import capture
from skerry.corpus.batch import Batch

TYPES = ("llama", "gpt2", "opt")
FIRST, DELIMITER = 1, 3
LOGIT, FIRES = 8.0, 8.0
WIDTH, NEURONS, LAYERS = 64, 96, 6
_SIZES: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": WIDTH, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS},
    "gpt2": {"n_embd": WIDTH, "n_inner": NEURONS, "n_layer": LAYERS},
    "opt": {
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "ffn_dim": NEURONS,
        "num_hidden_layers": LAYERS,
    },
}


@dataclass(frozen=True)
class Planted:
    """What was planted, and where.

    Attributes:
        model: The model, float32.
        anatomy: Its places.
        batches: Inputs of random tokens behind one common first token.
        token_id: The token that carries the outlier.
        carried: Per batch the flat tokens that carry it.
        birth_layer, neuron: The neuron that writes it.
        channel, value: Residual channel, and signed size of what is written.
        entries: (row, column) of the entries of w.down of the birth block that carry the growth, largest first.
        exit_layer, exit_neuron, exit_entries: The same for the end; None without an end.
        cancellation: Share of the stream's value that the exit neuron takes away; None without an end.
        sink_heads: (layer, query head) that attend to the token.
    """

    model: Any
    anatomy: Anatomy
    batches: list[Batch]
    token_id: int
    carried: list[Tensor]
    birth_layer: int
    channel: int
    value: float
    neuron: int
    entries: list[tuple[int, int]]
    exit_layer: int | None
    exit_neuron: int | None
    exit_entries: list[tuple[int, int]]
    cancellation: float | None
    sink_heads: list[tuple[int, int]]

    @property
    def sign(self) -> int:
        """Sign of the outlier."""
        return 1 if self.value > 0 else -1


def untouched(model_type: str, seed: int) -> Any:
    """The random model that the chain of the same seed is planted into: what blocks write is small beside the embedding."""
    model = zoo.tiny(model_type, seed=seed, **_SIZES[model_type])
    anatomy = resolve(model)
    with torch.no_grad():
        for layer in range(LAYERS):
            for part in ("w.o", "w.down"):
                anatomy.weight(Site(layer, part)).mul_(0.3)
    return model


def inputs(seed: int, *, num_samples: int = 16, length: int = 24, delimiters: int = 0) -> list[Batch]:
    """Random tokens behind a common first token, in batches of 8, with so many delimiters at random places of each input."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(4, 96, (num_samples, length), generator=generator)
    ids[:, 0] = FIRST
    for row in ids if delimiters else ():
        row[1 + torch.randperm(length - 1, generator=generator)[:delimiters]] = DELIMITER
    keep, sample = torch.ones_like(ids, dtype=torch.bool), torch.arange(num_samples)
    return [Batch(ids[i : i + 8], keep[i : i + 8], sample[i : i + 8]) for i in range(0, num_samples, 8)]


@torch.no_grad()
def plant_chain(
    model_type: str, seed: int, *, ends: bool = True, delimiter: bool = False, num_samples: int = 16
) -> Planted:
    """Plant one life: block, channel, neurons, sign, size and exit are drawn from the seed.

    Args:
        model_type: `llama`, `gpt2` or `opt`.
        seed: Of the model, the inputs and the planting.
        ends: Whether a later block takes the outlier away.
        delimiter: A token that stands anywhere, twice in each input, carries it, instead of the first token.
        num_samples: Inputs.
    """
    generator = torch.Generator().manual_seed(7919 * (seed + 1))
    model = untouched(model_type, seed)
    batches = inputs(seed, num_samples=num_samples, delimiters=2 if delimiter else 0)
    token_id = DELIMITER if delimiter else FIRST
    builder = _Builder(model, batches, token_id)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    birth = draw(0, LAYERS - 3)
    end = draw(birth + 2, LAYERS) if ends else None
    channel, neuron, exit_neuron = draw(0, WIDTH), draw(0, NEURONS), draw(0, NEURONS)
    value = float(300 + 300 * torch.rand(1, generator=generator)) * (1 if draw(0, 2) else -1)
    cancellation = float(0.9 + 0.1 * torch.rand(1, generator=generator)) if ends else None
    builder.mark()
    builder.spike(birth, channel, neuron, value)
    heads = []
    for layer in range(birth + 1, (LAYERS - 1 if end is None else end) + 1):
        heads += [
            (layer, h) for h in builder.sink(layer, channel, draw(0, builder.anatomy.dims.num_kv_heads))
        ]
    if end is not None and cancellation is not None:
        held = float(builder.at(Site(end, "resid.mid"))[:, channel].mean())
        builder.spike(end, channel, exit_neuron, -cancellation * held)
    return Planted(
        model=model,
        anatomy=builder.anatomy,
        batches=batches,
        token_id=token_id,
        carried=[(b.input_ids.flatten() == token_id).nonzero()[:, 0] for b in batches],
        birth_layer=birth,
        channel=channel,
        value=value,
        neuron=neuron,
        entries=[(channel, neuron)],
        exit_layer=end,
        exit_neuron=exit_neuron if ends else None,
        exit_entries=[(channel, exit_neuron)] if ends else [],
        cancellation=cancellation,
        sink_heads=heads,
    )


class _Builder:
    """Changes a model block by block, each block solved from what the model gives so far."""

    def __init__(self, model: Any, batches: list[Batch], token_id: int) -> None:
        self.model, self.anatomy = model, resolve(model)
        self.ids = torch.cat([b.input_ids for b in batches])
        self.carries = self.ids.flatten() == token_id
        self.token_id = token_id

    def all(self, site: Site) -> Tensor:
        """Whole activations at a site."""
        return capture(self.anatomy, self.ids, [site.part])[site]

    def at(self, site: Site) -> Tensor:
        """Activations at the carrying tokens."""
        return self.all(site)[self.carries]

    def weight(self, layer: int | None, part: str) -> Tensor:
        """A weight to write into, [output, input]."""
        return self.anatomy.weight(Site(layer, part))

    def mark(self) -> None:
        """Give the carrying token's embedding a direction that no other has, and all others one that they share."""
        embedding = self.weight(None, "w.embed")
        own = embedding[self.token_id] / embedding[self.token_id].norm()
        shared = embedding[0] - (embedding[0] @ own) * own
        embedding -= (embedding @ own)[:, None] * own
        embedding += 3.0 * shared / shared.norm()
        embedding[self.token_id] = 8.0 * own

    def direction(self, x: Tensor, elsewhere: float) -> Tensor:
        """w with w . x = 1 on average at the carrying tokens and as near to `elsewhere` as can be at the others."""
        target, rest = x[self.carries].mean(0).double(), x[~self.carries].double()
        scatter = rest.T @ rest / len(rest)
        scatter += 1e-3 * scatter.diagonal().mean() * torch.eye(len(scatter), dtype=torch.float64)
        w = torch.linalg.solve(scatter, elsewhere * rest.mean(0))
        own = torch.linalg.solve(scatter, target)
        return (w + own * (1 - w @ target) / (own @ target)).float()

    def spike(self, layer: int, channel: int, neuron: int, value: float) -> None:
        """Let one neuron write `value` to one channel at the carrying tokens."""
        x = self.all(Site(layer, "mlp.in"))
        if Site(layer, "w.gate") in self.anatomy.matrices:
            self.weight(layer, "w.gate")[neuron] = FIRES * self.direction(x, -1.0)
            self.weight(layer, "w.up")[neuron] = FIRES * self.direction(x, 0.0)
        else:
            self.weight(layer, "w.up")[neuron] = 5 * FIRES * self.direction(x, 0.0)
            self.up_bias(layer)[neuron] = -2.5 * FIRES
        fired = float(self.at(Site(layer, "mlp.down.in"))[:, neuron].mean())
        down = self.weight(layer, "w.down")
        down[:, neuron] = 0
        down[channel, neuron] = value / fired

    def up_bias(self, layer: int) -> Tensor:
        """The bias of the first projection of a feed-forward without gate."""
        if self.model.config.model_type == "gpt2":
            return self.model.transformer.h[layer].mlp.c_fc.bias
        return self.model.model.decoder.layers[layer].fc1.bias

    def sink(self, layer: int, channel: int, kv_head: int) -> list[int]:
        """Let the query heads of one key head attend to the carrying tokens, and nothing else read the channel in this layer."""
        dims, x = self.anatomy.dims, self.all(Site(layer, "attn.in"))
        group = dims.num_heads // dims.num_kv_heads
        heads = list(range(kv_head * group, (kv_head + 1) * group))
        key, query, value = (self.weight(layer, f"w.{p}") for p in "kqv")
        key[:, channel] = 0
        value[:, channel] = 0
        # The slowest pair of a rotary embedding hardly turns within an input; elsewhere any place of the head would do.
        place = dims.head_dim // 2 - 1
        ask = self.direction(x, -1.0)
        for h in heads:
            query[h * dims.head_dim + place] = ask
        asked = float((x[~self.carries] @ ask).mean())
        row = kv_head * dims.head_dim + place
        # What the head asks of the content of keys must not drown the sink.
        key[kv_head * dims.head_dim : (kv_head + 1) * dims.head_dim] *= 0.5
        key[row] = 0
        key[row, channel] = LOGIT * dims.head_dim**0.5 / (asked * float(x[self.carries][:, channel].mean()))
        return heads
