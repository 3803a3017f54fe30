"""The jobs of a batch, made together: one statement for all of its good rows, which makes each row once in the project.

A row's key is kept among the Idempotency-Keys, for as long as they are, and committed with its job. So the same file
makes nothing again, a corrected one makes only the rows that changed, and two commits at once make each row once: the
second waits for the first at the first key that both have, and finds the jobs.
"""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Connection,
    DateTime,
    LargeBinary,
    Select,
    Text,
    Update,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased

from worker import document, money, webhooks
from worker.errors import InvalidInput, NoriaError
from worker.money import budgets
from worker.moves import making
from worker.states import Mode, State
from worker.tables import BatchRow, Event, IdempotencyKey, Job
from worker.webhooks import endpoints

# What becomes a job's row, and is not kept twice: as `jobs.submission.asked` names it.
ASKED = (
    *("kind", "model", "mode", "input", "labels", "priority", "webhook_url", "webhook_events"),
    *("review", "not_after", "cache_days", "estimate"),
)
_SPENT: dict[str, Any] = {name: null() for name in ASKED}
# A tab, which no Idempotency-Key of a user's may hold.
_PREFIX = "row\t"
_TOLD_AT_ONCE = 500  # deliveries that are written together


def make(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID, now: datetime) -> tuple[int, int]:
    """Makes a job of each good row that has none yet in the project, and links the others to theirs: of how many each.

    Jobs of one commit stand in their project's line as their rows stand in the file. Where a budget holds what it has
    no room for, the first rows that fit are queued, and the others held. Raises BudgetExhausted where one refuses, and
    InvalidInput where one counts and a price is not known: nothing is made.
    """
    bound: dict[str, Any] = {"the_project": project_id, "the_batch": batch_id, "now": now}
    made = existing = 0
    while connection.execute(_HAS_GOOD, bound).scalar_one():  # again, where a key has ended just now
        room = budgets.locked(connection, project_id, now)
        bound["most"] = _most(connection, bound, room) if room.standings else None
        connection.execute(_PLAN, {"nested": "off"})
        made += connection.execute(_MAKE, bound).scalar_one()
        connection.execute(_PLAN, {"nested": "on"})
        existing += connection.execute(_LINK, bound).rowcount
    return made, existing


def obstacle(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID, now: datetime) -> str | None:
    """Why not all good rows of a draft would be made and queued, by the project's budgets as they are now."""
    room = budgets.seen(connection, project_id, now)
    if not room.standings:
        return None
    bound = {"the_project": project_id, "the_batch": batch_id}
    try:
        most = _most(connection, bound, room)
    except NoriaError as error:
        return str(error)
    total = connection.execute(_TO_COME, bound).one().total
    if most is None or total <= most:
        return None
    least = room.fullest()
    assert least, "there is a budget"
    return f"{least.says()}; this may cost {money.shown(total)} CNY, so what does not fit is held"


def _most(connection: Connection, bound: dict[str, Any], room: budgets.Room) -> int | None:
    """What the rows that are queued may cost together, micro-CNY; None: there is room for all. Raises as `make`."""
    rows = connection.execute(_TO_COME, bound).one()
    if rows.unpriced:
        raise InvalidInput([budgets.price_unknown(rows.unpriced)])
    return room.most(rows.total, rows.dearest)


def tell(connection: Connection, project: str, project_id: uuid.UUID, batch_id: uuid.UUID) -> None:
    """Writes the deliveries of the first events of a batch's jobs, to the receivers and endpoints that want them."""
    bound = {"the_project": project_id, "the_batch": batch_id}
    found = connection.execute(_WANTED, bound, execution_options={"yield_per": _TOLD_AT_ONCE})
    for rows in found.mappings().partitions():
        told = [(row, _body(project, Job.of(row))) for row in rows]
        if own := [(row["id"], row["event_id"], row["webhook_url"], body) for row, body in told if row["is_wanted"]]:
            webhooks.enqueue_all(connection, project_id, own)
        for event_type in {row["event_type"] for row in rows if row["listens"]}:
            of_type = [(row["id"], row["event_id"], body) for row, body in told if row["event_type"] == event_type]
            endpoints.enqueue_all(connection, project_id, event_type, of_type)


def _body(project: str, job: Job) -> str:
    parts: Counter[str] | None = Counter() if job.mode == Mode.PARENT else None
    shown = document.shown(project, job, [], None, None, parts)
    return making.body(f"job.{job.state}", job, shown, job.created_at)


# Statements are built once: to build one costs more than to run it.

_PROJECT, _NOW = bindparam("the_project", type_=Uuid), bindparam("now", type_=DateTime(timezone=True))
_GOOD = (BatchRow.batch_id == bindparam("the_batch", type_=Uuid), BatchRow.outcome == literal_column("'good'"))
_HAS_GOOD = select(exists().where(*_GOOD))


def _key(row: Any) -> Any:
    """What a row is known by in its project."""
    return literal(_PREFIX, Text).concat(func.encode(row.hash, "hex")).concat(".").concat(cast(row.copy, Text))


# Whether a row of a batch has a job already; binds `the_project`.
IS_MADE = exists().where(IdempotencyKey.project_id == _PROJECT, IdempotencyKey.key == _key(BatchRow))


def _held(born: CTE) -> dict[str, Any]:
    """The columns in which jobs differ that are held for a budget: those after the rows that it has room for."""
    so_far, most = func.sum(born.c.estimate).over(order_by=born.c.n), bindparam("most", type_=BigInteger)
    fits = or_(most.is_(None), so_far <= most)
    columns = {name: case((fits, null()), else_=value) for name, value in budgets.HELD.items() if value is not None}
    return columns | {"state": case((fits, State.QUEUED), else_=State.HELD), "run_at": case((fits, born.c.at))}


def _to_come() -> Select[Any]:
    """What the jobs cost at most that a commit would make, the dearest of them, and a model that has no price."""
    unpriced = func.max(BatchRow.model).filter(BatchRow.estimate.is_(None))
    total, dearest = (func.coalesce(of(BatchRow.estimate), 0) for of in (func.sum, func.max))
    named: list[Any] = [total.label("total"), dearest.label("dearest"), unpriced.label("unpriced")]
    return select(*named).where(*_GOOD, ~IS_MADE)


def _making() -> Select[Any]:
    """Makes the jobs of the good rows whose keys are new, and returns how many."""
    rows = select(BatchRow).where(*_GOOD).order_by(BatchRow.n).subquery("good")
    born = select(func.uuidv7().label("id"), _NOW.label("at"), _key(rows.c).label("key"), rows).cte("born")
    names = ("project_id", "key", "request_hash", "job_id", "created_at")
    # in one order, so that two commits never wait for each other's keys
    keys = select(_PROJECT, born.c.key, cast(born.c.hash, LargeBinary), born.c.id, born.c.at).order_by(born.c.key)
    kept = upsert(IdempotencyKey).from_select(names, keys).on_conflict_do_nothing().returning(IdempotencyKey.job_id)
    is_new = kept.cte("kept")
    asked = {name: born.c[name] for name in (*ASKED, "custom_id", "batch_id")} | _held(born)
    written = making.columns(born, {"project_id": _PROJECT, "batch_row": born.c.n, **asked})
    given = select(*written.values()).join_from(born, is_new, is_new.c.job_id == born.c.id).order_by(born.c.n)
    made = making.inserted(written, given)
    mine = (BatchRow.batch_id == bindparam("the_batch", type_=Uuid), BatchRow.n == made.c.batch_row)
    marked = update(BatchRow).where(*mine).values(job_id=made.c.id, outcome="made", **_SPENT)
    return (
        select(func.count()).select_from(made).add_cte(making.told(made), making.reserved(made), marked.cte("marked"))
    )


def _linking() -> Update:
    """Links the good rows whose keys are known to the newest takes of their jobs."""
    later = aliased(Job, name="later")
    newest = select(later.id).where(later.first_take == IdempotencyKey.job_id).order_by(later.take.desc()).limit(1)
    job = func.coalesce(newest.correlate(IdempotencyKey).scalar_subquery(), IdempotencyKey.job_id)
    known = (IdempotencyKey.project_id == _PROJECT, IdempotencyKey.key == _key(BatchRow))
    return update(BatchRow).where(*_GOOD, *known).values(job_id=job, outcome="existing", **_SPENT)


# The planner takes rows that were just written for a handful, and would compare each of them with each.
_PLAN = text("select set_config('enable_nestloop', :nested, true)")
_TO_COME, _MAKE, _LINK = _to_come(), _making(), _linking()
# With a limit, so that it is one look into the index for each job: of a batch that was just made the planner expects a
# handful of jobs, and would compare each of them with each event.
_FIRST = (
    select(Event.id.label("event_id"), Event.type.label("event_type"))
    .where(Event.job_id == Job.id, Event.sequence == 1)
    .limit(1)
    .lateral("first")
)
_IS_WANTED = func.coalesce(and_(Job.webhook_url.is_not(None), _FIRST.c.event_type == any_(Job.webhook_events)), False)
# that there is an endpoint at all is asked once
_HAS_ENDPOINTS = select(endpoints.exist(_PROJECT)).scalar_subquery()
_LISTENS = and_(_HAS_ENDPOINTS, endpoints.listens(_PROJECT, _FIRST.c.event_type))
_WANTED = (
    select(*Job.__table__.c, *_FIRST.c, _IS_WANTED.label("is_wanted"), _LISTENS.label("listens"))
    .join(_FIRST, true())
    .where(
        Job.batch_id == bindparam("the_batch", type_=Uuid),
        Job.project_id == _PROJECT,
        or_(Job.webhook_url.is_not(None), _HAS_ENDPOINTS),
        or_(_IS_WANTED, _LISTENS),
    )
    .order_by(Job.id)
)
