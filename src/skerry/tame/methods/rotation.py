"""Rotation: randomised Hadamard matrices spread outlier channels over all channels (see `skerry.tame.rotation`).

    x' = x Q on the residual stream,   v' = v R in every value head        everything that writes or reads them turned back

Ashkboos et al. 2024 (QuaRot, arXiv 2404.00456), section 4: the rotations that are folded into weights. The ones applied while the model
runs have no place in a checkpoint and are left out. Differs from scales: no channel is singled out, and nothing is looked at.
Limit: width 1 has nothing to spread.
"""

from __future__ import annotations

from skerry.errors import NotPossible, UnknownOption
from skerry.tame.method import Found, Job, Method
from skerry.tame.options import take_options
from skerry.tame.rotation import Plan, hadamard_rotation, plan_rotation


def find(job: Job) -> Found:
    """Rotations wherever the model can carry one."""
    options = take_options(job.options, "rotation", residual=True, heads=True)
    if not options["residual"] and not options["heads"]:
        raise UnknownOption(
            "rotation: with residual and heads both false nothing is rotated; leave the method out"
        )
    plan = plan_rotation(job.anatomy)
    rotation = hadamard_rotation(plan, residual=options["residual"], heads=options["heads"], seed=job.seed)
    if rotation.is_empty:
        raise NotPossible(f"rotation: nothing can be rotated: {'; '.join(left_alone(plan))}")
    return Found(rotation=rotation, notes=[*left_alone(plan), rotation.why])


def left_alone(plan: Plan) -> list[str]:
    """What cannot be rotated and why, each reason once."""
    reasons: dict[str, list[str]] = {}
    for name, able, why in plan.rows():
        if not able:
            reasons.setdefault(why, []).append(name)
    return [f"{', '.join(names)}: not rotated, {why}" for why, names in reasons.items()]


METHOD = Method(
    name="rotation",
    what="rotates the residual stream and the value heads by randomised Hadamard matrices",
    source="Ashkboos et al. 2024, arXiv 2404.00456, section 4",
    kind="transform",
    find=find,
    cost=3,
)
