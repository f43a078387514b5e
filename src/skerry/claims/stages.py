"""Which stage beyond the scan measures which table, so that only what a claim needs is measured."""

from __future__ import annotations

TRACE_STAGES: dict[str, tuple[str, ...]] = {
    "lifecycle": (
        "carriers",
        "carrier_tokens",
        "lifecycle",
        "growth",
        "factors",
        "growth_weights",
        "units",
        "spread",
    ),
    "effects": ("effects",),
    "roles": ("roles", "role_verdicts", "role_measures"),
}
"""Stages of a trace: `skerry trace`."""
IMPACT_STAGES: dict[str, tuple[str, ...]] = {
    "impact_grid": ("quantization_grid",),
    "impact_sites": ("quantization_sites",),
    "impact_clipping": ("clipping",),
    "impact_pruning": ("pruning", "pruning_conflict"),
    "impact_removal": ("quantized_removal",),
    "tame": ("methods", "seam_changes", "channel_ranges", "parts", "equivalence", "overhead"),
}
"""Stages of costs, `skerry impact`, and of taming: several methods under several schemes."""
TRAINING_STAGES: dict[str, tuple[str, ...]] = {
    "study": (
        "study_arms",
        "study_curve",
        "study_layers",
        "study_compressed",
        "study_quantities",
        "study_battery",
    ),
    "births": ("births", "birth_onsets", "birth_order", "birth_channels"),
}
"""What is measured on trainings, in runs of their own: `skerry study`, `skerry watch`. Judging a model never starts one."""
FOLLOWED = ("impact_removal",)
"""Stages of costs that change what a trace has found."""
STAGES: dict[str, tuple[str, ...]] = {**TRACE_STAGES, **IMPACT_STAGES}
"""Stages beyond the scan; every other table is the scan's."""


def stage_of(table: str) -> str | None:
    """The stage that measures a table; None for a table of the scan."""
    return next((stage for stage, tables in STAGES.items() if table in tables), None)


def command_of(table: str) -> str:
    """The command that measures a table. What only claims ask for is measured by asking for them."""
    stage = stage_of(table)
    for name, command in (("study", "skerry study attention"), ("births", "skerry watch")):
        if table in TRAINING_STAGES[name]:
            return f"{command}`, then `skerry claims RUN"
    if stage is None:
        return "skerry scan"
    if stage in TRACE_STAGES:
        return "skerry trace"
    return {"tame": "skerry claims --only '5.*'", "impact_removal": "skerry claims --only '4.3*'"}.get(
        stage, "skerry impact"
    )
