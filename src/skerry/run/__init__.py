"""Where do results live? Run directories, tables, resume."""

from skerry.run.directory import POINTER, Run, list_runs
from skerry.run.progress import Progress, Silent
from skerry.run.tables import HIGH_RATIOS, MASSIVE_RATIOS, TABLES, schema

__all__ = [
    "HIGH_RATIOS",
    "MASSIVE_RATIOS",
    "POINTER",
    "TABLES",
    "Progress",
    "Run",
    "Silent",
    "list_runs",
    "schema",
]
