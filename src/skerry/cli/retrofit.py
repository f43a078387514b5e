"""skerry retrofit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import COMMON, Common, ask_document, check_counts, progress_of


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """How a model is retrofitted."""

    text: str | None = None
    """Unlabelled text of fit, repair and judging (different inputs): a file, a folder, datasets:NAME; the built-in corpus by default."""
    form: str = "exact"
    """What the folded token becomes: exact (a key and a value per head), sink-value, sink-logit, gate."""
    compare: bool = True
    """Measure the cheaper forms too, untrained."""
    carriers: bool = True
    """Take out the massive activations that are left."""
    ratio: float = 50.0
    """Of the largest value to the median, from which a channel is one."""
    steps: int = 200
    """Of the distillation that repairs; 0 for none."""
    learning_rate: Annotated[float, Parameter(name=["--learning-rate", "--lr"])] = 1e-4
    """Of the distillation."""
    train: str = "all"
    """What the distillation trains: all, attention, sinks."""
    inputs: int = 512
    """Inputs that fit and repair read."""
    calibration: int = 64
    """Of these, inputs that forms are fitted to."""
    samples: int = 64
    """Held-out inputs that judge."""
    bits: Annotated[list[str] | None, Parameter(negative=())] = None
    """Schemes under which every stage is priced; w8a8, w8a8-tensor and w4a4 by default."""
    tokens: int | None = None
    """Tokens per input, the first one included."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.retrofit`, but the text and the schemes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("text", "bits")}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        check_counts(self, inputs=1, calibration=1, samples=1, tokens=1)


DEFAULTS = Asked()


def retrofit(
    model: Annotated[str, Parameter()],
    /,
    *,
    out: str | None = None,
    asked: Asked = DEFAULTS,
    common: Common = COMMON,
) -> None:
    """Turn a trained softmax model into one without a sink token, after the fact.

    Parameters
    ----------
    model
        A folder or a hub id.
    out
        Folder of the new model; nothing is written by default.
    asked
        How.
    common
        How the model runs.
    """
    asked.check()
    common.check()
    with progress_of(common) as progress:
        import skerry

        done = skerry.retrofit(
            model,
            asked.text,
            out=out,
            schemes=asked.bits,
            progress=progress,
            **asked.options(),
            **common.options(),
        )
    if common.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.retrofit_terminal import retrofit_terminal

    retrofit_terminal(done.document, console())
