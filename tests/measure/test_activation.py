import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.corpus.batch import Batch
from skerry.errors import MergeMismatch
from skerry.measure import HIGH_RATIOS, MASSIVE_RATIOS, ActivationStats
from skerry.run import tables
from skerry.run.tables import TABLES

TAKEN_FROM_PLACE = {"layer", "site", "expert", "same_as", "token"}


def draw(num, length, width, *, seed=0, dtype=torch.float32):
    """Channels of different spread and centre; one is mostly zero, one stands out, one is far off centre."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num * length, width, generator=g) * torch.rand(width, generator=g) * 3
    x += torch.randn(width, generator=g)
    x[:, 0] = x[:, 0].relu()
    if width > 2:
        x[:, 1] *= 60
        x[:, 2] = 40 + x[:, 2]
    return x.to(dtype)


def read(x, batch, rows=None, **options):
    stats = ActivationStats(x.shape[1], **options)
    stats.update(x, rows, batch)
    return stats


def naive(x, batch, rows=None):
    """Channels, site, positions and tokens straight from the definitions, in float64. x has finite values only."""
    x = x.double().numpy()
    flat = np.arange(len(x)) if rows is None else rows.numpy()
    keep, length = batch.keep.numpy(), batch.keep.shape[1]
    kept = keep.ravel()[flat]
    x, flat = x[kept], flat[kept]
    which, position = flat // length, (np.cumsum(keep, 1) - 1).ravel()[flat]
    token = batch.input_ids.numpy().ravel()[flat]
    samples = np.unique(which)
    rms = np.sqrt((x**2).mean(1, keepdims=True))
    size = np.stack([np.abs(x[which == s]).max(0) for s in samples])
    highest, lowest = (np.stack([f(x[which == s], axis=0) for s in samples]) for f in (np.max, np.min))
    ratio = size / np.median(size, axis=1, keepdims=True)
    width = x.shape[1]
    k = max(1, width // 100)
    top = np.zeros_like(size, bool)
    np.put_along_axis(top, np.argsort(-size, axis=1, kind="stable")[:, :k], True, axis=1)
    channels = {
        "channel": np.arange(width),
        "count": np.full(width, len(x)),
        "num_samples": np.full(width, len(samples)),
        "min": x.min(0),
        "max": x.max(0),
        "mean": x.mean(0),
        "std": x.std(0),
        "skewness": scipy.stats.skew(x),
        "kurtosis": scipy.stats.kurtosis(x, fisher=False),
        "zero": (x == 0).mean(0),
        "near_zero": (np.abs(x) < 0.1 * rms).mean(0),
        "num_nonfinite": np.zeros(width, int),
        "top": top.sum(0),
        "top_k": np.full(width, k),
        "positive": ((highest >= -lowest) & (highest > 0)).sum(0),
        "abs_max_mean": size.mean(0),
        **{f"high_{r}": (ratio >= r).sum(0) for r in HIGH_RATIOS},
    }
    square = (x**2).mean(0)
    per_sample = [x[which == s].ravel() for s in samples]
    osp = (x**4).mean(1) / x.var(1, ddof=1) ** 2 - 3 if width > 1 else np.array([np.nan])
    site = {
        "num_samples": len(samples),
        "num_tokens": len(x),
        "num_channels": width,
        "min": x.min(),
        "max": x.max(),
        "abs_max": np.abs(x).max(),
        "mean": x.mean(),
        "rms": np.sqrt((x**2).mean()),
        "kurtosis": scipy.stats.kurtosis(x.ravel(), fisher=False),
        "kurtosis_channels": (square**2).mean() / square.mean() ** 2,
        "kurtosis_oft": np.mean([((v - v.mean()) ** 4).mean() / v.var(ddof=1) ** 2 for v in per_sample]),
        "kurtosis_osp": np.maximum(osp, 0).mean(),
        "max_inf_norm": np.mean([np.abs(v).max() for v in per_sample]),
        "zero": (x == 0).mean(),
        "near_zero": (np.abs(x) < 0.1 * rms).mean(),
        "num_nan": 0,
        "num_inf": 0,
    }
    big = np.abs(x).max(1)
    massive = np.array([b / np.median(big[which == w]) for b, w in zip(big, which, strict=True)])
    places = {
        "position": _grouped(position, big, np.linalg.norm(x, axis=1), massive),
        "token_id": _grouped(token, big, np.linalg.norm(x, axis=1), massive, which),
    }
    return channels, site, places


def _grouped(key, big, norm, massive, which=None):
    rows = {}
    for k in np.unique(key):
        at = key == k
        rows[k] = {"count": at.sum(), "abs_max_mean": big[at].mean()}
        rows[k] |= {f"massive_{r}": (massive[at] >= r).sum() for r in MASSIVE_RATIOS}
        if which is None:
            rows[k] |= {"abs_max": big[at].max(), "norm_mean": norm[at].mean()}
        else:
            rows[k] |= {"num_samples": len(set(which[at]))}
    return rows


def check(result, truth, assert_same, *, rtol=2e-5):
    channels, site, places = truth
    assert_same(result.channels, channels, rtol=rtol, atol=1e-5)
    assert_same({n: result.site[n] for n in site}, site, rtol=rtol, atol=1e-7)
    if result.positions is None:
        return
    for key, columns in (("position", result.positions), ("token_id", result.tokens)):
        assert columns[key].tolist() == list(places[key])
        for i, row in enumerate(places[key].values()):
            assert_same({n: columns[n][i] for n in row}, row, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(3, 20, 40), (2, 150, 300), (1, 1, 5), (4, 7, 1), (2, 33, 16), (1, 300, 33)]
)
def test_statistics_are_those_of_the_definition(shape, path, make_batch, assert_same):
    x, batch = draw(*shape), make_batch(*shape[:2], first=7)
    if shape[2] == 1 or shape[1] == 1:
        x += 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with np.errstate(all="ignore"):
        truth = naive(x, batch)
    channels, site, places = truth
    if shape[1] * shape[0] == 1:  # one token: no channel has a shape
        channels = channels | {n: np.full(shape[2], np.nan) for n in ("skewness", "kurtosis")}
    check(read(x, batch, tokens=True).result(), (channels, site, places), assert_same)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_all_float_types(dtype, path, make_batch, assert_same):
    x, batch = draw(3, 30, 300, dtype=dtype), make_batch(3, 30)
    check(read(x, batch, tokens=True).result(), naive(x, batch), assert_same)


@pytest.mark.parametrize(
    "padding", [{"lengths": [20, 11, 1]}, {"left": [0, 7, 19]}, {"lengths": [0, 20, 15]}]
)
def test_padding_is_never_measured(padding, path, make_batch, assert_same):
    x, batch = draw(3, 20, 40), make_batch(3, 20, **padding)
    x[~batch.keep.flatten()] = torch.nan
    truth = naive(torch.nan_to_num(x), batch)
    check(read(x, batch, tokens=True).result(), truth, assert_same)


def test_experts_measure_the_tokens_that_were_routed_to_them(path, make_batch, assert_same):
    batch = make_batch(4, 10, lengths=[10, 10, 3, 10])
    rows = torch.tensor([0, 2, 3, 11, 13, 14, 15, 19, 21, 25])  # none in the last input, one is padding
    x = draw(1, len(rows), 24)
    result = read(x, batch, rows, tokens=True).result()
    assert result.site["num_tokens"] == 9 and result.site["num_samples"] == 3
    check(result, naive(x, batch, rows), assert_same)


def test_an_expert_without_tokens_has_nothing_to_say(path, make_batch):
    stats = read(torch.zeros(0, 8), make_batch(2, 3), torch.zeros(0, dtype=torch.int64), tokens=True)
    result = stats.result()
    assert (
        result.site["num_tokens"] == 0
        and np.isnan(result.site["abs_max"])
        and np.isnan(result.site["median"])
    )
    assert np.isnan(result.channels["mean"]).all() and len(result.positions["position"]) == 0


def test_views_with_gaps_between_rows_are_read_in_place(path, make_batch, assert_same):
    wide, batch = draw(3, 20, 100), make_batch(3, 20)
    view = wide[:, 30:70]
    assert_same(read(view, batch).result(), read(view.contiguous(), batch).result(), rtol=0)
    transposed = view.T.contiguous().T
    assert_same(read(transposed, batch).result(), read(view, batch).result(), rtol=2e-5, atol=1e-5)


def test_quantiles_of_the_site(path, make_batch):
    x, batch = draw(4, 100, 60), make_batch(4, 100)
    site = read(x, batch).result().site
    for name, q in (("median", 0.5), ("q99", 0.99), ("q999", 0.999), ("q9999", 0.9999)):
        truth = np.quantile(x.abs().numpy(), q, method="inverted_cdf")
        assert site[name] == pytest.approx(truth, rel=0.01), name


def test_wide_activations_are_sampled_near_zero_and_complete_in_the_tail(path, make_batch):
    x, batch = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)), make_batch(4, 128)
    x[:, 5] *= 100
    x[::128, 7:9] *= 1000
    stats = read(x, batch)
    assert stats.every == 8
    size = x.abs().numpy()
    # The sketch counts eight for each sampled value: the total is right to its sampling error.
    assert stats.sketch.count == pytest.approx(size.size, rel=0.01)
    for q, tolerance in ((0.5, 0.02), (0.99, 0.03), (0.9999, 0.01)):
        truth = np.quantile(size, q, method="inverted_cdf")
        assert stats.sketch.result(q) == pytest.approx(truth, rel=tolerance), q


def test_max_to_median_of_a_token(path, make_batch):
    x, batch = draw(3, 20, 100), make_batch(3, 20)
    size = x.abs().numpy()
    truth = (size.max(1) / np.median(size, axis=1)).mean()
    assert read(x, batch, tokens=True).result().site["max_to_median_token"] == pytest.approx(truth, rel=0.01)
    assert np.isnan(read(x, batch).result().site["max_to_median_token"])


def test_largest_values_with_their_places(path, make_batch):
    x, batch = draw(3, 20, 40), make_batch(3, 20, first=5, left=[3, 0, 0])
    values = read(x, batch, top_k=10).result().values
    kept = x.clone()
    kept[~batch.keep.flatten()] = 0
    order = kept.abs().flatten().argsort(descending=True, stable=True)[:10]
    np.testing.assert_array_equal(values["value"], kept.flatten()[order].numpy())
    token, channel = order // 40, order % 40
    assert values["channel"].tolist() == channel.tolist()
    assert values["sample"].tolist() == (5 + token // 20).tolist()
    assert values["token_id"].tolist() == batch.input_ids.flatten()[token].tolist()
    position = token % 20 - torch.where(token < 20, 3, 0)
    assert values["position"].tolist() == position.tolist()
    assert values["rank"].tolist() == list(range(10))


def test_equal_values_are_listed_by_place(path, make_batch):
    batch = Batch(
        torch.zeros(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.bool), torch.tensor([9, 2, 5])
    )
    values = read(torch.ones(12, 20), batch, top_k=30).result().values
    assert values["sample"].tolist() == [2] * 30
    assert values["position"].tolist() == [0] * 20 + [1] * 10
    assert values["channel"].tolist() == [*range(20), *range(10)]


def test_nonfinite_values_are_counted_located_and_left_out(path, make_batch, assert_same):
    x, batch = draw(3, 20, 300), make_batch(3, 20, first=4)
    clean = x.clone()
    x[3, 7], x[25, 7], x[26, 8], x[59, 299] = torch.nan, torch.inf, -torch.inf, torch.nan
    result = read(x, batch, tokens=True).result()
    site, channels = result.site, result.channels
    assert (site["num_nan"], site["num_inf"]) == (2, 2)
    assert channels["num_nonfinite"].nonzero()[0].tolist() == [7, 8, 299]
    assert channels["count"][[7, 8, 299, 0]].tolist() == [58, 59, 59, 60]
    missing = result.nonfinite
    found = list(zip(*(missing[n].tolist() for n in ("kind", "sample", "position", "channel")), strict=True))
    assert found == [("nan", 4, 3, 7), ("inf", 5, 5, 7), ("inf", 5, 6, 8), ("nan", 6, 19, 299)]
    for channel in (7, 8, 299):
        good = x[:, channel].double().numpy()
        good = good[np.isfinite(good)]
        assert channels["mean"][channel] == pytest.approx(good.mean())
        assert channels["kurtosis"][channel] == pytest.approx(
            scipy.stats.kurtosis(good, fisher=False), rel=1e-5
        )
        assert channels["max"][channel] == good.max()
    assert np.isfinite(result.values["value"]).all()
    assert all(np.isfinite(v) for v in site.values())
    others = [j for j in range(300) if j not in (7, 8, 299)]
    whole = read(clean, batch).result().channels
    for name in ("mean", "std", "kurtosis", "high_3", "abs_max_mean"):
        np.testing.assert_allclose(channels[name][others], whole[name][others], rtol=2e-5)


def test_only_nonfinite_values(path, make_batch):
    result = read(torch.full((6, 4), torch.nan), make_batch(2, 3), tokens=True).result()
    assert (
        result.site["num_nan"] == 24
        and np.isnan(result.site["abs_max"])
        and np.isnan(result.site["kurtosis"])
    )
    assert len(result.nonfinite["kind"]) == 16 and not result.channels["count"].any()
    assert result.channels["num_samples"].tolist() == [0] * 4 and not len(result.values["value"])


def test_all_zero(path, make_batch):
    result = read(torch.zeros(6, 20), make_batch(2, 3), tokens=True).result()
    assert result.site["zero"] == 1 and result.site["abs_max"] == 0 and result.site["median"] == 0
    assert not any(result.channels[f"high_{r}"].any() for r in HIGH_RATIOS)
    assert not result.channels["positive"].any() and not result.positions["massive_4"].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_any_scale(scale, path, make_batch, assert_same):
    x, batch = draw(2, 40, 30, dtype=torch.float64), make_batch(2, 40)
    ours, plain = (read((x * s).float(), batch).result() for s in (scale, 1.0))
    for name in ("skewness", "kurtosis", "near_zero", "high_10", "top", "positive"):
        np.testing.assert_allclose(ours.channels[name], plain.channels[name], rtol=1e-4, atol=1e-6)
    for name in ("kurtosis", "kurtosis_channels", "kurtosis_oft", "kurtosis_osp"):
        assert ours.site[name] == pytest.approx(plain.site[name], rel=1e-4)


def test_a_channel_far_from_zero_keeps_its_shape(path, make_batch):
    x, batch = torch.randn(400, 20, generator=torch.Generator().manual_seed(3)), make_batch(2, 200)
    x[:, 4] = x[:, 4] * 0.5 - 3000
    channels = read(x, batch).result().channels
    truth = x[:, 4].double().numpy()
    assert channels["std"][4] == pytest.approx(truth.std(), rel=1e-5)
    assert channels["kurtosis"][4] == pytest.approx(scipy.stats.kurtosis(truth, fisher=False), rel=1e-4)


def test_a_massive_first_token_does_not_spoil_the_moments(path, make_batch):
    x, batch = torch.randn(400, 20, generator=torch.Generator().manual_seed(3)), make_batch(2, 200)
    x[0, 4] = x[200, 4] = 3000
    stats = read(x, batch, tokens=True)
    result = stats.result()
    truth = x[:, 4].double().numpy()
    assert result.channels["kurtosis"][4] == pytest.approx(
        scipy.stats.kurtosis(truth, fisher=False), rel=1e-5
    )
    assert result.positions["massive_256"].tolist() == [2] + [0] * 199
    assert result.values["position"][:2].tolist() == [0, 0] and result.values["channel"][:2].tolist() == [
        4,
        4,
    ]
    assert result.channels["high_100"][4] == 2


def test_one_outlier_channel_has_all_the_energy(path, make_batch):
    x = torch.zeros(30, 64)
    x[:, 9] = 100.0
    site = read(x, make_batch(3, 10)).result().site
    assert site["kurtosis_channels"] == pytest.approx(64)
    assert site["zero"] == pytest.approx(63 / 64)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(5)),
    cut=st.integers(0, 5),
    lengths=st.lists(st.integers(0, 150), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
def test_merged_in_any_order_equals_all_at_once(order, cut, lengths, seed, path, make_batch, assert_same):
    x, batch = draw(5, 150, 20, seed=seed), make_batch(5, 150, lengths=lengths, seed=seed)
    x[10, 3] = torch.nan
    whole = read(x, batch, tokens=True)
    left, right = (ActivationStats(20, tokens=True) for _ in range(2))
    for i, b in enumerate(order):
        one = Batch(batch.input_ids[b : b + 1], batch.keep[b : b + 1], batch.sample[b : b + 1])
        part = read(x[150 * b : 150 * b + 150], one, tokens=True)
        if seed % 2:
            (left if i < cut else right).merge(part)
        else:
            (left if i < cut else right).update(x[150 * b : 150 * b + 150], None, one)
    right.merge(left)
    assert_same(right.result(), whole.result())
    np.testing.assert_array_equal(right.sketch.counts, whole.sketch.counts)


def test_state_round_trip(path, make_batch, assert_same):
    x, batch = draw(3, 20, 300), make_batch(3, 20)
    x[5, 5] = torch.inf
    for tokens in (False, True):
        stats = read(x, batch, tokens=tokens, top_k=7)
        state = stats.state()
        again = ActivationStats.from_state(state)
        stats.update(2 * x, None, make_batch(3, 20, first=3))  # must not change what was stored
        again.update(2 * x, None, make_batch(3, 20, first=3))
        assert_same(again.result(), stats.result(), rtol=0)


def test_columns_are_those_of_the_tables(path, make_batch):
    stats = ActivationStats(300, tokens=True)
    for _ in range(2):  # empty, then filled
        result = stats.result()
        assert set(result.site) == set(TABLES["sites"]) - TAKEN_FROM_PLACE
        for name in ("channels", "values", "nonfinite", "positions", "tokens"):
            columns = getattr(result, name)
            assert set(columns) == set(TABLES[name]) - TAKEN_FROM_PLACE, name
            assert len({len(v) for v in columns.values()}) == 1
        stats.update(draw(3, 20, 300), None, make_batch(3, 20))


def test_ratios_are_those_of_the_tables():
    assert HIGH_RATIOS == tables.HIGH_RATIOS and MASSIVE_RATIOS == tables.MASSIVE_RATIOS


def test_other_widths_do_not_merge():
    with pytest.raises(MergeMismatch, match="same num_channels; here they have 4 and 5"):
        ActivationStats(4).merge(ActivationStats(5))
    with pytest.raises(MergeMismatch, match="same tokens"):
        ActivationStats(4, tokens=True, token_median=False).merge(ActivationStats(4))


def test_repr_says_what_it_holds(make_batch):
    stats = read(draw(3, 20, 40), make_batch(3, 20))
    assert repr(stats) == "<ActivationStats of 40 channels: 60 tokens in 3 samples; .result()>"


def test_state_is_small():
    state = ActivationStats(4096).state()
    assert sum(t.nbytes for t in state.values()) / 4096 <= 126


def test_long_inputs_are_read_in_parts_by_the_plain_path(monkeypatch, make_batch, assert_same):
    monkeypatch.setenv("SKERRY_KERNEL", "torch")
    x, batch = draw(3, 100, 40), make_batch(3, 100, lengths=[100, 60, 99])
    x[130, 4] = torch.nan
    whole = read(x, batch, tokens=True).result()
    monkeypatch.setattr("skerry.measure.reading._GROUP", 40 * 30)
    assert_same(read(x, batch, tokens=True).result(), whole)
