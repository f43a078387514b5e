"""The monitor against formulas written out, and a training that must not notice it."""

import json

import pytest
import torch
import zoo

from skerry.errors import EmptyBatch, UnknownOption, UnknownSite
from skerry.redesign.births import Births, births_table
from skerry.run.tables import schema

IDS = torch.randint(4, 90, (6, 24), generator=torch.Generator().manual_seed(3))


def model_of(**config):
    torch.manual_seed(0)
    return zoo.tiny("llama", **config).train()


def row_of(rows, site, layer):
    (row,) = (r for r in rows if r["site"] == site and r["layer"] == layer)
    return row


def hidden_states(model, ids):
    """Outputs of the blocks themselves: transformers' last hidden state has passed the final norm."""
    found = []
    hooks = [
        b.register_forward_hook(lambda _m, _a, out: found.append(out[0] if isinstance(out, tuple) else out))
        for b in model.model.layers
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model.eval()(input_ids=ids, output_attentions=True, use_cache=False).attentions
    for hook in hooks:
        hook.remove()
    return found, attentions


def test_hidden_state_and_four_kurtoses_are_their_formulas():
    model = model_of()
    rows = Births(model, rows=4).measure(7, IDS)
    hidden, _ = hidden_states(model, IDS[:4])
    for layer, h in enumerate(hidden):
        x, row = h.double(), row_of(rows, "resid.out", layer)
        assert row["step"] == 7 and row["num_tokens"] == 4 * 24
        assert row["abs_max"] == pytest.approx(float(x.abs().max()), rel=1e-6)
        assert row["max_to_median"] == pytest.approx(float(x.abs().max() / x.abs().median()), rel=0.025)
        centred = x - x.mean()
        assert row["kurtosis"] == pytest.approx(
            float((centred**4).mean() / (centred**2).mean() ** 2), rel=1e-5
        )
        s = (x**2).mean((0, 1))
        assert row["kurtosis_channels"] == pytest.approx(float((s**2).mean() / s.mean() ** 2), rel=1e-5)
        each = [v - v.mean() for v in x]
        oft = sum(float((v**4).mean() / v.var() ** 2) for v in [(e.flatten()) for e in each]) / 4
        assert row["kurtosis_oft"] == pytest.approx(oft, rel=1e-3)
        osp = ((x**4).mean(-1) / x.var(-1) ** 2 - 3).clamp(min=0).mean()
        assert row["kurtosis_osp"] == pytest.approx(float(osp), rel=1e-4, abs=1e-9)


def test_attention_is_the_strongest_head_on_the_first_token_with_its_value_drain():
    model = model_of()
    rows = Births(model, rows=6).measure(0, IDS)
    _, attentions = hidden_states(model, IDS)
    for layer, p in enumerate(attentions):
        row = row_of(rows, "attn.probs", layer)
        alpha = p.double()[..., 0].mean(-1)  # every query sees the first token
        head = int(alpha.mean(0).argmax())
        assert row["head"] == head and row["top_index"][0] == head
        assert row["first_share"] == pytest.approx(float(alpha.mean(0)[head]), rel=1e-5)
        assert row["sink_rate"] == pytest.approx(float((alpha > 0.3).double().mean()))
    value = []
    hook = model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda _m, _a, out: value.append(out))
    with torch.no_grad():
        model(input_ids=IDS)
    hook.remove()
    row = row_of(rows, "attn.probs", 0)
    dim = model.config.head_dim
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    norm = value[0].unflatten(-1, (-1, dim))[:, :, row["head"] // group].norm(dim=-1).mean(0)
    assert row["value_drain"] == pytest.approx(float(norm[0] / norm[1:].mean()), rel=1e-5)


def test_a_planted_sink_is_seen_with_its_share_and_its_drained_value():
    """Keys of the first token point where all queries point; its value is 0."""
    model = model_of()
    ids = IDS.clone()
    ids[:, 0] = 1
    before = row_of(Births(model, rows=6).measure(0, ids), "attn.probs", 0)
    with torch.no_grad():
        attention = model.model.layers[0].self_attn
        width = model.config.hidden_size
        model.model.embed_tokens.weight[:, -1] = 0.5
        model.model.embed_tokens.weight[:, -2] = 0.0
        model.model.embed_tokens.weight[1] = 0.0
        model.model.embed_tokens.weight[1, -2:] = torch.tensor([4.0, 0.5])
        # No rotation reaches the last channel of a head much: its period is the longest.
        last = model.config.head_dim - 1
        attention.q_proj.weight.zero_()
        attention.q_proj.weight[last, width - 1] = 20.0
        attention.k_proj.weight.zero_()
        attention.k_proj.weight[last, width - 2] = 20.0
        attention.v_proj.weight[: model.config.head_dim, -2:] = 0.0
    row = row_of(Births(model, rows=6).measure(1, ids), "attn.probs", 0)
    assert before["first_share"] < 0.3 and before["value_drain"] > 0.5
    assert row["head"] == 0 and row["first_share"] > 0.9 and row["value_drain"] < 1e-5
    assert before["least_drain"] is None and row["least_drain"] == row["value_drain"]
    assert (row["sink_position"], row["sink_rate"] > 0) == (0, True)
    assert row["logit_max"] > before["logit_max"]


def test_down_projection_rows_are_the_published_ratio_with_the_planted_column():
    model = model_of()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = 9.0
    rows = Births(model).measure(0, IDS)
    w = model.model.layers[1].mlp.down_proj.weight.detach().double().abs()
    row = row_of(rows, "w.down", 1)
    assert row["column_ratio"] == pytest.approx(float((w.amax(0) / (w.mean(0) + 1e-8)).max()), rel=1e-6)
    assert row["row_ratio"] == pytest.approx(float((w.amax(1) / (w.mean(1) + 1e-8)).max()), rel=1e-6)
    assert row["weight_ratio"] == max(row["row_ratio"], row["column_ratio"])
    assert row["top_index"][0] == 5
    assert row_of(rows, "mlp.down.in", 1)["max_to_median"] > 1


def test_the_planted_channel_leads_with_its_ratio():
    model = model_of()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 7] = 30.0
    row = row_of(Births(model, top=3).measure(0, IDS), "resid.out", 0)
    assert row["top_index"][0] == 7 and len(row["top_index"]) == 3 and row["top_size"][0] > 10


def losses(monitor, *, steps=12, autocast=False):
    """A training with dropout, so that a single random number drawn too many changes every later loss."""
    torch.manual_seed(1)
    model = zoo.tiny("llama", attention_dropout=0.2).train()
    births = Births(model, every=3, rows=2) if monitor else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(2)
    found = []
    for step in range(1, steps + 1):
        if births is not None and births.due(step - 1):
            births.measure(step - 1, IDS)
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        # Between backward and the step: gradients must survive a measurement.
        if births is not None and births.due(step):
            births.measure(step, IDS)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found, model


def test_a_training_with_a_monitor_has_the_losses_of_one_without_bit_for_bit():
    (plain, before), (watched, after) = losses(False), losses(True)
    assert plain == watched
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert after.training and all(m.training for m in after.modules())


def test_a_compiled_model_is_read_without_being_compiled_again():
    frames = []

    def backend(graph, inputs):
        frames.append(graph)
        return graph.forward

    model = model_of()
    births = Births(model, rows=2)
    compiled = torch.compile(model, backend=backend)
    first = compiled(input_ids=IDS, labels=IDS, use_cache=False).loss
    count = len(frames)
    assert count > 0
    births.measure(1, IDS)
    second = compiled(input_ids=IDS, labels=IDS, use_cache=False).loss
    assert len(frames) == count and torch.equal(first.detach(), second.detach())
    second.backward()
    torch._dynamo.reset()


def test_it_measures_every_n_steps_and_at_powers_of_two_before():
    births = Births(model_of(), every=10)
    assert [s for s in range(41) if births.due(s)] == [0, 1, 2, 4, 8, 10, 20, 30, 40]
    assert str(births.every) == "10 (asked for)"
    assert "%" in Births(model_of()).every.why


def test_rows_survive_json_and_a_resumed_monitor_has_the_same_table():
    model = model_of()
    births = Births(model)
    for step in (0, 1, 2):
        births.measure(step, IDS)
    kept = [json.loads(line) for line in [json.dumps(r, allow_nan=False) for r in births.measured]]
    again = Births(model)
    again.resume(kept, step=1)
    assert {r["step"] for r in again.measured} == {0, 1}
    again.measure(2, IDS)
    assert again.table("a").equals(births.table("a"))
    assert births.table().schema.equals(schema("births"))
    assert births_table([], "none").num_rows == 0


def test_a_loss_that_became_nan_is_counted_and_has_no_number():
    model = model_of()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:] = torch.nan
    rows = Births(model).measure(0, IDS)
    row = row_of(rows, "resid.out", 0)
    assert row["num_nonfinite"] == row["num_tokens"] * model.config.hidden_size
    assert row["abs_max"] is None and row["kurtosis"] is None and row["max_to_median"] is None
    json.dumps(rows, allow_nan=False)


def test_padding_is_not_measured():
    model = model_of()
    keep = torch.ones_like(IDS, dtype=torch.bool)
    keep[:, 10:] = False
    rows = Births(model, rows=3).measure(0, IDS, keep)
    short = Births(model, rows=3).measure(0, IDS[:, :10])
    for a, b in zip(rows, short, strict=True):
        assert a["num_tokens"] == 30 if a["kind"] != "weight" else True
        measure = "first_share" if a["kind"] == "attention" else "abs_max"
        assert a[measure] == pytest.approx(b[measure], rel=1e-4)
    with pytest.raises(EmptyBatch):
        Births(model).measure(0, IDS, torch.zeros_like(keep))


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UnknownOption, match="every is 0; a monitor needs at least 1"):
        Births(model_of(), every=0)
    with pytest.raises(UnknownSite, match="did you mean 'resid.out'"):
        Births(model_of(), parts=["resid.ou"])


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gpt_oss", "bert"])
def test_other_families_have_rows_too(family):
    if family not in zoo.NAMES:
        pytest.skip("not in the zoo")
    model = zoo.tiny(family)
    rows = Births(model, rows=2).measure(0, IDS[:, :12])
    kinds = {r["kind"] for r in rows}
    assert {"activation", "attention"} <= kinds
    assert repr(Births(model)).startswith("<Births of ")
