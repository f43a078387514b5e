"""From the tables of a run to its answer: what stands out, profiles, warnings. Pure functions of the tables; no model is loaded."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from skerry.outliers.alignment import alignment
from skerry.outliers.channels import Channels, outlier_channels
from skerry.outliers.finding import Finding, Profiles
from skerry.outliers.frames import Frames, Tables
from skerry.outliers.head_profiles import head_profiles, layer_profiles
from skerry.outliers.keys import Keys
from skerry.outliers.lines import Lines, outlier_lines
from skerry.outliers.logits import extreme_logits
from skerry.outliers.massive import massive_activations
from skerry.outliers.presets import DEFAULT, check_preset
from skerry.outliers.sinks import sink_positions, sink_tokens, small_sink_values
from skerry.outliers.site_profiles import asymmetry, site_profiles
from skerry.outliers.super_weights import super_weights

DETECTORS_VERSION = 2
"""Grows whenever the same tables may give other findings, so that stored answers are not taken for today's."""
FEW_SAMPLES = 4


class Found(NamedTuple):
    """What a run's tables say.

    Attributes:
        findings: Strongest first.
        profiles: By site, layer and head.
        warnings: What the reader must know about them.
    """

    findings: tuple[Finding, ...]
    profiles: Profiles
    warnings: tuple[str, ...]


def find(tables: Tables, preset: str = DEFAULT) -> Found:
    """Findings and profiles of a run.

    Args:
        tables: Name to table, with the schemas of `run.tables`; what was not measured may be absent.
        preset: Whose rule decides what is listed; `all` lists what meets any.

    Raises:
        UnknownPreset: There is none of that name.
    """
    check_preset(preset)
    frames = Frames(tables)
    channels, lines, keys = Channels(frames), Lines(frames), Keys(frames)
    ours = outlier_channels(channels, DEFAULT)
    sinks = sink_positions(frames, keys, DEFAULT)
    findings = [
        *(ours if preset == DEFAULT else outlier_channels(channels, preset)),
        *massive_activations(frames, channels, preset),
        *outlier_lines(lines, preset),
        *super_weights(frames, lines, preset),
        *(sinks if preset == DEFAULT else sink_positions(frames, keys, preset)),
        *sink_tokens(frames, keys, preset),
        *small_sink_values(keys, sinks, preset),
        *extreme_logits(frames, preset),
    ]
    findings.sort(key=strength)
    sites, heads = site_profiles(frames, channels, ours), head_profiles(frames, keys)
    profiles = Profiles(
        sites=sites,
        layers=layer_profiles(frames, keys, sites, heads, findings),
        heads=heads,
        asymmetry=asymmetry(frames, channels),
        alignment=alignment(frames, findings),
    )
    return Found(tuple(findings), profiles, _warnings(frames))


def strength(finding: Finding) -> tuple[object, ...]:
    """Sort key: the three kinds in the order of the taxonomy, in each the largest ratio first; ties by place."""
    kind = ("activation", "weight", "attention").index(finding.kind)
    small = finding.type == "small sink value"
    ratio = finding.ratio if math.isfinite(finding.ratio) else 0.0
    place = (finding.layer if finding.layer is not None else -1, finding.site, finding.expert or 0)
    index = tuple(
        -1 if i is None else i
        for i in (finding.channel, finding.row, finding.column, finding.head, finding.position)
    )
    return kind, small, -ratio, *place, *index


def _warnings(frames: Frames) -> tuple[str, ...]:
    out = []
    num = max((row["num_samples"] for row in frames.own.values()), default=0)
    if 0 < num < FEW_SAMPLES:
        plural = "" if num == 1 else "s"
        out.append(
            f"only {num} independent input{plural}: recurrence cannot be told from chance; read at least {FEW_SAMPLES}, better 32"
        )
    bad = [
        (key, row["num_nan"], row["num_inf"])
        for key, row in frames.own.items()
        if row["num_nan"] or row["num_inf"]
    ]
    matrices = frames("matrices")
    wrong = np.flatnonzero((matrices["num_nan"] > 0) | (matrices["num_inf"] > 0))
    bad += [
        (matrices.keys[matrices.group[r]], int(matrices["num_nan"][r]), int(matrices["num_inf"][r]))
        for r in wrong.tolist()
    ]
    out += [_nonfinite(frames, *item) for item in bad[:20]]
    if len(bad) > 20:
        out.append(
            f"{len(bad) - 20} more sites hold values that are not finite; the table `nonfinite` lists them"
        )
    return tuple(out)


def _nonfinite(frames: Frames, key: tuple[int | None, str, int | None], nan: int, inf: int) -> str:
    layer, part, expert = key
    place = (
        part
        + ("" if layer is None else f" of layer {layer}")
        + ("" if expert is None else f", expert {expert}")
    )
    counts = [f"{n:,} {word}" for n, word in ((nan, "NaN"), (inf, "infinite")) if n > 0]
    plural = "" if nan + inf == 1 else "s"
    weight = part.startswith(("w.", "norm."))
    f = frames("nonfinite_weights" if weight else "nonfinite")
    rows = f.rows(f.index[key]) if key in f.index else np.zeros(0, np.int64)
    where = ""
    if len(rows):
        first = int(rows[0])
        names = ("row", "column") if weight else ("position", "channel")
        where = f", first at {names[0]} {int(f['position'][first])}, {names[1]} {int(f['channel'][first])}"
        if not weight:
            where += f" of input {int(f['sample'][first])}"
    return f"{place} holds {' and '.join(counts)} value{plural}{where}; left out of all statistics"
