"""Which deliveries go next: project by project, and within one receiver by receiver: by host and port.

However many deliveries wait for one receiver, a tick looks at a few of them: it steps from receiver to receiver by an
index. The bounds are on threads, since a receiver that does not answer holds one for as long as a try may take:

- a receiver has two messages on their way, whichever projects name it, and these share them evenly;
- a project has four receivers on their way;
- a receiver that did not answer one of a project's deliveries gets none of that project's for 5 s, then for twice as
  long each time, five minutes at the most; receivers that do answer go first. Any answer ends that, an error too.
"""

from __future__ import annotations

import random
import uuid
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, delete, func, text
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import timeouts
from worker.claims import Claim
from worker.tables import DeadReceiver, Delivery

ROWS = 8  # in one message, which one thread works off
_MESSAGES = 2  # to one receiver
_RECEIVERS = 4  # of one project
_ALL = 256  # deliveries on their way: what the queue can start within half a lease
_WALKED = 200  # receivers of a project that one tick looks at; where there are more, the next begins elsewhere
_ANYWHERE = 2**32  # receivers are told apart by 32 bits
_SILENT = timedelta(seconds=5), timedelta(minutes=5)


def claim_due(connection: Connection, now: datetime) -> list[Claim]:
    """Claims for deliveries that are due, in the order in which they should go; their group is their receiver."""
    said = {"now": now, "start": random.randrange(_ANYWHERE)}  # noqa: S311 - not a secret
    rows = connection.execute(_CLAIM, said | _BOUNDS).all()
    return [Claim(row.id, row.claim, row.crashes, row.receiver) for row in sorted(rows, key=lambda row: row.place)]


def silent(connection: Connection, delivery: Delivery, now: datetime) -> None:
    """Gives the receiver none of the project's deliveries for a while: it did not answer."""
    if delivery.project_id is not None:  # alarms are tried as they come
        connection.execute(_SILENCE, {"project": delivery.project_id, "receiver": delivery.receiver, "now": now})


def answered(connection: Connection, project_id: uuid.UUID, receiver: int) -> None:
    """Ends a receiver's silence."""
    ended = delete(DeadReceiver).where(DeadReceiver.project_id == project_id, DeadReceiver.receiver == receiver)
    connection.execute(ended)


_BOUNDS = {
    "rows": _MESSAGES * ROWS,
    "receivers": _RECEIVERS,
    "all": _ALL,
    "walked": _WALKED,
    "lease": timeouts.SENT,
}
_PROJECT = "coalesce(project_id, '00000000-0000-0000-0000-000000000000'::uuid)"  # as the index has it: alarms have none
_CLAIM = text(
    f"""
    with recursive projects (id) as (
        -- one look into the index for each project that has deliveries, however many
        (select {_PROJECT} from deliveries where run_at is not null order by {_PROJECT} limit 1)
        union all
        select (select {_PROJECT} from deliveries where run_at is not null and {_PROJECT} > projects.id
                 order by {_PROJECT} limit 1)
          from projects where projects.id is not null
    ), busy as materialized (
        -- what has lapsed occupies no thread
        select {_PROJECT} as project_id, receiver from deliveries where claimed is not null and run_at > :now
    ), free as (
        select projects.id as project_id, walk.receiver, coalesce(dead_receivers.failures, 0) > 0 as is_silent
          from projects cross join lateral (
               -- the same for each of its receivers: on from any place and from the first, until the walks meet
               with recursive walk (receiver) as (
                   select first.receiver from (values (cast(:start as bigint)), (0)) as begins (at) cross join lateral (
                          select receiver from deliveries
                           where run_at is not null and {_PROJECT} = projects.id and receiver >= begins.at
                           order by receiver limit 1) as first
                   union
                   select (select receiver from deliveries
                            where run_at is not null and {_PROJECT} = projects.id and receiver > walk.receiver
                            order by receiver limit 1)
                     from walk where walk.receiver is not null)
               select receiver from walk where receiver is not null limit :walked) as walk
          left join dead_receivers
            on dead_receivers.project_id = projects.id and dead_receivers.receiver = walk.receiver
         where projects.id is not null and coalesce(dead_receivers.resume_at <= :now, true)
           and not exists (select from busy where busy.receiver = walk.receiver)
    ), due as (
        select free.project_id, free.receiver, free.is_silent, waits.id, waits.run_at, waits.n,
               min(waits.run_at) over (partition by free.project_id, free.receiver) as since
          from free cross join lateral (
               select id, run_at, row_number() over (order by run_at) as n from deliveries
                where run_at is not null and {_PROJECT} = free.project_id and receiver = free.receiver
                  and run_at <= :now
                order by run_at limit :rows) as waits
    ), placed as (
        select due.id, due.project_id, due.run_at, due.n,
               row_number() over (partition by due.receiver order by due.n, due.run_at) as of_receiver,
               dense_rank() over (partition by due.project_id order by due.is_silent, due.since, due.receiver)
               + (select count(distinct receiver) from busy where busy.project_id = due.project_id) as of_project
          from due
    ), next as materialized (
        select id, row_number() over (order by turn, run_at) as place from (
               select id, run_at, row_number() over (partition by project_id order by n, run_at) as turn
                 from placed where of_receiver <= :rows and of_project <= :receivers) as turns
         order by turn, run_at limit greatest(:all - (select count(*) from busy), 0)
    ), picked as (
        select deliveries.id, next.place from deliveries join next on next.id = deliveries.id
         where deliveries.run_at <= :now for update of deliveries skip locked
    )
    update deliveries
       set run_at = :now + cast(:lease as interval), claim = claim + 1, claimed = 'sent',
           crashes = crashes + case claimed when 'taken' then 1 else 0 end
      from picked where picked.id = deliveries.id
    returning deliveries.id, claim, crashes, cast(receiver as text) as receiver, picked.place
    """  # noqa: S608 - words of ours
)

_AGAIN = func.least(_SILENT[0] * func.power(2, DeadReceiver.failures), _SILENT[1])
_FIRST = upsert(DeadReceiver).values(
    project_id=bindparam("project"),
    receiver=bindparam("receiver"),
    failures=1,
    resume_at=bindparam("now") + _SILENT[0],
)
_SILENCE = _FIRST.on_conflict_do_update(
    index_elements=[DeadReceiver.project_id, DeadReceiver.receiver],
    set_={
        "failures": func.least(DeadReceiver.failures + 1, 10),
        "resume_at": bindparam("now") + _AGAIN,
    },
)
