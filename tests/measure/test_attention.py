import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.anatomy.attention import AttentionView, naive_logits
from skerry.corpus.batch import Batch
from skerry.errors import MergeMismatch
from skerry.measure import AttentionStats
from skerry.run.tables import TABLES

H, KV, T, D = 4, 2, 20, 8


def view_of(num=3, *, heads=H, kv_heads=KV, length=T, seed=0, dtype=torch.float32, **options):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, generator=g) * 1.5).to(dtype)

    fields = {
        "layer": 0,
        "num_heads": heads,
        "scale": 0.4,
        "softcap": None,
        "sink_logits": None,
        "mask": None,
        "is_causal": True,
        # As projections write them: the head axis is not the outer one in memory.
        "query": draw(num, length, heads, D).transpose(1, 2),
        "key": draw(num, kv_heads, length, D),
        "value": draw(num, kv_heads, length, D),
        "logits": None,
    }
    return AttentionView(**(fields | options))


def naive(view, batch):
    """Straight from the definitions, in float64, with all logits in memory."""
    doubled = {
        n: getattr(view, n).double() if getattr(view, n) is not None else None
        for n in ("query", "key", "logits")
    }
    logits = naive_logits(AttentionView(**(view.__dict__ | doubled))).double()
    logits = logits.masked_fill(~batch.keep[:, None, None, :], -torch.inf)
    logits = torch.where(logits < -5000, -torch.inf, logits)
    heads, length = view.num_heads, logits.shape[-1]
    out = {
        n: np.zeros(heads)
        for n in ("entropy", "entropy_uniform", "max_prob", "sink_logit_mass", "num_queries")
    }
    all_logits = [[] for _ in range(heads)]
    received, exposure = np.zeros((2, len(logits), heads, length))
    for b, h, q in itertools.product(range(len(logits)), range(heads), range(length)):
        row = logits[b, h, q].numpy()
        seen = np.isfinite(row)
        if not batch.keep[b, q] or not seen.any():
            continue
        full = row[seen]
        if view.sink_logits is not None:
            full = np.append(full, float(view.sink_logits[h]))
        p = np.exp(full - full.max())
        p /= p.sum()
        out["entropy"][h] -= (p * np.log(p)).sum()
        out["entropy_uniform"][h] += np.log(len(full))
        keys = p[: seen.sum()]
        out["max_prob"][h] += keys.max()
        out["sink_logit_mass"][h] += p[-1] if view.sink_logits is not None else 0
        out["num_queries"][h] += 1
        received[b, h, seen] += keys
        exposure[b, h] += seen
        all_logits[h].append(row[seen])
    for name in ("entropy", "entropy_uniform", "max_prob", "sink_logit_mass"):
        out[name] /= out["num_queries"]
    flat = [np.concatenate(x) for x in all_logits]
    out |= {f"logit_{n}": np.array([getattr(np, n)(x) for x in flat]) for n in ("min", "max", "mean", "std")}
    return out, received, exposure


def check(view, batch, *, rtol=1e-4):
    stats = AttentionStats(view.num_heads, 1 if view.value is None else view.value.shape[1], 4)
    stats.update(view, batch)
    result = stats.result()
    heads, received, exposure = naive(view, batch)
    for name, truth in heads.items():
        np.testing.assert_allclose(result.heads[name], truth, rtol=rtol, atol=1e-5, err_msg=name)
    keep = batch.keep.numpy()
    position = np.where(keep, np.cumsum(keep, 1) - 1, -1)
    for p in range(position.max() + 1):
        b, k = np.nonzero(position == p)
        at = result.keys["position"] == p
        here, seen = received[b, :, k], exposure[b, :, k]
        alpha = here / np.maximum(seen, 1)
        np.testing.assert_allclose(result.keys["received"][at], here.sum(0), rtol=rtol, atol=1e-5)
        np.testing.assert_array_equal(result.keys["exposure"][at], seen.sum(0))
        np.testing.assert_allclose(result.keys["alpha"][at], alpha.mean(0), rtol=rtol, atol=1e-5)
        np.testing.assert_array_equal(result.keys["sink"][at], ((alpha > 0.3) & (seen >= 8)).sum(0))
        np.testing.assert_array_equal(result.keys["num_samples"][at], len(b))
    ids = batch.input_ids.numpy()
    for i, token in enumerate(result.key_tokens["token_id"]):
        b, k = np.nonzero((ids == token) & keep)
        here, seen = received[b, :, k], exposure[b, :, k]
        sink = (here / np.maximum(seen, 1) > 0.3) & (seen >= 8)
        assert result.key_tokens["count"][i] == len(b)
        assert result.key_tokens["num_samples"][i] == len(set(b))
        assert result.key_tokens["received"][i] == pytest.approx(here.mean(1).sum(), rel=rtol, abs=1e-5)
        assert result.key_tokens["exposure"][i] == pytest.approx(seen.mean(1).sum())
        assert result.key_tokens["sink_heads"][i] == pytest.approx(sink.mean(1).mean())
    return result


LOW = torch.finfo(torch.float32).min
CASES = {
    "causal": {},
    "bidirectional": {"is_causal": False},
    "one group": {"kv_heads": 1},
    "one key head per query head": {"kv_heads": 4},
    "softcap": {"softcap": 3.0},
    "sinks": {"sink_logits": torch.tensor([0.0, 2.0, -3.0, 8.0])},
    "bool mask": {
        "is_causal": False,
        "mask": torch.rand(3, 1, T, T, generator=torch.Generator().manual_seed(1)) > 0.3,
    },
    "mask of keys": {"mask": (torch.arange(T) > 3)[None, None, None, :]},
    "expanded mask": {"is_causal": False, "mask": (torch.arange(T) < 9)[None, None, None].expand(3, 1, T, T)},
    "window": {"mask": (torch.arange(T)[:, None] - torch.arange(T) < 5)[None, None]},
    "distance bias": {
        "mask": -0.3
        * (torch.arange(T)[:, None] - torch.arange(T)).abs()
        * torch.arange(1, 5)[None, :, None, None]
    },
    "additive mask": {
        "is_causal": False,
        "mask": torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), LOW),
    },
    "bfloat16 mask": {
        "mask": torch.zeros(3, 1, 1, T, dtype=torch.bfloat16).index_fill(3, torch.tensor([2, 5]), -3e38)
    },
}


@pytest.mark.parametrize("case", CASES)
def test_statistics_are_those_of_the_definition(case, path, make_batch):
    check(view_of(**CASES[case]), make_batch(3, T))


@pytest.mark.parametrize("case", ["causal", "bidirectional", "sinks", "bool mask"])
@pytest.mark.parametrize(
    "padding", [{"lengths": [20, 11, 1]}, {"left": [0, 7, 19]}, {"lengths": [0, 20, 15]}]
)
def test_padding_is_neither_query_nor_key(case, padding, path, make_batch):
    check(view_of(**CASES[case]), make_batch(3, T, **padding))


@pytest.mark.parametrize("hidden", [LOW, -torch.inf, -1e4])
def test_logits_of_the_model_are_read_as_they_are(hidden, path, make_batch):
    logits = naive_logits(view_of()).clamp(min=-1e9).masked_fill(torch.ones(T, T).triu(1).bool(), hidden)
    check(
        view_of(query=None, key=None, value=None, logits=logits, is_causal=False),
        make_batch(3, T, lengths=[20, 9, 4]),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_all_float_types(dtype, path, make_batch):
    check(view_of(dtype=dtype), make_batch(3, T))


def test_long_inputs_are_read_in_blocks(path, make_batch, monkeypatch):
    monkeypatch.setattr("skerry.measure.attention_fused._BLOCK", 4 * 70 * 32)
    monkeypatch.setattr("skerry.measure.attention_reading._BLOCK", 4 * 70 * 5)
    for causal in (True, False):
        check(view_of(2, length=70, is_causal=causal), make_batch(2, 70, lengths=[70, 41]))


def test_equal_logits_are_uniform_attention(path, make_batch):
    view = view_of(2, query=torch.zeros(2, H, T, D))
    stats = AttentionStats(H, KV, T)
    stats.update(view, make_batch(2, T))
    heads, keys, _ = stats.result()
    np.testing.assert_allclose(heads["entropy"], np.mean(np.log(np.arange(1, T + 1))), rtol=1e-6)
    np.testing.assert_allclose(heads["entropy"], heads["entropy_uniform"], rtol=1e-6)
    truth = [np.mean(1 / np.arange(k + 1, T + 1)) for k in range(T)]
    np.testing.assert_allclose(keys["alpha"].reshape(H, T), np.tile(truth, (H, 1)), rtol=1e-6)
    assert not keys["sink"].any()


def test_a_planted_sink_is_a_sink_in_every_input(path, make_batch):
    view = view_of(3, query=torch.ones(3, H, T, D))
    view.key[:, :, 0] = 20.0
    stats = AttentionStats(H, KV, T)
    stats.update(view, make_batch(3, T))
    keys = stats.result().keys
    first = keys["position"] == 0
    assert (keys["sink"][first] == 3).all() and not keys["sink"][~first].any()
    assert (keys["alpha"][first] > 0.99).all()


def test_a_sink_logit_takes_all_there_is(path, make_batch):
    stats = AttentionStats(H, KV, T)
    stats.update(view_of(sink_logits=torch.full((H,), 200.0)), make_batch(3, T))
    heads, keys, _ = stats.result()
    np.testing.assert_allclose(heads["sink_logit_mass"], 1, atol=1e-6)
    np.testing.assert_allclose(heads["entropy"], 0, atol=1e-5)
    assert (keys["received"] < 1e-6).all()


def test_value_norms(path, make_batch):
    view, batch = view_of(), make_batch(3, T, lengths=[20, 8, 8])
    stats = AttentionStats(H, KV, T)
    stats.update(view, batch)
    norm, keep = view.value.norm(dim=-1).numpy(), batch.keep.numpy()
    truth = [norm[keep[:, p], :, p].mean(0) for p in range(T)]
    found = stats.result().keys["value_norm"].reshape(H, T)
    np.testing.assert_allclose(found, np.repeat(np.array(truth).T, H // KV, axis=0), rtol=1e-5)
    truth = [norm[:, g][keep].mean() for g in range(KV)]
    np.testing.assert_allclose(stats.result().heads["value_norm"], np.repeat(truth, H // KV), rtol=1e-5)


def test_hidden_values_have_no_norm(path, make_batch):
    stats = AttentionStats(H, H, T)
    stats.update(view_of(value=None), make_batch(3, T))
    assert np.isnan(stats.result().heads["value_norm"]).all()


def test_rows_with_a_broken_logit_are_counted_and_left_out(path, make_batch, assert_same):
    view, batch = view_of(), make_batch(3, T)
    view.query[1, 2, 5] = float("nan")
    view.query[2, 0, 0] = float("inf")
    view.key[2, 0, 0] = 1.0
    stats = AttentionStats(H, KV, T)
    stats.update(view, batch)
    heads = stats.result().heads
    assert heads["num_nonfinite"].tolist() == [1, 0, 6, 0]
    assert heads["num_queries"].tolist() == [59, 60, 59, 60]
    assert all(np.isfinite(heads[n]).all() for n in ("entropy", "logit_mean", "max_prob"))
    whole = AttentionStats(H, KV, T)
    whole.update(view_of(), batch)
    assert heads["entropy"][3] == pytest.approx(whole.result().heads["entropy"][3])


def test_extreme_logits_overflow_nothing(path, make_batch):
    view = view_of(1, scale=1e4)
    stats = AttentionStats(H, KV, T)
    stats.update(view, make_batch(1, T))
    heads = stats.result().heads
    assert np.isfinite([heads[n] for n in ("entropy", "max_prob", "logit_std")]).all()
    np.testing.assert_allclose(heads["max_prob"], 1, atol=1e-2)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), cut=st.integers(0, 5), seed=st.integers(0, 99))
def test_merged_in_any_order_equals_all_at_once(order, cut, seed, path, make_batch, assert_same):
    view, batch = view_of(5, seed=seed), make_batch(5, T, lengths=[20, 3, 12, 20, 1], seed=seed)
    whole = AttentionStats(H, KV, 3)
    whole.update(view, batch)
    parts = []
    for b in order:
        one = {n: getattr(view, n)[b : b + 1] for n in ("query", "key", "value")}
        stats = AttentionStats(H, KV, T)
        stats.update(
            AttentionView(**(view.__dict__ | one)),
            Batch(batch.input_ids[b : b + 1], batch.keep[b : b + 1], batch.sample[b : b + 1]),
        )
        parts.append(stats)
    left, right = AttentionStats(H, KV, 1), AttentionStats(H, KV, 1)
    for i, part in enumerate(parts):
        (left if i < cut else right).merge(part)
    right.merge(left)
    # What the float32 products give depends on the shape of the block in the last bits.
    assert_same(right.result(), whole.result(), rtol=1e-9 if path == "torch" else 1e-5, atol=1e-7)


def test_state_round_trip(path, make_batch, assert_same):
    stats = AttentionStats(H, KV, T)
    stats.update(view_of(sink_logits=torch.ones(H)), make_batch(3, T))
    again = AttentionStats.from_state(stats.state())
    assert_same(again.result(), stats.result(), rtol=0)
    again.update(view_of(length=30), make_batch(3, 30))
    stats.update(view_of(length=30), make_batch(3, 30))
    assert_same(again.result(), stats.result(), rtol=0)


def test_columns_are_those_of_the_tables(path, make_batch):
    stats = AttentionStats(H, KV, T)
    for _ in range(2):  # empty, then filled
        result = stats.result()
        for name in ("heads", "keys", "key_tokens"):
            columns = getattr(result, name)
            assert set(columns) == set(TABLES[name]) - {"layer", "token"}
            assert len({len(v) for v in columns.values()}) == 1
        stats.update(view_of(), make_batch(3, T))


def test_all_padding_is_nothing(path, make_batch):
    stats = AttentionStats(H, KV, T)
    stats.update(view_of(), make_batch(3, T, lengths=[0, 0, 0]))
    assert stats.num_samples[0] == 0 and not stats.head_counts.any()


def test_other_heads_do_not_merge():
    with pytest.raises(MergeMismatch, match="same num_heads; here they have 4 and 5"):
        AttentionStats(4, 2, 8).merge(AttentionStats(5, 1, 8))


def test_repr_says_what_it_holds(make_batch):
    stats = AttentionStats(H, KV, T)
    stats.update(view_of(), make_batch(3, T))
    assert repr(stats) == "<AttentionStats of 4 heads: 60 query rows in 3 samples; .result()>"
