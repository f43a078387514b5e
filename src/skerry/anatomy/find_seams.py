"""The seams of a model, from its sites; and the proof that each one is what it claims to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skerry.anatomy.exact import run_float64
from skerry.anatomy.model import Anatomy, get, run
from skerry.anatomy.seam_places import Finder
from skerry.anatomy.seams import NormWriter, Seam, Seams
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import trial_ids, watch
from skerry.errors import BrokenModel, UnknownOption, WrongSeam, near_matches

# Error of the last hidden states, relative to the largest, above which a random change has reached the output: rounding of float64
# through a hundred blocks stays below 1e-12, a wrong claim gives 1e-3 to 1.
BOUND = 1e-9


def find_seams(anatomy: Anatomy) -> Seams:
    """All seams that the sites of a model suggest, unchecked; `check_seams` proves them."""
    return Finder(anatomy).find()


def declare_norm_seam(anatomy: Anatomy, name: str, *, norm: str, readers: Sequence[str]) -> Seam:
    """A seam of your own: a norm and all the linear maps that read it.

    Args:
        anatomy: The model with its places.
        name: How messages call it.
        norm: Path of the norm in the model, e.g. `model.layers.0.input_layernorm`.
        readers: Paths of the linear maps.

    Returns:
        The seam; `check_seams` proves it, and `tame` does so before it uses it.

    Raises:
        UnknownOption: A path that the model does not have.
    """
    finder = Finder(anatomy)
    module = get(anatomy.model, norm)
    if not isinstance(module, nn.Module) or not isinstance(getattr(module, "weight", None), Tensor):
        raise UnknownOption(f"seam {name}: the model has no norm with a weight at {norm!r}")
    known = {d.name: d for d in finder.maps}
    for path in readers:
        if path not in known:
            near = near_matches(path, list(known))
            raise UnknownOption(
                f"seam {name}: the model has no linear map {path!r}{f'; did you mean {near}?' if near else ''}"
            )
    chosen = tuple(known[path] for path in readers)
    plus = next((b.matrix.plus for b in anatomy.matrices.values() if b.parameter is module.weight), 0.0)
    layer = chosen[0].layer or 0
    return finder.norm_seam(name, layer, chosen[0].reads, NormWriter(module, plus), chosen)


def random_change(seam: Seam, generator: torch.Generator) -> dict[str, Tensor]:
    """A shift of size 1 and a scale between 1/2 and 2, as far as the seam carries them."""
    change: dict[str, Tensor] = {}
    if "shift" in seam.carries:
        change["shift"] = torch.randn(seam.free, generator=generator, dtype=torch.float64)
    if "scale" in seam.carries:
        change["scale"] = (torch.rand(seam.free, generator=generator, dtype=torch.float64) * 1.4 - 0.7).exp()
    return change


def check_seams(
    anatomy: Anatomy, seams: Seams | None = None, *, seed: int = 0, declared: Sequence[Seam] = ()
) -> Seams:
    """Prove every seam with one random change on one random batch, in float64.

    Args:
        anatomy: The model with its places; it is afterwards as before.
        seams: The seams to prove; all that the sites suggest by default.
        seed: Of the changes.
        declared: Seams of the user's own, which must hold.

    Returns:
        The seams that hold. A change that reached the output is taken from its seam, with the size of the error as the reason.

    Raises:
        WrongSeam: One of the declared seams does not hold.
    """
    seams = find_seams(anatomy) if seams is None else seams
    proof = _Proof(anatomy, seed)
    kept, missing = proof.sift(list(seams)), dict(seams.missing)
    missing.update(proof.reasons)
    for seam in declared:
        if (error := proof.error([seam])) > BOUND:
            raise WrongSeam(
                f"seam {seam.name} does not hold: a random change of it moved the output by {error:.1e} of its size (1e-9 is allowed). "
                f"Something else reads {seam.site}, or one of its readers ({', '.join(d.name for d in seam.readers)}) does not"
            )
    return Seams([*kept, *declared], missing)


def _where_broken(anatomy: Anatomy, ids: Tensor) -> str:
    """In which layer the model leaves the finite numbers, in words."""
    found: list[Site] = []

    def look(site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if site.layer is not None and not bool(torch.isfinite(x).all()):
            found.append(site)

    with torch.no_grad(), watch(anatomy, on_activation=look):
        run(anatomy, ids)
    first = min(found, default=None)
    where = f"layer {first.layer} ({first})" if first is not None else "the embedding or the final norm"
    return (
        f"the model gives NaN or infinity in {where} for its first {ids.numel()} tokens; "
        "nothing can be proved or calibrated on it: check the checkpoint, or its dtype (--dtype fp32)"
    )


class _Proof:
    """Random changes of seams, and how far each reaches the output."""

    def __init__(self, anatomy: Anatomy, seed: int) -> None:
        self.anatomy, self.seed = anatomy, seed
        self.ids = trial_ids(anatomy.config, 12)
        self.before = run_float64(anatomy, self.ids)
        if not bool(torch.isfinite(self.before).all()):
            raise BrokenModel(_where_broken(anatomy, self.ids))
        self.reasons: dict[str, str] = {}

    def error(self, seams: Sequence[Seam]) -> float:
        """Largest change of an output, relative to the largest output, with a random change of all these seams."""
        generator = torch.Generator().manual_seed(self.seed)
        changes = {seam.name: random_change(seam, generator) for seam in seams}
        return changed_error(self.anatomy, self.ids, self.before, seams, lambda seam: changes[seam.name])

    def sift(self, seams: list[Seam]) -> list[Seam]:
        """The seams that hold."""
        if not seams or self.error(seams) <= BOUND:
            return seams
        if len(seams) > 1:
            groups: dict[Any, list[Seam]] = defaultdict(list)
            for seam in seams:
                groups[seam.kind].append(seam)
            if len(groups) == 1:
                half = len(seams) // 2
                groups = defaultdict(list, {0: seams[:half], 1: seams[half:]})
            return [seam for group in groups.values() for seam in self.sift(group)]
        return self._less(seams[0])

    def _less(self, seam: Seam) -> list[Seam]:
        """A seam that does not hold as it is: with the changes that it does carry, if any."""
        for change in ("shift", "scale"):
            if seam.carries == {"shift", "scale"}:
                other = seam.without(
                    change, f"a random {change} moved the output: the tensor is read by something else"
                )
                if self.error([other]) <= BOUND:
                    return [other]
        error = self.error([seam])
        self.reasons[seam.name] = (
            f"a random change moved the output by {error:.1e} of its size: the tensor is not only what its neighbours make of it"
        )
        return []


def changed_error(
    anatomy: Anatomy,
    ids: Tensor,
    before: Tensor,
    seams: Sequence[Seam],
    change: Callable[[Seam], Mapping[str, Tensor]],
) -> float:
    """How far float64 outputs move when seams are changed: max |new - old| / max |old|. The model is afterwards as before."""
    by_layer: dict[int | None, list[Seam]] = defaultdict(list)
    for seam in seams:
        by_layer[seam.layer].append(seam)
    undo: list[Callable[[], None]] = []

    def apply(layer: int | None) -> None:
        undo.extend(seam.apply(**change(seam)) for seam in by_layer[layer])

    try:
        # A post-norm seam lies across two blocks.
        crosses = any(seam.kind == "post-norm" for seam in seams)
        after = run_float64(anatomy, ids, change=apply, whole=crosses)
    finally:
        for take_away in undo:
            take_away()
    error = float((after - before).abs().max() / before.abs().max())
    return error if error == error else float("inf")
