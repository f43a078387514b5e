"""Retrofit as a method of `skerry tame`: the first token is folded into attention, and what follows works on the decoder without it.

By itself it is exact (`form=exact`): a transform with its proof. A cheaper form, the removal of massive activations and the distillation
that repairs them are options; the model is then another function, and held-out loss says how far.

The rooms above this one do not know it: `register()` makes it known to `skerry.tame.register`.
"""

from __future__ import annotations

from skerry.tame.method import Found, Job, Method
from skerry.tame.options import take_options
from skerry.tame.register import add_method
from skerry.tame.transform import Equivalence

WORDS = ("fold", "fold-sink", "sink-fold")


def find(job: Job) -> Found:
    """The retrofitted decoder; the model that was given stays as it is."""
    # The decoder is heavy to import, and a list of methods needs none.
    from skerry.anatomy.resolve import resolve
    from skerry.redesign.retrofit import fold_first_token
    from skerry.redesign.retrofit_carriers import RATIO, remove_carriers
    from skerry.redesign.retrofit_distil import Distillation, distil
    from skerry.redesign.retrofit_fit import EXACT_FORM, Fitter, check_form

    options = take_options(
        job.options,
        "retrofit",
        form=EXACT_FORM,
        carriers=False,
        ratio=RATIO,
        steps=0,
        learning_rate=Distillation.learning_rate,
        train=Distillation.train,
    )
    check_form(options["form"])
    how = Distillation(
        steps=options["steps"],
        learning_rate=options["learning_rate"],
        train=options["train"],
        seed=job.seed,
    )
    how.check()
    folded = fold_first_token(job.anatomy, job.batches)
    behind = [b.behind(1) for b in job.batches]
    found = Found(skip=1)
    model, is_exact = folded.model, True
    if options["form"] != EXACT_FORM:
        model, is_exact = Fitter(model).read(behind, job.progress).make(options["form"]), False
    if options["carriers"]:
        rows, notes = remove_carriers(resolve(model), behind, ratio=options["ratio"])
        found.notes += notes
        found.notes += [
            f"channel {r['channel']} taken out of the down projection of block {r['layer']}" for r in rows
        ]
        is_exact = is_exact and not rows
    if how.steps:
        done = distil(model, job.anatomy, job.batches, how, job.progress)
        found.notes.append(done.words())
        is_exact = is_exact and not done.is_kept
    found.model = model
    found.notes.append(
        f"token {folded.token}, with which every input begins, is part of attention now: the model reads inputs without it"
    )
    if is_exact:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        tokens = sum(b.num_tokens for b in job.batches[:1])
        found.equivalence = Equivalence(folded.float64, folded.stored, folded.bound, dtype, tokens)
    return found


METHOD = Method(
    name="retrofit",
    what="folds the sink at the first token into keys and values of attention and takes the token away",
    source="y = (1 - p) rest + p v: An et al. 2025, arXiv 2502.06415, variant (d); folded after training here",
    kind="transform",
    find=find,
    cost=1,
    replaces="`skerry retrofit MODEL --out DIR` writes it in full precision.",
)


def register() -> None:
    """Make it known to `skerry tame`."""
    add_method(METHOD, words=WORDS)
