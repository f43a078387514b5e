"""The Python face: the same verbs, options and numbers as the command line."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.outliers.finding import Finding, Profiles, Summary
from skerry.outliers.options import DEFAULT_FOLDER, Options
from skerry.run import Progress, Run
from skerry.run.repeat import asked_key, find_repeat

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from torch import nn

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


class Audit(Scan):
    """A scan with its report."""

    @property
    def report(self) -> Path:
        """The report: one HTML file that opens with no network."""
        return self.run.file("report.html")


def scan(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    samples: int | None = None,
    tokens: int | None = None,
    sites: Iterable[str] | None = None,
    preset: str = "skerry",
    dtype: Any = None,
    device: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    batch_size: int | None = None,
    bos: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    attention: bool = True,
    weights: bool = True,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Scan:
    """Find the systematic outliers of a model.

    Args:
        model: Folder, hub id, `.gguf` file, or a built `nn.Module`; None for the embedded default.
        data: Text, a path to text, token tensors `[sample position]` or mappings with `input_ids` and `attention_mask`; None for the
            built-in corpus.
        samples: Independent inputs; chosen when None.
        tokens: Tokens per input; chosen when None.
        sites: Parts to measure, e.g. `["resid", "mlp.down.in"]`; all when None.
        preset: Whose rule decides what is listed; `skerry presets` explains them.
        dtype: dtype of the forward, e.g. "bf16"; as stored when None.
        device: Device of the forward; chosen when None.
        seed: Chooses the inputs.
        out: Run directory; under ./skerry-runs when None.
        batch_size: Inputs per forward; chosen when None.
        bos: `auto`, `with` or `without` a beginning-of-sequence token.
        threads: CPU threads; chosen when None.
        trust_remote_code: Run code that the checkpoint ships.
        attention: Measure attention.
        weights: Measure weights.
        tokenizer: Tokenizer of a model that brings none.
        progress: Told how far it is.

    Returns:
        The scan; a scan of the same model, text and options is read from its run directory instead of measured again.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    options = Options(
        samples=samples,
        tokens=tokens,
        sites=None if sites is None else (sites,) if isinstance(sites, str) else tuple(sites),
        preset=preset,
        dtype=dtype,
        device=device,
        seed=seed,
        out=out,
        batch_size=batch_size,
        bos=bos,
        threads=threads,
        trust_remote_code=trust_remote_code,
        attention=attention,
        weights=weights,
        tokenizer=tokenizer,
    )
    options.check()
    key = None
    if model is None or isinstance(model, (str, Path)):
        place = default_place() if model is None else model
        key = asked_key(place, data, options.plain())
        where = [Path(out)] if out else sorted(DEFAULT_FOLDER.glob("*"))
        if (run := find_repeat(key, where, "findings")) is not None:
            return Scan(run)
    from skerry.outliers.scan import scan as measure

    return Scan(measure(model, data, options, progress, asked=key))


def audit(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Audit:
    """Scan a model and write its report; options are those of `scan`.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    done = scan(model, data, progress=progress, **options)
    return Audit(write_report(done.run))


def default_place() -> Path:
    """Folder of the embedded default model.

    Raises:
        UnknownModel: It is not installed.
    """
    from skerry.anatomy.demo import default_model

    return default_model()


def write_report(run: Run) -> Run:
    """Write `report.html` into a run, unless the same one is there."""
    import hashlib
    import time

    import skerry
    from skerry.report import html

    text = run.text("summary.json")
    key = hashlib.sha256(f"{skerry.__version__}\0{text}".encode()).hexdigest()[:16]
    if not run.finished("report", key):
        start = time.perf_counter()
        summary = Summary.model_validate(run.summary_document())
        page = html(summary, report_tables(run), record=dict(run.record.facts))
        with run.writing():
            run.finish("report", key, texts={"report.html": page}, seconds=time.perf_counter() - start)
    return run


def report_tables(run: Run) -> dict[str, pa.Table]:
    """The tables as the report reads them: non-finite values of activations and weights together."""
    import pyarrow as pa

    tables = run.tables()
    parts = [tables[name] for name in ("nonfinite", "nonfinite_weights") if name in tables]
    return {**tables, "nonfinite": pa.concat_tables(parts)} if parts else tables


def open_run(path: str | Path) -> Scan:
    """Open a finished run for reading.

    Raises:
        NotARun: There is no run at the path.
        BrokenRun: The run is damaged, or not finished.
    """
    run = Run.open(path)
    return Audit(run) if run.has("report.html") else Scan(run)
