"""The vocabulary of places: every word has a meaning, every site is read back from its text, wrong words are met with near ones."""

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.anatomy import ACTIVATION_PARTS, WEIGHT_PARTS, Site, parse_parts
from skerry.anatomy.sites import NORM_BIAS, RESIDUAL, STREAMED, check_part
from skerry.errors import UnknownSite

WORDS = [*ACTIVATION_PARTS, *WEIGHT_PARTS]
NORMS = [part for part in WEIGHT_PARTS if part.startswith("norm.")]
SITES = st.builds(
    Site,
    st.none() | st.integers(0, 200),
    st.sampled_from([*WORDS, *(norm + NORM_BIAS for norm in NORMS)]),
    st.none() | st.integers(0, 300),
)


def test_every_part_has_axes_and_a_meaning():
    for part, (axes, meaning) in {**ACTIVATION_PARTS, **WEIGHT_PARTS}.items():
        assert axes and meaning and not meaning.endswith("."), part
    assert not set(ACTIVATION_PARTS) & set(WEIGHT_PARTS)
    assert set(STREAMED) <= set(ACTIVATION_PARTS) and set(RESIDUAL) <= set(ACTIVATION_PARTS)


def test_the_axes_are_the_words_of_the_house():
    known = {
        "token",
        "head",
        "query",
        "key",
        "row",
        "column",
        "channel",
        "neuron",
        "expert",
        "head*channel",
        "kv_head*channel",
    }
    for axes, _ in {**ACTIVATION_PARTS, **WEIGHT_PARTS}.values():
        assert set(axes.split()) <= known


@given(SITES)
def test_a_site_is_read_back_from_its_text(site):
    assert Site.parse(str(site)) == site


def test_the_text_of_a_site():
    assert str(Site(3, "mlp.down.in")) == "3.mlp.down.in"
    assert str(Site(3, "mlp.down.in", 5)) == "3.mlp.down.in[5]"
    assert str(Site(None, "head.in")) == "head.in"


def test_a_site_is_a_weight_or_an_activation():
    assert all(Site(0, part).is_weight for part in WEIGHT_PARTS)
    assert Site(0, "norm.attn.bias").is_weight
    assert not any(Site(0, part).is_weight for part in ACTIVATION_PARTS)


def test_sites_are_in_the_order_in_which_a_token_meets_them():
    path = ["w.embed", "0.resid.in", "0.attn.in", "0.attn.q", "0.attn.mix", "0.resid.mid", "0.mlp.up", "0.mlp.down.in", "0.mlp.out",
            "0.resid.out", "1.resid.in", "10.resid.in", "head.in", "w.head"]  # fmt: skip
    sites = [Site.parse(text) for text in path]
    shuffled = random.Random(0).sample(sites, len(sites))
    assert sorted(shuffled) == sites


@given(SITES, SITES)
def test_the_order_of_sites_is_total(a, b):
    assert (a < b) + (b < a) + (a == b) == 1
    assert (a <= b, a > b, a >= b) == (not b < a, b < a, not a < b)
    assert max(a, b) == sorted([a, b])[1]


def test_experts_come_one_after_another_behind_their_sum():
    sites = [Site(0, "mlp.out"), *(Site(0, "mlp.out", e) for e in range(12))]
    assert sorted(random.Random(0).sample(sites, len(sites))) == sites


def test_sites_are_keys_that_survive_a_process():
    site = Site(4, "attn.k", None)
    assert {site: 1}[Site(4, "attn.k")] == 1
    assert pickle.loads(pickle.dumps(site)) == site


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("mlp.down", "mlp.down.in"), ("attn.logit", "attn.logits"), ("resid.middle", "resid.mid"), ("w.downn", "w.down"), ("norm.atn", "norm.attn")],
)  # fmt: skip
def test_a_wrong_word_is_met_with_near_ones(wrong, near):
    with pytest.raises(
        UnknownSite,
        match=rf"there is no site '{wrong}'; did you mean .*'{near}'.*\? `skerry sites` lists all",
    ):
        check_part(wrong)


def test_a_word_that_is_near_nothing_is_refused_without_a_guess():
    with pytest.raises(UnknownSite, match=r"there is no site 'zzz'\. `skerry sites` lists all"):
        check_part("zzz")


@pytest.mark.parametrize("text", ["3.attn.qq", "attn", "", "3", "3.", "x.attn.q"])
def test_a_text_that_is_no_site_is_refused(text):
    with pytest.raises(UnknownSite):
        Site.parse(text)


def test_a_beginning_stands_for_all_parts_that_have_it():
    assert parse_parts(["resid"]) == ["resid.in", "resid.mid", "resid.out"]
    assert parse_parts(["mlp.down"]) == ["mlp.down.in"]
    assert set(parse_parts(["w"])) == {part for part in WEIGHT_PARTS if part.startswith("w.")}


def test_parts_come_once_and_in_order_however_they_were_asked_for():
    assert parse_parts(["mlp.out", "attn.q", "mlp.out", "attn"])[:2] == ["attn.in", "attn.q"]
    assert parse_parts(["mlp.out", "resid.in"]) == ["resid.in", "mlp.out"]
    assert parse_parts([]) == []


def test_a_beginning_ends_at_a_dot():
    with pytest.raises(UnknownSite, match="'res'"):
        parse_parts(["res"])
