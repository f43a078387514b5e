"""From a model to a tamed one: look, prove, fold, judge on held-out text, export, and write down what was done.

A run directory of its own holds tables and `tame.json`; blocks that a killed run had finished are there too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from skerry.anatomy.seams import Seam
from skerry.corpus.batch import Batch
from skerry.errors import BadText, NotPossible
from skerry.outliers.options import DEFAULT_FOLDER, Options, slug
from skerry.outliers.plan import Plan, digest, facts, make_plan
from skerry.run import Progress, Run, Silent
from skerry.run.tables import from_rows
from skerry.tame.blocks import Blocks
from skerry.tame.choose import Choice, choose, pipelines_for
from skerry.tame.document import tame_document
from skerry.tame.held_out import HeldOut
from skerry.tame.memory import split
from skerry.tame.method import Method, Row
from skerry.tame.pipeline import Setting, Tamed, run_pipeline
from skerry.tame.register import parse_pipeline
from skerry.tame.wanted import AUTO, TameOptions

STAGE = "tame"
# Changes whenever taming would do something else.
VERSION = 1
TABLES = ("methods", "seam_changes", "channel_ranges", "equivalence", "parts")
# A calibration text with fewer kinds of tokens than this says nothing about channels.
FEWEST_TOKENS = 8


@dataclass(frozen=True, eq=False)
class Done:
    """What taming gives: the changed model, and the run that tells of it."""

    run: Run
    tamed: Tamed | None


def tame(
    model: str | Path | nn.Module | None = None,
    data: Any = None,
    options: Options | None = None,
    wanted: TameOptions | None = None,
    progress: Progress | None = None,
    *,
    seams: Sequence[Seam] = (),
    asked: str | None = None,
) -> Done:
    """Tame a model.

    Args:
        model: As for `scan`. A model that is given as a module is changed in place.
        data: As for `scan`: the text of calibration and of judging, different inputs of it.
        options: As for `scan`; `samples` is not read.
        wanted: What to do.
        progress: Told how far it is.
        seams: Seams of the user's own, proved like all others.
        asked: Key by which a repeated request finds its answer.

    Raises:
        SkerryError: Whatever is wrong with model, text, options or disk; what was found so far is kept.
    """
    options, wanted, progress = options or Options(), wanted or TameOptions(), progress or Silent()
    wanted.check()
    progress.start("loading", 1, "model")
    count = wanted.calibration + (wanted.samples if wanted.evaluate else 0)
    plan = make_plan(model, data, replace(options, samples=count, attention=False, weights=False))
    progress.done()
    _check_model(plan)
    request = {**plan.request, "verb": STAGE, "version": VERSION, **wanted.plain()}
    path = (
        Path(options.out)
        if options.out
        else DEFAULT_FOLDER / f"tame-{slug(plan.loaded.name)}-{digest(request)[:12]}"
    )
    with Run.begin(path, request, facts(plan)) as run:
        run.log(f"taming {plan.loaded.name} with {wanted.method}, {wanted.bits}: {plan.feed.card}")
        try:
            return _Work(run, plan, wanted, progress, seams, digest(request)).do(asked)
        except BaseException as error:
            run.log(f"stopped: {type(error).__name__}: {error}")
            raise


def tame_repeat(found: Run | None, out: str | Path | None) -> Run | None:
    """The finished run of the very same request, if what it exported is still there."""
    if found is None or out is None:
        return found
    written = json.loads(found.text("tame.json"))["export"]
    folder = Path(out).resolve()
    if written is None or Path(written["path"]) != folder:
        return None
    sizes = {
        name: (folder / name).stat().st_size if (folder / name).is_file() else -1 for name in written["files"]
    }
    return found if sizes == written["files"] else None


def _check_model(plan: Plan) -> None:
    if getattr(plan.anatomy.config, "quantization_config", None) is not None:
        raise NotPossible(
            f"{plan.loaded.name} is quantized already; taming changes weights of full precision, so give the model it was made from"
        )


class _Work:
    def __init__(
        self, run: Run, plan: Plan, wanted: TameOptions, progress: Progress, seams: Sequence[Seam], key: str
    ) -> None:
        self.run, self.plan, self.wanted, self.progress, self.seams, self.key = (
            run,
            plan,
            wanted,
            progress,
            seams,
            key,
        )
        self.scheme = wanted.scheme
        self.calibration, self.judging = split(plan.feed, wanted.calibration)
        check_calibration(self.calibration)
        if wanted.evaluate and not self.judging:
            raise BadText(
                "the text is too short: no input is left to judge by; give more text or fewer --calibration inputs"
            )

    def do(self, asked: str | None) -> Done:
        choice = self._auto() if self.wanted.method == AUTO else self._one(parse_pipeline(self.wanted.method))
        exported = self._export(choice) if self.wanted.out is not None else None
        start = time.perf_counter()
        document = tame_document(self.plan, self.run, self.wanted, choice, exported)
        rows = {**choice.tamed.found.rows, "methods": choice.rows, "equivalence": document["equivalence"]}
        self.run.finish(
            STAGE,
            self.key,
            tables={name: from_rows(name, rows.get(name, [])) for name in TABLES},
            texts={"tame.json": json.dumps(document, allow_nan=False)},
            seconds=time.perf_counter() - start,
            asked=asked,
        )
        Blocks(self.run, self.key, "").forget()
        return Done(self.run, choice.tamed)

    def _setting(self, pipeline: str) -> Setting:
        blocks = Blocks(self.run, self.key, pipeline)
        recalled = blocks.recalled()
        if recalled:
            done = sum(len(layers) for layers in recalled.values())
            self.progress.note(f"{pipeline}: going on after {done} finished blocks")
        return Setting(
            anatomy=self.plan.anatomy,
            batches=self.calibration,
            scheme=self.scheme,
            seed=self.plan.options.seed,
            progress=self.progress,
            tokenizer=self.plan.loaded.tokenizer,
            options=self.wanted.method_settings(),
            declared=self.seams,
            for_export=self.wanted.out is not None,
            recalled=recalled,
            remember=blocks.remember,
        )

    def _held_out(self, *, own_copy: bool) -> HeldOut:
        self.progress.start("judging the original", 1, "model")
        held_out = HeldOut(
            self.plan.anatomy,
            self.judging,
            self.calibration,
            own_copy=own_copy,
            seed=self.plan.options.seed,
        )
        self.progress.done()
        return held_out

    def _one(self, methods: Sequence[Method]) -> Choice:
        if not self.wanted.evaluate:
            tamed = run_pipeline(self._setting(self.wanted.method), methods)
            return Choice(tamed, {}, [], reached=False, why="not judged")
        # A rotation changes the head, by which the original's prediction is computed.
        turns = any(m.name in ("rotation", "spinquant") or m.replaces is not None for m in methods)
        held_out = self._held_out(own_copy=turns or self.wanted.parts)
        rows = [held_out.original(), held_out.rounded(self.scheme)]
        tamed = run_pipeline(self._setting(self.wanted.method), methods)
        self.progress.start("judging", 2, "model")
        rows.append(held_out.changed(tamed))
        self.progress.advance()
        rows.append(held_out.quantized(tamed))
        self.progress.done()
        rows[-1]["chosen"] = True
        self._parts(held_out, tamed)
        return Choice(tamed, rows[-1], rows, reached=True, why=f"{tamed.name} was asked for")

    def _auto(self) -> Choice:
        held_out = self._held_out(own_copy=True)

        def run(pipeline: str) -> Tamed:
            self.progress.note(f"trying {pipeline}")
            setting = replace(self._setting(pipeline), anatomy=held_out.fresh())
            return run_pipeline(setting, parse_pipeline(pipeline))

        choice = choose(
            held_out, pipelines_for(self.scheme), run, target=self.wanted.target, tried=self._tell
        )
        rows = [held_out.original(), *choice.rows, held_out.changed(choice.tamed)]
        self._parts(held_out, choice.tamed)
        return choice._replace(rows=rows)

    def _parts(self, held_out: HeldOut, tamed: Tamed) -> None:
        if self.wanted.parts:
            from skerry.tame.study import parts_of_os_plus

            self.progress.start("parts of os+", 1, "table")
            tamed.found.rows["parts"] = parts_of_os_plus(held_out, self._setting("parts"))
            self.progress.done()

    def _tell(self, row: Row) -> None:
        change = row.get("change")
        shown = str(row.get("note")) if change is None else f"{row['outcome']} {change:+.4f}"
        self.progress.note(f"{row['method']}: {shown}")

    def _export(self, choice: Choice) -> Any:
        from skerry.tame.export_tamed import export_tamed

        return export_tamed(self.plan, self.run, self.wanted, choice, self.calibration, self.progress)


def check_calibration(batches: Sequence[Batch]) -> None:
    """Refuse a calibration that says nothing about channels.

    Raises:
        BadText: It has (nearly) one token, repeated.
    """
    kinds = {int(t) for b in batches for t in b.input_ids[b.keep].unique()}
    total = sum(b.num_tokens for b in batches)
    if len(kinds) < min(FEWEST_TOKENS, max(2, total)):
        raise BadText(
            f"the calibration text has {total} tokens of only {len(kinds)} kinds; ranges of channels cannot be learned from one token repeated: give real text"
        )


__all__ = ["STAGE", "Done", "TameOptions", "check_calibration", "tame", "tame_repeat"]
