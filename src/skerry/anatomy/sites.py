"""The vocabulary of named places in a model, the same for every architecture.

A part names a tensor by what it does in the data flow, never by the name that an architecture gives it. Layers count from 0.
`[token ...]` is the flattened batch; `channel` of q, k, v and mix counts head * head_dim + place in the head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from skerry.errors import UnknownSite, near_matches


class Part(NamedTuple):
    """One word of the vocabulary: its axes and its meaning."""

    axes: str
    meaning: str


ACTIVATION_PARTS: dict[str, Part] = {
    "resid.in": Part("token channel", "residual stream as the block receives it; in layer 0 the embedding"),
    "attn.in": Part("token channel", "what the q, k and v projections read"),
    "attn.q": Part(
        "token head*channel", "queries as the projection writes them: before any query norm and rotation"
    ),
    "attn.k": Part(
        "token kv_head*channel", "keys as the projection writes them: before any key norm and rotation"
    ),
    "attn.v": Part("token kv_head*channel", "values as the projection writes them"),
    "attn.logits": Part(
        "head query key", "scaled and masked scores that the softmax reads; streamed, never stored"
    ),
    "attn.probs": Part("head query key", "attention weights; streamed, never stored"),
    "attn.mix": Part("token head*channel", "weighted values of all heads: what the output projection reads"),
    "attn.out": Part("token channel", "what the output projection writes"),
    "attn.add": Part(
        "token channel", "what attention adds to the residual, where a norm lies between it and attn.out"
    ),
    "resid.mid": Part(
        "token channel", "residual stream between attention and feed-forward; absent in parallel blocks"
    ),
    "mlp.in": Part("token channel", "what the feed-forward (or the router and the experts) reads"),
    "mlp.router": Part("token expert", "logits of the router over experts"),
    "mlp.gate": Part(
        "token neuron", "gate projection before its activation function; gated feed-forwards only"
    ),
    "mlp.up": Part(
        "token neuron",
        "up projection; in plain feed-forwards the first projection, before its activation function",
    ),
    "mlp.down.in": Part("token neuron", "what the down projection reads: act(gate) * up, or act(up)"),
    "mlp.out": Part("token channel", "what the down projection (or the sum of the experts) writes"),
    "mlp.add": Part(
        "token channel",
        "what the feed-forward adds to the residual, where a norm lies between it and mlp.out",
    ),
    "resid.out": Part("token channel", "residual stream as the block leaves it, before any final norm"),
    "head.in": Part(
        "token channel", "what the language-model head reads: after the final norm; has no layer"
    ),
}

WEIGHT_PARTS: dict[str, Part] = {
    "w.q": Part("row column", "query projection, [head*channel, channel]"),
    "w.k": Part("row column", "key projection, [kv_head*channel, channel]"),
    "w.v": Part("row column", "value projection, [kv_head*channel, channel]"),
    "w.o": Part("row column", "output projection, [channel, head*channel]"),
    "w.attn.gate": Part("row column", "gate on what the heads give, [head or head*channel, channel]; rare"),
    "w.router": Part("row column", "router, [expert, channel]"),
    "w.router.shared": Part("row column", "gate of the expert that every token passes, [1, channel]"),
    "w.gate": Part("row column", "gate projection, [neuron, channel]"),
    "w.up": Part("row column", "up projection, [neuron, channel]"),
    "w.down": Part("row column", "down projection, [channel, neuron]"),
    "w.sink": Part("head", "learned sink logits, one per head"),
    "w.embed": Part("row column", "token embedding, [token id, channel]; has no layer"),
    "w.embed.project": Part(
        "row column", "projection from a narrower embedding to the residual; has no layer; rare"
    ),
    "w.position": Part("row column", "learned position embedding, [position, channel]; has no layer"),
    "w.position.relative": Part(
        "row column", "learned distance biases of the logits, [distance, head]; has no layer; rare"
    ),
    "w.type": Part("row column", "token-type embedding, [type, channel]; has no layer"),
    "w.head.project": Part(
        "row column", "projection from the residual to a narrower head; has no layer; rare"
    ),
    "w.head": Part(
        "row column", "language-model head, [token id, channel]; has no layer; absent when tied to w.embed"
    ),
    "norm.attn": Part("channel", "gain of the norm that attention reads from"),
    "norm.mlp": Part("channel", "gain of the norm that the feed-forward reads from"),
    "norm.attn.add": Part("channel", "gain of the norm between attn.out and the residual"),
    "norm.mlp.add": Part("channel", "gain of the norm between mlp.out and the residual"),
    "norm.attn.resid": Part("channel", "post-norm blocks: gain of the norm on the residual after attention"),
    "norm.mlp.resid": Part(
        "channel", "post-norm blocks: gain of the norm on the residual after the feed-forward"
    ),
    "norm.q": Part(
        "channel", "gain of the query norm, one head's channels or, where heads differ, head*channel"
    ),
    "norm.k": Part(
        "channel", "gain of the key norm, one head's channels or, where heads differ, kv_head*channel"
    ),
    "norm.embed": Part("channel", "gain of the norm on the embedding; has no layer"),
    "norm.final": Part("channel", "gain of the norm before the head; has no layer"),
}
# A norm that has a bias has a second site: the part with ".bias" behind it.
NORM_BIAS = ".bias"
STREAMED = ("attn.logits", "attn.probs")
_BEFORE_BLOCKS = ("w.embed", "w.position", "w.type", "norm.embed")
RESIDUAL = ("resid.in", "resid.mid", "resid.out")

_ORDER = {part: i for i, part in enumerate([*ACTIVATION_PARTS, *WEIGHT_PARTS])}


def _rank(part: str) -> int:
    return _ORDER.get(part.removesuffix(NORM_BIAS), len(_ORDER))


class Site(NamedTuple):
    """A named place in a model.

    Attributes:
        layer: Block number from 0; None for parts outside the blocks (embedding, final norm, head).
        part: A word of the vocabulary.
        expert: Number of the expert where the part exists once per expert; else None.
    """

    layer: int | None
    part: str
    expert: int | None = None

    def __str__(self) -> str:
        name = self.part if self.layer is None else f"{self.layer}.{self.part}"
        return name if self.expert is None else f"{name}[{self.expert}]"

    def _key(self) -> tuple[int, int, str, int]:
        layer = self.layer
        if layer is None:  # the embedding comes before the blocks, the head after them
            layer = -1 if self.part.startswith(_BEFORE_BLOCKS) else 1_000_000
        return layer, _rank(self.part), self.part, -1 if self.expert is None else self.expert

    def __lt__(self, other: tuple[object, ...]) -> bool:
        return self._key() < Site(*other)._key()  # type: ignore[arg-type]

    # A tuple brings all four comparisons of its own, which cannot compare a layer with None.
    def __le__(self, other: tuple[object, ...]) -> bool:
        return self._key() <= Site(*other)._key()  # type: ignore[arg-type]

    def __gt__(self, other: tuple[object, ...]) -> bool:
        return self._key() > Site(*other)._key()  # type: ignore[arg-type]

    def __ge__(self, other: tuple[object, ...]) -> bool:
        return self._key() >= Site(*other)._key()  # type: ignore[arg-type]

    @property
    def is_weight(self) -> bool:
        """Whether the site is a parameter and not an activation."""
        return self.part.startswith(("w.", "norm."))

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that `str(site)` wrote.

        Raises:
            UnknownSite: The text is no site of the vocabulary.
        """
        name, _, expert = text.removesuffix("]").partition("[")
        first, _, rest = name.partition(".")
        layer, part = (int(first), rest) if first.isdigit() else (None, name)
        check_part(part)
        return cls(layer, part, int(expert) if expert else None)


def check_part(part: str) -> None:
    """Refuse a word that is not in the vocabulary.

    Raises:
        UnknownSite: With the near matches.
    """
    if part.removesuffix(NORM_BIAS) not in _ORDER:
        near = near_matches(part, list(_ORDER))
        raise UnknownSite(
            f"there is no site {part!r}{f'; did you mean {near}?' if near else '.'} `skerry sites` lists all {len(_ORDER)}"
        )


def parse_parts(words: Iterable[str]) -> list[str]:
    """Parts that a user asked for: words of the vocabulary or the first part of some (`mlp`, `resid`, `w`).

    Raises:
        UnknownSite: A word that neither is a part nor begins one.
    """
    chosen: list[str] = []
    for word in words:
        hits = [p for p in _ORDER if p == word or p.startswith(word + ".")]
        if not hits:
            check_part(word)
        chosen += [p for p in hits if p not in chosen]
    return sorted(chosen, key=_rank)
