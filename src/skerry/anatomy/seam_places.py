"""From the sites of a model to the seams that they suggest; nothing is proved here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.model import Anatomy, text_config
from skerry.anatomy.seams import NormWriter, RowsWriter, Seam, Seams
from skerry.anatomy.sites import Site

NO_RMS_SHIFT = "the norm has no bias, and the checkpoint format has no place for one"
NO_SINK_SHIFT = "a learned sink takes a share of the attention, so its rows do not sum to one"
NO_GATE_SHIFT = "the gate multiplies the tensor, so a shift of it is not the same for every token"


class Finder:
    """Looks for the seams of one model; what it lacks is in `missing`, with the reason."""

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
        """All of them, in order of the blocks."""
        seams: list[Seam] = []
        for layer in range(self.anatomy.dims.num_layers):
            seams += [*self._norms(layer), *self._value(layer), *self._ups(layer), *self._post(layer)]
        return Seams([s for seam in seams for s in self._less(seam)], self.missing)

    def _less(self, seam: Seam) -> Iterable[Seam]:
        """The seam without what its family says it cannot carry; none when nothing is left."""
        kind = seam.name.partition(".")[2].partition("[")[0]
        for change, reason in self.anatomy.cannot.get(kind, {}).items():
            seam = seam.without(change, reason)
            if not seam.carries:
                self._lacks(kind, reason)
                return
        yield seam

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
            yield self.norm_seam(f"{layer}.{part}", layer, tensor, writer, readers)

    def norm_seam(
        self,
        name: str,
        layer: int,
        tensor: Site,
        writer: NormWriter,
        readers: tuple[Dense, ...],
        **more: Any,
    ) -> Seam:
        """A norm and what reads it, with what the two can carry."""
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
            yield self.norm_seam(
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
