"""The feed: what webhooks say of a project, in one order that never changes behind a reader.

Numbers of events are given before their transactions commit, so a reader that went by them alone would pass by those of
a transaction that is open still. The feed goes by (`xid`, `id`) instead, and shows what is below the oldest transaction
that is open: all of that has committed or never will, so nothing can come to be in front of a cursor's place. A job's
own order is its `sequence`: of two moves the later may have the transaction that began first.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

_WALKED = 1000  # events that one page passes at the most; most of them may be of parts of jobs, of which none is told


@dataclass(frozen=True)
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


# The events that are told; and in the end the last that was passed, whatever it is.
_PAGE = text(
    """
    with walked as materialized (
        select events.*, row_number() over (order by xid, id) as passed from events
         where project_id = :project and (xid, id) > (:xid, :id)
           and xid < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
           and type not in ('job.noted', 'job.admitted', 'job.uncertain', 'job.gathering', 'job.copying')
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
    """
)
