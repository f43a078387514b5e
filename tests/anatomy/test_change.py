"""A change reaches exactly what reads the place, and leaves no trace."""

import copy
from dataclasses import replace

import pytest
import torch
import zoo
from torch import nn
from torch.testing import assert_close

from skerry.anatomy import Anatomy, Site, attention, experts, resolve, watch
from skerry.anatomy.change import change, weight_entries
from skerry.anatomy.model import run
from skerry.anatomy.sites import STREAMED
from skerry.errors import SkerryError, UnknownOption, UnknownSite

every_family = pytest.mark.parametrize("name", zoo.NAMES)
# One of each kind: separate, fused and transposed, interleaved, grouped, fused gate and up, gain + 1, experts, post-norm.
KINDS = ["llama", "gpt2", "gpt_neox", "falcon_40b", "phi3", "gemma", "gpt_oss", "qwen2_moe", "bert"]
every_kind = pytest.mark.parametrize("name", KINDS)
HOOKS = [
    name
    for name in vars(nn.Linear(1, 1))
    if name.startswith(
        ("_forward", "_backward", "_full", "_state_dict", "_load_state", "_is_full", "_non_pers")
    )
]
# What a block's places are made of, where a block has them; the first that exists of a row of alternatives.
READS = {
    "attn.in": [("resid.in",)],
    "attn.q": [("attn.in",)],
    "attn.k": [("attn.in",)],
    "attn.v": [("attn.in",)],
    "attn.mix": [("attn.q",), ("attn.k",), ("attn.v",)],
    "attn.out": [("attn.mix",)],
    "attn.add": [("attn.out",)],
    "resid.mid": [("resid.in",), ("attn.add", "attn.out")],
    "mlp.in": [("resid.mid", "resid.in")],
    "mlp.router": [("mlp.in",)],
    "mlp.gate": [("mlp.in",)],
    "mlp.up": [("mlp.in",)],
    "mlp.down.in": [("mlp.gate",), ("mlp.up",)],
    "mlp.out": [("mlp.down.in",)],
    "mlp.add": [("mlp.out",)],
}


def state(model):
    """Everything that a change could leave behind."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return {
        "hooks": [(name, {h: str(getattr(m, h)) for h in HOOKS}) for name, m in model.named_modules()],
        "own": [(name, sorted(vars(m))) for name, m in model.named_modules()],
        "configs": [copy.deepcopy(vars(c)) for c in configs.values()],
        "observers": (dict(attention._observers), dict(attention._kernels), dict(experts._observers)),
        "modes": torch._C._len_torch_function_stack(),
    }


def bits(model):
    return {key: x.clone() for key, x in model.state_dict().items()}


def same_bits(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], x) for k, x in before.items())


def seen_in(anatomy: Anatomy, ids, edits=None, keep=None):
    """Every place as a forward shows it, the changed ones as they are read; and what the trunk gives."""
    found = {}
    # Every place on its own: a change parts places that are one tensor otherwise.
    apart = replace(anatomy, same_as={})
    with (
        change(anatomy, edits or {}),
        watch(apart, on_activation=lambda s, x, rows: found.__setitem__(s, x.clone())),
    ):
        last = run(anatomy, ids, keep).last_hidden_state
    return found, last


def parents(site, places):
    """What the place is made of, among the places that the block has."""
    if site.part == "resid.in":
        return [Site(site.layer - 1, "resid.out")] if site.layer else []
    if site.part == "head.in":
        return [max((s for s in places if s.part == "resid.out"), key=lambda s: s.layer)]
    have = {s.part for s in places if s.layer == site.layer}
    if site.part == "resid.out":
        adds = [("mlp.add", "mlp.out")]
        reads = (
            [("resid.mid",), *adds]
            if "resid.mid" in have
            else [("resid.in",), ("attn.add", "attn.out"), *adds]
        )
    elif site.part == "mlp.out" and "mlp.router" in have:
        reads = [("mlp.in",), ("mlp.router",), ("mlp.down.in",)]
    else:
        reads = READS[site.part]
    chosen = [next((p for p in row if p in have), None) for row in reads]
    return [Site(site.layer, part) for part in chosen if part is not None]


def expected_states(patched, places):
    """Of every place: is it still the old one ("old"), the other input's ("new"), or something between ("mixed")?"""
    status = {}
    for site in sorted(places):
        if site in patched:
            status[site] = "new"
            continue
        of = {status[p] for p in parents(site, places)}
        status[site] = of.pop() if len(of) == 1 else "mixed" if of else "old"
    return status


@every_family
def test_putting_another_inputs_values_somewhere_changes_exactly_what_reads_them(name):
    """Truth: two plain runs. What is made of patched places only equals the other run, what is made of none equals its own."""
    anatomy = resolve(zoo.tiny(name, dtype=torch.float64))
    (ids, _), (others, _) = zoo.tokens(anatomy.model), zoo.tokens(anatomy.model, seed=1)
    if Site(0, "resid.mid") not in anatomy.taps and name.startswith("opt"):
        pytest.fail("no resid.mid")
    old, old_last = seen_in(anatomy, ids)
    new, new_last = seen_in(anatomy, others)
    places = [s for s in anatomy.taps if s.expert is None]
    assert set(places) <= set(old)
    layer = anatomy.dims.num_layers - 2
    sets = [{s} for s in places if s.layer in (layer, None) and s.part not in STREAMED]
    sets += [{Site(layer, p) for p in ("attn.q", "attn.k", "attn.v")}]
    sets += [{Site(layer, p) for p in ("mlp.gate", "mlp.up") if Site(layer, p) in places}]
    for patched in sets:
        edits = {s: (lambda x, rows, s=s: new[s]) for s in patched}
        seen, last = seen_in(anatomy, ids, edits)
        for site, status in expected_states(patched, places).items():
            where = f"{patched} -> {site} is not {status}"
            assert torch.equal(seen[site], old[site]) == (status == "old"), where
            assert torch.equal(seen[site], new[site]) == (status == "new"), where
        if Site(layer, "resid.out") in patched:
            assert torch.equal(last, new_last)
