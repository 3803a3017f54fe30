"""A batch in people's hands: paused, resumed, canceled, and what failed in it made again.

A paused batch has no jobs in the line: they are held (`held_for` batch), and one that comes back to the line meanwhile
is passed by (`moves.fair_queue`). So admission of other jobs is as cheap as before (ADR 0036).

Its jobs are moved a few hundred a transaction, and the batch's row says what holds all along: it is `paused` before
the first job is held and until the last one is let go. Whatever breaks off, the same request made again ends it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Select, bindparam, func, select, update

from worker import work
from worker.errors import Conflict, NotFound
from worker.jobs.bulk import Done, carry_out, foreseen, in_turn
from worker.moves import bulk
from worker.moves.bulk import AGAIN, CHUNK, chunks
from worker.states import HeldFor, State
from worker.tables import Batch, Job

_Ids = list[uuid.UUID]
_Act = Callable[[Connection, uuid.UUID, Sequence[uuid.UUID], datetime], _Ids]


@dataclass(frozen=True)
class Controlled:
    """The batch as it is now, and the jobs whose state has changed."""

    batch: Batch
    moved: Sequence[uuid.UUID] = ()


def pause(engine: Engine, project_id: uuid.UUID, batch_id: uuid.UUID) -> Controlled:
    """Holds what of the batch waits; what is with the provider goes on. Raises NotFound, Conflict."""
    which = {"of_project": project_id, "the_batch": batch_id}
    batch = in_turn(engine, partial(_pausing, which=which))
    return Controlled(batch, _in_chunks(engine, which, _WAITING, bulk.hold))


def resume(engine: Engine, project_id: uuid.UUID, batch_id: uuid.UUID) -> Controlled:
    """Puts what was held back into the line, at its old place. Raises NotFound, Conflict."""
    which = {"of_project": project_id, "the_batch": batch_id}
    moved: _Ids = []
    while True:
        moved += _in_chunks(engine, which, _HELD, bulk.let_go)
        batch = in_turn(engine, partial(_resuming, which=which))
        if batch.state != "paused":
            return Controlled(batch, moved)


def cancel(engine: Engine, project_id: uuid.UUID, batch_id: uuid.UUID) -> Controlled:
    """Ends what has not been sent, unpaid, and asks the provider to drop the rest; what is copied goes on.

    A batch that is complete stays as it is. Raises NotFound, Conflict.
    """
    which = {"of_project": project_id, "the_batch": batch_id}
    batch = in_turn(engine, partial(_canceling, which=which))
    if batch.state == "completed":
        return Controlled(batch)
    done = Done(carry_out(engine, project_id, "cancel", _found(engine, _UNFINISHED, which), 0))
    return Controlled(in_turn(engine, partial(_canceled, which=which)), done.moved)


def foresee_retry(
    connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID, states: frozenset[State], room: int
) -> Done:
    """What `retry_failed` would do. Raises as it does."""
    which = {"of_project": project_id, "the_batch": batch_id}
    _refuse_retry(_read(connection, _ONE, which))
    ids = connection.execute(_ENDED, which | {"states": sorted(states & AGAIN)}).scalars().all()
    return Done(foreseen(connection, project_id, "retry", ids, room))


def retry_failed(
    engine: Engine, project_id: uuid.UUID, batch_id: uuid.UUID, states: frozenset[State], room: int
) -> Done:
    """Makes the batch's jobs again that ended in these states, `room` of them at most; it runs again.

    Raises NotFound; Conflict for a draft, and while the batch is paused.
    """
    which = {"of_project": project_id, "the_batch": batch_id}
    with engine.connect() as connection:
        _refuse_retry(_read(connection, _ONE, which))
    ids = _found(engine, _ENDED, which | {"states": sorted(states & AGAIN)})
    return Done(carry_out(engine, project_id, "retry", ids, room))


def _pausing(connection: Connection, now: datetime, *, which: dict[str, Any]) -> Batch:
    batch = _read(connection, _LOCKED, which)
    if batch.state == "draft":
        raise Conflict("is_draft", "it is a draft: nothing of it has begun")
    if batch.state == "completed":
        raise Conflict("batch_completed", "it is complete: nothing of it waits")
    return batch if batch.state == "paused" else _set(connection, which, state="paused", paused_at=now)


def _resuming(connection: Connection, _: datetime, *, which: dict[str, Any]) -> Batch:
    """The batch: running, unless somebody has held more of it meanwhile."""
    batch = _read(connection, _LOCKED, which)
    if batch.state == "draft":
        raise Conflict("is_draft", "it is a draft: commit it")
    if batch.state != "paused" or connection.execute(_HELD.limit(1), which).scalar() is not None:
        return batch
    return _set(connection, which, state="running", paused_at=None)


def _canceling(connection: Connection, now: datetime, *, which: dict[str, Any]) -> Batch:
    batch = _read(connection, _LOCKED, which)
    if batch.state == "draft":
        raise Conflict("is_draft", "it is a draft, and nothing of it was made: DELETE it")
    return batch if batch.state == "completed" else _set(connection, which, canceled_at=func.coalesce(_AT, now))


def _canceled(connection: Connection, _: datetime, *, which: dict[str, Any]) -> Batch:
    """The batch, once its jobs were asked to end: what comes back to the line ends there, so nothing is passed by."""
    batch = _read(connection, _LOCKED, which)
    return _set(connection, which, state="running", paused_at=None) if batch.state == "paused" else batch


def _refuse_retry(batch: Batch) -> None:
    if batch.state == "draft":
        raise Conflict("is_draft", "it is a draft: commit it")
    if batch.state == "paused":
        raise Conflict("batch_paused", "it is paused: resume it first")


def _in_chunks(engine: Engine, which: dict[str, Any], wanted: Select[Any], act: _Act) -> _Ids:
    """Moves the batch's jobs while it is paused; those that were moved."""

    def some(connection: Connection, now: datetime, *, ids: Sequence[uuid.UUID]) -> _Ids:
        if _read(connection, _LOCKED, which).state != "paused":
            return []
        return act(connection, which["of_project"], ids, now)

    found = _found(engine, wanted, which)
    return [job_id for ids in chunks(found, CHUNK) for job_id in in_turn(engine, partial(some, ids=ids))]


def _found(engine: Engine, wanted: Select[Any], which: dict[str, Any]) -> _Ids:
    with engine.connect() as connection:
        return list(connection.execute(wanted, which).scalars())


def _read(connection: Connection, how: Select[Any], which: dict[str, Any]) -> Batch:
    row = connection.execute(how, which).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no batch {which['the_batch']}")
    return Batch.of(row)


def _set(connection: Connection, which: dict[str, Any], **columns: Any) -> Batch:
    changed = update(Batch).where(_MINE).values(**columns).returning(*Batch.__table__.c)
    return Batch.of(connection.execute(changed, which).mappings().one())


_MINE = (Batch.id == bindparam("the_batch")) & (Batch.project_id == bindparam("of_project"))
_AT = Batch.canceled_at
_ONE = select(*Batch.__table__.c).where(_MINE)
_LOCKED = _ONE.with_for_update(key_share=True)
_JOBS = (
    select(Job.id)
    .where(Job.batch_id == bindparam("the_batch"), Job.project_id == bindparam("of_project"))
    .order_by(Job.id)
)
_UNFINISHED = _JOBS.where(Job.finished_at.is_(None))
_WAITING = _UNFINISHED.where(work.in_states(State.QUEUED, State.ADMITTED))
_HELD = _UNFINISHED.where(work.in_states(State.HELD), Job.held_for == HeldFor.BATCH)
_ENDED = _JOBS.where(Job.state.in_(bindparam("states", expanding=True)))
