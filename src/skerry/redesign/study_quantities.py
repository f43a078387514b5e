"""What a study compares, by name, from the results of its arms: rows of the table `study_quantities`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from skerry.causes.bootstrap import Interval
from skerry.redesign.study_measure import headline
from skerry.redesign.study_statistics import crossed, mean_over_run, over_seeds, steps_to

Row = dict[str, Any]
Result = Mapping[str, Any]


class Quantity(NamedTuple):
    """A number per seed.

    Attributes:
        kind: `difference` or `ratio`.
        of: From the result of an arm and that of the baseline of the same seed; None where it has none.
        what: In words.
    """

    kind: str
    of: Callable[[Result, Result], float | None]
    what: str


def _size(name: str) -> Callable[[Result, Result], float | None]:
    return lambda mine, _base: headline(mine["layers"]).get(name)


def _reached(mine: Result, base: Result) -> float | None:
    curve = mine["curve"]
    if not curve or not base["curve"]:
        return None
    return steps_to([p["step"] for p in curve], [p["loss"] for p in curve], base["curve"][-1]["loss"]).step


def _whole_run(mine: Result, _base: Result) -> float | None:
    curve = mine["curve"]
    return mean_over_run([p["step"] for p in curve], [p["loss"] for p in curve]) if curve else None


PER_SEED: dict[str, Quantity] = {
    "steps_to_baseline": Quantity(
        "ratio", _reached, "steps until the held-out loss is the baseline's at its end"
    ),
    "loss_over_run": Quantity("difference", _whole_run, "held-out loss, mean over the whole run"),
    "max_to_median": Quantity("ratio", _size("max_to_median"), "largest / median of the stream, worst block"),
    "kurtosis": Quantity("ratio", _size("kurtosis"), "kurtosis of the stream, worst block"),
    "first_share": Quantity("difference", _size("first_share"), "strongest head's share on the first token"),
    "sink_rate": Quantity(
        "difference", _size("sink_rate"), "heads and inputs with a sink at the first token"
    ),
    "value_drain": Quantity(
        "ratio", _size("value_drain"), "first token's value norm / the others', that head"
    ),
    "down_in_max": Quantity("ratio", _size("down_in_max"), "largest input of a down projection"),
    "weight_ratio": Quantity(
        "ratio", _size("weight_ratio"), "largest / mean weight of a line of a down projection"
    ),
}


def quantities(results: Sequence[Result], *, baseline: str, speed: Sequence[Row] = ()) -> list[Row]:
    """All rows of one size.

    Args:
        results: Of its arms; those without numbers (a diverged training) count as missing seeds.
        baseline: Label that the others are compared with.
        speed: Rows of `study_speed` of the size.
    """
    by_label: dict[str, dict[int, Result]] = {}
    for r in results:
        by_label.setdefault(r["label"], {})
        if "loss" in r:
            by_label[r["label"]][r["seed"]] = r
    base = by_label.get(baseline, {})
    rows: list[Row] = []
    for label, mine in by_label.items():
        rows += _losses(label, mine, base)
        rows += _per_seed(label, mine, base)
        rows += _fixed(label, mine, base, [s for s in speed if s["label"] == label])
    return rows


def _row(label: str, quantity: str, kind: str, value: Interval, versus: Interval | None, **more: Any) -> Row:
    found: Row = {"label": label, "quantity": quantity, "kind": kind, "note": None, **more}
    found |= dict(zip(("value", "ci_low", "ci_high"), map(_known, value), strict=True))
    told = versus or Interval(math.nan, math.nan, math.nan)
    return found | dict(zip(("versus", "versus_low", "versus_high"), map(_known, told), strict=True))


def _losses(label: str, mine: Mapping[int, Result], base: Mapping[int, Result]) -> list[Row]:
    """The loss, and its rise under every scheme and pruning: seeds and windows."""
    if not mine:
        return [
            _row(
                label,
                "loss",
                "difference",
                Interval(math.nan, math.nan, math.nan),
                None,
                over="",
                num_seeds=0,
            )
            | {"note": "no seed was finished"}
        ]
    first = next(iter(mine.values()))
    rows = [_windows(label, "loss", _plain_loss, mine, base)]
    names = [c["what"] for c in first["compressed"]]
    return rows + [_windows(label, f"change {what}", _rise(what), mine, base) for what in names]


def _plain_loss(r: Result) -> np.ndarray:
    return np.asarray(r["loss"])


def _rise(what: str) -> Callable[[Result], np.ndarray]:
    def of(r: Result) -> np.ndarray:
        found = next(c for c in r["compressed"] if c["what"] == what)
        return np.asarray(found["loss"]) - np.asarray(r["loss"])

    return of


def _windows(
    label: str,
    quantity: str,
    of: Callable[[Result], np.ndarray],
    mine: Mapping[int, Result],
    base: Mapping[int, Result],
) -> Row:
    seeds = sorted(mine)
    both = [s for s in seeds if s in base]
    versus = crossed(np.stack([of(mine[s]) - of(base[s]) for s in both])) if both else None
    over = "windows and seeds" if len(seeds) > 1 else "windows"
    value = crossed(np.stack([of(mine[s]) for s in seeds]))
    return _row(label, quantity, "difference", value, versus, over=over, num_seeds=len(seeds))


def _per_seed(label: str, mine: Mapping[int, Result], base: Mapping[int, Result]) -> list[Row]:
    rows = []
    for name, quantity in PER_SEED.items():
        found = {s: quantity.of(r, base[s]) for s, r in mine.items() if s in base}
        theirs = {s: quantity.of(base[s], base[s]) for s in found}
        known = {s: v for s, v in found.items() if v is not None}
        note = None
        if name == "steps_to_baseline" and len(known) < len(found):
            note = f"reached by {len(known)} of {len(found)} seeds"
        if not known:
            if note:
                rows.append(
                    _row(label, name, quantity.kind, _NONE, None, over="seeds", num_seeds=0) | {"note": note}
                )
            continue
        is_ratio = quantity.kind == "ratio"
        value = over_seeds([known[s] for s in sorted(known)], logarithmic=is_ratio)
        pairs = [(known[s], b) for s in sorted(known) if (b := theirs[s]) is not None and (b or not is_ratio)]
        versus = over_seeds([a / b if is_ratio else a - b for a, b in pairs], logarithmic=is_ratio)
        if note:  # seeds that never got there are left out of a mean, so an interval would be too good
            value, versus = (Interval(x.value, math.nan, math.nan) for x in (value, versus))
        rows.append(
            _row(label, name, quantity.kind, value, versus, over="seeds", num_seeds=len(known))
            | {"note": note}
        )
    return rows


_NONE = Interval(math.nan, math.nan, math.nan)


def _fixed(
    label: str, mine: Mapping[int, Result], base: Mapping[int, Result], speed: Sequence[Row]
) -> list[Row]:
    rows = []
    if mine and base:
        own, theirs = (next(iter(x.values()))["parameters"] for x in (mine, base))
        value = Interval(float(own), math.nan, math.nan)
        versus = Interval(float(own - theirs), math.nan, math.nan)
        rows.append(_row(label, "parameters", "difference", value, versus, over="", num_seeds=len(mine)))
    for s in speed:
        value = Interval(s["tokens_per_second"], math.nan, math.nan)
        versus = Interval(s["ratio"], s["low"], s["high"])
        rows.append(
            _row(label, "tokens_per_second", "ratio", value, versus, over="rounds", num_seeds=len(mine))
        )
    return rows


def _known(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
