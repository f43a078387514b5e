"""skerry retrofit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document, progress_of


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
    dtype: str | None = None
    """dtype of the weights: fp32, bf16, fp16; as stored by default."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; chosen by default."""
    seed: int = 0
    """Chooses the inputs and their order."""
    batch_size: int | None = None
    """Inputs per forward."""
    bos: str = "auto"
    """Beginning-of-sequence token: auto (what the tokenizer does), with, without."""
    threads: int | None = None
    """CPU threads; chosen by model size and load by default."""
    trust_remote_code: Annotated[bool, Parameter(negative=())] = False
    """Run code that the checkpoint ships."""
    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document and nothing else."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print no progress."""

    def wanted(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.retrofit`, but text and folder."""
        names = """form compare carriers ratio steps learning_rate train inputs calibration samples
            tokens dtype device seed batch_size bos threads trust_remote_code"""
        return {name: getattr(self, name) for name in names.split()}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        from skerry.errors import UnknownOption

        for name in ("inputs", "calibration", "samples", "tokens", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnknownOption(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


DEFAULTS = Asked()


def retrofit(
    model: Annotated[str, Parameter()],
    /,
    *,
    out: str | None = None,
    asked: Asked = DEFAULTS,
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
    """
    asked.check()
    with progress_of(asked) as progress:
        import skerry

        done = skerry.retrofit(
            model, asked.text, out=out, schemes=asked.bits, progress=progress, **asked.wanted()
        )
    if asked.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.retrofit_terminal import retrofit_terminal

    retrofit_terminal(done.document, console())
