"""A few channels of the residual stream of every token, at every place of it, from one forward over the text.

Of each token only the candidate channels, the Euclidean norm and, at block outputs, the median |x| are kept: (channels + 2) numbers per
place of the stream. Whole activations are never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skerry.anatomy.model import Anatomy, run
from skerry.anatomy.sites import RESIDUAL, Site
from skerry.anatomy.watch import watch
from skerry.corpus.batch import Batch

# Numbers of four bytes that one pass may keep: 512 MB.
AT_ONCE = 2**27


@dataclass(frozen=True)
class Words:
    """Every token of the text that is no padding, in order.

    Attributes:
        batch: int64 [token], number of its batch.
        flat: int64 [token], b * T + t in its batch.
        sample: int64 [token], its input, counted from 0 in the order of the text.
        position: int64 [token], from 0 at the first token of its input that is no padding.
        token_id: int64 [token].
    """

    batch: np.ndarray
    flat: np.ndarray
    sample: np.ndarray
    position: np.ndarray
    token_id: np.ndarray

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Words:
        """The tokens of these batches."""
        parts: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in range(5)]
        samples = 0
        for i, batch in enumerate(batches):
            keep = batch.keep.numpy()
            flat = np.flatnonzero(keep)
            row = flat // keep.shape[1]
            position = (np.cumsum(keep, axis=1) - 1).ravel()[flat]
            ids = batch.input_ids.numpy().ravel()[flat]
            for part, values in zip(
                parts, (np.full_like(flat, i), flat, samples + row, position, ids), strict=True
            ):
                part.append(values.astype(np.int64))
            samples += len(keep)
        return cls(*(np.concatenate(part) for part in parts))

    @property
    def num_samples(self) -> int:
        """Inputs with a token."""
        return len(self.starts)

    @property
    def starts(self) -> np.ndarray:
        """int64 [input], row of the first token of each input that has one."""
        return np.flatnonzero(np.diff(self.sample, prepend=-1))


@dataclass(frozen=True)
class Course:
    """Candidate channels along the residual stream.

    Attributes:
        channels: The candidate channels.
        values: Place of the stream to float32 [token, candidate]; a value that was not finite is NaN.
        norms: Place to float32 [token], Euclidean norm.
        medians: Block output, and the embedding, to the median over tokens of the token's median |x|.
    """

    channels: tuple[int, ...]
    values: dict[Site, np.ndarray]
    norms: dict[Site, np.ndarray]
    medians: dict[Site, float]

    @property
    def outputs(self) -> list[Site]:
        """Block outputs that were read, in order."""
        return sorted(s for s in self.values if s.part == "resid.out")

    @property
    def stages(self) -> list[Site]:
        """The embedding, where it was read, and the block outputs."""
        first = Site(0, "resid.in")
        return ([first] if first in self.values else []) + self.outputs


def stream(anatomy: Anatomy) -> list[Site]:
    """The places of the residual stream: into block 0, between attention and feed-forward, out of each block."""
    sites = [s for s in anatomy.activation_sites if s.part in RESIDUAL and s.expert is None]
    return sorted(s for s in sites if s.part != "resid.in" or s.layer == 0)


def affordable(anatomy: Anatomy, words: Words) -> int:
    """How many candidate channels one pass can follow."""
    return max(1, AT_ONCE // max(1, len(words.flat) * len(stream(anatomy))) - 2)


def read_course(anatomy: Anatomy, batches: Sequence[Batch], words: Words, channels: Sequence[int]) -> Course:
    """Follow these channels through the residual stream: one forward over the text.

    Args:
        anatomy: The model.
        batches: The text.
        words: Its tokens.
        channels: Channels of the residual stream.
    """
    num, wide = len(words.flat), torch.tensor(list(channels))
    sites = stream(anatomy)
    values = {s: np.full((num, len(channels)), np.nan, np.float32) for s in sites}
    norms = {s: np.full(num, np.nan, np.float32) for s in sites}
    medians = {s: np.full(num, np.nan, np.float32) for s in sites if s.part != "resid.mid"}
    shown: dict[Site, list[Site]] = {}
    for site in sites:
        shown.setdefault(anatomy.same_as.get(site, site), []).append(site)
    rows, flat = slice(0, 0), torch.zeros(0, dtype=torch.int64)

    def look(site: Site, x: Tensor, _rows: Tensor | None) -> None:
        if site not in shown:
            return
        x = x.index_select(0, flat.to(x.device)).float()
        few = x.index_select(1, wide.to(x.device)).cpu().numpy()
        norm = torch.linalg.vector_norm(x, dim=1).cpu().numpy()
        for s in shown[site]:
            values[s][rows], norms[s][rows] = few, norm
            if s in medians:
                medians[s][rows] = x.abs().median(dim=1).values.cpu().numpy()

    ends = np.searchsorted(words.batch, np.arange(len(batches) + 1))
    with torch.inference_mode(), watch(anatomy, RESIDUAL, on_activation=look):
        for i, batch in enumerate(batches):
            rows = slice(int(ends[i]), int(ends[i + 1]))
            flat = torch.from_numpy(words.flat[rows])
            if len(flat):
                run(anatomy, batch.input_ids, batch.keep)
    for kept in values.values():
        kept[~np.isfinite(kept)] = np.nan
    return Course(tuple(channels), values, norms, {s: _median(x) for s, x in medians.items()})


def _median(x: np.ndarray) -> float:
    finite = x[np.isfinite(x)]
    return float(np.median(finite)) if len(finite) else float("nan")
