"""From a model to its anatomy: a declared family where there is one, else one traced forward."""

from __future__ import annotations

from torch import Tensor, nn

from skerry.anatomy.attention import AttentionView
from skerry.anatomy.families import family_of
from skerry.anatomy.model import Anatomy, bind, dims_of, find_trunk, get, run
from skerry.anatomy.quiet import check_weights, quiet
from skerry.anatomy.sites import Site
from skerry.anatomy.traced import numbers, trace_anatomy
from skerry.anatomy.watch import probe, watch


def resolve(model: nn.Module) -> Anatomy:
    """Name the places of a model. It runs a few tokens; mode, random state and buffers are afterwards as before.

    Raises:
        UnresolvedArchitecture: No list of blocks was found.
        BrokenModel: The model has no parameters, or they hold no values.
    """
    check_weights(model)
    config = getattr(model, "config", None)
    declared = family_of(getattr(config, "model_type", "") or "") if config is not None else None
    with quiet(model):
        if declared is None:
            return trace(model)
        family = declared.for_config(config)
        blocks = get(find_trunk(model), family.blocks)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
            # A wrapper that keeps the configuration and moves the modules: adapters, quantizers.
            return trace(model)
        anatomy = bind(model, family, dims_of(model, config, list(blocks)), list(blocks))
        probe(anatomy)
        return anatomy


def trace(model: nn.Module) -> Anatomy:
    """The anatomy from one recorded forward, whatever is declared; a second forward checks that each place shows its tokens.

    Raises:
        UnresolvedArchitecture: No list of blocks was found.
    """
    with quiet(model):
        anatomy, ids = trace_anatomy(model)
        _check(anatomy, ids)
    return anatomy


def _check(anatomy: Anatomy, ids: Tensor) -> None:
    """Drop every place that does not show one row per token when it is watched."""
    fired: dict[Site, int] = {}
    scored: set[int] = set()

    def look(site: Site, x: Tensor, rows: Tensor | None) -> None:
        if rows is None:
            fired[site] = x.shape[0]

    def attend(view: AttentionView) -> None:
        scored.add(view.layer)

    with watch(anatomy, on_activation=look, on_attention=attend):
        run(anatomy, ids)
    hooked = {anatomy.same_as.get(site, site) for site in anatomy.taps}
    silent = {site for site in hooked if fired.get(site) != ids.numel()}
    gone = {site for site in anatomy.taps if anatomy.same_as.get(site, site) in silent}
    for site in gone:
        del anatomy.taps[site]
        anatomy.same_as.pop(site, None)
    unseen = sorted(set(anatomy.attention) - scored)
    for layer in unseen:
        del anatomy.attention[layer]
    anatomy.unplaced += tuple(f"{site} did not fire in a second forward" for site in sorted(gone))
    if unseen:
        anatomy.unplaced += (
            f"{numbers(unseen)}: attention did not show itself; attn.logits and attn.probs are not measured",
        )
