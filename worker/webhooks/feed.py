"""The feed: what webhooks say of a project, in one order that never changes behind a reader.

Numbers of events are given before their transactions commit, so a reader that went by them alone would pass by those of
a transaction that is open still. The feed goes by (`xid`, `id`) instead, and shows what is below the oldest transaction
that is open: all of that has committed or never will, so nothing can come to be in front of a cursor's place. A job's
own order is its `sequence`: of two moves the later may have the transaction that began first.

Whoever waits for events is told of them by the tick: `NOTIFY`, in a statement that it makes anyway. In the transaction
of each event it would have them all commit one after the other (ADR 0047). A notification is a hint, as a message of
Celery's is: it may be lost, and what it tells of may become readable later, so who waits looks each second, too.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Case, Connection, DateTime, Engine, Row, Text, case, cast, func, literal_column, text

from worker import database
from worker.claims import Now

_CHANNEL = "noria_events"
_NEWS = timedelta(seconds=5)  # for which an event is told of, each tick: one that is open still may hold it back

# what webhooks may say; the index of the feed is of these
TOLD = "type not in ('job.noted', 'job.admitted', 'job.uncertain', 'job.gathering', 'job.copying')"
_WALKED = 1000  # events that one page passes at the most; most of them may be of parts of jobs, of which none is told


@dataclass(frozen=True, order=True)
class Place:
    """After which event a reader goes on."""

    xid: int = 0
    id: int = 0

    @classmethod
    def of(cls, cursor: str) -> Place:
        """The place that a cursor names."""
        xid, _, event_id = cursor.partition("-")
        return cls(int(xid), int(event_id))

    def __str__(self) -> str:
        return f"{self.xid}-{self.id}"


@dataclass(frozen=True)
class Page:
    """Events, where to go on, and whether there are more now."""

    events: Sequence[Row[Any]]
    after: Place
    has_more: bool


def page(connection: Connection, project_id: uuid.UUID, after: Place, limit: int) -> Page:
    """At most `limit` events after that place; of fewer there may be more all the same."""
    bound = {"project": project_id, "xid": after.xid, "id": after.id, "limit": limit + 1, "walked": _WALKED}
    rows = connection.execute(_PAGE, bound).all()
    if not rows:
        return Page([], after, has_more=False)
    told, last = rows[:-1], rows[-1]
    if len(told) > limit:
        return Page(told[:limit], Place(told[limit - 1].xid, told[limit - 1].id), has_more=True)
    return Page(told, Place(last.xid, last.id), has_more=last.passed == _WALKED)


def ends(connection: Connection, project_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Place]:
    """The place of each project's last event that may be read now; it may be one that is passed, and not told."""
    rows = connection.execute(_ENDS, {"projects": list(project_ids)})
    return {row.project_id: Place(row.xid, row.id) for row in rows}


def tells(now: Now) -> Case[Any]:
    """Part of the tick's look: a notification, as long as the last event is new."""
    return case((now - _NEWS < _LAST, cast(func.pg_notify(_CHANNEL, ""), Text)))


@contextmanager
def listening(engine: Engine) -> Iterator[Connection]:
    """A connection of its own, outside transactions, that hears the notifications; through a pooler it hears none."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # it ends with the block: the pool would hand it to others, listening
        if not database.is_pooled(connection):
            connection.exec_driver_sql(f"listen {_CHANNEL}")
        yield connection


def wait(connection: Connection, seconds: float) -> None:
    """Returns when a notification comes, and after that time at the latest; raises psycopg.Error."""
    driver: Any = connection.connection.dbapi_connection  # psycopg's
    for _ in driver.notifies(timeout=seconds, stop_after=1):
        pass


# When the last event was written. Its limit is no parameter: with one, the tick's look was planned anew each time.
_LAST = literal_column("(select at from events order by id desc limit 1)", DateTime(timezone=True))
# What is told, in so far as no open transaction can still precede it.
_READABLE = f"xid < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint) and {TOLD}"
# The events that are told; and in the end the last that was passed, whatever it is.
_PAGE = text(
    f"""
    with walked as materialized (
        select events.*, row_number() over (order by xid, id) as passed from events
         where project_id = :project and (xid, id) > (:xid, :id)
           and {_READABLE}
         order by xid, id limit :walked
    )
    (select walked.*, about.custom_id, about.batch_id as job_batch_id, false as is_last
       from walked left join lateral (
            -- with a limit, so that it is one look into the index for each
            select custom_id, batch_id, parent_id from jobs where jobs.id = walked.job_id limit 1) as about on true
      where about.parent_id is null
      order by walked.xid, walked.id limit :limit)  -- the order in which they were walked: no look at a job too many
    union all
    (select walked.*, null, null, true from walked order by passed desc limit 1)
     order by is_last, passed
    """  # noqa: S608 - words of ours
)
# The last event of each project that may be read: a look into the index for each.
_ENDS = text(
    f"""
    select project_id, xid, id from unnest(cast(:projects as uuid[])) as wanted,
           lateral (select project_id, xid, id from events where project_id = wanted and {_READABLE}
                     order by xid desc, id desc limit 1) as last
    """  # noqa: S608 - words of ours
)
