"""skerry retrofit as a user runs it."""

import json

FEW = ("--inputs", 8, "--calibration", 4, "--samples", 4, "--tokens", 16, "--steps", 2, "--quiet")


def test_stages_and_bounds_are_printed_and_the_folder_is_written(
    inside, checkpoint, text, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "new"
    code, shown, err = inside(
        "retrofit", checkpoint, "--text", text, "--out", out, "--form", "sink-value", *FEW
    )
    assert code == 0 and err == ""
    for words in (
        "same function",
        "original",
        "folded, exact",
        "sink-logit",
        "distilled",
        "Bound",
        "Written",
    ):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert json.loads((out / "config.json").read_text())["attention"] == "sink-value"
    code, shown, err = inside("scan", out, "--text", text, "--samples", 4, "--tokens", 15, "--quiet")
    assert code == 0, err


def test_the_document_is_one_json_object(inside, checkpoint, text):
    words = ("retrofit", checkpoint, "--text", text, "--no-compare", "--bits", "w8a8", *FEW, "--json")
    code, out, err = inside(*words)
    assert code == 0 and err == ""
    document = json.loads(out)
    assert document["schema"] == 1 and document["token_text"] == "<s>" and document["out"] is None
    assert list(document["stages"][0]["schemes"]) == ["w8a8"]


def test_mistakes_are_told_in_one_line(inside, checkpoint, text):
    for words, said in (
        (("--form", "sink-logits"), "did you mean 'sink-logit'"),
        (("--samples", 0), "--samples is 0"),
        (("--bos", "without", *FEW), "begin with"),
    ):
        code, _, err = inside("retrofit", checkpoint, "--text", text, *words)
        assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_it_is_among_the_methods_of_tame(inside):
    code, out, _ = inside("tame", "--list", "--json")
    assert code == 0 and "retrofit" in [m["name"] for m in json.loads(out)["methods"]]


def test_tame_runs_it(inside, checkpoint, text):
    few = ("--calibration", 4, "--samples", 4, "--tokens", 16, "--quiet")
    code, out, err = inside("tame", checkpoint, "--text", text, "--method", "retrofit,os+", *few, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["chosen"] == "retrofit,os+"
    assert {e["method"] for e in document["equivalence"]} >= {"retrofit"}
