"""Made-up runs in which the truth of a statement is known: only what a claim reads is there."""

from __future__ import annotations

from skerry.claims import Evidence, run_claims
from skerry.outliers import finding as fd
from skerry.run.tables import HIGH_RATIOS, from_rows

LAYERS, WIDTH, HEADS = 8, 64, 8
READ = ("attn.in", "attn.mix", "mlp.in", "mlp.down.in")


def card(**more):
    return fd.ModelCard(
        **{
            "name": "made-up", "architecture": "MadeUp", "family": "made-up", "confidence": "declared", "num_layers": LAYERS, "hidden_size": WIDTH,
            "num_heads": HEADS, "num_parameters": 1, "dtype": "float32", "device": "cpu", "num_samples": 40, "num_tokens": 4000,
            "tokens_per_sample": 100, "bos": "", "corpus": "", **more,
        }
    )  # fmt: skip


def evidence(tables=None, *, findings=(), sites=(), heads=(), alignment=(), notes=None, **model):
    profiles = fd.Profiles(sites=tuple(sites), heads=tuple(heads), alignment=tuple(alignment))
    summary = fd.Summary(run="", model=card(**model), findings=tuple(findings), profiles=profiles)
    return Evidence(summary, {name: from_rows(name, rows) for name, rows in (tables or {}).items()}, notes)


def verdict(identifier, world):
    """The verdict and all the rest on one claim; what holds for every result is checked on the way."""
    (result,) = run_claims(world, [identifier])
    assert result.id == identifier and result.why and result.seconds >= 0
    if result.low is not None and result.effect is not None:
        assert result.low - 1e-9 <= result.effect <= result.high + 1e-9
    if result.figure is not None:
        columns = [c for c in (result.figure.low, result.figure.high, result.figure.series) if c is not None]
        assert all(len(c) == len(result.figure.x) == len(result.figure.y) for c in columns)
    return result


def site(layer, part, ratio, **more):
    """A tensor whose largest |x| is `ratio` medians."""
    shape = {"kurtosis": 3.0, "kurtosis_channels": 1.0, "num_outlier_channels": 0, "num_channels": WIDTH, "range_share_top1": 0.0,
             "range_share_top1pct": 0.1, "gini": 0.1, "channels_for_99": 60, "shift_gain": 1.1, "asymmetric_channels": 0,
             "mean_abs_skewness": 0.0, "sign_consistency": None}  # fmt: skip
    return fd.SiteProfile(
        **{
            "layer": layer, "site": part, "abs_max": ratio, "median": 1.0, "max_to_median": ratio, **shape,
            **more,
        }
    )  # fmt: skip


def outlier(layer, part, channel=0, kind="activation", type="outlier channel", **more):
    return fd.Finding(
        **{"kind": kind, "type": type, "site": part, "layer": layer, "channel": channel, "value": 10.0, "ratio": 50.0, "score": 9.0, **more}
    )  # fmt: skip


def sink(layer, head, position=0, **more):
    return outlier(
        layer,
        "attn.probs",
        None,
        "attention",
        "sink position",
        **{"head": head, "position": position, **more},
    )


def head(layer, number, **more):
    return fd.HeadProfile(
        **{
            "layer": layer, "head": number, "sink_position": 0, "sink_mass": 0.5, "sink_rate": 1.0, "uniform_mass": 0.05, "entropy": 2.0,
            "relative_entropy": 0.5, "logit_max": 5.0, "logit_range": 10.0, "sink_logit_mass": 0.0, "value_norm_ratio": 0.1, **more,
        }
    )  # fmt: skip


def channels(layer, part, high, num_samples=40):
    """Rows of `channels` of which channel j is high in `high[j]` inputs."""
    counts = [{f"high_{r}": int(n) for r in HIGH_RATIOS} for n in high]
    return [
        {"layer": layer, "site": part, "channel": j, "num_samples": num_samples, **c}
        for j, c in enumerate(counts)
    ]


def effect(group, arm, outcome, change, *, half=0.01, clean=1.0, **more):
    row = {
        "group": group, "arm": arm, "layer": 1, "site": "resid.out", "control": False, "outcome": outcome, "clean": clean, "value": clean + change,
        "change": change, "low": change - half, "high": change + half, "num_samples": 40,
    }  # fmt: skip
    return {**row, **more}


def carrier(number=0, channel=7, *, exit_layer=7, cancellation=0.9, **more):
    row = {
        "carrier": number, "kind": "massive activation", "channel": channel, "sign": 1, "birth_layer": 1, "peak_layer": 3, "exit_layer": exit_layer,
        "peak": 100.0, "ratio": 500.0, "threshold": 50.0, "num_tokens": 40, "num_samples": 40, "recurrence": 1.0,
        "cancellation": None if exit_layer is None else cancellation,
    }  # fmt: skip
    return {**row, **more}


def grown(number, event, part, share, *, half=0.02, level="block", layer=7):
    return {
        "carrier": number, "event": event, "layer": layer, "level": level, "part": part, "value": 100 * share, "share": share,
        "low": share - half, "high": share + half,
    }  # fmt: skip
