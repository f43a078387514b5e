"""docs/claims.md, written from the claims themselves."""

from __future__ import annotations

import re

from skerry.claims.claim import Result
from skerry.claims.register import all_claims

_BEGIN = """# Claims: is the literature right about this model?

`skerry claims MODEL` runs one test per published statement about outliers. What is measured and when a statement counts as supported or refuted
was fixed before any model was looked at; both stand with every verdict. A statement that fails on a model is shown as prominently as one
that holds.

```
skerry claims path/or/hub-id                # measures what is needed, judges, writes the report
skerry claims path/or/hub-id --only '3.*'   # ids or patterns; measures only what they need
skerry claims skerry-runs/...               # judges a run that is there, with what it holds
skerry claims --list                        # all claims; measures nothing
skerry claims path/or/hub-id --json
```

```python
import skerry

for result in skerry.claims(model).results:
    print(result.id, result.verdict, result.why)
```

## Verdicts

| verdict | meaning |
|---|---|
| supported | the whole 95 % interval lies on the side of the statement |
| refuted | the whole interval lies on the other side |
| inconclusive | the interval reaches both sides, or there are too few units for one |
| not applicable | the statement has no meaning for this model (no attention, no outlier, ...), or was not measured; `why` says which |

A statement of several parts is supported when all hold and refuted when one fails. A verdict is about one model and the text that was read,
not about the statement in general. Numbers of claims are the sections of the review that they are from.

Intervals: over heads, layers or tensors below 20 units Student's, from there on a percentile bootstrap; fewer than 3 units have none. Shares have
Clopper-Pearson intervals. Effects of interventions have a percentile bootstrap over inputs. Units are not quite independent (one residual
channel shows in many tensors), so an interval over tensors or layers says how they spread and not more. Claims are not corrected for their number:
of 20 true nulls one would be decided wrongly.
"""

_ADD = """
## Adding a claim

One file in `src/skerry/claims/`, its name `c`, the id and a word: `c4_1a_range.py`. It has a `CLAIM`; nothing else lists it. `judge` is a pure
function of what a run holds and never loads a model. `needs` names the tables that it reads
([runs.md](runs.md) describes them); a run without them gives "not applicable" by itself, and `--only` measures just the stages that make them.

```python
\"\"\"9.1a  Medians are small.\"\"\"

from skerry.claims.claim import Claim, Judged, NotApplicable
from skerry.claims.statistics import decide, mean_over
from skerry.claims.words import span


def judge(evidence):
    medians = [row["median"] for row in evidence.rows("sites") if row["median"] is not None]
    if not medians:
        raise NotApplicable("no tensor has a median")
    effect = mean_over(medians)
    return Judged(decide(effect, 1.0), f"The median of |x| is {span(effect)}.", effect)


CLAIM = Claim(
    id="9.1a",
    section="9.1",
    source="(arXiv 0000.00000)",
    statement="Medians are larger than one.",
    measured="Median of |x| of every tensor, mean over tensors.",
    rule="Supported when the whole 95 % interval lies above 1, refuted when it lies below, else inconclusive.",
    effect_name="median of |x|",
    unit="units of the activation",
    needs=("sites",),
    judge=judge,
)
```

Its test plants the truth both ways in `tests/claims/`: a made-up run where the statement holds, one where it fails, and one to which it does not apply.
"""


def claims_page() -> str:
    """docs/claims.md."""
    claims = all_claims()
    rows = [f"| [{c.id}](#{_anchor(c.id)}) | {_cell(c.statement)} |" for c in claims]
    told = [
        f"### {c.id}\n\n{c.statement}\n\n- **Source:** {c.source}\n- **Measured:** {c.measured}\n- **Rule:** {c.rule}\n"
        f"- **Effect:** {c.effect_name} ({c.unit})\n- **Needs:** {', '.join(f'`{t}`' for t in c.needs)}\n"
        for c in claims
    ]
    fields = [
        f"| `{name}` | {_cell(field.description or '')} |" for name, field in Result.model_fields.items()
    ]
    parts = [
        _BEGIN,
        "## The claims\n",
        "| id | statement |\n|---|---|",
        *rows,
        "",
        *told,
        "## A result\n",
        "`--json` prints `{schema, run, verdicts, claims}`, `claims` a list of these:\n",
        "| field | meaning |\n|---|---|",
        *fields,
        _ADD,
    ]
    return "\n".join(parts)


def _anchor(identifier: str) -> str:
    return re.sub(r"[^a-z0-9-]", "", identifier)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
