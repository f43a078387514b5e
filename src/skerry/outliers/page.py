"""The documentation of runs and of the JSON document, written from the schemas that the program itself uses."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from skerry.outliers.cost_diff import CostDiff, CostMoved, CostName
from skerry.outliers.diff import Change, Diff, Moved
from skerry.outliers.finding import (
    Alignment,
    ChannelAsymmetry,
    Finding,
    HeadProfile,
    LayerProfile,
    ModelCard,
    Profiles,
    SiteProfile,
    Summary,
)
from skerry.run.schema import FileRecord, RunRecord, StageRecord
from skerry.run.tables import TABLES

_BEGIN = """# Runs

A run is a directory. Everything that skerry shows is read from it; nothing in it is ever replaced but the small pointer.

```
run.json                        the pointer: what was asked, by which versions, which files answer it
tables/NAME-KEY.parquet         what was measured; KEY begins the SHA-256 of the content
summary-KEY.json                the answer: findings and profiles
report-KEY.html                 the report
partial/STAGE-KEY.safetensors   a stage half done; gone when it is finished
log.txt                         what happened, line by line
lock                            held by the process that writes
```

- Every result is written under a temporary name, flushed to the disk and renamed; then `run.json` is replaced atomically. A reader beside a
  running scan never sees half a file, and a process killed at any point leaves a run that the same command goes on with. What a stage has is
  kept every 20 seconds and on Ctrl-C.
- A finished stage is not repeated. Another model, text or option is another run: the default folder under `./skerry-runs` holds a key of the
  request, and a folder given with `--out` is refused when it holds something else. `--preset` asks the same numbers again.
- Every file is checked against its key when it is read; a damaged one is refused by name.
- Two runs with the same seed on the same machine agree bit for bit, given the same number of threads and the same kernels (both are recorded
  under `choices`: the first small scan of a machine may read with the plain path, later ones with compiled kernels; they agree to rounding).

```python
import skerry

run = skerry.open_run("skerry-runs/...").run
run.table("channels")                                             # pyarrow
run.sql("select * from channels order by max desc limit 5")       # DuckDB
```

`skerry diff A B` compares two runs. A finding is the same in both when kind, type, site, layer and place are; it has changed when its value
moves by more than a quarter or its recurrence by more than 0.1. Where both runs hold costs or taming, it tells which losses moved so far that
their 95 % intervals do not overlap, and which schemes, sites, methods and seams only one of them has.

## run.json
"""


_DIFF = (Diff, Change, Moved, CostDiff, CostMoved, CostName)
_DIFF_BEGIN = [
    "",
    "# The difference of two runs",
    "",
    "`skerry diff A B --json` writes one document: the key `schema` is 1, the others are those of Diff. Two runs of `skerry tame`, which hold no scan,",
    "are compared by `costs` alone.",
]


def _fields(model: type[BaseModel]) -> str:
    rows = [f"| `{name}` | {field.description or ''} |" for name, field in model.model_fields.items()]
    return "\n".join(["| field | meaning |", "|---|---|", *rows])


def runs_page() -> str:
    """docs/runs.md."""
    parts = [
        _BEGIN,
        _fields(RunRecord),
        "",
        "A stage:",
        "",
        _fields(StageRecord),
        "",
        "A file:",
        "",
        _fields(FileRecord),
    ]
    parts += [
        "",
        "## Tables",
        "",
        "`NaN` is a statistic that has no value (nothing was measured), null a column that does not apply.",
    ]
    for name, columns in TABLES.items():
        rows = [
            f"| `{column}` | {c.type} | {c.meaning.replace('|', chr(92) + '|')} |"
            for column, c in columns.items()
        ]
        parts += ["", f"### {name}", "", "| column | type | meaning |", "|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def json_page() -> str:
    """docs/json.md."""
    parts = [
        "# The JSON document",
        "",
        "`skerry audit --json` and `skerry scan --json` write exactly one document to stdout and nothing else; `skerry show RUN --json` writes it",
        "again. Absent fields are null, numbers that have no value are null. The schema for machines is [audit.schema.json](audit.schema.json).",
        "",
        "The key `schema` is 1. The other keys:",
        "",
        _fields(Summary).replace(
            "| `schema_version` | Version of this document; the JSON key is `schema`. |\n", ""
        ),
    ]
    models = (
        Finding,
        ModelCard,
        Profiles,
        SiteProfile,
        LayerProfile,
        HeadProfile,
        ChannelAsymmetry,
        Alignment,
    )
    for model in (*models, *_DIFF):
        if model is Diff:
            parts += _DIFF_BEGIN
        parts += ["", f"## {model.__name__}", "", (model.__doc__ or "").splitlines()[0], "", _fields(model)]
    return "\n".join(parts) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of the document."""
    schema = Summary.model_json_schema(mode="serialization")
    schema["properties"] = {"schema": schema["properties"].pop("schema_version"), **schema["properties"]}
    schema["required"] = ["schema", *(name for name in schema["required"] if name != "schema_version")]
    schema["properties"]["schema"].pop("default", None)
    return _nullable(schema)


def _nullable(schema: Any) -> Any:
    """A number that has no value is null in JSON."""
    if isinstance(schema, dict):
        found = {key: _nullable(value) for key, value in schema.items()}
        return {**found, "type": ["number", "null"]} if found.get("type") == "number" else found
    return [_nullable(value) for value in schema] if isinstance(schema, list) else schema


def json_schema_page() -> str:
    """docs/audit.schema.json."""
    return json.dumps(json_schema(), indent=1) + "\n"
