"""The tamed float model as an ONNX graph, and onnxruntime as a witness that shares no code with torch.

The graph takes token ids [sample, position], both axes of any length, and gives logits (hidden states of a model without head). Its sums
run in another order, so equality is not exact: 1e-4 of the largest output is allowed.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.anatomy.hush import hushed, one_line
from skerry.anatomy.quiet import quiet
from skerry.errors import MissingExtra, NotPossible
from skerry.tame.export_folder import is_full
from skerry.tame.export_form import Export, Prepared, in_dtype, write_tokenizer
from skerry.tame.readback import Readback, compare, fixed_ids, outputs_of

ONNX_BOUND = 1e-4
GRAPH = "model.onnx"


def prepare_onnx(export: Export, _form: str) -> Prepared:
    """Everything that must be known before a graph is written; the scheme of the export is left out.

    Args:
        export: What is written.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
    """
    lacking = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if lacking:
        raise MissingExtra(
            f'an ONNX graph cannot be written and run without {" and ".join(lacking)}: pip install "skerry[onnx]"'
        )
    model = in_dtype(export.model, torch.float32)
    ids = fixed_ids(model)
    expected = outputs_of(model, ids)

    def write(folder: Path) -> list[str]:
        _write(model, ids, folder / GRAPH)
        write_tokenizer(export.tokenizer, folder)
        return []

    def read(folder: Path) -> Readback:
        return _run(folder / GRAPH, ids, expected)

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Prepared(size, write, read, {})


class _Plain(nn.Module):
    """Ids in, one tensor out, no cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.inputs = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}

    def forward(self, input_ids: Tensor) -> Tensor:
        out = self.model(input_ids=input_ids, **self.inputs)
        return out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state


def _write(model: nn.Module, ids: Tensor, path: Path) -> None:
    """Export through torch's graph capture.

    Raises:
        NotPossible: torch cannot turn this model into a graph.
    """
    axes = {"input_ids": {0: torch.export.Dim("sample"), 1: torch.export.Dim("position", min=2)}}
    try:
        with quiet(model), _graph_experts(model), _unlogged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                _Plain(model).eval(),
                (ids,),
                dynamo=True,
                dynamic_shapes=axes,
                input_names=["input_ids"],
                output_names=["output"],
                verbose=False,
            )
            program.save(str(path), external_data=True)
    except Exception as error:  # the exporter raises whatever its many passes raise
        if is_full(error):
            raise
        cause: BaseException = error
        while (
            cause.__cause__ is not None
        ):  # the exporter's own words say which step failed, the cause says why
            cause = cause.__cause__
        raise NotPossible(
            f"torch cannot turn {type(model).__name__} into an ONNX graph: {one_line(cause)}"
        ) from error


@contextmanager
def _graph_experts(model: nn.Module) -> Iterator[None]:
    """Compute routed experts as one batched product while open: the grouped product has no ONNX operator."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is None:
        yield
        return
    config._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        config._experts_implementation = before


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the exporter's warnings about libraries that are not needed off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with hushed():
            yield
    finally:
        logging.disable(before)


def _run(path: Path, ids: Tensor, expected: Tensor) -> Readback:
    import onnxruntime

    begun = time.monotonic()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"input_ids": ids.numpy()})
    return compare(
        torch.from_numpy(values),
        expected,
        bound=ONNX_BOUND,
        loaded_as="onnxruntime",
        versions={"onnxruntime": onnxruntime.__version__},
        seconds=time.monotonic() - begun,
    )
