"""What a spread must say, from whole activations in float64: one input, one query and one head at a time."""

import math

import numpy as np
import torch

from skerry.anatomy.attention import naive_logits
from skerry.anatomy.change import change
from skerry.anatomy.model import run
from skerry.anatomy.sites import Site
from skerry.anatomy.watch import capture, watch


class Naive:
    """Everything from whole activations, one input and one query at a time."""

    def __init__(self, anatomy, batches, places):
        self.anatomy, self.batches = anatomy, batches
        self.inputs = []
        for i, b in enumerate(batches):
            seen = {s: x.double() for s, x in capture(anatomy, b.input_ids, keep=b.keep).items()}
            width = b.keep.shape[1]
            for s in range(len(b.keep)):
                at = [int(t) % width for t in places.carried[i][0] if int(t) // width == s]
                rest = [int(t) % width for t in places.others[i] if int(t) // width == s]
                own = {
                    k: x[s * width : (s + 1) * width] if x.dim() == 2 else x[s]
                    for k, x in seen.items()
                    if k.expert is None
                }
                keep = [t for t in range(width) if b.keep[s, t]]
                if at:
                    self.inputs.append((own, at, rest, keep))

    def vectors(self, layer, which):
        return [x[Site(layer, "attn.in")][(at, rest)[which]] for x, at, rest, _ in self.inputs]

    def participation(self, layer, which):
        per = [((x**2).sum(1) ** 2 / (x**4).sum(1)).mean() for x in self.vectors(layer, which) if len(x)]
        return float(torch.stack(per).mean())

    def constancy(self, layer, which):
        m = [(x / x.norm(dim=1, keepdim=True)).mean(0) for x in self.vectors(layer, which) if len(x)]
        return float(np.mean([m[i] @ m[j] for i in range(len(m)) for j in range(len(m)) if i != j]))

    def queries(self, probs, at, keep):
        return [q for q in keep if q not in at and bool((probs[0, q, at] > 0).any())]

    def mass(self, layer, head, uniform=False):
        per = []
        for x, at, _, keep in self.inputs:
            probs, logits = x[Site(layer, "attn.probs")], x[Site(layer, "attn.logits")]
            sink = Site(layer, "w.sink") in self.anatomy.matrices
            per.append([
                float((logits[head, q, at] > -math.inf).sum() / ((logits[head, q] > -math.inf).sum() + sink)) if uniform else float(probs[head, q, at].sum())
                for q in self.queries(probs, at, keep)
            ])  # fmt: skip
        return float(np.mean([np.mean(p) for p in per if p]))

    def value(self, x, layer, head):
        dims = self.anatomy.dims
        v = x[Site(layer, "attn.v")].unflatten(1, (dims.num_kv_heads, -1))
        return v[:, head * dims.num_kv_heads // dims.num_heads]

    def value_ratio(self, layer, head):
        per = []
        for x, at, _, keep in self.inputs:
            norm = self.value(x, layer, head).norm(dim=1)
            per.append(float(norm[at].mean() / norm[[t for t in keep if t not in at]].mean()))
        return float(np.mean(per))

    def reach(self, layer, heads, rest=False):
        w, dims = self.anatomy.weight(Site(layer, "w.o")).double(), self.anatomy.dims
        per = []
        for x, at, _, keep in self.inputs:
            probs, out = x[Site(layer, "attn.probs")], x[Site(layer, "attn.out")]
            found = []
            for q in self.queries(probs, at, keep):
                brought = torch.zeros(dims.hidden, dtype=torch.float64)
                for h in heads:
                    width = w.shape[1] // dims.num_heads
                    keys = [k for k in range(probs.shape[2]) if (k in at) != rest]
                    brought += w[:, h * width : (h + 1) * width] @ (
                        probs[h, q, keys] @ self.value(x, layer, h)[keys]
                    )
                found.append(float(brought.norm() / out[q].norm()))
            per.append(found)
        return float(np.mean([np.mean(p) for p in per if p]))


def naive_shares(anatomy, batches, places):
    """Per layer and head: clean logit above others and that without the constant direction, per input; each layer and input in a forward of its own."""
    naive, out = Naive(anatomy, batches, places), {}
    for layer in range(anatomy.dims.num_layers):
        m, c = ([x.mean(0) for x in naive.vectors(layer, which)] for which in (0, 1))
        n = 0
        for b in batches:
            for s in range(len(b.keep)):
                own, at, _, keep = naive.inputs[n]
                base = torch.stack([c[j] for j in range(len(m)) if j != n]).mean(0)
                d = torch.stack([m[j] for j in range(len(m)) if j != n]).mean(0) - base
                d /= d.norm()
                x = own[Site(layer, "attn.in")][at]
                delta = (((x - base) @ d)[:, None] * d) @ anatomy.weight(Site(layer, "w.k")).double().T
                changed = logits_with(anatomy, b, layer, [s * b.keep.shape[1] + t for t in at], delta)[s]
                old = own[Site(layer, "attn.logits")]
                queries = [q for q in keep if q not in at]
                out.setdefault(layer, []).append(
                    [levels(old, changed, h, queries, at, keep) for h in range(len(old))]
                )
                n += 1
    return {k: np.array(v) for k, v in out.items()}


def logits_with(anatomy, batch, layer, rows, delta):
    found = {}

    def edit(k, _rows):
        new = k.clone()
        new[rows] = (k[rows].double() - delta).to(k)
        return new

    look = watch(anatomy, (), on_attention=lambda v: found.__setitem__(v.layer, naive_logits(v).double()))
    with change(anatomy, {Site(layer, "attn.k"): edit}), look:
        run(anatomy, batch.input_ids, batch.keep)
    return found[layer]


def levels(old, changed, head, queries, at, keep):
    whole, without = [], []
    for q in queries:
        seen = [k for k in at if old[head, q, k] > -math.inf]
        rest = [k for k in keep if k not in at and old[head, q, k] > -math.inf]
        if seen and rest:
            base = old[head, q, rest].mean()
            whole.append(float(old[head, q, seen].mean() - base))
            without.append(float(changed[head, q, seen].mean() - base))
    return np.mean(whole), np.mean(np.square(whole)), np.mean(np.square(without))
