"""The seams of a model, from its sites; and the proof that each one is what it claims to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.exact import run_float64
from skerry.anatomy.model import Anatomy, get, text_config
from skerry.anatomy.seams import NormWriter, RowsWriter, Seam, Seams
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import trial_ids
from skerry.errors import UnknownOption, WrongSeam, near_matches

# Error of the last hidden states, relative to the largest, above which a random change has reached the output: rounding of float64
# through a hundred blocks stays below 1e-12, a wrong claim gives 1e-3 to 1.
BOUND = 1e-9
NO_RMS_SHIFT = "the norm has no bias, and the checkpoint format has no place for one"
NO_SINK_SHIFT = "a learned sink takes a share of the attention, so its rows do not sum to one"
NO_GATE_SHIFT = "the gate multiplies the tensor, so a shift of it is not the same for every token"


def find_seams(anatomy: Anatomy) -> Seams:
    """All seams that the sites of a model suggest, unchecked; `check_seams` proves them."""
    return _Finder(anatomy).find()


class _Finder:
    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.maps = dense_maps(anatomy, routers=True)
        self.by_site: dict[Site, Dense] = {}
        for dense in self.maps:
            for part in dense.pieces:
                self.by_site[Site(dense.layer, part, self._expert(dense, part))] = dense
        self.owners = {
            id(p): (module, key)
            for module in anatomy.model.modules()
            for key, p in module._parameters.items()
            if p is not None
        }
        self.missing: dict[str, str] = {}

    def _expert(self, dense: Dense, part: str) -> int | None:
        sites = (
            s
            for s, b in self.anatomy.matrices.items()
            if s.part == part and b.parameter is dense.parameter and b.expert == dense.expert
        )
        return next(sites).expert

    def find(self) -> Seams:
        seams: list[Seam] = []
        for layer in range(self.anatomy.dims.num_layers):
            seams += [*self._norms(layer), *self._value(layer), *self._ups(layer), *self._post(layer)]
        return Seams(seams, self.missing)

    def _tensor(self, layer: int | None, part: str) -> Site:
        site = Site(layer, part)
        return self.anatomy.same_as.get(site, site)

    def _readers(self, layer: int, tensor: Site) -> tuple[Dense, ...]:
        return tuple(d for d in self.maps if d.layer == layer and self._tensor(layer, d.reads.part) == tensor)

    def _norm_writer(self, site: Site) -> NormWriter | None:
        bound = self.anatomy.matrices.get(site)
        if bound is None or bound.more or id(bound.parameter) not in self.owners:
            return None
        module, key = self.owners[id(bound.parameter)]
        return NormWriter(module, bound.matrix.plus, key)

    def _norms(self, layer: int) -> Iterable[Seam]:
        for part, read in (("norm.attn", "attn.in"), ("norm.mlp", "mlp.in")):
            writer = self._norm_writer(Site(layer, part))
            if writer is None and Site(layer, "norm.attn.resid") in self.anatomy.matrices:
                continue  # a post-norm block, see `_post`
            tensor = self._tensor(layer, read)
            readers = self._readers(layer, tensor)
            if writer is None or not readers:
                if part == "norm.attn" or self._tensor(layer, "attn.in") != tensor:
                    self._lacks(part, "no norm with a gain stands before it")
                continue
            yield self._norm_seam(f"{layer}.{part}", layer, tensor, writer, readers)

    def _norm_seam(
        self,
        name: str,
        layer: int,
        tensor: Site,
        writer: NormWriter,
        readers: tuple[Dense, ...],
        **more: Any,
    ) -> Seam:
        width = readers[0].weight.shape[1]
        carries, cannot = {"scale"}, {}
        if not writer.has_bias:
            cannot["shift"] = NO_RMS_SHIFT
        elif any(d.bias is None and not d.can_take_bias for d in readers):
            which = next(d.name for d in readers if d.bias is None and not d.can_take_bias)
            cannot["shift"] = f"{which} has no place for a bias"
        else:
            carries.add("shift")
        # A norm's bias is there; whether its readers have biases decides what a checkpoint can hold.
        places: Mapping[str, Any] | None = {} if all(d.bias is not None for d in readers) else None
        return Seam(
            name=name,
            kind=more.pop("kind", "norm"),
            layer=layer,
            site=tensor,
            writer=writer,
            readers=readers,
            spread=torch.arange(width),
            carries=frozenset(carries),
            cannot=cannot,
            format=self._format(places),
            becomes=self._becomes(places),
            **more,
        )

    def _format(self, places: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if places is not None:
            return places
        return None if self.anatomy.biases is None else self.anatomy.biases.settings

    def _becomes(self, places: Mapping[str, Any] | None) -> str | None:
        return None if places is not None or self.anatomy.biases is None else self.anatomy.biases.becomes

    def _value(self, layer: int) -> Iterable[Seam]:
        value, out = self.by_site.get(Site(layer, "w.v")), self.by_site.get(Site(layer, "w.o"))
        if value is None or out is None:
            self._lacks("v-o", "the model has no value or no output projection of its own")
            return
        rows, width = value.rows("w.v"), out.weight.shape[1]
        head_dim, groups = self.anatomy.dims.head_dim, self.anatomy.dims.num_kv_heads
        if width % len(rows) or not groups or len(rows) % groups:
            self._lacks("v-o", f"{len(rows)} value channels do not spread over {width}")
            return
        head_dim = len(rows) // groups
        channel = torch.arange(width)
        head = channel // head_dim // (width // len(rows))
        carries, cannot = {"scale"}, {}
        if Site(layer, "w.sink") in self.anatomy.matrices:
            cannot["shift"] = NO_SINK_SHIFT
        elif any(d.bias is None and not d.can_take_bias for d in (value, out)):
            which = next(d.name for d in (value, out) if d.bias is None and not d.can_take_bias)
            cannot["shift"] = f"{which} has no place for a bias"
        else:
            carries.add("shift")
        places: Mapping[str, Any] | None = {} if value.bias is not None and out.bias is not None else None
        yield Seam(
            name=f"{layer}.v-o",
            kind="value",
            layer=layer,
            site=Site(layer, "attn.mix"),
            writer=RowsWriter(value, rows),
            readers=(out,),
            spread=head * head_dim + channel % head_dim,
            carries=frozenset(carries),
            cannot=cannot,
            format=self._format(places),
            becomes=self._becomes(places),
        )

    def _ups(self, layer: int) -> Iterable[Seam]:
        downs = [s for s in self.by_site if s.layer == layer and s.part == "w.down"]
        for site in sorted(downs):
            up, down = self.by_site.get(site._replace(part="w.up")), self.by_site[site]
            if up is None:
                continue
            is_gated = site._replace(part="w.gate") in self.by_site
            if not is_gated and not _is_relu(self.anatomy):
                name = _activation(self.anatomy)
                self._lacks("up-down", f"{name}(x / s) is not {name}(x) / s, so a scale cannot pass it")
                continue
            number = "" if site.expert is None else f"[{site.expert}]"
            yield Seam(
                name=f"{layer}.up-down{number}",
                kind="up",
                layer=layer,
                site=Site(layer, "mlp.down.in", site.expert),
                writer=RowsWriter(up, up.rows("w.up")),
                readers=(down,),
                spread=torch.arange(down.weight.shape[1]),
                carries=frozenset({"scale"}),
                cannot={"shift": NO_GATE_SHIFT if is_gated else "ReLU is not linear in a shift"},
            )

    def _post(self, layer: int) -> Iterable[Seam]:
        """Norms on the residual stream: one before each sublayer, the first of all behind the embedding."""
        before = Site(None, "norm.embed") if layer == 0 else Site(layer - 1, "norm.mlp.resid")
        if Site(layer, "norm.attn.resid") not in self.anatomy.matrices:
            return
        for source, read, sublayer in (
            (before, "attn.in", "attn"),
            (Site(layer, "norm.attn.resid"), "mlp.in", "mlp"),
        ):
            writer = self._norm_writer(source)
            readers = self._readers(layer, self._tensor(layer, read))
            shortcut = self.anatomy.shortcuts.get((layer, sublayer))
            if writer is None or not readers:
                continue
            if getattr(writer.module, writer.key).shape[0] != readers[0].weight.shape[1]:
                self._lacks("post-norm", "a projection lies between the embedding's norm and the first block")
                continue
            if shortcut is None:
                self._lacks(
                    "post-norm", "the shortcut is added inside a module, where nothing can compensate it"
                )
                continue
            yield self._norm_seam(
                f"{layer}.{'embed' if source.layer is None else source.part.removeprefix('norm.')}-{sublayer}",
                layer,
                self._tensor(layer, read),
                writer,
                readers,
                kind="post-norm",
                shortcut=shortcut,
            )

    def _lacks(self, kind: str, reason: str) -> None:
        self.missing.setdefault(kind, reason)


def _activation(anatomy: Anatomy) -> str:
    config = text_config(anatomy.config) if anatomy.config is not None else None
    names = ("hidden_act", "activation_function", "hidden_activation", "activation", "hidden_act_function")
    found = next((getattr(config, n) for n in names if getattr(config, n, None)), "its activation function")
    return found if isinstance(found, str) else type(found).__name__


def _is_relu(anatomy: Anatomy) -> bool:
    return _activation(anatomy) == "relu"


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
    finder = _Finder(anatomy)
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
    return finder._norm_seam(name, layer, chosen[0].reads, NormWriter(module, plus), chosen)


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


class _Proof:
    """Random changes of seams, and how far each reaches the output."""

    def __init__(self, anatomy: Anatomy, seed: int) -> None:
        self.anatomy, self.seed = anatomy, seed
        self.ids = trial_ids(anatomy.config, 12)
        self.before = run_float64(anatomy, self.ids)
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
