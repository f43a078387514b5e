"""The Python face, as the README shows it."""

from html import escape

import pytest
import torch

import skerry
from skerry.errors import BadTokens, NotARun, UnknownSite, UsageError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planted(tiny_model):
    """A gpt2 whose first norm of block 1 has channel 5 scaled by 30, undone by the projection behind it."""
    model = tiny_model("gpt2")
    block = model.transformer.h[1] if hasattr(model, "transformer") else model.h[1]
    with torch.no_grad():
        block.ln_1.weight[5] *= 30
        block.ln_1.bias[5] *= 30
        block.attn.c_attn.weight[5, :] /= 30
    return model


def ids(model, samples=24, tokens=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size - 1, (samples, tokens), generator=generator)


def test_a_planted_channel_is_found_in_a_built_module(planted):
    scan = skerry.scan(planted, ids(planted))
    channels = [(f.layer, f.site, f.channel) for f in scan.findings if f.type == "outlier channel"]
    assert channels == [(1, "attn.in", 5)]
    (gain,) = [f for f in scan.findings if f.kind == "weight" and f.site == "norm.attn"]
    assert (gain.layer, gain.column) == (1, 5)
    assert repr(scan).startswith("<Scan of GPT2")
    assert "outlier channel" in scan._repr_html_()
    frame = scan.to_pandas()
    assert list(frame["type"]).count("outlier channel") == 1 and "p_value" in frame.columns
    assert scan.table("channels").num_rows > 0
    top = scan.run.sql(
        "select site, channel from channels where layer = 1 order by max - min desc limit 1"
    ).to_pylist()
    assert top == [{"site": "attn.in", "channel": 5}]


def test_the_model_is_left_as_it_was(planted):
    model, x = planted, ids(planted, 2, 16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        out = model(x)[0]
    skerry.scan(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(x)[0], out)


def test_an_audit_has_a_report_and_can_be_opened_again(planted):
    audit = skerry.audit(planted, ids(planted), out="here")
    assert audit.report.read_text().startswith("<!doctype html>")
    again = skerry.open_run("here")
    assert isinstance(again, skerry.Audit) and again.findings == audit.findings
    with pytest.raises(NotARun, match="nowhere holds no run"):
        skerry.open_run("nowhere")


def test_padding_changes_nothing(planted):
    x = ids(planted, 16, 24)
    padded = torch.cat([x, torch.full((16, 8), 7)], dim=1)
    mask = torch.cat([torch.ones_like(x), torch.zeros(16, 8, dtype=torch.long)], dim=1)
    a = skerry.scan(planted, x, out="a").table("channels").to_pydict()
    b = (
        skerry.scan(planted, {"input_ids": padded, "attention_mask": mask}, out="b")
        .table("channels")
        .to_pydict()
    )
    assert a["count"] == b["count"]
    assert a["max"] == pytest.approx(b["max"], rel=1e-4, abs=1e-5)


def test_the_mask_has_the_shape_of_the_ids(planted):
    scan = skerry.scan(planted, ids(planted))
    mask = scan.token_mask(ids(planted, 3, 10))
    assert mask.shape == (3, 10) and mask.dtype == torch.bool and not mask.any()


def test_sites_narrow_what_is_measured(planted):
    scan = skerry.scan(planted, ids(planted), sites=["mlp"], attention=False, weights=False)
    assert {s.split(".")[0] for s in scan.table("sites")["site"].to_pylist()} == {"mlp"}
    assert scan.table("heads").num_rows == 0 and "matrices" not in scan.run.table_names
    with pytest.raises(UnknownSite, match="there is no site 'mpl'"):
        skerry.scan(planted, ids(planted), sites="mpl")


def test_what_cannot_be_read_is_told(planted):
    with pytest.raises(UsageError, match="has no tokenizer, so text cannot be read; give token ids"):
        skerry.scan(planted, "this is a sentence of text that is long enough")
    with pytest.raises(BadTokens, match="outside the model's vocabulary"):
        skerry.scan(planted, torch.full((2, 5), 10**6))
    with pytest.raises(AttributeError, match="no attribute 'scann'"):
        _ = skerry.scann


def test_two_runs_agree_bit_for_bit(planted):
    a = skerry.scan(planted, ids(planted), out="a").run.record.stages["activations"].files
    b = skerry.scan(planted, ids(planted), out="b").run.record.stages["activations"].files
    assert {n: f.sha256 for n, f in a.items()} == {n: f.sha256 for n, f in b.items()}


def test_a_report_tells_the_claims_that_were_judged_after_it_was_written(planted, tmp_path):
    audit = skerry.audit(planted, ids(planted), out=tmp_path / "run")
    before = audit.report.read_text("utf-8")
    assert 'id="claims"' not in before
    judged = skerry.claims(tmp_path / "run", only="2.*")
    page = judged.run.file("report.html")
    told = page.read_text("utf-8")
    assert 'id="claims"' in told and 'href="#claims"' in told
    for result in judged.results:
        assert escape(result.statement.split("'")[0][:40]) in told
    again = skerry.claims(tmp_path / "run", only="2.*")
    assert again.run.file("report.html") == page
    assert [r.verdict for r in again.results] == [r.verdict for r in judged.results]


def test_claims_of_a_model_measure_what_they_need_and_its_notes_are_in_the_report(planted):
    judged = skerry.claims(planted, ids(planted), only=["3.2a", "4.3*"], out="run")
    assert [r.id for r in judged.results] == ["3.2a", "4.3a", "4.3a-q", "4.3b", "4.3b-q"]
    assert "effects" in judged.run.record.stages and "roles" not in judged.run.record.stages
    assert all(r.verdict == "not applicable" or r.interval for r in judged.results)
    assert "so no intervention was made" in judged.run.file("report.html").read_text("utf-8")
    with pytest.raises(UsageError, match="no claim has the id '9.9'"):
        skerry.claims(planted, ids(planted), only="9.9")
