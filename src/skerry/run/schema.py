"""run.json: what was asked, and which files answer it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

SCHEMA = 1


class Entry(BaseModel):
    """Base of the records of run.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRecord(Entry):
    """One file of the run."""

    path: str
    """Path in the run directory; the name holds the beginning of the content key."""
    sha256: str
    """SHA-256 of the content."""
    inputs: str | None = None
    """Partial results: key of what decides them."""
    done: int | None = None
    """Partial results: how many batches they hold."""


class StageRecord(Entry):
    """One finished stage."""

    inputs: str
    """Key of what decides the result of the stage; other inputs make it anew."""
    files: dict[str, FileRecord]
    """Result files by name."""
    seconds: float
    """Time that it took."""
    finished: float
    """When it was finished, in seconds since 1970."""
    asked: str | None = None
    """Key of the whole request, by which a repeated command finds its answer."""


class RunRecord(Entry):
    """The whole of run.json."""

    schema_version: int = SCHEMA
    """Version of this format."""
    created: float
    """When the run began, in seconds since 1970."""
    request: dict[str, Any]
    """What decides the result: model and its content key, corpus, options, seed."""
    facts: dict[str, Any] = {}
    """Versions, platform, choices with their reasons, command line."""
    stages: dict[str, StageRecord] = {}
    """Finished stages by name."""
    partials: dict[str, FileRecord] = {}
    """Unfinished stages: what they have so far."""
