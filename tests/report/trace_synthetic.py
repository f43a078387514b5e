"""Made-up traces with the tables of real ones: `llama()` and `minilm()` as the literature and our runs tell them, and degraded ones."""

from __future__ import annotations

import copy

from skerry.run.cause_tables import CAUSE_TABLES
from skerry.run.tables import from_rows

Rows = dict[str, list[dict]]


def empty() -> Rows:
    """A trace that found nothing."""
    return {name: [] for name in CAUSE_TABLES}


def carrier(number, channel, birth, peak_layer, exit_layer, peak, **more):
    return {
        "carrier": number, "kind": "massive activation", "channel": channel, "sign": 1 if peak > 0 else -1,
        "birth_layer": birth, "peak_layer": peak_layer, "exit_layer": exit_layer, "peak": peak, "ratio": abs(peak) / 0.2,
        "threshold": abs(peak) / 3, "num_tokens": 512, "num_samples": 256, "recurrence": 1.0,
        "cancellation": None if exit_layer is None else 0.904, **more,
    }  # fmt: skip


def tokens(number, *places):
    return [
        {"carrier": number, "position": p, "token_id": i, "token": t, "count": int(512 * s), "share": s}
        for p, i, t, s in places
    ]


def life(number, num_layers, value, *, other=0.4):
    """`value(i)` with i from 0 (embedding) to num_layers."""
    rows = []
    for layer in range(num_layers):
        mid = value(layer) + 0.3 * (value(layer + 1) > 0)
        for site, v in (("resid.in", value(layer)), ("resid.mid", mid), ("resid.out", value(layer + 1))):
            rows.append(
                {"carrier": number, "layer": layer, "site": site, "value": v, "low": v - 0.12 * abs(v), "high": v + 0.1 * abs(v),
                 "other": other * (1 + layer / 8), "norm": max(12.0, abs(v) * 1.2), "norm_other": 12.0 + layer}
            )  # fmt: skip
    return rows


def grown(number, event, layer, level, part, index, value, share, *, spread=0.02):
    return {
        "carrier": number, "event": event, "layer": layer, "level": level, "part": part, "index": index, "value": value,
        "share": share, "low": share - spread, "high": share + spread,
    }  # fmt: skip


def factor(number, layer, neuron, name, value, other, **more):
    return {"carrier": number, "event": "birth", "layer": layer, "neuron": neuron, "factor": name, "value": value, "other": other, **more}  # fmt: skip


def unit(number, event, layer, name, index, part, count, share, best):
    return {"carrier": number, "event": event, "layer": layer, "unit": name, "index": index, "part": part, "count": count, "share": share, "best": best}  # fmt: skip


def weight(number, layer, row, column, value, rank, share, cumulative):
    return {"carrier": number, "layer": layer, "row": row, "column": column, "value": value, "rank": rank, "share": share, "cumulative": cumulative}  # fmt: skip


def effect(group, arm, outcome, clean, change, half, **more):
    row = {
        "group": group, "arm": arm, "layer": 1, "site": "resid.out", "control": False, "outcome": outcome, "clean": clean,
        "value": clean + change, "change": change, "low": change - half, "high": change + half, "num_samples": 48, "p_value": 0.048,
    }  # fmt: skip
    return {**row, **more}


def effects(damage="loss", layer=15):
    rows = []
    arms = [
        ("set to zero", 4.213, 0.3),
        ("set to its mean", 0.012, 0.02),
        ("value of another input", 0.021, 0.02),
    ]
    for arm, change, half in arms:
        rows.append(effect("birth", arm, damage, 2.1, change, half))
    rows.append(effect("birth", "set to zero", "sink mass", 0.62, -0.58, 0.02, outcome_layer=layer))
    rows.append(effect("birth", "set to zero", "value norm ratio", 0.08, 0.85, 0.05, outcome_layer=layer))
    rows.append(effect("birth", "set to zero", "outlier", 2390.0, -2380.0, 20.0, outcome_layer=layer))
    for draw in range(8):
        more = {"control": True, "draw": draw, "p_value": None}
        rows.append(
            effect("birth", "a random channel set to zero", damage, 2.1, 0.002 * (draw - 3), 0.004, **more)
        )
        rows.append(effect("birth", "a random channel set to zero", "sink mass", 0.62, 0.001 * draw, 0.002, outcome_layer=layer, **more))  # fmt: skip
        rows.append(effect("super weight", "an equally large weight removed", damage, 2.1, 0.001 * draw, 0.002, **more))  # fmt: skip
    rows.append(effect("super weight", "super weights removed", damage, 2.1, 3.4, 0.25))
    for dose, change in ((0.0, 4.213), (0.25, 1.9), (0.5, 0.31), (1.0, 0.0), (2.0, 0.04)):
        rows.append(effect("dose", f"outlier x {dose:g}", damage, 2.1, change, 0.08 * change, dose=dose))
        rows.append(effect("dose", f"outlier x {dose:g}", "sink mass", 0.62, -0.138 * change, 0.01 * change, dose=dose, outcome_layer=layer))  # fmt: skip
    for arm, a, b in (
        ("only keys", 3.1, -0.57),
        ("only values", 0.4, -0.001),
        ("only the residual", 0.6, -0.03),
    ):
        rows.append(effect("path", arm, damage, 2.1, a, 0.2))
        rows.append(effect("path", arm, "sink mass", 0.62, b, 0.02, outcome_layer=layer))
    return rows


VERDICTS = ("implicit scaling", "fixed bias", "context-aware bias", "mixed", "undecided", "no role")


def roles(layers, heads, damage="loss"):
    arms = [
        ("fixed bias", 0.9, 0.1),
        ("context-aware bias", 0.8, 0.1),
        ("implicit scaling", 0.05, 0.02),
        ("both frozen", 1.1, 0.1),
        ("neither", 1.2, 0.1),
    ]
    rows = [
        {"level": "model", "arm": arm, "outcome": damage, "change": c, "low": c - h, "high": c + h, "control": 0.01,
         "control_low": 0.0, "control_high": 0.02, "num_samples": 48}
        for arm, c, h in arms
    ]  # fmt: skip
    why = "dropping p v costs 0.05 [0.03, 0.07], freezing (1 - p) costs 0.8 [0.7, 0.9]"
    verdicts = [{"level": "model", "verdict": "implicit scaling", "outcome": damage, "strength": 0.68, "low": 0.55, "high": 0.79, "why": why}]  # fmt: skip
    measures = []
    for layer in range(layers):
        for head in range(heads):
            name = VERDICTS[(layer * 3 + head) % len(VERDICTS)]
            strength = None if name in ("undecided", "no role") else 0.2 + 0.1 * (head % 7)
            verdicts.append({"level": "head", "layer": layer, "head": head, "verdict": name, "outcome": damage, "strength": strength, "low": None, "high": None, "why": why})  # fmt: skip
            place = {"layer": layer, "head": head, "num_samples": 48}
            measures += [
                {**place, "measure": "sink mass", "value": 0.3 + 0.02 * head, "low": None, "high": None},
                {**place, "measure": "value norm ratio", "value": 0.1, "low": 0.08, "high": 0.12},
            ]
    for name, value in (
        ("variance share of scale", 0.61),
        ("variance share of bias", 0.07),
        ("update correlation", 0.44),
        ("dormant share", 0.3),
    ):
        measures.append(
            {"measure": name, "value": value, "low": value - 0.05, "high": value + 0.05, "num_samples": 48}
        )
    return {"roles": rows, "role_verdicts": verdicts, "role_measures": measures}


def spread(layers, mass, ratio):
    rows = []
    for layer in range(layers):
        for measure, value, other in (
            ("attention mass", mass(layer), 0.004), ("value norm ratio", ratio(layer), None), ("participation ratio", 2.1, 900.0),
            ("constancy", 0.998, 0.21), ("logit share", 0.93, 0.02), ("reach", 0.01, None),
        ):  # fmt: skip
            rows.append({"layer": layer, "measure": measure, "value": value, "other": other, "low": value * 0.95, "high": value * 1.05, "num_samples": 64})  # fmt: skip
    return rows


def llama() -> Rows:
    """LLaMA-2-7B: neuron 7890 of block 1 writes channels 1415 and 2533; block 30 takes them away."""
    out = empty()
    out["carriers"] = [carrier(0, 2533, 1, 14, 30, 2391.0), carrier(1, 1415, 1, 12, 30, -1421.0)]
    for n in (0, 1):
        out["carrier_tokens"] += tokens(
            n, (0, None, None, 0.5), (None, 1, "<s>", 0.5), (None, 29889, ".", 0.405), (None, 13, "\n", 0.095)
        )

    def shape(top):
        plateau = lambda i: top * (0.96 + 0.04 * min(i, 15) / 15)  # noqa: E731
        return lambda i: 0.3 if i < 2 else plateau(i) if i < 31 else top * 0.1

    out["lifecycle"] = life(0, 32, shape(2391.0)) + life(1, 32, shape(-1421.0))
    for n, channel, top, entry in ((0, 2533, 2295.0, 1.61), (1, 1415, -1364.0, -0.957)):
        out["growth"] += [
            grown(n, "birth", 1, "block", "mlp.out", None, top * 0.984, 0.984),
            grown(n, "birth", 1, "block", "attn.out", None, top * 0.016, 0.016),
            grown(n, "birth", 1, "neuron", "mlp.out", 7890, top * 0.971, 0.971),
            grown(n, "birth", 1, "neuron", "mlp.out", 10411, top * 0.006, 0.006),
            grown(n, "birth", 1, "neuron", "rest", None, top * 0.007, 0.007),
            grown(n, "exit", 30, "block", "mlp.out", None, -top * 0.89, 0.985),
            grown(n, "exit", 30, "block", "attn.out", None, -top * 0.014, 0.015),
            grown(n, "exit", 30, "neuron", "mlp.out", 3721, -top * 0.6, 0.66),
            grown(n, "exit", 30, "neuron", "mlp.out", 7006, -top * 0.25, 0.28),
        ]
        out["factors"] += [
            factor(n, 1, 7890, "norm", 61.2, 58.9),
            factor(n, 1, 7890, "gate", 36.4, 0.41, alignment=0.712, alignment_other=0.021, log_share=None),
            factor(n, 1, 7890, "act(gate)", 36.4, 0.14, log_share=0.545),
            factor(n, 1, 7890, "up", 39.9, 0.39, alignment=0.744, alignment_other=0.018, log_share=0.455),
            factor(n, 1, 7890, "product", 1452.0, 0.061),
            factor(n, 1, 7890, "weight", entry, None),
        ]
        out["growth_weights"].append(weight(n, 1, channel, 7890, entry, 0, 0.971, 0.971))
        out["units"] += [
            unit(n, "birth", 1, "weight", 7890, "mlp.out", 1, 0.971, True),
            unit(n, "birth", 1, "neuron", 7890, "mlp.out", 1, 0.971, False),
            unit(n, "birth", 1, "sublayer", None, "mlp.out", 1, 0.984, False),
            unit(n, "exit", 30, "neuron", 3721, "mlp.out", 2, 0.66, True),
        ]
    mass = lambda i: 0.02 if i < 2 else 0.87 if i < 5 else 0.55 + 0.01 * i if i < 31 else 0.2  # noqa: E731
    out["spread"] = spread(32, mass, lambda i: 0.9 if i < 2 else 0.06 + 0.001 * i)
    out["effects"] = effects()
    return out | roles(32, 32)


def minilm() -> Rows:
    """all-MiniLM-L6-v2: channel 99, in all six layers, at [CLS]; four neurons of block 0 and the norm's gain; no head."""
    out = empty()
    out["carriers"] = [carrier(0, 99, 0, 3, None, -11.6, kind="outlier channel", ratio=41.2, recurrence=0.98)]
    out["carrier_tokens"] = tokens(
        0, (0, None, None, 0.84), (None, 101, "[CLS]", 0.84), (None, 102, "[SEP]", 0.16)
    )
    out["lifecycle"] = life(0, 6, lambda i: -0.9 if i == 0 else -9.0 - 0.9 * min(i, 3))
    out["growth"] = [
        grown(0, "birth", 0, "block", "mlp.out", None, -8.5, 0.935),
        grown(0, "birth", 0, "block", "norm gain", None, -0.2, 0.022),
        grown(0, "birth", 0, "block", "attn.out", None, -0.9, 0.099),
        grown(0, "birth", 0, "block", "norm bias", None, 0.5, -0.055),
    ]
    ids = ((856, 0.41, 0.84), (607, 0.26, -0.52), (1004, 0.15, 0.41), (358, 0.09, 0.39))
    for rank, (neuron, share, value) in enumerate(ids):
        out["growth"].append(grown(0, "birth", 0, "neuron", "mlp.out", neuron, -9.1 * share, share))
        cumulative = sum(s for _, s, _ in ids[: rank + 1])
        out["growth_weights"].append(weight(0, 0, 99, neuron, value, rank, share, cumulative))
    out["factors"] = [
        factor(0, 0, 856, "norm", 21.0, 20.4),
        factor(0, 0, 856, "up", 3.4, 0.61, alignment=0.19, alignment_other=0.05),
        factor(0, 0, 856, "product", 3.39, 0.21),
        factor(0, 0, 856, "weight", 0.84, None),
    ]
    out["units"] = [
        unit(0, "birth", 0, "neuron", 856, "mlp.out", 4, 0.41, False),
        unit(0, "birth", 0, "sublayer", None, "mlp.out", 1, 0.935, True),
    ]
    out["spread"] = spread(6, lambda i: 0.12 + 0.03 * i, lambda i: 0.71)
    out["effects"] = effects("distance", layer=3)
    return out | roles(6, 12, "distance")


def embedding() -> Rows:
    """Born in the embedding, and it stays."""
    out = empty()
    out["carriers"] = [carrier(0, 7, None, 1, None, 41.0)]
    out["carrier_tokens"] = tokens(0, (0, None, None, 1.0), (None, 0, "<bos>", 1.0))
    out["lifecycle"] = life(0, 4, lambda i: 30.0 + i)
    shares = (("w.embed", 0.36), ("w.position", 0.66), ("w.type", -0.02), ("unexplained", -1e-9))
    out["growth"] = [grown(0, "birth", None, "block", part, None, 30.0 * s, s) for part, s in shares]
    return out


def attention() -> Rows:
    """Born in attention, one head; no feed-forward numbers, no sinks."""
    out = empty()
    out["carriers"] = [carrier(0, 12, 2, 3, 5, 88.0)]
    out["carrier_tokens"] = tokens(0, (0, None, None, 1.0), (None, 0, None, 1.0))
    out["lifecycle"] = life(0, 6, lambda i: 0.2 if i < 3 else 88.0 if i < 5 else 9.0)
    out["growth"] = [
        grown(0, "birth", 2, "block", "attn.out", None, 80.0, 0.93),
        grown(0, "birth", 2, "block", "mlp.out", None, 6.0, 0.07),
        grown(0, "birth", 2, "head", "attn.out", 3, 76.0, 0.88),
        grown(0, "birth", 2, "head", "attn.out", 1, 4.0, 0.05),
    ]
    out["units"] = [unit(0, "birth", 2, "head", 3, "attn.out", 1, 0.88, True)]
    return out


def bare() -> Rows:
    """A carrier of which nothing else is known: every optional number is null."""
    out = empty()
    out["carriers"] = [
        {"carrier": 0, "kind": "outlier channel", "channel": 5, "birth_layer": 3, "peak_layer": 4}
    ]
    return out


def hostile() -> Rows:
    """Tokens, arms and reasons that attack the reader."""
    out = copy.deepcopy(llama())
    attack = "</svg><script>alert(1)</script>&\"'\u202e\x1b[31m"
    for r in out["carrier_tokens"]:
        r["token"] = attack
    for r in (*out["effects"], *out["roles"]):
        r["arm"] = attack
    for r in out["role_verdicts"]:
        r["why"] = attack
    for r in out["growth"]:
        r["part"] = attack if r["level"] == "block" else r["part"]
    return out


ALL = {
    "llama": llama, "minilm": minilm, "embedding": embedding, "attention": attention, "bare": bare, "empty": empty, "hostile": hostile,
}  # fmt: skip


def tables(rows: Rows):
    """As Arrow tables with the run's schemas."""
    return {name: from_rows(name, found) for name, found in rows.items()}


def claim(identifier, verdict, effect, low, high, **more):
    return {
        "id": identifier, "section": "2.2", "source": "An et al. 2025 (arXiv 2502.06415), section 3",
        "statement": "Activation outliers are most extreme at the input of the down projection.",
        "measured": "largest value / median of each site, by layer", "rule": "supported when mlp.down.in is first in most layers",
        "verdict": verdict, "why": "mlp.down.in is first in 30 of 32 layers", "effect": effect, "effect_name": "share of layers", "unit": "share",
        "low": low, "high": high, "figure": None, "seconds": 0.21, **more,
    }  # fmt: skip


def claims():
    """One of each verdict, one of each kind of figure."""
    bars = {"kind": "bars", "x": ["attn.in", "mlp.in", "mlp.down.in"], "y": [12.0, 18.5, 96.2], "low": [10, 15, 80], "high": [14, 22, 110],
            "x_title": "site", "y_title": "largest / median", "title": "How extreme each site is"}  # fmt: skip
    lines = {"kind": "lines", "x": [0, 1, 2, 3, 0, 1, 2, 3], "y": [1.0, 40.0, 38.0, 4.0, 1.0, 1.2, 1.3, 1.4],
             "series": ["outlier"] * 4 + ["other"] * 4, "x_title": "layer", "y_title": "|value|", "title": "By layer"}  # fmt: skip
    points = {"kind": "points", "x": [0.1, 0.5, 0.9, 0.3], "y": [2.0, 11.0, 14.0, None], "x_title": "sink mass", "y_title": "logit spread", "title": "Heads"}  # fmt: skip
    return [
        claim("2.2a", "supported", 0.94, 0.86, 0.98, figure=bars),
        claim("3.2a", "refuted", -0.31, -0.42, -0.2, statement="Large weights in the query and key projections start the chain.",
              why="ablating them changes the outlier by 2 %, the feed-forward's by 99 %", figure=lines),
        claim("3.1a", "inconclusive", 0.04, -0.11, 0.2, statement="Sharp attention needs extreme logits.", why="the interval holds 0", figure=points),
        claim("3.3a", "not applicable", None, None, None, statement="Outliers act as a fixed bias.", why="the model has no attention sink"),
    ]  # fmt: skip
