"""Massive activations: a few tokens whose largest value dwarfs that of all other tokens of the same input.

    M_st = max_j |x_stj|        massive_st = M_st >= 16 median_t M_st

Ours: a position (or a token id) that is massive in at least half of the inputs that have it (of its occurrences), more often than
chance at q = 0.01, and with a quarter of its energy in one channel (bound.py). 16 is beyond what channels with persistent outliers do
to single tokens (in all-MiniLM-L6-v2 up to 12), and below what massive activations show.

The sites that tell tokens apart are the residual stream, the input of the down projection and its output. Which channel carries it
comes from the site's 32 largest values: every channel with at least a quarter of the place's mean largest. A token that stands at one
position in every input, such as `[CLS]`, is bound to both and is one finding.
Limit: a first token that is always the same cannot be told from a first position; feed inputs without it to part them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from skerry.outliers.bound import Bound, Event, Places
from skerry.outliers.channels import Channels
from skerry.outliers.finding import Finding
from skerry.outliers.frames import Frames
from skerry.outliers.presets import limit, listed

SHARE_OF_LARGEST = 0.25
BLOCK_OUTPUT = ("resid.out", "resid.in")


class _Rules:
    """The literature's rules on the rows of `values`: bool [row] each."""

    def __init__(self, frames: Frames, places: Places) -> None:
        v = frames("values")
        size, none = np.abs(v["value"]), np.zeros(len(v), bool)
        median, mean_max = frames.of_sites(v, "median")[v.group], frames.of_sites(v, "max_inf_norm")[v.group]
        block = np.array([key[1] in BLOCK_OUTPUT for key in v.keys], bool)[v.group] if len(v) else none
        down = np.array([key[1] == "mlp.down.in" for key in v.keys], bool)[v.group] if len(v) else none
        self.massive = (
            block & (size > limit("massive", "magnitude")) & (size >= limit("massive", "ratio") * median)
        )
        # The rule is about the site's one largest value.
        self.owen = block & (v["rank"] == 0) & (mean_max > limit("owen", "magnitude"))
        self.owen &= mean_max >= limit("owen", "ratio") * median
        self.an = block & (size > limit("an", "ratio") * _mean_abs(frames)[v.group]) if len(v) else none
        self.prefixquant = none.copy()
        self.systematic = none.copy()
        for bound, rows in ((places.positions, places.at_position), (places.tokens, places.at_token)):
            near = size >= SHARE_OF_LARGEST * np.append(bound.frame["abs_max_mean"], np.inf)[rows]
            self.prefixquant |= down & near & places.says(bound.frame["massive_64"] > 0, rows)
            self.systematic |= near & places.says(bound.systematic, rows)

    def any(self) -> np.ndarray:
        return self.massive | self.owen | self.an | self.prefixquant | self.systematic

    def met(self, event: Event) -> Iterator[str]:
        rows = event.rows
        if not rows or self.systematic[rows].any():
            yield "skerry"
        for name in ("massive", "owen", "an", "prefixquant"):
            if rows and getattr(self, name)[rows].any():
                yield name


def _mean_abs(frames: Frames) -> np.ndarray:
    """float64 [site of `values`], mean |x| as if every channel were Gaussian (folded normal)."""
    from scipy.stats import norm

    f = frames("channels")
    mean, std = f["mean"], np.maximum(f["std"], 1e-12)
    folded = std * np.sqrt(2 / np.pi) * np.exp(-0.5 * (mean / std) ** 2) + mean * (
        1 - 2 * norm.cdf(-mean / std)
    )
    by_site = dict(zip(f.keys, f.sum(folded) / np.maximum(f.sum(np.isfinite(folded)), 1), strict=True))
    return np.array([by_site.get(key, np.inf) for key in frames("values").keys], np.float64)


def massive_activations(frames: Frames, channels: Channels, chosen: str) -> list[Finding]:
    """Findings of type `massive activation`.

    Args:
        frames: The tables.
        channels: The channels, for their ranges.
        chosen: Preset whose findings are listed.
    """
    places = Places(frames)
    rules = _Rules(frames, places)
    found = []
    for event in places.events(rules.any()):
        presets = tuple(rules.met(event))
        if listed(presets, chosen):
            found.append(_finding(frames, places, event, channels, presets))
    return found


def _finding(
    frames: Frames, places: Places, event: Event, channels: Channels, presets: tuple[str, ...]
) -> Finding:
    values, scale = places.values, frames.scale.get(event.key, float("nan"))
    bound, place = places.of(event)
    tested = place is not None and not np.isnan(bound.q[place])
    # Without a value the place's mean largest |x| is all that is known: there is no sign then.
    value = float(values["value"][event.rows[0]]) if event.rows else _at(bound, "size", place) or 0.0
    extent = channels.range(event.key, event.channel)
    token, token_id = _token(places, event)
    return Finding(
        kind="activation",
        type="massive activation",
        site=event.key[1],
        layer=event.key[0],
        expert=event.key[2],
        channel=event.channel,
        position=None if event.position is None else int(places.positions.frame["position"][event.position]),
        token=token,
        token_id=token_id,
        value=value,
        ratio=abs(value) / scale if scale > 0 else 0.0,
        score=_at(bound, "score", place) or 0.0,
        recurrence=_at(bound, "recurrence", place),
        p_value=_at(bound, "p", place) if tested else None,
        q_value=_at(bound, "q", place) if tested else None,
        range=extent,
        centre=None if extent is None else sum(extent) / 2,
        presets=presets,
    )


def _token(places: Places, event: Event) -> tuple[str | None, int | None]:
    if event.token is not None:
        frame, row = places.tokens.frame, event.token
    elif event.position is None and event.rows:
        frame, row = places.values, event.rows[0]
    else:
        return None, None
    return frame.text("token", np.array([row]))[0], int(frame["token_id"][row])


def _at(bound: Bound, name: str, place: int | None) -> float | None:
    value = None if place is None else float(getattr(bound, name)[place])
    return value if value is not None and np.isfinite(value) else None
