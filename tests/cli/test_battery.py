"""skerry battery as a user runs it."""

import json
import shutil

import pytest
import torch

FEW = ("--inputs", 4, "--tasks", "induction", "retrieval", "calibration", "repetition")


@pytest.fixture(scope="session")
def two(checkpoint, tmp_path_factory):
    """The same small model twice, the second with another head."""
    from safetensors.torch import load_file, save_file

    other = tmp_path_factory.mktemp("other") / "other-llama"
    shutil.copytree(checkpoint, other)
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] = 3 * torch.randn(
        weights["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return checkpoint, other


def test_the_document_holds_both_models_and_their_differences_and_is_strict_json(inside, two, text):
    code, out, err = inside("battery", *two, "--text", text, *FEW, "--json")
    assert code == 0 and err == ""
    document = json.loads(out)
    assert document["schema"] == 1 and len(document["tasks"]) == 7
    a, b = document["batteries"]
    assert (a["name"], b["name"]) == ("small-llama", "other-llama")
    assert {s["task"] for s in a["scores"]} == {"induction", "retrieval", "calibration", "repetition"}
    assert all(len(s["per_input"]) == len(s["parts"]) for s in a["scores"])
    (comparison,) = document["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("small-llama", "other-llama")
    assert len(comparison["differences"]) == len(a["scores"])
    assert all(d["is_paired"] for d in comparison["differences"])


def test_the_terminal_shows_one_model_with_chance_and_two_with_a_verdict(inside, two, text):
    code, out, _ = inside("battery", two[0], "--text", text, *FEW, "--quiet")
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    flat = " ".join(out.split())
    for words in (
        "Does it copy what followed the same token before?",
        "chance (0.0104, an even guess)",
        "accuracy by distance in tokens 1–8:",
        "the text itself",
        "best head: layer",
    ):
        assert words in flat, words
    code, out, err = inside("battery", *two, "--text", text, *FEW)
    flat = " ".join(out.split())
    assert code == 0 and "battery of other-llama" in err
    for words in (
        "small-llama and other-llama",
        "better and worse are differences from small-llama on the same inputs",
    ):
        assert words in flat, words
    assert "no difference seen" in flat or "worse:" in flat


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no model was named; name one or several"),
        (("nowhere/at/all",), "nowhere/at/all"),
        (("CHECKPOINT", "--tasks", "inducton"), "no task 'inducton'; did you mean 'induction'"),
        (("CHECKPOINT", "--inputs", 1), "--inputs is 1; it must be at least 2"),
        (("CHECKPOINT", "--held-out", 3), "--held-out is 3.0; it is a share"),
        (("CHECKPOINT", "--text", "no/such/file.txt"), "no/such/file.txt"),
    ],
)
def test_mistakes_are_told_in_one_line_with_exit_code_2(inside, checkpoint, words, said):
    code, out, err = inside("battery", *(checkpoint if w == "CHECKPOINT" else w for w in words))
    assert code == 2 and out == "" and said in err
    assert sum("skerry: " in line for line in err.splitlines() if "battery of" not in line) == 1


def test_two_models_of_one_name_are_told_apart():
    from skerry.redesign.battery.several import unique

    assert unique(["a/x", "b/x", "c/y/"]) == ["a/x", "b/x", "y"]
    assert unique(["a/x", "a/x"]) == ["a/x (1)", "a/x (2)"]
