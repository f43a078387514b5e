"""The default model beside its twins, on decoders that are made here."""

from __future__ import annotations

import json

import pytest
import torch

import skerry
from skerry.anatomy import builtins, resolve
from skerry.anatomy.zoo_cards import zoo_cards
from skerry.corpus.batch import Batch
from skerry.errors import UnknownModel
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.text import train_tokenizer
from skerry.redesign.twins import describe

TEXT = ["the sea is flat and the rock is small, and the rock stands out of the sea. " * 40]
SINK = 0.9


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Three tiny decoders in the place of the built-in ones."""
    tokenizer = train_tokenizer(TEXT, vocabulary=280, context=32)
    for name, attention in {
        "pebble": "softmax",
        "pebble-scaled": "scaled",
        "pebble-sink": "sink-logit",
    }.items():
        torch.manual_seed(0)
        config = DecoderConfig(
            vocab_size=280,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            attention=attention,
            bos_token_id=0,
            eos_token_id=0,
        )
        DecoderForCausalLM(config).save_pretrained(tmp_path / "zoo" / name)
        tokenizer.save_pretrained(tmp_path / "zoo" / name)
    monkeypatch.setattr(builtins, "ZOO", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "zoo"


def test_an_audit_without_a_model_compares_the_default_with_its_twins(zoo, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT[0] * 20)
    done = skerry.audit(None, text, samples=8, tokens=16, trace=False)
    twins, costs = done.twins["twins"], done.twins["twin_costs"]
    assert [t["attention"] for t in twins] == ["softmax", "scaled", "sink-logit"]
    assert {c["model"] for c in costs} == {"pebble", "pebble-scaled", "pebble-sink"}
    table = done.table("twins").to_pylist()
    assert [t["loss"] for t in table] == [t["loss"] for t in twins]
    assert "The same decoder with other attention" in done.report.read_text()
    again = skerry.audit(None, text, samples=8, tokens=16, trace=False)
    assert json.dumps(again.twins) == json.dumps(done.twins)


def test_a_name_is_a_model_unless_a_folder_of_that_name_is_here(zoo):
    from skerry.anatomy.find import find

    assert find("pebble-scaled").path == zoo / "pebble-scaled"
    (zoo.parent / "pebble-scaled").mkdir()
    assert find("pebble-scaled").path.resolve() == (zoo.parent / "pebble-scaled").resolve()


def test_a_misspelt_built_in_name_is_no_model(zoo):
    from skerry.anatomy.find import find

    with pytest.raises(UnknownModel, match="did you mean 'pebble'"):
        find("pebbel")


def test_every_built_in_model_has_a_card(zoo):
    cards = {card.name: card for card in zoo_cards()}
    assert set(cards) == {"pebble", "pebble-scaled", "pebble-sink", "minilm"}
    assert cards["pebble"].is_default and cards["pebble"].installed


def test_a_planted_sink_is_the_one_that_is_described(monkeypatch):
    """Head 2 of block 1 gives 0.9 to the first token, whose value is ten times shorter than the others'."""
    torch.manual_seed(0)
    model = DecoderForCausalLM(
        DecoderConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    import skerry.redesign.twins as twins

    def planted(view, *, first_query=8):
        share, value = torch.full((4,), 0.3), torch.full((4,), 1.5)
        if view.layer == 1:
            share[2], value[2] = SINK, 0.1
        else:
            share[0] = 0.99  # gives more, but fetches much: no sink
        return share, value

    monkeypatch.setattr(twins, "sink_of_heads", planted)
    ids = torch.randint(0, 50, (2, 16))
    found = describe(resolve(model), [Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(2))])
    assert (found["sink_layer"], found["sink_head"]) == (1, 2)
    assert found["sink_share"] == pytest.approx(SINK) and found["sink_value"] == pytest.approx(0.1)


def test_the_share_of_a_head_is_the_mean_of_its_probabilities():
    from skerry.anatomy.attention import AttentionView
    from skerry.redesign.twins import sink_of_heads

    query = torch.zeros(1, 2, 12, 4)
    value = torch.ones(1, 2, 12, 4)
    value[:, 1, 0] = 0.25
    view = AttentionView(
        layer=0, num_heads=2, scale=1.0, softcap=None, sink_logits=None, mask=None, is_causal=True,
        query=query, key=query, value=value, logits=None,
    )  # fmt: skip
    share, ratio = sink_of_heads(view)
    truth = sum(1 / (i + 1) for i in range(8, 12)) / 4  # equal logits: query i gives 1 / (i + 1)
    torch.testing.assert_close(share, torch.full((2,), truth))
    torch.testing.assert_close(ratio, torch.tensor([1.0, 0.25]))
