"""What a small model shows to a watch, beside what the model itself reports; each looked at once a session."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor

from skerry.anatomy import Anatomy, AttentionView, Site, capture, resolve, watch
from skerry.anatomy.model import run


@dataclass(frozen=True)
class Look:
    """One model, one batch: captured sites, attention views, and the model's own hidden states and attentions."""

    name: str
    anatomy: Anatomy
    ids: Tensor
    keep: Tensor
    sites: dict[Site, Tensor]
    views: dict[int, AttentionView]
    hidden: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]

    @property
    def model(self) -> torch.nn.Module:
        return self.anatomy.model

    @property
    def layers(self) -> range:
        return range(self.anatomy.dims.num_layers)

    def at(self, layer: int | None, part: str, expert: int | None = None) -> Tensor | None:
        return self.sites.get(Site(layer, part, expert))

    def weight(self, layer: int | None, part: str, expert: int | None = None) -> Tensor | None:
        site = Site(layer, part, expert)
        return self.anatomy.weight(site) if site in self.anatomy.matrices else None

    def heads(self, x: Tensor) -> Tensor:
        """[token, head*channel] as [sample, head, position, channel]."""
        b, t = self.ids.shape
        return x.reshape(b, t, -1, self.anatomy.dims.head_dim).transpose(1, 2)


@cache
def look_at(name: str, padding: str | None = None, attention: str = "eager") -> Look:
    # A float64 mask's smallest number is -inf in the float32 softmax of transformers: rows that see nothing would turn NaN.
    dtype = torch.float32 if padding == "left" else torch.float64
    model = zoo.tiny(name, dtype=dtype, attention=attention)
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, padding=padding)
    views: dict[int, AttentionView] = {}
    sites = capture(anatomy, ids, keep=keep)
    with watch(anatomy, on_attention=lambda view: views.setdefault(view.layer, view)):
        run(anatomy, ids, keep)
    kwargs: dict[str, Any] = {"attention_mask": keep.long()} if padding else {}
    with torch.no_grad():
        out = anatomy.trunk(ids, output_hidden_states=True, output_attentions=attention == "eager", **kwargs)
    return Look(name, anatomy, ids, keep, sites, views, out.hidden_states, out.attentions)


@pytest.fixture(scope="session")
def look():
    """`look(name, padding=None, attention="eager")`."""
    return look_at
