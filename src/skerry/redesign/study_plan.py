"""What a study trains: arms around one recipe, an arm being a label, a size, a seed and the recipe that follows from them.

    attention study:  arms = variants x sizes x seeds,  recipe(variant, size, seed) = base + size + {attention, seed}

Arms of one size and seed see the same windows of text in the same order, and all of one size are judged on the same held-out windows, so
what a variant gives beside the baseline is a paired difference. A variant may carry options: `NAME:option=value,option=value`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skerry.errors import UnknownOption, near_matches
from skerry.redesign.recipe import Recipe

BASELINE = "softmax"
# Static ranges per tensor are what outliers hurt most and accelerators like best; ranges per token are what is left when one can afford them.
SCHEMES = ("w8a8-tensor", "w6a6-tensor", "w4a4-tensor", "w8a8", "w6a6", "w4a4")


@dataclass(frozen=True)
class Measured:
    """What is measured on every arm.

    Attributes:
        windows: Held-out windows that judge a finished arm.
        calibration: Training windows on which static ranges are found.
        points: Points of the curve of held-out loss over steps.
        schemes: Quantization schemes, rounding to nearest.
        sparsities: Shares of weights removed by magnitude.
        battery: Also run the functional battery.
    """

    windows: int = 128
    calibration: int = 32
    points: int = 20
    schemes: tuple[str, ...] = SCHEMES
    sparsities: tuple[float, ...] = (0.5,)
    battery: bool = False

    def plain(self) -> dict[str, Any]:
        """As a JSON object."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Arm:
    """One training of a study.

    Attributes:
        label: What is compared: a variant, or a variant and what else differs.
        size: Name of the size.
        seed: Of weights and windows.
        recipe: Everything its training needs.
    """

    label: str
    size: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Fit for a folder."""
        return "-".join(_tidy(str(part)) for part in (self.size, self.label, f"seed{self.seed}"))


@dataclass(frozen=True)
class Plan:
    """A whole study.

    Attributes:
        study: Its name.
        preset: Where its settings come from.
        baseline: Label that the others are compared with.
        arms: Every training.
        measured: What is measured on each.
    """

    study: str
    preset: str
    baseline: str
    arms: tuple[Arm, ...]
    measured: Measured = field(default_factory=Measured)

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the arms, the baseline first."""
        return tuple(dict.fromkeys([self.baseline, *(a.label for a in self.arms)]))

    @property
    def sizes(self) -> tuple[str, ...]:
        """In the order of the arms."""
        return tuple(dict.fromkeys(a.size for a in self.arms))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted({a.seed for a in self.arms}))

    def key(self, arm: Arm) -> str:
        """What decides an arm's result: recipe, measurements, the text as it is now, and the versions of what computes."""
        return content_key(arm.recipe, self.measured)

    def whole_key(self) -> str:
        """What decides the study's tables."""
        parts = [[a.label, a.size, a.seed, self.key(a)] for a in self.arms]
        return _digest({"study": self.study, "baseline": self.baseline, "arms": parts})

    def request(self) -> dict[str, Any]:
        """What a run directory of this study must agree on; variants, sizes and seeds may grow."""
        first = self.arms[0].recipe.plain()
        # What differs between arms is no part of what they share.
        shared = {k: v for k, v in first.items() if all(a.recipe.plain()[k] == v for a in self.arms)}
        mine = ("seed", "attention", "attention_options", "layers", "width", "heads", "kv_heads", "inner")
        recipe = {k: v for k, v in shared.items() if k not in mine}
        return {
            "study": self.study,
            "baseline": self.baseline,
            "recipe": recipe,
            "measured": self.measured.plain(),
        }


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """`clipped:alpha=4` as ("clipped", {"alpha": 4}); values are JSON where they can be, otherwise words.

    Raises:
        UnknownOption: A piece without `=`.
    """
    name, _, rest = text.strip().partition(":")
    options: dict[str, Any] = {}
    for piece in filter(None, rest.split(",")):
        key, equals, value = piece.partition("=")
        if not (key and equals):
            raise UnknownOption(f"{text!r}: {piece!r} is no option=value; e.g. {name}:alpha=4")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError:
            options[key.strip()] = value
    return name, options


def make_arms(
    labels: Mapping[str, Mapping[str, Any]] | Sequence[str],
    *,
    base: Recipe,
    sizes: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
) -> tuple[Arm, ...]:
    """All arms, seed by seed, so that a study stopped early has whole rows.

    Args:
        labels: Variants as the command line writes them; or label to what it changes in the recipe.
        base: What all share.
        sizes: Name to what it changes in the recipe.
        seeds: One training each.

    Raises:
        UnknownOption: A variant that does not exist, with near matches; one that does not take its options; a name given twice.
    """
    changes = labels if isinstance(labels, Mapping) else {label: variant_change(label) for label in labels}
    if not changes or not sizes or not seeds:
        raise UnknownOption("a study needs at least one variant, one size and one seed")
    for what, given in (("variant", list(labels)), ("seed", [str(s) for s in seeds])):
        if twice := sorted({x for x in given if given.count(x) > 1}):
            raise UnknownOption(f"{what} {twice[0]} is given twice")
    return tuple(
        Arm(label, size, seed, replace(base, **{**sizes[size], **change, "seed": seed}))
        for seed in seeds
        for size in sizes
        for label, change in changes.items()
    )


def variant_change(label: str) -> dict[str, Any]:
    """What a variant of the command line changes in the recipe."""
    name, options = parse_variant(label)
    return {"attention": name, "attention_options": options}


def named(name: str, known: Sequence[str], what: str) -> str:
    """The name, if it is known.

    Raises:
        UnknownOption: With near matches.
    """
    if name not in known:
        near = near_matches(name, list(known))
        raise UnknownOption(
            f"there is no {what} {name!r}{f'; did you mean {near}?' if near else ''} known: {', '.join(known)}"
        )
    return name


def content_key(recipe: Recipe, measured: Measured) -> str:
    """Key of an arm's result. Text and tokenizer folders count by names, sizes and times of change, as repeated commands do."""
    given = {name: _fingerprint(getattr(recipe, name)) for name in ("text", "tokenizer")}
    versions = [version(name) for name in ("skerry", "torch")]
    return _digest(
        {"recipe": recipe.plain(), "measured": measured.plain(), "given": given, "versions": versions}
    )


def _fingerprint(place: str | None) -> Any:
    if place is None or not Path(place).exists():
        return place
    path = Path(place)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[p.name, (stat := p.stat()).st_size, stat.st_mtime_ns] for p in files]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _tidy(words: str) -> str:
    return "".join(c if c.isalnum() or c in "-.=" else "_" for c in words)
