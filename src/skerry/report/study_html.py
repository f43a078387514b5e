"""The page of a study: one HTML file with tables, pictures and how it was measured. All text is escaped; nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from . import formatting as f
from .page import flatten
from .study_charts import study_figures
from .study_functions import CAPTION, functions_table
from .study_words import COLUMNS, MEANINGS, cell, compressed_names, headline, lookup, versus
from .trace_sections import template

if TYPE_CHECKING:
    from skerry.run import Run

_BESIDE = [
    ("loss", "Loss"),
    ("loss_over_run", "Loss, mean of the whole run"),
    ("steps_to_baseline", "Steps to the baseline’s final loss"),
    ("max_to_median", "Max/median"),
    ("kurtosis", "Kurtosis"),
    ("first_share", "Sink"),
    ("down_in_max", "Down-projection input"),
    ("tokens_per_second", "Speed"),
    ("parameters", "Parameters"),
]
_LAYERS = (
    "max_to_median",
    "kurtosis",
    "first_share",
    "value_drain",
    "sink_rate",
    "down_in_max",
    "weight_ratio",
)


def write_study_report(run: Run) -> Path:
    """Write `report.html` into the folder of a study, unless one of all that it holds now is there.

    Args:
        run: The run of the study.
    """
    import skerry

    document = json.loads(run.text("study.json"))
    stage = run.record.stages["study"]
    files = sorted((name, file.sha256) for name, file in stage.files.items())
    key = hashlib.sha256(repr((skerry.__version__, files)).encode()).hexdigest()[:16]
    if not run.finished("report", key):
        start = time.perf_counter()
        page = study_html(document, facts=run.record.facts)
        with run.writing():
            run.finish("report", key, texts={"report.html": page}, seconds=time.perf_counter() - start)
    return run.file("report.html")


def study_html(document: Mapping[str, Any], *, facts: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        document: Of the study.
        facts: What the run knows of how it was made.
    """
    from .html import page_parts
    from .tame_sections import command_line

    light, dark = study_figures(document), study_figures(document, dark=True)
    sections = [_section(document, size, light, dark) for size in document["sizes"]]
    lines = [line for size in document["sizes"] for line in headline(document, size)]
    return str(
        template("study.html.j2").render(
            **page_parts("page.js"),
            title=f"Study of {document['study']}",
            headline=" ".join(lines[:2]),
            sections=sections,
            command=f.tidy(command_line(facts.get("command"))),
            run=f.tidy(str(document["run"])),
            notes=[f.tidy(n) for n in document["notes"]],
            facts=flatten(facts),
        )
    )


def _section(
    document: Mapping[str, Any], size: str, light: Mapping[str, str], dark: Mapping[str, str]
) -> dict[str, Any]:
    labels = document["labels"]
    base = document["baseline"]
    compressed = compressed_names(document, size)
    functions_head, functions = functions_table(document, size)
    return {
        "size": size,
        "words": headline(document, size),
        "head": ["Variant", *(name for _, name in COLUMNS)],
        "rows": [
            [f.tidy(x), *(_with_interval(lookup(document, x, size, q)) for q, _ in COLUMNS)] for x in labels
        ],
        "caption": "; ".join(f"{name}: {what}" for name, what in MEANINGS.items())
        + ". In brackets 95 % intervals.",
        "beside_head": ["Variant", *(name for _, name in _BESIDE)],
        "beside": [
            [f.tidy(x), *(versus(lookup(document, x, size, q)) for q, _ in _BESIDE)]
            for x in labels
            if x != base
        ],
        "beside_caption": f"Beside {f.tidy(base)} with the same seeds and windows: differences, or ratios with ×, and 95 % intervals (of the speed: the smallest and largest round).",
        "charts": [(Markup(light[k]), Markup(dark[k])) for k in light if k.rpartition("-")[0] == size],
        "compressed_head": ["Variant", *compressed],
        "compressed": [
            [f.tidy(x), *(_with_interval(lookup(document, x, size, f"change {n}")) for n in compressed)]
            for x in labels
        ]
        if compressed
        else [],
        "functions_head": functions_head,
        "functions": functions,
        "functions_caption": CAPTION,
        "layers_head": ["Variant", "Seed", "Block", *_LAYERS],
        "layers": [
            [f.tidy(r["label"]), str(r["seed"]), str(r["layer"]), *(f.number(r.get(n)) for n in _LAYERS)]
            for r in document["layers"]
            if r["size"] == size
        ],
        **_curve(document, size),
    }


def _with_interval(row: Mapping[str, Any] | None) -> str:
    told = cell(row)
    if row is None or row["value"] is None or row["ci_low"] is None:
        return told
    low, high = (cell({**row, "value": row[k]}) for k in ("ci_low", "ci_high"))
    return f"{told} [{low}, {high}]"


def _curve(document: Mapping[str, Any], size: str) -> dict[str, Any]:
    rows = [r for r in document["curve"] if r["size"] == size]
    steps = sorted({r["step"] for r in rows})
    labels = [x for x in document["labels"] if any(r["label"] == x for r in rows)]
    found: dict[tuple[str, int], list[float]] = {}
    for r in rows:
        found.setdefault((r["label"], r["step"]), []).append(r["loss"])
    body = [
        [f"{s:,}", *(f"{statistics.fmean(found[x, s]):.3f}" if (x, s) in found else "–" for x in labels)]
        for s in steps
    ]
    return {"curve_head": ["Step", *map(f.tidy, labels)], "curve": body}
