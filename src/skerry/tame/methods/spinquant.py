"""SpinQuant: the rotations of `rotation`, then trained on the quantized model's own loss (see `skerry.tame.spinquant`).

    minimise L(Q_w(W(R)), Q_a(x(R))) over orthogonal R        Cayley SGD, from a randomised Hadamard matrix

Liu et al. 2024 (arXiv 2405.16406), section 3.2. The best of all rotations scored on all calibration inputs is taken, the start among them.
Limit: with no steps it is `rotation`.
"""

from __future__ import annotations

import math

from skerry.tame.method import Found, Job, Method
from skerry.tame.methods.rotation import left_alone
from skerry.tame.options import check_between, take_options
from skerry.tame.rotation import plan_rotation
from skerry.tame.spinquant import learn_rotation


def find(job: Job) -> Found:
    """Learned rotations."""
    options = take_options(job.options, "spinquant", steps=64, rate=1.5, score_every=8, seconds=math.inf)
    check_between(options["seconds"], 0.0, math.inf, "spinquant: option 'seconds'")
    plan = plan_rotation(job.anatomy)
    seconds = options.pop("seconds")
    learned = learn_rotation(
        job.anatomy,
        job.batches,
        job.scheme,
        plan=plan,
        seconds=None if math.isinf(seconds) else seconds,
        seed=job.seed,
        progress=job.progress,
        **options,
    )
    told = (
        f"{learned.objective} of the quantized model in calibration: {learned.before:.4g} with the start, {learned.after:.4g} with what was "
        f"learned in {learned.num_steps} steps; {learned.stopped}"
    )
    return Found(rotation=learned.rotation, notes=[*left_alone(plan), told])


METHOD = Method(
    name="spinquant",
    what="learns the rotations of the residual stream and the value heads on the quantized model's loss",
    source="Liu et al. 2024, arXiv 2405.16406, section 3.2",
    kind="transform",
    find=find,
    cost=6,
)
