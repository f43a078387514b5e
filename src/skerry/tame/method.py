"""What a taming method is: it looks at a model with calibration batches and says what to change; it changes nothing itself.

A method returns `Found`. Changes on seams and rotations are proved and folded by the pipeline; everything else is how the quantized model
differs from plain rounding to nearest. Methods are written once, on seams and dense maps, and never name an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from skerry.anatomy.model import Anatomy
from skerry.anatomy.seams import Seams
from skerry.corpus.batch import Batch
from skerry.impact.quantize import Grid
from skerry.impact.scheme import Scheme
from skerry.run import Progress, Silent
from skerry.tame.transform import Equivalence, SeamChange

if TYPE_CHECKING:
    from torch import nn

    from skerry.tame.rotation import Rotation

Row = dict[str, Any]


@dataclass
class Job:
    """What a method is given.

    Attributes:
        anatomy: The model, as the methods before left it. A method must leave it as it is.
        seams: Its seams, proved.
        batches: Calibration.
        scheme: How the model will be quantized.
        seed: Of whatever is random.
        progress: Told how far it is: `start(what, total, unit)`, `advance()`, `done()`.
        tokenizer: Turns ids to text; None without.
        options: The method's own options, by name.
        recalled: Blocks that a killed run had finished, with what it remembered of each.
        remember: Keeps what is known of a block, so that a killed run goes on behind it.
    """

    anatomy: Anatomy
    seams: Seams
    batches: Sequence[Batch]
    scheme: Scheme
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    tokenizer: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    recalled: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    remember: Callable[[int, Mapping[str, Tensor]], None] = lambda _layer, _state: None


@dataclass
class Found:
    """What a method says. Everything is optional.

    Attributes:
        changes: Changes on seams.
        rotation: A rotation of the residual stream and of heads.
        weights: Quantized weights [out in] by dense name, as float numbers on their grid.
        weight_grids: Their grids.
        grids: Static grids of inputs by dense name.
        keep_columns: Input channels of a map that stay in full precision, by dense name.
        keep_entries: Flat entries of a weight that stay in full precision.
        clip: Inputs of a map are clipped to (low, high) before rounding.
        prefix: Token ids whose keys and values stand in the cache before every input.
        model: Another model in the place of the one that was given, which stays as it is.
        skip: First tokens of every input that the other model does not read.
        equivalence: How near the other model is to the one that was given, behind those tokens; None where it is another function.
        rows: Rows for the run's tables, by table.
        notes: What was skipped and why, in words.
        no_export: Why a checkpoint cannot hold this; None where it can.
    """

    changes: list[SeamChange] = field(default_factory=list)
    rotation: Rotation | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    weight_grids: dict[str, Grid] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    keep_columns: dict[str, Tensor] = field(default_factory=dict)
    keep_entries: dict[str, Tensor] = field(default_factory=dict)
    clip: dict[str, tuple[float, float]] = field(default_factory=dict)
    prefix: tuple[int, ...] = ()
    model: nn.Module | None = None
    skip: int = 0
    equivalence: Equivalence | None = None
    rows: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    no_export: str | None = None


@dataclass(frozen=True)
class Method:
    """One taming method.

    Attributes:
        name: As on the command line.
        what: One line.
        source: Paper, section, equation.
        kind: `transform` (equivalent), `weights` (rounding), or `runtime` (changes what runs).
        find: Does the work.
        cost: Rank from cheap to dear: `auto` tries in this order.
        needs: What it needs of the scheme: `weights`, `inputs`; refused with a message where it is absent.
        replaces: Gives another model, for which no exchange format has a class; None where it does not, else what writes that model.
    """

    name: str
    what: str
    source: str
    kind: str
    find: Callable[[Job], Found]
    cost: int = 1
    needs: tuple[str, ...] = ()
    replaces: str | None = None
