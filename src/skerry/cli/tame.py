"""skerry tame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import ask_document, progress_of


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """What to do to a model."""

    text: str | None = None
    """Text file, folder, or datasets:NAME; the built-in corpus by default. Calibration and judging use different inputs of it."""
    method: str = "os+"
    """A method, several joined by commas (os+,gptq), or auto; `skerry tame --list` explains them."""
    bits: str = "w8a8"
    """How the model is quantized: w8a8, w4a16-g128, w6a6-tensor, w4a4kv4, ..."""
    out: str | None = None
    """Folder of the exported checkpoint; nothing is exported by default."""
    form: str = "auto"
    """Of the export: auto (compressed-tensors), float, gguf-f16, gguf-q8_0, gguf-q4_0, onnx."""
    target: float = 0.01
    """For auto: relative rise of the loss that is allowed."""
    calibration: int = 64
    """Inputs that the methods see."""
    samples: int = 64
    """Held-out inputs that judge."""
    tokens: int | None = None
    """Tokens per input."""
    evaluate: bool = True
    """Judge on held-out inputs."""
    parts: Annotated[bool, Parameter(negative=())] = False
    """Measure what each part of os+ brings, too: ten searches more."""
    set: Annotated[list[str] | None, Parameter(negative=())] = None
    """Option of a method, METHOD.NAME=VALUE, e.g. smoothquant.alpha=0.7; may be given several times."""
    run: str | None = None
    """Run directory; under ./skerry-runs by default."""
    dtype: str | None = None
    """dtype of the weights: fp32, bf16, fp16; as stored by default."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; chosen by default."""
    seed: int = 0
    """Chooses the inputs."""
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

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.tame`, but the text."""
        names = "method bits out form target calibration samples evaluate parts run dtype device seed batch_size bos threads trust_remote_code"
        found = {name: getattr(self, name) for name in names.split()}
        return found if self.tokens is None else {**found, "tokens": self.tokens}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        from skerry.errors import UnknownOption

        for name in ("calibration", "samples", "tokens", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnknownOption(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


DEFAULTS = Asked()


def tame(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    list: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Take away what outliers cost a quantized model without changing the model, and export it.

    Parameters
    ----------
    model
        A folder, a hub id, a .gguf file or a name that `skerry zoo` lists; the built-in decoder `pebble` by default.
    asked
        What to do.
    list
        Explain the methods and end.
    """
    if list:
        _list(asked)
        return
    asked.check()
    with progress_of(asked) as progress:
        import skerry
        from skerry.tame.wanted import parse_settings

        done = skerry.tame(
            model,
            asked.text,
            settings=parse_settings(asked.set or []),
            progress=progress,
            **asked.options(),
        )
    if asked.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.tame_terminal import tame_terminal

    tame_terminal(done.document, console(), report=done.report)


def _list(asked: Asked) -> None:
    from skerry.redesign.retrofit_method import register
    from skerry.tame.register import METHODS

    register()
    rows = [{"name": m.name, "what": m.what, "source": m.source, "kind": m.kind} for m in METHODS.values()]
    if asked.json:
        ask_document({"schema": 1, "methods": rows})
        return
    from skerry.cli.console import console
    from skerry.report.listing import methods_table

    console().print(methods_table(rows))
