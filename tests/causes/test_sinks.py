"""What sinks take and bring is an identity of attention: mix = (1 - mass) rest + bias."""

import pytest
import torch
import zoo
from torch.testing import assert_close

from skerry.anatomy import AttentionView, Site, capture, resolve, watch
from skerry.anatomy.attention import naive_probs
from skerry.anatomy.model import run
from skerry.causes.sinks import SinkPart, Sinks, sink_mass, sink_part
from skerry.corpus.batch import Batch
from skerry.errors import UnknownSite
from skerry.outliers.finding import Finding


def looked(name, padding=None, dtype=torch.float64):
    # A float64 mask is -inf in the float32 softmax of transformers: rows that see nothing would turn NaN.
    dtype = torch.float32 if padding else dtype
    anatomy = resolve(zoo.tiny(name, dtype=dtype))
    ids, keep = zoo.tokens(anatomy.model, num_samples=3, length=9, padding=padding)
    views = {}
    with watch(anatomy, on_attention=lambda v: views.setdefault(v.layer, v)):
        run(anatomy, ids, keep)
    mix = capture(anatomy, ids, ["attn.mix"], keep)[Site(1, "attn.mix")]
    return views[1], mix.unflatten(0, ids.shape).unflatten(-1, (views[1].num_heads, -1)).transpose(1, 2), Batch(ids, keep, torch.arange(3))  # fmt: skip


@pytest.mark.parametrize("name", zoo.NAMES)
def test_what_heads_give_is_the_rest_and_what_sinks_bring(name):
    view, mix, batch = looked(name, "right")
    sinks = Sinks({1: frozenset({0})}, {1: frozenset({int(batch.input_ids[1, 3])})}, learned=frozenset({1}))
    sink = sinks.mask(1, batch)
    part = sink_part(view, sink)
    whole = (1 - part.mass)[..., None] * part.rest() + part.bias
    keep = batch.keep[:, None].expand(mix.shape[:3])
    assert_close(whole[keep].double(), mix[keep].double(), rtol=1e-4, atol=1e-5)
    assert (part.mass >= 0).all() and (part.mass <= 1).all()
    assert torch.equal(sink_mass(view, sink), part.mass)


def test_mass_and_bias_by_hand():
    """Three queries, two key heads for four query heads, one masked key."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 3, 2, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, 3, 2, generator=generator, dtype=torch.float64)
    view = AttentionView(0, 4, 0.7, None, None, None, True, query, key, value, None)
    part = sink_part(view, torch.tensor([[True, False, False]]))
    for head in range(4):
        for q in range(3):
            scores = [0.7 * float(query[0, head, q] @ key[0, head // 2, k]) for k in range(q + 1)]
            weights = torch.tensor(scores).softmax(0)
            assert_close(part.mass[0, head, q].float(), weights[0], rtol=1e-5, atol=1e-6)
            expected = float(weights[0]) * value[0, head // 2, 0]
            assert_close(part.bias[0, head, q], expected, rtol=1e-5, atol=1e-6)


def test_a_learned_sink_takes_and_brings_nothing():
    view, _, batch = looked("gpt_oss")
    nothing = torch.zeros_like(batch.keep)
    part = sink_part(view, nothing)
    assert_close(part.mass, 1 - naive_probs(view).sum(-1))
    assert part.mass.min() > 0 and not part.bias.any()
    plain, _, other = looked("llama")
    assert not sink_part(plain, torch.zeros_like(other.keep)).mass.any()


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt_oss"])
def test_queries_that_see_nothing_give_nothing(name):
    view, _, batch = looked(name, "left")
    sinks = Sinks({1: frozenset({0})})
    part = sink_part(view, sinks.mask(1, batch))
    for x in (part.mass, part.bias, part.rest()):
        assert x.isfinite().all()
    # The first token of each input, wherever padding puts it, is the sink.
    first = [int(k.int().argmax()) for k in batch.keep]
    assert [row.nonzero()[:, 0].tolist() for row in sinks.mask(1, batch)] == [[t] for t in first]


def test_padding_and_positions_behind_the_end_are_no_sinks():
    ids = torch.tensor([[7, 5, 7, 0], [4, 7, 0, 0]])
    keep = torch.tensor([[True, True, True, False], [True, True, False, False]])
    batch = Batch(ids, keep, torch.arange(2))
    sinks = Sinks({0: frozenset({0, 3, 99})}, {0: frozenset({7, 0}), 1: frozenset({5})}, frozenset({2}))
    assert sinks.mask(0, batch).tolist() == [[True, False, True, False], [True, True, False, False]]
    assert sinks.mask(1, batch).tolist() == [[False, True, False, False], [False] * 4]
    assert not sinks.mask(2, batch).any() and not sinks.mask(9, batch).any()
    assert sinks.layers == [0, 1, 2]
    assert Sinks().layers == []


def test_the_product_of_half_precision_is_taken_in_float32():
    exact, _, batch = looked("llama")
    half = AttentionView(**{**vars(exact), "query": exact.query.bfloat16(), "key": exact.key.bfloat16(), "value": exact.value.bfloat16()})  # fmt: skip
    wide = AttentionView(**{**vars(exact), "query": half.query.float(), "key": half.key.float(), "value": half.value.float()})  # fmt: skip
    sink = Sinks({1: frozenset({0})}).mask(1, batch)
    assert_close(sink_part(half, sink).mass, sink_part(wide, sink).mass, rtol=0, atol=0)
    assert_close(sink_mass(half, sink), sink_mass(wide, sink), rtol=0, atol=0)


def test_an_architecture_that_shows_no_values_says_so():
    view, _, batch = looked("llama")
    hidden = AttentionView(**{**vars(view), "value": None})
    with pytest.raises(UnknownSite, match="block 1 shows no value vectors.*this needs attn.v"):
        sink_part(hidden, Sinks({1: frozenset({0})}).mask(1, batch))
    assert sink_mass(hidden, Sinks({1: frozenset({0})}).mask(1, batch)).max() > 0


def test_findings_of_a_scan_become_sinks():
    made = [
        {"type": "sink position", "layer": 1, "position": 0},
        {"type": "sink position", "layer": 0, "position": 2},
        {"type": "sink position", "layer": 1, "position": 4},
        {"type": "sink token", "layer": 3, "token_id": 9},
        {"type": "sink token", "layer": 3, "token_id": 5},
        {"type": "outlier channel", "layer": 2, "channel": 9},
    ]
    findings = [
        Finding.model_construct(**{"layer": None, "position": None, "token_id": None, **m}) for m in made
    ]
    sinks = Sinks.from_findings(findings, learned=[2])
    assert sinks.positions == {0: {2}, 1: {0, 4}}
    assert sinks.token_ids == {3: {5, 9}}
    assert sinks.layers == [0, 1, 2, 3]


def test_a_part_may_be_made_without_its_rest():
    part = SinkPart(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, 3))
    assert part.rest is None
