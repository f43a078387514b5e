"""Running again from the first block that changes gives what running everything gives, bit for bit."""

import pytest
import torch
import zoo
from leftovers import bits, same_bits, state
from strangers import stranger
from torch import nn

from skerry.anatomy import Site, resolve, watch
from skerry.anatomy.family import Family, Input, Output
from skerry.anatomy.model import bind, run
from skerry.anatomy.splits import Dims
from skerry.causes.ablations import ablate_channel, ablate_head, ablate_sink, ablate_weight
from skerry.causes.interventions import Intervention, clip, replace, resample, scale, zero
from skerry.causes.rerun import Rerun, first_of
from skerry.corpus.batch import Batch
from skerry.errors import UnknownOption

every_family = pytest.mark.parametrize("name", zoo.NAMES)
CASES = ["gpt2", "falcon_7b", "gemma3", "phi3", "gpt_oss", "qwen2_moe", "olmo", "opt_350m", "bert"]


def batch_of(model, padding=None, **kwargs):
    ids, keep = zoo.tokens(model, num_samples=3, length=8, padding=padding, **kwargs)
    return Batch(ids, keep, torch.arange(3))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def arms(anatomy):
    """An intervention of every sort at every depth."""
    last = anatomy.dims.num_layers - 1
    down = next(s for s in anatomy.weight_sites if s.layer == last and s.part == "w.down")
    return [
        zero(anatomy, "0.resid.in", [1]),
        scale(anatomy, Site(last - 1, "resid.out"), 1.5),
        scale(anatomy, Site(last, "attn.in"), 1.5),
        replace(anatomy, Site(last, "mlp.out"), 0.5, [3]),
        clip(anatomy, Site(last, "attn.out"), 0.1),
        resample(anatomy, Site(last, "attn.mix")),
        zero(anatomy, Site(last, "resid.out"), [1]),
        ablate_channel(anatomy, 3, last),
        ablate_weight(anatomy, down, [0], [1], 50.0),
        ablate_weight(anatomy, "w.embed", [5], [1], 50.0),
        ablate_head(anatomy, last, 1),
        ablate_sink(anatomy, [0], layers=[last]),
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("padding", [None, "right"])
def test_reuse_equals_running_everything_bit_for_bit_and_leaves_nothing(name, padding):
    model = zoo.tiny(name, dtype=torch.float32)
    anatomy, batch = resolve(model), batch_of(model, padding)
    before, weights = state(model), bits(model)
    rerun = Rerun(anatomy, batch)
    kept = [x.clone() for x in kept_tensors(rerun)]
    plain = run(anatomy, batch.input_ids, batch.keep).last_hidden_state
    assert torch.equal(rerun.last, plain)
    assert equal(rerun.run(), rerun.clean)
    num_changed = 0
    for made in arms(anatomy):
        reused = rerun.run(made)
        assert equal(reused, rerun.run(made, first_layer=0)), made
        with made:
            everything = run(anatomy, batch.input_ids, batch.keep).last_hidden_state
        assert torch.equal(rerun.hidden(made), everything), made
        num_changed += not torch.equal(everything, plain)
    assert num_changed >= len(arms(anatomy)) - 2  # some weight acts on no token, or behind a norm
    assert all(torch.equal(x, y) for x, y in zip(kept_tensors(rerun), kept, strict=True))
    assert torch.equal(rerun.last, plain)
    assert equal(rerun.run(), rerun.clean)
    assert state(model) == before and same_bits(model, weights)


def kept_tensors(rerun):
    return [
        x
        for out in rerun._kept
        for x in (out if isinstance(out, tuple) else [out])
        if isinstance(x, torch.Tensor)
    ]


@every_family
def test_blocks_before_the_change_are_not_computed(resolved_small, name):
    anatomy, batch, rerun = resolved_small(name)
    last = anatomy.dims.num_layers - 1
    computed = []
    hooks = [
        anatomy.taps[Site(layer, "attn.q")].module.register_forward_hook(
            lambda *_, n=layer: computed.append(n)
        )
        for layer in range(last + 1)
    ]
    try:
        for made, expected in [
            (scale(anatomy, Site(last, "attn.in"), 2.0), [last]),
            (scale(anatomy, Site(last - 1, "resid.out"), 2.0), [last]),
            (scale(anatomy, Site(last, "resid.out"), 2.0), []),
            (scale(anatomy, "0.resid.in", 2.0), list(range(last + 1))),
        ]:
            computed.clear()
            outcome = rerun.run(made)
            assert computed == expected, made
            assert any((x - rerun.clean[k]).abs().max() > 0 for k, x in outcome.items()), made
        computed.clear()
        assert equal(rerun.run(), rerun.clean)
        assert computed == []
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def resolved_small():
    made = {}

    def get(name):
        if name not in made:
            anatomy = resolve(zoo.tiny(name))
            made[name] = anatomy, batch_of(anatomy.model), Rerun(anatomy, batch_of(anatomy.model))
        return made[name]

    return get


def test_the_first_of_several_interventions_says_where_to_begin_and_a_later_start_is_not_taken(
    resolved_small,
):
    anatomy, _, rerun = resolved_small("llama")
    early, late = scale(anatomy, "0.mlp.out", 2.0), scale(anatomy, "1.mlp.out", 2.0)
    expected = rerun.run(early, late, first_layer=0)
    assert equal(rerun.run(late, early), expected)
    assert equal(rerun.run(early, late, first_layer=2), expected)
    assert equal(rerun.run(early, late, first_layer=-1), expected)


def test_a_watch_sees_the_changed_model_and_alone_it_sees_every_block(resolved_small):
    anatomy, batch, rerun = resolved_small("llama")
    shown = {}

    def look(site, x, rows):
        shown[site] = x.clone()

    outcome = rerun.run(zero(anatomy, "1.mlp.out"), watch=[watch(anatomy, ["mlp.out"], on_activation=look)])
    assert equal(outcome, rerun.run(zero(anatomy, "1.mlp.out")))
    assert list(shown) == [Site(1, "mlp.out")] and not shown[Site(1, "mlp.out")].any()
    shown.clear()
    assert equal(rerun.run(watch=[watch(anatomy, ["mlp.out"], on_activation=look)]), rerun.clean)
    assert sorted(shown) == [Site(0, "mlp.out"), Site(1, "mlp.out")]
    with pytest.raises(UnknownOption, match="is no intervention, so it is unknown where it begins"):
        first_of([watch(anatomy, ["mlp.out"], on_activation=look)], 0)


def test_an_error_in_a_run_leaves_the_next_as_it_was(resolved_small):
    anatomy, _, rerun = resolved_small("llama")
    before = state(anatomy.model)
    for broken in (
        zero(anatomy, "1.mlp.out", tokens=[999]),
        resample(anatomy, "1.mlp.out", keep=torch.ones(1, 1)),
    ):
        with pytest.raises(UnknownOption):
            rerun.run(scale(anatomy, "1.attn.out", 3.0), broken)
        assert state(anatomy.model) == before
        assert equal(rerun.run(), rerun.clean)


def test_a_rerun_inside_an_intervention_changes_what_is_reused_once(tiny_model):
    """What a hook gives must not be kept as what the block gave: the hook runs again."""
    anatomy = resolve(tiny_model("llama"))
    batch = batch_of(anatomy.model)
    with scale(anatomy, "0.resid.out", 3.0):
        rerun = Rerun(anatomy, batch)
        assert equal(
            rerun.run(scale(anatomy, "1.mlp.out", 2.0)),
            rerun.run(scale(anatomy, "1.mlp.out", 2.0), first_layer=0),
        )
        assert equal(rerun.run(), rerun.clean)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_one_mode_keeps_and_another_runs_again(tiny_model, mode):
    for name in ("falcon_7b", "gpt_neox_sequential"):
        anatomy = resolve(tiny_model(name))
        with mode():
            rerun = Rerun(anatomy, batch_of(anatomy.model))
        made = scale(anatomy, "1.resid.in", 2.0)
        assert equal(rerun.run(made), rerun.run(made, first_layer=0))
        with torch.inference_mode():
            assert equal(rerun.run(made), rerun.run(made, first_layer=0))


class WritesIntoItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        x += self.down(self.up(x).relu())
        return x


class InPlaceModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Embedding(10, 4), nn.ModuleList(WritesIntoItsInput() for _ in range(3))

    def forward(self, ids, **_):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x


def test_what_is_kept_is_not_written_into_by_blocks_that_write_into_their_input():
    model = InPlaceModel()
    family = Family(
        name="in_place",
        model_types=frozenset(),
        blocks="layers",
        activations={"resid.in": Input(""), "mlp.up": Output("up"), "resid.out": Output("")},
        weights={},
        outer={},
    )
    anatomy = bind(model, family, Dims(3, 4, 0, 0, 0), list(model.layers))
    batch = Batch(torch.arange(6).reshape(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.arange(2))
    rerun = Rerun(anatomy, batch)
    for _ in range(2):
        for layer in range(3):
            made = scale(anatomy, Site(layer, "mlp.up"), 2.0)
            with made:
                expected = run(anatomy, batch.input_ids)
            assert torch.equal(rerun.hidden(made), expected), layer
        assert torch.equal(rerun.hidden(), rerun.last)


@pytest.mark.parametrize("name", ["albert", "mamba", "xlnet", "lfm2", "modernbert", "rwkv", "qwen3_next", "gpt_neo", "deberta-v2", "fnet"])  # fmt: skip
def test_architectures_that_nobody_declared_run_again_or_run_whole(name):
    """Shared blocks (ALBERT) and blocks whose output is not all that the next receives run whole."""
    model = stranger(name)
    anatomy = resolve(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 90, (2, 8), generator=generator)
    rerun = Rerun(anatomy, Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(2)))
    assert rerun.judge.outcomes == ("distance",)
    assert equal(rerun.run(), rerun.clean)
    places = [s for s in anatomy.taps if s.part in ("resid.in", "resid.out", "mlp.out", "resid.mid")]
    assert places
    for site in places:
        made = scale(anatomy, site, 1.5)
        assert equal(rerun.run(made), rerun.run(made, first_layer=0)), site


def test_what_begins_where_is_said_by_the_intervention():
    assert Intervention(lambda: None, first_layer=3, what="nothing").first_layer == 3
    assert not Intervention(lambda: None, first_layer=3, what="nothing").changes_head
