"""Methods by name, and pipelines of them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import NotPossible, UnknownOption
from skerry.impact.scheme import Scheme
from skerry.tame.register import METHODS, check_needs, find_method, parse_pipeline


def names(text):
    return [m.name for m in parse_pipeline(text)]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("sq", "smoothquant"),
        ("Smooth-Quant", "smoothquant"),
        ("os-plus", "os+"),
        ("osplus", "os+"),
        ("OS+", "os+"),
        ("os_plus", "os+"),
        ("os_plus_published", "os+published"),
        ("os+-published", "os+published"),
        ("os", "os"),
        ("LLM.int8()", "llm.int8"),
        ("llm_int8", "llm.int8"),
        ("quarot", "rotation"),
        ("hadamard", "rotation"),
        ("spin", "spinquant"),
        ("super_weights", "super-weights"),
        ("PrefixQuant", "prefix"),
        ("round-to-nearest", "rtn"),
        ("naive-clip", "clip"),
        (" awq ", "awq"),
    ],
)
def test_a_method_is_found_by_other_words_for_it(word, name):
    assert find_method(word).name == name


def test_every_name_and_every_own_option_key_is_its_method():
    for name, method in METHODS.items():
        assert method.name == name and find_method(name) is method


def test_what_the_issue_asks_for_is_there():
    # Rooms below taming add methods of their own.
    assert [name for name, method in METHODS.items() if method.replaces is None] == [
        "rtn",
        "clip",
        "smoothquant",
        "os",
        "os+",
        "os+published",
        "awq",
        "llm.int8",
        "super-weights",
        "prefix",
        "rotation",
        "spinquant",
        "gptq",
    ]


def test_an_unknown_method_is_told_with_its_neighbours():
    with pytest.raises(UnknownOption, match=r"'smothquant'; did you mean 'smoothquant'.*There are rtn, clip"):
        parse_pipeline("smothquant,gptq")


def test_a_pipeline_is_read_in_order():
    assert names("os+,gptq") == ["os+", "gptq"]
    assert names("Rotation, OS-plus , llm.int8,prefix") == ["rotation", "os+", "llm.int8", "prefix"]
    assert names("super-weights,gptq") == ["super-weights", "gptq"]
    assert names("gptq,super-weights") == ["gptq", "super-weights"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no method"),
        (" , ", "has no method"),
        ("os+,,gptq", "empty place"),
        ("os+,", "empty place"),
        ("gptq,os+", r"gptq rounds the weights, and os\+ would change them afterwards.*Write 'os\+,gptq'"),
        ("rtn,gptq", "'rtn' and 'gptq' exclude each other: weights are rounded once"),
        ("os+,os-plus", r"names 'os\+' 2 times"),
        ("os+,os+published", "both search the same seams"),
        ("rotation,spin", "spinquant begins with that rotation"),
        ("llm.int8,sq", "what llm.int8 finds is of the model as it is.*Write 'smoothquant,llm.int8'"),
        ("prefix,gptq,rotation", "gptq rounds.*Write 'rotation,prefix,gptq'"),
        ("os,smoothquant,gptq", "static ranges that os chooses.*Write 'smoothquant,os,gptq'"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_the_one_that_does(text, said):
    with pytest.raises(UnknownOption, match=said):
        parse_pipeline(text)


@given(st.lists(st.sampled_from(list(METHODS)), min_size=1, max_size=4))
def test_a_pipeline_that_is_taken_has_its_transforms_first_and_rounds_once(words):
    try:
        methods = parse_pipeline(",".join(words))
    except UnknownOption as error:
        # The order that the message advises is taken, or says what else is wrong.
        if "Write '" in str(error):
            advised = str(error).rpartition("Write '")[2].rstrip("'")
            assert sorted(advised.split(",")) == sorted(words)
            parse_pipeline(advised)
        return
    assert [m.name for m in methods] == words
    kinds = ["transform" if m.kind == "transform" else "rest" for m in methods]
    assert kinds == sorted(kinds, reverse=True)
    assert sum(m.kind == "weights" for m in methods) <= 1


def test_pairs_of_a_transform_and_anything_behind_it_are_taken():
    transforms = [m for m in METHODS.values() if m.kind == "transform" and m.replaces is None]
    others = [m for m in METHODS.values() if m.kind != "transform"]
    for first, second in itertools.product(transforms, others):
        assert names(f"{first.name},{second.name}") == [first.name, second.name]
        with pytest.raises(UnknownOption, match="transforms come first"):
            parse_pipeline(f"{second.name},{first.name}")


def test_a_method_without_anything_to_round_is_refused():
    with pytest.raises(
        NotPossible, match=r"smoothquant makes the rounding of inputs better.*w4a16.*w8a8 is a scheme"
    ):
        check_needs(parse_pipeline("smoothquant,gptq"), Scheme.parse("w4a16"))
    with pytest.raises(NotPossible, match="gptq makes the rounding of weights better"):
        check_needs(parse_pipeline("gptq"), Scheme.parse("inputs=int8:sym:token"))
    check_needs(parse_pipeline("awq,gptq"), Scheme.parse("w4a16-g128"))
