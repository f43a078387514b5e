"""The built-in decoders: what their cards say is what they do."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from skerry.anatomy import load, resolve
from skerry.anatomy.builtins import ZOO, twins_of
from skerry.anatomy.zoo_cards import zoo_cards
from skerry.corpus import builtin
from skerry.corpus.batch import Batch
from skerry.redesign.text import tokenize, window_batch
from skerry.redesign.twins import describe

NAMES = ("pebble", "pebble-scaled", "pebble-sink")


def facts(name):
    return json.loads((ZOO / name / "facts.json").read_text())


def test_the_three_differ_in_their_attention_only():
    recipes = [json.loads((ZOO / name / "recipe.json").read_text()) for name in NAMES]
    assert [r.pop("attention") for r in recipes] == ["softmax", "scaled", "sink-logit"]
    assert recipes[0] == recipes[1] == recipes[2]
    assert twins_of("pebble") == ("pebble-scaled", "pebble-sink")


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_decoder_is_small_has_bf16_weights_a_card_and_a_licence(name):
    folder = ZOO / name
    assert sum(p.stat().st_size for p in folder.iterdir()) < 12e6
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(k).dtype for k in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert "Apache" in (folder / "LICENSE").read_text()
    card = (folder / "README.md").read_text()
    assert f"skerry train --recipe {name}" in card and f"{facts(name)['measured']['loss']:.3f}" in card
    curve = json.loads((folder / "curve.json").read_text())
    assert curve[0]["step"] == 0 and curve[-1]["step"] >= 6900
    assert curve[-1]["loss"] < curve[1]["loss"]


def test_plain_transformers_loads_the_softmax_decoder():
    model = LlamaForCausalLM.from_pretrained(ZOO / "pebble")
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "pebble")
    ids = tokenizer("The sea is flat.", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    assert torch.isfinite(model(ids).logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_auto_classes_load_a_built_in_decoder(name):
    model = AutoModelForCausalLM.from_pretrained(ZOO / name)
    assert sum(p.numel() for p in model.parameters()) == facts(name)["num_parameters"]


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_card_come_back(name):
    """The text is this Python's own, so another Python reads other windows: the numbers come back in kind."""
    loaded = load(name)
    ids = tokenize(list(builtin().documents), loaded.tokenizer)
    x = window_batch(ids[int(len(ids) * 0.95) :], count=32, context=128, bos=0, seed=2, step=0)
    with torch.no_grad():
        loss = float(loaded.model(input_ids=x, labels=x).loss)
    found = describe(
        resolve(loaded.model), [Batch(x, torch.ones_like(x, dtype=torch.bool), torch.arange(len(x)))]
    )
    said = facts(name)["measured"]
    assert loss == pytest.approx(said["loss"], abs=0.5)
    assert found["max_to_median"] == pytest.approx(said["max_to_median"], rel=0.25)
    assert found["sink_share"] == pytest.approx(said["sink_share"], abs=0.08)


def test_the_softmax_decoder_has_clear_outliers_and_its_twins_no_sink():
    said = {name: facts(name)["measured"] for name in NAMES}
    own = said["pebble"]
    assert own["sink_share"] >= 0.3 and own["sink_value"] <= 0.3 and own["max_to_median"] >= 80
    assert all(said[n]["sink_share"] < 0.1 for n in NAMES[1:])


def test_the_list_tells_what_the_cards_tell():
    cards = {c.name: c for c in zoo_cards()}
    assert cards["pebble"].measured == facts("pebble")["measured"]
    assert set(cards) == {*NAMES, "minilm"}
