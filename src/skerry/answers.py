"""What the verbs of the Python face return: a finished run, and the words to ask it with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.outliers.finding import Finding, Profiles, Summary
from skerry.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from skerry.claims import Result
    from skerry.outliers.mask import TokenMask


class Scan:
    """A finished scan: findings, profiles and every number behind them.

    Attributes:
        run: The run directory; `run.table(name)` and `run.sql(query)` give the numbers.
    """

    def __init__(self, run: Run) -> None:
        """Use `skerry.scan` or `skerry.open_run`."""
        self.run = run

    @cached_property
    def summary(self) -> Summary:
        """The whole answer as one object."""
        document = self.run.summary_document()
        return Summary.model_validate(document)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Systematic outliers, strongest first."""
        return self.summary.findings

    @property
    def profiles(self) -> Profiles:
        """By site, layer and head."""
        return self.summary.profiles

    def table(self, name: str) -> pa.Table:
        """A table of the run; columns are documented in docs/runs.md."""
        return self.run.table(name)

    def to_pandas(self) -> pd.DataFrame:
        """The findings, one row each.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            from skerry.errors import MissingExtra

            raise MissingExtra('to_pandas needs pandas: pip install "skerry[pandas]"') from error
        rows = [finding.model_dump() for finding in self.findings]
        return pd.DataFrame(rows, columns=list(Finding.model_fields))

    @cached_property
    def mask(self) -> TokenMask:
        """Which tokens are sinks or massive, and which channels are outliers: learned from this scan."""
        from skerry.outliers.mask import TokenMask

        return TokenMask.learn(self.run.tables(), self.findings)

    def token_mask(self, input_ids: Any) -> Any:
        """Which tokens to leave out of SAE training and steering: attention sinks and carriers of massive activations.

        Args:
            input_ids: Integer tensor `[sample position]`.

        Returns:
            Bool tensor `[sample position]`, True at such tokens.
        """
        return self.mask.mask(input_ids)

    def __repr__(self) -> str:
        layers = {f.layer for f in self.findings if f.layer is not None}
        return f"<{type(self).__name__} of {self.summary.model.name}: {len(self.findings)} findings in {len(layers)} layers; .findings, .to_pandas(), .run>"

    def _repr_html_(self) -> str:
        from skerry.report import notebook

        return notebook(self.summary)


class Trace(Scan):
    """A scan whose outliers were followed through the model."""

    @cached_property
    def document(self) -> dict[str, Any]:
        """The whole trace as plain values: carriers with birth and end, spread, effects, roles."""
        return json.loads(self.run.text("trace.json"))

    @property
    def carriers(self) -> list[dict[str, Any]]:
        """The outliers of the residual stream, each with its growth, its tokens and its curve."""
        return self.document["carriers"]

    @property
    def notes(self) -> list[str]:
        """What could not be measured, and why."""
        return self.document["notes"]

    def __repr__(self) -> str:
        return f"<Trace of {self.summary.model.name}: {len(self.carriers)} outliers of the residual stream; .carriers, .table(name), .run>"


class Impact(Scan):
    """A scan whose model was quantized, clipped and pruned to see what it costs."""

    @cached_property
    def document(self) -> dict[str, Any]:
        """All costs as plain values: the grid of schemes, every site, clipping, pruning."""
        return json.loads(self.run.text("impact.json"))

    @property
    def grid(self) -> list[dict[str, Any]]:
        """The whole model under every scheme; the original first."""
        return self.document.get("quantization_grid", [])

    @property
    def sites(self) -> list[dict[str, Any]]:
        """Every place quantized alone, the most expensive first."""
        rows = self.document.get("quantization_sites", [])
        return sorted(rows, key=lambda r: -(r["change"] or 0.0))

    @property
    def notes(self) -> list[str]:
        """What could not be measured, and why."""
        return self.document["notes"]

    def __repr__(self) -> str:
        return f"<Impact of {self.summary.model.name}: {len(self.grid)} schemes, {len(self.sites)} places priced; .grid, .sites, .table(name), .run>"


class Claims(Scan):
    """Verdicts on published statements about one model.

    Attributes:
        results: One per claim, in the order of their ids.
    """

    def __init__(self, run: Run, results: list[Result]) -> None:
        """Use `skerry.claims`."""
        super().__init__(run)
        self.results = results

    def __repr__(self) -> str:
        name = self.run.record.request.get("model") or self.run.path.name
        return f"<Claims about {name}: {len(self.results)} judged; .results, .run>"


class Audit(Trace):
    """A scan with its report."""

    @cached_property
    def twins(self) -> dict[str, list[dict[str, Any]]]:
        """Tables `twins` and `twin_costs` as plain rows; empty where no twins were asked for."""
        return json.loads(self.run.text("twins.json")) if self.run.has("twins.json") else {}

    @property
    def report(self) -> Path:
        """The report: one HTML file that opens with no network."""
        return self.run.file("report.html")


class Tame:
    """A tamed model and the run that tells of it.

    Attributes:
        run: The run directory; `run.table(name)` gives the numbers.
        model: The changed model in full precision; None when the answer was read from an earlier run.
        simulation: The quantized model: `with tame.simulation.open(tame.anatomy): ...`; None as `model`.
        anatomy: The places of `model`.
    """

    def __init__(self, run: Run, tamed: Any = None) -> None:
        """Use `skerry.tame`."""
        self.run = run
        self.anatomy = None if tamed is None else tamed.anatomy
        self.model = None if tamed is None else tamed.anatomy.model
        self.simulation = None if tamed is None else tamed.simulation

    @cached_property
    def document(self) -> dict[str, Any]:
        """The whole answer as plain values."""
        return json.loads(self.run.text("tame.json"))

    @property
    def report(self) -> Path:
        """The report: one HTML file that opens with no network."""
        return self.run.file("report.html")

    @property
    def methods(self) -> list[dict[str, Any]]:
        """What was tried, and what it costs on held-out text."""
        return self.document["methods"]

    @property
    def notes(self) -> list[str]:
        """What was left alone, and why."""
        return self.document["notes"]

    def table(self, name: str) -> pa.Table:
        """A table of the run: methods, seam_changes, channel_ranges, equivalence."""
        return self.run.table(name)

    def __repr__(self) -> str:
        d = self.document
        return f"<Tame of {d['model']['name']}: {d['chosen']} at {d['scheme']}, {len(d['methods'])} rows; .methods, .model, .document, .run>"


class Watch:
    """A watched series of checkpoints: when outliers were born.

    Attributes:
        run: The run directory; `run.table(name)` and `run.sql(query)` give the numbers.
    """

    def __init__(self, run: Run) -> None:
        """Use `skerry.births` or `skerry.open_run`."""
        self.run = run

    @cached_property
    def document(self) -> dict[str, Any]:
        """The whole answer as plain values."""
        from skerry.redesign.births_document import births_document

        return births_document(self.run)

    @property
    def onsets(self) -> list[dict[str, Any]]:
        """When each kind was born in each training; None where it was not."""
        return self.run.table("birth_onsets").to_pylist()

    @property
    def order(self) -> list[dict[str, Any]]:
        """Which kind comes first, pair by pair, with intervals over trainings."""
        return self.document["order"]

    @property
    def notes(self) -> list[str]:
        """What could not be measured, and why."""
        return self.document["notes"]

    def table(self, name: str) -> pa.Table:
        """A table of the run: births, birth_onsets, birth_order, birth_channels."""
        return self.run.table(name)

    def figures(self, folder: str | Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
        """Draw the pictures as files.

        Args:
            folder: Where to; it is made.
            formats: Of svg and png.
        """
        from skerry.report.births_figures import write_births_figures

        return write_births_figures(self.run, folder, formats)

    def __repr__(self) -> str:
        steps = sum(len(series["steps"]) for series in self.document["series"])
        return f"<Watch of {self.document['model']}: {steps} checkpoints; .onsets, .order, .table(name), .figures(folder)>"
