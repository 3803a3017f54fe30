"""Webhooks: signed as Standard Webhooks says, one row an event and receiver, written in the move's transaction.

A delivery is a row with a due time, like a job; `deliver` makes one try of it and says what became of it.

Deliveries take turns by project, and within a project by receiver: host and port. However many wait for one receiver,
a tick looks at a few of them: it steps from receiver to receiver by an index. The bounds are on threads, since a
receiver that does not answer holds a thread for as long as a try may take:

- a receiver has two messages on their way, whichever projects name it, and these share them evenly;
- a project has four receivers on their way;
- a receiver that did not answer one of a project's deliveries gets none of that project's for 5 s, then for twice as
  long each time, five minutes at the most; receivers that do answer go first. Any answer ends that, an error too.
"""

from __future__ import annotations

import random
import secrets
import uuid
import zlib
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, DateTime, bindparam, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from standardwebhooks import Webhook

from worker import egress, timeouts
from worker.claims import Claim
from worker.egress import transports
from worker.errors import CallFailed
from worker.tables import DeadReceiver, Delivery

# Between tries; after the last the delivery is exhausted, three days and some hours after the event.
RETRIES = tuple(
    timedelta(seconds=seconds)
    for seconds in (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
)
GIVEN_UP = timedelta(hours=84)  # after the event, whatever was tried; the last retry is 83 h after it at the latest
_JITTER = 0.1  # so that receivers that were down together are not all called at one instant
_TRY = egress.Bounds(timeouts.DELIVERY.total_seconds(), cap=0)
_AT_ONCE = 5000  # deliveries that are given up together
_GONE = 410  # the receiver wants no more
_HEADERS = {"content-type": "application/json", "user-agent": "Noria-Webhooks/1"}

ROWS = 8  # deliveries in one message, which one thread works through
_ANYWHERE = 2**32  # receivers are told apart by 32 bits
_PAUSES = timedelta(seconds=5), timedelta(minutes=5)  # for a receiver that did not answer: the first, the longest
_LIMITS = {
    "rows": 2 * ROWS,  # on their way to one receiver: two messages
    "receivers": 4,  # on their way, of one project
    "all": 256,  # deliveries on their way: what the queue can start within half a lease
    "walked": 200,  # receivers of a project that one tick looks at; where there are more, the next begins elsewhere
    "lease": timeouts.SENT,
}

TERMINAL_EVENTS = frozenset({"job.succeeded", "job.failed", "job.canceled", "job.expired"})
JOB_EVENTS = TERMINAL_EVENTS | {"job.queued", "job.held", "job.submitted", "job.running"}


@dataclass(frozen=True)
class Tried:
    """What became of one try: `state` is delivered, waiting or exhausted; `again_at` when the next one is due."""

    state: str
    status: int | None
    error: str | None
    again_at: datetime | None


def new_secret() -> str:
    """A signing secret: `whsec_` and 32 random bytes in base64."""
    return "whsec_" + b64encode(secrets.token_bytes(32)).decode()


def receiver(url: str) -> int:
    """The number of a URL's receiver: a checksum of host and port, which the path does not change."""
    return zlib.crc32(transports.host_and_port(url).encode())


def wanted(event_type: str, events: list[str] | None) -> bool:
    """Whether a job's receiver is told of an event: the terminal ones, unless it asked for others."""
    return event_type in (TERMINAL_EVENTS if events is None else events)


def enqueue(
    connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, event_id: int, url: str, body: str
) -> None:
    """Writes the delivery of an event, once: a second call changes nothing."""
    row = {"project_id": project_id, "job_id": job_id, "event_id": event_id, "url": url, "body": body}
    connection.execute(_ENQUEUE, row | {"receiver": receiver(url)})


def enqueue_alarm(connection: Connection, url: str, body: str) -> None:
    """Writes the delivery of an alarm to the operator: of no project, so nothing signs it."""
    connection.execute(_ENQUEUE, {"url": url, "receiver": receiver(url), "body": body})


def signed(event_id: int, body: str, secret: str, at: datetime) -> dict[str, str]:
    """What identifies and signs a delivery; `at` must be in UTC, since the library drops the zone."""
    message_id = f"evt_{event_id}"
    moment = at.astimezone(UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, moment, body),
    }


def deliver(transport: egress.Transport, delivery: Delivery, secret: str | None, now: datetime) -> Tried:
    """One try: 2xx is delivered, a redirect is a failure, 410 ends it, all else is tried again until the last.

    `secret` None: an alarm, which is not signed.
    """
    headers = dict(_HEADERS)
    if secret is not None and delivery.event_id is not None:
        headers |= signed(delivery.event_id, delivery.body, secret, now)
    try:
        # only the status counts, so nothing of the receiver's answer is read
        with egress.stream(transport, "POST", delivery.url, _TRY, headers, delivery.body.encode()) as answer:
            status = answer.status
    except CallFailed as error:
        return failed(delivery, None, str(error), now)
    if 200 <= status < 300:
        return Tried("delivered", status, None, None)
    if status == _GONE:
        return Tried("exhausted", status, "the receiver said 410: gone", None)
    return failed(delivery, status, f"the receiver said {status}", now)


def give_up(connection: Connection, now: datetime) -> None:
    """Ends the deliveries that have waited for too long, some thousands at a time."""
    connection.execute(_GIVE_UP, {"before": now - GIVEN_UP, "now": now})


def failed(delivery: Delivery, status: int | None, error: str, now: datetime) -> Tried:
    """A try that came to nothing: when the next one is due, or that it was the last."""
    tries = delivery.tries + 1
    if tries >= len(RETRIES):
        return Tried("exhausted", status, error, None)
    again_at = now + RETRIES[tries] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - not a secret
    if again_at > delivery.created_at + GIVEN_UP:
        return Tried("exhausted", status, error, None)
    return Tried("waiting", status, error, again_at)


def claim_due(connection: Connection, now: datetime) -> list[Claim]:
    """Claims for deliveries that are due, in the order in which they should go; their group is their receiver."""
    start = random.randrange(_ANYWHERE)  # noqa: S311 - not a secret
    rows = connection.execute(_CLAIM, {"now": now, "start": start, **_LIMITS}).all()
    return [Claim(row.id, row.claim, row.crashes, row.receiver) for row in sorted(rows, key=lambda row: row.place)]


def pause(connection: Connection, delivery: Delivery, now: datetime) -> None:
    """Holds back the project's deliveries to a receiver that did not answer, for a while."""
    if delivery.project_id is not None:  # alarms are tried as they come
        connection.execute(_PAUSE, {"project": delivery.project_id, "receiver": delivery.receiver, "now": now})


def resume(connection: Connection, project_id: uuid.UUID, receiver: int) -> None:
    """Ends a receiver's pause."""
    connection.execute(_RESUME, {"project": project_id, "receiver": receiver})


# A new delivery, unless the event has one to that receiver.
_ENQUEUE = upsert(Delivery).on_conflict_do_nothing()

# The deliveries that have waited for too long, some thousands of them, and their end.
_OLD = (
    select(Delivery.id)
    .where(text("deliveries.run_at is not null"), Delivery.created_at < bindparam("before", type_=DateTime(True)))
    .where(or_(Delivery.claimed.is_(None), Delivery.run_at <= bindparam("now", type_=DateTime(True))))
    .order_by(Delivery.created_at)
    .limit(_AT_ONCE)
    .with_for_update(skip_locked=True)
    .cte("old")
)
_GIVE_UP = (
    update(Delivery)
    .where(Delivery.id == _OLD.c.id)
    .values(
        state="exhausted",
        run_at=None,
        claimed=None,
        finished_at=bindparam("now", type_=DateTime(True)),
        last_error=func.coalesce(Delivery.last_error, "its receiver had no time for it within three and a half days"),
    )
)

# The deliveries that go next, and their claims.
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
