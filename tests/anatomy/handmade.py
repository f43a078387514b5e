"""Models as people write them by hand: no configuration, no transformers, every habit that a tracer must bear."""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, VOCAB = 32, 4, 50


class FusedAttention(nn.Module):
    """q, k, v in one projection, laid out as asked; `fused` calls the fused kernel, else scores and softmax are written out."""

    def __init__(self, layout="contiguous", fused=True, width=WIDTH, heads=HEADS):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layout, self.fused, self.heads = layout, fused, heads

    def forward(self, x):
        b, t, c = x.shape
        qkv, d = self.c_attn(x), c // self.heads
        if self.layout == "contiguous":  # [q | k | v]
            q, k, v = (p.view(b, t, self.heads, d).transpose(1, 2) for p in qkv.split(c, dim=2))
        elif self.layout == "per head":  # [head, (q, k, v), channel]
            q, k, v = qkv.view(b, t, self.heads, 3, d).permute(3, 0, 2, 1, 4)
        elif self.layout == "values first":  # [v | k | q]
            v, k, q = qkv.view(b, t, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        else:  # "per channel": [channel, (q, k, v)] with heads inside
            q, k, v = (qkv[..., i::3].view(b, t, self.heads, d).transpose(1, 2) for i in range(3))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * d**-0.5
            att = att.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
            y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class PlainMLP(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.c_fc, self.act, self.c_proj = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class FusedGate(nn.Module):
    """Both halves of a gated feed-forward in one projection; `order` says which comes first, or that they alternate."""

    def __init__(self, order, act=F.silu):
        super().__init__()
        self.both, self.down = nn.Linear(WIDTH, 96, bias=False), nn.Linear(48, WIDTH, bias=False)
        self.order, self.act = order, act

    def forward(self, x):
        y = self.both(x)
        if self.order == "alternate":
            gate, up = y[..., ::2], y[..., 1::2]
        else:
            first, second = y.chunk(2, dim=-1)
            gate, up = (first, second) if self.order == "gate first" else (second, first)
        return self.down(up * self.act(gate))


class Block(nn.Module):
    def __init__(self, attention=None, mlp=None):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = attention or FusedAttention(), mlp or PlainMLP()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """The shape of countless tutorials; the head reads the last position alone when there are no targets."""

    def __init__(self, make_block=Block, num_blocks=2, vocab=VOCAB):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, WIDTH), nn.Embedding(16, WIDTH)
        self.drop = nn.Dropout(0.5)
        self.blocks = nn.ModuleList([make_block() for _ in range(num_blocks)])
        self.ln_f = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocab, bias=False)

    def forward(self, idx, targets=None):
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(idx.shape[1])))
        for block in self.blocks:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return self.head(x[:, [-1], :]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class DictBlock(Block):
    """Takes and returns a dictionary."""

    def forward(self, state):
        return {"layer": state["layer"] + 1, "hidden": super().forward(state["hidden"])}


class DictModel(nn.Module):
    """Takes the ids and nothing else; returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList([DictBlock(), DictBlock()])

    def forward(self, input_ids):
        state = {"layer": 0, "hidden": self.embed(input_ids)}
        for layer in self.layers:
            state = layer(state)
        return {"hidden": state["hidden"], "layers": state["layer"]}


class TupleBlock(Block):
    """Is called by keyword and returns (x, weights)."""

    def forward(self, *, x, extra=None):
        return super().forward(x), extra


class TupleModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleDict({"first": TupleBlock(), "second": TupleBlock()})

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers.values():
            x, _ = layer(x=x)
        return (x, None)


class Demanding(NanoGPT):
    """Its forward demands a mask and positions."""

    def forward(self, tokens, attention_mask, position_ids):
        x = self.wte(tokens) + self.wpe(position_ids)
        for block in self.blocks:
            x = block(x) * attention_mask[..., None]
        return self.ln_f(x)


class InPlaceBlock(nn.Module):
    """Writes into its tensors wherever it can."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.act, self.down = nn.Linear(WIDTH, 64), nn.ReLU(inplace=True), nn.Linear(64, WIDTH)
        self.attn = FusedAttention()

    def forward(self, x):
        x = x.clone()
        x += self.attn(self.norm(x))
        y = self.up(x)
        y.mul_(0.5)
        x.add_(self.down(self.act(y)))
        return x


class LinearAttentionBlock(nn.Module):
    """A recurrence over the tokens in place of attention, then a feed-forward."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_state, self.to_gate, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mlp = FusedGate("gate first")

    def forward(self, x):
        y = self.norm_1(x)
        state, gate, steps = self.to_state(y), torch.sigmoid(self.to_gate(y)), []
        total = torch.zeros_like(state[:, 0])
        for t in range(x.shape[1]):
            total = 0.5 * total + state[:, t]
            steps.append(total)
        x = x + self.out(torch.stack(steps, dim=1) * gate)
        return x + self.mlp(self.norm_2(x))


class TorchEncoder(nn.Module):
    """Around PyTorch's own encoder layer, whose attention hides its projections."""

    def __init__(self, batch_first=True, norm_first=False):
        super().__init__()
        self.embed, self.batch_first = nn.Embedding(VOCAB, WIDTH), batch_first
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids):
        x = self.embed(ids)
        return self.encoder(x if self.batch_first else x.transpose(0, 1))


class ExpertList(nn.Module):
    """Routed experts as a list of modules, each run on its own tokens."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3, bias=False)
        self.experts = nn.ModuleList([PlainMLP() for _ in range(3)])

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        chosen = self.gate(flat).argmax(dim=-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().flatten()
            if len(rows):
                out.index_add_(0, rows, expert(flat[rows]))
        return out.view_as(x)


class LowRank(nn.Module):
    """A linear layer with a low-rank addition around it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a, self.b = (
            nn.Linear(base.in_features, 4, bias=False),
            nn.Linear(4, base.out_features, bias=False),
        )

    def forward(self, x):
        return self.base(x) + 2.0 * self.b(self.a(x))


class Separate(nn.Module):
    """Separate q, k, v with grouped keys; optionally low-rank additions."""

    def __init__(self, wrap=lambda linear: linear):
        super().__init__()
        self.q, self.k, self.v = (wrap(nn.Linear(WIDTH, n)) for n in (WIDTH, 16, 16))
        self.o = wrap(nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (-1, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))


class Einsum(nn.Module):
    """Attention from bare parameters and einsum."""

    def __init__(self):
        super().__init__()
        for name in "qkvo":
            self.register_parameter(name, nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.2))

    def forward(self, x):
        q, k, v = (
            torch.einsum("btc,cd->btd", x, w).unflatten(-1, (HEADS, -1)) for w in (self.q, self.k, self.v)
        )
        probs = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", probs, v).flatten(2) @ self.o.T
