"""What every activation site looks like as a whole: concentration over channels, asymmetry, and what a shift would bring.

With a_j = max_t |x_tj|, [l_j, u_j] the range of channel j, over the channels of one site:

    range share of the k widest   1 - (range without the k channels of largest a) / range        range = max u - min l
    Gini                          sum_i (2 i - d - 1) a_(i) / (d sum a)                           a_(i) ascending; 0 all equal
    channels for 99 %             least k with sum of the k largest a^2 >= 0.99 sum a^2
    shift gain                    range / max_j (u_j - l_j)      every channel shifted to its own centre, as OS+ (2304.09145) does
    asymmetric                    |l_j + u_j| > u_j - l_j        the channel never crosses zero

Limit: equal channels have range shares 0, Gini 0, shift gain 1; a lone channel of d has Gini 1 - 1/d and one channel for 99 %.
Where nothing was measured (an expert without tokens) there is no profile; a shape that has no value (a constant tensor) is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skerry.anatomy.sites import Site
from skerry.outliers.channels import Channels
from skerry.outliers.finding import ChannelAsymmetry, Finding, SiteProfile
from skerry.outliers.frames import Frame, Frames

MOST_ASYMMETRIC = 60
WIDE_RATIO, ASYMMETRY = 3.0, 0.5


def site_profiles(frames: Frames, channels: Channels, findings: Sequence[Finding]) -> tuple[SiteProfile, ...]:
    """A profile of every site, in order; sites that are the same tensor as another repeat its numbers.

    Args:
        frames: The tables.
        channels: All channels.
        findings: Ours, to count outlier channels and the consistency of their signs.
    """
    shapes = _shapes(channels)
    marked = {(f.layer, f.site, f.expert, f.channel) for f in findings if f.type == "outlier channel"}
    counted = _outliers(channels, marked)
    own = {
        Site(*key): _profile(key, row, shapes[key], counted.get(key, (0, None)), frames.scale.get(key, 0.0))
        for key, row in frames.own.items()
        if key in shapes
    }
    for site, other in frames.aliases.items():
        if other in own:
            place = {"layer": site.layer, "site": site.part, "expert": site.expert, "same_as": str(other)}
            own[site] = own[other].model_copy(update=place)
    return tuple(own[site] for site in sorted(own))


def _profile(
    key: tuple[Any, ...],
    row: dict[str, Any],
    shape: dict[str, float],
    counted: tuple[int, float | None],
    scale: float,
) -> SiteProfile:
    layer, part, expert = key
    return SiteProfile(
        layer=layer,
        site=part,
        expert=expert,
        abs_max=_number(row["abs_max"]),
        median=_number(row["median"]),
        max_to_median=_number(row["abs_max"]) / scale if scale > 0 else 0.0,
        kurtosis=_number(row["kurtosis"]),
        kurtosis_channels=_number(row["kurtosis_channels"]),
        num_outlier_channels=counted[0],
        num_channels=int(row["num_channels"]),
        range_share_top1=shape["top1"],
        range_share_top1pct=shape["top1pct"],
        gini=shape["gini"],
        channels_for_99=int(shape["for_99"]),
        shift_gain=shape["shift_gain"],
        asymmetric_channels=int(shape["asymmetric"]),
        mean_abs_skewness=shape["skewness"],
        sign_consistency=counted[1],
    )


def _shapes(channels: Channels) -> dict[tuple[Any, ...], dict[str, float]]:
    """Shape of every site that has finite values."""
    f, size = channels.frame, channels.size
    seen = np.isfinite(size)
    size = np.where(seen, size, 0.0)
    num = f.count(seen)
    rank = f.rank(np.where(seen, size, np.nan))
    full = _range(f, seen)
    one = _range(f, seen & (rank >= 1))
    percent = _range(f, seen & (rank >= np.maximum(1, num // 100)[f.group]))
    widest = f.max(f["max"] - f["min"], seen)
    skewness = np.where(seen & np.isfinite(f["skewness"]), np.abs(f["skewness"]), np.nan)
    centred = np.abs(f["max"] + f["min"]) > f["max"] - f["min"]
    columns = {
        "top1": _share(full, one),
        "top1pct": _share(full, percent),
        "gini": _gini(f, size, rank, num),
        "for_99": _channels_for(0.99, f, size, rank),
        "shift_gain": np.where(
            widest > 0, np.divide(full, widest, where=widest > 0, out=np.ones_like(full)), 1.0
        ),
        "asymmetric": f.sum(np.where(seen, centred, 0.0)),
        "skewness": f.sum(skewness) / np.maximum(f.count(np.isfinite(skewness)), 1),
    }
    return {
        key: {name: _number(column[i]) for name, column in columns.items()}
        for i, key in enumerate(f.keys)
        if num[i] > 0
    }


def _range(f: Frame, mask: np.ndarray) -> np.ndarray:
    """float64 [site], largest - smallest value over some channels; 0 without any."""
    extent = f.max(f["max"], mask) + f.max(-f["min"], mask)
    return np.where(np.isfinite(extent), np.maximum(extent, 0.0), 0.0)


def _share(full: np.ndarray, rest: np.ndarray) -> np.ndarray:
    return np.where(full > 0, 1 - np.divide(rest, full, where=full > 0, out=np.ones_like(full)), 0.0)


def _gini(f: Frame, size: np.ndarray, rank: np.ndarray, num: np.ndarray) -> np.ndarray:
    d = num[f.group]
    ascending = d - rank  # 1 for the smallest
    total = f.sum(size)
    weighted = f.sum(np.where(rank < d, (2 * ascending - d - 1) * size, 0.0))
    return np.where(total > 0, weighted / np.where(total > 0, num * total, 1.0), 0.0)


def _channels_for(share: float, f: Frame, size: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """float64 [site], how many channels, largest first, hold this share of the sum of squares."""
    order = np.lexsort((rank, f.group))
    square, group = size[order] ** 2, f.group[order]
    running = np.cumsum(square)
    start = np.searchsorted(group, np.arange(f.num_groups))
    before = np.append(0.0, running)[start]
    total = f.sum(size**2)
    # Rounding of the running sum must not ask for one channel more than there is.
    short = running - before[group] < share * total[group] * (1 - 1e-12)
    return np.minimum(np.bincount(group, short, f.num_groups) + 1, f.count()) * (total > 0)


def _outliers(
    channels: Channels, marked: set[tuple[Any, ...]]
) -> dict[tuple[Any, ...], tuple[int, float | None]]:
    """Site to number of outlier channels and mean share of inputs in which their extreme has its usual sign."""
    f = channels.frame
    by_site: dict[tuple[Any, ...], list[int]] = {}
    for layer, part, expert, channel in marked:
        by_site.setdefault((layer, part, expert), []).append(int(channel))
    out: dict[tuple[Any, ...], tuple[int, float | None]] = {}
    for key, wanted in by_site.items():
        rows = f.rows(f.index[key])
        rows = rows[np.isin(f["channel"][rows], wanted)]
        positive = f["positive"][rows] / np.maximum(channels.num[rows], 1)
        out[key] = len(wanted), float(np.maximum(positive, 1 - positive).mean())
    return out


def asymmetry(frames: Frames, channels: Channels) -> tuple[ChannelAsymmetry, ...]:
    """The channels that a shift would help most: far from zero against their site, and off their own centre.

    Listed are channels whose largest |x| exceeds 3 times that of the site's median channel and whose |centre| exceeds half their half
    width; the furthest off, |centre| / median channel, first.
    """
    f, size = channels.frame, channels.size
    if not len(f):
        return ()
    centre, half = (f["max"] + f["min"]) / 2, (f["max"] - f["min"]) / 2
    median = f.quantiles(size, (0.5,))[0][f.group]
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.where(
            (size >= WIDE_RATIO * median) & (np.abs(centre) > ASYMMETRY * half), np.abs(centre) / median, -1.0
        )
    off = np.where(np.isfinite(off) & (half > 0), off, -1.0)
    rows = np.argsort(-off, kind="stable")[:MOST_ASYMMETRIC]
    return tuple(
        ChannelAsymmetry(
            layer=f.sites[f.group[r]].layer,
            site=f.sites[f.group[r]].part,
            expert=f.sites[f.group[r]].expert,
            channel=int(f["channel"][r]),
            min=float(f["min"][r]),
            max=float(f["max"][r]),
            centre=float(centre[r]),
            half_width=float(half[r]),
            asymmetry=float(abs(centre[r]) / half[r]),
        )
        for r in rows.tolist()
        if off[r] > 0
    )


def _number(x: Any) -> float:
    return float(x) if x is not None and np.isfinite(x) else 0.0
