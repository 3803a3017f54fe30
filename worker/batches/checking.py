"""A file's rows checked and priced, one after the other, while no transaction is open.

Each row is written to a spool on the disk once it is checked, so memory does not grow with the file. Between rows other
threads get their turn: requests are answered meanwhile.

A row is known by what it asks for: its body with the file's defaults in it, before the catalog's are filled in, so that
another release does not make it another row (ADR 0013, 0035).
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from os import SEEK_END
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

from sqlalchemy import Engine

from worker import inputs
from worker.batches import files
from worker.batches.document import Report, RowFault, Source
from worker.batches.files import Row
from worker.errors import Fault, InvalidInput
from worker.inputs import naming
from worker.inputs.files import tidied
from worker.jobs import submission
from worker.jobs.submission import Prepared
from worker.moves.batch import ASKED
from worker.text import digest, storable

SPOOL = 128 << 20  # bytes of checked rows on the disk: defaults make the rows of a small file long
COLUMNS = ("n", "line", "outcome", "custom_id", "faults", "hash", "copy", *ASKED)  # of a line in the spool
_ROW = 1 << 20  # bytes of a row's complete input, as of any body
_CUSTOM_ID = 128  # characters, as of any job
_SHOWN = 100  # faults and warnings in a report
_KEPT = 10  # faults of a row, of what its writer got wrong in each of 50,000 rows
_POINTER = 1000  # characters of what a fault points to: a name in JSON has up to a million
_TOGETHER = 250  # rows whose files are looked up in one query
_AT_ONCE = 1 << 20  # bytes of rows in memory: what is parsed may take thirty times as many
_SECONDS = 120  # that a check may take: 50,000 rows take ten, and what a row names may have to be looked up slowly
_TURN = 8  # rows, a millisecond's work
_JSON = frozenset({"input", "labels"})

Check = Callable[[Any], Prepared]  # a job's body, checked and priced; raises InvalidInput with every fault


@dataclass(frozen=True)
class Upload:
    """A file as it came: its bytes, what its sender calls it, and what it says of its type."""

    body: BinaryIO
    name: str
    content_type: str


@dataclass(frozen=True)
class Options:
    """What is said of the file as a whole; `name` None: as the file is called."""

    name: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    repeat: str = ""
    webhook_url: str | None = None


@dataclass(frozen=True)
class Checked:
    """A file that was looked through: what is in it, and its rows as lines of JSON in `spool`."""

    name: str
    source: Source
    options: Options
    rows: int
    bad: int
    report: Report
    spool: IO[bytes]


def fingerprint(upload: Upload, *said: Any) -> bytes:
    """The digest of a file and of all that was said with it: what an Idempotency-Key stands for."""
    return digest([_measured(upload.body)[1], *said])


@contextmanager
def checked(engine: Engine, project_id: uuid.UUID, upload: Upload, options: Options, check: Check) -> Iterator[Checked]:
    """Every row checked and priced; raises InvalidInput where the file as a whole cannot be taken."""
    size, sha256 = _measured(upload.body)
    found, rows = files.read(upload.body, upload.name, upload.content_type)
    name = tidied(upload.name) if upload.name else "batch"
    source = Source(
        name=name,
        format=found.format,
        encoding=found.encoding,
        delimiter=found.delimiter,
        bytes=size,
        sha256=sha256,
    )
    with TemporaryFile() as spool:
        look = _Look(engine, project_id, options, check, spool)
        while some := _next(rows, upload.body):
            look.through(some)
        yield Checked(options.name or name, source, options, look.rows, look.bad, look.report(), spool)


def let_others(n: int) -> None:
    """Lets other threads go on after some rows: one that computes keeps the interpreter for 5 ms whenever it has it."""
    if n % _TURN == 0:
        time.sleep(0)


@dataclass
class _Look:
    """One look through a file: what was found so far."""

    engine: Engine
    project_id: uuid.UUID
    options: Options
    check: Check
    spool: IO[bytes]
    rows: int = 0
    bad: int = 0
    faults: list[RowFault] = field(default_factory=list)
    by_code: Counter[str] = field(default_factory=Counter)
    warnings: dict[str, Fault] = field(default_factory=dict)
    firsts: dict[str, tuple[int, int]] = field(default_factory=dict)  # custom_id → its first row and line
    copies: Counter[bytes] = field(default_factory=Counter)
    ends: float = field(default_factory=lambda: time.monotonic() + _SECONDS)

    def through(self, rows: Sequence[Row]) -> None:
        """Checks some rows, and writes them to the spool; raises InvalidInput where all takes too long."""
        bodies = [self._body(row) for row in rows]
        checked = [self._checked(row, body) for row, body in zip(rows, bodies, strict=True)]
        missing = self._missing(checked)
        for row, body, (prepared, faults), gone in zip(rows, bodies, checked, missing, strict=True):
            self._take(row, body, prepared, [*faults, *_said(row, gone)])

    def report(self) -> Report:
        """What was found, without what only the database knows: which rows are new, their price and their time."""
        return Report(
            faults=self.faults,
            faults_total=self.by_code.total(),
            faults_by_code=dict(self.by_code.most_common()),
            groups=[],
            cost=None,
            unpriced=0,
            seconds=None,
            existing=0,
            warnings=list(self.warnings.values()),
        )

    def _body(self, row: Row) -> Any:
        """What the row asks for, with the defaults in it and files by their keys; None where it cannot be read."""
        if row.body is None:
            return None
        defaults, whole = self.options.defaults, {**self.options.defaults, **row.body}
        for name in ("input", "metadata"):
            mine, usual = row.body.get(name), defaults.get(name)
            if isinstance(mine, dict) and isinstance(usual, dict):
                whole[name] = {**usual, **mine}
        if self.options.files and isinstance(whole.get("input"), dict):
            whole["input"] = naming.with_keys(whole["input"], self.options.files)
        return whole

    def _checked(self, row: Row, body: Any) -> tuple[Prepared | None, list[RowFault]]:
        found = [_fault(row, cell.pointer, cell.column, cell.code, cell.message) for cell in row.faults]
        if body is None:
            return None, found
        let_others(row.n)
        if time.monotonic() > self.ends:
            message = f"its rows take more than {_SECONDS} s to check: split the file"
            raise InvalidInput([Fault("/file", "too_slow", message)])
        wrong = self._repeated(row, body)
        try:
            prepared = self.check(body)
        except InvalidInput as error:
            prepared, wrong = None, wrong + error.faults
        known = [cell.pointer for cell in row.faults]
        return prepared, found + _said(row, [fault for fault in wrong if not _is_about(fault.pointer, known)])

    def _repeated(self, row: Row, body: Mapping[str, Any]) -> list[Fault]:
        custom_id = body.get("custom_id")
        if not isinstance(custom_id, str) or len(custom_id) > _CUSTOM_ID:
            return []
        n, line = self.firsts.setdefault(custom_id, (row.n, row.line))
        message = f"row {n} in line {line} has it already"
        return [] if n == row.n else [Fault("/custom_id", "repeated_custom_id", message)]

    def _missing(self, found: Sequence[tuple[Prepared | None, list[RowFault]]]) -> list[list[Fault]]:
        """The faults of the files that each row names."""
        asked = [(one.model, one.input) if one and not faults else ("", {}) for one, faults in found]
        if not any(naming.named_by(self.project_id, wanted) for _, wanted in asked):
            return [[] for _ in found]
        with self.engine.begin() as connection:
            return inputs.check_all(connection, self.project_id, asked)

    def _take(self, row: Row, body: Any, prepared: Prepared | None, faults: list[RowFault]) -> None:
        said = submission.asked(prepared) if prepared and not faults else {}
        written = {name: _text(said[name]) if name in _JSON else said[name] for name in said}
        if len(written.get("input", "")) > _ROW:
            faults = _said(row, [Fault("/input", "too_long", f"is longer than {_ROW} bytes")])
        self.rows += 1
        columns = {"n": row.n, "line": row.line, "custom_id": _custom_id(body)}
        if prepared is None or faults:
            self.bad += 1
            self._note(faults)
            shown = _text([fault.as_json() for fault in faults[:_KEPT]])
            self._write(columns | {"outcome": "bad", "faults": shown, "copy": 1})
            return
        self._warn(prepared)
        asked = digest([self.options.repeat, body])
        self.copies[asked] += 1
        self._write({**written, **columns, "outcome": "good", "hash": f"\\x{asked.hex()}", "copy": self.copies[asked]})

    def _note(self, faults: Sequence[RowFault]) -> None:
        self.faults += faults[: _SHOWN - len(self.faults)]
        self.by_code.update(fault.code for fault in faults)

    def _warn(self, prepared: Prepared) -> None:
        for warning in (*prepared.warnings, *prepared.advice):
            if len(self.warnings) < _SHOWN:
                self.warnings.setdefault(warning.message, warning)

    def _write(self, columns: Mapping[str, Any]) -> None:
        line = json.dumps([columns.get(name) for name in COLUMNS], default=_moment, ensure_ascii=False)
        self.spool.write(line.encode() + b"\n")
        if self.spool.tell() > SPOOL:
            message = f"its rows are longer than {SPOOL} bytes with their defaults: split the file"
            raise InvalidInput([Fault("/file", "too_long", message)])


def _next(rows: Iterator[Row], body: BinaryIO) -> list[Row]:
    """The next rows: so many, or of so many bytes of the file that they are read from."""
    some: list[Row] = []
    begun = body.tell()
    for row in islice(rows, _TOGETHER):
        some.append(row)
        if body.tell() - begun > _AT_ONCE:
            break
    return some


def _measured(body: BinaryIO) -> tuple[int, str]:
    """The length in bytes, and the SHA-256 in hex; the file is at its beginning then."""
    body.seek(0)
    sha256 = hashlib.file_digest(body, "sha256").hexdigest()  # type: ignore[arg-type]
    size = body.seek(0, SEEK_END)
    body.seek(0)
    return size, sha256


def _said(row: Row, faults: Sequence[Fault]) -> list[RowFault]:
    return [_fault(row, fault.pointer, _column(row, fault.pointer), fault.code, fault.message) for fault in faults]


def _fault(row: Row, pointer: str, column: str | None, code: str, message: str) -> RowFault:
    header = storable(column) if column is not None else None
    return RowFault(
        row=row.n,
        line=row.line,
        column=header,
        pointer=storable(pointer[:_POINTER]),
        code=code,
        message=storable(message),
    )


def _column(row: Row, pointer: str) -> str | None:
    """The column that a field, or the field around it, comes from."""
    while pointer:
        if pointer in row.columns:
            return row.columns[pointer]
        pointer = pointer.rpartition("/")[0]
    return None


def _is_about(pointer: str, known: Sequence[str]) -> bool:
    """Whether a fault is about a field that has one already, or about one inside or around it."""
    return any(f"{pointer}/".startswith(f"{other}/") or f"{other}/".startswith(f"{pointer}/") for other in known)


def _custom_id(body: Any) -> str | None:
    said = body.get("custom_id") if isinstance(body, dict) else None
    return storable(said[:_CUSTOM_ID]) if isinstance(said, str) else None


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _moment(value: Any) -> Any:
    assert isinstance(value, datetime), "JSON has all others"
    return value.isoformat()
