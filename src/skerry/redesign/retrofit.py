"""Turn a trained softmax model into one without a sink token, after the fact: fold, cheapen, take out, repair, measure, write.

    fold      the first token of every input becomes k', v' of each head: exact                    retrofit_fold
    form      a cheaper one in its place, fitted in closed loops, with a bound of its error        retrofit_fit, retrofit_bound
    carriers  what massive activations are left are taken out where they are born                  retrofit_carriers
    repair    a short distillation on unlabelled text                                              retrofit_distil
    judge     loss, outliers and quantized loss of every stage, on the same held-out tokens        retrofit_measure
    write     a folder that skerry and, with skerry imported, transformers load                    retrofit_folder

The model that is given is never changed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from skerry.anatomy.model import Anatomy
from skerry.anatomy.resolve import resolve
from skerry.corpus.batch import Batch
from skerry.errors import BadText, NotEquivalent, UnknownOption
from skerry.impact.scheme import Scheme
from skerry.outliers.options import Options
from skerry.outliers.plan import Plan, make_plan
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.retrofit_bound import bound_rows
from skerry.redesign.retrofit_carriers import RATIO, remove_carriers
from skerry.redesign.retrofit_distil import Distillation, Distilled, distil
from skerry.redesign.retrofit_fit import EXACT_FORM, FORMS, Fitter, check_form
from skerry.redesign.retrofit_fold import first_token, fold, sink_constants
from skerry.redesign.retrofit_folder import without_first, write_folder
from skerry.redesign.retrofit_measure import Judge
from skerry.redesign.retrofit_source import as_decoder
from skerry.run import Progress, Silent
from skerry.tame.export_folder import check_unused
from skerry.tame.memory import split
from skerry.tame.pipeline import proof_ids
from skerry.tame.transform import BOUNDS, FLOAT32_BOUND, FLOAT64_BOUND, outputs, relative_error

SCHEMA = 1
SCHEMES = ("w8a8", "w8a8-tensor", "w4a4")
# Above this many parameters a copy in float64 is too much: the stored comparison stands alone.
PROVED_PARAMETERS = 300_000_000
Row = dict[str, Any]


@dataclass(frozen=True)
class RetrofitOptions:
    """What is done.

    Attributes:
        form: What the folded token becomes: `exact`, `sink-value`, `sink-logit` or `gate`.
        compare: Measure the other forms too, untrained.
        carriers: Take out the massive activations that are left.
        ratio: A channel is one from this many medians on.
        distillation: The repair; done where there is something to repair.
        inputs: Inputs that the repair reads.
        calibration: Of these, inputs that forms are fitted to.
        samples: Held-out inputs that judge.
        schemes: Under which every stage is quantized.
    """

    form: str = EXACT_FORM
    compare: bool = True
    carriers: bool = True
    ratio: float | int = RATIO
    distillation: Distillation = field(default_factory=Distillation)
    inputs: int = 512
    calibration: int = 64
    samples: int = 64
    schemes: tuple[str, ...] = SCHEMES

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            UnknownOption: An unknown form or scheme, or a number out of range.
        """
        check_form(self.form)
        self.distillation.check()
        for scheme in self.schemes:
            Scheme.parse(scheme)
        for name in ("inputs", "calibration", "samples"):
            if getattr(self, name) < 1:
                raise UnknownOption(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.ratio > 1:
            raise UnknownOption(f"ratio is {self.ratio}; it must be above 1")


class Retrofitted(NamedTuple):
    """What a retrofit gives.

    Attributes:
        model: The new decoder.
        document: What was done and measured, as plain values.
        path: The folder; None where none was asked for.
    """

    model: DecoderForCausalLM
    document: dict[str, Any]
    path: Path | None


class Folded(NamedTuple):
    """The exact fold with its proof.

    Attributes:
        model: The folded decoder.
        token: The token that is gone.
        float64: Relative error of a fold in float64; None where the model is too large for a copy.
        stored: Relative error of the outputs in the stored dtype.
        bound: What `stored` may be.
    """

    model: DecoderForCausalLM
    token: int
    float64: float | None
    stored: float
    bound: float


def fold_first_token(anatomy: Anatomy, batches: Sequence[Batch]) -> Folded:
    """Fold the token that all inputs begin with, and prove it; the model is left as it is.

    Args:
        anatomy: The model.
        batches: Inputs, whole.

    Raises:
        NotPossible: The inputs begin with several tokens, or the model is not of the decoder's shape; the message says what does not fit.
        NotEquivalent: The folded decoder gives other outputs.
    """
    token = first_token(batches)
    decoder = as_decoder(anatomy)
    folded = fold(decoder, sink_constants(resolve(decoder), token))
    ids = proof_ids(batches)
    exact = None
    if sum(p.numel() for p in decoder.parameters()) <= PROVED_PARAMETERS:
        wide = copy.deepcopy(decoder).double()
        exact = _difference(fold(wide, sink_constants(resolve(wide), token)), resolve(wide), ids)
        if not exact <= FLOAT64_BOUND:
            raise NotEquivalent(
                f"the fold changes the model: float64 outputs differ by {exact:.1e} of their size (1e-10 is allowed); nothing was kept"
            )
    stored = _difference(folded, anatomy, ids)
    bound = BOUNDS.get(next(folded.parameters()).dtype, FLOAT32_BOUND) * FOLD_SPARE
    if not stored <= bound:
        raise NotEquivalent(
            f"the folded decoder differs from the original by {stored:.1e} of the outputs' size; rounding allows {bound:.0e}. Nothing was kept"
        )
    return Folded(folded, token, exact, stored, bound)


# Keys are rotated anew and sums run in another order: not one rounding per weight, as a fold into weights, but one per product.
FOLD_SPARE = 8


def _difference(folded: DecoderForCausalLM, original: Anatomy, ids: torch.Tensor) -> float:
    return relative_error(outputs(resolve(folded), ids[:, 1:]), outputs(original, ids)[:, 1:])


def retrofit(
    model: str | Path | nn.Module | None = None,
    data: Any = None,
    options: Options | None = None,
    wanted: RetrofitOptions | None = None,
    progress: Progress | None = None,
    *,
    out: str | Path | None = None,
) -> Retrofitted:
    """Retrofit a model.

    Args:
        model: As for `scan`; it is left as it is.
        data: As for `scan`: unlabelled text of repair and of judging, different inputs of it.
        options: As for `scan`; `samples` is not read.
        wanted: What to do.
        progress: Told how far it is.
        out: Folder that is written; None writes nothing.

    Raises:
        NotPossible: The model or the text cannot be retrofitted; the message says why.
        SkerryError: Whatever else is wrong; nothing is written then.
    """
    options, wanted, progress = options or Options(), wanted or RetrofitOptions(), progress or Silent()
    wanted.check()
    if out is not None:
        check_unused(Path(out).resolve())
    start = time.perf_counter()
    progress.start("loading", 1, "model")
    plan = make_plan(
        model, data, replace(options, samples=wanted.inputs + wanted.samples, attention=False, weights=False)
    )
    progress.done()
    work = _Work(plan, wanted, progress)
    made = work.do()
    document = work.document(time.perf_counter() - start)
    tokenizer, note = without_first(plan.loaded.tokenizer, work.folded.token)
    document["notes"] += [note] if note else []
    path = None if out is None else write_folder(made, tokenizer, document, out)
    if path is not None:
        document["out"] = {"path": str(path)}
    return Retrofitted(made, document, path)


class _Work:
    def __init__(self, plan: Plan, wanted: RetrofitOptions, progress: Progress) -> None:
        self.plan, self.wanted, self.progress = plan, wanted, progress
        count = plan.feed.card.num_samples
        # A short text: three quarters to learn from, at least one input to judge by.
        inputs = wanted.inputs if count >= wanted.inputs + wanted.samples else count * 3 // 4
        self.text, self.judging = split(plan.feed, inputs)
        if not self.text or not self.judging:
            raise BadText(
                f"the text gives {count} inputs; a retrofit needs some to fit and others to judge: give more text"
            )
        self.calibration = split(self.text, wanted.calibration)[0]
        self.behind = [b.behind(1) for b in self.calibration]
        self.stages: list[Row] = []
        self.bounds: list[Row] = []
        self.carriers: list[Row] = []
        self.learned = Distilled([])
        self.notes: list[str] = []

    def do(self) -> DecoderForCausalLM:
        anatomy, wanted = self.plan.anatomy, self.wanted
        self.progress.start("folding the first token", 1, "model")
        self.folded = fold_first_token(anatomy, self.text)
        self.progress.done()
        schemes = [Scheme.parse(s) for s in wanted.schemes]
        judge = Judge(anatomy, self.judging, self.calibration, schemes, seed=self.plan.options.seed)
        self._tell(judge.original())
        self._tell(judge.stage("folded, exact", resolve(self.folded.model)))
        made = self._forms(judge)
        if wanted.carriers:
            self.carriers, notes = remove_carriers(resolve(made), self.behind, ratio=wanted.ratio)
            self.notes += notes
            if self.carriers:
                self._tell(judge.stage("massive activations out", resolve(made)))
        if wanted.distillation.steps and (self.carriers or wanted.form != EXACT_FORM):
            self.learned = distil(made, anatomy, self.text, wanted.distillation, self.progress)
            if self.learned.is_kept:
                self._tell(judge.stage("distilled", resolve(made)))
            else:
                self.notes.append(self.learned.words())
        elif not self.carriers and wanted.form == EXACT_FORM:
            self.notes.append("nothing to repair: the exact fold changes no prediction")
        return made

    def _forms(self, judge: Judge) -> DecoderForCausalLM:
        """The chosen form; with `compare` the others are measured on the way."""
        wanted, folded = self.wanted, self.folded.model
        cheaper = [f for f in FORMS if f != EXACT_FORM and (wanted.compare or f == wanted.form)]
        if not cheaper:
            return Fitter(folded).make(EXACT_FORM)
        fitter = Fitter(folded).read(self.behind, self.progress)
        made = {form: fitter.make(form) for form in cheaper}
        self.bounds = bound_rows(folded, made, [b.behind(1) for b in self.judging], self.progress)
        for form, decoder in made.items():
            self._tell(judge.stage(f"{form}, untrained", resolve(decoder)))
        return made[wanted.form] if wanted.form in made else fitter.make(EXACT_FORM)

    def _tell(self, row: Row) -> None:
        self.stages.append(row)
        self.progress.note(
            f"{row['stage']}: loss {row['loss']:.4f}, largest / median {row['max_to_median']:.0f}"
        )

    def document(self, seconds: float) -> dict[str, Any]:
        """Everything that was done and measured."""
        plan, wanted, folded = self.plan, self.wanted, self.folded
        tokenizer = plan.loaded.tokenizer
        how = wanted.distillation
        return {
            "schema": SCHEMA,
            "model": plan.loaded.name,
            "token": folded.token,
            "token_text": None if tokenizer is None else tokenizer.convert_ids_to_tokens(folded.token),
            "form": wanted.form,
            "proof": {"float64": folded.float64, "stored": folded.stored, "bound": folded.bound},
            "stages": self.stages,
            "bounds": self.bounds,
            "carriers": self.carriers,
            "distillation": {
                "steps": how.steps if self.learned.rows else 0,
                "learning_rate": how.learning_rate,
                "batch": how.batch,
                "train": how.train,
                "seed": how.seed,
                "kl": self.learned.rows,
                "before": self.learned.before,
                "after": self.learned.after,
                "is_kept": self.learned.is_kept,
            },
            "notes": [*plan.loaded.warnings, *plan.feed.card.notes, *self.notes],
            "corpus": plan.feed.card.as_dict(),
            "inputs": sum(len(b.input_ids) for b in self.text),
            "calibration_inputs": sum(len(b.input_ids) for b in self.calibration),
            "held_out_inputs": sum(len(b.input_ids) for b in self.judging),
            "seconds": seconds,
            "out": None,
        }


__all__ = [
    "SCHEMES",
    "Distillation",
    "Folded",
    "RetrofitOptions",
    "Retrofitted",
    "fold_first_token",
    "retrofit",
]
