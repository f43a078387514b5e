"""The choices of Outlier Suppression+: what is searched, on what, and how finely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from skerry.anatomy.seams import Seam
from skerry.errors import UnknownOption
from skerry.tame.options import take_options

KINDS = ("norm", "post-norm", "value", "up")
_WORDS = {
    "batches": ("all", "first"),
    "loss": ("aware", "plain"),
    "upstream": ("quantized", "float"),
    "search": ("fine", "every"),
}


@dataclass(frozen=True)
class OsPlusChoices:
    """How the search runs. The defaults are what it should be; `PUBLISHED` is what the paper and its code do.

    Attributes:
        kinds: Kinds of seams.
        shift: Shift wherever a seam carries one; `norms`: only behind a norm; False: nowhere.
        beyond_format: Shift also where the checkpoint format has no place for the biases that a shift makes.
        floor: s >= 1: channels below the threshold stay as they are.
        asymmetric: The two sides may have thresholds of their own.
        batches: Ranges and losses of all batches, or of the first one.
        loss: `aware`: attention and gate; `plain`: every map's own output.
        upstream: Blocks see what the rounded blocks before them give, or what the untouched ones give.
        search: Coarse to fine, or every threshold from the top down to 1 in K = max(100, max(x) / 0.5) equal steps.
        steps: Thresholds per seam of the search from coarse to fine.
        check: A block's changes are kept only as far as they bring the rounded block nearer to what it gave.
        tokens: The search reads this many tokens, or an eighth of all if that is more; what is in the end compared is read on all.
    """

    kinds: tuple[str, ...] = KINDS
    shift: bool | str = True
    beyond_format: bool = False
    floor: bool = False
    asymmetric: bool = True
    batches: str = "all"
    loss: str = "aware"
    upstream: str = "float"
    search: str = "fine"
    steps: int = 15
    check: bool = True
    tokens: int = 256

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise UnknownOption(
                    f"os+ takes {' or '.join(map(repr, words))} for {name}, not {getattr(self, name)!r}"
                )
        if self.shift not in (True, False, "norms"):
            raise UnknownOption(f"os+ takes True, False or 'norms' for shift, not {self.shift!r}")
        if wrong := [k for k in self.kinds if k not in KINDS]:
            raise UnknownOption(f"there is no kind of seam {wrong[0]!r}; there are {', '.join(KINDS)}")
        if self.steps < 3:
            raise UnknownOption(f"os+ needs 3 thresholds per seam or more to compare, not {self.steps}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> OsPlusChoices:
        """The choices that a method's options name, the defaults for the others.

        Raises:
            UnknownOption: An option that it does not have, or a value that the option does not take.
        """
        defaults = {f.name: f.default for f in fields(cls)}
        shift, kinds = options.get("shift", True), options.get("kinds", KINDS)
        chosen = take_options(
            {k: v for k, v in options.items() if k not in ("shift", "kinds")}, "os+", **defaults
        )
        if shift != "norms":
            shift = take_options({"shift": shift}, "os+", shift=True)["shift"]
        if isinstance(kinds, str):
            kinds = [k.strip() for k in kinds.replace("+", ",").split(",")]
        return cls(**{**chosen, "shift": shift, "kinds": tuple(kinds)})

    def no_shift(self, seam: Seam) -> str | None:
        """Why a seam gets no shift; None where it may get one."""
        if "shift" not in seam.carries:
            return seam.cannot.get("shift", "it is not declared")
        if self.shift is False or (self.shift == "norms" and seam.kind not in ("norm", "post-norm")):
            return "the option shift leaves it out"
        if seam.format is None and not self.beyond_format:
            return "its checkpoint format has no place for the biases that a shift makes; beyond_format=True shifts all the same"
        return None


PUBLISHED = OsPlusChoices(
    kinds=("norm", "post-norm"),
    shift="norms",
    floor=True,
    asymmetric=False,
    batches="first",
    upstream="quantized",
    search="every",
    check=False,
)
