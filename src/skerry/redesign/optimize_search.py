"""The search itself, by Optuna, in a file that outlives the process.

Trials are asked and told one by one. The sampler of trial n is made anew with a seed that follows from the search's seed and n, and sees only the
trials told before: a search that was killed goes on as if it had not been, trial for trial, when trials run one after another. A trial that was
running is asked nothing anew: its training goes on. The first trial is the recipe that the search starts from, as far as the space has it, so
that every front can be compared with it.

`tpe` is the multi-objective tree-structured Parzen estimator (Ozaki et al. 2022), for some dozens of trials; `nsga2` is NSGA-II (Deb et al.
2002), for hundreds; `random` is the control.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from skerry.errors import MissingExtra, UnknownOption, near_matches
from skerry.redesign.optimize_space import Axis, Choice, value_in
from skerry.redesign.recipe import Recipe

SAMPLERS = ("tpe", "nsga2", "random")
_STUDY = "skerry"


class Ended(NamedTuple):
    """A trial that is over.

    Attributes:
        number: From 0.
        chosen: Value of every axis, by dotted name.
        values: Of the goals in their order; empty for a trial that failed.
        seconds: Time that it took; None where it is not known.
        reason: Why it failed; None for a trial that did not.
    """

    number: int
    chosen: dict[str, Any]
    values: tuple[float, ...]
    seconds: float | None
    reason: str | None


def require_optuna() -> None:
    """Refuse early.

    Raises:
        MissingExtra: Optuna is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as absent:
        raise MissingExtra(
            "the search is Optuna's, which is not installed; `pip install 'skerry[optimize]'`"
        ) from absent


def check_sampler(name: str) -> None:
    """Refuse an unknown sampler.

    Raises:
        UnknownOption: With near matches.
    """
    if name not in SAMPLERS:
        near = near_matches(name, list(SAMPLERS))
        raise UnknownOption(
            f"there is no sampler {name!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(SAMPLERS)}"
        )


class Search:
    """A search that lives in a file.

    Args:
        file: Where; one that is there is gone on with.
        axes: What may be chosen.
        base: The first trial.
        num_goals: Numbers per trial.
        sampler: Of `SAMPLERS`.
        seed: Of the samplers.
        trials: How many there will be; sizes the sampler's random start and populations.
    """

    def __init__(
        self,
        file: Path,
        axes: tuple[Axis, ...],
        base: Recipe,
        *,
        num_goals: int,
        sampler: str,
        seed: int,
        trials: int,
    ) -> None:
        """Open or begin the file."""
        require_optuna()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.axes, self.sampler, self.seed, self.size = axes, sampler, seed, trials
        with _quietly():
            storage = JournalStorage(JournalFileBackend(str(file)))
            self._study = optuna.create_study(
                storage=storage,
                study_name=_STUDY,
                directions=["minimize"] * num_goals,
                load_if_exists=True,
                sampler=self._sampler(0),
            )
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(_first(axes, base))

    def ended(self) -> list[Ended]:
        """The trials that are over, by number."""
        from optuna.trial import TrialState

        states = (TrialState.COMPLETE, TrialState.FAIL)
        return [
            Ended(
                number=t.number,
                chosen=dict(t.user_attrs.get("chosen", {})),
                values=tuple(t.values) if t.state == TrialState.COMPLETE else (),
                seconds=t.user_attrs.get("seconds"),
                reason=t.user_attrs.get("reason"),
            )
            for t in self._study.get_trials(deepcopy=False, states=states)
        ]

    def unfinished(self) -> list[tuple[int, dict[str, Any]]]:
        """Numbers and choices of the trials that were running when the process ended."""
        import optuna
        from optuna.trial import TrialState

        found = []
        for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with _quietly():
                self._study.sampler = self._sampler(t.number)
                trial = optuna.trial.Trial(self._study, t._trial_id)
                found.append((t.number, self._choose(trial)))
        return found

    def ask(self) -> tuple[int, dict[str, Any]]:
        """The next trial: its number, and the value of every axis."""
        with _quietly():
            self._study.sampler = self._sampler(len(self._study.get_trials(deepcopy=False)))
            trial = self._study.ask()
            return trial.number, self._choose(trial)

    def tell(
        self, number: int, values: tuple[float, ...] | None, *, seconds: float, reason: str | None = None
    ) -> None:
        """End a trial, with the numbers of its goals or with the reason why it has none."""
        from optuna.trial import TrialState

        with _quietly():
            trial_id = self._study.get_trials(deepcopy=False)[number]._trial_id
            self._study._storage.set_trial_user_attr(trial_id, "seconds", seconds)
            if reason is not None:
                self._study._storage.set_trial_user_attr(trial_id, "reason", reason)
            if values is None:
                self._study.tell(number, state=TrialState.FAIL)
            else:
                self._study.tell(number, list(values))

    def _choose(self, trial: Any) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for axis in self.axes:
            chosen[axis.name] = _suggest(trial, axis)
        trial.set_user_attr("chosen", chosen)
        return chosen

    def _sampler(self, number: int) -> Any:
        import numpy as np
        from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sampler == "random":
            return RandomSampler(seed=seed)
        if self.sampler == "nsga2":
            return NSGAIISampler(population_size=min(50, max(4, self.size // 5)), seed=seed)
        return TPESampler(n_startup_trials=min(10, max(4, self.size // 3)), seed=seed)


def _suggest(trial: Any, axis: Axis) -> Any:
    if isinstance(axis, Choice):
        # By place: Optuna wants plain scalars, and values may be lists or mappings.
        return axis.values[trial.suggest_categorical(axis.name, list(range(len(axis.values))))]
    if axis.instead is not None and not trial.suggest_categorical(f"{axis.name}?", [False, True]):
        return axis.instead
    if axis.integer:
        return trial.suggest_int(axis.name, int(axis.low), int(axis.high), log=axis.log)
    return trial.suggest_float(axis.name, float(axis.low), float(axis.high), log=axis.log)


def _first(axes: tuple[Axis, ...], base: Recipe) -> dict[str, Any]:
    """The base recipe in the words of the space; what the space does not have is left to the sampler."""
    found: dict[str, Any] = {}
    for axis in axes:
        value = value_in(base, axis.name)
        if isinstance(axis, Choice):
            found[axis.name] = axis.values.index(value) if value in axis.values else 0
            continue
        is_number = isinstance(value, int | float) and axis.low <= value <= axis.high
        if axis.instead is not None:
            found[f"{axis.name}?"] = is_number
        if is_number:
            found[axis.name] = value
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Optuna tells every trial on its own logger, and warns of what it calls experimental."""
    import warnings

    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
