"""Published statements about attention sinks and outliers, tried again at small scale, with verdicts by rules fixed before anything was run.

    python studies/published_facts.py OUT [--seeds 3] [--size auto|a|b|c|d|smoke] [--processes 1] [--labels LABEL ...]

The size is the cheapest of four at which softmax has outliers: each is tried in turn with a seed that no arm uses, until peak >= 30 and
sink >= 0.15 (both as below); without any the last is taken, and every verdict is inconclusive. All are trained on the built-in corpus,
vocabulary 1,024, behind a beginning-of-sequence token, in steps of 16 windows, AdamW at 3e-3, weight decay 0.3 (at 0.01 the
smallest grew too little in 800 steps, peak 27 and sink 0.10; at 0.3 in 1,200 steps 45 and 0.148: decay and steps were chosen on softmax
alone, with the seed of the trials), warm-up of 100 steps, then cosine to a tenth.

    a  3 blocks of 128, 4 heads, windows of 128, 1,600 steps      c  4 blocks of 192, 6 heads, windows of 64,  1,200 steps
    b  3 blocks of 192, 6 heads, windows of 64,  1,200 steps      d  4 blocks of 192, 6 heads, windows of 128, 1,500 steps

OUT is the folder of a study: it goes on where it was stopped, and writes `facts.json` and `facts.md` after every arm. When all are finished OUT/run is
the run of a study: `skerry claims OUT/run` judges on it what the claims say about trainings.

Measured on 64 held-out windows, each number one per seed:

    peak    largest |x| / median |x| of the stream behind a block, worst block
    sink    share of its attention that the strongest head gives the first token
    loss    nats per token

Let r = peak / peak of softmax with the same seed (mean of logarithms, Student's 95 % interval over seeds), d = sink - sink of softmax likewise.
A precondition comes first: softmax itself must have grown outliers, peak >= 30 and sink >= 0.15 on average. Where it has not, every fact is
inconclusive.

    keeps   the variant keeps outliers   r >= 1/2, and the interval of r lies above 1/4
    loses   the variant loses outliers   r <= 1/2, and the interval of r lies below 1

    An et al. 2025 (2502.06415)        (b) value-bias, (c) context-bias keep; (d) kv-bias, (e) scaled, (f) sigmoid-length lose. One row each.
    Gu et al. 2025 (2410.10781)        a sink without value is enough: sink-logit and key-bias have d with an interval below 0 and less than half of
                                       softmax's sink. One row each.
    Gu et al. 2025                     weight decay: the sink first rises and then falls over 0, 0.5, 2, 5: a decay between has more than 0 (paired
                                       interval above 0), and 5 has less than that decay (interval below 0). Else the order found is told.
    Bondarenko et al. 2023 (2306.12929) clipped softmax is weak on causal models: it does not lose outliers, or its loss is worse (paired interval
                                       of the difference above 0).
    Park et al. 2025 (2506.19697)      Muon removes peaks but not sinks: r of Muon (softmax) loses as above, and its sink is at least half of AdamW's.

A verdict is `reproduced` when the rule holds, `not reproduced` when the interval lies on the other side, else `inconclusive`. With three seeds
Student's factor is 4.3, so only large effects can be told; and these are decoders a hundred times smaller than the smallest published ones: what is
not reproduced here is not refuted there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from skerry.redesign.recipe import Recipe
from skerry.redesign.study import DOCUMENT, summarise
from skerry.redesign.study_arm import folder_of
from skerry.redesign.study_measure import headline
from skerry.redesign.study_plan import Measured, Plan, make_arms
from skerry.redesign.study_statistics import crossed, over_seeds
from skerry.run import Run

BASE = Recipe(batch=16, learning_rate=3e-3, warmup=100, weight_decay=0.3, vocabulary=1024, compile=True)
SIZES: dict[str, dict[str, Any]] = {
    "a": {"layers": 3, "width": 128, "heads": 4, "context": 128, "steps": 1600},
    "b": {"layers": 3, "width": 192, "heads": 6, "context": 64, "steps": 1200},
    "c": {"layers": 4, "width": 192, "heads": 6, "context": 64, "steps": 1200},
    "d": {"layers": 4, "width": 192, "heads": 6, "context": 128, "steps": 1500},
    "smoke": {
        "layers": 1,
        "width": 32,
        "heads": 2,
        "vocabulary": 300,
        "context": 32,
        "steps": 12,
        "warmup": 4,
        "batch": 4,
    },
}
AUTO, TRIAL_SEED = "auto", 1000
MEASURED = Measured(
    windows=64, calibration=16, points=8, schemes=("w8a8-tensor", "w4a4-tensor"), battery=True
)
SOFTMAX = "softmax"
LABELS: dict[str, dict[str, Any]] = {
    SOFTMAX: {},
    "scaled": {"attention": "scaled"},
    "sink-logit": {"attention": "sink-logit"},
    "context-bias": {"attention": "context-bias"},
    "kv-bias": {"attention": "kv-bias"},
    "muon": {"optimiser": "muon"},
    "value-bias": {"attention": "value-bias"},
    "sigmoid-length": {"attention": "sigmoid-length"},
    "key-bias": {"attention": "key-bias"},
    "clipped-softmax": {"attention": "clipped-softmax"},
    "decay 0": {"weight_decay": 0.0},
    "decay 5": {"weight_decay": 5.0},
    "decay 0.5": {"weight_decay": 0.5},
    "decay 2": {"weight_decay": 2.0},
}
"""The most telling first, so that a study stopped early says most."""
PEAK, SINK = 30.0, 0.15


class Facts:
    """Numbers by label and seed, and what the rules make of them."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        good = [r for r in results if "loss" in r]
        self.heads = {(r["label"], r["seed"]): headline(r["layers"]) for r in good}
        self.losses = {(r["label"], r["seed"]): r["loss"] for r in good}
        self.notes = [f"{r['label']} seed {r['seed']}: {r['note']}" for r in results if r.get("note")]

    def seeds(self, *labels: str) -> list[int]:
        """Those that all labels have."""
        sets = [{s for label, s in self.heads if label == wanted} for wanted in labels]
        return sorted(set.intersection(*sets))

    def values(self, label: str, name: str) -> list[float]:
        return [self.heads[label, s][name] for s in self.seeds(label)]

    def ratio(self, label: str, name: str = "max_to_median", base: str = SOFTMAX) -> Any:
        """Paired ratio, interval on the logarithm."""
        pairs = [(self.heads[label, s][name], self.heads[base, s][name]) for s in self.seeds(label, base)]
        return over_seeds([a / b for a, b in pairs], logarithmic=True)

    def difference(self, label: str, name: str = "first_share", base: str = SOFTMAX) -> Any:
        """Paired difference."""
        return over_seeds(
            [self.heads[label, s][name] - self.heads[base, s][name] for s in self.seeds(label, base)]
        )

    def loss(self, label: str, base: str = SOFTMAX) -> Any:
        """Paired difference over windows and seeds."""
        import numpy as np

        pairs = [(self.losses[label, s], self.losses[base, s]) for s in self.seeds(label, base)]
        return crossed(np.array([np.subtract(a, b) for a, b in pairs])) if pairs else over_seeds([])


def judge(holds: bool, against: bool) -> str:
    return "reproduced" if holds else "not reproduced" if against else "inconclusive"


def keeps(r: Any) -> str:
    return judge(r.value >= 0.5 and r.low > 0.25, r.high < 0.5)


def loses(r: Any) -> str:
    return judge(r.value <= 0.5 and r.high < 1, r.low > 0.5)


def told(x: Any, digits: int = 2) -> str:
    if not math.isfinite(x.value):
        return "-"
    if not math.isfinite(x.low):
        return f"{x.value:.{digits}f}"
    return f"{x.value:.{digits}f} [{x.low:.{digits}f}, {x.high:.{digits}f}]"


def verdicts(facts: Facts) -> list[dict[str, Any]]:
    """One row per statement, in the order of the docstring."""
    rows: list[dict[str, Any]] = []

    def add(fact: str, needs: list[str], decide: Any) -> None:
        seeds = facts.seeds(*needs, SOFTMAX)
        if len(seeds) < 2:
            rows.append(
                {
                    "fact": fact,
                    "verdict": "inconclusive",
                    "figures": f"{len(seeds)} seeds; at least 2 are needed",
                }
            )
            return
        verdict, figures = decide()
        rows.append(
            {
                "fact": fact,
                "verdict": verdict if grown(facts) else "inconclusive",
                "figures": figures,
                "seeds": len(seeds),
            }
        )

    def outliers(label: str, rule: Any) -> Any:
        def decide() -> tuple[str, str]:
            r = facts.ratio(label)
            return rule(r), f"peak ratio {told(r)}, sink difference {told(facts.difference(label))}"

        return decide

    for letter, label, rule in (
        ("b", "value-bias", keeps), ("c", "context-bias", keeps), ("d", "kv-bias", loses), ("e", "scaled", loses), ("f", "sigmoid-length", loses),
    ):  # fmt: skip
        word = "keeps" if rule is keeps else "loses"
        add(f"({letter}) {label} {word} outliers (An et al.)", [label], outliers(label, rule))
    for label in ("sink-logit", "key-bias"):

        def sink(label: str = label) -> tuple[str, str]:
            d = facts.difference(label)
            own, base = (over_seeds(facts.values(x, "first_share")).value for x in (label, SOFTMAX))
            return (
                judge(d.high < 0 and own < base / 2, d.low > -base / 2),
                f"sink {own:.3f} beside {base:.3f}, difference {told(d, 3)}, peak ratio {told(facts.ratio(label))}",
            )

        add(f"{label}: a sink without value is enough (Gu et al.)", [label], sink)
    add(
        "the sink rises and falls with weight decay 0, 0.5, 2, 5 (Gu et al.)",
        ["decay 0", "decay 0.5", "decay 2", "decay 5"],
        lambda: decay(facts),
    )

    def clipped() -> tuple[str, str]:
        r, worse = facts.ratio("clipped-softmax"), facts.loss("clipped-softmax")
        lost, costs = loses(r) == "reproduced", worse.low > 0
        return judge(
            costs or keeps(r) == "reproduced", lost and worse.high <= 0
        ), f"peak ratio {told(r)}, loss difference {told(worse, 3)}"

    add("clipped softmax is weak on causal models (Bondarenko et al.)", ["clipped-softmax"], clipped)

    def muon() -> tuple[str, str]:
        r = facts.ratio("muon")
        own, base = (over_seeds(facts.values(x, "first_share")).value for x in ("muon", SOFTMAX))
        stays = own >= base / 2
        return judge(
            loses(r) == "reproduced" and stays, loses(r) == "not reproduced" or not stays
        ), f"peak ratio {told(r)}, sink {own:.3f} beside {base:.3f}"

    add("Muon removes peaks and keeps sinks (Park et al.)", ["muon"], muon)
    return rows


def decay(facts: Facts) -> tuple[str, str]:
    names = ["decay 0", "decay 0.5", "decay 2", "decay 5"]
    means = {n: over_seeds(facts.values(n, "first_share")).value for n in names}
    top = max(names[1:3], key=means.__getitem__)
    up, down = facts.difference(top, base="decay 0"), facts.difference("decay 5", base=top)
    figures = ", ".join(f"{n.removeprefix('decay ')}: {means[n]:.3f}" for n in names)
    return judge(
        up.low > 0 and down.high < 0, up.high < 0 or down.low > 0
    ), f"{figures}; {top} - decay 0: {told(up, 3)}, decay 5 - {top}: {told(down, 3)}"


def grown(facts: Facts) -> bool:
    """Whether softmax has outliers at all."""
    peaks, sinks = (over_seeds(facts.values(SOFTMAX, name)) for name in ("max_to_median", "first_share"))
    return peaks.value >= PEAK and sinks.value >= SINK


def arms_table(facts: Facts) -> list[list[str]]:
    rows = []
    for label in dict.fromkeys(label for label, _ in facts.heads):
        peak = over_seeds(facts.values(label, "max_to_median"), logarithmic=True)
        sink, drain = (over_seeds(facts.values(label, name)) for name in ("first_share", "value_drain"))
        mean = over_seeds(
            [sum(facts.losses[label, s]) / len(facts.losses[label, s]) for s in facts.seeds(label)]
        )
        rows.append(
            [label, str(len(facts.seeds(label))), told(mean, 3), told(peak, 1), told(sink), told(drain)]
        )
    return rows


def markdown(facts: Facts) -> str:
    head = ["", "seeds", "loss", "peak", "sink", "value of the first token / others"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in arms_table(facts)]
    lines += ["", "| statement | verdict | figures |", "|---|---|---|"]
    lines += [f"| {r['fact']} | {r['verdict']} | {r['figures']} |" for r in verdicts(facts)]
    if facts.heads and not grown(facts):
        lines += [
            "",
            f"Softmax has no outliers at this size (peak below {PEAK:g} or sink below {SINK:g}): nothing can be told.",
        ]
    return "\n".join([*lines, *(["", *facts.notes] if facts.notes else [])])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--size", choices=[AUTO, *SIZES], default=AUTO)
    ask.add_argument("--processes", type=int, default=1)
    ask.add_argument("--labels", nargs="+", choices=list(LABELS), default=list(LABELS))
    given = ask.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    size = choose_size(given.out) if given.size == AUTO else given.size
    labels = {name: LABELS[name] for name in LABELS if name in given.labels}
    arms_of(given.out, size, labels, range(given.seeds), given.processes)


def choose_size(out: Path) -> str:
    """The cheapest size at which softmax has outliers."""
    for size in ("a", "b", "c", "d"):
        (found,) = run_arms(out, size, {SOFTMAX: {}}, [TRIAL_SEED], processes=1)
        head = headline(found["layers"]) if "layers" in found else {}
        peak, sink = head.get("max_to_median", 0.0), head.get("first_share", 0.0)
        print(f"size {size}: softmax has peak {peak:.1f} and sink {sink:.3f}", flush=True)
        if peak >= PEAK and sink >= SINK:
            break
    return size


def run_arms(
    out: Path, size: str, labels: dict[str, Any], seeds: Any, *, processes: int, told: Any = None
) -> list[dict[str, Any]]:
    """Results of these arms, those that are missing made first; seed by seed, so that a study stopped early has whole rows."""
    from skerry.redesign.study_arm import ask, result_of
    from skerry.redesign.study_engine import run_local
    from skerry.redesign.study_text import prepare_text

    arms = make_arms(labels, base=BASE, sizes={size: SIZES[size]}, seeds=list(seeds))
    plan = Plan("published facts", size, SOFTMAX, arms, MEASURED)
    text = prepare_text(arms[0].recipe, out)
    folders = [ask(out, plan, arm, text=text, device="cpu", threads=1) for arm in arms]

    def finished() -> list[dict[str, Any]]:
        return [r for r in map(result_of, folders) if r is not None]

    def tell(folder: Path) -> None:
        print(f"finished {folder.name}", flush=True)
        if told is not None:
            told(finished())

    run_local(folders, processes=processes, threads=1, told=tell)
    return finished()


def arms_of(out: Path, size: str, labels: dict[str, Any], seeds: Any, processes: int) -> None:
    """The study itself."""

    def write(results: list[dict[str, Any]]) -> str:
        facts = Facts(results)
        words = f"Size {size}: {SIZES[size]}\n\n{markdown(facts)}\n"
        (out / "facts.md").write_text(words)
        found = {"size": size, "arms": arms_table(facts), "verdicts": verdicts(facts)}
        (out / "facts.json").write_text(json.dumps(found, indent=1))
        return words

    print(write(run_arms(out, size, labels, seeds, processes=processes, told=write)), flush=True)
    arms = make_arms(labels, base=BASE, sizes={size: SIZES[size]}, seeds=list(seeds))
    write_run(out, Plan("published facts", size, SOFTMAX, arms, MEASURED))


def write_run(out: Path, plan: Plan) -> None:
    """The finished arms as the run of a study, in OUT/run."""
    folders = [folder_of(out, plan, arm) for arm in plan.arms]
    document, tables = summarise(plan, folders, [], place=out)
    with Run.begin(out / "run", plan.request(), {"command": sys.argv}) as run:
        run.finish(
            "study", plan.whole_key(), tables=tables, texts={DOCUMENT: json.dumps(document, allow_nan=False)}
        )


if __name__ == "__main__":
    main()
