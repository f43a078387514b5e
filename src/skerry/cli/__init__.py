"""How do we ask? One thin module per verb; no logic."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command `skerry`."""
    from skerry.cli.main import run

    run()
