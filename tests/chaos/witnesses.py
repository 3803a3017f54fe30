"""The audit of a chaos run: the rows, and everybody else who can tell whether the promises were kept.

The others are the sandbox's books (`tests.chaos.books`), the bucket, a receiver of webhooks, the callers and the logs.
Each of them is optional.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, select, text

from ops import audit as rows_audit
from ops.audit import Finding, Rule
from tests.chaos import books
from worker import storage
from worker.errors import NoriaError
from worker.schedules import plan
from worker.states import Mode
from worker.storage import Bucket
from worker.tables import Schedule

_ABANDONED = timedelta(days=1)  # a multipart upload that began so long ago is nobody's
_KEY = re.compile(r"(?P<project>[0-9a-f-]{36})/\d{4}/\d\d/\d\d/(?P<job>[0-9a-f-]{36})/(?P<rest>.+)")
_MANIFEST = re.compile(r"[0-9a-f-]{36}/batches/(?P<batch>[0-9a-f-]{36})/manifest\.jsonl")
_QUERIES = 20  # a second, of one account (Alibaba docs, "Manage asynchronous tasks")


class Receiver(Protocol):
    """What a receiver of webhooks kept: how often each message id came well signed, and how many did not."""

    heard: Counter[str]
    forged: int


@dataclass(frozen=True)
class Witnesses:
    """Who can tell more than the rows. None or empty: not asked.

    `ledger` the sandbox's; `queries` a second that it allows; `reads_bytes` whether the bucket's objects are read and
    digested or only their lengths looked at; `accepted` the ids that the API gave for each `custom_id`; `logs` files
    in which none of `canaries` may stand; `unpaused` the ids of schedules that nobody changed since they were
    made; `is_at_rest` whether nothing should be unfinished any more.
    """

    ledger: Mapping[str, Any] | None = None
    queries: int = _QUERIES
    bucket: Bucket | None = None
    reads_bytes: bool = False
    receiver: Receiver | None = None
    accepted: Mapping[str, str] = field(default_factory=dict)
    logs: Collection[Path] = ()
    canaries: Collection[str] = ()
    unpaused: Collection[str] = ()
    is_at_rest: bool = False


AT_REST = (
    Rule(
        "I14",
        """select id as job, 'all should be at rest, and it is ' || state as what
           from jobs where finished_at is null and state not in ('held', 'awaiting_review')""",
        "its history and `waiting_on` say what it waits for: `noria show`",
    ),
    Rule(
        "B",
        """select null as job, 'all should be at rest; batch ' || b.id || ' is ' || b.state || ' and ended ' ||
             count(e.id) || ' times' as what
           from batches b left join events e on e.batch_id = b.id and e.type = 'batch.completed'
           where not exists (select from jobs j where j.batch_id = b.id and j.finished_at is null)
           group by b.id having b.state <> 'completed' or count(e.id) <> 1""",
        "it was told twice or never: report it with the batch's events",
    ),
    Rule(
        "I14",
        """select job_id as job, 'all should be at rest, and a delivery of it still waits' as what
           from deliveries where state = 'waiting'""",
        "is its receiver there? `noria doctor` tells whether a worker is",
    ),
)


def audit(engine: Engine, witnesses: Witnesses) -> list[Finding]:
    """Every broken promise, by the rows and by the witnesses, in the order of the invariants."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        found = rows_audit.breaches(connection, rows_audit.RULES + (AT_REST if witnesses.is_at_rest else ()))
        return rows_audit.in_order(found + heard(connection, witnesses))


def heard(connection: Connection, witnesses: Witnesses) -> list[Finding]:
    """Everything that the witnesses say against the rows."""
    asked: list[Callable[[], Iterator[Finding]]] = [
        lambda: _callers(connection, witnesses.accepted),
        lambda: _written(witnesses.logs, witnesses.canaries),
        lambda: _fired(connection, witnesses.unpaused),
    ]
    if (ledger := witnesses.ledger) is not None:
        asked.append(lambda: books.said(connection, ledger, witnesses.queries))
    if (bucket := witnesses.bucket) is not None:
        asked += [
            lambda: _stored(connection, bucket, witnesses.reads_bytes),
            lambda: _strangers(connection, bucket),
            lambda: _listed(connection, bucket),
            lambda: _abandoned(bucket),
        ]
    if (receiver := witnesses.receiver) is not None:
        asked.append(lambda: _told(connection, receiver))
    return [finding for ask in asked for finding in ask()]


def _callers(connection: Connection, accepted: Mapping[str, str]) -> Iterator[Finding]:
    """I1, by the callers: each job that was promised is there, once."""
    if not accepted:
        return
    rows = connection.execute(text("select id::text as id, custom_id from jobs where parent_id is null")).all()
    present = {row.id for row in rows}
    for custom_id, job in accepted.items():
        if job not in present:
            yield Finding("I1", f"the API accepted {custom_id}, and there is no such job", job, "report it")
    for custom_id, count in Counter(row.custom_id for row in rows if row.custom_id in accepted).items():
        if count > 1:
            advice = "an Idempotency-Key did not hold: report it"
            yield Finding("I1", f"{count} jobs were made of {custom_id}", accepted[custom_id], advice)


def _stored(connection: Connection, bucket: Bucket, reads_bytes: bool) -> Iterator[Finding]:
    """I5, and I3 where bytes are read: each output is there, whole, and of its own job's task."""
    statement = text("select o.*, j.id::text as job, j.mode, j.task_id from outputs o join jobs j on j.id = o.job_id")
    for row in connection.execute(statement).all():
        yield from _bytes_of(bucket, row) if reads_bytes else _length_of(bucket, row)


def _length_of(bucket: Bucket, row: Any) -> Iterator[Finding]:
    head = bucket.head(row.key)
    if head is None or head.bytes != row.bytes:
        what = f"{row.key} should have {row.bytes} bytes, and " + (f"has {head.bytes}" if head else "is not there")
        yield Finding("I5", what, row.job, "restore it from a copy of the bucket")


def _bytes_of(bucket: Bucket, row: Any) -> Iterator[Finding]:
    try:
        content = b"".join(bucket.chunks(row.key))
    except NoriaError as error:
        yield Finding("I5", f"{row.key} cannot be read: {error}", row.job, "restore it from a copy of the bucket")
        return
    if hashlib.sha256(content).hexdigest() != row.sha256:
        yield Finding("I5", f"{row.key} has other bytes than were copied", row.job, "restore it from a copy")
    # The sandbox writes the task's id into the file, but not into a batch's lines, which are many tasks' answers.
    elif row.task_id and row.mode != Mode.BATCH and row.task_id.encode() not in content:
        yield Finding("I3", f"{row.key} was not made by its job's task {row.task_id}", row.job, "withdraw it")


def _strangers(connection: Connection, bucket: Bucket) -> Iterator[Finding]:
    """I6: objects of ours that no row knows; those of a job that is being copied have none yet."""
    keys = set(connection.execute(text("select key from outputs")).scalars())
    have = text("select key from outputs where poster is not null")
    # a worker that died over a poster has not said that it is there
    keys |= {storage.poster(key) for key in connection.execute(have).scalars()}
    # a part that was found to be of no use leaves its object to the one that is made in its place
    copied = "finished_at is null or parent_id is not null and state = 'failed'"
    unfinished = set(connection.execute(text(f"select id::text from jobs where {copied}")).scalars())
    parents = set(connection.execute(text("select id::text from jobs where mode = 'parent'")).scalars())
    for key, _ in bucket.objects():
        match = _KEY.match(key)
        if match and match["rest"].startswith("work/") and match["job"] in parents:
            continue  # what it was made of stays
        if match and key not in keys and match["job"] not in unfinished:
            advice = "a copy was stored and not recorded: delete the object"
            yield Finding("I6", f"{key} is in the bucket, and no row knows it", match["job"], advice)


def _listed(connection: Connection, bucket: Bucket) -> Iterator[Finding]:
    """B: the manifest of a batch that has ended has each row, and the object of each job that it made."""
    ended = text("select id::text as id, manifest from batches where state = 'completed'")
    for batch in connection.execute(ended).all():
        lines = [json.loads(line) for line in b"".join(bucket.chunks(batch.manifest)).splitlines()][1:]
        rows = connection.execute(_ROWS, {"batch": batch.id}).all()
        keys = {line["row"]: next((one["key"] for one in line["objects"]), None) for line in lines}
        # what was there already may have been at work still
        lost = [row.n for row in rows if row.n not in keys or (row.outcome == "made" and keys[row.n] != row.key)]
        if lost or len(rows) != len(lines):
            yield Finding("B", f"the manifest of batch {batch.id} lists other rows or objects", None, "report it")


_ROWS = text(
    "select r.n, r.outcome, o.key from batch_rows r left join outputs o on o.job_id = r.job_id and o.n = 0"
    " where r.batch_id = :batch"
)


def _abandoned(bucket: Bucket) -> Iterator[Finding]:
    for upload in bucket.uploads():
        if upload.began_at < datetime.now(UTC) - _ABANDONED:
            what = f"an upload to {upload.key} was begun at {upload.began_at} and never ended"
            yield Finding("I6", what, None, "`noria doctor --fix` ends it; a lifecycle rule of the bucket does too")


def _told(connection: Connection, receiver: Receiver) -> Iterator[Finding]:
    """I7, by the receiver: whatever is called delivered came, well signed."""
    delivered = connection.execute(
        text("select event_id, job_id::text as job from deliveries where state = 'delivered'")
    ).all()
    for row in delivered:
        if not receiver.heard[f"evt_{row.event_id}"]:
            yield Finding("I7", f"event {row.event_id} is called delivered, and never came", row.job, "report it")
    if receiver.forged:
        yield Finding("I7", f"{receiver.forged} webhooks came with a wrong signature", None, "compare the secrets")


def _written(logs: Collection[Path], canaries: Collection[str]) -> Iterator[Finding]:
    """I15: what must not be written stands in no log."""
    for log in logs:
        content = log.read_text(errors="replace")
        for canary in canaries:
            if canary in content:
                what = f"{log.name} holds {content.count(canary)} times what begins with {canary[:4]!r}"
                yield Finding("I15", what, None, "remove the log, and change the secret")


def _fired(connection: Connection, schedules: Collection[str]) -> Iterator[Finding]:
    """S: of schedules that nobody changed, each fire time from their making until they were paused has its run."""
    rows = connection.execute(select(*Schedule.__table__.c)).mappings().all()
    for schedule in (Schedule.of(row) for row in rows if str(row["id"]) in schedules):
        runs = text("select fire_at from runs where schedule_id = :id and trigger <> 'person'")
        had, wanted = set(connection.execute(runs, {"id": schedule.id}).scalars()), set(_fire_times(schedule))
        for what, times in (("has no run", wanted - had), ("has a run and is no fire time", had - wanted)):
            for moment in sorted(times):
                yield Finding("S", f"{moment} {what} of schedule {schedule.id}", None, "report it with its history")


def _fire_times(schedule: Schedule) -> Iterator[datetime]:
    """Those that have come."""
    fires = plan.following(schedule, schedule.created_at)
    end = schedule.next_at or schedule.paused_at
    while fires is not None and end is not None and fires < end:
        yield fires
        fires = plan.following(schedule, fires)
