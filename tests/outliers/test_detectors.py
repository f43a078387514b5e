"""Each detector on tables with a known answer, each preset at its threshold, and warnings."""

import numpy as np
import pyarrow as pa
import pytest

from skerry.errors import UnknownPreset
from skerry.outliers.find import find
from skerry.outliers.presets import PRESETS, check_preset

from .tabled import activation, join, ordinary, table


def _types(found):
    return sorted({f.type for f in found.findings})


def _llama_like(layer=2, *, value=2500.0, ratio=256):
    """A block output with two massive channels at position 0, which is always token 1, and at half of the dots."""
    low, high = ordinary(128, size=2.0)
    high[33], low[90] = value, -value / 2
    place = {"layer": layer, "site": "resid.out"}
    hits = {f"massive_{r}": [32 if r <= ratio else 0, *[0] * 49] for r in (4, 8, 16, 64, 256)}
    tokens = {
        f"massive_{r}": [32 if r <= ratio else 0, 60 if r <= ratio else 0, *[0] * 40]
        for r in (4, 8, 16, 64, 256)
    }
    count = [32, 70, *[37] * 40]
    rows = {
        "positions": table("positions", **place, position=range(50), count=32, abs_max=[value, *[2.0] * 49],
                           abs_max_mean=[value, *[2.0] * 49], norm_mean=1.0, **hits),
        "tokens": table("tokens", **place, token_id=[1, 7, *range(10, 50)], token=["<s>", ".", *[f"t{i}" for i in range(40)]], count=count,
                        num_samples=[32, 31, *[20] * 40], abs_max_mean=[value, value, *[2.0] * 40], **tokens),
        "values": table("values", **place, rank=range(4), value=[value, -value / 2, 0.9 * value, 0.1 * value], sample=[0, 0, 3, 1],
                        position=[0, 0, 21, 0], token_id=[1, 1, 7, 1], token=["<s>", "<s>", ".", "<s>"], channel=[33, 90, 33, 12]),
    }  # fmt: skip
    site = activation(layer, "resid.out", low, high, median=0.5)
    # A few tokens among thousands: they move neither the mean nor the spread of their channels much.
    calm = {"mean": [0.0] * 128, "std": [0.7] * 128}
    for name, values in calm.items():
        column = site["channels"].schema.get_field_index(name)
        site["channels"] = site["channels"].set_column(
            column, site["channels"].schema.field(name), pa.array(values)
        )
    return join(site, rows)


def test_massive_activations_are_bound_to_position_and_token():
    found = [f for f in find(_llama_like()).findings if f.type == "massive activation"]
    places = {(f.channel, f.position, f.token, round(f.value)) for f in found}
    assert places == {(33, 0, "<s>", 2500), (90, 0, "<s>", -1250), (33, None, ".", 2250)}
    for f in found:
        assert f.presets[0] == "skerry" and {"massive", "an"} <= set(f.presets)
        assert f.ratio == pytest.approx(abs(f.value) / 0.5) and f.q_value < 0.01 and f.recurrence > 0.8
    assert next(f for f in found if f.position == 0).recurrence == 1.0


def test_small_companions_of_a_massive_value_are_not_massive():
    assert 12 not in {f.channel for f in find(_llama_like(), "all").findings}


def test_position_that_no_stored_value_shows_is_still_found():
    tables = _llama_like()
    tables["values"] = tables["values"].slice(2, 1)
    found = [f for f in find(tables).findings if f.type == "massive activation" and f.position == 0]
    assert [(f.channel, f.value) for f in found] == [(None, 2500.0)]


def test_first_position_of_changing_tokens_is_bound_to_the_position_only():
    tables = _llama_like()
    tokens = tables["tokens"].to_pydict()
    tokens["count"][0] = 40  # the token also stands elsewhere
    tables["tokens"] = pa.table(tokens, schema=tables["tokens"].schema)
    first = next(f for f in find(tables).findings if f.type == "massive activation" and f.position == 0)
    assert first.token is None and first.token_id is None


def test_token_that_is_large_in_all_channels_is_not_massive():
    tables = _llama_like()
    positions = tables["positions"].to_pydict()
    positions["norm_mean"][0] = 6000.0
    tables["positions"] = pa.table(positions, schema=tables["positions"].schema)
    assert {f.token for f in find(tables).findings if f.type == "massive activation"} == {"."}


def test_sun_and_owen_ask_for_a_hundred_and_a_thousand_medians():
    for value, expected in ((600.0, True), (499.0, False)):  # median 0.5
        met = {
            name
            for f in find(_llama_like(value=value), "all").findings
            if f.channel == 33 and f.position == 0
            for name in f.presets
        }
        assert ("massive" in met, "owen" in met) == (expected, expected)


def test_prefixquant_asks_for_64_at_the_down_projection():
    def renamed(tables):
        return {k: t.set_column(1, "site", pa.array(["mlp.down.in"] * t.num_rows)) for k, t in tables.items()}

    for ratio, expected in ((64, True), (16, False)):
        found = find(renamed(_llama_like(ratio=ratio)), "prefixquant").findings
        assert bool(found) is expected and all("prefixquant" in f.presets for f in found)


def test_llm_int8_asks_for_6_in_a_quarter_of_the_layers():
    low, high = ordinary(64, size=3.0)
    high[4] = low[4] = 9.0  # always 9
    high[5], low[5] = 30.0, -0.1
    blocks = [
        activation(n, "attn.in", low if n < 2 else low * 0 - 1, high if n < 2 else high * 0 + 1)
        for n in range(8)
    ]
    met = {(f.layer, f.channel) for f in find(join(*blocks), "llm-int8").findings}
    assert {(0, 4), (1, 4), (0, 5)} <= met and not {n for n, _ in met} - {0, 1}
    sparse = [
        activation(n, "attn.in", low if n < 1 else low * 0 - 1, high if n < 1 else high * 0 + 1)
        for n in range(8)
    ]
    assert find(join(*sparse), "llm-int8").findings == ()


def test_mamba_asks_for_6_deviations_of_the_channels():
    low, high = ordinary(100)
    high[3] = 400.0
    assert [f.channel for f in find(activation(0, "mlp.in", low, high), "mamba-ptq").findings] == [3]
    assert find(activation(0, "resid.out", low, high), "mamba-ptq").findings == ()  # no matrix reads it


def test_int8_rule_holds_where_a_matrix_reads_the_residual_itself():
    low, high = ordinary(64, size=3.0)
    high[4] = low[4] = 9.0
    same = {"sites": table("sites", layer=0, site=["attn.in"], same_as="0.resid.in", num_channels=64)}
    found = find(join(activation(0, "resid.in", low, high), same), "llm-int8").findings
    assert [(f.site, f.channel) for f in found] == [("resid.in", 4)]


def _lines(site, axis, norm, *, low=None, high=None, mean=0.0, layer=0):
    low, high = (-norm if low is None else low), (norm if high is None else high)
    return table(
        "lines",
        layer=layer,
        site=site,
        axis=axis,
        index=range(len(norm)),
        norm=norm,
        min=low,
        max=high,
        mean=mean,
        mean_abs=0.01,
    )


def test_long_rows_and_columns_are_found_and_short_ones_are_not():
    norm = np.exp(0.05 * np.random.default_rng(0).standard_normal(200))
    norm[11], norm[12] = 6.0, 0.05
    matrix = table("matrices", layer=0, site=["w.q"], num_rows=200, num_columns=200, median=0.02)
    for axis in ("row", "column"):
        found = find({"lines": _lines("w.q", axis, norm), "matrices": matrix}).findings
        assert [(f.type, f.row if axis == "row" else f.column) for f in found] == [(f"outlier {axis}", 11)]
        assert (
            found[0].ratio == pytest.approx(6.0 / 0.02)
            and found[0].p_value is None
            and found[0].recurrence is None
        )


def test_norms_are_judged_by_their_entries():
    rng = np.random.default_rng(0)
    gain, bias = 1 + 0.1 * rng.standard_normal(64), 0.1 * rng.standard_normal(64)
    gain[5], gain[6], bias[7] = 8.0, 1e-9, -4.0
    tables = [
        {"lines": _lines(s, "column", np.abs(w), low=w, high=w, mean=w)}
        for s, w in (("norm.mlp", gain), ("norm.mlp.bias", bias))
    ]
    found = find(join(*tables)).findings
    assert {(f.site, f.column, round(f.value, 3)) for f in found} == {
        ("norm.mlp", 5, 8.0),
        ("norm.mlp.bias", 7, -4.0),
    }


def test_kovaleva_asks_for_gain_and_bias_in_half_of_the_layers():
    def norms(layer, far):
        gain, bias = np.ones(64), np.zeros(64)
        gain += 0.01 * np.arange(64) / 64
        bias += 0.01 * np.arange(64) / 64
        if far:
            gain[9], bias[9], gain[3] = 5.0, 2.0, 5.0
        return [{"lines": _lines(s, "column", np.abs(w), low=w, high=w, mean=w, layer=layer)}
                for s, w in (("norm.attn", gain), ("norm.attn.bias", bias))]  # fmt: skip

    half = join(*[t for n in range(4) for t in norms(n, n < 2)])
    assert {(f.layer, f.site, f.column) for f in find(half, "kovaleva").findings} == {
        (0, "norm.attn", 9),
        (1, "norm.attn", 9),
    }
    assert find(join(*[t for n in range(4) for t in norms(n, n < 1)]), "kovaleva").findings == ()


def test_an_asks_for_a_column_of_200_means_in_the_down_projection():
    norm = np.ones(32)
    high = np.where(np.arange(32) == 4, 2.5, 0.02)
    found = find({"lines": _lines("w.down", "column", norm, low=-high, high=high)}, "an").findings
    assert [(f.type, f.column, f.value) for f in found] == [("outlier column", 4, 2.5)]
    assert find({"lines": _lines("w.up", "column", norm, low=-high, high=high)}, "an").findings == ()


def _super(weight=2.0, x=600.0, y=1190.0):
    """Input spike at neuron 40, output spike at channel 6, at one token; and the entry where they cross."""
    at = {"sample": [3], "position": [0], "token_id": [1], "token": "<s>", "rank": [0]}
    low, high = ordinary(64, size=2.0)
    spiked_x, spiked_y = high.copy(), high.copy()
    spiked_x[40], spiked_y[6] = x, y
    return join(
        activation(1, "mlp.down.in", low, spiked_x, median=0.2),
        activation(1, "mlp.out", low, spiked_y, median=0.5),
        {"values": table("values", layer=1, site="mlp.down.in", value=[x], channel=[40], **at)},
        {"values": table("values", layer=1, site="mlp.out", value=[y], channel=[6], **at)},
        {"entries": table("entries", layer=1, site="w.down", rank=[0, 1], row=[6, 2], column=[40, 3], value=[weight, -2.5])},
        {"matrices": table("matrices", layer=1, site=["w.down"], num_rows=64, num_columns=64, median=0.02)},
    )  # fmt: skip


def test_super_weight_is_the_entry_at_the_crossing():
    (f,) = [f for f in find(_super()).findings if f.type == "super weight"]
    assert (f.layer, f.row, f.column, f.value, f.token) == (1, 6, 40, 2.0, "<s>")
    assert f.presets == ("skerry", "super-weight") and f.ratio == pytest.approx(100)


def test_entry_that_explains_less_than_half_of_the_output_is_no_super_weight():
    assert not [f for f in find(_super(weight=0.9)).findings if f.type == "super weight"]
    (f,) = find(_super(weight=0.9), "super-weight").findings
    assert f.presets == ("super-weight",)


def test_super_weight_beyond_the_stored_entries_is_computed():
    tables = _super()
    tables["entries"] = tables["entries"].slice(1)
    (f,) = find(tables, "super-weight").findings
    assert f.value == pytest.approx(1190 / 600) and f.presets == ("super-weight",)


def test_super_weights_rule_asks_for_50_at_both_ends():
    assert find(_super(x=49.0), "super-weight").findings == ()


def _attention(alpha_by_head, *, length=64, num=16, layer=0, value=None, token=True):
    """Causal heads that give `alpha` to position 0 in every input and share the rest."""
    tables = []
    exposure = num * np.arange(length, 0, -1.0)
    for head, first in enumerate(alpha_by_head):
        uniform = np.array([np.mean(1 / np.arange(k + 1, length + 1)) for k in range(length)])
        alpha = np.where(np.arange(length) == 0, first, uniform)
        norm = np.where(np.arange(length) == 0, 1.0 if value is None else value, 1.0)
        sink = np.where((alpha > 0.3) & (exposure >= 8 * num), num, 0)
        tables.append({
            "keys": table("keys", layer=layer, head=head, position=range(length), num_samples=num, received=alpha * exposure,
                          exposure=exposure, alpha=alpha, sink=sink, value_norm=norm),
            "heads": table("heads", layer=layer, head=[head], num_samples=num, entropy=2.0, entropy_uniform=3.0, logit_min=-5.0, logit_max=5.0),
        })  # fmt: skip
    received = [np.mean(alpha_by_head) * exposure[0], *[2.0] * 20]
    if token:
        tables.append({
            "key_tokens": table("key_tokens", layer=layer, token_id=[1, *range(10, 30)], token=["<s>", *"abcdefghijklmnopqrst"], count=[num, *[30] * 20],
                                num_samples=[num, *[12] * 20], received=received, exposure=[exposure[0], *[900.0] * 20],
                                sink_heads=[np.mean(np.array(alpha_by_head) > 0.3), *[0.0] * 20])
        })  # fmt: skip
    return join(*tables)


def test_heads_that_give_a_position_more_than_uniform_attention_are_sinks():
    found = find(_attention([0.8, 0.5, 0.05, 0.07])).findings
    assert [(f.type, f.head, f.position, f.token) for f in found] == [
        ("sink position", 0, 0, "<s>"),
        ("sink position", 1, 0, "<s>"),
    ]
    harmonic = (1 / np.arange(1, 65)).sum() / 64
    assert found[0].ratio == pytest.approx(0.8 / harmonic) and found[0].presets == (
        "skerry",
        "sink-gu",
        "an",
        "sink-an",
    )
    assert found[1].presets == ("skerry", "sink-gu")  # said of the head that gives most


def test_short_inputs_give_their_first_key_too_much_for_a_sink():
    assert find(_attention([0.34, 0.4, 0.35], length=8)).findings == ()


def test_last_positions_are_no_sinks():
    tables = _attention([0.05])
    keys = tables["keys"].to_pydict()
    keys["alpha"][60:] = [0.9] * 4
    found = find({**tables, "keys": pa.table(keys, schema=tables["keys"].schema)}, "all").findings
    assert found == ()


def test_token_that_draws_attention_wherever_it_stands_is_a_sink_token():
    tables = _attention([0.05, 0.05])
    tokens = tables["key_tokens"].to_pydict()
    tokens["received"][4], tokens["sink_heads"][4] = 500.0, 0.5
    found = find({**tables, "key_tokens": pa.table(tokens, schema=tables["key_tokens"].schema)}).findings
    assert [(f.type, f.token, f.head, f.position) for f in found] == [("sink token", "d", None, None)]
    assert found[0].value == pytest.approx(500 / 900) and found[0].recurrence == 1.0


def test_sink_with_a_short_value_vector_does_nothing():
    found = find(_attention([0.8, 0.05], value=0.1)).findings
    assert [f.type for f in found] == ["sink position", "small sink value"]
    assert (
        found[1].ratio == pytest.approx(0.1)
        and found[1].presets == ("skerry", "fesser")
        and found[1].token == "<s>"
    )
    assert _types(find(_attention([0.8, 0.05], value=0.3))) == ["sink position"]


def test_hidden_values_are_not_called_small():
    found = find(_attention([0.8], value=float("nan")))
    assert _types(found) == ["sink position"] and found.profiles.heads[0].value_norm_ratio == 1.0


def test_head_with_extreme_logits_stands_out_of_all_heads():
    rng = np.random.default_rng(0)
    high = 5 * np.exp(0.1 * rng.standard_normal(24))
    high[13] = 90.0
    heads = table(
        "heads",
        layer=[n // 12 for n in range(24)],
        head=[n % 12 for n in range(24)],
        logit_min=-high,
        logit_max=high,
    )
    found = find({"heads": heads}).findings
    assert [(f.type, f.layer, f.head, f.value) for f in found] == [("extreme logits", 1, 1, 90.0)]
    calm = table("heads", layer=[0] * 24, head=range(24), logit_min=-high / 10, logit_max=high / 10)
    assert (
        find({"heads": calm}).findings == ()
    )  # 18 apart: large among the heads, but nothing that a softmax cannot decide


def test_few_inputs_cannot_show_recurrence():
    low, high = ordinary(64)
    high[5] = 300.0
    found = find(activation(0, "attn.v", low, high, num_samples=1))
    assert found.findings == () and "only 1 independent input:" in found.warnings[0]


def test_large_once_is_not_systematic():
    low, high = ordinary(64)
    high[5] = 300.0
    tables = activation(0, "attn.v", low, high)
    channels = tables["channels"].to_pydict()
    channels["high_3"][5] = channels["high_5"][5] = 1
    channels["abs_max_mean"][5] = 12.0
    assert find({**tables, "channels": pa.table(channels, schema=tables["channels"].schema)}).findings == ()


def test_residual_channel_is_followed_where_it_is_weaker():
    low, high = ordinary(64, size=1.0)
    strong, weak = high.copy(), high.copy()
    strong[8], weak[8] = 30.0, 4.0
    weaker = activation(1, "resid.out", low, weak, median=0.3)
    assert find(weaker).findings == ()
    both = join(activation(0, "resid.out", low, strong, median=0.3), weaker)
    assert [(f.layer, f.channel) for f in find(both).findings] == [(0, 8), (1, 8)]
    elsewhere = join(activation(0, "attn.v", low, strong, median=0.3), weaker)
    assert [(f.layer, f.channel) for f in find(elsewhere).findings] == [(0, 8)]


def test_site_of_mostly_zeros_is_measured_by_its_channels():
    low, high = np.zeros(64), np.abs(ordinary(64)[1])
    high[20] = 400.0
    (f,) = find(activation(0, "mlp.down.in", low, high, median=0.0)).findings
    assert f.channel == 20 and np.isfinite(f.ratio) and f.ratio > 100


def test_narrow_sites_have_no_outliers():
    assert find(activation(0, "mlp.router", [-1.0] * 4, [1.0, 1.0, 1.0, 500.0])).findings == ()


def test_nothing_measured_is_nothing_found():
    found = find({})
    assert found.findings == () and found.warnings == () and found.profiles.sites == ()


def test_values_that_are_not_finite_are_named_with_their_place():
    low, high = ordinary(16)
    tables = activation(2, "mlp.out", low, high, num_nan=3, num_inf=1)
    tables["nonfinite"] = table(
        "nonfinite", layer=2, site="mlp.out", kind="nan", sample=[5], position=[7], channel=[9]
    )
    (warning,) = find(tables).warnings
    assert warning == (
        "mlp.out of layer 2 holds 3 NaN and 1 infinite values, first at position 7, channel 9 of input 5; left out of all statistics"
    )
    weight = table("matrices", layer=0, site=["w.q"], num_rows=4, num_columns=4, num_nan=1)
    (warning,) = find({"matrices": weight}).warnings
    assert warning == "w.q of layer 0 holds 1 NaN value; left out of all statistics"


def test_findings_come_strongest_first():
    ratios = [f.ratio for f in find(_llama_like()).findings if f.kind == "activation"]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "all"])
def test_chosen_preset_lists_only_what_meets_it(preset):
    tables = join(_llama_like(), _super(), _attention([0.8, 0.5], value=0.1))
    everything, chosen = find(tables, "all").findings, find(tables, preset).findings
    assert set(chosen) == {f for f in everything if preset in f.presets}


def test_every_preset_says_its_rule_and_source():
    for name, preset in PRESETS.items():
        assert preset.name == name == check_preset(name) and preset.rule and preset.source


def test_unknown_preset_names_the_near_ones():
    with pytest.raises(UnknownPreset, match=r"'llm.int8'; did you mean 'llm-int8'.*`skerry presets`"):
        find({}, "llm.int8")
