"""7.2a  A model without outliers loses no function.

The review calls this an open question. Read on a study whose arms were put through the functional battery (`skerry study attention --battery`). Of
every variant with at most half of softmax's peak, of every score in which softmax itself is better than chance, and per seed:

    g = sign (score - softmax's) / |softmax's - chance|        sign: +1 where higher is better, -1 where lower is

so -0.1 is a tenth of what softmax can do, lost. The unit of the interval is the score (mean over seeds): scores differ more than seeds do.

    mean    mean of g over scores and variants                 above -0.1
    worst   no score is lost: its mean over seeds              above -1/2

Supported needs both, the first with its whole 95 % interval; refuted when the mean lies wholly below -0.1. Scores without a chance level are left out.
"""

from __future__ import annotations

from collections import defaultdict

from skerry.claims.claim import Claim, Figure, Judged, NotApplicable, Verdict, all_of
from skerry.claims.evidence import Evidence, Row
from skerry.claims.statistics import decide, mean_over
from skerry.claims.studies import BASELINE, HALF, Study
from skerry.claims.words import counted, number, span

LOST, GONE = -0.1, -0.5


def judge(evidence: Evidence) -> Judged:
    """See the module."""
    study = Study(evidence)
    labels = [x for x in study.labels if x != BASELINE and study.versus(x, "max_to_median").value <= HALF]
    if not labels:
        raise NotApplicable(
            "no variant of the study is without outliers: none has half of softmax's peak or less"
        )
    rows = [r for r in evidence.rows("study_battery") if r["size"] == study.size]
    gains = _gains(rows, labels)
    if not gains:
        raise NotApplicable(
            "softmax is at chance in every score of the battery: there is no function that could be lost"
        )
    means = {key: sum(values) / len(values) for key, values in gains.items()}
    mean = mean_over(list(means.values()))
    (label, name), worst = min(means.items(), key=lambda item: item[1])
    lost: Verdict = "supported" if worst > GONE else "inconclusive"
    why = (
        f"{counted(len(labels), 'variant')} without outliers ({', '.join(labels)}), {counted(len({n for _, n in means}), 'score')} that softmax is better than chance in, "
        f"{counted(study.num_seeds, 'seed')}: on average {span(mean)} of softmax's distance from chance is gained; least in {name} of {label}, {number(worst)}."
    )
    return Judged(all_of([decide(mean, LOST), lost]), why, mean, _figure(means))


def _gains(rows: list[Row], labels: list[str]) -> dict[tuple[str, str], list[float]]:
    """Per variant and score, g of every seed."""
    base = {(r["seed"], r["task"], r["measure"]): r for r in rows if r["label"] == BASELINE}
    gains: dict[tuple[str, str], list[float]] = defaultdict(list)
    for r in rows:
        b = base.get((r["seed"], r["task"], r["measure"]))
        if r["label"] not in labels or b is None or not _beats_chance(b) or r["value"] is None:
            continue
        sign = 1.0 if r["better"] == "higher" else -1.0
        distance = abs(b["value"] - b["chance"])
        gains[r["label"], f"{r['task']} {r['measure']}"].append(sign * (r["value"] - b["value"]) / distance)
    return gains


def _beats_chance(r: Row) -> bool:
    if r["chance"] is None or r["low"] is None or r["high"] is None:
        return False
    return r["low"] > r["chance"] if r["better"] == "higher" else r["high"] < r["chance"]


def _figure(means: dict[tuple[str, str], float]) -> Figure:
    return Figure(
        kind="bar",
        x=tuple(name for _, name in means),
        y=tuple(means.values()),
        series=tuple(label for label, _ in means),
        title="What a model without outliers can do beside softmax",
        x_title="score",
        y_title="gain / softmax's distance from chance",
    )


CLAIM = Claim(
    id="7.2a",
    section="7.2",
    source="the review, section 7.2 (open question); An et al. 2025 (arXiv 2502.06415)",
    statement="A model that never grew outliers loses no function.",
    measured="In a study with the functional battery: every score in which softmax beats chance, of every variant with at most half of softmax's peak; difference "
    "to softmax of the same seed over softmax's distance from chance.",
    rule="The mean over scores lies above -0.1 with its whole 95 % interval, and no score loses half. Supported when both hold, refuted when the mean lies wholly below "
    "-0.1, else inconclusive.",
    effect_name="gain / softmax's distance from chance",
    unit="share",
    needs=("study_arms", "study_quantities", "study_battery"),
    judge=judge,
)
