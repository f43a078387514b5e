"""Search the weights of the objective and the choices of the architecture for several goals at once.

A run directory holds everything: `trials.journal` (Optuna's own file, by which a killed search goes on), `data/` (the text, tokenized once),
`recipes/N.json` (every trial, to be trained again by `skerry train --recipe`), and when all is done the table `optimize_trials` and `optimize.json`.
The same command with more trials goes on from those that are there.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerry.errors import UnknownOption
from skerry.redesign.objective_settings import PARTS, read_settings
from skerry.redesign.optimize_goals import DEFAULT as DEFAULT_GOALS
from skerry.redesign.optimize_goals import find_goals
from skerry.redesign.optimize_search import Ended, Search, check_sampler, require_optuna
from skerry.redesign.optimize_space import DEFAULT as DEFAULT_SPACE
from skerry.redesign.optimize_space import extremes, read_space, with_values
from skerry.redesign.optimize_trial import Done, Job, Prepared, prepare, run_trial
from skerry.redesign.pareto import pareto_front
from skerry.redesign.recipe import Recipe
from skerry.redesign.train_check import check_recipe
from skerry.redesign.train_folder import write_json
from skerry.redesign.train_model import make_model
from skerry.run import Progress, Run, Silent

SCHEMA = 1
STAGE, DOCUMENT, TABLE = "optimize", "optimize.json", "optimize_trials"
LAPTOP = Recipe(vocabulary=512, context=64, layers=2, width=64, heads=4, steps=300, warmup=30, batch=16)
"""Some 0.13 million parameters and 0.3 million tokens: seconds per trial on one core."""


@dataclass(frozen=True)
class Plan:
    """What is searched.

    Attributes:
        base: The recipe that everything starts from; it is the first trial.
        goals: Names; `optimize_goals` lists them.
        space: Plain values; see `optimize_space`.
        trials: How many recipes are trained.
        sampler: `tpe`, `nsga2` or `random`.
        seed: Of the search; trainings have that of the recipe.
        seeds: Trainings per recipe, whose goals are averaged.
        processes: Trials at the same time.
        keep: Keep the trained models in the run, in `trials/`.
    """

    base: Recipe = LAPTOP
    goals: tuple[str, ...] = DEFAULT_GOALS
    space: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_SPACE))
    trials: int = 16
    sampler: str = "tpe"
    seed: int = 0
    seeds: int = 1
    processes: int = 1
    keep: bool = False

    def check(self) -> None:
        """Refuse what cannot be meant, before any training; every value of the space is tried on a decoder without memory.

        Raises:
            UnknownOption, UnknownSite, NotPossible: With near matches.
            MissingExtra: Optuna, or what a value of the space needs, is not installed.
        """
        find_goals(self.goals)
        check_sampler(self.sampler)
        for name in ("trials", "seeds", "processes"):
            if getattr(self, name) < 1:
                raise UnknownOption(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise UnknownOption(f"seed is {self.seed}; it must be at least 0")
        axes = read_space(self.space)
        require_optuna()
        check_recipe(self.base)
        for change in extremes(axes):
            check_recipe(with_values(self.base, change))

    def request(self) -> dict[str, Any]:
        """What decides the result of each trial; more trials are the same search."""
        return {
            "model": "optimize",
            "base": json.loads(json.dumps(self.base.plain())),
            "goals": list(self.goals),
            "space": json.loads(json.dumps(dict(self.space))),
            "sampler": self.sampler,
            "seed": self.seed,
            "seeds": self.seeds,
        }

    def key(self) -> str:
        """A short name of the search: the same for the same search."""
        told = json.dumps(self.request(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:8]


def optimize(plan: Plan, out: str | Path, progress: Progress | None = None) -> Run:
    """Search, or go on with a search, or read one that is finished.

    Args:
        plan: What.
        out: The run directory.
        progress: Told how far it is.

    Raises:
        RunExists: The directory holds another search, or is being written by another process.
        SkerryError: As `Plan.check` and `train` say.
    """
    plan.check()
    progress, folder = progress or Silent(), Path(out)
    facts = {name: version(name) for name in ("skerry", "torch", "transformers", "optuna")}
    with Run.begin(folder, plan.request(), {**facts, "platform": platform.platform()}) as run:
        inputs = f"{plan.key()}-{plan.trials}"
        if run.finished(STAGE, inputs):
            return run
        began = time.perf_counter()
        prepared = prepare(plan.base, folder / "data")
        search = _search(plan, folder)
        progress.start("searching", plan.trials, "trial")
        progress.advance(len(search.ended()))
        for done in _trials(plan, search, folder, prepared):
            search.tell(done.number, done.values, seconds=done.seconds, reason=done.reason)
            run.log(f"trial {done.number}: {done.values or done.reason} in {done.seconds:.1f} s")
            progress.advance()
            progress.note(_words(plan, done))
        ended = search.ended()
        document = make_document(plan, folder, ended)
        progress.done()
        run.finish(
            STAGE,
            inputs,
            tables={TABLE: _table(plan, document)},
            texts={DOCUMENT: json.dumps(document, indent=1)},
            seconds=time.perf_counter() - began,
        )
    return run


def _search(plan: Plan, folder: Path) -> Search:
    return Search(
        folder / "trials.journal",
        read_space(plan.space),
        plan.base,
        num_goals=len(plan.goals),
        sampler=plan.sampler,
        seed=plan.seed,
        trials=plan.trials,
    )


def _trials(plan: Plan, search: Search, folder: Path, prepared: Prepared) -> Iterator[Done]:
    """The results of all trials that are left, as they come; each is told before the next is asked."""
    waiting = search.unfinished()
    left = plan.trials - len(search.ended())

    def next_job() -> Job:
        number, chosen = waiting.pop(0) if waiting else search.ask()
        recipe = recipe_of(plan.base, chosen)
        path = folder / "recipes" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, recipe.plain())
        return Job(
            number=number,
            recipe=recipe.plain(),
            prepared=prepared,
            goals=tuple(plan.goals),
            seeds=plan.seeds,
            folder=str(folder / "trials"),
            keep=plan.keep,
            threads=1 if plan.processes > 1 else None,
        )

    (folder / "trials").mkdir(exist_ok=True)
    if plan.processes == 1:
        for _ in range(left):
            yield run_trial(next_job())
        return
    with _pool(min(plan.processes, max(1, left))) as pool:
        running: set[Future[Done]] = set()
        while left or running:
            while left and len(running) < plan.processes:
                running.add(pool.submit(run_trial, next_job()))
                left -= 1
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes begun anew: a forked torch may hang in its thread pool."""
    import multiprocessing

    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def recipe_of(base: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """The recipe of a trial, parts of the objective without effect left out."""
    recipe = with_values(base, chosen)
    settings = read_settings(recipe.objective)
    acting = {name: recipe.objective[name] for name in PARTS if getattr(settings, name) is not None}
    return Recipe.from_plain({**recipe.plain(), "objective": acting})


def make_document(plan: Plan, folder: Path, ended: Sequence[Ended]) -> dict[str, Any]:
    """The whole answer as plain values; what `--json` prints and every picture is drawn from."""
    goals = find_goals(plan.goals)
    values = np.array([e.values or [np.nan] * len(goals) for e in ended], dtype=float).reshape(-1, len(goals))
    on_front = pareto_front(values)
    trials = [_trial(plan, folder, e, is_front=bool(on_front[i])) for i, e in enumerate(ended)]
    order = sorted((t for t in trials if t["on_front"]), key=lambda t: [t["values"][g.name] for g in goals])
    return {
        "schema": SCHEMA,
        "run": str(folder),
        "goals": [{"name": g.name, "meaning": g.meaning, "unit": g.unit, "scheme": g.scheme} for g in goals],
        "base": json.loads(json.dumps(plan.base.plain())),
        "space": plan.request()["space"],
        "sampler": plan.sampler,
        "seed": plan.seed,
        "seeds": plan.seeds,
        "parameters": _num_parameters(plan.base),
        "tokens_per_training": plan.base.steps * plan.base.batch * plan.base.accumulation * plan.base.context,
        "trials": trials,
        "front": [t["number"] for t in order],
    }


def _trial(plan: Plan, folder: Path, ended: Ended, *, is_front: bool) -> dict[str, Any]:
    recipe = folder / "recipes" / f"{ended.number}.json"
    return {
        "number": ended.number,
        "values": dict(zip(plan.goals, ended.values, strict=True)) if ended.values else None,
        "on_front": is_front,
        "chosen": ended.chosen,
        "recipe": str(recipe),
        "command": f"skerry train --recipe {shlex.quote(str(recipe))}",
        "seconds": ended.seconds,
        "reason": ended.reason,
    }


def _num_parameters(recipe: Recipe) -> int:
    with torch.device("meta"), torch.random.fork_rng([]):
        model = make_model(recipe, vocab_size=recipe.vocabulary, bos=0)
    return sum(p.numel() for p in model.parameters())


def _table(plan: Plan, document: Mapping[str, Any]) -> Any:
    from skerry.run.tables import from_rows

    rows = [
        {
            "trial": t["number"],
            "goal": name,
            "value": None if t["values"] is None else t["values"][name],
            "on_front": t["on_front"],
            "chosen": json.dumps(t["chosen"], sort_keys=True),
            "seconds": t["seconds"],
            "reason": t["reason"],
        }
        for t in document["trials"]
        for name in plan.goals
    ]
    return from_rows(TABLE, rows)


def _words(plan: Plan, done: Done) -> str:
    if done.values is None:
        return f"trial {done.number} failed: {done.reason}"
    told = ", ".join(f"{name} {x:.4g}" for name, x in zip(plan.goals, done.values, strict=True))
    return f"trial {done.number}: {told}"
