"""The settings that a study can be asked for by one word.

laptop  2 million parameters, the built-in corpus, five variants, one seed: within 40 minutes on two cores
full    60 and 125 million parameters, every variant, three seeds, a text of one's own, one GPU for each training
smoke   a few thousand parameters and steps that end in seconds: whether everything runs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from skerry.errors import UnknownOption
from skerry.redesign.recipe import Recipe
from skerry.redesign.study_plan import BASELINE, Measured, Plan, make_arms, named
from skerry.redesign.train_check import check_recipe

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 1, "width": 32, "heads": 2, "vocabulary": 300, "context": 32},
    "1m": {"layers": 3, "width": 128, "heads": 4, "vocabulary": 1024, "context": 128},
    "2m": {"layers": 4, "width": 192, "heads": 6, "vocabulary": 1024, "context": 128},
    "5m": {"layers": 5, "width": 256, "heads": 8, "vocabulary": 4096, "context": 128},
    "60m": {"layers": 10, "width": 576, "heads": 9, "vocabulary": 50304, "context": 1024},
    "125m": {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50304, "context": 1024},
}
"""What a size changes in the recipe; vocabulary and context belong to it."""
FEW = ("softmax", "scaled", "sink-logit", "off-by-one", "qwen-gate-headwise")
"""The baseline, the two cures that cost one number per head and token or per head, the one that costs nothing, and the one in large models."""
ALL = "all"


@dataclass(frozen=True)
class Preset:
    """Settings by one word.

    Attributes:
        what: In a sentence.
        variants: Of attention; `all` for every one.
        seeds: How many, from 0.
        sizes: Names of `SIZES`.
        base: What they change in the recipe's defaults.
        measured: What is measured on each arm.
    """

    what: str
    variants: tuple[str, ...]
    seeds: int
    sizes: tuple[str, ...]
    base: Mapping[str, Any]
    measured: Measured = field(default_factory=Measured)


PRESETS: dict[str, Preset] = {
    "laptop": Preset(
        "2 million parameters, 5 variants, 1 seed, built-in corpus; within 40 minutes on two cores",
        FEW,
        1,
        ("2m",),
        {"steps": 1200, "batch": 16, "learning_rate": 3e-3, "warmup": 100},
    ),
    "full": Preset(
        "60 and 125 million parameters, every variant, 3 seeds, a text of your own (--text); for a GPU node",
        (ALL,),
        3,
        ("60m", "125m"),
        {
            "steps": 20000,
            "batch": 32,
            "accumulation": 4,
            "learning_rate": 1e-3,
            "warmup": 1000,
            "weight_decay": 0.1,
            "precision": "bf16",
            "compile": True,
            "optimiser_options": {"betas": [0.9, 0.95]},
        },
        Measured(windows=256, points=40),
    ),
    "smoke": Preset(
        "one layer, 32 wide, 20 steps, 3 variants: whether everything runs, in seconds",
        ("softmax", "scaled", "sink-logit"),
        1,
        ("tiny",),
        {"steps": 20, "batch": 4, "warmup": 5},
        Measured(windows=16, calibration=4, points=4, schemes=("w8a8-tensor", "w4a4-tensor")),
    ),
}


def make_plan(
    preset: str = "laptop",
    *,
    variants: tuple[str, ...] | None = None,
    seeds: int | tuple[int, ...] | None = None,
    sizes: tuple[str, ...] | None = None,
    baseline: str = BASELINE,
    battery: bool = False,
    **recipe: Any,
) -> Plan:
    """The attention study of a preset, with what is asked otherwise.

    Args:
        preset: A name of `PRESETS`.
        variants: Names, perhaps with options; the baseline is added where it is missing.
        seeds: How many, from 0; or which.
        sizes: Names of `SIZES`.
        baseline: What the others are compared with.
        battery: Also run the functional battery on every arm.
        recipe: Fields of a recipe that all arms share; None for the preset's.

    Raises:
        UnknownOption: A name that does not exist, with near matches; an option that a variant does not take; a number below one.
    """
    chosen = PRESETS[named(preset, list(PRESETS), "preset")]
    wanted = list(variants or chosen.variants)
    if ALL in wanted:
        from skerry.redesign.variants import variants as every

        wanted = [w for w in wanted if w != ALL] + [v for v in every() if v not in wanted]
    labels = [baseline, *(v for v in wanted if v != baseline)]
    names = sizes or chosen.sizes
    count = chosen.seeds if seeds is None else seeds
    every_seed = tuple(range(count)) if isinstance(count, int) else count
    if not every_seed:
        raise UnknownOption(f"--seeds is {seeds}; a study needs at least 1")
    base = replace(Recipe(), **{**chosen.base, **{k: v for k, v in recipe.items() if v is not None}})
    if base.warmup >= base.steps > 1:
        base = replace(base, warmup=max(1, base.steps // 10))
    asked = {k: v for k, v in recipe.items() if v is not None and k in ("vocabulary", "context")}
    shapes = {name: {**SIZES[named(name, list(SIZES), "size")], **asked} for name in names}
    measured = replace(chosen.measured, battery=battery, points=min(chosen.measured.points, base.steps))
    arms = make_arms(labels, base=base, sizes=shapes, seeds=every_seed)
    # Decoder and optimiser are built without memory: an option that a variant does not take is found before anything is trained.
    for arm in arms[: len(labels) * len(names)]:
        check_recipe(arm.recipe)
    return Plan("attention", preset, baseline, arms, measured)
