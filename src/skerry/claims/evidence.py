"""What claims read: the summary of a run and its tables, each read when first asked for. No model, no text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from skerry.claims.claim import NotApplicable
from skerry.claims.stages import STAGES, command_of, stage_of
from skerry.outliers.finding import Finding, HeadProfile, SiteProfile, Summary

if TYPE_CHECKING:
    import pyarrow as pa

    from skerry.outliers.frames import Frame
    from skerry.run import Run

Row = dict[str, Any]


class RunTables(Mapping[str, "pa.Table"]):
    """The tables of a run, each read once and when first asked for."""

    def __init__(self, run: Run) -> None:
        self._run, self._read, self._names = run, {}, frozenset(run.table_names)  # type: ignore[var-annotated]

    def __getitem__(self, name: str) -> pa.Table:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            self._read[name] = self._run.table(name)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)


class Evidence:
    """A finished run, as claims read it.

    Args:
        summary: Its answer; None of a run that is not of one model (a study, a series of checkpoints).
        tables: Its tables by name.
        notes: By stage, what could not be measured and why.
    """

    def __init__(
        self,
        summary: Summary | None,
        tables: Mapping[str, pa.Table],
        notes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._summary, self.tables, self.notes = summary, tables, notes or {}
        self._rows: dict[str, list[Row]] = {}
        self._frames: dict[tuple[str, tuple[str, ...]], Frame] = {}

    @classmethod
    def of_run(cls, run: Run) -> Evidence:
        """Everything that a run holds."""
        notes = {
            stage: json.loads(run.text(f"{stage}.json")).get("notes", [])
            for stage in STAGES
            if run.has(f"{stage}.json")
        }
        summary = Summary.model_validate(run.summary_document()) if run.has("summary.json") else None
        return cls(summary, RunTables(run), notes)

    @property
    def summary(self) -> Summary:
        """What the scan of a model found.

        Raises:
            NotApplicable: The run is not of one model.
        """
        if self._summary is None:
            raise NotApplicable(
                "this run is of trainings, not of one model; `skerry claims MODEL` judges a model"
            )
        return self._summary

    def has(self, name: str) -> bool:
        """Whether a table was measured, be it empty."""
        return name in self.tables

    def rows(self, name: str) -> list[Row]:
        """A small table as plain rows.

        Raises:
            NotApplicable: It was not measured, or has no row; the notes of its stage say why.
        """
        if name not in self._rows:
            self._rows[name] = self.tables[name].to_pylist() if self.has(name) else []
        if not self._rows[name]:
            raise NotApplicable(self._missing(name))
        return self._rows[name]

    def frame(self, name: str, by: Sequence[str] = ("layer", "site", "expert")) -> Frame:
        """A large table as columns, rows grouped.

        Raises:
            NotApplicable: As `rows`.
        """
        from skerry.outliers.frames import Frame

        key = name, tuple(by)
        if key not in self._frames:
            if not self.has(name) or not self.tables[name].num_rows:
                raise NotApplicable(self._missing(name))
            self._frames[key] = Frame(self.tables[name], by)
        return self._frames[key]

    def _missing(self, name: str) -> str:
        if not self.has(name):
            return f"needs the table `{name}`, which this run does not have; `{command_of(name)}` measures it"
        said = self.notes.get(stage_of(name) or "", ())
        return f"nothing was measured for `{name}`{': ' + '; '.join(said) if said else ''}"

    # What several claims ask for ----------------------------------------------------------------------------------------

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings of the scan."""
        return self.summary.findings

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return self.summary.model.num_layers

    @cached_property
    def aliases(self) -> dict[tuple[int | None, str], tuple[int | None, str]]:
        """Sites that are the very same tensor as another, and that other, as (layer, part)."""
        from skerry.anatomy.sites import Site

        named = {(s.layer, s.site): s.same_as for s in self.summary.profiles.sites if s.same_as}
        return {key: Site.parse(text)[:2] for key, text in named.items()}

    def tensor(self, layer: int | None, part: str) -> tuple[int | None, str]:
        """The name under which the tensor of a site has its findings."""
        return self.aliases.get((layer, part), (layer, part))

    @cached_property
    def profiles(self) -> list[SiteProfile]:
        """Activation tensors with numbers, each once."""
        return [s for s in self.summary.profiles.sites if s.same_as is None and s.max_to_median > 0]

    def outlier_tensors(self) -> list[SiteProfile]:
        """Activation tensors in which the scan found outliers.

        Raises:
            NotApplicable: There are none.
        """
        found = {(f.layer, f.site, f.expert) for f in self.findings if f.kind == "activation"}
        tensors = [s for s in self.profiles if (s.layer, s.site, s.expert) in found]
        if not tensors:
            raise NotApplicable("the scan found no activation outlier in this model")
        return tensors

    def heads(self) -> tuple[HeadProfile, ...]:
        """All attention heads.

        Raises:
            NotApplicable: The model has no attention, or it was not measured.
        """
        if not self.summary.profiles.heads:
            no = self.summary.model.num_heads is None
            raise NotApplicable("the model has no attention" if no else "attention was not measured")
        return self.summary.profiles.heads

    def sink_heads(self) -> list[HeadProfile]:
        """The heads in which the scan found a position as an attention sink.

        Raises:
            NotApplicable: There is no attention, or no sink in it.
        """
        heads = self.heads()
        found = {(f.layer, f.head) for f in self.findings if f.type == "sink position"}
        sinks = [h for h in heads if (h.layer, h.head) in found]
        if not sinks:
            raise NotApplicable("the scan found no attention sink in this model")
        return sinks
