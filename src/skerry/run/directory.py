"""A run: a directory with everything that was asked and measured, written once, readable while it grows.

    run.json              the pointer: what was asked, by which versions, and which files answer it
    tables/NAME-KEY.parquet, arrays/NAME-KEY.safetensors, summary-KEY.json, report-KEY.html    results, never replaced
    partial/STAGE-KEY.safetensors    a stage half done; removed when it is done
    log.txt               what happened, line by line
    lock                  held by the process that writes

Whatever kills the process, `run.json` names only files that are complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import BrokenRun, NotARun, RunExists, near_matches
from skerry.run.files import replace_pointer, verify, write_once
from skerry.run.lock import Lock
from skerry.run.schema import SCHEMA, FileRecord, RunRecord, StageRecord

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from torch import Tensor

POINTER = "run.json"


class Run:
    """One run directory. Opened for reading by `Run.open`, for writing by `Run.begin`."""

    def __init__(self, path: Path, record: RunRecord, lock: Lock | None = None) -> None:
        """Use `Run.open` or `Run.begin`."""
        self.path, self.record, self._lock = path, record, lock

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run for reading; a scan may be writing it at the same time.

        Raises:
            NotARun: There is no run at the path.
            BrokenRun: Its run.json cannot be read.
        """
        path = Path(path)
        pointer = path / POINTER
        if not pointer.is_file():
            raise NotARun(f"{path} holds no run (no {POINTER}){_near(path)}. `skerry runs` lists runs")
        return cls(path, _read_record(pointer))

    @classmethod
    def begin(cls, path: str | Path, request: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
        """Begin a run, or go on with the one that the same request began here.

        Args:
            path: The directory.
            request: What decides the result; another request may not use the same directory.
            facts: Versions, platform, choices, command line: recorded, but free to differ.

        Raises:
            RunExists: The directory holds another run, files that are not a run, or is being written by another process.
            BrokenRun: Its run.json cannot be read.
        """
        path = Path(path)
        pointer = path / POINTER
        if path.exists() and not path.is_dir():
            raise RunExists(f"{path} is a file; --out must name a folder")
        if pointer.is_file():
            record = _read_record(pointer)
            _check_same(path, record.request, dict(request))
        else:
            strangers = (
                sorted(p.name for p in path.iterdir() if not _is_ours(p.name)) if path.is_dir() else []
            )
            if strangers:
                raise RunExists(
                    f"{path} is not empty and holds no run (it has {', '.join(strangers[:3])}); give an empty or new folder with --out"
                )
            record = RunRecord(
                schema_version=SCHEMA, created=time.time(), request=dict(request), facts=dict(facts)
            )
        lock = Lock(path)
        lock.acquire()
        run = cls(path, record.model_copy(update={"facts": dict(facts)}), lock)
        try:
            run._save()
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def writing(self) -> Iterator[Run]:
        """Hold the lock for a moment, for a run that was opened for reading or is already closed.

        Raises:
            RunExists: Another process is writing the run.
        """
        if self._lock is not None:
            yield self
            return
        lock = Lock(self.path)
        lock.acquire()
        self._lock = lock
        try:
            self.record = _read_record(self.path / POINTER)
            yield self
        finally:
            self.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, text: str) -> None:
        """Add a line to the run's log; a log that cannot be written stops nothing."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        try:
            with (self.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            return

    # Stages -----------------------------------------------------------------------------------------------------------

    def finished(self, stage: str, inputs: str) -> bool:
        """Whether a stage was finished with these inputs, and all its files are whole.

        Raises:
            BrokenRun: A file of the stage is missing or damaged; it is named.
        """
        record = self.record.stages.get(stage)
        if record is None or record.inputs != inputs:
            return False
        for file in record.files.values():
            verify(self.path / file.path, file.sha256)
        return True

    def finish(
        self,
        stage: str,
        inputs: str,
        *,
        tables: Mapping[str, pa.Table] | None = None,
        texts: Mapping[str, str] | None = None,
        seconds: float = 0.0,
        asked: str | None = None,
    ) -> None:
        """Write a stage's results and point to them; its partial results go.

        Args:
            stage: Name of the stage.
            inputs: Key of what decides its result.
            tables: Parquet tables by name.
            texts: Text files by file name, e.g. `summary.json`.
            seconds: Time that the stage took.
            asked: Key of the whole request, see `skerry.run.repeat`.
        """
        files = {name: self._write_table(name, table) for name, table in (tables or {}).items()}
        files |= {name: self._write_text(name, text) for name, text in (texts or {}).items()}
        old = self.record.stages.get(stage)
        record = StageRecord(inputs=inputs, files=files, seconds=seconds, finished=time.time(), asked=asked)
        partials = {k: v for k, v in self.record.partials.items() if k != stage}
        gone = [self.record.partials[stage].path] if stage in self.record.partials else []
        self.record = self.record.model_copy(
            update={"stages": {**self.record.stages, stage: record}, "partials": partials}
        )
        self._save()
        kept = {f.path for s in self.record.stages.values() for f in s.files.values()}
        gone += [f.path for f in old.files.values() if f.path not in kept] if old else []
        for name in gone:
            (self.path / name).unlink(missing_ok=True)
        self.log(f"stage {stage} finished in {seconds:.1f} s: {', '.join(sorted(files))}")

    def save_partial(self, stage: str, inputs: str, state: Mapping[str, Tensor], *, done: int) -> None:
        """Keep what a stage has so far; `done` is how many batches it holds."""
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        name, digest = write_once(
            self.path / "partial", stage, ".safetensors", lambda path: save_file(tensors, str(path))
        )
        old = self.record.partials.get(stage)
        file = FileRecord(path=f"partial/{name}", sha256=digest, inputs=inputs, done=done)
        self.record = self.record.model_copy(update={"partials": {**self.record.partials, stage: file}})
        self._save()
        if old is not None and old.path != file.path:
            (self.path / old.path).unlink(missing_ok=True)

    def load_partial(self, stage: str, inputs: str) -> tuple[dict[str, Tensor], int] | None:
        """What a killed stage had, and how many batches it holds; None to begin anew. A damaged one is logged and left."""
        from safetensors.torch import load_file

        file = self.record.partials.get(stage)
        if file is None or file.inputs != inputs:
            return None
        path = self.path / file.path
        try:
            verify(path, file.sha256)
        except BrokenRun as error:
            self.log(f"partial result of {stage} left aside: {error}")
            return None
        return load_file(str(path)), file.done or 0

    def partial_stages(self, prefix: str) -> list[str]:
        """Stages with a partial result whose name begins so."""
        return sorted(name for name in self.record.partials if name.startswith(prefix))

    def drop_partials(self, prefix: str) -> None:
        """Forget the partial results of stages whose name begins so: what they were for is finished."""
        gone = {name: self.record.partials[name] for name in self.partial_stages(prefix)}
        if not gone:
            return
        kept = {name: file for name, file in self.record.partials.items() if name not in gone}
        self.record = self.record.model_copy(update={"partials": kept})
        self._save()
        for file in gone.values():
            (self.path / file.path).unlink(missing_ok=True)

    def _write_table(self, name: str, table: pa.Table) -> FileRecord:
        import pyarrow.parquet as pq

        file, digest = write_once(
            self.path / "tables",
            name,
            ".parquet",
            lambda path: pq.write_table(table, path, compression="zstd"),
        )
        return FileRecord(path=f"tables/{file}", sha256=digest)

    def _write_text(self, name: str, text: str) -> FileRecord:
        stem, _, suffix = name.rpartition(".")
        file, digest = write_once(
            self.path, stem, f".{suffix}", lambda path: path.write_text(text, encoding="utf-8")
        )
        return FileRecord(path=file, sha256=digest)

    def _save(self) -> None:
        replace_pointer(self.path / POINTER, self.record.model_dump_json(indent=1).encode())

    # Reading ----------------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        for record in self.record.stages.values():
            if name in record.files:
                file = record.files[name]
                verify(self.path / file.path, file.sha256)
                return self.path / file.path
        known = [n for s in self.record.stages.values() for n in s.files]
        raise BrokenRun(f"{self.path} has no {name!r} yet; it has {', '.join(sorted(known)) or 'no result'}")

    @property
    def table_names(self) -> list[str]:
        """Names of the tables that are there."""
        return sorted(
            n for s in self.record.stages.values() for n, f in s.files.items() if f.path.startswith("tables/")
        )

    def table(self, name: str) -> pa.Table:
        """A table by name; see `skerry.run.tables` for the columns.

        Raises:
            BrokenRun: The run has no such table, or its file is damaged.
        """
        import pyarrow.parquet as pq

        return pq.read_table(self._file(name))

    def tables(self) -> dict[str, pa.Table]:
        """All tables."""
        return {name: self.table(name) for name in self.table_names}

    def sql(self, query: str) -> pa.Table:
        """Ask the tables in SQL (DuckDB): `run.sql("select * from channels order by max desc limit 5")`."""
        import duckdb

        connection: duckdb.DuckDBPyConnection = duckdb.connect()
        for name in self.table_names:
            path = str(self._file(name)).replace("'", "''")
            connection.execute(f"create view {name} as select * from read_parquet('{path}')")
        return connection.sql(query).to_arrow_table()

    def text(self, name: str) -> str:
        """A text file by name, e.g. `summary.json`."""
        return self._file(name).read_text(encoding="utf-8")

    def file(self, name: str) -> Path:
        """Path of a result file by name, e.g. `report.html`."""
        return self._file(name)

    def has(self, name: str) -> bool:
        """Whether a table or text of this name is finished."""
        return any(name in s.files for s in self.record.stages.values())

    def summary_document(self) -> dict[str, Any]:
        """The JSON document of the answer."""
        return json.loads(self.text("summary.json"))

    def __repr__(self) -> str:
        name = self.record.request.get("model", "?")
        return f"<Run of {name} at {self.path}: {', '.join(self.record.stages) or 'nothing finished'}; .table(name), .sql(query)>"


def _read_record(pointer: Path) -> RunRecord:
    try:
        raw = json.loads(pointer.read_text(encoding="utf-8"))
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA:
            raise BrokenRun(
                f"{pointer} was written by a newer skerry (run schema {version}, this one reads {SCHEMA}); upgrade skerry"
            )
        return RunRecord.model_validate(raw)
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise BrokenRun(
            f"{pointer} cannot be read ({reason}); delete the run's folder and measure again"
        ) from error


# Keys of content say that something differs; names and numbers say what.
_IN_WORDS = {"ids": "the text that is read", "model_key": "the content of the model"}


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if not differing:
        return
    told = [key for key in differing if key not in _IN_WORDS]
    shown = [f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in told]
    shown = shown or [f"{_IN_WORDS[key]} differs" for key in differing]
    raise RunExists(f"{path} holds another run: {'; '.join(shown[:4])}. Choose another folder with --out")


def _is_ours(name: str) -> bool:
    return name in ("lock", "log.txt", "partial", "tables") or name.startswith((".run.json", ".writing-"))


def _near(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else None
    near = near_matches(path.name, [p.name for p in folder.iterdir() if p.is_dir()]) if folder else ""
    return f"; did you mean {near}?" if near else ""


def list_runs(folder: str | Path) -> list[Run | BrokenRun]:
    """The runs in a folder, newest first; a damaged one is its error."""
    found: list[tuple[float, Run | BrokenRun]] = []
    for pointer in Path(folder).glob(f"*/{POINTER}"):
        try:
            run = Run.open(pointer.parent)
            found.append((run.record.created, run))
        except BrokenRun as error:
            found.append((pointer.stat().st_mtime, error))
    return [run for _, run in sorted(found, key=lambda pair: -pair[0])]


__all__ = ["POINTER", "Run", "list_runs"]
