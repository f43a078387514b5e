"""Every sentence that the words can say is read here."""

import pytest
import synthetic as made

from skerry.outliers import finding as fd
from skerry.report.words import headline, section, words

CARD = fd.ModelCard(
    name="m", architecture="Net", family="traced", confidence="traced", num_layers=6, hidden_size=64, num_heads=4, num_parameters=1000,
    dtype="float32", device="cpu", num_samples=8, num_tokens=256, tokens_per_sample=32, bos="none", corpus="text",
)  # fmt: skip


def head(layer=0, n=0, mass=0.1, value=1.0, sink_logit=0.0, position=0):
    return fd.HeadProfile(layer=layer, head=n, sink_position=position, sink_mass=mass, sink_rate=0.0, uniform_mass=0.03, entropy=1.0,
                          relative_entropy=0.5, logit_max=1.0, logit_range=2.0, sink_logit_mass=sink_logit, value_norm_ratio=value)  # fmt: skip


def layer(n, first=0.5, mass=0.5):
    return fd.LayerProfile(layer=n, resid_abs_max=1.0, resid_median=0.1, down_in_abs_max=1.0, num_activation=0, num_weight=0, num_attention=0,
                           sink_mass=mass, first_token_mass=first, sink_rate=0.0)  # fmt: skip


def site(part="resid.out", n=0, expert=None, ratio=8.0, gain=1.0, same=None):
    return fd.SiteProfile(layer=n, site=part, expert=expert, same_as=same, abs_max=ratio, median=1.0, max_to_median=ratio, kurtosis=3.0,
                          kurtosis_channels=1.0, num_outlier_channels=0, num_channels=64, range_share_top1=0.1, range_share_top1pct=0.1, gini=0.1,
                          channels_for_99=60, shift_gain=gain, asymmetric_channels=0, mean_abs_skewness=0.1, sign_consistency=None)  # fmt: skip


def channel(n=99, at=0, ratio=24.0, part="resid.out", **more):
    body = {"kind": "activation", "type": "outlier channel", "site": part, "layer": at, "channel": n, "value": -3.0, "ratio": ratio, "score": 9.0,
            "range": (-3.0, 1.0), **more}  # fmt: skip
    return fd.Finding(**body)


def attention(kind="sink position", at=1, n=0, **more):
    body = {"kind": "attention", "type": kind, "site": "attn.probs", "layer": at, "head": n, "position": 0, "token": "[CLS]", "value": 0.6,
            "ratio": 20.0, "score": 5.0, **more}  # fmt: skip
    return fd.Finding(**body)


def weight(kind="super weight", **more):
    body = {
        "kind": "weight",
        "type": kind,
        "site": "w.down",
        "layer": 1,
        "value": 1.9,
        "ratio": 95.0,
        "score": 9.0,
        **more,
    }
    return fd.Finding(**body)


def summary(*findings, heads=(), layers=(), sites=(), card=None, **more):
    profiles = fd.Profiles(
        heads=tuple(heads),
        layers=tuple(layers),
        sites=tuple(sites),
        asymmetry=more.pop("asymmetry", ()),
        alignment=more.pop("alignment", ()),
    )
    return fd.Summary(
        run="r", model=CARD.model_copy(update=card or {}), findings=findings, profiles=profiles, **more
    )


def alignment(p=0.001, shared=("7",), expected=0.01):
    return fd.Alignment(relation="outlier channels of resid.out and outlier rows of w.down", left=("7", "8"), right=("7",), shared=shared, overlap=0.5,
                        expected=expected, p_value=p)  # fmt: skip


def test_nothing_found_says_so():
    said = words(summary(heads=[head()]))
    assert said == (
        "No systematic outlier was found in m over 8 inputs (256 tokens): no channel, weight or attention score stands out of its site again "
        "and again. No position draws attention systematically: there is no sink."
    )


def test_one_finding_is_in_the_singular():
    said = words(summary(channel(at=3), heads=[head()]))
    assert "One systematic outlier stands out of m over 8 inputs (256 tokens)." in said
    assert "Channel 99 carries 24 times the median of its site in layer 3." in said


def test_one_input_of_one_token_is_in_the_singular():
    assert "over 1 input (1 token)" in words(summary(card={"num_samples": 1, "num_tokens": 1}))


def test_channels_are_told_once_over_layers_and_sites():
    found = (
        [channel(99, at, 24 + at) for at in range(6)]
        + [channel(99, 0, 30, "attn.in")]
        + [channel(63, at, 22) for at in range(6)]
    )
    found += [channel(157, at, 23) for at in range(6)] + [channel(5, 1, 20)]
    said = words(summary(*found))
    assert said.startswith("20 outlier channels stand out of m systematically, over 8 inputs (256 tokens).")
    assert (
        "Channel 99 carries 24 to 29 times the median of its site in all 6 layers; channels 157 and 63 reach 22 to 23 times in all 6 layers; "
        "channel 5 reaches 20 times in layer 1." in said
    )
    more = words(summary(*found, channel(6, 1, 19), channel(7, 1, 18)))
    assert (
        "channels 5 and 6 reach 19 to 20 times in layer 1; 1 other channel of the residual stream less."
        in more
    )


@pytest.mark.parametrize(
    ("range_", "said"),
    [((-9.0, -1.0), ", never positive."), ((1.0, 9.0), ", never negative."), ((-1.0, 9.0), "layer 0.")],
)
def test_a_channel_that_never_crosses_zero_is_told(range_, said):
    assert f"in layer 0{said}".replace("layer 0layer 0", "layer 0") in words(summary(channel(range=range_)))


def test_a_channel_outside_the_blocks_has_no_layer():
    assert "of its site outside the layers." in words(summary(channel(part="head.in", at=None)))


def test_massive_activations_name_token_channels_and_layers():
    found = [
        channel(c, at, r, type="massive activation", position=0, token="<s>", value=v)
        for c, at, r, v in [(1415, 1, 900, -450.0), (2533, 2, 1500, 765.0)]
    ]
    said = words(summary(*found))
    assert (
        "Massive activations sit on the first token, <s> in channels 1415 and 2533: up to −450, 900 to 1,500 times the median, in layers 1 and 2."
        in said
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"position": 0}, "the first token in channel 7"),
        ({"position": 0, "token_id": 101}, "the first token, id 101 in"),
        ({"position": 19}, "position 19 in"),
        ({"position": 19, "token": "."}, "position 19 (.) in"),
        ({"token": "."}, "the token . in"),
        ({}, "single tokens in"),
    ],
)
def test_tokens_without_a_tokenizer_have_ids_or_positions(place, said):
    assert f"sit on {said}" in words(summary(channel(7, type="massive activation", **place)))


def test_neurons_are_told_apart_from_the_residual_stream():
    found = [channel(333, 1, 900, "mlp.down.in", expert=5), channel(3, 2, 40, "attn.k")]
    said = words(summary(*found))
    assert (
        "Inside the blocks the strongest is channel 333 of mlp.down.in of expert 5 of layer 1, 900 times the median (1 other there)."
        in said
    )
    alone = words(summary(channel(3, 2, 40, "attn.k")))
    assert "Inside the blocks the strongest is channel 3 of attn.k of layer 2, 40 times the median." in alone


def test_no_attention_and_attention_not_measured_are_different():
    assert "The model has no attention, so there are no sinks to look for." in words(
        summary(card={"num_heads": None})
    )
    assert "Attention was not measured in this run." in words(summary())


def test_the_sink_says_how_much_goes_where():
    heads = [head(at, n, 0.5) for at in range(6) for n in range(4)]
    layers = [layer(0, 0.1), *(layer(n, 0.52) for n in range(1, 5)), layer(5, 0.2)]
    found = [attention(at=at, n=n) for at in range(1, 6) for n in range(4)]
    said = words(summary(*found, heads=heads, layers=layers))
    assert (
        "52 % of the attention of layers 1 to 4 goes to the first token, [CLS]; 20 of 24 heads treat it as a sink."
        in said
    )


def test_one_sink_head_and_other_sinks():
    found = [attention(), attention(position=7, token=".", n=1)]
    said = words(summary(*found, heads=[head(1, n, 0.6) for n in range(4)], layers=[layer(1, 0.4)]))
    assert (
        "40 % of the attention of layer 1 goes to the first token, [CLS]; 1 of 4 heads treats it as a sink. Other sinks: position 7 (.)."
        in said
    )


def test_a_sink_bound_to_a_token_has_no_position():
    found = [attention("sink token", position=None, token="[SEP]", n=n) for n in range(2)]
    assert "The token [SEP] draws attention in 2 heads of layer 1, up to 60 %." in words(
        summary(*found, heads=[head(1, 0)])
    )


def test_small_values_extreme_logits_and_learned_sinks_are_told():
    small = [attention("small sink value", n=n, value=0.1, ratio=0.1) for n in range(2)]
    extreme = attention("extreme logits", position=None, token=None, value=88.0, at=2)
    said = words(summary(*small, extreme, heads=[head(1, 0, sink_logit=0.25), head(1, 1)]))
    assert "In 2 heads the sink's value vector is small: attending there does nothing." in said
    assert "1 head has extreme logits, up to 88 in layer 2." in said
    assert "A learned sink logit takes 25 % of the attention in 1 head." in said
    many = [attention("extreme logits", position=None, token=None, value=88.0, n=n, at=2) for n in range(10)]
    assert "10 heads have extreme logits" in words(summary(*many, heads=[head()]))


def test_weights_are_told():
    one = words(summary(weight(row=3, column=7), weight("outlier row", row=3)))
    assert (
        "A single weight stands far out: w.down of layer 1 [3, 7] = 1.9. Among the weights row 3 of w.down stands out of its matrix."
        in one
    )
    more = words(
        summary(
            weight(row=3, column=7),
            weight(row=4, column=7),
            weight("outlier column", column=7),
            weight("outlier row", row=3),
        )
    )
    assert "2 single weights stand far out, first w.down of layer 1 [3, 7] = 1.9." in more
    assert "Among the weights column 7 of w.down and 1 other row or column stand out of their matrix." in more


def test_experts_with_and_without_outliers():
    sites = [site("mlp.down.in", 1, e) for e in range(8)]
    assert "None of the 8 experts has outliers of its own." in words(summary(sites=sites))
    one = words(summary(channel(3, 1, 50, "mlp.down.in", expert=5), sites=sites))
    assert "1 of 8 experts has outliers of its own: expert 5 of layer 1." in one
    two = [channel(3, 1, 50, "mlp.down.in", expert=e) for e in (2, 5)]
    assert "2 of 8 experts have outliers of their own: expert 2 of layer 1 and expert 5 of layer 1." in words(
        summary(*two, sites=sites)
    )


def test_alignment_is_told_only_beyond_chance():
    told = "The kinds line up: outlier channels of resid.out and outlier rows of w.down share 7, where chance would give an overlap of 0.01."
    assert told in words(summary(alignment=(alignment(),)))
    assert "share 7." in words(summary(alignment=(alignment(expected=None),)))
    assert "line up" not in words(summary(alignment=(alignment(p=0.4),)))


def test_non_finite_values_come_before_all_numbers():
    warned = summary(channel(), warnings=("w.down of layer 1 holds 1 NaN entry.", "no tokenizer was found"))
    said = words(warned)
    assert "Beware: w.down of layer 1 holds 1 NaN entry." in said
    assert "tokenizer" not in said
    assert said.index("Beware") < said.index("Channel 99")


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("map", {}, "No activation site was measured in this run."),
        ("map", {"sites": [site(ratio=45.0), site(n=1)]}, "The most extreme tensor is resid.out of layer 0: its largest value is 45 times its median. 1 of 2 tensors exceeds 40 times;"),
        ("map", {"sites": [site("head.in", None)]}, "The most extreme tensor is head.in: its largest value is 8 times its median. 0 of 1 tensor exceed 40"),
        ("asymmetry", {}, "No wide channel is off its centre: shifting channels would bring nothing here."),
        ("attention", {"card": {"num_heads": None}}, "The model has no attention."),
        ("attention", {}, "Attention was not measured in this run."),
        ("attention", {"heads": [head()]}, "None of 1 head gives more than 30 % of its attention to one position."),
        ("attention", {"heads": [head(mass=0.5), head(n=1)]}, "1 of 2 heads gives one position more than 30 % of the attention, always position 0."),
        ("attention", {"heads": [head(mass=0.5, value=0.1), head(n=1, mass=0.5), head(n=2, mass=0.6, position=3)]}, "3 of 3 heads give one position more than 30 % of the attention, in 2 of them position 0. In 1 such head the value vector there is below a fifth of the usual norm: the head does nothing when it looks there."),
        ("weights", {}, "No row, column or single weight stands out of its matrix."),
        ("alignment", {}, "There were not two kinds of outliers to compare."),
        ("alignment", {"alignment": (alignment(),)}, "The one comparison shows more shared places than chance (p < 0.01)."),
        ("alignment", {"alignment": (alignment(p=0.5),)}, "The one comparison shows no more shared places than chance (p < 0.01)."),
        ("alignment", {"alignment": (alignment(),) * 3}, "3 of 3 comparisons show more shared places than chance (p < 0.01)."),
        ("alignment", {"alignment": (alignment(), alignment(p=0.5))}, "1 of 2 comparisons shows more shared places than chance (p < 0.01)."),
        ("alignment", {"alignment": (alignment(p=0.5),) * 2}, "None of 2 comparisons shows more shared places than chance (p < 0.01)."),
        ("findings", {}, "There are no findings to list."),
    ],
)  # fmt: skip
def test_sections_open_with_a_sentence(name, given, said):
    assert section(name, summary(**given)).startswith(said)


def asymmetric(channel, low, high, part="resid.out"):
    centre, half = (low + high) / 2, (high - low) / 2
    return fd.ChannelAsymmetry(
        layer=2,
        site=part,
        channel=channel,
        min=low,
        max=high,
        centre=centre,
        half_width=half,
        asymmetry=abs(centre) / half,
    )


def test_asymmetry_names_the_channel_and_what_a_shift_brings():
    rows = (asymmetric(11, -97, -58), asymmetric(12, 5.7, 43))
    said = section(
        "asymmetry", summary(asymmetry=rows, sites=[site(gain=2.0), site("attn.in", None, gain=1.5)])
    )
    assert said == (
        "2 listed channels never cross zero; the furthest off centre is channel 11 of resid.out in layer 2, which lives in [−97, −58]. "
        "Shifting every channel to its own centre would divide the range of resid.out of layer 0 by 2."
    )
    one = section("asymmetry", summary(asymmetry=rows[:1]))
    assert one.startswith("1 listed channel never crosses zero;")
    assert "Shifting" not in one
    assert section("asymmetry", summary(asymmetry=(asymmetric(1, -1, 2),))).startswith(
        "Every listed channel crosses zero;"
    )


def test_the_section_on_weights_counts_by_type():
    assert (
        section("weights", summary(weight(row=1, column=2))) == "1 super weight stands out of the matrices."
    )
    both = summary(weight(row=1, column=2), weight("outlier row", row=1), weight("outlier row", row=2))
    assert section("weights", both) == "1 super weight and 2 outlier rows stand out of the matrices."


def test_the_section_on_findings_counts():
    assert section("findings", summary(channel())) == "1 finding, strongest first."


def test_the_headline_tells_size_text_and_experts():
    assert (
        headline(summary())
        == "Net, 6 layers × 64 channels, 1k parameters · 8 inputs of 32 tokens · float32 on cpu"
    )
    assert "8 experts" in headline(made.moe().summary)


def test_the_real_encoder_reads_as_the_issue_asks():
    said = words(made.encoder().summary)
    assert "Channel 99 carries 30 to 45 times the median of its site in all 6 layers, never positive" in said
    assert "51 % of the attention of layers 1 to 4 goes to the first token, [CLS]" in said
