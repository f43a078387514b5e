"""skerry tame."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from skerry.cli.asking import COMMON, Common, ask_document, check_counts, progress_of


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

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `skerry.tame`, but the text and the settings."""
        found = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("text", "set", "tokens")
        }
        return found if self.tokens is None else {**found, "tokens": self.tokens}

    def check(self) -> None:
        """Refuse mistakes before torch is loaded."""
        check_counts(self, calibration=1, samples=1, tokens=1)


DEFAULTS = Asked()


def tame(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    asked: Asked = DEFAULTS,
    common: Common = COMMON,
    list: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Take away what outliers cost a quantized model without changing the model, and export it.

    Parameters
    ----------
    model
        A folder, a hub id, a .gguf file or a name that `skerry zoo` lists; the built-in decoder `pebble` by default.
    asked
        What to do.
    common
        How the model runs.
    list
        Explain the methods and end.
    """
    if list:
        _list(common)
        return
    asked.check()
    common.check()
    with progress_of(common) as progress:
        import skerry
        from skerry.tame.wanted import parse_settings

        done = skerry.tame(
            model,
            asked.text,
            settings=parse_settings(asked.set or []),
            progress=progress,
            **asked.options(),
            **common.options(),
        )
    if common.json:
        ask_document(done.document)
        return
    from skerry.cli.console import console
    from skerry.report.tame_terminal import tame_terminal

    tame_terminal(done.document, console(), report=done.report)


def _list(common: Common) -> None:
    from skerry.redesign.retrofit_method import register
    from skerry.tame.register import METHODS

    register()
    rows = [{"name": m.name, "what": m.what, "source": m.source, "kind": m.kind} for m in METHODS.values()]
    if common.json:
        ask_document({"schema": 1, "methods": rows})
        return
    from skerry.cli.console import console
    from skerry.report.listing import methods_table

    console().print(methods_table(rows))
