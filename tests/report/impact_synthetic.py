"""Made-up runs with the tables of costs and taming: a decoder whose outliers ruin 8 bits, an encoder, nothing at all, and hostile words."""

from __future__ import annotations

import copy
import math

from skerry.run.impact_tables import IMPACT_TABLES
from skerry.run.pruning_tables import PRUNING_TABLES
from skerry.run.tables import from_rows
from skerry.run.tame_tables import TAME_TABLES

LAYERS = 12
READ = ("attn.in", "attn.mix", "mlp.in", "mlp.down.in")
NAMES = (*IMPACT_TABLES, *PRUNING_TABLES, *TAME_TABLES)


def empty():
    return {name: [] for name in NAMES}


def scheme_row(scheme, change, half, *, outcome="loss", clean=3.2, **more):
    row = {"scheme": scheme, "outcome": outcome, "value": clean + change, "change": change, "ci_low": change - half, "ci_high": change + half, "num_samples": 64}  # fmt: skip
    if outcome == "loss":
        row |= {
            "perplexity": math.exp(clean + change),
            "kl": abs(change) * 0.9,
            "top1": math.exp(-3 * abs(change) - 0.01),
        }
    else:
        row |= {"cosine": 1 - min(0.9, change / 3), "neighbours": math.exp(-change)}
    return {**row, **more}


def method_row(method, scheme, change, half, *, seconds=None, chosen=False, note=None, **more):
    return scheme_row(
        scheme, change, half, method=method, seed=0, seconds=seconds, chosen=chosen, note=note, **more
    )


def site_row(
    layer,
    site,
    change,
    half,
    *,
    channels=None,
    tokens=None,
    levels=0.3,
    scheme="w8a8-tensor",
    outcome="loss",
    **more,
):
    is_weight = site.startswith("w.")
    return {
        "layer": layer, "site": site, "map": "q_proj, k_proj" if site == "attn.in" else "down_proj", "scheme": scheme, "low": -4.0, "high": 60.0 if not is_weight else 4.0,
        "central_levels": levels, "num_levels": 256, "snr_db": 22.0, "outcome": outcome, "change": change, "ci_low": change - half, "ci_high": change + half,
        "change_without_channels": None if channels is None else change * (1 - channels), "share_channels": channels, "num_channels": 6,
        "channels_from": "findings", "change_without_tokens": None if tokens is None else change * (1 - tokens), "share_tokens": tokens, "num_tokens": 64,
        "num_samples": 32, **more,
    }  # fmt: skip


def sites(outcome="loss"):
    rows = []
    for n in range(LAYERS):
        rows.append(site_row(n, "mlp.down.in", 0.9 if n == 1 else 0.004 * (n + 1), 0.02 if n == 1 else 0.002, channels=0.97 if n == 1 else 0.5, tokens=0.93 if n == 1 else None, levels=0.02 if n == 1 else 0.25, outcome=outcome))  # fmt: skip
        rows.append(site_row(n, "attn.in", 0.05 / (n + 1), 0.004, channels=0.8, levels=0.1, outcome=outcome))
        rows.append(site_row(n, "mlp.in", 0.03 / (n + 1), 0.004, channels=0.7, levels=0.14, outcome=outcome))
        rows.append(site_row(n, "attn.mix", -0.0001, 0.001, levels=0.45, outcome=outcome))
        rows.append(site_row(n, "w.down", 0.0003, 0.0004, levels=0.5, tokens=None, outcome=outcome))
    return rows


def clipping(outcome="loss"):
    rows = []
    for place, top in (("inputs", 6.0), ("residual", 2.5)):
        for q, share in ((0.9, 0.1), (0.99, 0.01), (0.999, 1e-3), (0.9999, 1e-4), (0.99999, 1e-5)):
            change = top * share**0.25
            base = {"site": place, "quantile": q, "threshold": 2.0 / (1 - q) ** 0.2, "share_clipped": share, "outcome": outcome, "num_samples": 32}  # fmt: skip
            rows.append({**base, "control": False, "draw": None, "change": change, "ci_low": change * 0.95, "ci_high": change * 1.05})  # fmt: skip
            rows += [{**base, "control": True, "draw": n, "change": 0.6 * share**0.6 * (1 + 0.3 * n), "ci_low": 0.0, "ci_high": 1.0} for n in range(3)]  # fmt: skip
    return rows


def pruning(outcome="loss"):
    cost, conflict = [], []
    methods = (("magnitude", "map", 3.0), ("magnitude-global", "model", 4.1), ("wanda", "row", 0.9), ("owl", "row", 0.7), ("sparsegpt", "columns", 0.5), ("random", "map", 9.0))  # fmt: skip
    for method, scope, top in methods:
        for s in (0.3, 0.5, 0.7):
            change = top * s**3
            cost.append({"method": method, "scope": scope, "sparsity": s, "reached": s, "outcome": outcome, "value": 3.2 + change, "change": change, "ci_low": change * 0.93, "ci_high": change * 1.07, "num_samples": 32, "note": None})  # fmt: skip
            cost.append({**cost[-1], "outcome": "kl" if outcome == "loss" else "cosine"})
            for n in range(0 if method == "random" else 3):
                kept = {"magnitude": 1.0, "magnitude-global": 0.96}.get(method, 0.9 - 0.1 * s)
                conflict.append({"layer": n, "site": "w.down", "method": method, "sparsity": s, "num_weights": 4096, "num_outlier_weights": 7, "share_outliers_kept": kept, "share_rest_kept": 1 - s, "num_outlier_channels": 1, "share_outlier_channels_kept": 0.99 if "magn" not in method else 1 - s, "share_kept_in_outlier_channels": 0.02, "share_in_band": 0.012, "threshold": 0.1, "threshold_without_outliers": 0.09})  # fmt: skip
    return {"pruning": cost, "pruning_conflict": conflict}


def seam_row(method, layer, kind, site, before, after, **more):
    return {
        "method": method, "seam": f"{layer}.{kind}", "kind": kind.split(".")[0], "layer": layer, "site": site, "threshold": after / 2, "scale_min": 1.0, "scale_max": before / after,
        "num_scaled": 5, "shift_max": before / 3, "range_before": before, "range_after": after, "loss_before": 0.3, "loss_after": 0.02, "candidates": 40, "seconds": 0.2, **more,
    }  # fmt: skip


def taming(outcome="loss", method="os+", layers=LAYERS):
    out = {name: [] for name in TAME_TABLES}
    costs = {
        "w8a8-tensor": (("none", 1.4, 0.05), ("clip", 3.2, 0.1), ("smoothquant", 0.12, 0.01), ("os+published", 0.02, 0.004), ("os+", 0.006, 0.002)),
        "w6a6-tensor": (("none", 3.9, 0.1), ("clip", 4.0, 0.1), ("smoothquant", 0.9, 0.05), ("os+published", 0.2, 0.02), ("os+", 0.05, 0.005)),
        "w4a4-tensor": (("none", 6.1, 0.1), ("clip", 5.9, 0.1), ("smoothquant", 5.0, 0.1), ("os+published", 4.2, 0.1), ("os+", 3.1, 0.1)),
    }  # fmt: skip
    out["methods"] = [method_row("none", "float", 0.0, 0.0, outcome=outcome)]
    out["methods"] += [method_row(method, "float", 1e-7, 1e-7, outcome=outcome, seconds=3.1)]
    for scheme, rows in costs.items():
        for name, change, half in rows:
            chosen = name == method and scheme == "w8a8-tensor"
            out["methods"].append(method_row(name, scheme, change, half, outcome=outcome, seconds=None if name == "none" else 3.1, chosen=chosen))  # fmt: skip
    out["methods"].append({"method": "rotation", "scheme": "w8a8-tensor", "seed": 0, "chosen": False, "note": "the head is tied to the embedding"})  # fmt: skip
    for n in range(layers):
        out["seam_changes"] += [
            seam_row(method, n, "norm.attn", "attn.in", 30.0 + 10 * n, 5.0 + 0.2 * n),
            seam_row(method, n, "norm.mlp", "mlp.in", 22.0 + 3 * n, 6.0),
        ]
        out["seam_changes"].append({"method": method, "seam": f"{n}.up-down", "kind": "up", "layer": n, "site": "mlp.down.in", "skipped": "the activation between is no ReLU, and no gate multiplies it"})  # fmt: skip
    for j in range(48):
        centre = {0: -77.0, 1: 24.0, 2: -30.0}.get(j, 0.02 * (j - 24))
        half = {0: 19.0, 1: 18.0, 2: 6.0}.get(j, 1.0 + 0.03 * j)
        low, high = centre - half, centre + half
        out["channel_ranges"].append({"method": method, "seam": f"{layers - 1}.norm.attn", "site": "attn.in", "layer": layers - 1, "channel": 7 * j, "low_before": low, "high_before": high, "low_after": -min(half, 2.6), "high_after": min(half, 2.6)})  # fmt: skip
    out["equivalence"] = [
        {"method": method, "check": "float64", "error": 3.1e-15, "bound": 1e-10, "dtype": "float64", "num_tokens": 128},
        {"method": method, "check": "stored", "error": 4.4e-7, "bound": 2e-6, "dtype": "float32", "num_tokens": 128},
    ]  # fmt: skip
    out["overhead"] = [{"method": method, "seconds_before": 0.101, "seconds_after": 0.102, "parameters_before": 10**6, "parameters_after": 10**6 + 96, "operations_added": 0}]  # fmt: skip
    out["parts"] = [
        {"scheme": "w6a6-tensor", "step": i, "part": part, "outcome": outcome, "loss": 3.2 + v, "change": -0.4 * i, "ci_low": -0.4 * i - 0.05, "ci_high": -0.4 * i + 0.05}
        for i, (part, v) in enumerate((("scale", 0.9), ("shift", 0.5), ("threshold search", 0.1)))
    ]  # fmt: skip
    return out


def decoder():
    grid = [scheme_row("original", 0.0, 0.0)]
    grid += [scheme_row(s, c, h) for s, c, h in (("w8a8", 0.004, 0.001), ("w8a8-tensor", 1.4, 0.05), ("w6a6", 0.06, 0.004), ("w4a8", 0.5, 0.02), ("w4a4", 4.1, 0.1), ("w4a16-g128", 0.09, 0.005), ("kv8", 0.0002, 0.0004))]  # fmt: skip
    grid.append({"scheme": "kv4", "outcome": "loss", "note": "the cache is not quantized in blocks 0 to 11"})
    return {
        **empty(),
        "quantization_grid": grid,
        "quantization_sites": sites(),
        "clipping": clipping(),
        **pruning(),
        **taming(),
    }


def encoder():
    grid = [
        scheme_row("original", 0.0, 0.0, outcome="distance", clean=0.0),
        scheme_row("w8a8", 0.01, 0.002, outcome="distance", clean=0.0),
    ]
    return {**empty(), "quantization_grid": grid, "quantization_sites": sites("distance"), "clipping": clipping("distance"), **pruning("distance"), **taming("distance", layers=6)}  # fmt: skip


def hostile():
    """Words that attack the reader, in every text column."""
    out = copy.deepcopy(decoder())
    attack = "</svg><script>alert(1)</script>&\"'\u202e\x1b[31m"
    for row in (*out["methods"], *out["seam_changes"], *out["channel_ranges"], *out["equivalence"]):
        row["method"] = attack
    for row in out["methods"]:
        row["note"] = attack
    for row in (*out["seam_changes"], *out["channel_ranges"]):
        row["seam"] = row["site"] = attack
    for row in out["seam_changes"]:
        row["skipped"] = attack if row.get("skipped") else None
    for name in ("quantization_grid", "quantization_sites"):
        for row in out[name]:
            row["scheme"] = attack
    for row in out["quantization_sites"]:
        row["map"] = row["site"] = attack
    for row in out["clipping"]:
        row["site"] = attack
    for row in out["pruning_conflict"]:
        row["method"] = attack
    return out


def bare():
    """Every optional number is null."""
    out = empty()
    out["quantization_grid"] = [{"scheme": "w8a8", "outcome": "loss", "change": 0.1}]
    out["quantization_sites"] = [
        {"layer": 0, "site": "mlp.in", "scheme": "w8a8", "outcome": "loss", "change": 0.1}
    ]
    out["clipping"] = [
        {"site": "inputs", "quantile": 0.9, "control": False, "outcome": "loss", "change": 0.1}
    ]
    out["pruning"] = [{"method": "wanda", "sparsity": 0.5, "outcome": "loss", "change": 0.1}]
    out["pruning_conflict"] = [{"layer": 0, "site": "w.q", "method": "wanda", "sparsity": 0.5}]
    out["methods"] = [{"method": "os+", "scheme": "w8a8", "outcome": "loss", "change": 0.1, "chosen": False}]
    out["seam_changes"] = [
        {"method": "os+", "seam": "0.norm.attn", "kind": "norm", "layer": 0, "site": "attn.in"}
    ]
    out["equivalence"] = [{"method": "os+", "check": "stored", "dtype": "float32"}]
    out["overhead"] = [{"method": "os+"}]
    return out


ALL = {"decoder": decoder, "encoder": encoder, "empty": empty, "hostile": hostile, "bare": bare}


def tables(rows):
    """As Arrow tables with the run's schemas."""
    return {name: from_rows(name, found) for name, found in rows.items()}


def document(method="os+"):
    """What `tame.json` says, without its run."""
    made = taming(method=method)
    return {
        "schema": 1, "run": "skerry-runs/tame-tiny", "model": {"name": "org/tiny", "num_layers": LAYERS}, "scheme": "w8a8-tensor", "asked": method, "chosen": method,
        "why": f"{method} is the only method that was asked for", "reached": None, "methods": made["methods"], "equivalence": made["equivalence"], "seams": made["seam_changes"],
        "needs": [], "notes": ["block 3: the router stays as it is"], "corpus": {"name": "built-in corpus 1"}, "calibration_inputs": 64, "held_out_inputs": 64, "seconds": 9.4,
        "export": {"path": "out/tiny-w8a8", "form": "compressed-tensors", "files": {"model.safetensors": 1000}, "readback_error": 2e-7, "readback_bound": 1e-5, "loaded_as": "transformers", "num_positions": 64, "versions": {}, "config_changes": {}, "notes": []},
    }  # fmt: skip
