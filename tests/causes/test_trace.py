"""The whole trace: from a model to tables and document, resumable, and plain about what is not there."""

import json

import pytest
import torch

import skerry
from skerry.run import Run
from skerry.run.cause_tables import CAUSE_TABLES


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ids_of(planted):
    return torch.cat([batch.input_ids for batch in planted.batches])


@pytest.fixture(scope="session")
def traced(planted, tmp_path_factory):
    """The trace of one planted llama, with effects and roles."""
    life = planted("llama", 0)
    out = tmp_path_factory.mktemp("traced") / "run"
    return life, skerry.trace(life.model, ids_of(life), out=out)


def test_a_planted_life_is_told_from_birth_to_end(traced):
    life, trace = traced
    (carrier,) = trace.carriers
    assert (carrier["channel"], carrier["birth_layer"], carrier["exit_layer"]) == (
        life.channel,
        life.birth_layer,
        life.exit_layer,
    )
    assert carrier["sign"] == life.sign and carrier["recurrence"] == 1.0
    neurons = [g for g in carrier["growth"] if g["event"] == "birth" and g["level"] == "neuron"]
    top = max(neurons, key=lambda g: abs(g["share"]))
    assert top["index"] == life.neuron and top["share"] == pytest.approx(1, abs=0.05)
    weights = [(w["layer"], w["row"], w["column"]) for w in carrier["growth_weights"]]
    assert weights == [(life.birth_layer, row, column) for row, column in life.entries[:1]]
    for event in ("birth", "exit"):
        shares = [g["share"] for g in carrier["growth"] if g["event"] == event and g["level"] == "block"]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert carrier["cancellation"] == pytest.approx(life.cancellation, abs=0.05)


def test_all_tables_are_there_and_have_their_columns(traced):
    _, trace = traced
    for name, columns in CAUSE_TABLES.items():
        assert trace.table(name).schema.names == list(columns)
    assert trace.table("effects").num_rows > 0 and trace.table("spread").num_rows > 0


def test_the_document_is_plain_json(traced):
    _, trace = traced
    assert json.loads(json.dumps(trace.document, allow_nan=False)) == trace.document
    assert {"schema", "run", "model", "carriers", "spread", "effects", "notes", "seconds"} <= set(
        trace.document
    )


def test_the_model_is_left_as_it_was(planted, tmp_path):
    life = planted("gpt2", 1)
    before = {k: v.clone() for k, v in life.model.state_dict().items()}
    skerry.trace(life.model, ids_of(life), out=tmp_path / "run", roles=False)
    assert all(torch.equal(v, before[k]) for k, v in life.model.state_dict().items())
    for module in life.model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def test_a_stopped_trace_goes_on_after_the_last_finished_stage(planted, tmp_path, monkeypatch):
    from skerry.causes import trace as driver

    life = planted("llama", 2)

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver, "measure_roles", stop)
        with pytest.raises(KeyboardInterrupt):
            skerry.trace(life.model, ids_of(life), out=tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert "effects" in run.record.stages and "roles" not in run.record.stages
    before = run.record.stages["effects"].finished
    monkeypatch.setattr(driver, "measure_effects", stop)
    done = skerry.trace(life.model, ids_of(life), out=tmp_path / "run")
    assert "roles" in done.run.record.stages and done.run.record.stages["effects"].finished == before


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "mixtral"])
def test_an_untouched_random_model_has_nothing_to_follow_and_says_so(tiny_model, tmp_path, name):
    model = tiny_model(name)
    ids = torch.randint(4, 90, (12, 16), generator=torch.Generator().manual_seed(0))
    trace = skerry.trace(model, ids, out=tmp_path / "run")
    assert trace.carriers == [] and trace.notes
    assert all(trace.table(n).num_rows == 0 for n in ("growth", "spread", "effects"))


def test_inputs_of_one_token_are_no_crash(planted, tmp_path):
    life = planted("llama", 0)
    trace = skerry.trace(life.model, ids_of(life)[:, :1], out=tmp_path / "run")
    assert trace.notes


@pytest.mark.parametrize("name", ["mamba", "fnet"])
def test_a_model_without_attention_is_said_to_have_none(tmp_path, name):
    from strangers import stranger

    ids = torch.randint(4, 90, (8, 12), generator=torch.Generator().manual_seed(0))
    trace = skerry.trace(stranger(name), ids, out=tmp_path / "run")
    assert trace.table("roles").num_rows == 0 and any("attention" in note for note in trace.notes)


def test_an_unknown_option_is_named():
    from skerry.errors import UnknownOption

    with pytest.raises(UnknownOption, match="no option 'sampels'; did you mean 'samples'"):
        skerry.trace("nowhere", sampels=3)
