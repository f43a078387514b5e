"""Do the kinds line up? Places that two kinds of findings share, against what sets of these sizes would share by chance.

    Jaccard = |A and B| / |A or B|        |A and B| ~ Hypergeometric(N, |A|, |B|) if the sets were drawn at random from N places

An et al. (2502.06415) report that weight and activation outliers share 100 % of their channels and activation and attention outliers
95 % of their tokens, without a chance level; this table has one.
Limit: A = B = one of N places has Jaccard 1 and p = 1 / N.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from skerry.anatomy.sites import NORM_BIAS, RESIDUAL
from skerry.outliers.finding import Alignment, Finding
from skerry.outliers.frames import Frames

_READERS = ("w.q", "w.k", "w.v", "w.gate", "w.up", "w.router")
_RESIDUAL_NORMS = ("norm.attn", "norm.mlp", "norm.attn.resid", "norm.mlp.resid", "norm.embed", "norm.final")


def alignment(frames: Frames, findings: Sequence[Finding]) -> tuple[Alignment, ...]:
    """Overlaps between kinds; relations in which either side is empty are left out.

    Args:
        frames: The tables, for the number of places there are.
        findings: Those listed.
    """
    resid = _places(findings, "outlier channel", RESIDUAL, lambda f: f.channel)
    massive = _places(findings, "massive activation", RESIDUAL, lambda f: f.channel)
    rows = _places(findings, ("outlier row", "super weight"), ("w.down",), lambda f: f.row)
    columns = _places(findings, "outlier column", _READERS, lambda f: f.column)
    gains = _places(findings, "outlier column", _RESIDUAL_NORMS, lambda f: f.column)
    biases = _places(
        findings, "outlier column", tuple(n + NORM_BIAS for n in _RESIDUAL_NORMS), lambda f: f.column
    )
    heavy = _places(findings, "massive activation", None, _token)
    sinks = _places(findings, ("sink position", "sink token"), None, _token)
    width, num_tokens = _width(frames), _num_tokens(frames)
    pairs = [
        ("outlier channels of resid and rows of w.down", resid, rows, width),
        ("outlier channels of resid and columns of the matrices that read it", resid, columns, width),
        ("outlier channels of resid and gains of the norms on it", resid, gains, width),
        ("outlier channels of resid and biases of the norms on it", resid, biases, width),
        ("channels of massive activations and outlier channels of resid", massive, resid, width),
        ("tokens of massive activations and tokens of attention sinks", heavy, sinks, num_tokens),
    ]
    return tuple(overlap(name, a, b, n) for name, a, b, n in pairs if a and b)


def overlap(relation: str, left: set[Hashable], right: set[Hashable], num_places: int) -> Alignment:
    """Two sets of places and what they share.

    Args:
        relation: What is compared.
        left: Places of the first kind.
        right: Places of the second kind.
        num_places: How many places there are to draw from.
    """
    shared = left & right
    a, b = len(left), len(right)
    expected = p = None
    if a and b:
        from scipy.stats import hypergeom

        law = hypergeom(max(num_places, len(left | right)), a, b)
        counts = np.arange(max(0, a + b - num_places), min(a, b) + 1)
        expected = float((law.pmf(counts) * counts / (a + b - counts)).sum())
        p = float(min(1.0, law.sf(len(shared) - 1)))
    return Alignment(
        relation=relation,
        left=_words(left),
        right=_words(right),
        shared=_words(shared),
        overlap=len(shared) / len(left | right) if left or right else None,
        expected=expected,
        p_value=p,
    )


def _places(
    findings: Iterable[Finding],
    types: str | tuple[str, ...],
    sites: tuple[str, ...] | None,
    place: Callable[[Finding], Any],
) -> set[Hashable]:
    kinds = (types,) if isinstance(types, str) else types
    chosen = (f for f in findings if f.type in kinds and (sites is None or f.site in sites))
    return {where for f in chosen if (where := place(f)) is not None}


def _token(f: Finding) -> str | None:
    """The token where one is known, else the position."""
    if f.token_id is not None:
        return f.token if f.token is not None else f"id {f.token_id}"
    return None if f.position is None else f"position {f.position}"


def _words(places: set[Hashable]) -> tuple[str, ...]:
    return tuple(str(p) for p in sorted(places, key=lambda p: (isinstance(p, str), p)))


def _width(frames: Frames) -> int:
    return max((row["num_channels"] for key, row in frames.own.items() if key[1] in RESIDUAL), default=0)


def _num_tokens(frames: Frames) -> int:
    tokens = frames("key_tokens", ("layer",))
    return len(np.unique(tokens["token_id"])) if len(tokens) else 0
