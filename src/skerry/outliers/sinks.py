"""Attention sinks: positions and tokens that draw attention whatever the query.

    alpha_k = mean over inputs of received_k / exposure_k        alpha0_k under uniform attention (uniform.py)

Sink position, ours: alpha_k > 0.3 in at least half of the inputs, more often than chance at q = 0.01 among the head's positions, and
mean alpha_k >= 3 alpha0_k. The last part is why a short causal input makes no sinks: with 8 tokens the first key gets 0.34 of uniform
attention. Positions that fewer than 8 queries see are passed over.

Sink token, ours: a token id, not bound to one position, that on average at least half a head treats as a sink wherever it occurs, and
that receives at least 3 times the share of an average key of the layer. It is tested over inputs, as if every head were a chance.

A token that stands at a sink position in every input and nowhere else names the position's finding and makes none of its own.
Limit: uniform attention has alpha = alpha0, ratio 1, and no sink.
"""

from __future__ import annotations

import numpy as np

from skerry.outliers.fdr import RECURRENCE, Q, benjamini_hochberg, recurrence_p
from skerry.outliers.finding import Finding
from skerry.outliers.frames import Frame, Frames
from skerry.outliers.keys import Keys, bound_tokens
from skerry.outliers.presets import limit, listed
from skerry.outliers.robust import Standing

RATIO = 3.0
MIN_SAMPLES = 3


def position_rules(frames: Frames, keys: Keys) -> dict[str, np.ndarray]:
    """Preset to bool [row of `keys`]."""
    f = keys.frame
    lift = f["alpha"] >= RATIO * keys.uniform
    an = _an(keys)
    return {
        "skerry": keys.eligible & (keys.recurrence >= RECURRENCE) & (keys.q <= Q) & lift,
        "sink-gu": keys.eligible & (f["alpha"] > limit("sink-gu", "alpha")),
        "an": an,
        "sink-an": an,
    }


def _an(keys: Keys) -> np.ndarray:
    """Positions whose received attention, mean over heads, reaches 0.1 T; said of the layer's head that gives most."""
    f = keys.frame
    out = np.zeros(len(f), bool)
    heads: dict[int, list[np.ndarray]] = {}
    for (layer, _), rows in f.groups():
        heads.setdefault(layer, []).append(rows)
    for members in heads.values():
        rows = np.concatenate(members)
        position = f["position"][rows]
        size = int(position.max()) + 1
        mean = np.bincount(position, keys.received[rows], size) / np.maximum(
            np.bincount(position, minlength=size), 1
        )
        length = keys.num[members[0]].sum() / max(1, keys.num[members[0]].max())
        for p in np.flatnonzero(mean >= limit("sink-an", "received") * length):
            at = rows[position == p]
            out[at[np.argmax(keys.received[at])]] = True
    return out


def sink_positions(frames: Frames, keys: Keys, chosen: str) -> list[Finding]:
    """Findings of type `sink position`.

    Args:
        frames: The tables.
        keys: What was tested.
        chosen: Preset whose findings are listed.
    """
    f, rules = keys.frame, position_rules(frames, keys)
    rows: list[int] = np.flatnonzero(np.any(list(rules.values()), axis=0)).tolist() if len(f) else []
    tokens, names = frames("key_tokens", ("layer",)), bound_tokens(frames, keys) if len(rows) else {}
    out = []
    for r in rows:
        presets = tuple(name for name, mask in rules.items() if mask[r])
        if not listed(presets, chosen):
            continue
        layer, head = f.keys[f.group[r]]
        token = names.get((layer, int(f["position"][r])))
        alpha, uniform = float(f["alpha"][r]), float(keys.uniform[r])
        out.append(
            Finding(
                kind="attention",
                type="sink position",
                site="attn.probs",
                layer=layer,
                head=head,
                position=int(f["position"][r]),
                token=None if token is None else tokens.text("token", np.array([token]))[0],
                token_id=None if token is None else int(tokens["token_id"][token]),
                value=alpha,
                ratio=alpha / uniform if uniform > 0 else 0.0,
                score=float(keys.score[r]),
                recurrence=float(keys.recurrence[r]),
                p_value=None if np.isnan(keys.p[r]) else float(keys.p[r]),
                q_value=None if np.isnan(keys.q[r]) else float(keys.q[r]),
                presets=presets,
            )
        )
    return out


def sink_tokens(frames: Frames, keys: Keys, chosen: str) -> list[Finding]:
    """Findings of type `sink token`.

    Args:
        frames: The tables.
        keys: The positions, whose tokens are not named twice.
        chosen: Preset whose findings are listed.
    """
    f = frames("key_tokens", ("layer",))
    if not listed(("skerry",), chosen) or not len(f):
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        share = f["received"] / f["exposure"]
        usual = (f.sum(f["received"]) / f.sum(f["exposure"]))[f.group]
        ratio = share / usual
    num_heads = _num_heads(keys, f)[f.group]
    recurrence = np.minimum(1.0, np.nan_to_num(f["sink_heads"]) * num_heads)
    pooled = (f.sum(recurrence * f["count"]) / np.maximum(f.sum(f["count"]), 1))[f.group]
    num = f["num_samples"]
    p = recurrence_p(np.floor(recurrence * num + 1e-9), num, pooled)
    p[num < MIN_SAMPLES] = np.nan
    q, score = benjamini_hochberg(p), Standing(f, ratio).score
    taken = set(bound_tokens(frames, keys).values())
    found = np.flatnonzero((q <= Q) & (recurrence >= RECURRENCE) & (ratio >= RATIO))
    return [
        Finding(
            kind="attention",
            type="sink token",
            site="attn.probs",
            layer=f.keys[f.group[r]][0],
            token=f.text("token", np.array([r]))[0],
            token_id=int(f["token_id"][r]),
            value=float(share[r]),
            ratio=float(ratio[r]),
            score=float(score[r]) if np.isfinite(score[r]) else 0.0,
            recurrence=float(recurrence[r]),
            p_value=float(p[r]),
            q_value=float(q[r]),
            presets=("skerry",),
        )
        for r in found.tolist()
        if r not in taken
    ]


def _num_heads(keys: Keys, f: Frame) -> np.ndarray:
    layers = [layer for layer, _ in keys.frame.keys]
    return np.array([max(1, layers.count(layer)) for (layer,) in f.keys], np.float64)


def small_sink_values(keys: Keys, sinks: list[Finding], chosen: str) -> list[Finding]:
    """Findings of type `small sink value`: sinks whose value vector is shorter than a fifth of the others (Fesser et al.).

    Grouped heads share a value vector; the head that gives most is named. Rows of the heads' own norms say where they do.

    Args:
        keys: The positions.
        sinks: Sink positions, by our own rule.
        chosen: Preset whose findings are listed.
    """
    if not listed(("skerry", "fesser"), chosen):
        return []
    f, best = keys.frame, dict[tuple[object, ...], Finding]()
    for sink in sorted(sinks, key=lambda s: -s.value):
        group = f.index[sink.layer, sink.head]
        rows = f.rows(group)
        row = int(rows[f["position"][rows] == sink.position][0])
        ratio = keys.value_ratio(row)
        if ratio is None or ratio >= limit("fesser", "ratio"):
            continue
        norm = float(f["value_norm"][row])
        key = sink.layer, sink.position, norm
        if key not in best:
            best[key] = Finding(
                kind="attention",
                type="small sink value",
                site="attn.v",
                layer=sink.layer,
                head=sink.head,
                position=sink.position,
                token=sink.token,
                token_id=sink.token_id,
                value=norm,
                ratio=ratio,
                score=-float(np.log(max(ratio, 1e-12))) / np.log(5.0),
                recurrence=sink.recurrence,
                presets=("skerry", "fesser"),
            )
    return list(best.values())
