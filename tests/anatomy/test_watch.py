"""A watch sees everything and changes nothing, however it ends."""

import copy

import pytest
import torch
import zoo
from torch import nn
from torch.testing import assert_close

from skerry.anatomy import Site, attention, capture, experts, resolve, watch
from skerry.anatomy.family import Family, Input, Output
from skerry.anatomy.model import bind, run
from skerry.anatomy.splits import Dims
from skerry.anatomy.watch import probe, rows_of

every_family = pytest.mark.parametrize("name", zoo.NAMES)
# One of each way to be watched: through the interface, with a softmax of its own, fused, with experts, an encoder.
KINDS = ["llama", "bloom", "falcon_40b", "gpt_oss", "qwen2_moe", "bert"]
every_kind = pytest.mark.parametrize("name", KINDS)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")


def state(model):
    """Everything that a watch could leave behind."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return {
        "hooks": [(name, {h: len(getattr(m, h)) for h in HOOKS}) for name, m in model.named_modules()],
        "forwards": [name for name, m in model.named_modules() if "forward" in vars(m)],
        "configs": [copy.deepcopy(vars(c)) for c in configs.values()],
        "observers": (dict(attention._observers), dict(attention._kernels), dict(experts._observers)),
        "modes": torch.overrides._len_torch_function_stack()
        if hasattr(torch.overrides, "_len_torch_function_stack")
        else torch._C._len_torch_function_stack(),
    }


def ignore(*_):
    return None


@every_family
@pytest.mark.parametrize(("kernel", "padding"), [(None, None), (None, "right"), ("eager", "left")])
def test_the_result_is_the_same_while_watched_and_everything_is_restored(name, kernel, padding):
    model = zoo.tiny(name, attention=kernel)
    anatomy = resolve(model)
    ids, keep = zoo.tokens(model, padding=padding)
    before, plain = state(model), run(anatomy, ids, keep).last_hidden_state
    with watch(anatomy, on_activation=ignore, on_attention=ignore):
        watched = run(anatomy, ids, keep).last_hidden_state
    assert state(model) == before
    if name in zoo.ROUTED:  # the experts' sums are taken in another order
        assert_close(watched[keep], plain[keep], rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(watched[keep], plain[keep])
    assert torch.equal(run(anatomy, ids, keep).last_hidden_state[keep], plain[keep])


class Broken(Exception):
    pass


@every_kind
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["forward", "attention", "activation"])
def test_an_error_inside_a_forward_leaves_no_trace(tiny_model, name, error, place):
    model = tiny_model(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    plain, before = run(anatomy, ids).last_hidden_state, state(model)

    def fail(*_):
        raise error

    inside = anatomy.taps[Site(1, "attn.out")].module.register_forward_pre_hook(fail)
    try:
        if place != "forward":
            inside.remove()
        with (
            pytest.raises(error),
            watch(
                anatomy,
                on_activation=fail if place == "activation" else ignore,
                on_attention=fail if place == "attention" else ignore,
            ),
        ):
            run(anatomy, ids)
    finally:
        inside.remove()
    assert state(model) == before
    assert torch.equal(run(anatomy, ids).last_hidden_state, plain)


@every_kind
def test_nested_watches_both_see_everything_and_the_outer_outlives_the_inner(tiny_model, name):
    model = tiny_model(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    plain, before = run(anatomy, ids).last_hidden_state, state(model)
    seen = {"outer": [], "inner": []}

    def into(key):
        return {
            "on_activation": lambda site, x, rows: seen[key].append((site, float(x.double().sum()))),
            "on_attention": lambda view: seen[key].append((view.layer, view.num_heads)),
        }

    with watch(anatomy, **into("outer")):
        with watch(anatomy, **into("inner")):
            both = run(anatomy, ids).last_hidden_state
        once = len(seen["outer"])
        assert sorted(map(str, seen["inner"])) == sorted(map(str, seen["outer"]))
        run(anatomy, ids)
        assert len(seen["outer"]) == 2 * once
        assert len(seen["inner"]) == once
    assert_close(both, plain, rtol=1e-5, atol=1e-6)
    assert state(model) == before


@every_kind
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_watching_works_in_every_gradient_mode(tiny_model, name, mode):
    model = tiny_model(name)
    ids, _ = zoo.tokens(model)
    expected = capture(resolve(model), ids)
    with mode():
        anatomy = resolve(model)
        found = capture(anatomy, ids)
    assert anatomy.same_as == resolve(model).same_as
    assert set(found) == set(expected)
    for site, x in found.items():
        assert not x.requires_grad
        assert_close(x.clone(), expected[site], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bloom", "bert"])
def test_an_observer_gets_rows_of_channels_that_lie_side_by_side(tiny_model, name):
    model = tiny_model(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    num_tokens = ids.numel()

    def look(site, x, rows):
        assert x.dim() == 2
        assert x.stride(-1) == 1
        assert not x.requires_grad
        if rows is None:
            assert x.shape[0] == num_tokens
        else:
            assert rows.shape == x.shape[:1]
            assert (rows.diff() > 0).all()
            assert site.expert is not None

    with watch(anatomy, on_activation=look):
        anatomy.model(ids)


def test_a_fused_projection_is_shown_in_place_and_not_copied():
    x = torch.randn(2, 3, 8)
    piece = x[..., 2:5]
    assert rows_of(piece).data_ptr() == piece.data_ptr()
    assert rows_of(piece).shape == (6, 3)
    assert rows_of(x.transpose(1, 2)).stride(-1) == 1


def test_only_wanted_parts_are_shown_each_once(tiny_model):
    model = tiny_model("llama")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    shown = []
    with watch(anatomy, ["attn.q", "mlp.down.in"], on_activation=lambda site, *_: shown.append(site)):
        run(anatomy, ids)
    assert sorted(shown) == [Site(layer, part) for layer in (0, 1) for part in ("attn.q", "mlp.down.in")]


def test_a_site_that_is_another_tensor_again_is_shown_once_under_the_first_name(tiny_model):
    model = tiny_model("bert")
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    shown = []
    with watch(anatomy, ["attn.in"], on_activation=lambda site, *_: shown.append(site)):
        run(anatomy, ids)
    assert sorted(shown) == [Site(0, "resid.in"), Site(0, "resid.out")]
    found = capture(anatomy, ids, ["attn.in"])
    assert sorted(found) == [Site(0, "attn.in"), Site(1, "attn.in")]
    full = capture(anatomy, ids)
    assert torch.equal(found[Site(1, "attn.in")], full[Site(0, "resid.out")])


def test_a_captured_tensor_keeps_what_the_module_wrote_though_the_model_changes_it_later(look):
    """Falcon adds attention onto what its feed-forward wrote, in place."""
    seen = look("falcon_7b")
    for layer in seen.layers:
        x, w = seen.at(layer, "mlp.down.in"), seen.weight(layer, "w.down")
        assert_close(x @ w.T, seen.at(layer, "mlp.out"), rtol=1e-9, atol=1e-9)


class InPlace(nn.Module):
    """A block that changes the residual stream where it lies."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        x += self.down(self.up(x))
        return x


class InPlaceModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Embedding(10, 4), nn.ModuleList([InPlace(), InPlace()])

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_tensor_that_was_changed_in_place_is_another_site(mode):
    model = InPlaceModel()
    family = Family(
        name="in_place",
        model_types=frozenset(),
        blocks="layers",
        activations={"resid.in": Input(""), "mlp.up": Output("up"), "resid.out": Output("")},
        weights={},
        outer={},
    )
    anatomy = bind(model, family, Dims(2, 4, 0, 0, 0), list(model.layers))
    with mode():
        probe(anatomy)
    assert anatomy.unplaced == ()
    assert anatomy.same_as == {Site(1, "resid.in"): Site(0, "resid.out")}


def test_a_declared_place_that_does_not_fire_is_said_to_be_unplaced():
    model = InPlaceModel()
    model.layers[1].spare = nn.Linear(4, 4)
    family = Family(
        name="in_place",
        model_types=frozenset(),
        blocks="layers",
        activations={"resid.in": Input(""), "attn.q": Output("spare")},
        weights={},
        outer={},
    )
    anatomy = bind(model, family, Dims(2, 4, 0, 0, 0), list(model.layers))
    probe(anatomy)
    assert anatomy.unplaced == ("1.attn.q did not fire in a trial forward",)
    assert Site(1, "attn.q") not in anatomy.taps


def test_an_anatomy_says_what_it_holds(look):
    text = repr(look("llama").anatomy)
    assert text == (
        "<Anatomy of LlamaForCausalLM: 2 blocks, 29 activation and 21 weight sites, declared; watch(anatomy) reads them>"
    )


@pytest.mark.parametrize("name", ["bloom", "falcon_40b", "gptj"])
def test_what_an_observer_computes_is_not_taken_for_attention_by_a_watch_around_it(tiny_model, name):
    """A softmax of the inner observer runs while the outer watch looks for one."""
    model = tiny_model(name)
    anatomy = resolve(model)
    ids, _ = zoo.tokens(model)
    layers = []
    with watch(anatomy, on_attention=lambda view: layers.append(view.layer)):
        alone = capture(anatomy, ids, ["attn.probs"])
    assert layers == [0, 1]
    assert all(torch.equal(x, alone[s]) for s, x in capture(anatomy, ids, ["attn.probs"]).items())


def test_a_model_that_was_made_under_inference_mode_is_read_and_its_buffers_come_back():
    from skerry.anatomy.quiet import quiet

    with torch.inference_mode():
        model = zoo.tiny("gpt2")
        model.register_buffer("counted", torch.zeros(3))
    assert model.counted.is_inference() and Site(0, "mlp.out") in resolve(model).taps
    with quiet(model), torch.inference_mode():
        model.counted.add_(1)
    assert torch.equal(model.counted, torch.zeros(3))
