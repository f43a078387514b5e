"""Gram matrices against their definition, and the walk through the blocks against whole forwards."""

import weakref

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st

from skerry.anatomy import Site, capture, resolve
from skerry.anatomy.dense import dense_maps, replace_weights
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.errors import MergeMismatch, SkerryError
from skerry.measure.gram import ColumnNorms, Gram, block_grams, block_norms, column_norms, input_of


def batches_of(model, *, num=2, padding=None, length=12):
    found = []
    for i in range(num):
        ids, keep = zoo.tokens(model, num_samples=2, length=length, padding=padding, seed=i)
        found.append(Batch(ids, keep, torch.arange(2 * i, 2 * i + 2)))
    return found


def rows(seed, num, width, dtype=torch.float64):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gram_is_the_sum_of_outer_products(dtype):
    x = rows(0, 5000, 7, dtype)  # more than are multiplied at once
    gram = Gram(7)
    gram.update(x)
    truth = sum(torch.outer(r, r) for r in x.double())
    assert gram.result().num_rows == 5000
    torch.testing.assert_close(
        gram.result().matrix, truth, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=5e-3
    )


def test_rows_of_an_identity_give_the_identity():
    gram, norms = Gram(5), ColumnNorms(5)
    gram.update(torch.eye(5))
    norms.update(torch.eye(5))
    assert torch.equal(gram.matrix, torch.eye(5, dtype=torch.float64))
    assert torch.equal(norms.result().norms, torch.ones(5, dtype=torch.float64))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.randoms())
def test_merged_in_any_order_equals_all_at_once(counts, random):
    x = rows(1, sum(counts), 4)
    parts = list(x.split(counts))
    random.shuffle(parts)
    for kind in (Gram, ColumnNorms):
        whole = kind(4)
        whole.update(x)
        merged = kind(4)
        for part in parts:
            other = kind(4)
            other.update(part)
            merged.merge(kind.from_state(other.state()))
        for name, value in whole.state().items():
            torch.testing.assert_close(merged.state()[name], value, rtol=1e-9, atol=1e-12)


def test_norms_are_the_root_of_the_diagonal():
    x = rows(2, 50, 6)
    gram, norms = Gram(6), ColumnNorms(6)
    gram.update(x)
    norms.update(x)
    torch.testing.assert_close(norms.result().norms, gram.matrix.diagonal().sqrt(), rtol=1e-12, atol=0)


def test_grams_of_other_widths_or_types_do_not_merge():
    with pytest.raises(MergeMismatch, match="number of columns"):
        Gram(3).merge(Gram(4))
    with pytest.raises(MergeMismatch, match="dtype"):
        Gram(3).merge(Gram(3, dtype=torch.float32))
    with pytest.raises(MergeMismatch, match="number of columns"):
        ColumnNorms(3).merge(ColumnNorms(4))


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2_moe", "gemma3", "bert", "falcon_7b"])
@pytest.mark.parametrize("padding", [None, "right"])
def test_norms_of_a_model_are_those_of_its_captured_inputs_without_padding(name, padding):
    model = zoo.tiny(name)
    anatomy, batches = resolve(model), batches_of(model, padding=padding)
    maps = dense_maps(anatomy)
    found = column_norms(anatomy, batches, maps)
    squares = {}
    for batch in batches:
        captured = capture(anatomy, batch.input_ids, keep=batch.keep)
        for dense in maps:
            if dense.expert is None and dense.reads in captured:
                x = captured[dense.reads][batch.keep.reshape(-1)].double()
                squares[dense, len(squares)] = x.square().sum(0)
    assert squares
    for dense in {d for d, _ in squares}:
        truth = sum(v for (d, _), v in squares.items() if d is dense).sqrt()
        torch.testing.assert_close(
            found[input_of(anatomy, dense)].result().norms, truth, rtol=1e-5, atol=1e-6
        )


def test_an_expert_is_measured_on_the_tokens_that_are_routed_to_it():
    model = zoo.tiny("mixtral")
    anatomy, batches = resolve(model), batches_of(model, padding="right")
    maps = dense_maps(anatomy)
    found = column_norms(anatomy, batches, maps)
    num_kept = sum(b.num_tokens for b in batches)
    for layer in range(2):
        seen = [found[Site(layer, "mlp.in", e)].num_rows for e in range(4)]
        assert sum(seen) == 2 * num_kept  # two experts each
        assert seen == [found[Site(layer, "mlp.down.in", e)].num_rows for e in range(4)]


def naive_grams(anatomy, batches, layer, maps):
    """Whole forwards of the model as it is."""
    sites = {input_of(anatomy, d): d for d in maps if d.layer == layer and d.expert is None}
    grams = {}
    for batch in batches:
        captured = capture(anatomy, batch.input_ids, keep=batch.keep)
        for site in sites:
            x = captured[site][batch.keep.reshape(-1)].double()
            grams[site] = grams.get(site, 0) + x.T @ x
    return grams


@pytest.mark.parametrize("name", zoo.NAMES)
def test_each_block_is_read_through_what_the_changed_blocks_before_it_make(name):
    model = zoo.tiny(name)
    anatomy, batches = resolve(model), batches_of(model, padding="right")
    maps, done = dense_maps(anatomy), {}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    walk = Walk(anatomy, batches)
    for layer in walk:
        members = [d for d in maps if d.layer == layer]
        found, norms = block_grams(walk, members), block_norms(walk, members)
        with replace_weights(done):
            truth = naive_grams(anatomy, batches, layer, maps)
        assert truth
        for site, matrix in truth.items():
            torch.testing.assert_close(found[site].matrix, matrix, rtol=2e-4, atol=1e-4)
            torch.testing.assert_close(
                norms[site].result().norms, matrix.diagonal().sqrt(), rtol=2e-4, atol=1e-5
            )
        new = {d: d.weight * 0.5 for d in members}
        walk.advance(walk.run(replace_weights(new)))
        done |= new
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("job", ["sparsegpt", "gptq"])
def test_grams_of_one_block_live_at_a_time(job, monkeypatch):
    import skerry.measure.gram as measured
    from skerry.impact.prune import pruned_weights
    from skerry.impact.scheme import Scheme
    from skerry.tame.gptq import gptq_model

    alive, most = weakref.WeakSet(), []

    class Counted(Gram):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(measured, "Gram", Counted)
    model = zoo.tiny("llama", num_hidden_layers=4)
    anatomy, batches = resolve(model), batches_of(model)
    if job == "gptq":
        gptq_model(anatomy, batches, Scheme.parse("w4a16"))
    else:
        pruned_weights(anatomy, "sparsegpt", 0.5, batches)
    # q, k and v read one tensor, gate and up another, o and down one each.
    assert len(most) == 16 and max(most) == 4


def test_an_input_that_is_no_number_is_named():
    model = zoo.tiny("llama")
    anatomy, maps = resolve(model), dense_maps(resolve(model))
    walk = Walk(anatomy, batches_of(model))
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("nan")
    with pytest.raises(SkerryError, match=r"1\.attn\.in is NaN or infinite in channels \[3\]"):
        column_norms(anatomy, batches_of(model), maps)
    walk.advance(walk.run())
    for read in (block_grams, block_norms):
        with pytest.raises(SkerryError, match=r"1\.attn\.in is NaN"):
            read(walk, [d for d in maps if d.layer == 1])
