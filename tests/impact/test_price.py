"""Places priced one at a time: planted outliers cause what they cause, and nothing else is touched."""

import math

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.model import run
from skerry.causes.outcome import last_hidden
from skerry.corpus.batch import Batch
from skerry.errors import UnknownOption
from skerry.impact.evaluate import Evaluator
from skerry.impact.prefix import Prefix
from skerry.impact.price_grid import price_grid
from skerry.impact.price_sites import price_sites
from skerry.impact.quantize import fake_quantize
from skerry.impact.scheme import Scheme
from skerry.impact.simulate import Simulation
from skerry.impact.site_parts import find_outliers, look, site_parts
from skerry.outliers.finding import Finding
from skerry.run.tables import TABLES, from_rows

from .planted import outlier_channel, outlier_token, own_text

STATIC = Scheme.parse("w8a8-tensor")


def batches_of(model, *, num_samples=16, length=24, seed=0):
    ids, keep = zoo.tokens(model, num_samples=num_samples, length=length, seed=seed)
    half = num_samples // 2
    return [
        Batch(ids[:half], keep[:half], torch.arange(half)),
        Batch(ids[half:], keep[half:], torch.arange(half, num_samples)),
    ]


def row_of(rows, layer, site, scheme="w8a8-tensor"):
    (row,) = [r for r in rows if (r["layer"], r["site"], r["scheme"]) == (layer, site, scheme)]
    return row


@pytest.fixture(scope="module")
def planted():
    model = outlier_channel()
    anatomy = resolve(model)
    batches = own_text(model)
    return anatomy, batches, price_sites(anatomy, batches, [STATIC], calibration=own_text(model, seed=1))


def test_the_planted_channel_changes_nothing_before_it_is_quantized():
    ids = batches_of(zoo.tiny("llama"))[0].input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            outlier_channel()(ids).logits, outlier_channel(factor=1.0)(ids).logits, atol=1e-4, rtol=0
        )


def test_an_outlier_channel_alone_causes_the_loss_of_its_site(planted):
    _, _, rows = planted
    row = row_of(rows, 1, "attn.in")
    assert row["num_channels"] == 1 and row["channels_from"] == "range"
    assert row["ci_low"] > 0 and row["share_channels"] > 0.9
    other = row_of(rows, 0, "attn.in")
    assert abs(other["change"]) < 0.2 * row["change"]
    # The central 99 % hold two thirds of the outlier's own values here: it is one channel of 32.
    assert other["central_levels"] > 1.5 * row["central_levels"]


def test_the_change_of_a_site_is_that_of_a_whole_forward(planted):
    anatomy, batches, rows = planted
    evaluator = Evaluator(anatomy, batches)
    names = frozenset(row_of(rows, 1, "mlp.in")["map"].split(", "))
    from skerry.impact.calibrate import calibrate

    grids = calibrate(anatomy, own_text(anatomy.model, seed=1), STATIC)
    alone = Simulation(Scheme(inputs=STATIC.inputs), grids=grids, only=names)
    scores = evaluator.score(alone.open(anatomy))
    assert row_of(rows, 1, "mlp.in")["change"] == pytest.approx(evaluator.change(scores).value, abs=1e-6)
    weight = row_of(rows, 1, "w.down")
    alone = Simulation(Scheme(weights=STATIC.weights), only=frozenset([weight["map"]]))
    scores = evaluator.score(alone.open(anatomy))
    assert weight["change"] == pytest.approx(evaluator.change(scores).value, abs=1e-6)


def test_numbers_of_a_weight_are_those_of_its_definition(planted):
    anatomy, _, rows = planted
    row = row_of(rows, 0, "w.down")
    weight = anatomy.model.get_submodule(row["map"]).weight.detach()
    rounded = fake_quantize(weight, STATIC.weights)
    noise = (weight - rounded).double().square().sum()
    assert row["snr_db"] == pytest.approx(10 * math.log10(weight.double().square().sum() / noise), rel=1e-6)
    assert (row["low"], row["high"]) == (float(weight.min()), float(weight.max()))
    assert "num_tokens" not in row
    assert row["num_levels"] == 256


def test_numbers_of_an_input_are_those_of_its_definition(planted):
    anatomy, batches, rows = planted
    row = row_of(rows, 0, "mlp.down.in")
    seen = []
    handle = anatomy.model.get_submodule(row["map"]).register_forward_pre_hook(
        lambda _m, a: seen.append(a[0].reshape(-1, a[0].shape[-1]).clone())
    )
    for batch in batches:
        run(anatomy, batch.input_ids, batch.keep)
    handle.remove()
    x = torch.cat(seen)
    assert (row["low"], row["high"]) == (float(x.min()), float(x.max()))
    size = x.abs().amax(1)
    assert row["num_tokens"] == int((size > 20 * size.median()).sum())


def test_an_outlier_token_alone_causes_the_loss_of_its_site():
    model = outlier_token()
    anatomy = resolve(model)
    batches = own_text(model)
    count = sum(int((b.input_ids == 9).sum()) for b in batches)
    assert 0 < count < 100
    rows = price_sites(anatomy, batches, [STATIC, Scheme.parse("w4a4-tensor")])
    for scheme in ("w8a8-tensor", "w4a4-tensor"):
        row = row_of(rows, 0, "mlp.down.in", scheme)
        assert row["num_tokens"] == count
        assert row["change_without_tokens"] < row["change"]
    row = row_of(rows, 0, "mlp.down.in", "w4a4-tensor")
    assert row["ci_low"] > 0 and row["share_tokens"] > 0.5


@pytest.mark.parametrize(
    "name", ["gpt2", "phi3", "falcon_40b", "mixtral", "gpt_oss", "bert", "distilbert", "opt_350m"]
)
def test_every_part_of_every_layout_has_a_row_and_the_model_is_left_alone(name):
    model = zoo.tiny(name)
    anatomy = resolve(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = batches_of(model, num_samples=6, length=10)
    schemes = [STATIC, Scheme.parse("w4a4")]
    rows = price_sites(anatomy, batches, schemes)
    wanted = {(p.layer, p.site, str(s)) for p in site_parts(anatomy) for s in schemes}
    assert {(r["layer"], r["site"], r["scheme"]) for r in rows} == wanted and len(rows) == len(wanted)
    assert all(math.isfinite(r["change"]) and r["snr_db"] > 0 for r in rows)
    assert from_rows("quantization_sites", rows).num_rows == len(rows)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def test_a_fused_projection_is_priced_part_by_part():
    model = zoo.tiny("gpt2")
    rows = price_sites(resolve(model), batches_of(model, num_samples=4), [Scheme.parse("w3a16")])
    parts = [row_of(rows, 0, site, "w3a16") for site in ("w.q", "w.k", "w.v")]
    assert len({r["map"] for r in parts}) == 1 and len({r["change"] for r in parts}) == 3


def test_channels_of_findings_are_kept_also_where_the_scan_names_an_earlier_site():
    model = zoo.tiny("bert")
    anatomy = resolve(model)
    same = {site: first for site, first in anatomy.same_as.items() if site.part == "attn.in"}
    assert same
    site, first = next(iter(same.items()))
    found = Finding(
        kind="activation",
        type="outlier channel",
        site=first.part,
        layer=first.layer,
        channel=7,
        value=1,
        ratio=1,
        score=1,
    )
    maps = [d for p in site_parts(anatomy) if (p.layer, p.site) == (site.layer, "attn.in") for d in p.maps]
    outliers = find_outliers(anatomy, maps, look(anatomy, batches_of(model), maps), [found])
    assert all(outliers.channels[d.name].tolist() == [7] for d in maps)
    assert set(outliers.source.values()) == {"findings"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "mpnet", "bloom", "mixtral"])
def test_inputs_run_on_from_any_block_as_from_the_first(name):
    model = zoo.tiny(name, **({"num_hidden_layers": 3} if name in ("llama", "bert") else {}))
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, padding="right")
    prefix = Prefix(anatomy, [Batch(ids, keep, torch.arange(2))])
    clean = last_hidden(run(anatomy, ids, keep))
    for layer in range(anatomy.dims.num_layers):
        assert prefix.layer == layer
        torch.testing.assert_close(prefix.last(0), clean, atol=1e-6, rtol=0)
        prefix.advance()


def test_a_share_of_nothing_is_not_told():
    model = zoo.tiny("llama")
    rows = price_sites(resolve(model), batches_of(model), [STATIC])
    silent = [r for r in rows if not r["ci_low"] > 0]
    assert silent and all(r["share_channels"] is None for r in silent)


def test_a_group_that_does_not_divide_is_refused_before_any_forward(monkeypatch):
    model = zoo.tiny("llama")
    anatomy = resolve(model)
    monkeypatch.setattr(anatomy.trunk, "forward", None)
    for price in (price_sites, price_grid):
        with pytest.raises(UnknownOption, match="groups of 128 do not divide"):
            price(anatomy, batches_of(model), [Scheme.parse("w4a16-g128")])


# The whole model.


def test_the_grid_has_the_original_first_and_more_bits_cost_less():
    model = zoo.tiny("bert")
    rows = price_grid(
        resolve(model), batches_of(model), [Scheme.parse(s) for s in ("w8a8", "w6a6", "w4a4", "kv8", "kv4")]
    )
    assert rows[0]["scheme"] == "original" and rows[0]["value"] == 0
    change = {r["scheme"]: r["change"] for r in rows[1:]}
    assert 0 < change["w8a8"] < change["w6a6"] < change["w4a4"] and 0 < change["kv8"] < change["kv4"]
    assert from_rows("quantization_grid", rows).schema.names == list(TABLES["quantization_grid"])
    assert all(r["perplexity"] is None and r["cosine"] is not None for r in rows)


def test_what_this_model_cannot_have_is_a_row_with_the_reason_and_no_number():
    model = zoo.tiny("bloom")
    rows = price_grid(
        resolve(model),
        batches_of(model),
        [Scheme.parse(s) for s in ("kv8", "w4a16-g128", "w8a8kv8")],
        lenient=True,
    )
    cache, group, both = rows[1:]
    assert cache.get("value") is None and "BloomForCausalLM" in cache["note"]
    assert group.get("value") is None and "groups of 128 do not divide" in group["note"]
    assert both["change"] is not None and "cache" in both["note"]
    assert from_rows("quantization_grid", rows).num_rows == 4
