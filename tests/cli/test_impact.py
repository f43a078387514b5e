"""skerry impact as a user runs it, and what is left when it is stopped."""

import json

import pytest
import torch
import zoo

import skerry as library
from skerry.errors import UnknownOption
from skerry.run import Run
from skerry.run.impact_tables import IMPACT_TABLES

FEW = ("--samples", 8, "--tokens", 16, "--quiet")
QUICK = ("--schemes", "w8a8", "w4a4kv4", "--site-schemes", "w4a4", "--no-pruning")


def one_line(err):
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture
def ids():
    return torch.randint(4, 90, (8, 12), generator=torch.Generator().manual_seed(0))


def test_the_document_holds_every_table_and_is_strict_json(inside, checkpoint, text):
    code, out, err = inside("impact", checkpoint, "--text", text, *FEW, *QUICK, "--json")
    assert code == 0 and err == ""
    document = json.loads(out)
    assert document["schema"] == 1 and set(IMPACT_TABLES) <= set(document)
    assert [r["scheme"] for r in document["quantization_grid"]] == ["original", "w8a8", "w4a4kv4"]
    assert {r["scheme"] for r in document["quantization_sites"]} == {"w4a4"}
    assert set(document["seconds"]) == {"impact_grid", "impact_sites", "impact_clipping"}
    assert any("lm_head: the head stays in full precision" in note for note in document["notes"])
    run = Run.open(document["run"])
    for name, columns in IMPACT_TABLES.items():
        assert run.table(name).schema.names == list(columns)
        assert run.table(name).num_rows == len(document[name]) > 0


def test_the_terminal_shows_grid_and_dearest_sites_and_a_repeat_is_the_same(
    inside, checkpoint, text, tmp_path
):
    first = inside("impact", checkpoint, "--text", text, *FEW, *QUICK)
    assert first[0] == 0, first[2]
    for words in (
        "The whole model quantized",
        "w4a4kv4",
        "Quantized alone, the most expensive first",
        "Perplexity",
        "The largest values clipped",
    ):
        assert words in first[1]
    assert max(map(len, first[1].splitlines())) <= 100
    (folder,) = tmp_path.glob("skerry-runs/*")
    before = (folder / "run.json").read_bytes()
    assert inside("impact", checkpoint, "--text", text, *FEW, *QUICK)[1] == first[1]
    assert (folder / "run.json").read_bytes() == before


def test_other_schemes_measure_only_what_they_change(inside, checkpoint, text, tmp_path):
    assert inside("impact", checkpoint, "--text", text, *FEW, *QUICK)[0] == 0
    (folder,) = tmp_path.glob("skerry-runs/*")
    old = Run.open(folder).record.stages
    code, out, _ = inside("impact", checkpoint, "--text", text, *FEW, "--schemes", "w6a6", *QUICK[3:])
    assert code == 0 and "w6a6" in out
    new = Run.open(folder).record.stages
    assert new["impact_grid"].finished > old["impact_grid"].finished
    assert new["impact_sites"] == old["impact_sites"] and new["impact_clipping"] == old["impact_clipping"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--schemes", "w9a8"), "no weights of 9 bits"),
        (("--schemes", "w8b8"), "'w8b8': 'b8' behind 'w8' means nothing"),
        (("--site-schemes", "w4a4-gg"), "no flag 'gg'"),
        (("--schemes", "w4a16-g24"), "reads 32 values, which groups of 24 do not divide"),
        (("--no-grid", "--no-per-site", "--no-clipping", "--no-pruning"), "nothing is left to price"),
        (("--threads", 0), "--threads is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_2(inside, checkpoint, text, words, told):
    code, out, err = inside("impact", checkpoint, "--text", text, *FEW, *words)
    assert code == 2 and out == "" and told in one_line(err)


def test_a_text_that_is_too_short_is_refused(inside, checkpoint, tmp_path):
    (tmp_path / "short.txt").write_text("Too short.")
    code, _, err = inside("impact", checkpoint, "--text", tmp_path / "short.txt", "--quiet")
    assert code == 2 and "short" in one_line(err)


def test_an_audit_prices_only_when_it_is_asked(inside, checkpoint, text, tmp_path):
    assert inside("audit", checkpoint, "--text", text, *FEW)[0] == 0
    (folder,) = tmp_path.glob("skerry-runs/*")
    assert "impact_grid" not in Run.open(folder).record.stages
    code, _, err = inside("audit", checkpoint, "--text", text, *FEW, "--impact")
    assert code == 0, err
    (folder,) = tmp_path.glob("skerry-runs/*")
    stages = Run.open(folder).record.stages
    assert {"lifecycle", "impact_grid", "impact_sites", "impact_clipping", "impact_pruning", "report"} <= set(
        stages
    )


def test_a_stopped_pricing_goes_on_after_the_last_finished_stage(tmp_path, monkeypatch, ids):
    from skerry.impact import impact as driver

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    model = zoo.tiny("llama")
    quick = {"schemes": ["w8a8"], "site_schemes": ["w4a4"], "pruning": False, "out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(driver, "price_clipping", stop)
        with pytest.raises(KeyboardInterrupt):
            library.impact(model, ids, **quick)
    run = Run.open(tmp_path / "run")
    assert {"impact_grid", "impact_sites"} <= set(run.record.stages) and "impact" not in run.record.stages
    monkeypatch.setattr(driver, "price_grid", stop)
    monkeypatch.setattr(driver, "price_sites", stop)
    done = library.impact(model, ids, **quick)
    assert done.run.table("clipping").num_rows > 0
    assert done.run.record.stages["impact_sites"] == run.record.stages["impact_sites"]


def test_the_python_face_says_what_it_holds(tmp_path, ids):
    model = zoo.tiny("bert")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = library.impact(
        model, ids, schemes="w8a8", site_schemes="w4a4", clipping=False, out=tmp_path / "run"
    )
    assert [r["scheme"] for r in done.grid] == ["original", "w8a8"]
    changes = [r["change"] for r in done.sites]
    assert changes == sorted(changes, reverse=True) and len(changes) == 2 * 10
    assert "2 schemes, 20 places" in repr(done) and "clipping" not in done.document
    assert {r["method"] for r in done.document["pruning"]} >= {"magnitude", "wanda", "random"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_usual_scheme_that_the_model_cannot_have_is_a_note_and_one_asked_for_an_error(tmp_path, ids):
    model = zoo.tiny("llama")
    off = {"per_site": False, "clipping": False, "pruning": False}
    done = library.impact(model, ids, out=tmp_path / "run", **off)
    (row,) = [r for r in done.grid if r["scheme"] == "w4a16-g128"]
    assert row["value"] is None and "groups of 128 do not divide" in row["note"]
    assert any("w4a16-g128: not measured" in note for note in done.notes)
    with pytest.raises(UnknownOption, match="groups of 128 do not divide"):
        library.impact(model, ids, schemes=["w4a16-g128"], out=tmp_path / "run", **off)


def test_nan_in_calibration_is_told_with_input_and_block(tmp_path, ids):
    from skerry.errors import BrokenModel

    model = zoo.tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(
        BrokenModel, match=r"NaN in input 0, position 0: model.layers.1.mlp.down_proj of block 1"
    ):
        library.impact(model, ids, schemes=["w8a8-tensor"], out=tmp_path / "run")


def test_few_inputs_calibrate_and_are_scored_and_a_note_says_so(tmp_path, ids):
    off = {"per_site": False, "clipping": False, "pruning": False}
    done = library.impact(zoo.tiny("llama"), ids[:3], schemes=["w8a8-tensor"], out=tmp_path / "run", **off)
    assert any("3 inputs are too few to keep some for calibration" in note for note in done.notes)
