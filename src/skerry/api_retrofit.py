"""The Python face of a retrofit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.api import _options
from skerry.run import Progress

if TYPE_CHECKING:
    from torch import nn

    from skerry.redesign.retrofit import Retrofitted


def retrofit(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None = None,
    *,
    out: str | Path | None = None,
    form: str = "exact",
    compare: bool = True,
    carriers: bool = True,
    ratio: float | int = 50.0,
    steps: int = 200,
    learning_rate: float = 1e-4,
    train: str = "all",
    inputs: int = 512,
    calibration: int = 64,
    samples: int = 64,
    schemes: Iterable[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Retrofitted:
    """Turn a trained softmax model into one without a sink token, after the fact.

    Args:
        model: As for `scan`; it is left as it is.
        data: As for `scan`: unlabelled text to fit, repair and judge, different inputs of it.
        out: Folder that is written; None writes nothing.
        form: What the folded token becomes: `exact`, `sink-value`, `sink-logit`, `gate`.
        compare: Measure the other forms too, untrained.
        carriers: Take out the massive activations that are left.
        ratio: Of the largest value to the median, from which a channel is one.
        steps: Of the distillation that repairs; 0 for none.
        learning_rate: Of the distillation.
        train: What it trains: `all`, `attention`, `sinks`.
        inputs: Inputs that fit and repair read.
        calibration: Of these, inputs that forms are fitted to.
        samples: Held-out inputs that judge.
        schemes: Under which every stage is priced; `w8a8`, `w8a8-tensor` and `w4a4` when None.
        progress: Told how far it is.
        options: Those of `scan`: tokens, seed, dtype, device, batch_size, bos, threads, trust_remote_code, tokenizer.

    Returns:
        The decoder, the document of what was measured, and the folder.

    Raises:
        NotPossible: The model or the text cannot be retrofitted; the message says why.
        NotEquivalent: The fold changed the model; nothing is written.
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.redesign.retrofit import SCHEMES, Distillation, RetrofitOptions
    from skerry.redesign.retrofit import retrofit as run

    plain = _options(options)
    wanted = RetrofitOptions(
        form=form,
        compare=compare,
        carriers=carriers,
        ratio=ratio,
        distillation=Distillation(steps, learning_rate, train=train, seed=plain.seed),
        inputs=inputs,
        calibration=calibration,
        samples=samples,
        schemes=SCHEMES if schemes is None else (schemes,) if isinstance(schemes, str) else tuple(schemes),
    )
    return run(model, data, plain, wanted, progress, out=out)
