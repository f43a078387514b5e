"""skerry optimize, from the words to the picture."""

import contextlib
import io
import json

import pytest

from skerry.cli.main import app
from skerry.errors import UnknownOption
from skerry.report.pareto import pareto_figure, write_pareto
from skerry.report.pareto_terminal import chosen_words, pareto_view

WORDS = "backcopy --context 16 --layers 1 --width 16 --heads 2 --steps 3 --warmup 1 --batch 4 --attention softmax,scaled"
TINY = WORDS.split()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A tiny search, its folder and what it printed as JSON."""
    folder = tmp_path_factory.mktemp("optimize") / "run"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(["optimize", *TINY, "--trials", "3", "--out", str(folder), "--json"])
    return folder, json.loads(out.getvalue())


def test_json_is_one_document_with_trials_front_and_commands(searched):
    folder, document = searched
    assert document["schema"] == 1 and [g["name"] for g in document["goals"]] == ["loss", "int4", "outlier"]
    assert len(document["trials"]) == 3 and document["front"]
    for trial in document["trials"]:
        recipe = json.loads((folder / "recipes" / f"{trial['number']}.json").read_text())
        assert recipe["attention"] == trial["chosen"]["attention"] and recipe["steps"] == 3
        assert trial["command"].startswith("skerry train --recipe ")


def test_the_same_command_shows_the_front_and_draws_it(searched, capsys):
    folder, document = searched
    app(["optimize", *TINY, "--trials", "3", "--out", str(folder), "--quiet"])
    shown = capsys.readouterr().out
    assert "3 trials of 1 layers, 16 wide, 3 steps" in shown and "One seed each" in shown
    for number in document["front"]:
        assert document["trials"][number]["command"][:40] in shown.replace("\n", "")
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "pareto.svg").read_text()
    assert svg.count("<polyline") == 2
    assert all(f">{t['chosen']['attention']}</text>" in svg for t in document["trials"])


def test_mistakes_are_told_before_the_work(tmp_path):
    for words, told in {
        ("--goals", "los"): "'loss'",
        ("--attention", "sofmax"): "'softmax'",
        ("--space", str(tmp_path / "none.json")): "cannot be read",
    }.items():
        with pytest.raises(UnknownOption, match=told):
            app(["optimize", *TINY[:1], *words, "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def made(values, failed=()):
    trials = [
        {
            "number": i,
            "values": None if i in failed else dict(zip(("loss", "outlier"), v, strict=True)),
            "on_front": i not in failed and i < 2,
            "chosen": {"attention": "softmax" if i % 2 else "scaled", "objective.kurtosis.weight": 0.01 * i},
            "recipe": f"r/{i}.json",
            "command": f"skerry train --recipe r/{i}.json",
            "seconds": 1.0,
            "reason": "it diverged" if i in failed else None,
        }
        for i, v in enumerate(values)
    ]
    return {
        "run": "r",
        "goals": [{"name": n, "meaning": n, "unit": "nats", "scheme": None} for n in ("loss", "outlier")],
        "base": {"layers": 1, "width": 8, "steps": 3},
        "space": {"attention": ["softmax", "scaled"]},
        "seeds": 2,
        "parameters": 1000,
        "tokens_per_training": 100,
        "trials": trials,
        "front": [t["number"] for t in trials if t["on_front"]],
    }


def text_of(view):
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_failed_trials_are_told_and_a_search_without_numbers_is_no_picture(tmp_path):
    document = made([(1, 2), (2, 1), (3, 3)], failed=(2,))
    told = text_of(pareto_view(document))
    assert "trial 2 failed: it diverged" in told and "mean of 2 seeds" in told and "One seed" not in told
    assert max(map(len, told.splitlines())) <= 80
    none = made([(1, 2)], failed=(0,))
    assert "No trial has numbers" in text_of(pareto_view(none)) and pareto_figure(none) == ""
    assert write_pareto(none, tmp_path / "no") == []
    with pytest.raises(UnknownOption, match="figure format"):
        write_pareto(document, tmp_path, ["gif"])


def test_marks_that_lie_together_share_a_label_and_one_point_can_be_drawn():
    close = pareto_figure(made([(1, 2), (1.0001, 1.9999), (3, 9)]))
    assert ">0, 1<" in close
    assert "NaN" not in pareto_figure(made([(1, 2)])) and "Infinity" not in close


def test_what_was_chosen_is_told_without_what_is_off():
    assert (
        chosen_words(
            {
                "attention": "scaled",
                "learning_rate": 0.00345,
                "objective.kurtosis.weight": 0,
                "objective.quantization.scheme": "w4a4",
                "objective.z_loss.weight": 1e-4,
            }
        )
        == "scaled, learning rate 0.0034, noise w4a4, z loss 0.0001"
    )
