"""Retrofit as a method of taming."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo

from skerry.anatomy import resolve
from skerry.corpus.batch import Batch
from skerry.errors import NotPossible, UnknownOption
from skerry.impact.scheme import Scheme
from skerry.redesign.retrofit_method import register
from skerry.tame.export_refuse import refuse_runtime
from skerry.tame.held_out import HeldOut
from skerry.tame.pipeline import Setting, run_pipeline
from skerry.tame.register import METHODS, find_method, parse_pipeline
from skerry.tame.wanted import TameOptions

register()
BOS = 1


def batch_of(model, seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, model.config.vocab_size, (count, 14), generator=generator)
    ids[:, 0] = BOS
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(count))


def tamed_by(pipeline, bits="w8a8-tensor", **options):
    model = zoo.tiny("llama")
    setting = Setting(
        resolve(model),
        [batch_of(model)],
        Scheme.parse(bits),
        options={"retrofit": options} if options else {},
    )
    held_out = HeldOut(setting.anatomy, [batch_of(model, seed=9)], setting.batches, own_copy=True)
    return run_pipeline(setting, parse_pipeline(pipeline)), held_out, model


def test_it_is_listed_once_however_often_it_is_registered():
    register()
    assert list(METHODS).count("retrofit") == 1
    assert find_method("sink-fold").name == "retrofit"


@pytest.mark.parametrize("pipeline", ["retrofit", "retrofit,os+", "retrofit,gptq"])
def test_the_exact_fold_changes_no_prediction_and_what_follows_works_on_it(pipeline):
    tamed, held_out, model = tamed_by(pipeline)
    assert tamed.skip == 1 and tamed.anatomy.model is not model
    proof = tamed.equivalence["retrofit"]
    assert proof.float64 <= 1e-10 and proof.stored <= proof.bound
    row = held_out.changed(tamed)
    assert abs(row["change"]) < 1e-4 and row["kl"] < 1e-4
    assert held_out.quantized(tamed)["value"] is not None
    if "os+" in pipeline:
        assert tamed.equivalence["os+"].float64 <= 1e-10


def test_biases_that_a_shift_has_made_have_no_place_in_it():
    with pytest.raises(NotPossible, match=r"o_proj.bias.*no place for"):
        tamed_by("os+,retrofit")


def test_the_model_that_was_given_stays_as_it_is():
    model = zoo.tiny("llama")
    before = copy.deepcopy(model.state_dict())
    setting = Setting(resolve(model), [batch_of(model)], Scheme.parse("w8a8"))
    run_pipeline(setting, parse_pipeline("retrofit"))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_cheaper_form_claims_no_equivalence():
    tamed, held_out, _ = tamed_by("retrofit", form="sink-logit", steps=2)
    assert "retrofit" not in tamed.equivalence and held_out.changed(tamed)["kl"] > 0
    assert any("distilled" in note for note in tamed.found.notes)


def test_no_export_has_a_class_for_it(tmp_path):
    with pytest.raises(NotPossible, match="skerry retrofit MODEL --out DIR"):
        TameOptions(method="retrofit,os+", out=tmp_path / "x", form="float").check()
    tamed, *_ = tamed_by("retrofit")
    for quantized in (True, False):
        with pytest.raises(NotPossible, match="another model"):
            refuse_runtime(tamed.needs, quantized=quantized)


def test_a_prefix_would_put_back_what_it_takes_away():
    with pytest.raises(UnknownOption, match="exclude each other"):
        parse_pipeline("retrofit,prefix")


def test_what_rounds_or_names_places_comes_behind_it():
    with pytest.raises(UnknownOption, match="transforms come first"):
        parse_pipeline("gptq,retrofit")


@pytest.mark.parametrize("options", [{"form": "sink"}, {"stepz": 3}])
def test_its_options_are_checked(options):
    with pytest.raises(UnknownOption):
        tamed_by("retrofit", **options)
