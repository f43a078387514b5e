"""The slow, obvious twin of a scan: whole tensors caught by hand-written hooks, statistics straight from their definitions.

Knows llama, gpt2, opt, bert and gpt_neox by their modules' names and nothing of `skerry.anatomy` or `skerry.measure`, so a wrong site, a wrong
sum and a wrong count each show as a difference. No padding: every input of a batch has the same length.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from skerry.run.tables import HIGH_RATIOS, MASSIVE_RATIOS, TABLES, schema

# part -> (module in the block, which side of it); None is the block itself.
_PRE = {"resid.in": ("", "in"), "resid.out": ("", "out")}
_ACTIVATIONS = {
    "llama": _PRE | {
        "attn.in": ("input_layernorm", "out"), "attn.q": ("self_attn.q_proj", "out"), "attn.k": ("self_attn.k_proj", "out"),
        "attn.v": ("self_attn.v_proj", "out"), "attn.mix": ("self_attn.o_proj", "in"), "attn.out": ("self_attn.o_proj", "out"),
        "resid.mid": ("post_attention_layernorm", "in"), "mlp.in": ("post_attention_layernorm", "out"),
        "mlp.gate": ("mlp.gate_proj", "out"), "mlp.up": ("mlp.up_proj", "out"), "mlp.down.in": ("mlp.down_proj", "in"),
        "mlp.out": ("mlp.down_proj", "out"),
    },
    "gpt2": _PRE | {
        "attn.in": ("ln_1", "out"), "attn.q": ("attn.c_attn", "q"), "attn.k": ("attn.c_attn", "k"), "attn.v": ("attn.c_attn", "v"),
        "attn.mix": ("attn.c_proj", "in"), "attn.out": ("attn.c_proj", "out"), "resid.mid": ("ln_2", "in"), "mlp.in": ("ln_2", "out"),
        "mlp.up": ("mlp.c_fc", "out"), "mlp.down.in": ("mlp.c_proj", "in"), "mlp.out": ("mlp.c_proj", "out"),
    },
    "opt": _PRE | {
        "attn.in": ("self_attn_layer_norm", "out"), "attn.q": ("self_attn.q_proj", "out"), "attn.k": ("self_attn.k_proj", "out"),
        "attn.v": ("self_attn.v_proj", "out"), "attn.mix": ("self_attn.out_proj", "in"), "attn.out": ("self_attn.out_proj", "out"),
        "resid.mid": ("final_layer_norm", "in"), "mlp.in": ("final_layer_norm", "out"), "mlp.up": ("fc1", "out"),
        "mlp.down.in": ("fc2", "in"), "mlp.out": ("fc2", "out"),
    },
    "bert": _PRE | {
        "attn.q": ("attention.self.query", "out"), "attn.k": ("attention.self.key", "out"), "attn.v": ("attention.self.value", "out"),
        "attn.mix": ("attention.output.dense", "in"), "attn.out": ("attention.output.dense", "out"),
        "resid.mid": ("attention.output.LayerNorm", "out"), "mlp.up": ("intermediate.dense", "out"),
        "mlp.down.in": ("output.dense", "in"), "mlp.out": ("output.dense", "out"),
    },
    "gpt_neox": _PRE | {
        "attn.in": ("input_layernorm", "out"), "attn.q": ("attention.query_key_value", "hq"), "attn.k": ("attention.query_key_value", "hk"),
        "attn.v": ("attention.query_key_value", "hv"), "attn.mix": ("attention.dense", "in"), "attn.out": ("attention.dense", "out"),
        "mlp.in": ("post_attention_layernorm", "out"), "mlp.up": ("mlp.dense_h_to_4h", "out"), "mlp.down.in": ("mlp.dense_4h_to_h", "in"),
        "mlp.out": ("mlp.dense_4h_to_h", "out"),
    },
}  # fmt: skip
_BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "opt": "model.decoder.layers", "bert": "bert.encoder.layer", "gpt_neox": "gpt_neox.layers"}  # fmt: skip
_FINAL = {"llama": "model.norm", "gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm", "gpt_neox": "gpt_neox.final_layer_norm"}  # fmt: skip
# part -> parameter in the block; a list is cut from a fused one: (name, "q" | "k" | "v").
_WEIGHTS = {
    "llama": {"w.q": "self_attn.q_proj.weight", "w.k": "self_attn.k_proj.weight", "w.v": "self_attn.v_proj.weight", "w.o": "self_attn.o_proj.weight",
              "w.gate": "mlp.gate_proj.weight", "w.up": "mlp.up_proj.weight", "w.down": "mlp.down_proj.weight",
              "norm.attn": "input_layernorm.weight", "norm.mlp": "post_attention_layernorm.weight"},
    "gpt2": {"w.q": ("attn.c_attn.weight", "q"), "w.k": ("attn.c_attn.weight", "k"), "w.v": ("attn.c_attn.weight", "v"), "w.o": ("attn.c_proj.weight", "t"),
             "w.up": ("mlp.c_fc.weight", "t"), "w.down": ("mlp.c_proj.weight", "t"), "norm.attn": "ln_1.weight", "norm.attn.bias": "ln_1.bias",
             "norm.mlp": "ln_2.weight", "norm.mlp.bias": "ln_2.bias"},
    "opt": {"w.q": "self_attn.q_proj.weight", "w.k": "self_attn.k_proj.weight", "w.v": "self_attn.v_proj.weight", "w.o": "self_attn.out_proj.weight",
            "w.up": "fc1.weight", "w.down": "fc2.weight", "norm.attn": "self_attn_layer_norm.weight", "norm.attn.bias": "self_attn_layer_norm.bias",
            "norm.mlp": "final_layer_norm.weight", "norm.mlp.bias": "final_layer_norm.bias"},
    "bert": {"w.q": "attention.self.query.weight", "w.k": "attention.self.key.weight", "w.v": "attention.self.value.weight",
             "w.o": "attention.output.dense.weight", "w.up": "intermediate.dense.weight", "w.down": "output.dense.weight",
             "norm.attn.resid": "attention.output.LayerNorm.weight", "norm.attn.resid.bias": "attention.output.LayerNorm.bias",
             "norm.mlp.resid": "output.LayerNorm.weight", "norm.mlp.resid.bias": "output.LayerNorm.bias"},
    "gpt_neox": {"w.q": ("attention.query_key_value.weight", "hq"), "w.k": ("attention.query_key_value.weight", "hk"),
                 "w.v": ("attention.query_key_value.weight", "hv"), "w.o": "attention.dense.weight", "w.up": "mlp.dense_h_to_4h.weight",
                 "w.down": "mlp.dense_4h_to_h.weight", "norm.attn": "input_layernorm.weight", "norm.attn.bias": "input_layernorm.bias",
                 "norm.mlp": "post_attention_layernorm.weight", "norm.mlp.bias": "post_attention_layernorm.bias"},
}  # fmt: skip
_OUTER = {
    "llama": {"w.embed": "model.embed_tokens.weight", "w.head": "lm_head.weight", "norm.final": "model.norm.weight"},
    "gpt2": {"w.embed": "transformer.wte.weight", "w.position": "transformer.wpe.weight", "norm.final": "transformer.ln_f.weight",
             "norm.final.bias": "transformer.ln_f.bias"},
    "opt": {"w.embed": "model.decoder.embed_tokens.weight", "w.position": "model.decoder.embed_positions.weight",
            "norm.final": "model.decoder.final_layer_norm.weight", "norm.final.bias": "model.decoder.final_layer_norm.bias"},
    "bert": {"w.embed": "bert.embeddings.word_embeddings.weight", "w.position": "bert.embeddings.position_embeddings.weight",
             "w.type": "bert.embeddings.token_type_embeddings.weight", "norm.embed": "bert.embeddings.LayerNorm.weight",
             "norm.embed.bias": "bert.embeddings.LayerNorm.bias"},
    "gpt_neox": {"w.embed": "gpt_neox.embed_in.weight", "w.head": "lm_head.weight", "norm.final": "gpt_neox.final_layer_norm.weight",
                 "norm.final.bias": "gpt_neox.final_layer_norm.bias"},
}  # fmt: skip
_TOKEN_PARTS = ("resid.in", "resid.mid", "resid.out", "mlp.down.in", "mlp.out")
_DEEPEST = -1e30


def family_of(model: Any) -> str:
    return str(model.config.model_type)


def _cut(x: torch.Tensor, how: str, num_heads: int) -> torch.Tensor:
    """One of q, k, v from the last axis of a fused output: side by side, or head by head."""
    if how in ("in", "out"):
        return x
    which = "qkv".index(how[-1])
    if len(how) == 1:
        return x.chunk(3, -1)[which]
    heads = x.unflatten(-1, (num_heads, 3, -1))
    return heads[..., which, :].flatten(-2)


@contextlib.contextmanager
def _caught(model: Any):
    """Hooks on every site; yields a dict that fills with (layer, part) -> [sample, position, channel] and layer -> attention."""
    family, seen, handles = family_of(model), {}, []
    num_heads = model.config.num_attention_heads

    def catch(layer: int | None, part: str, side: str):
        def before(_, args, kwargs):
            seen[layer, part] = (args[0] if args else kwargs["hidden_states"]).detach()

        def after(_, args, output):
            x = output[0] if isinstance(output, tuple) else output
            seen[layer, part] = _cut(x, side, num_heads).detach()

        return before if side == "in" else after

    blocks = model.get_submodule(_BLOCKS[family])
    for layer, block in enumerate(blocks):
        for part, (name, side) in _ACTIVATIONS[family].items():
            module, hook = block.get_submodule(name), catch(layer, part, side)
            add = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
            handles.append(add(hook, with_kwargs=True) if side == "in" else add(hook))
    if family in _FINAL:
        final = model.get_submodule(_FINAL[family])
        handles.append(final.register_forward_hook(catch(None, "head.in", "out")))
    kept = model.config._attn_implementation
    try:
        with _explicit_attention(seen):
            model.set_attn_implementation("naive")
            yield seen
    finally:
        model.set_attn_implementation(kept)
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _explicit_attention(seen: dict[Any, Any]):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
        groups = query.shape[1] // key.shape[1]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        logits = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
        if attention_mask is not None:
            logits = logits + attention_mask[..., : key.shape[2]]
        probs = logits.softmax(-1)
        layer = sum(isinstance(k, int) for k in seen)
        seen[layer] = {"logits": logits.detach(), "probs": probs.detach(), "value": value.detach()}
        out = (probs @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous()
        return out, probs

    ALL_ATTENTION_FUNCTIONS.register("naive", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("naive", eager_mask)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("naive", None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop("naive", None)


def _forward(model: Any, batches: Any) -> dict[Any, list[Any]]:
    caught: dict[Any, list[Any]] = defaultdict(list)
    with torch.no_grad():
        for batch in batches:
            assert bool(batch.keep.all())
            with _caught(model) as seen:
                model(input_ids=batch.input_ids)
            for key, x in seen.items():
                caught[key].append(x)
    return caught


def _stacked(caught: Any, batches: Any) -> dict[tuple[int | None, str], np.ndarray]:
    shape = [b.input_ids.shape[0] for b in batches]
    return {
        key: torch.cat([p.reshape(n, -1, p.shape[-1]) for p, n in zip(parts, shape, strict=True)]).double().numpy()
        for key, parts in caught.items() if not isinstance(key, int)
    }  # fmt: skip


def naive_activations(model: Any, batches: Any) -> dict[tuple[int | None, str], np.ndarray]:
    """(layer, part) to the whole activation, [sample, position, channel]."""
    return _stacked(_forward(model, batches), batches)


def naive_tables(model: Any, batches: Any) -> dict[str, pa.Table]:
    """All tables of a run.

    Args:
        model: A model of one of the families.
        batches: Batches without padding, all of one length.
    """
    caught = _forward(model, batches)
    ids = torch.cat([b.input_ids for b in batches]).numpy()
    samples = torch.cat([b.sample for b in batches]).numpy()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    same = _same_as(family_of(model), model.config.num_hidden_layers)
    for (layer, part), x in _stacked(caught, batches).items():
        if (layer, part) not in same:
            _activation(rows, {"layer": layer, "site": part, "expert": None}, x, ids, samples)
    for (layer, part), other in same.items():
        rows["sites"].append(
            {
                "layer": layer,
                "site": part,
                "expert": None,
                "same_as": other,
                "num_channels": model.config.hidden_size,
            }
        )
    for layer in sorted(k for k in caught if isinstance(k, int)):
        whole = {n: torch.cat([p[n] for p in caught[layer]]).double().numpy() for n in caught[layer][0]}
        _attention(rows, layer, whole, ids)
    for place, w in _weights(model):
        _weight(rows, place, w)
    return {
        name: pa.Table.from_pylist(
            [{f.name: r.get(f.name) for f in schema(name)} for r in rows[name]], schema=schema(name)
        )
        for name in TABLES
    }


def _same_as(family: str, num_layers: int) -> dict[tuple[int, str], str]:
    same = {(n, "resid.in"): f"{n - 1}.resid.out" for n in range(1, num_layers)}
    if family == "bert":
        same |= {(n, "attn.in"): f"{n - 1}.resid.out" if n else "0.resid.in" for n in range(num_layers)}
        same |= {(n, "mlp.in"): f"{n}.resid.mid" for n in range(num_layers)}
    return same


def _moments(x: np.ndarray) -> dict[str, float]:
    mean = x.mean()
    m2, m3, m4 = (((x - mean) ** n).mean() for n in (2, 3, 4))
    out = {"mean": mean, "std": np.sqrt(m2)}
    with np.errstate(divide="ignore", invalid="ignore"):
        return out | {"skewness": m3 / m2**1.5, "kurtosis": m4 / m2**2}


def _activation(
    rows: Any, place: dict[str, Any], x: np.ndarray, ids: np.ndarray, samples: np.ndarray
) -> None:
    num, length, width = x.shape
    size = np.abs(x)
    near = size < 0.1 * np.sqrt((x**2).mean(2, keepdims=True))
    energy = (x**2).mean((0, 1))
    pooled = _moments(x)
    quantiles = {"median": 0.5, "q99": 0.99, "q999": 0.999, "q9999": 0.9999}
    token_var = x.var(2, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        osp = np.maximum(0, (x**4).mean(2) / token_var**2 - 3)
        oft = [((s - s.mean()) ** 4).mean() / s.var(ddof=1) ** 2 for s in x.reshape(num, -1)]
        mmr = (size.max(2) / np.median(size, 2)).mean()
    rows["sites"].append(
        place | {"num_samples": num, "num_tokens": num * length, "num_channels": width, "min": x.min(), "max": x.max(),
                 "abs_max": size.max(), "mean": x.mean(), "rms": np.sqrt((x**2).mean()), "kurtosis": pooled["kurtosis"],
                 "kurtosis_channels": (energy**2).mean() / energy.mean() ** 2, "kurtosis_oft": np.mean(oft), "kurtosis_osp": osp.mean(),
                 "max_to_median_token": mmr, "max_inf_norm": size.max((1, 2)).mean(), "zero": (x == 0).mean(), "near_zero": near.mean(),
                 "num_nan": 0, "num_inf": 0} | {n: np.quantile(size, q, method="lower") for n, q in quantiles.items()}
    )  # fmt: skip
    high = size.max(1)  # [sample, channel]
    median = np.median(high, 1, keepdims=True)
    top_k = max(1, width // 100)
    top = np.argsort(np.argsort(-high, 1, kind="stable"), 1) < top_k
    extreme = np.take_along_axis(x, size.argmax(1)[:, None], 1)[:, 0]
    for c in range(width):
        v = x[:, :, c]
        rows["channels"].append(
            place | {"channel": c, "count": v.size, "num_samples": num, "min": v.min(), "max": v.max(), "zero": (v == 0).mean(),
                     "near_zero": near[:, :, c].mean(), "num_nonfinite": 0, "top": int(top[:, c].sum()), "top_k": top_k,
                     "positive": int((extreme[:, c] > 0).sum()), "abs_max_mean": high[:, c].mean()} | _moments(v)
            | {f"high_{r}": int(((high[:, c] >= r * median[:, 0]) & (median[:, 0] > 0)).sum()) for r in HIGH_RATIOS}
        )  # fmt: skip
    for rank, at in enumerate(np.argsort(-size, axis=None, kind="stable")[:32]):
        s, t, c = np.unravel_index(at, x.shape)
        rows["values"].append(
            place
            | {
                "rank": rank,
                "value": x[s, t, c],
                "sample": samples[s],
                "position": t,
                "token_id": ids[s, t],
                "channel": c,
            }
        )
    if place["site"] in _TOKEN_PARTS:
        _tokens(rows, place, x, ids)


def _tokens(rows: Any, place: dict[str, Any], x: np.ndarray, ids: np.ndarray) -> None:
    largest, norm = np.abs(x).max(2), np.sqrt((x**2).sum(2))
    median = np.median(largest, 1, keepdims=True)
    massive = {r: (largest >= r * median) & (median > 0) for r in MASSIVE_RATIOS}
    for t in range(x.shape[1]):
        rows["positions"].append(
            place | {"position": t, "count": x.shape[0], "abs_max": largest[:, t].max(), "abs_max_mean": largest[:, t].mean(),
                     "norm_mean": norm[:, t].mean()} | {f"massive_{r}": int(m[:, t].sum()) for r, m in massive.items()}
        )  # fmt: skip
    for token in np.unique(ids):
        at = ids == token
        rows["tokens"].append(
            place | {"token_id": token, "count": int(at.sum()), "num_samples": int(at.any(1).sum()), "abs_max_mean": largest[at].mean()}
            | {f"massive_{r}": int(m[at].sum()) for r, m in massive.items()}
        )  # fmt: skip


def _attention(rows: Any, layer: int, a: dict[str, np.ndarray], ids: np.ndarray) -> None:
    logits, probs, value = a["logits"], a["probs"], a["value"]
    num, num_heads, length, _ = logits.shape
    group = num_heads // value.shape[1]
    seen = logits > _DEEPEST
    exposure = seen.sum(2)  # [sample, head, key]
    received = probs.sum(2)
    alpha = received / np.maximum(exposure, 1)
    sink = (alpha > 0.3) & (exposure >= 8)
    norm = np.sqrt((value**2).sum(3))
    entropy = -np.where(probs > 0, probs * np.log(np.where(probs > 0, probs, 1)), 0).sum(3)
    for h in range(num_heads):
        visible = logits[:, h][seen[:, h]]
        rows["heads"].append(
            {"layer": layer, "head": h, "kv_head": h // group, "num_samples": num, "num_queries": num * length, "entropy": entropy[:, h].mean(),
             "entropy_uniform": np.log(seen[:, h].sum(2)).mean(), "max_prob": probs[:, h].max(2).mean(), "logit_min": visible.min(),
             "logit_max": visible.max(), "logit_mean": visible.mean(), "logit_std": visible.std(), "sink_logit_mass": 0.0,
             "value_norm": norm[:, h // group].mean(), "num_nonfinite": 0}
        )  # fmt: skip
        for k in range(length):
            rows["keys"].append(
                {"layer": layer, "head": h, "position": k, "num_samples": num, "received": received[:, h, k].sum(),
                 "exposure": float(exposure[:, h, k].sum()), "alpha": alpha[:, h, k].mean(), "sink": int(sink[:, h, k].sum()),
                 "value_norm": norm[:, h // group, k].mean()}
            )  # fmt: skip
    for token in np.unique(ids):
        at = ids == token
        rows["key_tokens"].append(
            {"layer": layer, "token_id": token, "count": int(at.sum()), "num_samples": int(at.any(1).sum()),
             "received": received.mean(1)[at].sum(), "exposure": float(exposure.mean(1)[at].sum()), "sink_heads": sink.mean(1)[at].mean()}
        )  # fmt: skip


def _weights(model: Any):
    family, num_heads = family_of(model), model.config.num_attention_heads
    for layer, block in enumerate(model.get_submodule(_BLOCKS[family])):
        for part, name in _WEIGHTS[family].items():
            name, how = name if isinstance(name, tuple) else (name, "out")
            w = block.get_parameter(name).detach()
            if how in ("q", "k", "v", "t"):  # Conv1D holds [input, output]
                w = w if how == "t" else w.chunk(3, 1)["qkv".index(how)]
                w = w.T
            elif how != "out":
                w = _cut(w.T, how, num_heads).T
            yield {"layer": layer, "site": part, "expert": None}, w.double().numpy()
    for part, name in _OUTER[family].items():
        yield (
            {"layer": None, "site": part, "expert": None},
            model.get_parameter(name).detach().double().numpy(),
        )


def _weight(rows: Any, place: dict[str, Any], w: np.ndarray) -> None:
    w = np.atleast_2d(w)
    size = np.abs(w)
    rows["matrices"].append(
        place | {"num_rows": w.shape[0], "num_columns": w.shape[1], "min": w.min(), "max": w.max(), "abs_max": size.max(),
                 "mean_abs": size.mean(), "median": np.quantile(size, 0.5, method="lower"), "zero": (w == 0).mean(), "num_nan": 0, "num_inf": 0} | _moments(w)
    )  # fmt: skip
    for axis, lines in (("row", w), ("column", w.T)):
        for i, line in enumerate(lines):
            rows["lines"].append(
                place | {"axis": axis, "index": i, "min": line.min(), "max": line.max(), "mean_abs": np.abs(line).mean(),
                         "norm": np.sqrt((line**2).sum())} | _moments(line)
            )  # fmt: skip
    for rank, at in enumerate(np.argsort(-size, axis=None, kind="stable")[:64]):
        i, j = np.unravel_index(at, w.shape)
        rows["entries"].append(place | {"rank": rank, "row": i, "column": j, "value": w[i, j]})
