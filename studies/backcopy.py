"""Sinks and peaks on Bigram-Backcopy by attention and optimiser: the table of docs/backcopy.md, in CPU minutes.

    python studies/backcopy.py OUT [--seeds 3] [--plans "one layer,three layers"] [--steps N]

OUT receives one file per training (finished ones are not trained again), `curves.csv` with every reading, and `table.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from skerry.redesign.backcopy_study import MEASURES, Estimate, Plan, plans, summarize, tabulate
from skerry.redesign.backcopy_train import Arm, Point, Size, flat_rows, grow

SHOWN = tuple(MEASURES)


def one_run(folder: Path, plan: str, arm: Arm, size: Size, seed: int) -> dict[str, Any]:
    """Train, or read what was trained with the same choices."""
    path = folder / f"{plan}-{arm.name}-{seed}.json".replace(" ", "-").replace(",", "")
    asked = json.loads(json.dumps({"plan": plan, "arm": asdict(arm), "size": asdict(size), "seed": seed}))
    if path.exists() and (kept := json.loads(path.read_text()))["asked"] == asked:
        return kept

    def told(point: Point) -> None:
        risk = point.reading.excess
        print(
            f"{plan}, {arm.name}, seed {seed}, step {point.step}: excess {risk.backcopy:.3f} {risk.bigram:.3f}",
            flush=True,
        )

    start = time.process_time()
    points = grow(arm, size, seed=seed, told=told).points
    run = {
        "asked": asked,
        "cpu_seconds": time.process_time() - start,
        "begin": summarize(points[:1]),
        "end": summarize(points),
        "rows": flat_rows(arm, size, seed, points),
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(run))
    part.replace(path)
    return run


def cell(number: Estimate, change: Estimate | None) -> str:
    """`mean [low, high]`, with a star where the difference from the baseline has an interval without zero."""
    star = "*" if change is not None and (change.low > 0 or change.high < 0) else ""
    if math.isnan(number.low):
        return f"{number.mean:.3g}{star}"
    return f"{number.mean:.3g} [{number.low:.3g}, {number.high:.3g}]{star}"


def table(plan: str, settings: Plan, runs: list[dict[str, Any]]) -> str:
    """Markdown of one plan."""
    flat = [{"arm": r["asked"]["arm"]["name"], "seed": r["asked"]["seed"], **r["end"]} for r in runs]
    size = settings.size
    cpu = sum(r["cpu_seconds"] for r in runs)
    begin = sum(r["begin"]["peak"] for r in runs) / len(runs)
    lines = [
        f"### {plan}: width {size.width}, length {size.length}, {size.samples} sequences a step, {size.steps} steps",
        "",
        f"{len(runs)} trainings, {cpu:.0f} s of CPU; before training the peak is {begin:.2f}.",
        "",
        f"| arm | seeds | {' | '.join(SHOWN)} |",
        "|---" * (len(SHOWN) + 2) + "|",
    ]
    for row in tabulate(flat, settings.arms[0].name):
        cells = [cell(row[name], row["change"].get(name)) for name in SHOWN]
        lines.append(f"| {row['arm']} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plans", default=",".join(plans()))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: plans()[name] for name in args.plans.split(",")}
    if args.steps:
        chosen = {n: p._replace(size=replace(p.size, steps=args.steps)) for n, p in chosen.items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in range(args.seeds):  # seed by seed, so that a stopped study has whole seeds
        for name, plan in chosen.items():
            runs[name] += [one_run(args.out, name, arm, plan.size, seed) for arm in plan.arms]
    text = "\n\n".join(table(name, plan, runs[name]) for name, plan in chosen.items())
    (args.out / "table.md").write_text(text + "\n")
    rows = [{"plan": name, **row} for name, found in runs.items() for run in found for row in run["rows"]]
    with (args.out / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(text)


if __name__ == "__main__":
    main()
