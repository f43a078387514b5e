"""Every attention variant: the fast path against its definition, its neutral setting, padding, cache, grouped heads, and refusals."""

from __future__ import annotations

import entmax
import pytest
import torch
from torch.nn import functional as F

from skerry.errors import MissingExtra, UnknownOption
from skerry.redesign.attend import Sink, attend, attend_eagerly
from skerry.redesign.config import DecoderConfig
from skerry.redesign.decoder import DecoderForCausalLM
from skerry.redesign.variants import variants

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
every_variant = pytest.mark.parametrize("attention", list(variants()))


def shaken(by=0.15, dtype=torch.float64, **choices):
    """A decoder with no parameter at a neutral value."""
    torch.manual_seed(0)
    model = DecoderForCausalLM(DecoderConfig(**{**SMALL, **choices})).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


# --- the definition, written from the formulas alone: x [sample position channel] to what the output projection reads -------------------


def rotated(x):
    """LLaMA's rotation, [sample head position channel]."""
    length, width = x.shape[-2:]
    angle = torch.outer(
        torch.arange(length, dtype=torch.float64), 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    )
    angle = torch.cat([angle, angle], -1).to(x)
    low, high = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-high, low], -1) * angle.sin()


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def definition(attention, layer, number, x):
    """[sample position head channel] of one attention layer."""
    v = layer.variant
    num, length, _ = x.shape
    q, k, value = (
        p(x).view(num, length, -1, 8).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    if attention == "qk-norm":
        q, k = rms(q, v.q_norm.weight), rms(k, v.k_norm.weight)
    if attention == "value-gate":
        value = value * ((value * v.gate_weight[:, None]).sum(-1) + v.gate_bias[:, None]).sigmoid()[..., None]
    q, k = rotated(q), rotated(k)
    k, value = k.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    at = torch.arange(length)
    distance = at[:, None] - at
    visible = distance >= 0
    if attention.startswith("sliding-window"):
        visible = visible & ((distance < 8) | (at < 4 if attention.endswith("sink") else False))

    def scores(q, k, scale):
        return (q @ k.mT * scale).masked_fill(~visible, -torch.inf)

    seen = visible.sum(-1, keepdim=True).double()
    logits = scores(q, k, 8**-0.5)
    p = logits.softmax(-1)

    def with_sink(logit):
        return torch.cat([logits, logit[..., None].expand(*logits.shape[:-1], 1)], -1).softmax(-1)

    if attention in ("sink-logit", "off-by-one", "sink-value"):
        logit = v.sinks if attention != "off-by-one" else torch.zeros(4, dtype=x.dtype)
        w = with_sink(logit[None, :, None])
        y = w[..., :-1] @ value
        if attention == "sink-value":
            y = y + w[..., -1:] * v.value_bias[:, None]
    elif attention in ("key-bias", "kv-bias", "context-bias"):
        w = with_sink((q @ v.key_bias[..., None])[..., 0] * 8**-0.5)
        y = (p if attention == "context-bias" else w[..., :-1]) @ value
        if attention != "key-bias":
            y = y + w[..., -1:] * v.value_bias[:, None]
    elif attention == "differential":
        even = torch.tensor([True, False] * 4)
        one, two = (scores(q[..., c], k[..., c], 0.5).softmax(-1) for c in (even, ~even))
        a1, b1, a2, b2 = v.lambdas
        start = 0.8 - 0.6 * torch.exp(torch.tensor(-0.3 * number, dtype=torch.float64))
        y = (one - ((a1 @ b1).exp() - (a2 @ b2).exp() + start) * two) @ value
        y = rms(y, v.head_norm.weight) * (1 - start)
    else:
        weights = {
            "relu": lambda: logits.relu() / seen,
            "sigmoid": lambda: (logits - seen.log()).sigmoid(),
            "sigmoid-length": lambda: (logits - torch.tensor(16.0, dtype=logits.dtype).log()).sigmoid(),
            "softpick": lambda: (
                (logits.exp() - 1).relu()
                / (
                    ((logits.exp() - 1).abs() * visible).sum(-1, keepdim=True)
                    + 1e-8 * logits.amax(-1, keepdim=True).clamp(min=0).exp()
                )
            ),
            "clipped-softmax": lambda: ((1 + 4 / 16) * p - 4 / 16).clamp(0, 1),
            "entmax15": lambda: entmax.entmax_bisect(
                logits.masked_fill(~visible, -1e4), alpha=1.5, n_iter=60
            ),
            "sparsemax": lambda: entmax.sparsemax_bisect(logits.masked_fill(~visible, -1e4), n_iter=60),
        }
        y = weights.get(attention, lambda: p)() @ value
    y = y.transpose(1, 2)
    slices = x.view(num, length, 4, 8)
    if attention == "value-bias":
        y = y + v.value_bias
    elif attention == "scaled":
        y = y * 2 * v.gate(x).sigmoid()[..., None]
    elif attention in ("scaled-1", "gate-all", "qwen-gate-headwise"):
        y = y * v.gate(x).sigmoid()[..., None]
    elif attention == "qwen-gate":
        y = y * (x @ v.gate.weight.T).sigmoid().view(y.shape)
    elif attention == "gate-linear":
        y = y * ((slices * v.gate_weight).sum(-1) + v.gate_bias).sigmoid()[..., None]
    elif attention == "gate-mlp":
        inner = ((v.inner_weight @ slices[..., None])[..., 0] + v.inner_bias).relu()
        y = y * ((inner * v.gate_weight).sum(-1) + v.gate_bias).sigmoid()[..., None]
    return y


def by_definition(model, attention, ids):
    """The logits of the whole decoder."""
    decoder = model.model
    x = decoder.embed_tokens(ids)
    ahead = 0
    if attention == "registers":  # as tokens in front, under plain softmax
        ahead = decoder.registers.shape[1]
        x = torch.cat([decoder.registers.expand(len(ids), -1, -1), x], 1)
    for number, block in enumerate(decoder.layers):
        normed = rms(x, block.input_layernorm.weight)
        y = definition(attention, block.self_attn, number, normed)
        x = x + y.flatten(2) @ block.self_attn.o_proj.weight.T
        h = rms(x, block.post_attention_layernorm.weight)
        gate, up, down = (p.weight for p in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    return rms(x, decoder.norm.weight)[:, ahead:] @ model.lm_head.weight.T


@every_variant
def test_value_and_every_gradient_are_those_of_the_definition(attention):
    model = shaken(attention=attention)
    ids = torch.randint(0, 60, (2, 13))
    direction = torch.randn(2, 13, 60, dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, truth = model(ids).logits, by_definition(model, attention, ids)
    # The package's own bisection, 60 halvings, against its exact rule.
    bound = 1e-8 if attention in ("entmax15", "sparsemax") else 1e-10
    torch.testing.assert_close(ours, truth, atol=bound, rtol=0)
    fast = torch.autograd.grad((ours * direction).sum(), parameters)
    slow = torch.autograd.grad((truth * direction).sum(), parameters)
    for name, mine, other in zip(names, fast, slow, strict=True):
        assert mine.abs().max() > 0, name
        torch.testing.assert_close(mine, other, atol=1e3 * bound, rtol=1e-6, msg=name)


@every_variant
def test_in_bf16_value_and_gradients_are_near_those_of_float64(attention):
    model = shaken(dtype=torch.float32, attention=attention)
    ids = torch.randint(0, 60, (2, 13))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    half = {name: p.grad.double() for name, p in model.named_parameters()}
    wide = model.double()
    wide.zero_grad()
    exact = wide(ids, labels=ids).loss
    exact.backward()
    # bf16 has 8 bits: 0.4 % per rounding; differences of rounded numbers (gradients of sinks and gates) keep fewer.
    assert abs(loss.item() - exact.item()) < 0.02 * exact.item()
    for name, p in wide.named_parameters():
        error = (half[name] - p.grad).norm() / p.grad.norm().clamp(min=1e-4)
        assert error < 0.2, (name, float(error))


NEUTRAL = {
    "softmax": {},
    "value-bias": {"value_bias": 0.0},
    "context-bias": {"value_bias": 0.0},
    "kv-bias": "sink",
    "key-bias": "sink",
    "sink-logit": {"sinks": -1e4},
    "sink-value": {"sinks": -1e4},
    "scaled": {"gate.weight": 0.0, "gate.bias": 0.0},
    "scaled-1": {"gate.weight": 0.0, "gate.bias": 50.0},
    "gate-all": {"gate.weight": 0.0, "gate.bias": 50.0},
    "gate-linear": {"gate_weight": 0.0, "gate_bias": 50.0},
    "gate-mlp": {"gate_weight": 0.0, "gate_bias": 50.0},
    "value-gate": {"gate_weight": 0.0, "gate_bias": 50.0},
    "clipped-softmax": {"options": {"alpha": 0.0}},
    "sliding-window": {"options": {"window": 16}},
    "sliding-window-sink": {"options": {"window": 16}},
}


@pytest.mark.parametrize("attention", NEUTRAL)
def test_at_its_neutral_setting_a_variant_is_softmax_attention(attention):
    plain = shaken(attention="softmax")
    setting = NEUTRAL[attention]
    options = setting.get("options", {}) if isinstance(setting, dict) else {}
    torch.manual_seed(1)
    config = DecoderConfig(**SMALL, attention=attention, attention_options=options)
    model = DecoderForCausalLM(config).eval().double()
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for block in model.model.layers:
            variant = block.self_attn.variant
            if (
                setting == "sink"
            ):  # no key has the logit -inf for all queries: it is the sink itself that is switched off
                variant.sink = lambda query: Sink(torch.full((4,), -torch.inf, dtype=query.dtype))
                continue
            for name, number in setting.items():
                if name != "options":
                    variant.get_parameter(name).fill_(number)
        ids = torch.randint(0, 60, (2, 13))
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-10, rtol=0)


def heads(seed=0, num=2, groups=2, length=9, width=8):
    torch.manual_seed(seed)
    q = torch.randn(num, 4, length, width, dtype=torch.float64)
    k, v = (torch.randn(num, 4 // groups, length, width, dtype=torch.float64) for _ in range(2))
    return q, k, v


def of(name, **options):
    return variants()[name](DecoderConfig(**SMALL), 0, **options).double()


def test_gates_without_bias_are_neutral_at_one_half():
    """Qwen's gate cannot be one: with W = 0 it is 1/2 everywhere."""
    x, y = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 5, 4, 8, dtype=torch.float64)
    for name in ("qwen-gate", "qwen-gate-headwise"):
        gate = of(name)
        torch.nn.init.zeros_(gate.gate.weight)
        torch.testing.assert_close(gate.after(y, x), y / 2)


def test_qk_norm_leaves_queries_and_keys_of_mean_square_one_alone():
    q, k, v = heads()
    q, k = (x / x.square().mean(-1, keepdim=True).sqrt() for x in (q, k))
    normed = of("qk-norm").before(variants_heads(q, k, v), q)
    torch.testing.assert_close(normed.query, q, atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.key, k, atol=1e-5, rtol=0)


def variants_heads(q, k, v):
    from skerry.redesign.variant import Heads

    return Heads(q, k, v)


def test_differential_attention_with_lambda_zero_is_softmax_of_the_even_channels():
    q, k, v = heads()
    plain = attend(q[..., ::2], k[..., ::2], v)
    ours = of("differential", lambda_0=0.0, normed=False).attention(q, k, v, mask=None)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["entmax15", "sparsemax", "softpick", "relu", "sigmoid", "sigmoid-length"])
def test_limits_of_the_rules_that_are_not_softmax(name):
    rule = of(name).weights
    hidden = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    equal = {
        "entmax15": [0.5, 0.5],
        "sparsemax": [0.5, 0.5],
        "softpick": [0.0, 0.0],
        "relu": [0.0, 0.0],
        "sigmoid": [1 / 3, 1 / 3],
        "sigmoid-length": [1 / 17, 1 / 17],
    }
    torch.testing.assert_close(rule(hidden), torch.tensor([[*equal[name], 0.0, 0.0]], dtype=torch.float64))
    logits = torch.tensor([[1.0, 400.0, -700.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(rule(logits)[0, 1], logits)
    assert torch.isfinite(rule(logits)).all() and torch.isfinite(grad).all()
    if name == "softpick":
        large = torch.tensor([[30.0, 31.0, 29.0]], dtype=torch.float64)
        torch.testing.assert_close(rule(large), large.softmax(-1))
        assert (rule(-large) == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_sink_is_a_scale_and_a_bias(seed):
    """(d) = (1 - p') y + p' v', (c) = y + p' v', and off-by-one is a sink logit of 0."""
    q, k, v = heads(seed)
    y = attend(q, k, v)
    wide = k.repeat_interleave(2, 1)
    lse = (q @ wide.mT * 8**-0.5).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).logsumexp(-1)
    model = of("kv-bias")
    model.reset(1.0)
    with torch.no_grad():
        share = ((q @ model.key_bias[..., None])[..., 0] * 8**-0.5 - lse).sigmoid()[..., None]
        d = model.attention(q, k, v, mask=None)
        torch.testing.assert_close(d, (1 - share) * y + share * model.value_bias[:, None], atol=1e-6, rtol=0)
        c = of("context-bias")
        c.load_state_dict(model.state_dict())
        torch.testing.assert_close(
            c.attention(q, k, v, mask=None), y + share * model.value_bias[:, None], atol=1e-6, rtol=0
        )
        one, zero = of("off-by-one"), of("sink-logit")
        torch.nn.init.zeros_(zero.sinks)
        assert torch.equal(one.attention(q, k, v, mask=None), zero.attention(q, k, v, mask=None))


@pytest.mark.parametrize("is_added", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_query", [False, True])
def test_the_kernel_of_sinks_is_exact_with_masks_and_for_every_kind_of_value(is_added, masked, per_query):
    q, k, v = (x.requires_grad_() for x in heads(groups=1))
    double = {"dtype": torch.float64, "requires_grad": True}
    logit = torch.randn(2, 4, 9, **double)
    carried = torch.randn((2, 4, 9, 8) if per_query else (4, 8), **double)
    mask = None
    if masked:
        mask = torch.ones(2, 1, 9, 9).tril().bool()
        mask[0, :, :, :3] = False
        mask = mask | torch.eye(9).bool()
    weight = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    sink = Sink(logit, carried, is_added)
    fast = attend(q, k, v, mask=mask, sink=sink)
    slow = attend_eagerly(q, k, v, mask, is_causal=True, scale=None, sink=sink)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    inputs = (q, k, v, logit, carried)
    for ours, truth in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((slow * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth, atol=1e-12, rtol=0)


@every_variant
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_padding_in_front_changes_no_logits(attention, position):
    model = shaken(attention=attention, position=position)
    ids = torch.randint(0, 60, (1, 12))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 12])
    with torch.no_grad():
        torch.testing.assert_close(
            model(padded, mask).logits[:, 3:],
            model(ids).logits,
            atol=1e-6 if position == "rope" else 1e-10,
            rtol=0,
        )


@every_variant
def test_generation_with_the_cache_is_generation_without(attention):
    model = shaken(attention=attention)
    ids = torch.randint(0, 60, (2, 5))
    plain = model.generate(ids, max_new_tokens=9, do_sample=False, use_cache=False)
    cached = model.generate(ids, max_new_tokens=9, do_sample=False, use_cache=True)
    assert plain.tolist() == cached.tolist()
    with torch.no_grad():
        whole = model(plain).logits
        out = model(plain[:, :6], use_cache=True)
        steps = [out.logits]
        # A chunk of several tokens, then one by one.
        for part in (plain[:, 6:10], *plain[:, 10:].split(1, dim=1)):
            out = model(part, past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-10, rtol=0)


@every_variant
def test_a_decoder_is_saved_and_loaded_as_it_was(attention, tmp_path):
    model = shaken(attention=attention, dtype=torch.float32, norm="dyt")
    model.save_pretrained(tmp_path)
    again = DecoderForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 60, (1, 9))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"attention": "sofmax"}, r"no attention variant 'sofmax'; did you mean .*'softmax'.*\? known: "),
        (
            {"attention": "sliding-window", "attention_options": {"windw": 3}},
            r"attention variant 'sliding-window' has no option 'windw'; did you mean 'window'\? its options are window",
        ),
        (
            {"attention": "softmax", "attention_options": {"window": 3}},
            r"attention variant 'softmax' has no option 'window'; it has no options",
        ),
        ({"norm": "layrnorm"}, r"no norm 'layrnorm'; did you mean .*'layernorm'.*\? known: rmsnorm"),
        (
            {"norm": "dyt", "norm_options": {"alhpa": 1}},
            r"norm 'dyt' has no option 'alhpa'; did you mean 'alpha'\?",
        ),
        ({"position": "rop"}, r"no position 'rop'; did you mean 'rope'\?"),
        ({"feed_forward": "swigl"}, r"no feed-forward 'swigl'; did you mean .*'swiglu'"),
        ({"attention": "sliding-window", "attention_options": {"window": -1}}, "it must be at least 1"),
        (
            {"attention": "sliding-window-sink", "attention_options": {"sinks": 0}},
            "0 sinks; it must be at least 1",
        ),
        (
            {"attention": "registers", "attention_options": {"count": 0}},
            "a count of 0; it must be at least 1",
        ),
        (
            {"attention": "gate-all", "attention_options": {"pi": 1.0}},
            "pi is 1.0; it must lie between 0 and 1",
        ),
        (
            {"attention": "clipped-softmax", "attention_options": {"alpha": -1.0}},
            "alpha must not be negative",
        ),
        ({"attention": "differential", "hidden_size": 24}, "a head of 6 channels; two rotated halves need"),
        (
            {"attention": "gate-mlp", "hidden_size": 30, "head_dim": 8},
            "30 channels do not divide into 4 slices",
        ),
        ({"norm": "dyt", "norm_options": {"alpha": 0.0}}, "it must be above 0"),
    ],
)
def test_unknown_choices_and_options_are_refused_with_near_matches(choices, words):
    with pytest.raises(UnknownOption, match=words):
        DecoderForCausalLM(DecoderConfig(**{**SMALL, **choices}))


def test_choices_are_checked_before_a_weight_is_made(monkeypatch):
    monkeypatch.setattr(
        torch.nn.Embedding, "__init__", lambda *_a, **_k: pytest.fail("built before the check")
    )
    with pytest.raises(UnknownOption):
        DecoderForCausalLM(DecoderConfig(**{**SMALL, "feed_forward": "none"}))


def test_a_missing_entmax_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "entmax", None)
    with pytest.raises(
        MissingExtra, match=r'attention \'entmax15\' needs entmax: pip install "skerry\[train\]"'
    ):
        of("entmax15")


def test_registers_need_no_place_in_labels_or_cache():
    model = shaken(attention="registers", attention_options={"count": 3})
    ids = torch.randint(0, 60, (2, 7))
    out = model(ids, labels=ids, use_cache=True, output_hidden_states=True)
    assert out.logits.shape == (2, 7, 60) and out.past_key_values.get_seq_length() == 7
    assert all(x.shape == (2, 7, 32) for x in out.hidden_states)
    assert model.model.registers.shape == (1, 3, 32)
