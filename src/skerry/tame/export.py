"""Writes a tamed model and proves what it wrote: nothing appears under its final name before it has been read back.

    float                    the model as an ordinary checkpoint of transformers
    compressed-tensors       the quantized model, for transformers and vLLM
    gguf-f16, -q8_0, -q4_0   one file for llama.cpp (extra `gguf`)
    onnx                     the float model as a graph, run by onnxruntime (extra `onnx`)

The order is: refuse what the target cannot express, compute what the export must give, write into a hidden folder, read it back, write
the card, rename.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from skerry.errors import UnknownOption, near_matches
from skerry.run.progress import Progress, Silent
from skerry.run.space import check_space
from skerry.tame.export_card import CardFacts, Loss, render_card
from skerry.tame.export_folder import check_unused, written_whole
from skerry.tame.export_form import Export, Prepared
from skerry.tame.export_refuse import refuse_runtime
from skerry.tame.readback import Readback, ReadBackFailed

__all__ = ["FORMS", "CardFacts", "Export", "Exported", "Loss", "ReadBackFailed", "Readback", "export"]

FORMS = ("auto", "float", "compressed-tensors", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx")
CARD = "README.md"
_SPARE_BYTES = 32 << 20  # tokenizer, card, and what the file system takes


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: The folder.
        form: What it holds.
        files: Name to size in bytes.
        readback: How far it is from our own model, or simulation.
        conversion_error: Relative error of the outputs from storing floats in another type; 0 where the type was kept.
        config_changes: Settings that differ from the source's.
        notes: What a user should know, one line each.
    """

    path: Path
    form: str
    files: dict[str, int]
    readback: Readback
    conversion_error: float
    config_changes: dict[str, Any]
    notes: tuple[str, ...]


def export(
    export: Export, out: str | Path, *, form: str = "auto", progress: Progress | None = None
) -> Exported:
    """Write a tamed model into a new folder, after it has been read back.

    Args:
        export: What is written.
        out: The folder; it must not exist, or be empty.
        form: One of `FORMS`; `auto` is compressed-tensors where there is a scheme, float otherwise.
        progress: Listener.

    Raises:
        RunExists: The folder is in use.
        UnknownOption: No such form.
        NotPossible: The target cannot express the model; said before anything is written.
        MissingExtra: The form needs a library that is not installed.
        NoSpace: The disk is too small.
        ReadBackFailed: The export computes something else than our model; nothing is kept.
    """
    out, listener = Path(out).resolve(), progress or Silent()
    form = _form(export, form)
    check_unused(out)
    refuse_runtime(export.needs, quantized=form == "compressed-tensors")
    listener.start("export", 3, "step")
    try:
        prepared = _preparer(form)(export, form)
        check_space(out, prepared.num_bytes + _SPARE_BYTES)
        listener.advance()
        with written_whole(out) as folder:
            notes = tuple(prepared.write(folder))
            listener.advance()
            readback = prepared.read(folder)
            scheme = str(export.scheme) if form == "compressed-tensors" else None
            text = render_card(export.card, form=form, scheme=scheme, readback=readback, notes=notes)
            (folder / CARD).write_text(text, encoding="utf-8")
            files = {
                str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()
            }
        listener.advance()
    finally:
        listener.done()
    return Exported(out, form, files, readback, prepared.conversion_error, prepared.config_changes, notes)


def _form(export: Export, form: str) -> str:
    if form not in FORMS:
        near = near_matches(form, FORMS)
        raise UnknownOption(
            f"no form of export {form!r}{f'; did you mean {near}?' if near else ''} There are {', '.join(FORMS)}"
        )
    if form == "auto":
        return "float" if export.scheme is None else "compressed-tensors"
    if form == "compressed-tensors" and export.scheme is None:
        raise UnknownOption("form 'compressed-tensors' needs a scheme, e.g. w8a8 or w4a16-g128")
    return form


def _preparer(form: str) -> Callable[[Export, str], Prepared]:
    if form == "float":
        from skerry.tame.export_float import prepare_float

        return prepare_float
    if form == "compressed-tensors":
        from skerry.tame.export_compressed import prepare_compressed

        return prepare_compressed
    if form == "onnx":
        from skerry.tame.export_onnx import prepare_onnx

        return prepare_onnx
    from skerry.tame.export_gguf import prepare_gguf

    return prepare_gguf
