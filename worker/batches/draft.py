"""Drafts: a file's rows checked and priced before anything is spent, and kept until they are committed or forgotten.

The rows are read, checked and written to a spool on the disk one after the other, while no transaction is open; then
one short transaction copies them from there. So memory does not grow with the file, other work waits for no lock, and
a process that is killed leaves nothing.

A row is known in its project by what it asks for: its body with the file's defaults in it, before the catalog's are
filled in, so that another release does not make it another row (ADR 0013, 0035).
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

from sqlalchemy import Connection, Engine, bindparam, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import inputs, money
from worker.batches import files, forecast, reading
from worker.batches.document import Group, Report, RowFault, Source
from worker.batches.files import Row
from worker.errors import Conflict, Fault, InvalidInput
from worker.inputs.files import tidied
from worker.jobs import submission
from worker.jobs.submission import Prepared
from worker.moves import batch as batch_moves
from worker.tables import Batch, BatchRow
from worker.text import digest, storable

SPOOL = 128 << 20  # bytes of checked rows on the disk: defaults make the rows of a small file long
_ROW = 1 << 20  # bytes of a row's complete input, as of any body
_SHOWN = 100  # faults and warnings in a report
_TOGETHER = 250  # rows whose files are looked up in one query
_TURN = 8  # rows, a millisecond's work
_FORGOTTEN = 50_000  # rows that are forgotten at once, or one draft
_COPIED = ("n", "line", "outcome", "custom_id", "faults", "hash", "copy", *batch_moves.ASKED)
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
class Sent:
    """An Idempotency-Key, and the digest of what came with it."""

    key: str
    digest: bytes


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


def replayed(connection: Connection, project_id: uuid.UUID, sent: Sent) -> Batch | None:
    """The batch that came first under this Idempotency-Key; None where this is the first.

    Raises Conflict where another file or other options came with it.
    """
    row = connection.execute(_UNDER_KEY, {"project": project_id, "the_key": sent.key}).mappings().one_or_none()
    if row is None:
        return None
    if row["digest"] != sent.digest:
        raise Conflict("idempotency_key_reused", "this Idempotency-Key came with another file or other options before")
    return Batch.of(row)


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
        while some := list(islice(rows, _TOGETHER)):
            look.through(some)
        yield Checked(options.name or name, source, options, look.rows, look.bad, look.report(), spool)


def keep(
    connection: Connection, project_id: uuid.UUID, made: Checked, sent: Sent | None, now: datetime
) -> tuple[Batch, bool]:
    """Keeps the draft, with what only the database knows in its report; or finds the first one under the same key.

    The second is whether that was there. Raises Conflict as `replayed` does.
    """
    batch_id = connection.execute(_KEEP, _columns(project_id, made, sent, now)).scalar_one_or_none()
    if batch_id is None:
        assert sent is not None, "only a key keeps it from being made"
        first = replayed(connection, project_id, sent)
        return (first, True) if first else keep(connection, project_id, made, sent, now)  # it was forgotten just now
    _copy(connection, batch_id, made.spool)
    bound = {"the_project": project_id, "the_batch": batch_id}
    existing = connection.execute(_EXISTING, bound).scalar_one()
    report = _timed(connection, project_id, made.report, now).model_copy(update={"existing": existing})
    connection.execute(_REPORT, {"the_batch": batch_id, "the_report": report.as_json()})
    return reading.one(connection, project_id, batch_id), False


def drop(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID) -> None:
    """Deletes a draft; raises NotFound, and Conflict for a batch that was committed."""
    if not connection.execute(_DROP, {"project": project_id, "the_batch": batch_id}).rowcount:
        found = reading.one(connection, project_id, batch_id)
        raise Conflict("not_a_draft", f"it is {found.state}: only a draft is deleted")


def forget(connection: Connection, now: datetime) -> None:
    """Deletes drafts that were not committed in time, the oldest first, and so many rows of theirs at the most."""
    connection.execute(_FORGET, {"before": now - reading.KEPT, "most": _FORGOTTEN})


@dataclass
class _Priced:
    """The good rows of a kind and model."""

    rows: int = 0
    micros: int = 0
    unpriced: int = 0


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
    groups: dict[tuple[str, str], _Priced] = field(default_factory=dict)
    warnings: dict[str, Fault] = field(default_factory=dict)
    firsts: dict[str, tuple[int, int]] = field(default_factory=dict)  # custom_id → its first row and line
    copies: Counter[bytes] = field(default_factory=Counter)

    def through(self, rows: Sequence[Row]) -> None:
        """Checks some rows, and writes them to the spool."""
        bodies = [self._body(row) for row in rows]
        checked = [self._checked(row, body) for row, body in zip(rows, bodies, strict=True)]
        missing = self._missing(checked)
        for row, body, (prepared, faults), gone in zip(rows, bodies, checked, missing, strict=True):
            self._take(row, body, prepared, [*faults, *_said(row, gone)])

    def report(self) -> Report:
        """What was found, without what only the database knows."""
        groups = [
            Group(kind=kind, model=model, rows=of.rows, cost=_cost(of), unpriced=of.unpriced, seconds=None)
            for (kind, model), of in sorted(self.groups.items())
        ]
        whole = _Priced(
            self.rows - self.bad,
            sum(of.micros for of in self.groups.values()),
            sum(of.unpriced for of in self.groups.values()),
        )
        return Report(
            faults=self.faults,
            faults_total=self.by_code.total(),
            faults_by_code=dict(self.by_code.most_common()),
            groups=groups,
            cost=_cost(whole),
            unpriced=whole.unpriced,
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
            whole["input"] = inputs.with_keys(whole["input"], self.options.files)
        return whole

    def _checked(self, row: Row, body: Any) -> tuple[Prepared | None, list[RowFault]]:
        found = [_fault(row, cell.pointer, cell.column, cell.code, cell.message) for cell in row.faults]
        if body is None:
            return None, found
        _let_others(row.n)
        wrong = self._repeated(row, body)
        try:
            prepared = self.check(body)
        except InvalidInput as error:
            prepared, wrong = None, wrong + error.faults
        known = [cell.pointer for cell in row.faults]
        return prepared, found + _said(row, [fault for fault in wrong if not _is_about(fault.pointer, known)])

    def _repeated(self, row: Row, body: Mapping[str, Any]) -> list[Fault]:
        custom_id = body.get("custom_id")
        if not isinstance(custom_id, str):
            return []
        n, line = self.firsts.setdefault(custom_id, (row.n, row.line))
        return (
            [] if n == row.n else [Fault("/custom_id", "repeated_custom_id", f"row {n} in line {line} has it already")]
        )

    def _missing(self, found: Sequence[tuple[Prepared | None, list[RowFault]]]) -> list[list[Fault]]:
        """The faults of the files that each row names."""
        asked = [(one.model, one.input) if one and not faults else ("", {}) for one, faults in found]
        if not any(inputs.named_by(self.project_id, wanted) for _, wanted in asked):
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
            shown = _text([fault.as_json() for fault in faults])
            self._write(columns | {"outcome": "bad", "faults": shown, "copy": 1})
            return
        self._count(prepared)
        asked = digest([self.options.repeat, body])
        self.copies[asked] += 1
        self._write({**written, **columns, "outcome": "good", "hash": f"\\x{asked.hex()}", "copy": self.copies[asked]})

    def _note(self, faults: Sequence[RowFault]) -> None:
        self.faults += faults[: _SHOWN - len(self.faults)]
        self.by_code.update(fault.code for fault in faults)

    def _count(self, prepared: Prepared) -> None:
        of = self.groups.setdefault((prepared.submission.kind, prepared.model), _Priced())
        of.rows += 1
        of.micros += prepared.estimate or 0
        of.unpriced += prepared.estimate is None
        for warning in prepared.warnings:
            if len(self.warnings) < _SHOWN:
                self.warnings.setdefault(warning.message, warning)

    def _write(self, columns: Mapping[str, Any]) -> None:
        line = json.dumps([columns.get(name) for name in _COPIED], default=_moment, ensure_ascii=False)
        self.spool.write(line.encode() + b"\n")
        if self.spool.tell() > SPOOL:
            message = f"its rows are longer than {SPOOL} bytes with their defaults: split the file"
            raise InvalidInput([Fault("/file", "too_long", message)])


def _let_others(n: int) -> None:
    """Lets other threads go on after some rows: one that computes keeps the interpreter for 5 ms whenever it has it."""
    if n % _TURN == 0:
        time.sleep(0)


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
        row=row.n, line=row.line, column=header, pointer=storable(pointer), code=code, message=storable(message)
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
    return storable(said[:128]) if isinstance(said, str) else None


def _cost(of: _Priced) -> str | None:
    return money.shown(of.micros) if of.rows > of.unpriced else None


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _moment(value: Any) -> Any:
    assert isinstance(value, datetime), "JSON has all others"
    return value.isoformat()


def _columns(project_id: uuid.UUID, made: Checked, sent: Sent | None, now: datetime) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "name": made.name,
        "key": sent.key if sent else None,
        "digest": sent.digest if sent else bytes.fromhex(made.source.sha256),
        "repeat": made.options.repeat,
        "source": made.source.as_json(),
        "report": {},
        "rows": made.rows,
        "bad": made.bad,
        "webhook_url": made.options.webhook_url,
        "created_at": now,
    }


def _copy(connection: Connection, batch_id: uuid.UUID, spool: IO[bytes]) -> None:
    """The spool's rows as rows of the batch."""
    driver = connection.connection.driver_connection
    assert driver is not None, "the connection is open"
    spool.seek(0)
    with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        for n, line in enumerate(spool):
            copy.write_row((str(batch_id), *json.loads(line)))
            _let_others(n)


def _timed(connection: Connection, project_id: uuid.UUID, report: Report, now: datetime) -> Report:
    """The report with the time that its groups take."""
    spans = forecast.spans(connection, {(of.kind, of.model): of.rows for of in report.groups}, project_id, now)
    seconds = {group: span.total_seconds() if span else None for group, span in spans.items()}
    groups = [of.model_copy(update={"seconds": seconds[of.kind, of.model]}) for of in report.groups]
    known = [of.seconds for of in groups if of.seconds is not None]
    longest = max(known) if known and len(known) == len(groups) else None
    return report.model_copy(update={"groups": groups, "seconds": longest})


# Statements are built once: to build one costs more than to run it.

_COPY = f"copy batch_rows (batch_id, {', '.join(_COPIED)}) from stdin"
_UNDER_KEY = select(*Batch.__table__.c).where(
    Batch.project_id == bindparam("project"), Batch.key == bindparam("the_key")
)
# a new draft, unless its project has one under that key
_KEEP = upsert(Batch).on_conflict_do_nothing().returning(Batch.id)
_EXISTING = select(func.count()).where(
    BatchRow.batch_id == bindparam("the_batch"), BatchRow.outcome == "good", batch_moves.IS_MADE
)
_REPORT = update(Batch).where(Batch.id == bindparam("the_batch")).values(report=bindparam("the_report"))
_DROP = delete(Batch).where(
    Batch.project_id == bindparam("project"), Batch.id == bindparam("the_batch"), Batch.state == "draft"
)
# old drafts, but none that is being committed
_FORGET = text(
    """
    with old as (
        select id, created_at, rows from batches where state = 'draft' and created_at < :before
         order by created_at limit 1000 for update skip locked
    ), first as (
        select id from (select id, sum(rows) over (order by created_at, id) - rows as before_it from old) as counted
         where before_it < :most
    )
    delete from batches using first where batches.id = first.id and batches.state = 'draft'
    """
)
