"""What an objective is made of, as plain values of a recipe, checked before anything is trained.

    {"kurtosis": {"weight": 0.001, "sites": ["resid.out"], "layers": null, "form": "sequence", "target": null},
     "maximum": {"weight": 0.01, "sites": ["resid.out"], "layers": null, "form": "limit", "limit": 10.0, "temperature": 1.0},
     "z_loss": {"weight": 0.0001},
     "quantization": {"scheme": "w8a8", "probability": 1.0},
     "private": {"noise": 1.0, "clip": 1.0, "epsilon": null, "delta": null, "accountant": "rdp", "gradients": "auto", "chunk": 16}}

A part that is left out is not there; a bare number for a penalty is its weight, a bare word for `quantization` its scheme. A weight of 0, a
probability of 0 and a scheme of 16 bits are as good as left out: nothing is hooked, and loss and gradient are the plain ones bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from skerry.errors import NotPossible, UnknownOption, near_matches

PARTS = ("kurtosis", "maximum", "z_loss", "quantization", "private")
ACCOUNTANTS = ("rdp", "prv")
GRADIENTS = ("auto", "loop", "vmap")


@dataclass(frozen=True)
class SitePenalty:
    """Where a penalty is, and how strong.

    Attributes:
        weight: Factor on the mean over the sites.
        sites: Parts, as `skerry sites` names them.
        layers: Layers from 0; all when None.
    """

    weight: float = 0.0
    sites: tuple[str, ...] = ("resid.out",)
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class KurtosisPenalty(SitePenalty):
    """See `objective_kurtosis`.

    Attributes:
        form: `sequence` or `energy`.
        target: None for the kurtosis itself.
    """

    form: str = "sequence"
    target: float | None = None


@dataclass(frozen=True)
class MaximumPenalty(SitePenalty):
    """See `objective_maximum`.

    Attributes:
        form: `limit` or `soft`.
        limit: Largest |x| that costs nothing.
        temperature: Of the smooth maximum.
    """

    form: str = "limit"
    limit: float = 10.0
    temperature: float = 1.0


@dataclass(frozen=True)
class ZLoss:
    """See `objective_z`.

    Attributes:
        weight: Factor.
    """

    weight: float = 0.0


@dataclass(frozen=True)
class Quantization:
    """See `objective_rounding`.

    Attributes:
        scheme: What is rounded, in the words of `skerry impact`.
        probability: Of each linear map, in each forward.
    """

    scheme: str = "w16a16"
    probability: float = 1.0


@dataclass(frozen=True)
class Private:
    """See `private`.

    Attributes:
        noise: Standard deviation of the noise, in units of `clip`.
        clip: Largest norm of one window's gradient.
        epsilon: Privacy to reach over the whole training; then the noise follows from it.
        delta: Probability that the promise fails; 1 / (10 windows) when None.
        accountant: `rdp` or `prv`.
        gradients: How they are computed: `loop` (one window after the other), `vmap` (together), or `auto`.
        chunk: Windows whose gradients are held at once.
    """

    noise: float = 1.0
    clip: float = 1.0
    epsilon: float | None = None
    delta: float | None = None
    accountant: str = "rdp"
    gradients: str = "auto"
    chunk: int = 16


@dataclass(frozen=True)
class Settings:
    """All parts; None is not there."""

    kurtosis: KurtosisPenalty | None = None
    maximum: MaximumPenalty | None = None
    z_loss: ZLoss | None = None
    quantization: Quantization | None = None
    private: Private | None = None

    @property
    def eager_only(self) -> tuple[str, ...]:
        """The parts that torch.compile cannot be given."""
        found = ("kurtosis", "maximum", "quantization", "private")
        return tuple(name for name in found if getattr(self, name) is not None)


_KINDS: dict[str, tuple[type, str]] = {
    "kurtosis": (KurtosisPenalty, "weight"),
    "maximum": (MaximumPenalty, "weight"),
    "z_loss": (ZLoss, "weight"),
    "quantization": (Quantization, "scheme"),
    "private": (Private, "noise"),
}
# Smallest value, whether it is one itself, largest.
_NUMBERS: dict[str, tuple[float, bool, float]] = {
    "weight": (0.0, True, math.inf),
    "limit": (0.0, True, math.inf),
    "temperature": (0.0, False, math.inf),
    "target": (0.0, True, math.inf),
    "probability": (0.0, True, 1.0),
    "noise": (0.0, True, math.inf),
    "clip": (0.0, False, math.inf),
    "epsilon": (0.0, False, math.inf),
    "delta": (0.0, False, 1.0),
    "chunk": (1.0, True, math.inf),
}
_OPTIONAL = ("target", "epsilon", "delta", "layers")


def read_settings(given: Mapping[str, Any], *, compiled: bool = False, accumulation: int = 1) -> Settings:
    """The settings of a recipe; parts without any effect are left out.

    Args:
        given: Plain values.
        compiled: The model is to be compiled.
        accumulation: Micro-batches per step.

    Raises:
        UnknownOption: A part, an option or a value that does not exist; with near matches.
        UnknownSite: A site that a penalty cannot be on.
        NotPossible: A scheme that needs calibration; parts that cannot be compiled; private gradients over several micro-batches.
    """
    if unknown := [name for name in given if name not in PARTS]:
        raise UnknownOption(_unknown("part of an objective", str(unknown[0]), PARTS))
    made = {name: _part(name, value) for name, value in given.items() if value is not None}
    settings = Settings(**{name: part for name, part in made.items() if _acts(part)})
    if compiled and settings.eager_only:
        raise NotPossible(
            f"{' and '.join(settings.eager_only)} of the objective look into the model while it runs, which a compiled model hides; "
            "train with compile off"
        )
    if accumulation > 1 and settings.private is not None:
        raise NotPossible(
            f"private gradients take a whole batch at a time and not {accumulation} micro-batches; give the whole batch and "
            "accumulation 1: `chunk` says how many windows are in memory at once"
        )
    return settings


def _acts(part: Any) -> bool:
    if isinstance(part, SitePenalty | ZLoss):
        return part.weight > 0
    if isinstance(part, Quantization):
        from skerry.impact.scheme import Scheme

        return part.probability > 0 and Scheme.parse(part.scheme) != Scheme()
    return True


def _part(name: str, value: Any) -> Any:
    kind, bare = _KINDS[name]
    if not isinstance(value, Mapping):
        value = {bare: value}
    known = [f.name for f in fields(kind)]
    for option in value:
        if option not in known:
            raise UnknownOption(_unknown(f"option of {name}", str(option), known))
    part = kind(**{option: _value(name, option, x, kind) for option, x in value.items()})
    _check(name, part)
    return part


def _value(name: str, option: str, x: Any, kind: type) -> Any:
    where = f"{name}.{option}"
    if x is None and option in _OPTIONAL:
        return None
    if option in _NUMBERS:
        return _number(where, x, option)
    if option == "sites":
        words = (x,) if isinstance(x, str) else tuple(x) if isinstance(x, list | tuple) else ()
        if not words or not all(isinstance(w, str) for w in words):
            raise UnknownOption(f'{where} is {x!r}; it is a list of parts, e.g. ["resid.out", "mlp.down.in"]')
        return words
    if option == "layers":
        numbers = (x,) if isinstance(x, int) else tuple(x) if isinstance(x, list | tuple) else ()
        if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise UnknownOption(f"{where} is {x!r}; it is a list of layers from 0, e.g. [0, 1]")
        return numbers
    if not isinstance(x, str):
        raise UnknownOption(f"{where} is {x!r}; it is a word")
    return x


def _number(where: str, x: Any, option: str) -> float | int:
    low, itself, high = _NUMBERS[option]
    good = isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    if not good or x < low or (x == low and not itself) or x > high or (option == "delta" and x >= high):
        told = f"{low:g} or more" if itself else f"above {low:g}"
        raise UnknownOption(
            f"{where} is {x!r}; it is a number, {told}{'' if high == math.inf else f', at most {high:g}'}"
        )
    if option == "chunk":
        if int(x) != x:
            raise UnknownOption(f"{where} is {x!r}; it is a whole number of windows")
        return int(x)
    return float(x)


def _check(name: str, part: Any) -> None:
    if isinstance(part, SitePenalty):
        from skerry.redesign.objective_sites import check_parts

        check_parts(part.sites)
    if isinstance(part, KurtosisPenalty):
        _word("form of kurtosis", part.form, ("sequence", "energy"))
    if isinstance(part, MaximumPenalty):
        _word("form of maximum", part.form, ("limit", "soft"))
    if isinstance(part, Quantization):
        from skerry.impact.scheme import Scheme
        from skerry.redesign.objective_rounding import check_trainable

        check_trainable(Scheme.parse(part.scheme))
    if isinstance(part, Private):
        _word("accountant", part.accountant, ACCOUNTANTS)
        _word("way to private gradients", part.gradients, GRADIENTS)


def _word(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UnknownOption(_unknown(what, word, known))


def _unknown(what: str, word: str, known: Any) -> str:
    near = near_matches(word, list(known))
    return f"there is no {what} {word!r}{f'; did you mean {near}?' if near else '.'} There are {', '.join(known)}"
