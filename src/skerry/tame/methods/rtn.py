"""Rounding to nearest: what every other method must beat. Nothing is looked for, and nothing is changed.

    q = round(x / scale + zero_point)

with grids as the scheme has them. Limit: 16 bits, where the model is as it was.
"""

from __future__ import annotations

from skerry.tame.method import Found, Job, Method
from skerry.tame.options import take_options


def find(job: Job) -> Found:
    """Nothing."""
    take_options(job.options, "rtn")
    return Found()


METHOD = Method(
    name="rtn",
    what="rounds to the nearest value of the grid; the baseline",
    source="Krishnamoorthi 2018, arXiv 1806.08342, section 2",
    kind="weights",
    find=find,
    cost=0,
)
