"""The completion of a batch: its manifest in the bucket, then its end, its event and its webhook in one commit.

The tick makes a batch due (`run_at`) that has begun and of which nothing is unfinished; its claim is then like a job's
(`claims`). Whoever takes it writes the manifest first, since an event must not tell of what is not there; each writing
replaces the last. Then one transaction locks the batch's row, looks again whether anything is unfinished, and ends the
batch under the claim. So of all that write manifests, by crashes or by lapsed leases, one commits, and its event comes
once (ADR 0037). Whoever makes a job of a batch again locks that row too, before the job is made: either the completion
sees the job, or the job finds the batch complete and opens it again.

While the bucket is away the batch stays `running` and is tried again, for ever: it costs nothing, and nobody can decide
anything better. For the same reason there is no held state: a batch on which three workers died is logged and tried
alone, as all batches are, but only once in a lease of six hours, so that it cannot take one worker after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Interval,
    Row,
    ScalarSelect,
    Select,
    Uuid,
    and_,
    bindparam,
    case,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy import text as sql

from worker import claims, database, log, text, timeouts, webhooks
from worker.batches import items, reading
from worker.batches.items import Item
from worker.claims import Claim, Now, Numbers
from worker.context import Clock, Context
from worker.errors import ClaimLost
from worker.storage import Expected, StorageTrouble
from worker.tables import Batch, Event, Job, Project
from worker.webhooks import endpoints

EVENT = "batch.completed"
_ON_THEIR_WAY = 16  # claims that no worker has spent yet
_AWAY = timedelta(seconds=15)  # how long a message waits for the database
_POSTPONED = timedelta(seconds=2)  # until a batch is due again that was given back
_MEDIA_TYPE = "application/jsonl"

_log = log.get(__name__)


def is_due(now: Now) -> ColumnElement[bool]:
    """Whether a batch is to be made due, or to be claimed: a probe of an index for each open batch."""
    due = select(Batch.run_at).where(_DUE, Batch.run_at <= now)
    return or_(select(Batch.id).where(_IS_DONE).exists(), due.exists())


def claim_due(connection: Connection, now: Any) -> list[Claim]:
    """Makes the batches due of which nothing is unfinished any more; claims for those that are due."""
    connection.execute(_MAKE_DUE, {"now": now})
    claimed = claims.claim_due(connection, Batch, _DUE, (Batch.run_at,), _ON_THEIR_WAY, now)
    for claim in claimed:
        if claim.crashes >= timeouts.CRASHES:
            _log.error("the completion of a batch kills workers", batch=str(claim.id), crashes=claim.crashes)
    return claimed


def complete(ctx: Context, numbers: Numbers) -> bool:
    """Completes the batches of a message whose claims are not spent; whether any of them is complete now."""

    def take(connection: Connection) -> Sequence[Row[Any]]:
        return claims.take(connection, Batch, numbers, _LEASE)

    rows = database.write(ctx.engine, take, "claims", _AWAY)
    ended = [_complete(ctx, Batch.of(row._mapping), Clock(row.now)) for row in rows]  # noqa: SLF001
    return any(ended)


def key(batch: Batch) -> str:
    """The key of a batch's manifest."""
    return f"{batch.project_id}/batches/{batch.id}/manifest.jsonl"


def _complete(ctx: Context, batch: Batch, clock: Clock) -> bool:
    """Whether the batch is complete now; if not, it is due again, or its jobs are at work."""
    try:
        ctx.bucket.put_stream(key(batch), _manifest(ctx, batch, clock()), _MEDIA_TYPE, Expected())
        return ctx.write(partial(_end, batch=batch, now=clock()), f"the end of batch {batch.id}")
    except ClaimLost as lost:
        _log.warning("the claim is lost; the batch is not completed", why=str(lost))
    except StorageTrouble as trouble:
        _log.warning("the manifest is not written; it is tried again", batch=str(batch.id), why=str(trouble))
        _give_back(ctx, batch, timeouts.spread(timeouts.MANIFEST_AGAIN))
    except Exception as error:  # noqa: BLE001 - whatever it was, the row says what to do next
        _log.exception("a completion failed; its batch is left to the lease, or given back where the database was away")
        if database.is_away(error):
            _give_back(ctx, batch, _POSTPONED)
    return False


def _give_back(ctx: Context, batch: Batch, after: timedelta) -> None:
    numbers = [(batch.id, batch.claim)]
    ctx.write(partial(claims.let_go, table=Batch, numbers=numbers, after=after), "a batch given back")


def _manifest(ctx: Context, batch: Batch, now: datetime) -> Iterator[bytes]:
    """A line with the batch as it is once it has ended, then one for each row. Raises ClaimLost before its last byte.

    So a worker that woke late stores nothing over the manifest of another.
    """
    yield _line(_shown(ctx.read, batch.changed(_ended(batch, now)), now))
    for chunk in items.walk(ctx.read, batch):
        yield b"".join(_line(_of_row(item)) for item in chunk)
    if ctx.read(lambda connection: _mine(connection, _OURS, batch)) is None:
        raise ClaimLost(f"batch {batch.id} is no longer under claim {batch.claim}")


def _of_row(item: Item) -> dict[str, Any]:
    row, job = item.row, item.job
    return {
        "row": row.n,
        "line": row.line,
        "custom_id": row.custom_id,
        "outcome": row.outcome,
        "job_id": str(job.id) if job else None,
        "state": job.state if job else None,
        "objects": [
            {"key": output.key, "sha256": output.sha256, "bytes": output.bytes, "role": output.role}
            for output in item.outputs
        ],
    }


def _end(connection: Connection, batch: Batch, now: datetime) -> bool:
    """Ends the batch under its claim, and tells of it; whether it has ended. Raises ClaimLost."""
    # its own statement: what waits for the lock has looked at the jobs before it waited
    if _mine(connection, _LOCKED, batch) is None:
        return _has_ended(connection, batch)
    if connection.execute(_UNFINISHED, {"batch": batch.id}).scalar_one():
        connection.execute(_REST, {"the_batch": batch.id})
        return False
    columns = _ended(batch, now)
    ended = batch.changed(columns)
    connection.execute(_END, {"the_batch": batch.id} | {f"to_{name}": value for name, value in columns.items()})
    event = connection.execute(_EVENT, _event(batch, ended, now)).one()
    if ended.webhook_url or event.listens:
        said = {"type": EVENT, "timestamp": text.moment(now), "sequence": ended.sequence}
        body = _json(said | {"data": _shown(lambda look: look(connection), ended, now)})
        if ended.webhook_url:
            webhooks.enqueue(connection, ended.project_id, None, event.id, ended.webhook_url, body)
        if event.listens:
            endpoints.enqueue_all(connection, ended.project_id, EVENT, [(None, event.id, body)])
    _log.info("completed", batch=str(batch.id))
    return True


def _has_ended(connection: Connection, batch: Batch) -> bool:
    """Whether our own commit held, whose answer was lost; raises ClaimLost where it was another's."""
    found = connection.execute(_FOUND, {"the_batch": batch.id}).one()
    if found.state == "completed" and found.claim == batch.claim:
        return True
    raise ClaimLost(f"batch {batch.id} is {found.state} under claim {found.claim}")


def _mine(connection: Connection, statement: Select[Any], batch: Batch) -> Any:
    return connection.execute(statement, {"the_batch": batch.id, "the_claim": batch.claim}).scalar_one_or_none()


def _ended(batch: Batch, now: datetime) -> dict[str, Any]:
    """The columns of its end."""
    return {
        "state": "completed",
        "completed_at": now,
        "paused_at": None,
        "manifest": key(batch),
        "sequence": batch.sequence + 1,
        "run_at": None,
        "claimed": None,
        "crashes": 0,
    }


def _event(batch: Batch, ended: Batch, now: datetime) -> dict[str, Any]:
    return {
        "batch_id": batch.id,
        "project_id": batch.project_id,
        "sequence": ended.sequence,
        "type": EVENT,
        "left": batch.state,
        "entered": ended.state,
        "why": "",
        "claim": batch.claim,
        "at": now,
    }


def _shown(read: items.Read, batch: Batch, now: datetime) -> dict[str, Any]:
    """The batch as others see it, without its report."""

    def look(connection: Connection) -> dict[str, Any]:
        project = connection.execute(_PROJECT, {"project": batch.project_id}).scalar_one()
        (shown,) = reading.documents(connection, project, [batch], now, whole=False)
        return shown.model_dump(mode="json", exclude={"report"})

    return read(look)


def _json(said: Any) -> str:
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _line(said: Any) -> bytes:
    return _json(said).encode() + b"\n"


# Statements are built once: to build one costs more than to run it.

_NOW = bindparam("now", type_=DateTime(timezone=True))
# literals, so that the planner can match the partial indexes
_OPEN = sql("batches.state in ('running', 'paused')")


def _first_unfinished(batch_id: Any) -> ScalarSelect[Any]:
    """A scalar, which is one look into an index: an anti-join would read all unfinished jobs."""
    unfinished = select(Job.batch_id).where(Job.batch_id == batch_id, Job.finished_at.is_(None))
    return unfinished.limit(1).scalar_subquery()


_IS_DONE = and_(_OPEN, Batch.run_at.is_(None), _first_unfinished(Batch.id).is_(None))
_DUE = Batch.run_at.is_not(None)
# the tick waits for nobody: a batch that is locked is looked at a second later
_DONE = select(Batch.id).where(_IS_DONE).with_for_update(skip_locked=True)
_MAKE_DUE = update(Batch).where(Batch.id.in_(_DONE)).values(run_at=_NOW)
_LEASE = case(
    (Batch.crashes >= timeouts.CRASHES, literal(timeouts.COMPLETE[1], Interval)),
    else_=literal(timeouts.COMPLETE[0], Interval),
)
_BATCH = Batch.id == bindparam("the_batch")
_OURS = select(Batch.id).where(_BATCH, Batch.claim == bindparam("the_claim"), Batch.claimed == claims.TAKEN, _OPEN)
_LOCKED = _OURS.with_for_update()
_FOUND = select(Batch.state, Batch.claim).where(_BATCH)
_UNFINISHED = select(_first_unfinished(bindparam("batch", type_=Uuid)).is_not(None))
_ENDS = ("state", "completed_at", "paused_at", "manifest", "sequence", "run_at", "claimed", "crashes")
_END = (
    update(Batch)
    .where(_BATCH)
    .values({name: bindparam(f"to_{name}", type_=Batch.__table__.c[name].type) for name in _ENDS})
)
_REST = update(Batch).where(_BATCH).values(run_at=None, claimed=None, crashes=0)  # its jobs' end makes it due again
_EVENT = insert(Event).returning(Event.id, endpoints.listens(Event.project_id, Event.type).label("listens"))
_PROJECT = select(Project.name).where(Project.id == bindparam("project"))
