"""Made-up runs with the tables and summaries of real ones, for looking at the report and for its tests.

`encoder()` is shaped like all-MiniLM-L6-v2, `decoder()` like a LLaMA with massive activations, `moe()`, `empty()`, `big()`, `bare()` (no
attention, no tokenizer, NaN) and `hostile()` (tokens and names that attack the reader).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from skerry.outliers import finding as fd
from skerry.run.tables import TABLES, schema

WIDE = ("resid.in", "attn.in", "attn.out", "resid.mid", "mlp.in", "mlp.out", "resid.out")
HEADED = ("attn.q", "attn.k", "attn.v", "attn.mix")


class World(NamedTuple):
    summary: fd.Summary
    tables: dict[str, pa.Table]


class Plan(NamedTuple):
    name: str
    layers: int
    width: int
    heads: int | None
    inner: int
    tokens: list[str | None]
    channels: dict[int, tuple[float, float]]  # residual channel: range in units of the median
    massive: dict[int, float]  # residual channel: value at position 0 from layer 1 on, in medians
    neuron: tuple[int, int] | None  # layer and neuron whose down projection input is huge
    sink: tuple[float, ...]  # mass on position 0 by layer
    experts: int = 0
    gated: bool = False
    length: int = 128
    samples: int = 64
    parts: tuple[str, ...] = WIDE + HEADED
    seed: int = 0
    architecture: str = "BertModel"
    bos: str = "[CLS] from the tokenizer"
    vocabulary: bool = True


class Builder:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.rng = np.random.default_rng(plan.seed)
        self.columns: dict[str, list[dict[str, object]]] = {name: [] for name in TABLES}
        self.findings: list[fd.Finding] = []
        self.sites: list[fd.SiteProfile] = []
        self.asymmetry: list[fd.ChannelAsymmetry] = []

    def add(self, table: str, rows: int, **values: object) -> None:
        self.columns[table].append({"rows": rows, **values})

    def table(self, name: str) -> pa.Table:
        parts = []
        for block in self.columns[name]:
            n = block["rows"]
            arrays = []
            for field in schema(name):
                value = block.get(field.name)
                if (
                    value is None
                    and field.type in (pa.float64(), pa.int64(), pa.int32())
                    and field.name not in ("layer", "expert")
                ):
                    value = 0
                if value is None or np.isscalar(value):
                    arrays.append(pa.array([value] * n, field.type) if value is None or isinstance(value, str)
                                  else pa.array(np.full(n, value), field.type))  # fmt: skip
                else:
                    arrays.append(pa.array(value, field.type))
            parts.append(pa.Table.from_arrays(arrays, schema=schema(name)))
        return pa.concat_tables(parts) if parts else schema(name).empty_table()

    def token(self, position: int) -> str | None:
        return self.plan.tokens[position % len(self.plan.tokens)] if self.plan.vocabulary else None

    def token_id(self, position: int) -> int:
        return 101 if position == 0 else 2000 + position % len(self.plan.tokens)

    def activation(
        self, layer, part, width, *, expert=None, median=0.3, high=None, massive=None, same_as=None
    ):
        """One site; `high`: channel -> (min, max), `massive`: channel -> value at position 0, both in units of the activation."""
        high, massive, p = high or {}, massive or {}, self.plan
        spread = median / 0.67 * np.exp(0.25 * self.rng.standard_normal(width))
        top = spread * (4 + 0.5 * self.rng.standard_normal(width)).clip(2.5)
        low, up = -top * self.rng.uniform(0.8, 1, width), top * self.rng.uniform(0.8, 1, width)
        for c, (a, b) in high.items():
            low[c], up[c] = a, b
        for c, v in massive.items():
            low[c], up[c] = min(low[c], v), max(up[c], v)
        size = np.maximum(-low, up)
        abs_max = float(size.max())
        place = {"layer": layer, "site": part, "expert": expert}
        self.add("sites", 1, **place, same_as=same_as, num_samples=p.samples, num_tokens=p.samples * p.length, num_channels=width,
                 median=median, abs_max=abs_max, min=float(low.min()), max=float(up.max()), kurtosis=3.0, rms=median * 1.5)  # fmt: skip
        centre, half = (low + up) / 2, (up - low) / 2
        order = np.argsort(-size)
        full = float(up.max() - low.min())
        wo = np.delete(np.arange(width), order[0])
        found = [*high, *massive]
        self.sites.append(fd.SiteProfile(
            layer=layer, site=part, expert=expert, same_as=same_as, abs_max=abs_max, median=median, max_to_median=abs_max / median,
            kurtosis=3 + (abs_max / median / 8) ** 2, kurtosis_channels=float((spread**4).mean() / (spread**2).mean() ** 2 + len(found)),
            num_outlier_channels=len(high), num_channels=width, range_share_top1=1 - float(up[wo].max() - low[wo].min()) / full,
            range_share_top1pct=min(1.0, 1.3 * (1 - float(up[wo].max() - low[wo].min()) / full)), gini=0.12 if not found else 0.3,
            channels_for_99=int(np.searchsorted(np.cumsum(np.sort(size**2)[::-1]) / (size**2).sum(), 0.99)) + 1,
            shift_gain=full / float(2 * half.max()), asymmetric_channels=int((np.abs(centre) > half).sum()), mean_abs_skewness=0.2,
            sign_consistency=0.98 if high else None))  # fmt: skip
        if same_as is not None:
            return
        self.add("channels", width, **place, channel=np.arange(width), count=p.samples * p.length, num_samples=p.samples, min=low, max=up,
                 mean=centre * 0.7, std=half / 3, skewness=np.sign(centre) * 0.3, kurtosis=3.2, near_zero=0.07, top_k=max(1, width // 100),
                 top=np.where(np.isin(np.arange(width), found), p.samples, 0), positive=np.where(up > -low, p.samples, 0), abs_max_mean=size * 0.9)  # fmt: skip
        self.values(place, low, up, order, massive)
        norms = np.exp(0.05 * self.rng.standard_normal(p.length)) * np.sqrt(width) * median * 1.5
        tops = np.full(
            p.length, float(size[order[0]] * 0.8 if high and not massive else np.median(size))
        ) * np.exp(0.05 * self.rng.standard_normal(p.length))
        if massive:
            tops[0] = abs_max * 0.97
        self.add("positions", p.length, **place, position=np.arange(p.length), count=p.samples, abs_max=tops / 0.95, abs_max_mean=tops,
                 norm_mean=norms)  # fmt: skip
        for c in found:
            value = float(low[c] if -low[c] > up[c] else up[c])
            at_first = c in massive
            if abs(value) / median < 20:
                continue
            self.findings.append(fd.Finding(
                kind="activation", type="massive activation" if at_first else "outlier channel", site=part, layer=layer, expert=expert, channel=c,
                position=0 if at_first else None, token=self.token(0) if at_first else None, token_id=self.token_id(0) if at_first else None,
                value=value, ratio=abs(value) / median, score=abs(value) / median / 3, recurrence=0.97, p_value=1e-30, q_value=1e-28,
                range=(float(low[c]), float(up[c])), centre=float(centre[c]), presets=("skerry", "llm.int8") if not at_first else ("skerry", "massive")))  # fmt: skip
        for c in np.argsort(-np.abs(centre))[:2] if high else []:
            self.asymmetry.append(fd.ChannelAsymmetry(layer=layer, site=part, expert=expert, channel=int(c), min=float(low[c]), max=float(up[c]),
                                  centre=float(centre[c]), half_width=float(half[c]), asymmetry=float(abs(centre[c]) / half[c])))  # fmt: skip

    def values(self, place, low, up, order, massive):
        k = 32
        channels = self.rng.choice(list(massive) or order[:3], k)
        positions = np.zeros(k, int) if massive else self.rng.integers(0, self.plan.length, k)
        size = np.where(-low[channels] > up[channels], low[channels], up[channels]) * self.rng.uniform(
            0.85, 1, k
        )
        o = np.argsort(-np.abs(size))
        tokens = [self.token(int(t)) for t in positions[o]]
        self.add("values", k, **place, rank=np.arange(k), value=size[o], sample=self.rng.integers(0, self.plan.samples, k), position=positions[o],
                 token_id=np.array([self.token_id(int(t)) for t in positions[o]]), token=tokens, channel=channels[o])  # fmt: skip

    def weight(
        self, layer, part, rows, columns, *, big: dict[tuple[int, int], float] | None = None, nan: int = 0
    ):
        scale, big = 0.03, big or {}
        self.add("matrices", 1, layer=layer, site=part, num_rows=rows, num_columns=columns, abs_max=max([0.2, *map(abs, big.values())]), median=0.02,
                 mean_abs=0.024, std=scale, kurtosis=3.4, num_nan=nan)  # fmt: skip
        if nan:
            self.add("nonfinite", 1, layer=layer, site=part, kind="nan", position=3, channel=7)
        for axis, n, m in (("row", rows, columns), ("column", columns, rows)):
            norm = scale * np.sqrt(m) * np.exp(0.06 * self.rng.standard_normal(n))
            for place, v in big.items():
                norm[place[axis == "column"]] = np.hypot(norm[place[axis == "column"]], v) * 1.6
            self.add(
                "lines",
                n,
                layer=layer,
                site=part,
                axis=axis,
                index=np.arange(n),
                norm=norm,
                mean_abs=0.024,
                std=scale,
                min=-0.2,
                max=0.2,
            )
        k = 16
        r, c = self.rng.integers(0, rows, k), self.rng.integers(0, columns, k)
        v = self.rng.choice([-1, 1], k) * np.sort(self.rng.uniform(0.14, 0.2, k))[::-1]
        for i, (place, x) in enumerate(big.items()):
            r[i], c[i], v[i] = *place, x
        self.add("entries", k, layer=layer, site=part, rank=np.arange(k), row=r, column=c, value=v)
        for (row, column), x in big.items():
            common = {
                "kind": "weight",
                "site": part,
                "layer": layer,
                "value": x,
                "ratio": abs(x) / 0.02,
                "score": 9.0,
                "presets": ("skerry",),
            }
            self.findings.append(fd.Finding(type="super weight", row=row, column=column, **common))
            self.findings.append(
                fd.Finding(type="outlier row", row=row, range=(-0.2, abs(x)), centre=0.1, **common)
            )

    def attention(self, layer, mass):
        p, heads = self.plan, self.plan.heads
        out = []
        shares = np.clip(mass + 0.25 * self.rng.standard_normal(heads) * min(mass, 0.6), 0.002, 0.98)
        causal = not p.architecture.startswith("Bert")
        for head in range(heads):
            exposure = (np.arange(p.length, 0, -1) if causal else np.full(p.length, p.length)) * float(
                p.samples
            )
            alpha = (1 - shares[head]) / p.length * np.exp(0.4 * self.rng.standard_normal(p.length))
            alpha[0] = shares[head]
            self.add("keys", p.length, layer=layer, head=head, position=np.arange(p.length), num_samples=p.samples, received=alpha * exposure,
                     exposure=exposure, alpha=alpha, sink=np.where(alpha > 0.3, p.samples, 0), value_norm=1.0)  # fmt: skip
            self.add("heads", 1, layer=layer, head=head, kv_head=head // 4, num_samples=p.samples, num_queries=p.samples * p.length, entropy=2.0,
                     entropy_uniform=np.log(p.length), max_prob=0.5, logit_min=-30.0, logit_max=14.0, value_norm=1.0)  # fmt: skip
            ratio = 0.12 if shares[head] > 0.5 else 0.8
            out.append(fd.HeadProfile(layer=layer, head=head, sink_position=0, sink_mass=float(shares[head]), sink_rate=float(shares[head] > 0.3),
                       uniform_mass=1 / p.length, entropy=2.0, relative_entropy=0.4, logit_max=14.0, logit_range=44.0, sink_logit_mass=0.0,
                       value_norm_ratio=ratio))  # fmt: skip
            if shares[head] > 0.3:
                self.findings.append(fd.Finding(
                    kind="attention", type="sink position", site="attn.probs", layer=layer, head=head, position=0, token=self.token(0),
                    token_id=self.token_id(0), value=float(shares[head]), ratio=float(shares[head]) * p.length, score=6.0, recurrence=1.0,
                    p_value=1e-20, q_value=1e-18, presets=("skerry", "gu")))  # fmt: skip
                if ratio < 0.2:
                    self.findings.append(fd.Finding(
                        kind="attention", type="small sink value", site="attn.v", layer=layer, head=head, position=0, token=self.token(0), value=0.1,
                        ratio=ratio, score=4.0, recurrence=1.0, presets=("skerry", "fesser")))  # fmt: skip
        names = [self.token(i) for i in range(6)]
        self.add("key_tokens", 6, layer=layer, token_id=np.array([self.token_id(i) for i in range(6)]), token=names, count=p.samples, num_samples=p.samples,
                 received=np.array([mass, 0.1, 0.05, 0.04, 0.03, 0.02]) * p.samples * p.length, exposure=float(p.samples * p.length), sink_heads=mass)  # fmt: skip
        return out


def build(plan: Plan, *, weights: bool = True, warnings: tuple[str, ...] = (), nan: int = 0) -> World:
    b = Builder(plan)
    heads: list[fd.HeadProfile] = []
    for layer in range(plan.layers):
        grow = 0.6 + 0.4 * (1 + layer) / plan.layers
        median = 0.15 * (1 + layer) if plan.massive else 0.3
        for part in plan.parts:
            wide = part in WIDE
            carries = part.startswith("resid") or (part in ("attn.in", "mlp.in") and not plan.massive)
            b.activation(
                layer, part, plan.width, median=median if carries else 0.2, same_as=f"{layer - 1}.resid.out" if part == "resid.in" and layer else None,
                high={c: (lo * median * grow, hi * median * grow) for c, (lo, hi) in plan.channels.items()} if wide and carries else None,
                massive={c: v * 0.3 for c, v in plan.massive.items()} if part in ("resid.mid", "resid.out", "resid.in") and 1 <= layer < plan.layers - 1 else None)  # fmt: skip
        if plan.experts:
            b.activation(layer, "mlp.router", plan.experts, median=0.5)
        for expert in range(plan.experts) if plan.experts else [None]:
            hot = plan.neuron is not None and layer == plan.neuron[0] and expert in (None, 5)
            b.activation(
                layer,
                "mlp.down.in",
                plan.inner,
                expert=expert,
                median=0.08,
                massive={plan.neuron[1]: 0.08 * 900} if hot else None,
            )
        if plan.heads:
            heads += b.attention(layer, plan.sink[layer])
        if weights:
            for part in ("w.q", "w.k", "w.v", "w.o"):
                b.weight(layer, part, plan.width, plan.width)
            row = next(iter(plan.massive), None)
            big = (
                {(row, plan.neuron[1]): 1.9}
                if plan.neuron and row is not None and layer == plan.neuron[0] and not plan.experts
                else None
            )
            b.weight(layer, "w.up", plan.inner, plan.width)
            b.weight(layer, "w.down", plan.width, plan.inner, big=big, nan=nan if layer == 1 else 0)
    if weights and plan.vocabulary:
        b.weight(None, "w.embed", 3000, plan.width)
    return World(_summary(b, heads, warnings), {name: b.table(name) for name in TABLES})


def _summary(b: Builder, heads: list[fd.HeadProfile], warnings: tuple[str, ...]) -> fd.Summary:
    p = b.plan
    layers = []
    for layer in range(p.layers):
        resid = next((s for s in b.sites if s.layer == layer and s.site == "resid.out"), None)
        mine = [h for h in heads if h.layer == layer]
        kinds = [x.kind for x in b.findings if x.layer == layer]
        mass = float(np.mean([h.sink_mass for h in mine])) if mine else None
        layers.append(fd.LayerProfile(
            layer=layer, resid_abs_max=resid and resid.abs_max, resid_median=resid and resid.median,
            down_in_abs_max=max(s.abs_max for s in b.sites if s.layer == layer and s.site == "mlp.down.in"),
            num_activation=kinds.count("activation"), num_weight=kinds.count("weight"), num_attention=kinds.count("attention"), sink_mass=mass,
            first_token_mass=mass, sink_rate=float(np.mean([h.sink_rate for h in mine])) if mine else None))  # fmt: skip
    alignment = []
    rows = sorted({str(x.row) for x in b.findings if x.row is not None})
    left = sorted(
        {str(x.channel) for x in b.findings if x.channel is not None and x.site.startswith("resid")}
    )
    if left or rows:
        shared = sorted(set(left) & set(rows))
        alignment.append(fd.Alignment(relation="outlier channels of resid.out and outlier rows of w.down", left=tuple(left), right=tuple(rows),
                         shared=tuple(shared), overlap=len(shared) / len({*left, *rows}), expected=0.004, p_value=0.002 if shared else 1.0))  # fmt: skip
    found = sorted(b.findings, key=lambda x: (x.kind == "attention", -x.ratio))
    return fd.Summary(
        run=f"runs/{p.name}-1a2b3c", findings=tuple(found), warnings=warnings,
        model=fd.ModelCard(name=p.name, architecture=p.architecture, family="bert" if "Bert" in p.architecture else "llama", confidence="declared",
                           num_layers=p.layers, hidden_size=p.width, num_heads=p.heads, num_parameters=22_700_000 if p.width < 1000 else 6_700_000_000,
                           dtype="float32", device="cpu", num_samples=p.samples, num_tokens=p.samples * p.length, tokens_per_sample=p.length, bos=p.bos,
                           corpus="the built-in corpus: prose of Python 3.11's standard library, seed 0"),
        profiles=fd.Profiles(sites=tuple(b.sites), layers=tuple(layers), heads=tuple(heads), alignment=tuple(alignment),
                             asymmetry=tuple(sorted(b.asymmetry, key=lambda a: -a.asymmetry)[:60])),
        choices={"threads": "1 (22 M parameters: a second thread costs more than it brings)", "kernels": "fallback (no compiler found)",
                 "seed": "0 (default)"},
        seconds={"load": 0.41, "measure": 7.93, "weights": 0.62, "find": 0.35, "report": 0.2})  # fmt: skip


def encoder() -> World:
    return build(Plan("all-MiniLM-L6-v2", 6, 384, 12, 1536, ["[CLS]", "the", "value", "of", "##ing", ".", "list", "[SEP]"],
                      {99: (-45.0, -6.0), 63: (4.0, 33.0), 157: (-12.0, 27.0)}, {}, None, (0.08, 0.52, 0.58, 0.49, 0.47, 0.21)))  # fmt: skip


def decoder(
    layers: int = 12,
    width: int = 768,
    inner: int = 2048,
    heads: int = 12,
    name: str = "llama-12",
    seed: int = 1,
    **more,
) -> World:
    plan = Plan(name, layers, width, heads, inner, ["<s>", "▁the", "▁of", ".", "▁\n", "▁to", ",", "▁and"],
                {int(width * 0.31): (-30.0, 22.0), int(width * 0.8): (-25.0, 26.0)},
                {width // 3: 2550.0, width * 2 // 3: -1500.0}, (1, inner * 7 // 10), (0.12, 0.3, *[0.72] * (layers - 3), 0.4), gated=True,
                length=256, samples=16, seed=seed, architecture="LlamaForCausalLM", bos="<s> from the tokenizer")  # fmt: skip
    return build(plan._replace(**more))


def moe() -> World:
    return build(Plan("tiny-mixtral", 4, 256, 8, 512, ["<s>", "▁a", "▁b", "."], {}, {17: 1200.0}, (1, 333), (0.1, 0.4, 0.6, 0.5), experts=8,
                      length=64, samples=32, seed=2, architecture="MixtralForCausalLM", bos="<s> from the tokenizer"))  # fmt: skip


def empty() -> World:
    return build(Plan("random-gpt2", 3, 64, 4, 256, ["<|endoftext|>", "Ġa", "Ġb"], {}, {}, None, (0.03, 0.03, 0.03), seed=3, length=32, samples=8,
                      architecture="GPT2LMHeadModel", bos="none: the tokenizer adds none"))  # fmt: skip


def big(parts: tuple[str, ...] = ("attn.in", "resid.mid", "mlp.in", "resid.out")) -> World:
    return decoder(32, 4096, 11008, 32, "big-32x4096", seed=4, parts=parts, length=512)


def bare() -> World:
    """No attention, no tokenizer, weights with NaN: a traced architecture."""
    plan = Plan("strange-net", 2, 48, None, 96, [None], {7: (-40.0, 10.0)}, {}, None, (), seed=5, length=32, samples=8, vocabulary=False,
                parts=("resid.in", "mlp.in", "resid.out"), architecture="StrangeNet", bos="no tokenizer: token ids were given")  # fmt: skip
    return build(
        plan,
        nan=1,
        warnings=("w.down of layer 1 holds 1 NaN entry (row 3, column 7): it is left out of all statistics",),
    )


HOSTILE = ("</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\x1b[31mred\x07", "\u202egnp.exe", "a" * 5000, "{{7*7}}", "[bold]",
           "e" + "\u0301" * 200, "\ud800")  # fmt: skip


def hostile() -> World:
    world = build(Plan("<b>evil</b> & co; rm -rf", 3, 64, 4, 128, ["tok"], {5: (-50.0, -10.0)}, {9: 900.0}, (1, 50), (0.1, 0.6, 0.5), seed=6, length=32,
                       samples=8, architecture="<i>Evil</i>", bos="</script>"), warnings=("<script>alert('warning')</script>\x1b[2J",))  # fmt: skip
    names = [t for t in HOSTILE if t != "\ud800"]  # Arrow cannot hold a lone surrogate
    tables = dict(world.tables)
    for name in ("values", "key_tokens", "tokens"):
        t = tables[name]
        i = t.schema.get_field_index("token")
        tables[name] = t.set_column(
            i,
            schema(name).field("token"),
            pa.array([names[j % len(names)] for j in range(t.num_rows)], pa.string()),
        )
    found = tuple(
        x.model_copy(update={"token": HOSTILE[i % len(HOSTILE)], "presets": ("<u>p</u>",)})
        for i, x in enumerate(world.summary.findings)
    )
    return World(world.summary.model_copy(update={"findings": found}), tables)


ALL = {"encoder": encoder, "decoder": decoder, "moe": moe, "empty": empty, "bare": bare, "hostile": hostile}
