"""A model that nobody declared: its data flow must name the same places that a declaration would."""

import copy
from functools import cache, partial

import handmade
import pytest
import strangers
import torch
import torch.nn.functional as F
import zoo
from handmade import NanoGPT
from torch import nn

from skerry.anatomy import Site, capture, resolve, run, watch
from skerry.anatomy.resolve import trace
from skerry.anatomy.traced import numbers, some_ids
from skerry.anatomy.traced.block import cut
from skerry.corpus.batch import Batch
from skerry.errors import BadTokens, BrokenModel, UnresolvedArchitecture
from skerry.measure.meter import Meter

IDS = some_ids(48)
# What a projection reads, its weight, what it writes.
PROJECTIONS = [
    ("attn.in", "w.q", "attn.q"),
    ("attn.in", "w.k", "attn.k"),
    ("attn.in", "w.v", "attn.v"),
    ("attn.mix", "w.o", "attn.out"),
    ("mlp.in", "w.up", "mlp.up"),
    ("mlp.in", "w.gate", "mlp.gate"),
    ("mlp.in", "w.router", "mlp.router"),
    ("mlp.down.in", "w.down", "mlp.out"),
]
ALL = {part for read, _, written in PROJECTIONS for part in (read, written)}
PLAIN = ALL - {"mlp.gate", "mlp.router"} | {"resid.in", "resid.mid", "resid.out"}
GATED = PLAIN | {"mlp.gate"}


def made(make_block, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = NanoGPT(make_block, **kwargs)
    zoo.randomize(model, torch.Generator().manual_seed(seed))
    return model.eval()


@cache
def resolved(name):
    """The anatomy of an undeclared architecture, resolved once."""
    return resolve(strangers.stranger(name))


def parts(anatomy, layer=0):
    return {site.part for site in anatomy.taps if site.layer == layer and site.expert is None}


def assert_projections_hold(anatomy, found, *, at_least=1):
    """Every weight turns what its site reads into what its site writes, up to a bias that is the same for every token."""
    checked = 0
    for layer in range(anatomy.dims.num_layers):
        for read, weight, written in PROJECTIONS:
            sites = Site(layer, read), Site(layer, written), Site(layer, weight)
            if sites[0] in found and sites[1] in found and sites[2] in anatomy.matrices:
                rest = found[sites[1]] - found[sites[0]] @ anatomy.weight(sites[2]).T
                assert (rest - rest.mean(0)).abs().max() < 1e-4 * (1 + found[sites[1]].abs().max()), sites
                checked += 1
    assert checked >= at_least


# Against the declarations


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_trace_finds_what_the_family_declares(name):
    model = zoo.tiny(name)
    ids, _ = zoo.tokens(model)
    declared, traced = resolve(model), trace(model)
    assert traced.family == "traced" and declared.family != "traced"
    assert traced.dims == declared.dims
    assert traced.same_as == declared.same_as
    before, after = capture(declared, ids), capture(traced, ids)
    assert list(map(str, after)) == list(map(str, before))
    for site, x in before.items():
        assert torch.equal(after[site].nan_to_num(), x.nan_to_num()), str(site)
    assert traced.weight_sites == declared.weight_sites
    for site in declared.weight_sites:
        assert torch.equal(traced.weight(site), declared.weight(site)), str(site)
    assert traced.unplaced == ()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss", "bert"])
def test_the_kernel_and_the_dtype_do_not_matter(name):
    model = zoo.tiny(name, attention="eager", dtype=torch.bfloat16)
    ids, _ = zoo.tokens(model)
    declared, traced = resolve(model), trace(model)
    before, after = capture(declared, ids), capture(traced, ids)
    assert list(after) == list(before)
    assert all(torch.equal(after[s].nan_to_num(), x.nan_to_num()) for s, x in before.items())
    assert traced.weight_sites == declared.weight_sites


def test_a_wrapper_that_moves_the_modules_of_a_declared_family_is_traced():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids, **kwargs):
            return self.inner(input_ids, **kwargs)

    anatomy = resolve(Wrapper(zoo.tiny("llama")))
    assert anatomy.family == "traced" and parts(anatomy) == GATED and sorted(anatomy.attention) == [0, 1]


# Architectures of transformers that nobody declared

# name -> (linear layers with a role, of how many, blocks with visible attention, parts of the last block)
EXPECTED = {
    "mpt": (8, 8, 2, PLAIN),
    "codegen": (8, 8, 2, PLAIN - {"resid.mid"}),
    "xglm": (12, 12, 2, PLAIN),
    "gpt_bigcode": (8, 8, 2, PLAIN),
    "gpt_neo": (12, 12, 2, PLAIN),
    "ctrl": (12, 12, 2, PLAIN),
    "openai-gpt": (8, 8, 2, PLAIN),
    "persimmon": (8, 8, 2, PLAIN),
    "nemotron": (12, 12, 2, PLAIN),
    "biogpt": (12, 12, 2, PLAIN),
    "modernbert": (8, 8, 2, GATED),
    "big_bird": (12, 12, 2, PLAIN),
    "lfm2": (14, 14, 2, GATED),
    "bart": (12, 12, 2, PLAIN),
    "t5": (12, 12, 2, PLAIN),
    "albert": (6, 6, 1, PLAIN),
    "deberta-v2": (16, 16, 2, PLAIN - {"attn.q", "attn.k"}),
    "xlnet": (4, 4, 2, {"resid.in", "resid.mid", "mlp.in", "mlp.up", "mlp.down.in", "mlp.out", "resid.out"}),
    "fnet": (4, 4, 0, {"resid.in", "resid.mid", "mlp.in", "mlp.up", "mlp.down.in", "mlp.out", "resid.out"}),
    "longformer": (4, 12, 0, {"resid.in", "resid.mid", "mlp.in", "mlp.up", "mlp.down.in", "mlp.out", "resid.out"}),
    "reformer": (4, 11, 0, {"resid.in", "mlp.in", "mlp.up", "mlp.down.in", "mlp.out", "resid.out"}),
    "deepseek_v3": (13, 17, 2, {"resid.in", "attn.in", "attn.q", "attn.v", "attn.mix", "attn.out", "resid.mid", "mlp.in", "mlp.router", "mlp.out", "resid.out"}),
    "qwen3_next": (14, 17, 1, {"resid.in", "attn.in", "attn.q", "attn.k", "attn.v", "attn.mix", "attn.out", "resid.mid", "mlp.in", "mlp.router", "mlp.out", "resid.out"}),
    "mamba": (0, 8, 0, {"resid.in", "resid.out"}),
    "mamba2": (0, 4, 0, {"resid.in", "resid.out"}),
    "falcon_mamba": (0, 8, 0, {"resid.in", "resid.out"}),
    "rwkv": (4, 14, 0, {"resid.in", "mlp.in", "mlp.up", "mlp.down.in", "mlp.out", "resid.out"}),
    "jamba": (10, 14, 1, GATED),
    "recurrent_gemma": (13, 19, 1, GATED),
    "bamba": (10, 12, 1, GATED),
}  # fmt: skip


@pytest.mark.parametrize("name", strangers.CONFIGS)
def test_an_undeclared_architecture_is_placed_as_far_as_its_data_flow_shows(name):
    placed, total, attended, found_parts = EXPECTED[name]
    anatomy = resolved(name)
    last = anatomy.dims.num_layers - 1
    assert anatomy.confidence.startswith(f"traced from one forward: {placed} of {total} linear layers in ")
    assert len(anatomy.attention) == attended
    assert parts(anatomy, last) == found_parts
    found = capture(anatomy, IDS + 3)
    assert_projections_hold(anatomy, found, at_least=0 if placed == 0 or name in ("xlnet",) else 1)
    for layer in range(last):
        assert torch.equal(found[Site(layer, "resid.out")], found[Site(layer + 1, "resid.in")])
    for layer in anatomy.attention:
        probs = found[Site(layer, "attn.probs")]
        assert probs.shape[:2] == (2, anatomy.dims.num_heads)
        torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs.sum(-1)))


@pytest.mark.parametrize("name", strangers.CONFIGS)
def test_every_place_of_a_stranger_can_be_measured(name):
    anatomy, ids = resolved(name), torch.randint(4, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    meter = Meter(anatomy)
    meter.read(Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(3)))
    measured = {anatomy.same_as.get(site, site) for site in anatomy.taps}
    assert measured <= set(meter.activations) and sorted(meter.attentions) == sorted(anatomy.attention)


@pytest.mark.parametrize("name", ["mpt", "gpt_neo", "nemotron", "persimmon", "biogpt", "jamba"])
def test_the_residual_stream_of_a_stranger_adds_up(name):
    anatomy = resolved(name)
    found, last = capture(anatomy, IDS + 3), anatomy.dims.num_layers - 1
    at = {part: found[Site(last, part)] for part in parts(anatomy, last)}
    torch.testing.assert_close(at["resid.mid"], at["resid.in"] + at["attn.out"])
    torch.testing.assert_close(at["resid.out"], at["resid.mid"] + at["mlp.out"])


def test_a_state_space_model_is_scanned_through_its_stream_and_says_what_has_no_role():
    anatomy = resolved("mamba")
    assert (
        "blocks 0 to 1: mixer.x_proj (linear 48 -> 16) has no role; its input and output are not measured"
        in anatomy.unplaced
    )
    assert "blocks 0 to 1: mixer.A_log (parameter 48 x 4) has no role; it is not measured" in anatomy.unplaced
    assert anatomy.dims.num_heads == 0
    assert {str(s) for s in anatomy.weight_sites} == {"w.embed", "norm.final"}


def test_blocks_may_differ_from_each_other():
    anatomy = resolved("jamba")
    assert sorted(anatomy.attention) == [1] and "attn.q" not in parts(anatomy, 0)
    assert (
        "block 0: mamba.in_proj (linear 32 -> 128) has no role; its input and output are not measured"
        in anatomy.unplaced
    )
    assert anatomy.confidence.endswith("attention seen in 1 of 2, feed-forward in 2 of 2")


def test_a_block_that_runs_several_times_is_one_layer_and_says_so():
    anatomy = resolved("albert")
    assert anatomy.dims.num_layers == 1
    assert (
        "block 0: runs 3 times in one forward (shared weights); its statistics pool all 3 runs"
        in anatomy.unplaced
    )
    shown = []
    with watch(anatomy, ["mlp.in"], on_activation=lambda site, x, rows: shown.append(str(site))):
        run(anatomy, IDS)
    assert shown == ["0.mlp.in"] * 3


def test_of_an_encoder_and_a_decoder_the_encoder_is_read():
    anatomy = resolved("t5")
    assert (
        anatomy.unplaced[0]
        == "the decoder is not measured: of a model with encoder and decoder, the encoder is read"
    )
    assert type(anatomy.trunk).__name__ == "T5Stack"


def test_a_layer_that_runs_twice_in_a_block_is_not_measured_and_its_weight_is():
    anatomy = resolved("deberta-v2")
    sentence = "blocks 0 to 1: attn.k is not measured: the module key_proj that reads or writes it runs 2 times in one forward"
    assert sentence in anatomy.unplaced
    assert Site(0, "w.k") in anatomy.matrices


def test_a_low_rank_chain_has_its_input_and_its_output_and_no_weight():
    anatomy = resolved("deepseek_v3")
    found = capture(anatomy, IDS, ["attn.in", "attn.q"])
    assert (found[Site(0, "attn.in")].shape, found[Site(0, "attn.q")].shape) == ((16, 32), (16, 64))
    assert Site(0, "w.q") not in anatomy.matrices
    assert (
        "blocks 0 to 1: w.q is not measured: self_attn.q_b_proj ends a chain of layers and does not read attn.in"
        in anatomy.unplaced
    )


def test_positions_may_come_before_samples():
    """XLNet keeps [position, sample, channel] inside; the rows that are shown are sample by sample."""
    anatomy = resolved("xlnet")
    found = capture(anatomy, IDS, ["resid.out"])
    with torch.no_grad():
        hidden = anatomy.model(IDS, output_hidden_states=True).hidden_states[1]
    assert torch.equal(found[Site(0, "resid.out")], hidden.flatten(0, 1))


# Models written by hand


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "per head", "values first", "per channel"])
def test_a_fused_projection_is_cut_where_the_attention_reads_it(layout, fused):
    model = made(lambda: handmade.Block(handmade.FusedAttention(layout, fused)))
    anatomy = resolve(model)
    assert parts(anatomy) == PLAIN and anatomy.unplaced == ()
    found, views = capture(anatomy, IDS), {}
    assert_projections_hold(anatomy, found, at_least=12)
    with watch(anatomy, on_attention=lambda view: views.setdefault(view.layer, view)):
        run(anatomy, IDS)
    assert (anatomy.dims.num_heads, anatomy.dims.num_kv_heads, anatomy.dims.head_dim) == (4, 4, 8)
    heads = {n: found[Site(0, f"attn.{n}")].view(2, 8, 4, 8).transpose(1, 2) for n in "qkv"}
    assert torch.equal(heads["v"], views[0].value)
    logits = (heads["q"] @ heads["k"].transpose(-1, -2)) * 8**-0.5
    seen = found[Site(0, "attn.logits")]
    torch.testing.assert_close(seen[seen.isfinite()], logits[seen.isfinite()])


@pytest.mark.parametrize(
    ("act", "order"),
    [
        (F.silu, "gate first"),
        (F.silu, "up first"),
        (F.silu, "alternate"),
        (F.gelu, "gate first"),
        (F.relu, "up first"),
        (torch.sigmoid, "alternate"),
        (lambda x: x * torch.sigmoid(1.7 * x), "gate first"),
        (lambda x: 0.5 * x * (1 + torch.tanh(x)), "up first"),
    ],
    ids=[
        "silu",
        "silu-up",
        "silu-alternate",
        "gelu",
        "relu",
        "sigmoid",
        "silu written out",
        "tanh written out",
    ],
)
def test_the_gate_is_the_side_with_the_activation(act, order):
    anatomy = resolve(made(lambda: handmade.Block(mlp=handmade.FusedGate(order, act))))
    assert parts(anatomy) == GATED
    found = capture(anatomy, IDS)
    at = {part: found[Site(0, part)] for part in ("mlp.gate", "mlp.up", "mlp.down.in")}
    torch.testing.assert_close(act(at["mlp.gate"]) * at["mlp.up"], at["mlp.down.in"])
    assert_projections_hold(anatomy, found)


def test_a_product_without_an_activation_has_no_gate():
    anatomy = resolve(made(lambda: handmade.Block(mlp=handmade.FusedGate("gate first", lambda x: x))))
    assert parts(anatomy) == PLAIN - {"mlp.up"}
    assert (
        "blocks 0 to 1: the feed-forward multiplies two projections (mlp.both) and which of them is the gate could not be told"
        in anatomy.unplaced
    )


def test_what_a_hand_written_model_has_around_its_blocks_is_found():
    model = made(handmade.Block)
    anatomy = resolve(model)
    expected = {"w.embed": model.wte, "w.position": model.wpe, "w.head": model.head, "norm.final": model.ln_f}
    for part, module in expected.items():
        assert anatomy.weight(Site(None, part)).data_ptr() == module.weight.data_ptr()
    with torch.no_grad():
        logits, _ = model(IDS)
    found = capture(anatomy, IDS, ["head.in"])[Site(None, "head.in")].view(2, 8, -1)
    torch.testing.assert_close(found[:, -1] @ model.head.weight.T, logits[:, 0])


def test_a_tied_head_is_left_out():
    model = made(handmade.Block)
    model.head.weight = model.wte.weight
    assert Site(None, "w.head") not in resolve(model).matrices


def as_list():
    return nn.Sequential(
        nn.Embedding(50, 32), nn.Dropout(), *(handmade.Block() for _ in range(3)), nn.LayerNorm(32), nn.Linear(32, 50)
    )  # fmt: skip


class Attributes(nn.Module):
    """Blocks that are attributes and no list."""

    def __init__(self):
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(50, 32), handmade.Block(), handmade.Block()

    def forward(self, ids):
        return self.two(self.one(self.embed(ids)))


@pytest.mark.parametrize(
    ("make", "layers", "found"),
    [
        (handmade.TupleModel, 2, PLAIN),
        (handmade.DictModel, 2, PLAIN),
        (handmade.Demanding, 2, PLAIN),
        (partial(NanoGPT, handmade.InPlaceBlock), 2, PLAIN),
        (partial(NanoGPT, lambda: handmade.Block(handmade.Separate())), 2, PLAIN),
        (partial(NanoGPT, vocab=3), 2, PLAIN),
        (partial(NanoGPT, num_blocks=1), 1, PLAIN),
        (as_list, 3, PLAIN),
        (Attributes, 2, PLAIN),
        (partial(NanoGPT, lambda: handmade.Block(handmade.Einsum())), 2, PLAIN - {"attn.q", "attn.k", "attn.v", "attn.mix"}),
        (handmade.TorchEncoder, 2, PLAIN - {"attn.q", "attn.k", "attn.v", "attn.mix"}),
        (partial(handmade.TorchEncoder, norm_first=True), 2, PLAIN - {"attn.q", "attn.k", "attn.v", "attn.mix"}),
        (partial(handmade.TorchEncoder, batch_first=False), 2, PLAIN - {"attn.q", "attn.k", "attn.v", "attn.mix"}),
        (partial(NanoGPT, lambda: handmade.Block(mlp=handmade.ExpertList())), 2, {p for p in PLAIN if "mlp" not in p}),
        (partial(NanoGPT, handmade.LinearAttentionBlock), 2, {p for p in GATED if "attn" not in p}),
    ],
    ids=["tuples and keywords", "dictionaries", "demanding", "in place", "grouped", "three tokens", "one block", "sequential",
         "attributes", "einsum", "torch encoder", "torch pre-norm", "torch positions first", "list of experts", "recurrence"],
)  # fmt: skip
def test_every_habit_of_hand_written_models_is_borne(make, layers, found):
    torch.manual_seed(0)
    model = make().eval()
    anatomy = resolve(model)
    assert anatomy.dims.num_layers == layers and anatomy.config is None
    assert parts(anatomy) == found
    assert Site(None, "w.embed") in anatomy.matrices
    assert_projections_hold(anatomy, capture(anatomy, IDS % 3), at_least=2 if "attn.q" in found else 1)


def test_a_parameter_used_without_a_module_has_its_weight_placed_and_its_tensors_named_as_missing():
    anatomy = resolve(made(lambda: handmade.Block(handmade.Einsum())))
    assert torch.equal(anatomy.weight(Site(0, "w.q")), anatomy.model.blocks[0].attn.q.T)
    assert torch.equal(anatomy.weight(Site(0, "w.o")), anatomy.model.blocks[0].attn.o)
    assert "blocks 0 to 1: attn.q is not measured: no module reads or writes it by itself" in anatomy.unplaced


def test_scores_inside_one_fused_function_are_said_to_be_hidden():
    anatomy = resolve(handmade.TorchEncoder().eval())
    assert (
        "blocks 0 to 1: attention is computed where its scores cannot be read; attn.logits and attn.probs are not measured"
        in anatomy.unplaced
    )
    mha = anatomy.model.encoder.layers[0].self_attn
    assert torch.equal(anatomy.weight(Site(0, "w.k")), mha.in_proj_weight[32:64])


def test_a_list_of_experts_is_one_sentence():
    anatomy = resolve(made(lambda: handmade.Block(mlp=handmade.ExpertList())))
    assert (
        "blocks 0 to 1: mlp.experts.*.c_fc (linear 32 -> 128) has no role; its input and output are not measured"
        in anatomy.unplaced
    )


def test_a_low_rank_addition_is_said_to_be_missing():
    anatomy = resolve(made(lambda: handmade.Block(handmade.Separate(handmade.LowRank))))
    assert "blocks 0 to 1: attn.q.base is measured alone, without attn.q.b beside it" in anatomy.unplaced
    assert torch.equal(anatomy.weight(Site(0, "w.q")), anatomy.model.blocks[0].attn.q.base.weight)


@pytest.mark.filterwarnings("ignore")
def test_quantized_layers_are_measured_without_their_weights():
    model = made(handmade.Block)
    packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    anatomy = resolve(packed)
    assert parts(anatomy) == PLAIN
    sentence = "blocks 0 to 1: mlp.c_fc (linear 32 -> 128) keeps its weights packed; they are not measured"
    assert sentence in anatomy.unplaced
    assert "w.up" not in {site.part for site in anatomy.weight_sites}


def test_norms_with_an_offset_and_without_a_weight_are_told_apart():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(0.1 * torch.randn(32))

        def forward(self, x):
            return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)

    def block():
        made_block = handmade.Block()
        made_block.ln_1, made_block.ln_2 = Offset(), nn.LayerNorm(32, elementwise_affine=False)
        return made_block

    model = NanoGPT(block).eval()
    anatomy = resolve(model)
    torch.testing.assert_close(anatomy.weight(Site(0, "norm.attn")), 1 + model.blocks[0].ln_1.weight.detach())
    assert Site(0, "norm.mlp") not in anatomy.matrices and "resid.mid" in parts(anatomy)


# Calling


def test_a_mask_is_handed_on_and_refused_where_the_model_takes_none():
    keep = torch.ones(2, 8, dtype=torch.bool)
    keep[1, 5:] = False
    demanding = resolve(handmade.Demanding().eval())
    found = capture(demanding, IDS, ["resid.in"], keep)
    assert found[Site(1, "resid.in")].view(2, 8, -1)[1, 5:].abs().max() == 0
    plain = resolve(made(handmade.Block))
    with pytest.raises(
        BadTokens, match=r"NanoGPT.forward takes no attention mask.*give samples of one length"
    ):
        capture(plain, IDS, ["resid.in"], keep)
    assert len(capture(plain, IDS, ["resid.in"], keep | True)) == 2


class TwoTexts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Embedding(9, 8), nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, source, target):
        return self.inner(self.embed(source), self.embed(target))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), UnresolvedArchitecture,
         "Sequential has no list of blocks that hand a residual stream .* to each other; .* give the inner module"),
        (lambda: nn.Linear(4, 4), UnresolvedArchitecture, "Linear could not run on 2 x 8 token ids: RuntimeError: .*"),
        (TwoTexts, UnresolvedArchitecture, "the forward of TwoTexts demands target, which cannot be made from token ids; give"),
        (nn.Identity, BrokenModel, "Identity has no parameters; give the whole model"),
        (lambda: NanoGPT().to("meta"), BrokenModel, "29 parameters of NanoGPT are on the meta device .* no values; load the weights"),
        (lambda: zoo.tiny("llama").to("meta"), BrokenModel, "21 parameters of LlamaForCausalLM are on the meta device"),
    ],
    ids=["no blocks", "no ids", "two texts", "no parameters", "meta", "declared on meta"],
)  # fmt: skip
def test_what_cannot_be_resolved_is_refused_with_a_reason(make, error, message):
    with pytest.raises(error, match=message):
        resolve(make())


# No trace is left


class Counting(handmade.Block):
    """Changes a buffer, replaces another and draws a random number in every forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        self.count += 1
        self.scale = self.scale * 2
        return super().forward(x) + 0 * torch.rand(1)


@pytest.mark.parametrize(
    "make", [partial(NanoGPT, Counting), partial(zoo.tiny, "llama"), partial(zoo.tiny, "mixtral")]
)
def test_resolving_leaves_no_trace(make):
    model = make().train()
    if isinstance(model, NanoGPT):
        model.drop.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    resolve(model)
    trace(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_forward_that_fails_leaves_no_trace_either():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    with pytest.raises(UnresolvedArchitecture):
        resolve(model)
    assert model[1].training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.softmax(torch.zeros(2), 0).tolist() == [0.5, 0.5]


# Small parts


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 5, 16, 50, 50257])
def test_trial_ids_are_in_the_vocabulary_and_distinct_where_they_can_be(vocabulary):
    ids = some_ids(vocabulary)
    assert ids.shape == (2, 8) and int(ids.min()) >= 0 and int(ids.max()) < vocabulary
    assert len(ids.unique()) == min(16, vocabulary)


@pytest.mark.parametrize(
    "columns",
    [range(8, 16), [0, 1, 6, 7, 12, 13], [2, 3, 8, 9, 14, 15], [5, 3, 1], [0, 1, 2, 6, 7], range(0, 18, 3)],
)
def test_a_cut_takes_the_columns_in_their_order(columns):
    x = torch.randn(3, 18)
    assert torch.equal(cut(tuple(columns), 18)(x, None), x[:, list(columns)])


def test_block_numbers_in_words():
    assert numbers([3]) == "block 3"
    assert numbers([2, 0, 1]) == "blocks 0 to 2"
    assert numbers([0, 2, 5]) == "blocks 0, 2 and 5"
