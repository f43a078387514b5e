"""Gathered rows are the whole activations' rows, few, from all inputs alike."""

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import capture
from skerry.causes.carrier import Places
from skerry.causes.gather import gather, gather_many
from skerry.corpus.batch import Batch

CARRIED = [torch.tensor([0, 5, 13, 14, 25]), None, torch.arange(36)]
OTHERS = [torch.tensor([1, 5, 30]), torch.tensor([2, 3]), torch.tensor([7])]


def text(model):
    batches = [
        Batch(*zoo.tokens(model, num_samples=3, seed=i, padding="right" if i == 1 else None), torch.arange(3) + 3 * i)
        for i in range(3)
    ]  # fmt: skip
    return batches, Places([{} if t is None else {4: t} for t in CARRIED], OTHERS)


def dense(anatomy):
    return [s for s in anatomy.activation_sites if s.part not in ("attn.logits", "attn.probs")]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "falcon_7b", "mixtral", "gpt_oss"])
def test_rows_are_those_of_whole_activations(name, tiny_model):
    anatomy = resolve(tiny_model(name))
    batches, places = text(anatomy.model)
    sites = dense(anatomy)
    found = gather(anatomy, batches, places, 4, sites)
    seen = [capture(anatomy, b.input_ids, keep=b.keep) for b in batches]
    assert found.sample_at.tolist() == [0, 0, 1, 1, 2, *([6] * 12), *([7] * 12), *([8] * 12)]
    assert found.sample_other.tolist() == [0, 2, 3, 3]
    assert set(found.at) == set(found.other) == set(sites)
    for site in sites:
        if site.expert is None:
            truth = torch.cat([seen[0][site][CARRIED[0]], seen[2][site]])
            assert torch.equal(found.at[site], truth), site
            truth = torch.cat([seen[0][site][[1, 30]], seen[1][site][[2, 3]]])
            assert torch.equal(found.other[site], truth), site


def test_rows_that_were_not_routed_to_an_expert_are_nan(tiny_model):
    anatomy = resolve(tiny_model("mixtral"))
    batches, places = text(anatomy.model)
    sites = [Site(1, "mlp.down.in", e) for e in range(4)]
    found = gather(anatomy, batches, places, 4, sites)
    routed = torch.stack([~found.at[s].isnan().all(1) for s in sites])
    assert (routed.sum(0) == 2).all()  # two experts per token
    for site in sites:
        assert found.at[site].isnan().any(1).equal(found.at[site].isnan().all(1))
        seen = capture(anatomy, batches[2].input_ids, ["mlp.down.in"]).get(site)
        rows = found.at[site][5:]
        assert torch.equal(rows[~rows.isnan().all(1)], seen)


def test_a_limit_is_filled_from_all_inputs_alike(tiny_model):
    anatomy = resolve(tiny_model("llama"))
    batches, places = text(anatomy.model)
    site = Site(0, "resid.out")
    whole = gather(anatomy, batches, places, 4, [site])
    few = gather(anatomy, batches, places, 4, [site], limit=11)
    counts = few.sample_at.bincount(minlength=9).tolist()
    assert counts == [2, 2, 1, 0, 0, 0, 2, 2, 2] and few.sample_at.equal(few.sample_at.sort().values)
    rows = {tuple(x) for x in whole.at[site].tolist()}
    assert all(tuple(x) in rows for x in few.at[site].tolist())
    again = gather(anatomy, batches, places, 4, [site], limit=11)
    assert torch.equal(few.at[site], again.at[site]) and len(few.other[site]) == 4


def test_one_forward_serves_several_and_batches_without_a_row_are_not_run(tiny_model, monkeypatch):
    import skerry.causes.gather as module

    anatomy = resolve(tiny_model("opt"))
    batches, places = text(anatomy.model)
    runs, true_run = [], module.run
    monkeypatch.setattr(module, "run", lambda a, ids, keep: runs.append(ids) or true_run(a, ids, keep))
    both = gather_many(anatomy, batches, places, {4: [Site(0, "attn.in")], 9: [Site(1, "mlp.out")]})
    assert len(runs) == 3
    assert both[4].at.keys() == {Site(0, "attn.in")} and both[9].at[Site(1, "mlp.out")].shape == (0, 32)
    assert both[9].other[Site(1, "mlp.out")].shape == (6, 32) and both[9].sample_other.tolist() == [
        0, 0, 2, 3, 3, 6,
    ]  # fmt: skip
    nothing = Places([{}, {}, {}], [t[:0] for t in OTHERS])
    runs.clear()
    empty = gather(anatomy, batches, nothing, 4, [Site(0, "attn.in")])
    assert not runs and empty.at[Site(0, "attn.in")].shape == (0, 32)


def test_sites_without_one_vector_per_token_are_refused_and_unknown_ones_left_out(tiny_model):
    anatomy = resolve(tiny_model("gpt2"))
    batches, places = text(anatomy.model)
    for site in (Site(0, "w.down"), Site(0, "attn.probs")):
        with pytest.raises(ValueError, match=r"one vector per token"):
            gather(anatomy, batches, places, 4, [site])
    assert gather(anatomy, batches, places, 4, [Site(0, "mlp.gate")]).at == {}
