"""PrefixQuant: the tokens that attract outliers stand in the cache before every text, so that no token of the text becomes one.

    M_t = max_j |x_tj| at mlp.down.in        token t is an outlier where M_t > 64 median_t M_t, in any block
    n = ceil(max over blocks of the mean number of outlier tokens per input)
    prefix = the n - 1 most frequent outlier tokens that do not begin an input, then the beginning-of-sequence token

Chen et al. 2024 (arXiv 2410.05265), section 4.2; 64 is their eta (option `ratio`). Without a beginning-of-sequence token the prefix is the n
most frequent ones. The prefix is tried: the text is read behind it, and where it leaves as many outlier tokens it is not proposed.
Only causal models: in an encoder the prefix would read the text, and could not be computed once. A checkpoint holds no cache.

Differs from all others here: no weight, grid or activation is changed, only what stands before the text.
Limit: without outlier tokens the prefix is empty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skerry.anatomy.dense import Dense, dense_maps
from skerry.anatomy.load import max_positions
from skerry.anatomy.model import Anatomy, run, text_config
from skerry.anatomy.quiet import quiet
from skerry.anatomy.watch import trial_ids
from skerry.causes.outcome import last_hidden
from skerry.corpus.batch import Batch
from skerry.errors import EmptyBatch, NotPossible
from skerry.impact.calibrate import check_finite
from skerry.impact.rows import RowEdit, Rows, change_rows
from skerry.run import Progress
from skerry.tame.export_refuse import RUNTIME
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import check_between, take_options

RATIO = 64.0


class Sizes(NamedTuple):
    """M_t of one batch."""

    batch: Batch
    by_layer: dict[int, Float[Tensor, "sample position"]]


def find(job: Job) -> Found:
    """The tokens of the prefix."""
    options = take_options(job.options, "prefix", ratio=RATIO)
    ratio = check_between(options["ratio"], 1.0, float("inf"), "prefix: option 'ratio'")
    anatomy = job.anatomy
    downs = [d for d in dense_maps(anatomy) if "w.down" in d.pieces]
    if not downs:
        raise NotPossible(
            "outlier tokens are told at the input of down projections, and no block of this model has one"
        )
    if not is_causal(anatomy):
        raise NotPossible(
            "a prefix can be computed once only where no token reads those behind it, and in this model the first tokens do: it is an encoder"
        )
    sizes = read_sizes(anatomy, downs, job.batches, job.progress, "prefix: outlier tokens")
    limits = {layer: ratio * _median(sizes, layer) for layer in sizes[0].by_layer}
    before = _num_outliers(sizes, limits)
    length = math.ceil(max(before.values()))
    found = Found()
    if not length:
        found.notes.append(
            f"no token's largest |x| at mlp.down.in is above {ratio:g} x the median: the prefix is empty"
        )
        return found
    prefix = choose_prefix(sizes, limits, length, _begin_of_sequence(job))
    after = _num_outliers(
        read_sizes(
            anatomy, downs, _behind(anatomy, job.batches, prefix), job.progress, "prefix: the text behind it"
        ),
        limits,
        skip=len(prefix),
    )
    most, rest = max(before.values()), max(after.values())
    told = f"outlier tokens per input: {most:.2f}, behind the prefix {list(prefix)} {rest:.2f}"
    if rest >= most:
        found.notes.append(f"{told}. It takes none away, so the prefix is empty")
        return found
    found.notes.append(told)
    found.prefix, found.no_export = prefix, RUNTIME["prefix tokens"]
    return found


def is_causal(anatomy: Anatomy) -> bool:
    """Whether another last token leaves what stands before it alone."""
    ids = trial_ids(anatomy.config, 6)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with quiet(anatomy.model):
        one, two = (last_hidden(run(anatomy, x))[0, :-1].float() for x in (ids, other))
    # A model that gives NaN here is not taken for an encoder: reading the text says where the NaN is.
    return not float((one - two).abs().max()) > 1e-3 * float(one.abs().max())


def read_sizes(
    anatomy: Anatomy, downs: Sequence[Dense], batches: Sequence[Batch], progress: Progress, stage: str
) -> list[Sizes]:
    """M_t of every block and token; experts of a block together.

    Raises:
        EmptyBatch: There is no text.
        BrokenModel: NaN in what a map reads; the input, the block and the map are named.
        NotPossible: The forward does not tell which row is which token.
    """
    if not sum(b.num_tokens for b in batches):
        raise EmptyBatch("prefix: calibration needs text, and no token was given")
    found: list[Sizes] = []

    def reader(dense: Dense) -> RowEdit:
        def read(x: Tensor, places: Rows | None) -> Tensor:
            if places is None:
                raise NotPossible(f"the forward does not tell which row of {dense.name} is which token")
            check_finite(x, places, dense, found[-1].batch)
            here = found[-1].by_layer.setdefault(
                dense.layer or 0, torch.zeros(found[-1].batch.keep.numel(), device=x.device)
            )
            flat = places.sample * found[-1].batch.keep.shape[1] + places.position
            size = torch.maximum(x.amax(1), -x.amin(1)).float()
            here[flat] = torch.maximum(here[flat], size)
            return x

        return read

    progress.start(stage, len(batches), "batch")
    with quiet(anatomy.model), change_rows(anatomy, {d: reader(d) for d in downs}):
        for batch in batches:
            found.append(Sizes(batch, {}))
            run(anatomy, batch.input_ids, batch.keep)
            progress.advance()
    progress.done()
    return [Sizes(b, {k: m.reshape(b.keep.shape).cpu() for k, m in by.items()}) for b, by in found]


def _median(sizes: Sequence[Sizes], layer: int) -> float:
    return float(torch.cat([s.by_layer[layer][s.batch.keep] for s in sizes]).median())


def _outliers(one: Sizes, layer: int, limits: dict[int, float]) -> Bool[Tensor, "sample position"]:
    return (one.by_layer[layer] > limits[layer]) & one.batch.keep


def _num_outliers(sizes: Sequence[Sizes], limits: dict[int, float], *, skip: int = 0) -> dict[int, float]:
    """Mean number of outlier tokens per input of every block, without the first positions."""
    num_inputs = sum(len(s.batch.input_ids) for s in sizes)
    return {
        layer: sum(int(_outliers(s, layer, limits)[:, skip:].sum()) for s in sizes) / num_inputs
        for layer in limits
    }


def choose_prefix(
    sizes: Sequence[Sizes], limits: dict[int, float], length: int, begin: int | None
) -> tuple[int, ...]:
    """The most frequent outlier tokens, and the beginning-of-sequence token behind them.

    Args:
        sizes: M_t.
        limits: Of every block, above which a token is an outlier.
        length: Tokens at most.
        begin: The beginning-of-sequence token; None where the model has none.
    """
    counted: Counter[int] = Counter()
    for one in sizes:
        hit = torch.stack([_outliers(one, layer, limits) for layer in limits]).any(0)
        if begin is not None:
            first = one.batch.keep & (one.batch.keep.cumsum(1) == 1)
            hit = hit & ~first
        counted.update(one.batch.input_ids[hit].tolist())
    counted.pop(begin, None)  # type: ignore[arg-type]
    # Of equally frequent tokens the smaller id, so that the choice does not hang on the order of the text.
    ranked = sorted(counted, key=lambda token: (-counted[token], token))
    if begin is None:
        return tuple(ranked[:length])
    return (*ranked[: length - 1], begin)


def _begin_of_sequence(job: Job) -> int | None:
    known = getattr(job.tokenizer, "bos_token_id", None)
    if known is None and job.anatomy.config is not None:
        known = getattr(text_config(job.anatomy.config), "bos_token_id", None)
    return known[0] if isinstance(known, list) else known


def _behind(anatomy: Anatomy, batches: Sequence[Batch], prefix: Sequence[int]) -> list[Batch]:
    """The text behind the prefix, cut where the model's positions end."""
    most = max_positions(anatomy.model)
    found = []
    for batch in batches:
        first = torch.tensor(prefix, dtype=batch.input_ids.dtype).expand(len(batch.input_ids), -1)
        ids = torch.cat([first, batch.input_ids], 1)[:, :most]
        keep = torch.cat([torch.ones_like(first, dtype=torch.bool), batch.keep], 1)[:, :most]
        found.append(Batch(ids, keep, batch.sample))
    return found


METHOD = Method(
    name="prefix",
    what="puts the tokens that attract outliers into the cache before every text",
    source="Chen et al. 2024, arXiv 2410.05265, section 4.2",
    kind="runtime",
    find=find,
    cost=2,
)
