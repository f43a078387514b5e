"""Which stage of a trace measures which table, so that only what a claim needs is measured."""

from __future__ import annotations

STAGES: dict[str, tuple[str, ...]] = {
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
"""Stages beyond the scan; every other table is the scan's."""


def stage_of(table: str) -> str | None:
    """The stage of a trace that measures a table; None for a table of the scan."""
    return next((stage for stage, tables in STAGES.items() if table in tables), None)
