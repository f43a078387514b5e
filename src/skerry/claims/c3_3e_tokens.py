"""3.3e  Outlier tokens are delimiters and the start of the sequence; more frequent tokens carry larger outliers.

Two parts, both must hold.

    which       Share of the tokens that carry an outlier (one of at most a quarter of all tokens) that are the first of their input,
                special, or nothing but punctuation and space; mean over outliers, interval over inputs. The same for attention sinks, over
                heads. Bar: a half, or the share of such tokens in the text where that is more. Tokens of a model without
                tokenizer have no text: then only the start counts.
    frequency   Spearman's correlation over token ids (5 occurrences or more) between how often a token occurs in the text and the mean of
                its largest |x|, behind the block where resid.out is most extreme; interval over token ids, bar 0. Puccetti et al. count the
                training data, we the text that was read.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from skerry.causes.bootstrap import Interval
from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict, all_of
from skerry.claims.evidence import Evidence, Row
from skerry.claims.statistics import NOTHING, decide, rank_correlation, share
from skerry.claims.words import counted, percent, percent_span, span
from skerry.outliers.frames import Frame

BOUND, MOST = 0.25, 0.5
MIN_OCCURRENCES, MIN_TOKENS = 5, 20
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_ ]+\]|<\|.+\|>")
# How tokenizers write spaces, line ends and continued words.
_MARKERS = str.maketrans("", "", "▁Ġ\u010a\u0109")


class Part(NamedTuple):
    """One part of the statement: its number, verdict and words."""

    value: Interval
    verdict: Verdict
    words: str


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    tokens = evidence.frame("tokens")
    usual = _usual(evidence, tokens)
    which = [p for p in (_activations(evidence, usual), _sinks(evidence, usual)) if p]
    if not which:
        raise NotApplicable("no outlier of the residual stream and no attention sink is bound to tokens")
    often, figure = _frequency(evidence, tokens)
    verdict = all_of([p.verdict for p in (*which, often)])
    return Judged(verdict, " ".join(p.words for p in (*which, often)), which[0].value, figure)


def is_delimiter(token: str | None) -> bool:
    """Whether a token is special or holds nothing but punctuation and space; one without text is not."""
    if token is None:
        return False
    if _SPECIAL.fullmatch(token):
        return True
    return not any(ch.isalnum() for ch in token.translate(_MARKERS).removeprefix("##"))


def _usual(evidence: Evidence, tokens: Frame) -> float:
    """Share of first tokens and delimiters in the text."""
    rows = tokens.rows(0)
    words = tokens.text("token", rows)
    count = tokens["count"][rows]
    held = sum(int(n) for n, word in zip(count, words, strict=True) if is_delimiter(word))
    model = evidence.summary.model
    first = model.num_samples if not any(_SPECIAL.fullmatch(w or "") for w in words) else 0
    return min(1.0, (held + first) / max(1, int(count.sum())))


def _part(what: str, value: Interval, usual: float) -> Part:
    bar = max(MOST, usual)
    words = f"{percent_span(value)} of the {what} are first tokens or delimiters, as are {percent(usual)} of all tokens."
    return Part(value, decide(value, bar), words)


def _activations(evidence: Evidence, usual: float) -> Part | None:
    total = evidence.summary.model.num_tokens
    carriers = evidence.tables["carriers"].to_pylist()
    bound = [c for c in carriers if c["num_tokens"] and c["num_tokens"] <= BOUND * total]
    if not bound:
        return None
    rows = evidence.rows("carrier_tokens")
    shares = [_of_carrier([r for r in rows if r["carrier"] == c["carrier"]]) for c in bound]
    mean, inputs = math.fsum(shares) / len(shares), max(int(c["num_samples"]) for c in bound)
    # The outliers of a model sit on the same tokens, so inputs are the units: a share of them at its exact interval.
    low, high = (share(round_to(mean * inputs), inputs) for round_to in (math.floor, math.ceil))
    value = Interval(mean, low.low, high.high)
    return _part(f"tokens that carry {counted(len(bound), 'outlier')} of the residual stream", value, usual)


def _of_carrier(rows: list[Row]) -> float:
    first = sum(r["share"] for r in rows if r["position"] == 0)
    # A special token may be the first as well, and is not counted twice.
    special = sum(r["share"] for r in rows if r["position"] is None and _SPECIAL.fullmatch(r["token"] or ""))
    rest = sum(
        r["share"]
        for r in rows
        if r["position"] is None and is_delimiter(r["token"]) and not _SPECIAL.fullmatch(r["token"] or "")
    )
    return min(1.0, max(first, special) + rest)


def _sinks(evidence: Evidence, usual: float) -> Part | None:
    found = [f for f in evidence.findings if f.type in ("sink position", "sink token")]
    if not found:
        return None
    hits = sum(f.position == 0 or is_delimiter(f.token) for f in found)
    return _part(counted(len(found), "attention sink"), share(hits, len(found)), usual)


def _frequency(evidence: Evidence, tokens: Frame) -> tuple[Part, Figure | None]:
    sizes = {
        evidence.tensor(s.layer, s.site): s.max_to_median
        for s in evidence.summary.profiles.sites
        if s.site == "resid.out"
    }
    places = [p for p in sizes if (*p, None) in tokens.index]
    nothing = Part(
        NOTHING, "inconclusive", "Too few tokens occur often enough to say whether frequency matters."
    )
    if not places:
        return nothing, None
    layer, part = max(places, key=lambda p: sizes[p])
    rows = tokens.rows(tokens.index[layer, part, None])
    rows = rows[(tokens["count"][rows] >= MIN_OCCURRENCES) & np.isfinite(tokens["abs_max_mean"][rows])]
    if len(rows) < MIN_TOKENS:
        return nothing, None
    count, size = tokens["count"][rows].astype(np.float64), tokens["abs_max_mean"][rows]
    rho = rank_correlation(count, size)
    words = f"Frequency and size of a token go together with a rank correlation of {span(rho)} ({counted(len(rows), 'token')}, {layer}.{part})."
    figure = Figure(
        kind="scatter",
        x=tuple(np.log10(count).tolist()),
        y=tuple(size.tolist()),
        series=tuple("delimiter" if is_delimiter(t) else "other" for t in tokens.text("token", rows)),
        title=f"Frequency and size of tokens, {layer}.{part}",
        x_title="occurrences in the text, log10",
        y_title="largest |x| of the token, mean",
    )
    return Part(rho, decide(rho, 0.0), words), figure


CLAIM = Claim(
    id="3.3e",
    section="3.3",
    source="An et al. 2025 (arXiv 2502.06415); Puccetti et al. 2022 (arXiv 2205.11380)",
    statement="Outlier tokens are delimiters and the start of the sequence, and more frequent tokens carry larger outliers.",
    measured="Share of the tokens that carry an outlier, and of attention sinks, that are the first of their input, special, or nothing but "
    "punctuation and space. Spearman's correlation over tokens of frequency and size behind the most extreme block.",
    rule="Which tokens: holds when the whole 95 % interval of each share lies above 0.5 (above their share of the text, if that is more), fails "
    "when one lies below. Frequency: holds when the whole interval of the correlation lies above 0, fails when it lies below. Supported when all "
    "hold, refuted when one fails, else inconclusive.",
    effect_name="start and delimiters among outlier tokens",
    unit="share",
    needs=("tokens", "carriers", "carrier_tokens"),
    judge=judge,
)
