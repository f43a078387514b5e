"""Methods one after the other on one model: look, prove, fold, and what the quantized model then is.

    for each method:  find -> prove in float64 -> fold -> compare the outputs with the original's
    at the end:       static grids of inputs, calibrated on the changed model

The model is changed in place. A method that fails its proof has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from skerry.anatomy.find_seams import check_seams
from skerry.anatomy.model import Anatomy
from skerry.anatomy.resolve import resolve
from skerry.anatomy.seams import Seam, Seams
from skerry.corpus.batch import Batch
from skerry.errors import NotPossible
from skerry.impact.calibrate import calibrate
from skerry.impact.quantize import Grid
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.run import Progress, Silent
from skerry.tame.memory import is_out_of_memory, smaller
from skerry.tame.method import Found, Job, Method, Row
from skerry.tame.transform import Equivalence, Transform, outputs, verify

# Tokens of one input on which a transform is proved and verified.
PROOF_TOKENS = 32
NO_FORMAT = "the checkpoint format of this architecture has no place for the biases that a shift needs here"
Remember = Callable[[int, Mapping[str, Tensor]], None]


@dataclass
class Setting:
    """What all methods of a pipeline share.

    Attributes:
        anatomy: The model; it is changed.
        batches: Calibration.
        scheme: How it will be quantized.
        seed: Of whatever is random.
        progress: Told how far it is.
        tokenizer: Turns ids to text.
        options: Method to its options.
        declared: Seams of the user's own.
        for_export: Leave out what no checkpoint of this architecture can hold.
        recalled: Number of the method to what a killed run remembered of its blocks.
        remember: Keeps what is known of a block: called with the number of the method, the block, and its tensors.
    """

    anatomy: Anatomy
    batches: Sequence[Batch]
    scheme: Scheme
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    tokenizer: Any = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    declared: Sequence[Seam] = ()
    for_export: bool = False
    recalled: Mapping[int, Mapping[int, Mapping[str, Tensor]]] = field(default_factory=dict)
    remember: Callable[[int, int, Mapping[str, Tensor]], None] = lambda _method, _layer, _state: None


@dataclass
class Tamed:
    """A model after a pipeline: its weights are changed, and this says how it is quantized.

    Attributes:
        name: The pipeline, methods joined by commas.
        anatomy: The changed model.
        scheme: How it is quantized.
        transforms: What was folded, in order, as `state()` of each.
        equivalence: Method to how near the model then was to the original.
        found: What the methods said beside changes of weights, put together.
        seconds: Time of search and folding.
        config_changes: Settings under which a checkpoint holds what was added.
        becomes: Model type under which it does, where it is not the own one.
        skip: First tokens of every input that the changed model does not read.
        replaced: Name of the method that gave another model in place of the original.
    """

    name: str
    anatomy: Anatomy
    scheme: Scheme
    transforms: list[dict[str, Tensor]] = field(default_factory=list)
    equivalence: dict[str, Equivalence] = field(default_factory=dict)
    found: Found = field(default_factory=Found)
    seconds: float = 0.0
    config_changes: dict[str, Any] = field(default_factory=dict)
    becomes: str | None = None
    skip: int = 0
    replaced: str | None = None
    handles: list[Callable[[], None]] = field(default_factory=list)

    @property
    def simulation(self) -> Simulation:
        """The quantized model; open it on `anatomy`."""
        f = self.found
        return Simulation(
            self.scheme,
            grids=f.grids,
            weights=f.weights,
            keep_columns=f.keep_columns,
            keep_entries=f.keep_entries,
            keep_positions=len(f.prefix),
            clip=f.clip,
        )

    @property
    def needs(self) -> dict[str, str]:
        """What runs beside the weights and has no place in a checkpoint: kind to where."""
        f = self.found
        where = {
            "columns in full precision": _names(f.keep_columns),
            "entries in full precision": _names(f.keep_entries),
            "clipping of inputs": _names(f.clip),
            "prefix tokens": f"{len(f.prefix)} tokens" if f.prefix else "",
            "compensated shortcut": f"{len(self.handles)} shortcuts past sublayers" if self.handles else "",
            "another model": f"{type(self.anatomy.model).__name__} of {self.replaced}"
            if self.replaced
            else "",
        }
        return {kind: place for kind, place in where.items() if place}

    @property
    def operations_added(self) -> int:
        """Operations that a forward of the float model has more than before."""
        return len(self.handles)


def _names(found: Mapping[str, Any]) -> str:
    names = list(found)
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def run_pipeline(setting: Setting, methods: Sequence[Method]) -> Tamed:
    """Run methods on a model, in order.

    Raises:
        NotPossible: A method cannot do anything on this model; the model is then as the methods before left it.
        NotEquivalent: A transform failed its proof.
    """
    anatomy = setting.anatomy
    ids = proof_ids(setting.batches)
    before = outputs(anatomy, ids)
    tamed = Tamed(",".join(m.name for m in methods) or "none", anatomy, setting.scheme)
    seams: Seams | None = None
    for number, method in enumerate(methods):
        start = time.perf_counter()
        if seams is None:
            seams = usable_seams(anatomy, setting)
        found = find(setting, method, number, anatomy, seams)
        if found.model is not None:
            anatomy, seams = resolve(found.model), None
            setting = _replaced(setting, tamed, method, found, anatomy)
            ids = proof_ids(setting.batches)
            before = outputs(anatomy, ids)
            tamed.seconds += time.perf_counter() - start
            _gather(tamed.found, found, method)
            continue
        changed = _fold(tamed, anatomy, seams, method, found, ids)
        tamed.seconds += time.perf_counter() - start
        if changed:
            shown = method.name if method.name not in tamed.equivalence else f"{method.name} ({number + 1})"
            tamed.equivalence[shown] = verify(anatomy, before, ids, float64=changed[0])
            if changed[
                1
            ]:  # the head may have its own weight now, and norms no gain: the places are found again
                anatomy, seams = resolve(anatomy.model), None
                tamed.anatomy = anatomy
        _gather(tamed.found, found, method)
    start = time.perf_counter()
    _static_grids(setting, tamed)
    tamed.seconds += time.perf_counter() - start
    return tamed


def _replaced(setting: Setting, tamed: Tamed, method: Method, found: Found, anatomy: Anatomy) -> Setting:
    """Another model is there, which reads less of every input: what follows is compared with it."""
    tamed.anatomy, tamed.replaced = anatomy, method.name
    tamed.skip += found.skip
    if found.equivalence is not None:
        tamed.equivalence[method.name] = found.equivalence
    return replace(setting, anatomy=anatomy, batches=[b.behind(found.skip) for b in setting.batches])


def usable_seams(anatomy: Anatomy, setting: Setting) -> Seams:
    """The proved seams; for an export without the changes that no checkpoint can hold."""
    seams = check_seams(anatomy, declared=setting.declared)
    if not setting.for_export:
        return seams
    kept = [s.without("shift", NO_FORMAT) if "shift" in s.carries and s.format is None else s for s in seams]
    missing = dict(seams.missing)
    for seam in [s for s in kept if s.kind == "post-norm"]:
        missing["post-norm"] = (
            "a compensated shortcut is an operation that no checkpoint of this architecture has; without --out it is measured"
        )
        kept.remove(seam)
    return Seams(kept, missing)


def find(setting: Setting, method: Method, number: int, anatomy: Anatomy, seams: Seams) -> Found:
    """What a method says; on a full memory it is asked again with batches of half the size."""
    batches = list(setting.batches)
    while True:
        job = Job(
            anatomy=anatomy,
            seams=seams,
            batches=batches,
            scheme=setting.scheme,
            seed=setting.seed,
            progress=setting.progress,
            tokenizer=setting.tokenizer,
            options=setting.options.get(method.name, {}),
            recalled=setting.recalled.get(number, {}),
            remember=lambda layer, state: setting.remember(number, layer, state),
        )
        try:
            return method.find(job)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or max(len(b.input_ids) for b in batches) == 1:
                raise
            batches = smaller(batches)
            setting.progress.note(
                f"out of memory in {method.name}: going on with {max(len(b.input_ids) for b in batches)} inputs per batch"
            )


def _fold(
    tamed: Tamed, anatomy: Anatomy, seams: Seams, method: Method, found: Found, ids: Tensor
) -> tuple[float, bool] | None:
    """Prove and fold; the float64 error and whether places must be found again. None where no weight changed."""
    error, again = None, False
    changes = [c for c in found.changes if not c.is_empty]
    if changes:
        transform = Transform(changes)
        error = transform.prove(anatomy, seams, ids=ids)
        transform.fold(anatomy, seams)
        tamed.transforms.append(transform.state())
        tamed.handles += [
            h for h, c in zip(transform.handles, changes, strict=True) if seams.named(c.seam).shortcut
        ]
        for change in changes:
            seam = seams.named(change.seam)
            if change.shift is not None and seam.format:
                tamed.config_changes.update(seam.format)
                tamed.becomes = seam.becomes or tamed.becomes
    if found.rotation is not None and not found.rotation.is_empty:
        from skerry.tame.rotation import plan_rotation

        plan = plan_rotation(anatomy)
        error = max(error or 0.0, found.rotation.prove(anatomy, plan, ids=ids))
        found.rotation.fold(anatomy, plan)
        tamed.transforms.append(found.rotation.state())
        tamed.config_changes.update(plan.needs)
        again = True
    return None if error is None else (error, again)


def _gather(total: Found, found: Found, method: Method) -> None:
    total.weights.update(found.weights)
    total.weight_grids.update(found.weight_grids)
    total.grids.update(found.grids)
    total.keep_columns.update(found.keep_columns)
    total.keep_entries.update(found.keep_entries)
    total.clip.update(found.clip)
    total.prefix = found.prefix or total.prefix
    total.no_export = found.no_export or total.no_export
    total.notes += [
        note if note.startswith(method.name) else f"{method.name}: {note}" for note in found.notes
    ]
    for table, rows in found.rows.items():
        named: list[Row] = [{"method": method.name, **row} for row in rows]
        total.rows.setdefault(table, []).extend(named)


def _static_grids(setting: Setting, tamed: Tamed) -> None:
    """Static grids that no method gave, from the calibration text on the changed model."""
    spec = setting.scheme.inputs
    if spec is None or spec.dynamic:
        return
    found = calibrate(
        tamed.anatomy,
        _behind(setting.batches, tamed.found.prefix),
        setting.scheme,
        keep_columns=tamed.found.keep_columns,
        keep_positions=len(tamed.found.prefix),
    )
    tamed.found.grids = {**found, **tamed.found.grids}


def _behind(batches: Sequence[Batch], prefix: Sequence[int]) -> list[Batch]:
    """The inputs behind a prefix."""
    if not prefix:
        return list(batches)
    out = []
    for b in batches:
        first = torch.tensor(prefix, dtype=b.input_ids.dtype).expand(len(b.input_ids), -1)
        keep = torch.cat([torch.ones_like(first, dtype=torch.bool), b.keep], dim=1)
        out.append(Batch(torch.cat([first, b.input_ids], dim=1), keep, b.sample))
    return out


def proof_ids(batches: Sequence[Batch]) -> Int[Tensor, "sample position"]:
    """A few real tokens without padding: the beginning of the input that has most of them."""
    batch = max(batches, key=lambda b: int(b.keep.sum(-1).max()))
    row = int(batch.keep.sum(-1).argmax())
    kept = batch.input_ids[row][batch.keep[row]]
    if not len(kept):
        raise NotPossible("the calibration has no token")
    return kept[None, :PROOF_TOKENS]


def grids_of(tamed: Tamed) -> Mapping[str, tuple[Tensor, Grid]]:
    """Quantized weights with their grids, where a method found both."""
    f = tamed.found
    return {name: (w, f.weight_grids[name]) for name, w in f.weights.items() if name in f.weight_grids}
