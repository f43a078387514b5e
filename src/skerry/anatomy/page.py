"""The documentation page of the sites, written from the tables that the program itself reads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping

from skerry.anatomy import families
from skerry.anatomy.sites import ACTIVATION_PARTS, NORM_BIAS, WEIGHT_PARTS, Part

_BEGIN = """# Sites

A site is a named place in a model. The words are the same for every architecture, and a word says what a tensor does in the data flow,
never what an architecture calls it: `post_attention_layernorm` stands before the feed-forward in LLaMA and behind attention in Gemma 2.

`3.mlp.down.in` is what the down projection of block 3 reads; blocks count from 0. Parts outside the blocks have no number (`w.embed`,
`head.in`). Where a block has experts, the number of the expert follows: `3.mlp.down.in[5]`; an expert that every token passes counts behind
the routed ones. `--sites` takes whole words or the beginning of some: `mlp`, `resid`, `w`.

Rows of an activation are the tokens of the batch, one sample behind the other. `channel` of q, k, v and mix counts head * channels of one
head + place in the head; grouped keys and values have fewer heads than queries.
"""

_ABSENT = """
A block has the sites that its data flow has, and no others:

- Attention and feed-forward side by side (GPT-J, Falcon, Phi, Command R): no `resid.mid`; both read `resid.in`.
- Norms behind attention and feed-forward (Gemma 2 and 3, OLMo 2, GLM-4-0414): what the norm writes is `attn.add` or `mlp.add`, and that is
  what the residual receives. Elsewhere the residual receives `attn.out` and `mlp.out` (Granite: times its multiplier).
- Norms on the residual itself (BERT, OPT-350m): `resid.mid` and `resid.out` are what these norms write.
- Fused projections (q, k, v or gate, up in one matrix) are cut into their pieces; the pieces are views where the layout allows it.
- A site that is the very same tensor as an earlier one (`1.resid.in` is `0.resid.out`; in BERT `attn.in` is `resid.in`) is measured once,
  under the earlier name, and reported under both.
"""

_WEIGHTS = f"""Matrices are given as [row, column] = [output, input], however they are stored. A norm that has a bias has a second site with `{NORM_BIAS}`
behind its name, as `norm.attn{NORM_BIAS}`. Gains are the factors that act: a norm that multiplies by (1 + weight) has gain 1 + weight. Biases
of linear layers are no sites.
"""

_FAMILIES = """Architectures that are declared. Any other is resolved from one recorded forward, which says what it could not place.
"""


def sites_page() -> str:
    """docs/sites.md."""
    parts = [
        _BEGIN,
        "## Activations\n",
        _table(ACTIVATION_PARTS),
        _ABSENT,
        "## Weights\n",
        _WEIGHTS,
        _table(WEIGHT_PARTS),
        "\n## Families\n",
        _FAMILIES,
        _families(),
    ]
    return "\n".join(parts)


def _table(parts: Mapping[str, Part]) -> str:
    rows = [f"| `{name}` | {part.axes} | {part.meaning} |" for name, part in parts.items()]
    return "\n".join(["| site | axes | meaning |", "|---|---|---|", *rows])


def _families() -> str:
    rows = []
    for name in sorted(m.name for m in pkgutil.iter_modules(families.__path__) if not m.name.startswith("_")):
        module = importlib.import_module(f"{families.__name__}.{name}")
        types = ", ".join(f"`{t}`" for t in sorted(module.FAMILY.model_types))
        rows.append(f"| {types} | {inspect.getdoc(module).splitlines()[0]} |")  # type: ignore[union-attr]
    return "\n".join(["| `model_type` | what it is |", "|---|---|", *rows, ""])
