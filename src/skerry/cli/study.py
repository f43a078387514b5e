"""skerry study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document, progress_of

if TYPE_CHECKING:
    from skerry.redesign.study_plan import Plan

_Several = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """What is studied, and how."""

    preset: str = "laptop"
    """laptop (5 variants of 2 million parameters, within 40 minutes on two cores), full (a GPU node), smoke (seconds)."""
    variants: _Several = ()
    """Attention variants, e.g. `softmax scaled clipped-softmax:alpha=4`, or `all`; softmax is always there."""
    seeds: int | None = None
    """Trainings of each variant and size."""
    sizes: _Several = ()
    """tiny, 1m, 2m, 5m, 60m, 125m."""
    baseline: str = "softmax"
    """What the others are compared with."""
    text: str | None = None
    """Text file, folder or token file (.npy, .bin); the built-in corpus by default."""
    tokenizer: str | None = None
    """Folder or hub id of a tokenizer; one is trained on the text by default."""
    vocabulary: int | None = None
    """Tokens of the vocabulary; that of the size by default."""
    context: int | None = None
    """Tokens per window; that of the size by default."""
    steps: int | None = None
    """Optimizer steps; those of the preset by default."""
    batch: int | None = None
    """Windows per micro-batch; that of the preset by default."""
    accumulation: int | None = None
    """Micro-batches per step."""
    learning_rate: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Of matrices."""
    optimiser: Annotated[str | None, Parameter(name=["--optimiser", "--optimizer"])] = None
    """Optimiser; AdamW by default."""
    precision: str | None = None
    """bf16, fp32, or auto."""
    compile: bool | None = None
    """Compile the decoders."""
    battery: Annotated[bool, Parameter(negative=())] = False
    """Also put every decoder through the functional battery."""
    speed: bool = True
    """Compare the speed of training."""
    processes: int | None = None
    """Trainings at once; one for each core, or GPU, by default."""
    threads: int = 1
    """CPU threads of each."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; chosen by default."""
    ray: str | None = None
    """Address of a Ray cluster, `auto`, or `local`; processes of this machine by default."""
    out: str | None = None
    """Folder of the study; under ./skerry-runs by default."""
    figures: str | None = None
    """Write the pictures as SVG and PNG into this folder."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""

    def plan(self) -> Plan:
        """The study that is meant."""
        from skerry.redesign.study_presets import make_plan

        names = "text tokenizer vocabulary context steps batch accumulation learning_rate weight_decay optimiser precision compile"
        fields: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        if self.optimiser is not None and self.preset == "full":
            fields["optimiser_options"] = {}  # the preset's are AdamW's
        return make_plan(
            self.preset,
            variants=self.variants or None,
            seeds=self.seeds,
            sizes=self.sizes or None,
            baseline=self.baseline,
            battery=self.battery,
            **fields,
        )


DEFAULTS = Asked()


def study(
    name: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
) -> None:
    """Train decoders that differ in one choice, and compare what each gives: loss, outliers, compression, speed.

    A study that was stopped goes on where it was; a finished one is read. Another variant or seed in the same folder trains only that.

    Parameters
    ----------
    name
        The study: attention.
    asked
        What is studied, and how.
    list_
        Name the studies, presets, sizes and variants, and end.
    """
    if list_:
        _list(asked)
        return
    _check_name(name)
    if asked.figures is not None:
        from skerry.cli.trace import check_folder

        check_folder(asked.figures)
    with progress_of(asked) as progress:
        from skerry.redesign.study import run_study

        plan = asked.plan()
        out = Path(asked.out or Path("skerry-runs") / f"study-{name}-{asked.preset}")
        done = run_study(
            plan,
            out,
            processes=asked.processes,
            threads=asked.threads,
            device=asked.device,
            ray=asked.ray,
            measure_speed=asked.speed,
            progress=progress,
        )
        from skerry.report.study_html import write_study_report

        report = write_study_report(done.run)
    if asked.figures is not None:
        from skerry.report.study_charts import write_study_figures

        write_study_figures(done.document, asked.figures)
    if asked.json:
        ask_document({**done.document, "report": str(report)})
        return
    from skerry.cli.console import console
    from skerry.report.study_terminal import study_terminal

    study_terminal(done.document, console(), report=report)


def _check_name(name: str | None) -> None:
    from skerry.errors import UnknownOption, near_matches
    from skerry.redesign.study import STUDIES

    if name not in STUDIES:
        near = near_matches(name or "", list(STUDIES))
        what = (
            f"there is no study {name!r}{f'; did you mean {near}?' if near else ';'}"
            if name
            else "name a study;"
        )
        raise UnknownOption(f"{what} there are {', '.join(STUDIES)} (`skerry study --list`)")


def _list(asked: Asked) -> None:
    from skerry.redesign.study import STUDIES
    from skerry.redesign.study_presets import PRESETS, SIZES
    from skerry.redesign.variants import variants

    document = {
        "schema": 1,
        "studies": STUDIES,
        "presets": {name: p.what for name, p in PRESETS.items()},
        "sizes": SIZES,
        "variants": {name: v.source for name, v in variants().items()},
    }
    if asked.json:
        ask_document(document)
        return
    from skerry.cli.console import console
    from skerry.report.study_terminal import study_list

    console().print(study_list(document))
