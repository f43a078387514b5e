"""Outlier Suppression+ with the choices of the paper and of its code, to compare with.

Of the paper (Wei et al. 2023, arXiv 2304.09145): the shift z = (max + min) / 2, s = max(1, (max - z) / t), one threshold per norm, the loss of
the readers (attention-aware for q, k, v), norms before linear maps and post-norm shortcuts, the grid t = max * k / K.

Of its code: both sides of a channel count, s = max(1, high / t, low / -t); t runs from the largest |x| down to 1 in K = max(100, max(x) / 0.5)
equal steps, max(x) of the positive side; a tensor below 1 is only shifted; ranges and losses are those of the first batch; blocks are done in order,
each with what the rounded blocks before it give; where inputs have one static range it is the range of the scaled channels, that is
(-t, t).

Neither v -> o nor up -> down; every threshold is one rounded forward of the readers on the whole first batch.
"""

from __future__ import annotations

from skerry.errors import UnknownOption
from skerry.tame.method import Found, Job, Method
from skerry.tame.methods.os_plus import search
from skerry.tame.os_plus_choices import PUBLISHED


def find(job: Job) -> Found:
    """The search as published.

    Raises:
        UnknownOption: Options were given; the published procedure has none.
    """
    if job.options:
        raise UnknownOption(
            f"os+published takes no options, not {', '.join(map(repr, job.options))}; os+ does"
        )
    return search(job, PUBLISHED)


METHOD = Method(
    name="os+published",
    what="Outlier Suppression+ as published: norms only, scales of 1 and more, the first batch",
    source="Wei et al. 2023 (arXiv 2304.09145), section 4; the code's bounds and steps",
    kind="transform",
    find=find,
    cost=4,
    needs=("inputs",),
)
