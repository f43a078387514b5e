"""What the outliers of the residual stream are, as things that live: a channel, its tokens, the blocks of its life.

Candidates are the channels that the scan found in the output of a block, as a massive activation or as an outlier channel; one that is
both counts as a massive activation. The 16 of the largest ratio are followed through the stream (carriers_read.py, one forward over the
text), and their tokens, birth, peak and end are read from their courses (carriers_life.py). Which layer, channel or token to look at is
never told.

An outlier of the embedding that no block output shows is over before it could be traced; it is named in the notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.sites import Site
from skerry.causes.carrier import Carrier, CarrierKind, Places
from skerry.causes.carriers_life import MASSIVE, Channel, Life
from skerry.causes.carriers_read import Course, Words, affordable, read_course
from skerry.corpus.batch import Batch
from skerry.outliers.finding import Finding
from skerry.outliers.presets import DEFAULT

MOST = 16
LISTED = 8
"""Positions and tokens that `carrier_tokens` lists of each outlier."""
OTHERS = 1024
"""Other tokens drawn from the whole text, at least 8 from each input."""
FEW = 0.1
"""Share of all tokens: an outlier channel of fewer tokens is bound to them, as a massive activation is."""
Row = dict[str, Any]
TokenText = Callable[[Sequence[int]], Sequence[str | None]]


@dataclass(frozen=True)
class Candidate:
    """A channel that the scan found.

    Attributes:
        kind: As what.
        channel: Channel of the residual stream.
        layers: Blocks after which it was found as this kind.
        strength: Whether our own rule found it, then the largest ratio.
    """

    kind: CarrierKind
    channel: int
    layers: frozenset[int]
    strength: tuple[bool, float]


@dataclass(frozen=True)
class Found:
    """The outliers of a run.

    Attributes:
        carriers: Strongest first; numbers count from 0.
        places: Which tokens carry which.
        tables: Rows of `carriers`, `carrier_tokens` and `lifecycle`.
        notes: What the reader must know.
    """

    carriers: list[Carrier]
    places: Places
    tables: dict[str, list[Row]]
    notes: list[str]


def find_carriers(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    findings: Sequence[Finding],
    *,
    token_text: TokenText | None = None,
    seed: int = 0,
    most: int = MOST,
) -> Found:
    """Follow the outliers of the residual stream that a scan found.

    Args:
        anatomy: The model.
        batches: The text, as it was scanned.
        findings: Of the scan.
        token_text: Token ids to text; None without a tokenizer.
        seed: Of the draw of other tokens.
        most: How many outliers are followed.
    """
    words = Words.of(batches)
    wanted, notes = candidates(anatomy, findings)
    kept = wanted[: min(most, affordable(anatomy, words))]
    if left := [str(c.channel) for c in wanted[len(kept) :]]:
        notes.append(f"only the {len(kept)} strongest outliers are followed, not channels {', '.join(left)}")
    if not kept or not len(words.flat):
        notes.append(
            "the scan found no massive activation and no outlier channel behind any block: nothing to follow"
        )
        return Found([], _places(words, len(batches), [], [], seed), _tables(), notes)
    course = read_course(anatomy, batches, words, [c.channel for c in kept])
    if any(np.isnan(x).any() for x in course.values.values()):
        notes.append("some values of the residual stream are not finite; they count as 0")
    lives = [Channel(c.kind, words, course, i).life(set(c.layers)) for i, c in enumerate(kept)]
    lost = [str(c.channel) for c, life in zip(kept, lives, strict=True) if life is None]
    if lost:
        notes.append(f"no token carries channel {', '.join(lost)} when the text is read again")
    alive = [(i, c, life) for i, (c, life) in enumerate(zip(kept, lives, strict=True)) if life is not None]
    carriers = [_carrier(number, c, life) for number, (_, c, life) in enumerate(alive)]
    tables, rows = _tables(), [life.bearers.rows for *_, life in alive]
    crowd = _crowd(words, carriers, rows)
    for carrier, (index, _, life) in zip(carriers, alive, strict=True):
        tables["carriers"].append(_carrier_row(carrier, life, words))
        tables["carrier_tokens"] += _token_rows(carrier, life, words, token_text)
        tables["lifecycle"] += _lifecycle_rows(carrier, life, course, index, crowd)
    return Found(carriers, _places(words, len(batches), carriers, rows, seed), tables, notes)


def candidates(anatomy: Anatomy, findings: Sequence[Finding]) -> tuple[list[Candidate], list[str]]:
    """The channels to follow, strongest first, and what must be said about those that are not."""
    outputs = {s: s.layer for s in anatomy.activation_sites if s.part == "resid.out" and s.layer is not None}
    named = outputs | {anatomy.same_as[s]: layer for s, layer in outputs.items() if s in anatomy.same_as}
    first = {Site(0, "resid.in"), anatomy.same_as.get(Site(0, "resid.in"))}
    seen: dict[tuple[str, int], list[tuple[int, Finding]]] = {}
    embedded: set[int] = set()
    for f in findings:
        if f.type not in (MASSIVE, "outlier channel") or f.channel is None or f.expert is not None:
            continue
        site = Site(f.layer, f.site)
        if site in named:
            seen.setdefault((f.type, f.channel), []).append((named[site], f))
        elif site in first:
            embedded.add(f.channel)
    found = [
        Candidate(
            MASSIVE if kind == MASSIVE else "outlier channel",
            channel,
            frozenset(layer for layer, _ in hits),
            (any(DEFAULT in f.presets for _, f in hits), max(f.ratio for _, f in hits)),
        )
        for (kind, channel), hits in seen.items()
        if kind == MASSIVE or (MASSIVE, channel) not in seen
    ]
    found.sort(key=lambda c: (-c.strength[0], -c.strength[1], c.channel))
    over = sorted(embedded - {channel for _, channel in seen})
    plain = f"of the embedding, channel {', '.join(map(str, over))} stands out before block 0 but behind no block: not followed"
    return found, [plain] if over else []


def _carrier(number: int, candidate: Candidate, life: Life) -> Carrier:
    return Carrier(
        number=number,
        kind=candidate.kind,
        channel=candidate.channel,
        sign=life.bearers.sign,
        birth_layer=life.birth_layer,
        peak_layer=life.peak_layer,
        exit_layer=life.exit_layer,
        peak=life.peak,
        ratio=life.ratio,
        threshold=life.bearers.threshold,
    )


def _crowd(words: Words, carriers: Sequence[Carrier], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Bool [token], carries a massive activation or another outlier that few tokens have: never a token to compare with."""
    out = np.zeros(len(words.flat), bool)
    for carrier, at in zip(carriers, rows, strict=True):
        if carrier.kind == MASSIVE or len(at) <= FEW * len(out):
            out[at] = True
    return out


def _places(
    words: Words, num_batches: int, carriers: Sequence[Carrier], rows: Sequence[np.ndarray], seed: int
) -> Places:
    """Tokens by batch. Others carry nothing; where an input has too few such, they carry nothing that is rare."""
    ends = np.searchsorted(words.batch, np.arange(num_batches + 1))
    carried: list[Mapping[int, Tensor]] = []
    for low, high in pairwise(ends):
        here = {c.number: r[(r >= low) & (r < high)] for c, r in zip(carriers, rows, strict=True)}
        carried.append({n: torch.from_numpy(words.flat[r]) for n, r in here.items() if len(r)})
    each = max(8, -(-OTHERS // max(1, words.num_samples)))
    any_at_all = np.zeros(len(words.flat), bool)
    for r in rows:
        any_at_all[r] = True
    rank = np.random.default_rng(seed).random(len(words.flat)) + any_at_all
    order = np.lexsort((rank, words.sample))
    order = order[~_crowd(words, carriers, rows)[order]]
    starts = np.flatnonzero(np.diff(words.sample[order], prepend=-1))
    turn = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    drawn = np.sort(order[turn < each])
    cuts = np.searchsorted(drawn, ends)
    others = [torch.from_numpy(words.flat[drawn[a:b]]) for a, b in pairwise(cuts)]
    return Places(carried, others)


def _tables() -> dict[str, list[Row]]:
    return {"carriers": [], "carrier_tokens": [], "lifecycle": []}


def _carrier_row(carrier: Carrier, life: Life, words: Words) -> Row:
    rows = life.bearers.rows
    num_samples = len(np.unique(words.sample[rows]))
    return {
        "carrier": carrier.number,
        "kind": carrier.kind,
        "channel": carrier.channel,
        "sign": carrier.sign,
        "birth_layer": carrier.birth_layer,
        "peak_layer": carrier.peak_layer,
        "exit_layer": carrier.exit_layer,
        "peak": carrier.peak,
        "ratio": carrier.ratio,
        "threshold": carrier.threshold,
        "num_tokens": len(rows),
        "num_samples": num_samples,
        "recurrence": num_samples / words.num_samples,
        "cancellation": life.cancellation,
    }


def _token_rows(carrier: Carrier, life: Life, words: Words, token_text: TokenText | None) -> list[Row]:
    """The positions and the tokens that carry it most often."""
    rows = life.bearers.rows

    def listed(values: np.ndarray) -> list[tuple[int, int]]:
        counts = Counter(values[rows].tolist())
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LISTED]

    def row(count: int, *, position: int | None = None, token_id: int | None = None) -> Row:
        text = None if token_text is None or token_id is None else token_text([token_id])[0]
        return {
            "carrier": carrier.number,
            "position": position,
            "token_id": token_id,
            "token": text,
            "count": count,
            "share": count / len(rows),
        }

    return [row(n, position=p) for p, n in listed(words.position)] + [
        row(n, token_id=t) for t, n in listed(words.token_id)
    ]


def _lifecycle_rows(carrier: Carrier, life: Life, course: Course, index: int, crowd: np.ndarray) -> list[Row]:
    """Its value along the stream, at its tokens and at tokens with neither it nor any rare outlier."""
    rows, rest = life.bearers.rows, ~crowd
    rest[rows] = False
    out = []
    for site in sorted(course.values):
        x, norm = course.values[site][:, index].astype(np.float64), course.norms[site].astype(np.float64)
        low, high = _of(x[rows], lambda v: np.quantile(v, [0.05, 0.95])) or (None, None)
        out.append(
            {
                "carrier": carrier.number,
                "layer": site.layer,
                "site": site.part,
                "value": _of(x[rows], np.mean),
                "low": low,
                "high": high,
                "other": _of(np.abs(x[rest]), np.mean),
                "norm": _of(norm[rows], np.mean),
                "norm_other": _of(norm[rest], np.mean),
            }
        )
    return out


def _of(x: np.ndarray, what: Callable[[np.ndarray], Any]) -> Any:
    """A statistic of the finite values as plain numbers; None without any."""
    x = x[np.isfinite(x)]
    return what(x).tolist() if len(x) else None
