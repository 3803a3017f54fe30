"""Rows whose days are over go: jobs that have ended, with all that was written of them; then batches and runs.

A job, its later takes and the parts of each go together, in one statement, and only where none of them is needed: what
keeps one keeps all. What is made again between the look and the statement stays, and what refers to it with it, by the
foreign keys: the portion is rolled back. The ledger stays: it refers to none of them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from worker import log, storage
from worker.retention import objects, portion, statements
from worker.storage import Bucket
from worker.tables import Job

LEAST = 7  # days: an Idempotency-Key is kept so long, and goes with its job
_JOBS, _ROWS, _BATCHES = 200, 2000, 50  # of one transaction, about
_FIRST = uuid.UUID(int=0)

_log = log.get(__name__)


def prune(engine: Engine, bucket: Bucket, project: uuid.UUID, before: datetime, deadline: float) -> int:
    """How many jobs, batches and runs went, until nothing is left or `deadline` of the monotonic clock is over."""
    went, began = 0, time.monotonic()
    for of in (_jobs, _batches, _runs):
        for some in of(engine, {"project": project, "before": before, "upto": _made_before(before)}):
            objects.delete(engine, bucket, deadline)
            went += some
            if time.monotonic() > deadline:
                return went
            portion.rest(began)
            began = time.monotonic()
    return went


def due(connection: Connection, project: uuid.UUID, before: datetime) -> int:
    """How many would go now; not counted are batches that go once their jobs are gone."""
    values = {"project": project, "before": before, "upto": _made_before(before), "after": _FIRST}
    rows: int = connection.execute(_COUNT, values).scalar_one()
    return rows


def _jobs(engine: Engine, values: dict[str, Any]) -> Iterator[int]:
    after: uuid.UUID | None = _FIRST
    while after is not None:
        went, after = _portion(engine, values, partial(_take_jobs, after=after)) or (0, None)
        yield went


def _take_jobs(connection: Connection, values: dict[str, Any], after: uuid.UUID) -> tuple[int, uuid.UUID | None]:
    """How many jobs went, and after which to go on; None: there are no more."""
    families = connection.execute(_TAKE_JOBS, {**values, "after": after, "rows": _JOBS}).all()
    jobs = [job for family in families for job in family.ids]
    parents = connection.execute(statements.PARENTS, {"jobs": jobs}).mappings().all()
    worked_with = [f"{storage.stem(Job.of(parent))}/" for parent in parents]
    connection.execute(statements.DELETE_LATER, {"keys": worked_with, "is_prefix": True})
    connection.execute(_DELETE_JOBS, {"jobs": jobs, "before": values["before"]})
    return len(jobs), families[-1].id if families else None


def _batches(engine: Engine, values: dict[str, Any]) -> Iterator[int]:
    while _portion(engine, values, _take_batch_rows):
        yield 0
    while went := _portion(engine, values, _take_batches):
        yield went


def _take_batch_rows(connection: Connection, values: dict[str, Any]) -> int:
    return connection.execute(_DELETE_BATCH_ROWS, {**values, "rows": _ROWS}).rowcount


def _take_batches(connection: Connection, values: dict[str, Any]) -> int:
    batches = connection.execute(_TAKE_BATCHES, {**values, "rows": _BATCHES}).all()
    manifests = [batch.manifest for batch in batches if batch.manifest]
    connection.execute(statements.DELETE_LATER, {"keys": manifests, "is_prefix": False})
    connection.execute(_DELETE_BATCHES, {"batches": [batch.id for batch in batches]})
    return len(batches)


def _runs(engine: Engine, values: dict[str, Any]) -> Iterator[int]:
    while went := _portion(engine, values, _take_runs):
        yield went


def _take_runs(connection: Connection, values: dict[str, Any]) -> int:
    return connection.execute(_DELETE_RUNS, {**values, "rows": _ROWS}).rowcount


def _portion(engine: Engine, values: dict[str, Any], take: Callable[[Connection, dict[str, Any]], Any]) -> Any:
    """What `take` gives of one transaction; None where something came in between: the next run looks again."""
    try:
        with portion.begun(engine, values["project"]) as connection:
            return take(connection, values)
    except IntegrityError:
        _log.info("what was to be pruned has changed; it is looked at again later", project=str(values["project"]))
        return None


def _made_before(moment: datetime) -> uuid.UUID:
    """The least id that a row made at that moment can have."""
    return uuid.UUID(int=int(moment.timestamp() * 1000) << 80)


# A batch that is not over.
_GOES_ON = "(b.state <> 'completed' or b.completed_at >= :before)"
# What keeps a member of a family, and with it all of them.
_NEEDED = f"""
    m.finished_at is null or m.finished_at >= :before or m.billed = 'unknown'
    or exists (select from attempts a where a.job_id = m.id and (a.closed_at is null or a.billed = 'unknown'))
    or exists (select from outputs o where o.job_id = m.id and o.pruned_at is null
                and (m.state in ('succeeded', 'rejected') or {statements.IS_NAMED.format(key="o.key")}))
    or exists (select from deliveries d where d.job_id = m.id and d.state = 'waiting')
    or exists (select from schedules s where s.job_id = m.id)
    or exists (select from batches b where b.id = m.batch_id and {_GOES_ON})
    or exists (select from batch_rows w join batches b on b.id = w.batch_id
                where w.job_id = m.id and ({_GOES_ON} or {statements.HELD.format(jobs="m.id", batches="b.id")}))
    or {statements.HELD.format(jobs="m.id", batches="m.batch_id")}
"""  # noqa: S608 - of constants
# Jobs that are no part and no later take, each with all that goes with it; by id, which is the order they were made in.
_FAMILIES = f"""
      from jobs r
     cross join lateral (
           select array_agg(m.id) as ids, bool_or({_NEEDED}) as is_needed
             from (select r.id, r.finished_at, r.billed, r.batch_id, r.state
                   union all
                   select t.id, t.finished_at, t.billed, t.batch_id, t.state from jobs t where t.first_take = r.id
                   union all
                   select c.id, c.finished_at, c.billed, c.batch_id, c.state from jobs c where c.parent_id = r.id
                   union all
                   select c.id, c.finished_at, c.billed, c.batch_id, c.state
                     from jobs t join jobs c on c.parent_id = t.id where t.first_take = r.id) as m) as family
     where r.project_id = :project and r.parent_id is null and r.first_take is null
       and r.id > :after and r.id < :upto and r.finished_at < :before and not family.is_needed
"""  # noqa: S608 - of constants
# A batch that is over, and of which no job is left.
_ENDED_BATCH = f"""
    b.project_id = :project and b.id < :upto and not {_GOES_ON}
    and not exists (select from jobs j where j.batch_id = b.id)
    and not exists (select from events e join deliveries d on d.event_id = e.id and d.endpoint_id is null
                     where e.batch_id = b.id and d.state = 'waiting')
    and not exists (select from events e join deliveries d on d.event_id = e.id and d.endpoint_id is not null
                     where e.batch_id = b.id and d.state = 'waiting')
    and not {statements.HELD.format(jobs="null", batches="b.id")}
"""  # noqa: S608 - of constants
# A run that is over, and submitted no job, or none that is left.
_ENDED_RUN = f"""
      from schedules s join runs r on r.schedule_id = s.id
     where s.project_id = :project and r.fire_at < :before and r.outcome <> 'waiting' and r.job_id is null
       and not {statements.HELD.format(jobs="null", batches="null")}
"""

_COUNT = text(
    f"""
    with {statements.NAMED}
    select (select coalesce(sum(cardinality(family.ids)), 0) {_FAMILIES})
         + (select count(*) from batches b where {_ENDED_BATCH})
         + (select count(*) {_ENDED_RUN})
    """  # noqa: S608 - of constants
)
# the next families, until they have so many members; at least one
_TAKE_JOBS = text(
    f"""
    with {statements.NAMED}, found as (
        select r.id, family.ids {_FAMILIES} order by r.id limit :rows for update of r skip locked
    ), counted as (
        select id, ids, sum(cardinality(ids)) over (order by id) - cardinality(ids) as before_it from found
    )
    select id, ids from counted where before_it < :rows order by id
    """  # noqa: S608 - of constants
)
# In one statement, so that the references among them are looked at once, in its end.
_DELETE_JOBS = text(
    f"""
    with told as (delete from deliveries where job_id = any(:jobs) and state <> 'waiting'),
         moves as (delete from events where job_id = any(:jobs)),
         made as (delete from outputs where job_id = any(:jobs) returning key, pruned_at, poster),
         objects as (insert into deletions (key) select {statements.OBJECTS} from made where pruned_at is null
                      on conflict do nothing),
         calls as (delete from attempts where job_id = any(:jobs) and closed_at is not null and billed <> 'unknown'),
         keys as (delete from idempotency_keys where job_id = any(:jobs)),
         lines as (delete from batch_rows where job_id = any(:jobs)),
         fired as (delete from runs where job_id = any(:jobs))
    delete from jobs where id = any(:jobs) and finished_at < :before
    """  # noqa: S608 - of constants
)
# before their batches, since there may be 50,000 of one
_DELETE_BATCH_ROWS = text(
    f"""
    delete from batch_rows where (batch_id, n) in (
        select w.batch_id, w.n from batches b join batch_rows w on w.batch_id = b.id where {_ENDED_BATCH} limit :rows)
    """  # noqa: S608 - of constants
)
_TAKE_BATCHES = text(
    f"select b.id, b.manifest from batches b where {_ENDED_BATCH}"  # noqa: S608 - of constants
    " and not exists (select from batch_rows w where w.batch_id = b.id) limit :rows for update of b skip locked"
)
# By whether it is an endpoint's, as the indexes on deliveries are.
_DELETE_BATCHES = text(
    """
    with told as (select id from events where batch_id = any(:batches)),
         own as (delete from deliveries where event_id in (select id from told) and endpoint_id is null),
         others as (delete from deliveries where event_id in (select id from told) and endpoint_id is not null),
         moves as (delete from events where batch_id = any(:batches))
    delete from batches where id = any(:batches)
    """
)
_DELETE_RUNS = text(
    f"delete from runs where id = any(array(select r.id {_ENDED_RUN} limit :rows for update of r skip locked))"  # noqa: S608
)
