import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.errors import UnknownOption
from skerry.impact.numbers import NUMBERS
from skerry.impact.scheme import Scheme, TensorSpec, check_group

INTEGERS = [n for n in NUMBERS if n.startswith("int")]
BLOCKS = [n for n, f in NUMBERS.items() if f.block]


@st.composite
def specs(draw, kind):
    number = draw(st.sampled_from(sorted(NUMBERS)))
    if number in BLOCKS and kind != "attention":
        return TensorSpec(number)
    number = "int8" if number in BLOCKS else number
    places = {"weights": ["tensor", "channel", "group"], "attention": ["tensor", "token", "column"]}
    granularity = draw(st.sampled_from(places.get(kind, ["tensor", "token", "column", "group"])))
    dynamic = kind == "weights" or granularity not in ("tensor", "column") or draw(st.booleans())
    observers = ["minmax", "mse", "percentile:99.9", "percentile:99.99", "percentile:100"]
    if granularity == "tensor" and kind != "weights":
        observers += ["tokenwise:0.99", "tokenwise:0.985"]
    if not dynamic and granularity == "column":
        observers = ["minmax"]
    return TensorSpec(
        number,
        symmetric=number not in INTEGERS or draw(st.booleans()),
        granularity=granularity,
        group_size=draw(st.integers(1, 512)) if granularity == "group" else None,
        dynamic=dynamic,
        observer=draw(st.sampled_from(observers)),
    )


@st.composite
def schemes(draw):
    return Scheme(**{k: draw(st.none() | specs(k)) for k in ("weights", "inputs", "attention", "kv")})


def test_w8a8_is_weights_per_channel_and_inputs_per_token():
    assert Scheme.parse("w8a8") == Scheme(
        weights=TensorSpec("int8", granularity="channel"), inputs=TensorSpec("int8", granularity="token")
    )


def test_w4a16_in_groups_leaves_the_inputs_alone():
    assert Scheme.parse("w4a16-g128") == Scheme(
        weights=TensorSpec("int4", granularity="group", group_size=128)
    )


def test_per_tensor_means_a_static_range_of_the_inputs():
    assert Scheme.parse("w8a8-tensor") == Scheme(
        weights=TensorSpec("int8"), inputs=TensorSpec("int8", dynamic=False)
    )
    assert Scheme.parse("w8a8-tensor-dynamic").inputs == TensorSpec("int8", dynamic=True)
    assert Scheme.parse("w8a8-tensor-token") == Scheme.parse("w8a8-token-tensor")
    assert Scheme.parse("w8a8-tensor-token") == Scheme(
        weights=TensorSpec("int8"), inputs=TensorSpec("int8", granularity="token")
    )


def test_static_leaves_the_weights_per_channel():
    assert Scheme.parse("w8a8-static") == Scheme(
        weights=TensorSpec("int8", granularity="channel"), inputs=TensorSpec("int8", dynamic=False)
    )


def test_the_cache_is_asymmetric_per_token():
    cache = TensorSpec("int4", symmetric=False, granularity="token")
    assert Scheme.parse("w4a4kv4").kv == cache
    assert Scheme.parse("kv8") == Scheme(kv=dataclasses.replace(cache, number="int8"))
    assert Scheme.parse("kvfp8").kv == TensorSpec("fp8_e4m3", granularity="token")


def test_an_observer_is_for_static_inputs_and_otherwise_for_weights():
    static = Scheme.parse("w8a8-static-p99.9")
    assert (static.weights.observer, static.inputs.observer) == ("minmax", "percentile:99.9")
    dynamic = Scheme.parse("w4a8-g64-mse")
    assert (dynamic.weights.observer, dynamic.inputs.observer) == ("mse", "minmax")


def test_attention_is_asymmetric_per_token_in_the_number_of_the_inputs():
    assert Scheme.parse("w4a8-attn").attention == TensorSpec("int8", symmetric=False, granularity="token")
    assert Scheme.parse("wfp8afp8-attn").attention == TensorSpec("fp8_e4m3", granularity="token")


def test_asym_is_for_weights_and_inputs():
    scheme = Scheme.parse("w6a6kv8-asym-attn")
    assert not scheme.weights.symmetric and not scheme.inputs.symmetric and not scheme.kv.symmetric
    assert Scheme.parse("w6a6kv8-sym").kv.symmetric is False
    assert Scheme.parse("kv8-sym").kv.symmetric is True


def test_sixteen_bits_are_no_quantization():
    assert Scheme.parse("w16a16") == Scheme() == Scheme.parse("weights=16,inputs=none")
    assert str(Scheme()) == "w16a16"


def test_the_long_form_takes_the_same_defaults_as_the_short_one():
    assert Scheme.parse("weights=int8,inputs=int8,kv=int8") == Scheme.parse("w8a8kv8")
    assert Scheme.parse("weights=int8,inputs=int8:static:p99.9") == Scheme.parse("w8a8-static-p99.9")
    assert Scheme.parse("weights=mxfp4,inputs=mxfp4") == Scheme.parse("wmxfp4amxfp4")


def test_the_long_form_says_each_piece():
    scheme = Scheme.parse(
        "weights=int4:asym:group128, inputs=int8:sym:token:dynamic, kv=int8:tensor:static:percentile:99.5"
    )
    assert scheme.weights == TensorSpec("int4", symmetric=False, granularity="group", group_size=128)
    assert scheme.inputs == TensorSpec("int8", granularity="token")
    assert scheme.kv == TensorSpec("int8", symmetric=False, dynamic=False, observer="percentile:99.5")


@pytest.mark.parametrize(
    "text",
    [
        "w8a8",
        "w6a6",
        "w4a8",
        "w4a4",
        "w4a16-g128",
        "w8a8-tensor",
        "w8a8-static",
        "kv8",
        "w4a4kv4",
        "wfp8afp8",
        "wmxfp4amxfp4",
        "wnvfp4anvfp4",
        "w16a8",
        "w8a8-asym",
        "w8a8-static-p99.9",
        "w8a8-static-tokenwise0.99",
        "w8a8-attn",
        "w2a16-asym-g32-mse",
        "w8a8-tensor-dynamic",
        "wfp8_e5m2a16",
        "kv4-g64",
        "wmxfp4_evenamxfp4_even",
        "w8a8-tensor-token",
        "kv8-sym",
        "w4a16-asym",
    ],
)
def test_short_strings_are_their_own_canonical_form_in_any_case(text):
    assert str(Scheme.parse(text)) == text == str(Scheme.parse(text.upper())) == Scheme.parse(text).name


@settings(deadline=None)  # the canonical string is searched for
@given(schemes())
def test_a_scheme_survives_its_string_and_its_string_is_a_fixed_point(scheme):
    text = str(scheme)
    again = Scheme.parse(text)
    assert again == scheme
    assert str(again) == text


@given(st.sampled_from(["weights", "inputs", "attention", "kv"]).flatmap(specs))
def test_a_spec_survives_its_string_and_its_plain_fields(spec):
    assert TensorSpec.parse(str(spec)) == spec
    fields = {k: v for k, v in spec.plain().items() if k != "bits"}
    assert TensorSpec(**fields) == spec


@settings(deadline=None)
@given(st.text(alphabet="wakv0148fpmxn-_gtsey=:,.", max_size=20))
def test_any_text_is_a_scheme_or_an_option_that_does_not_exist(text):
    try:
        scheme = Scheme.parse(text)
    except UnknownOption:
        return
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("w9a8", "'w9a8': no weights of 9 bits; 2 to 8 bits exist, 16 leaves them alone: did you mean w8?"),
        ("w1a8", "no weights of 1 bits; 2 to 8 bits exist, 16 leaves them alone: did you mean w2?"),
        ("w8a12", "no inputs of 12 bits; 2 to 8 bits exist, 16 leaves them alone: did you mean a8?"),
        ("w8a8kv32", "no kv of 32 bits; 2 to 8 bits exist, 16 leaves them alone: did you mean kv16?"),
        ("w8b8", "'w8b8': 'b8' behind 'w8' means nothing; did you mean 'w8a8'"),
        ("int8", "'int8' is no scheme"),
        ("", "'' is no scheme"),
        ("w8a8-staic", "no flag 'staic'; did you mean 'static'"),
        ("w4a16-g0", "a group has 1 value or more, not 0; e.g. -g128"),
        ("w8a8-static-token", "-static contradicts -token; keep one of them"),
        ("w8a8-sym-asym", "-sym contradicts -asym"),
        ("w4a16-g64-g128", "-g64 contradicts -g128"),
        ("w8a8-static-mse-p99", "-mse contradicts -p99"),
        ("w8a16-static", "-static is for inputs, and none here takes it"),
        ("w8a16-attn", "-attn takes the number of the inputs, and they are left alone; e.g. w8a8-attn"),
        ("wfp8afp8-asym", "-asym is for integers; floats are symmetric"),
        ("wmxfp4amxfp4-g64", "-g64 cannot be chosen for mxfp4, whose format fixes symmetric blocks of 32"),
        ("wnvfp4a16-asym", "-asym cannot be chosen for nvfp4, whose format fixes symmetric blocks of 16"),
        ("wmxfp4amxfp4-attn", "probabilities have as many columns as there are keys"),
        ("w8a8-p101", "observer 'percentile:101': percentile takes a number above 50 and up to 100"),
        ("w8a8-p1.2.3", "percentile takes a number above 50 and up to 100"),
        (
            "w8a8-tokenwise0.9",
            "observer 'tokenwise:0.9' is a quantile over tokens: it needs granularity 'tensor'",
        ),
        ("wieghts=int8", "no kind of tensor 'wieghts'; did you mean 'weights'?"),
        ("weights=int9", "no integers of 9 bits: int2 to int8; 16 bits means left alone"),
        ("weights=int8:sim", "'int8:sim': no piece 'sim'; did you mean 'sym' or 'asym'?"),
        ("weights=int8:sym:asym", "'asym' contradicts 'sym'; keep one of them"),
        ("weights=int8,weights=int4", "names 'weights' twice"),
        ("weights=int4:group0", "a group needs a size of 1 or more, not 0"),
        ("weights=fp8:asym", "fp8_e4m3 is symmetric: a zero point exists for int2 to int8 only"),
        ("weights=fp9", "no number format 'fp9'; did you mean"),
        ("weights=mxfp4:group16", "mxfp4 has one scale per 32 values, not groups of 16"),
        ("weights=nvfp4:group32", "nvfp4 has one scale per 16 values, not groups of 32"),
        ("weights=mxfp4:tensor", "mxfp4 has one scale per block, not per tensor"),
        ("weights=mxfp4:token", "mxfp4 has one scale per 32 values, not one grid per token"),
        ("weights=mxfp4:mse", "mxfp4 takes its scale from the block at hand, not from observer 'mse'"),
        ("inputs=nvfp4:static", "nvfp4 takes its scale from the block at hand, not from a static range"),
        ("inputs=int8:token:static", "a range per token cannot come from calibration"),
        ("inputs=int8:group64:static", "a static range is per 'tensor' or 'channel', not per group"),
        (
            "inputs=int8:channel:static:mse",
            "a static range per channel takes observer 'minmax'; 'mse' needs 'tensor'",
        ),
        ("weights=int8:token", "weights have no grid per token: 'channel' is one grid per output"),
        (
            "weights=int8:tensor:tokenwise0.9",
            "weights have no tokens: observer 'tokenwise:0.9' is for inputs",
        ),
    ],
)
def test_a_typo_is_an_error_that_says_what_was_expected(text, sentence):
    with pytest.raises(UnknownOption) as caught:
        Scheme.parse(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"number": "int"}, "no number format 'int'; did you mean 'int8'"),
        (
            {"granularity": "row"},
            "no granularity 'row'; did you mean 'group'? There are tensor, token, channel, column, group",
        ),
        ({"granularity": "group"}, "a group needs a size of 1 or more, not None"),
        ({"group_size": 64}, "group_size 64 is for granularity 'group', not 'tensor'"),
        ({"observer": "minmaxx"}, "no observer 'minmaxx'; did you mean 'minmax'?"),
        ({"observer": "mse:3"}, "observer 'mse' takes no number, not '3'"),
        (
            {"observer": "percentile"},
            "percentile takes a number above 50 and up to 100, e.g. percentile:99.9",
        ),
        ({"observer": "tokenwise:2"}, "tokenwise takes a number above 0.5 and up to 1, e.g. tokenwise:0.99"),
    ],
)
def test_a_wrong_field_is_an_error_too(fields, sentence):
    with pytest.raises(UnknownOption) as caught:
        TensorSpec(**fields)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int8:token", 8.0),
        ("fp8", 8.0),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("int4:group128", 4.125),
        ("int4:asym:group128", 4 + 20 / 128),
    ],
)
def test_bits_count_the_scales_of_groups(text, bits):
    assert TensorSpec.parse(text).bits == bits


def test_group_sizes_that_do_not_divide_are_refused_with_those_that_do():
    check_group(256, TensorSpec("int4", granularity="group", group_size=128), "layers.0.q_proj")
    check_group(7, TensorSpec("int8"), "layers.0.q_proj")
    check_group(7, None, "layers.0.q_proj")
    with pytest.raises(UnknownOption) as caught:
        check_group(96, TensorSpec("int4", granularity="group", group_size=64), "layers.0.q_proj")
    assert str(caught.value) == (
        "layers.0.q_proj reads 96 values, which groups of 64 do not divide; "
        "sizes that do: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96"
    )
    with pytest.raises(UnknownOption, match=r"mxfp4 fixes it; leave this map in full precision"):
        check_group(48, TensorSpec("mxfp4"), "layers.0.q_proj")
