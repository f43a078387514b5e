"""Good models made bad: the inverse of a shift and a scale on seams, so that named channels get named ranges and the function stays."""

import torch
import zoo

from skerry.anatomy import resolve
from skerry.anatomy.dense import dense_maps
from skerry.anatomy.find_seams import check_seams
from skerry.anatomy.walk import Walk
from skerry.corpus.batch import Batch
from skerry.tame.capture import pieces, ranges_of, view

# Channels 8725 and 6353 of OPT-66B (Wei et al. 2023, figure 1), and one more.
OPT_66B = {7: (-97.0, -58.0), 12: (5.7, 43.0)}


def batches_of(model, *, num_batches=3, num_samples=8, length=24, seed=0):
    """Random ids in several batches, numbered through."""
    found = []
    for i in range(num_batches):
        ids, keep = zoo.tokens(model, num_samples=num_samples, length=length, seed=seed + i)
        found.append(Batch(ids, keep, torch.arange(num_samples) + i * num_samples))
    return found


def ranges(anatomy, batches):
    """Seam reader's name to the ranges of what it reads, over all batches."""
    cut = pieces(batches)
    walk, found = Walk(anatomy, cut), {}
    maps = dense_maps(anatomy)
    for layer in walk:
        views = [view(walk, cut, i, [d for d in maps if d.layer == layer]) for i in range(len(cut))]
        for seen in views:
            for dense in seen.inputs:
                new = ranges_of(seen, dense)
                found[dense.name] = new if dense.name not in found else found[dense.name].joined(new)
        walk.advance([seen.output for seen in views])
    return found


def plant(model, batches, targets=OPT_66B, *, kinds=("norm", "post-norm")):
    """Give channels of these seams these ranges, for good; where a seam carries no shift, only their length.

    x becomes x s + z, which is the inverse (x - z') / s' with s' = 1 / s and z' = -z / s.
    """
    anatomy = resolve(model)
    seams = check_seams(anatomy)
    known = ranges(anatomy, batches)
    for seam in seams.of(*kinds):
        low, high = known[seam.readers[0].name]
        scale, shift = torch.ones(seam.free, dtype=torch.float64), torch.zeros(seam.free, dtype=torch.float64)
        for channel, (to_low, to_high) in targets.items():
            s = (to_high - to_low) / (high[channel] - low[channel])
            scale[channel] = 1 / s
            shift[channel] = -((to_low + to_high) / 2 / s - (low[channel] + high[channel]) / 2)
        seam.apply(shift=shift if "shift" in seam.carries else None, scale=scale)
    return resolve(model)
