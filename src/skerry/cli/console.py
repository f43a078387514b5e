"""The terminal that results are drawn on."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console


def console() -> Console:
    """Standard output; 100 columns where the width is unknown."""
    width = None if sys.stdout.isatty() else shutil.get_terminal_size((100, 24)).columns
    return Console(width=width)
