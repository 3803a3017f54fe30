"""Whose deliveries go next: by project, and within a project by receiver, which is a host and port.

However many wait for one receiver, a look at what is next reads a few of them: it steps from receiver to receiver by
an index. The bounds are on threads, since a receiver that does not answer holds a thread for as long as a try may take:

- a receiver has two messages on their way, whichever projects name it, and each is of one project;
- a project has four receivers on their way;
- a receiver that did not answer one of a project's deliveries gets none of that project's for 5 s, then for twice as
  long each time, five minutes at the most; receivers that do answer go first. Any answer ends that, an error too.

The tick gives receivers their messages (`claim_due`). A message's thread then goes on by itself, with what else waits
for its receiver (`take_more`), and from there to another receiver of its project (`next_receiver`). One lock is held by
whoever gives a thread to a receiver that has none.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    Uuid,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import claims, timeouts
from worker.claims import Claim, Numbers
from worker.tables import DeadReceiver, Delivery, Project
from worker.webhooks import endpoints

ROWS = 8  # deliveries in one message
MORE = 32  # that its thread takes at once when it goes on
LOCK = 0x4E6F72696B  # "Norik": whoever holds it gives receivers their threads
_ANYWHERE = 2**32  # receivers are told apart by 32 bits
_PAUSES = timedelta(seconds=5), timedelta(minutes=5)  # for a receiver that did not answer: the first, the longest
_RECEIVERS = 4  # on their way, of one project
_WALKED = 200  # receivers of a project that one look passes; where there are more, the next begins elsewhere
_LIMITS = {
    "rows": ROWS,
    "receivers": _RECEIVERS,
    "all": 256,  # deliveries in messages that no worker has: what the queue can start within half a lease
    "walked": _WALKED,
    "lease": timeouts.SENT,
}
_LEASE = timeouts.LEASES["deliver"]


def claim_due(connection: Connection, now: datetime) -> list[Claim]:
    """Claims for deliveries that are due, in the order in which they should go.

    Their group is their project and receiver; one on which a worker died counts as a whole message.
    """
    connection.execute(_LOCK_AND_STEP)
    start = random.randrange(_ANYWHERE)  # noqa: S311 - not a secret
    rows = connection.execute(_CLAIM, {"now": now, "start": start, **_LIMITS}).all()
    return [Claim(row.id, row.claim, row.crashes, row.place) for row in sorted(rows, key=lambda row: row.turn)]


def take(connection: Connection, numbers: Numbers) -> Sequence[Row[Any]]:
    """The deliveries of a message that are now ours, each with what signs it (`secret`).

    And whether its receiver `was_silent`, and whether its endpoint `is_off`.
    """
    return claims.take(connection, Delivery, numbers, _LEASE, (*Delivery.__table__.c, *_WITH))


def take_more(connection: Connection, project_id: uuid.UUID | None, receiver: int) -> Sequence[Row[Any]]:
    """As `take`, what else of the project is due to a receiver that the caller has a thread at.

    Claimed and taken in one. What a worker died on is left to the tick.
    """
    connection.execute(_STEP)
    rows = connection.execute(_TAKE_MORE, {"the_project": project_id, "the_receiver": receiver}).all()
    return sorted(rows, key=lambda row: row.due_at)


def next_receiver(connection: Connection, project_id: uuid.UUID | None, receiver: int) -> int | None:
    """The project's next receiver that has something due, answers, and has no thread; None: there is none for now.

    One that another project waits for too is left to the tick: a thread that goes on would always be before it.

    The caller must have put on record what it did for its last one, so that its own thread is not counted, and takes
    the next one's deliveries in the same transaction.
    """
    connection.execute(_LOCK_AND_STEP)
    found = connection.execute(_NEXT, {"project": project_id, "start": receiver + 1}).scalar_one_or_none()
    return None if found is None else int(found)


def pause(connection: Connection, delivery: Delivery, now: datetime) -> None:
    """Holds back the project's deliveries to a receiver that did not answer, for a while."""
    if delivery.project_id is not None:  # alarms are tried as they come
        connection.execute(_PAUSE, {"project": delivery.project_id, "receiver": delivery.receiver, "now": now})


def resume(connection: Connection, delivery: Delivery) -> None:
    """Ends a receiver's pause."""
    connection.execute(_RESUME, {"project": delivery.project_id, "receiver": delivery.receiver})


# Statistics are of another hour. Where they say that one delivery waits, and a hundred thousand do, the planner would
# read and sort them all at each step. Without sorts and scans it follows the one index that has the order.
_BY_INDEX = [func.set_config(setting, "off", True) for setting in ("enable_sort", "enable_seqscan")]
_STEP = select(*_BY_INDEX)
_LOCK_AND_STEP = select(func.pg_advisory_xact_lock(LOCK), *_BY_INDEX)

_NOBODY = "'00000000-0000-0000-0000-000000000000'::uuid"  # alarms are of no project
_PROJECT = f"coalesce(project_id, {_NOBODY})"  # as the index has it


def _walk(project: str) -> str:
    """The receivers of a project that have deliveries: from `start` on and from the first, until the walks meet."""
    return f"""
        with recursive walk (receiver) as (
            select first.receiver from (values (cast(:start as bigint)), (0)) as begins (at) cross join lateral (
                   select receiver from deliveries
                    where run_at is not null and {_PROJECT} = {project} and receiver >= begins.at
                    order by receiver limit 1) as first
            union
            select (select receiver from deliveries
                     where run_at is not null and {_PROJECT} = {project} and receiver > walk.receiver
                     order by receiver limit 1)
              from walk where walk.receiver is not null)
        select receiver from walk where receiver is not null limit :walked
        """  # noqa: S608 - words of ours


# Projects that have deliveries: one look into the index for each, however many those are.
_WAITING = f"""
    projects (id) as (
        (select {_PROJECT} from deliveries where run_at is not null order by {_PROJECT} limit 1)
        union all
        select (select {_PROJECT} from deliveries where run_at is not null and {_PROJECT} > projects.id
                 order by {_PROJECT} limit 1)
          from projects where projects.id is not null)
    """  # noqa: S608 - words of ours

# What has lapsed occupies no thread. The order is that of the index to take.
_BUSY = f"""
    busy as materialized (
        select {_PROJECT} as project_id, receiver, claimed from deliveries
         where claimed is not null and run_at > {{now}} order by url)
    """  # noqa: S608 - words of ours


_ORDER = f"{_PROJECT}, receiver, run_at"


def _due(project: str, receiver: str, now: str) -> str:
    """What is due to a project's receiver: a range of the index, which is taken with that order alone."""
    least, most = f"({project}, {receiver}, '-infinity')", f"({project}, {receiver}, {now})"
    return f"run_at is not null and ({_ORDER}) >= {least} and ({_ORDER}) <= {most}"


# The deliveries that go next, and their claims.
_CLAIM = text(
    f"""
    with recursive {_WAITING}, {_BUSY.format(now=":now")}, free as (
        select projects.id as project_id, walk.receiver, coalesce(dead_receivers.failures, 0) > 0 as is_silent
          from projects cross join lateral ({_walk("projects.id")}) as walk
          left join dead_receivers
            on dead_receivers.project_id = projects.id and dead_receivers.receiver = walk.receiver
         where projects.id is not null and coalesce(dead_receivers.resume_at <= :now, true)
           and not exists (select from busy where busy.receiver = walk.receiver)
    ), due as (
        select free.project_id, free.receiver, free.is_silent, waits.id, waits.run_at, waits.n,
               min(waits.run_at) over (partition by free.project_id, free.receiver) as since
          from free cross join lateral (
               -- `n`: rows so far, where one on which a worker died counts as a whole message
               select id, run_at, sum(case when crashes > 0 or claimed = 'taken' then :rows else 1 end)
                                  over (order by run_at rows unbounded preceding) as n
                 from (select * from deliveries
                        where {_due("free.project_id", "free.receiver", ":now")}
                        order by {_ORDER} limit 2 * :rows) as first) as waits
    ), placed as (
        select due.*, dense_rank() over (partition by project_id order by is_silent, since, receiver)
               + (select count(distinct receiver) from busy where busy.project_id = due.project_id) as of_project
          from due
    ), drawn as (
        -- of the projects that share a receiver, two have a message each: by lot, so that all have their turn
        select placed.*, dense_rank() over (
                   partition by receiver order by uuid_hash_extended(project_id, :start), project_id) as lot
          from placed where of_project <= :receivers
    ), next as materialized (
        select id, row_number() over (order by turn, run_at) as turn from (
               select id, run_at, row_number() over (partition by project_id order by n, run_at) as turn
                 from (select drawn.*, max(lot) over (partition by receiver) as lots from drawn) as drawn
                where lot <= 2 and n <= case lots when 1 then 2 * :rows else :rows end) as turns
         order by turn, run_at limit greatest(:all - (select count(*) from busy where claimed = 'sent'), 0)
    ), picked as (
        -- an array and a coalesce, so that they are found by their ids
        select id from deliveries where id = any (array(select id from next)) and coalesce(run_at <= :now, false)
           for update skip locked
    )
    update deliveries
       set run_at = :now + cast(:lease as interval), claim = claim + 1, claimed = 'sent',
           crashes = crashes + case claimed when 'taken' then 1 else 0 end
      from picked join next on next.id = picked.id where picked.id = deliveries.id
    returning deliveries.id, claim, crashes, concat(project_id, ' ', receiver) as place, next.turn
    """  # noqa: S608 - words of ours
)

_THIS = f"coalesce(cast(:project as uuid), {_NOBODY})"
# A receiver that the project's threads may go on to. One that others wait for too is the tick's to give, by lot.
_NEXT = text(
    f"""
    with recursive {_WAITING}, {_BUSY.format(now="statement_timestamp()")}
    select walk.receiver from ({_walk(_THIS)}) as walk
     cross join lateral (
           select from deliveries
            where {_due(_THIS, "walk.receiver", "statement_timestamp()")} and claimed is null and crashes = 0
            order by {_ORDER} limit 1) as due
     where (select count(distinct receiver) from busy where project_id = {_THIS}) < :receivers
       and not exists (select from busy where busy.receiver = walk.receiver)
       and not exists (select from dead_receivers
                        where dead_receivers.project_id = {_THIS} and dead_receivers.receiver = walk.receiver)
       and not exists (
           select from projects cross join lateral (
                  select from deliveries where {_due("projects.id", "walk.receiver", "statement_timestamp()")}
                   order by {_ORDER} limit 1) as due
            where projects.id <> {_THIS})
     limit 1
    """  # noqa: S608 - words of ours
).bindparams(walked=_WALKED, receivers=_RECEIVERS)

_WITH = (
    func.coalesce(
        endpoints.SECRETS, select(Project.webhook_secret).where(Project.id == Delivery.project_id).scalar_subquery()
    ).label("secret"),
    endpoints.IS_OFF,
    exists()
    .where(DeadReceiver.project_id == Delivery.project_id, DeadReceiver.receiver == Delivery.receiver)
    .label("was_silent"),
)
_HERE: tuple[Any, ...] = (literal_column(_PROJECT), Delivery.receiver, Delivery.run_at)
_PLACE = (
    func.coalesce(bindparam("the_project", type_=Uuid), literal_column(_NOBODY)),
    bindparam("the_receiver", type_=BigInteger),
)
# `_due` again
_DUE = (
    select(Delivery.id, Delivery.run_at.label("due_at"))
    .where(
        text("deliveries.run_at is not null"),
        tuple_(*_HERE) >= tuple_(*_PLACE, literal_column("'-infinity'")),
        tuple_(*_HERE) <= tuple_(*_PLACE, claims.NOW),
        Delivery.claimed.is_(None),
        Delivery.crashes == 0,
    )
    .order_by(*_HERE)
    .limit(MORE)
    .with_for_update(skip_locked=True)
    .cte("due")
)
_TAKE_MORE = (
    update(Delivery)
    .where(Delivery.id == _DUE.c.id)
    .values(run_at=claims.NOW + _LEASE, claim=Delivery.claim + 1, claimed=claims.TAKEN)
    .returning(*Delivery.__table__.c, *_WITH, _DUE.c.due_at)
)

_AGAIN = func.least(_PAUSES[0] * func.power(2, DeadReceiver.failures), _PAUSES[1])
# A receiver's first pause, or a longer one.
_PAUSE = (
    upsert(DeadReceiver)
    .values(
        project_id=bindparam("project"),
        receiver=bindparam("receiver"),
        failures=1,
        resume_at=bindparam("now") + _PAUSES[0],
    )
    .on_conflict_do_update(
        index_elements=[DeadReceiver.project_id, DeadReceiver.receiver],
        set_={"failures": func.least(DeadReceiver.failures + 1, 10), "resume_at": bindparam("now") + _AGAIN},
    )
)
_RESUME = delete(DeadReceiver).where(
    DeadReceiver.project_id == bindparam("project"), DeadReceiver.receiver == bindparam("receiver")
)
