"""Events whose days are over: the whole history of a job that has ended, and of none that a delivery is kept of.

They are found in the order of the feed, by its index. What is left of the feed is in the order that it was in, and each
cursor goes on behind its place, whether that is still there or not.
"""

from __future__ import annotations

import time
import uuid
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from worker.retention import portion, statements
from worker.webhooks.feed import TOLD, Place

_ROWS = 2000  # told events that one transaction passes


def prune(engine: Engine, project: uuid.UUID, before: datetime, deadline: float) -> int:
    """How many events went, until nothing is left or `deadline` of the monotonic clock is over."""
    went, after = 0, Place()
    while True:
        began = time.monotonic()
        with portion.begun(engine, project) as connection:
            some, last = _pruned(connection, project, before, after)
        went += some
        if last is None or time.monotonic() > deadline:
            return went
        after = last
        portion.rest(began)


def due(connection: Connection, project: uuid.UUID, before: datetime) -> int:
    """How many would go now."""
    rows: int = connection.execute(_COUNT, {"project": project, "before": before}).scalar_one()
    return rows


def _pruned(connection: Connection, project: uuid.UUID, before: datetime, after: Place) -> tuple[int, Place | None]:
    """How many events went, and after which to go on; None: what is behind it is too new."""
    values = {"project": project, "before": before, "xid": after.xid, "id": after.id, "rows": _ROWS}
    passed = connection.execute(_WALK, values).all()
    jobs = sorted({event.job_id for event in passed if event.job_id and event.at < before})
    went = connection.execute(_DELETE, {"project": project, "before": before, "jobs": jobs}).rowcount if jobs else 0
    return went, Place(passed[-1].xid, passed[-1].id) if any(event.at < before for event in passed) else None


# Jobs of which no more is to be told: a job that failed may be made again, so its history stays until its row goes.
_ENDED = f"""
      from jobs j
      left join jobs p on p.id = j.parent_id
      left join batches b on b.id = coalesce(j.batch_id, p.batch_id)
     where j.project_id = :project and j.finished_at < :before and j.billed <> 'unknown'
       and coalesce(p.state, j.state) in ('succeeded', 'rejected') and (p.id is null or p.finished_at < :before)
       and (b.id is null or (b.state = 'completed' and b.completed_at < :before))
       and not exists (select from deliveries d where d.job_id = j.id)
       and not {statements.HELD.format(jobs="j.id, p.id", batches="b.id")}
"""
_COUNT = text(f"select count(*) from events e where e.job_id in (select j.id {_ENDED})")  # noqa: S608 - of constants
_WALK = text(
    f"select xid, id, job_id, at from events where project_id = :project and {TOLD}"  # noqa: S608 - of constants
    " and (xid, id) > (:xid, :id) order by xid, id limit :rows"
)
# A job that is made again meanwhile is passed over: its row is locked, or it is not as it was.
_DELETE = text(
    f"""
    with ended as (select j.id {_ENDED} and j.id = any(:jobs) for no key update of j skip locked)
    delete from events e using ended where e.job_id = ended.id
    """  # noqa: S608 - of constants
)
