"""The Python face of the search for several goals at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.run import Progress, Run

if TYPE_CHECKING:
    import pyarrow as pa

    from skerry.redesign.optimize import Plan
    from skerry.redesign.recipe import Recipe


class Optimized:
    """A finished search.

    Attributes:
        run: The run behind it.
    """

    def __init__(self, run: Run) -> None:
        """Of a run that holds a finished search."""
        self.run = run

    @property
    def document(self) -> dict[str, Any]:
        """The whole answer as plain values."""
        from skerry.redesign.optimize import DOCUMENT

        return dict(json.loads(self.run.text(DOCUMENT)))

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Every trial: number, values, on_front, chosen, recipe, command, seconds, reason."""
        return list(self.document["trials"])

    @property
    def front(self) -> list[dict[str, Any]]:
        """The trials that no other beats, best in the first goal first."""
        document = self.document
        by_number = {t["number"]: t for t in document["trials"]}
        return [by_number[n] for n in document["front"]]

    def table(self) -> pa.Table:
        """One row per trial and goal."""
        from skerry.redesign.optimize import TABLE

        return self.run.table(TABLE)

    def figures(self, folder: str | Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
        """Write the picture of the front; the files."""
        from skerry.report.pareto import write_pareto

        return write_pareto(self.document, folder, formats)

    def __repr__(self) -> str:
        document = self.document
        goals = ", ".join(g["name"] for g in document["goals"])
        return (
            f"<Search for {goals}: {len(document['trials'])} trials, {len(document['front'])} on the front; "
            ".front, .trials, .figures(folder)>"
        )


def optimize(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    goals: Iterable[str] | None = None,
    space: Mapping[str, Any] | str | Path | None = None,
    trials: int = 16,
    sampler: str = "tpe",
    seed: int = 0,
    seeds: int = 1,
    processes: int = 1,
    keep: bool = False,
    progress: Progress | None = None,
    **fields: Any,
) -> Optimized:
    """Search weights of the objective and choices of the architecture for several goals at once, or go on, or read what is finished.

    Args:
        recipe: Where to start from, as for `train`; a decoder of 0.1 million parameters and 300 steps when None.
        out: Run directory; one under ./skerry-runs when None, the same for the same search.
        goals: What is to be small: `loss`, `int8`, `int4`, `outlier`, or schemes; loss, int4 and outlier when None.
        space: What may be chosen, or a JSON file with it; attention, optimiser, learning rate, kurtosis, z-loss and noise when None.
        trials: How many recipes are trained.
        sampler: `tpe`, `nsga2` or `random`.
        seed: Of the search.
        seeds: Trainings per recipe, whose goals are averaged.
        processes: Trials at the same time.
        keep: Keep the trained models.
        progress: Told how far it is.
        fields: Fields of the recipe that are otherwise, e.g. `steps=1000`.

    Raises:
        SkerryError: What was wrong, what was expected, what to do.
    """
    from skerry.redesign.optimize import Plan
    from skerry.redesign.optimize import optimize as search
    from skerry.redesign.optimize_space import read_space_file

    wanted = space if space is None or isinstance(space, Mapping) else read_space_file(space)
    words = (goals,) if isinstance(goals, str) else None if goals is None else tuple(goals)
    plan = Plan(
        base=start_recipe(recipe, fields),
        trials=trials,
        sampler=sampler,
        seed=seed,
        seeds=seeds,
        processes=processes,
        keep=keep,
    )
    if words is not None:
        plan = replace(plan, goals=words)
    if wanted is not None:
        plan = replace(plan, space=dict(wanted))
    return Optimized(search(plan, default_folder(plan) if out is None else out, progress))


def start_recipe(recipe: Recipe | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]) -> Recipe:
    """The recipe that a search starts from."""
    from skerry.redesign.optimize import LAPTOP
    from skerry.redesign.train_recipes import find_recipe

    return find_recipe(LAPTOP if recipe is None else recipe, fields)


def default_folder(plan: Plan) -> Path:
    """Where a search goes that was not told where: the same place for the same search."""
    from skerry.outliers.options import DEFAULT_FOLDER

    return DEFAULT_FOLDER / f"optimize-{plan.key()}"
