"""What outliers do after the norm: tokens that carry a massive activation become one constant, sparse direction, whose keys draw attention
and whose values bring nothing.

Sun et al. 2024 (arXiv 2402.17762, section 4) and An et al. 2025 (arXiv 2502.06415) describe it from pictures; here each step is a number.
Inputs are the unit: a measure is taken per input over its carrying tokens (or over the queries that do not carry and can see a token that
does), then its mean over inputs. `other` is the same at other tokens. Layer = block; a row without head is the block's.

    participation ratio   (sum x^2)^2 / sum x^4 of attn.in at carrying tokens: how many channels hold the energy, 1 to the width
    constancy             mean cosine of attn.in between carrying tokens of different inputs, sum over i != j of m_i . m_j / (n (n - 1)),
                          m_i = mean unit vector of input i: 1 is one constant direction
    logit share           of the mean square of l = logit of carrying keys - mean logit of the query's other visible keys: the share that
                          goes when the keys of carrying tokens read an attn.in that is like that of other tokens along d, the constant
                          direction from the mean of other tokens to the mean of carrying tokens, taken from all other inputs. Measured
                          with key norm, rotation, cap and mask, while the stream stays untouched; below 0 when l gets larger. other: the
                          same change along a direction in which the other tokens of some input differ. A block weights its heads by the
                          attention they give. Only where l is above 0 (95 % interval).
    attention mass        attention that a query gives to carrying keys; other: what equal attention to all visible keys would give them
    value norm ratio      mean norm of value vectors at carrying tokens / at all other tokens of the input; other is 1 by definition
    reach                 |W_o sum over carrying k of p_k v_k| / |attn.out| at the query; a head's is that of its columns of W_o.
                          other: the same of all other keys together
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skerry.anatomy.model import Anatomy
from skerry.causes.carrier import Carrier, Places
from skerry.causes.sinks import Sinks
from skerry.causes.spread_logits import LogitReader
from skerry.causes.spread_numbers import Row
from skerry.causes.spread_read import Reader
from skerry.causes.spread_text import followed, measured_text
from skerry.corpus.batch import Batch

MEASURES = (
    "participation ratio",
    "constancy",
    "logit share",
    "attention mass",
    "value norm ratio",
    "reach",
)


def measure_spread(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    carriers: Sequence[Carrier],
    places: Places,
    sinks: Sinks,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Follow outliers through norm, keys, attention and values: one forward over the text and one of three copies of 32 inputs.

    Args:
        anatomy: The model.
        batches: The text that `places` counts.
        carriers: Outliers; massive activations are measured, without any the outlier channels that together are on less than a quarter of the tokens.
        places: Which tokens carry what.
        sinks: Of the model; only for the statement on learned sinks.
        seed: Of the resampling.

    Returns:
        `spread`: rows of that table, by block, measure and head; `notes`: what could not be measured, in sentences.
    """
    chosen = followed(carriers, batches, places)
    text = measured_text(anatomy, batches, chosen, places) if chosen else None
    if text is None or not text.parts:
        kinds = "no massive activation, and no outlier channel on a few tokens only"
        return {"spread": [], "notes": [f"there is {kinds}: nothing spreads from tokens to others"]}
    reader = Reader(anatomy, text)
    reader.read()
    logits = LogitReader(anatomy, text, reader.vectors, seed=seed)
    logits.read()
    shares = logits.rows(seed=seed)
    rows = [*reader.numbers.rows(seed=seed), *reader.vectors.rows(seed=seed), *shares]
    rows.sort(
        key=lambda r: (r["layer"], MEASURES.index(r["measure"]), -1 if r["head"] is None else r["head"])
    )
    return {"spread": rows, "notes": _notes(anatomy, reader, logits, rows, sinks)}


def _notes(
    anatomy: Anatomy, reader: Reader, logits: LogitReader, rows: Sequence[Row], sinks: Sinks
) -> list[str]:
    measured = {r["measure"] for r in rows}
    layers = set(range(anatomy.dims.num_layers))
    notes = []
    if not anatomy.attention:
        notes.append("spread: the model has no attention that could be watched")
    elif lacking := layers - set(anatomy.attention):
        notes.append(f"spread: there is no attention that could be watched in {_blocks(lacking)}")
    elif "attention mass" not in measured and not reader.other_shape:
        notes.append(
            "spread: no token can see another one that carries an outlier, so there is no attention to it"
        )
    if unread := set(anatomy.attention) - set(reader.vectors.at):
        notes.append(f"spread: what attention reads is not known in {_blocks(unread)}")
    if reader.without_values:
        notes.append(
            f"spread: {_blocks(reader.without_values)} show no value vectors; their norms and reach are unknown"
        )
    if reader.other_shape:
        notes.append(
            f"spread: attention of {_blocks(reader.other_shape)} has other tokens than the text; not measured"
        )
    if reader.not_the_mix:
        blocks = _blocks(reader.not_the_mix)
        notes.append(
            f"spread: something lies between attention and its output projection in {blocks}; reach is unknown"
        )
    if reader.vectors.has_broken or reader.has_broken_logits:
        notes.append("spread: some values are not finite; those tokens, or inputs, are left out")
    if "attention mass" in measured and "logit share" not in measured:
        notes.append(f"spread: no share of the logit, since {_why_no_share(logits, reader)}")
    elif "logit share" in measured and (fixed := set(anatomy.attention) - set(logits.layers)):
        notes.append(f"spread: no share of the logit in {_blocks(fixed)}: the keys cannot be changed there")
    if sinks.learned and "attention mass" in measured:
        notes.append(
            "spread: learned sink logits take a part of all attention; it is not counted as attention to tokens"
        )
    return notes


def _why_no_share(logits: LogitReader, reader: Reader) -> str:
    if not logits.layers:
        return "the keys cannot be changed in this model"
    vectors = reader.vectors
    if all(
        int(m[layer].unit.isfinite().all(1).sum()) < 2 for m in (vectors.at, vectors.other) for layer in m
    ):
        return "fewer than two inputs hold such a token: a direction of other inputs is needed"
    if all(len(x[~x.isnan()]) == 0 for x in (m.unit for m in vectors.other.values())):
        return "there are no other tokens to compare with"
    return "nowhere is the logit of keys that carry an outlier above that of others"


def _blocks(layers: set[int]) -> str:
    found = sorted(layers)
    return f"block{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
