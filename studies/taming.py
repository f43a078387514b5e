"""The table method x bits, over seeds of calibration data, on one model: what the docs quote.

    python studies/taming.py MODEL OUT.json [--text FILE] [--seeds 3] [--schemes w8a8-tensor,...] [--pipelines smoothquant,os+,...]

Every seed draws its own calibration and its own held-out inputs. A row of the printed table is the mean over seeds of the change of the loss
(of an encoder the distance) against the untouched model, with the smallest and the largest seed behind it; the intervals over inputs of each
seed are in OUT.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from skerry.outliers.options import Options
from skerry.outliers.plan import make_plan
from skerry.tame.memory import split
from skerry.tame.study import compare_methods

PIPELINES = "clip,smoothquant,os,awq,os+published,os+,rotation,rotation;os+,os+;gptq"
SCHEMES = "w8a8-tensor,w6a6-tensor,w4a4-tensor"


def one_seed(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """All rows of one seed."""
    count = args.calibration + args.samples
    options = Options(
        samples=count, tokens=args.tokens, seed=seed, attention=False, weights=False, threads=args.threads
    )
    plan = make_plan(args.model if args.model != "-" else None, args.text, options)
    calibration, judging = split(plan.feed, args.calibration)
    found = compare_methods(
        plan.anatomy,
        calibration,
        judging,
        pipelines=[p.replace(";", ",") for p in args.pipelines.split(",")],
        schemes=args.schemes.split(","),
        seed=seed,
        tokenizer=plan.loaded.tokenizer,
        told=lambda row: print(
            seed, row["method"], row.get("scheme"), row.get("change"), row.get("note"), flush=True
        ),
    )
    return found["methods"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: methods by schemes."""
    rows = [r for r in rows if r.get("scheme") not in (None, "float")]
    schemes = list(dict.fromkeys(r["scheme"] for r in rows))
    lines = [f"| method | {' | '.join(schemes)} |", "|---" * (1 + len(schemes)) + "|"]
    for method in dict.fromkeys(r["method"] for r in rows):
        cells = []
        for scheme in schemes:
            found = [r["change"] for r in rows if (r["method"], r["scheme"]) == (method, scheme)]
            known = [x for x in found if x is not None]
            mean = sum(known) / len(known) if known else float("nan")
            cells.append(f"{mean:.4f} [{min(known):.4f}, {max(known):.4f}]" if known else "-")
        lines.append(f"| {'rounding to nearest' if method == 'none' else method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--pipelines", default=PIPELINES)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        rows += one_seed(args, seed)
        Path(args.out).write_text(json.dumps({"arguments": vars(args), "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
