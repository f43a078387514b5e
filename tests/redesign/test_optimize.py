"""Searches: goals, space, resumption, retraining; tiny decoders and a made-up function in place of trainings."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import skerry
from skerry.errors import MissingExtra, NotPossible, RunExists, UnknownOption
from skerry.impact.scheme import Scheme
from skerry.redesign import optimize as module
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM, next_token_loss
from skerry.redesign.optimize import Plan, optimize, recipe_of
from skerry.redesign.optimize_goals import find_goals, measure_goals
from skerry.redesign.optimize_search import Search
from skerry.redesign.optimize_space import DEFAULT, read_space, read_space_file, with_values
from skerry.redesign.optimize_trial import Done
from skerry.redesign.recipe import Recipe
from skerry.redesign.train import train

TINY = Recipe(
    text="backcopy", context=16, layers=1, width=16, heads=2, steps=4, warmup=1, batch=4, precision="fp32"
)
SPACE = {
    "attention": ["softmax", "scaled"],
    "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "objective.kurtosis.weight": {"low": 1e-3, "high": 1.0, "log": True, "or": 0},
}


def made_up(job):
    """Three goals that pull apart, and one recipe that fails."""
    rate = job.recipe["learning_rate"]
    weight = job.recipe["objective"].get("kurtosis", {}).get("weight", 0)
    if job.recipe["attention"] == "scaled" and weight > 0.5:
        return Done(job.number, None, 0.1, "the loss is no longer finite")
    return Done(job.number, (rate, -math.log(rate) + weight, 1 / (1 + weight)), 0.1, None)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_killed_search_goes_on_trial_for_trial_as_if_it_had_not_been(tmp_path, sampler, monkeypatch):
    whole, torn = (Plan(base=TINY, space=SPACE, trials=7, sampler=sampler, seed=5) for _ in range(2))
    monkeypatch.setattr(module, "run_trial", made_up)
    expected = json.loads(optimize(whole, tmp_path / "whole").text("optimize.json"))

    class Killed(Exception):
        pass

    for upto in (1, 4):

        def dies(job, upto=upto):
            if job.number == upto:
                raise Killed
            return made_up(job)

        monkeypatch.setattr(module, "run_trial", dies)
        with pytest.raises(Killed):
            optimize(torn, tmp_path / "torn")
    monkeypatch.setattr(module, "run_trial", made_up)
    found = json.loads(optimize(torn, tmp_path / "torn").text("optimize.json"))
    for name in ("trials", "front"):
        assert json.dumps(found[name]).replace("/torn/", "/whole/") == json.dumps(expected[name])
    assert len(found["trials"]) == 7


def test_the_front_of_a_search_is_the_one_of_optuna(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_trial", made_up)
    done = optimize(Plan(base=TINY, space=SPACE, trials=9), tmp_path)
    document = json.loads(done.text("optimize.json"))
    search = Search(
        tmp_path / "trials.journal", read_space(SPACE), TINY, num_goals=3, sampler="tpe", seed=0, trials=9
    )
    assert sorted(document["front"]) == sorted(t.number for t in search._study.best_trials)
    failed = [t for t in document["trials"] if t["values"] is None]
    assert all("finite" in t["reason"] and not t["on_front"] for t in failed)
    table = done.table("optimize_trials").to_pylist()
    assert len(table) == 27 and {r["trial"] for r in table if r["on_front"]} == set(document["front"])


def test_more_trials_go_on_and_another_search_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_trial", made_up)
    few = json.loads(optimize(Plan(base=TINY, space=SPACE, trials=2), tmp_path).text("optimize.json"))
    many = json.loads(optimize(Plan(base=TINY, space=SPACE, trials=3), tmp_path).text("optimize.json"))
    assert [t["chosen"] for t in many["trials"][:2]] == [t["chosen"] for t in few["trials"]]
    monkeypatch.setattr(module, "run_trial", lambda job: pytest.fail("a finished search trains nothing"))
    optimize(Plan(base=TINY, space=SPACE, trials=3), tmp_path)
    with pytest.raises(RunExists, match="seed"):
        optimize(Plan(base=TINY, space=SPACE, trials=3, seed=1), tmp_path)


def test_the_first_trial_is_the_recipe_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_trial", made_up)
    document = json.loads(optimize(Plan(base=TINY, space=SPACE, trials=2), tmp_path).text("optimize.json"))
    assert Recipe.from_plain(json.loads((tmp_path / "recipes" / "0.json").read_text())) == TINY
    assert document["trials"][0]["chosen"] == {
        "attention": "softmax",
        "learning_rate": 3e-3,
        "objective.kurtosis.weight": 0,
    }


def test_a_point_is_retrained_by_its_recipe_to_the_same_numbers(tmp_path):
    text = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["sea", "rock", "flat", "wave", "stands", "out"], 4000)
    text.write_text(" ".join(words))
    base = {**TINY.plain(), "text": str(text), "vocabulary": 270}
    space = {"attention": ["scaled"], "objective.z_loss.weight": [0.01]}
    done = skerry.optimize(
        base, tmp_path / "run", goals=["loss", "w16a16", "int8", "outlier"], space=space, trials=1, keep=True
    )
    (trial,) = done.front
    again = train(
        Recipe.from_plain(json.loads((tmp_path / "run" / "recipes" / "0.json").read_text())), tmp_path / "a"
    )
    kept = next((tmp_path / "run" / "trials").glob("0000-seed0/model"))
    assert trial["values"]["loss"] == pytest.approx(again.held_out, rel=1e-6)
    assert trial["values"]["w16a16"] == trial["values"]["loss"] <= trial["values"]["int8"] + 1e-3
    twin = AutoModelForCausalLM.from_pretrained(kept)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), again.model.parameters(), strict=True))
    assert trial["command"] == f"skerry train --recipe {tmp_path / 'run' / 'recipes' / '0.json'}"
    assert "4 trials" not in repr(done) and "1 trials, 1 on the front" in repr(done)


@pytest.mark.slow
def test_trials_in_other_processes_give_the_numbers_of_this_one(tmp_path):
    space = {"attention": ["softmax", "scaled", "sink-logit"]}
    one, two = (
        skerry.optimize(
            TINY, tmp_path / str(n), goals=["loss"], space=space, trials=3, sampler="random", processes=n
        )
        for n in (1, 2)
    )
    assert [t["values"] for t in one.trials] == [t["values"] for t in two.trials]
    assert not list((tmp_path / "1" / "trials").glob("*/model")), "models are not kept"


def test_goals_are_what_they_say():
    torch.manual_seed(0)
    model = DecoderForCausalLM(
        DecoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    ids = torch.randint(0, 50, (6, 12))
    found = measure_goals(model, ids, ids, find_goals(["loss", "int8", "int4", "outlier", "w2a16"]))
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        hidden = []
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _m, _a, y: hidden.append(y.abs().flatten()))
        model(ids)
    assert found["loss"] == pytest.approx(float(next_token_loss(out.logits, ids)), rel=1e-5)
    assert found["outlier"] == pytest.approx(max(float(h.max() / h.median()) for h in hidden), rel=1e-5)
    assert (
        abs(found["int8"] - found["loss"]) < abs(found["w2a16"] - found["loss"])
        and found["int4"] != found["loss"]
    )


def test_words_are_goals_schemes_or_refused():
    assert [g.scheme for g in find_goals(["loss", "w6a6", "outlier", "loss"])] == [
        "w16a16",
        str(Scheme.parse("w6a6")),
        None,
    ]
    with pytest.raises(UnknownOption, match="did you mean 'outlier'"):
        find_goals(["outliers"])
    with pytest.raises(NotPossible, match="exposure is not measured yet"):
        find_goals(["exposure"])
    with pytest.raises(UnknownOption, match="needs a goal"):
        find_goals([])
    with pytest.raises(UnknownOption, match="9"):
        find_goals(["w9a9"])


REFUSED = [
    ({}, "empty"),
    ({"attn": ["softmax"]}, "did you mean 'attention'"),
    ({"vocabulary": [256, 512]}, "losses would not compare"),
    ({"attention": []}, "no value to choose"),
    ({"attention": "softmax"}, "list of values"),
    ({"attention": ["softmaxx"]}, "'softmax'"),
    ({"objective.kurtosis.wieght": [1]}, "'weight'"),
    ({"objektive.kurtosis.weight": [1]}, "'objective.kurtosis.weight'"),
    ({"layers.x": [1]}, "no 'layers.x'"),
    ({"learning_rate": {"low": 1}}, "two numbers"),
    ({"learning_rate": {"low": 2, "high": 1}}, "below"),
    ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "above 0"),
    ({"learning_rate": {"low": 0.1, "high": 1, "lgo": True}}, "'log'"),
    ({"learning_rate": {"low": -1.0, "high": 1}}, "learning_rate"),
    ({"heads": [3]}, "3 heads"),
]


@pytest.mark.parametrize(("space", "words"), REFUSED, ids=lambda x: str(x)[:50])
def test_a_space_that_cannot_be_meant_is_refused_before_any_training(space, words):
    with pytest.raises(UnknownOption) as refused:
        Plan(base=TINY, space=space).check()
    assert words in str(refused.value)


def test_numbers_and_samplers_are_checked(tmp_path, monkeypatch):
    for name in ("trials", "seeds", "processes"):
        with pytest.raises(UnknownOption, match=f"{name} is 0"):
            Plan(base=TINY, **{name: 0}).check()
    with pytest.raises(UnknownOption, match="did you mean 'nsga2'"):
        Plan(base=TINY, sampler="nsga3").check()
    (tmp_path / "space.json").write_text("[1]")
    with pytest.raises(UnknownOption, match="holds a list"):
        read_space_file(tmp_path / "space.json")
    with pytest.raises(UnknownOption, match="cannot be read"):
        read_space_file(tmp_path / "none.json")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"skerry\[optimize\]"):
        Plan(base=TINY).check()


def test_values_go_into_a_recipe_by_dotted_names():
    base = Recipe(objective={"kurtosis": 0.5, "z_loss": 0.1, "quantization": "w4a4"})
    made = with_values(
        base,
        {
            "attention": "scaled",
            "objective.kurtosis.form": "energy",
            "objective.quantization.probability": 0.5,
        },
    )
    assert made.attention == "scaled" and base.objective["kurtosis"] == 0.5
    assert made.objective == {
        "kurtosis": {"weight": 0.5, "form": "energy"},
        "z_loss": 0.1,
        "quantization": {"scheme": "w4a4", "probability": 0.5},
    }
    bare = recipe_of(base, {"objective.kurtosis.weight": 0, "objective.quantization.scheme": "w16a16"})
    assert bare.objective == {"z_loss": 0.1}


def test_the_default_space_and_recipe_can_be_meant():
    Plan().check()
    assert {axis.name for axis in read_space(DEFAULT)} == set(DEFAULT)
