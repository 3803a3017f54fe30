"""Webhooks: signed as Standard Webhooks says, one row an event and receiver, written in the move's transaction.

A delivery is a row with a due time, like a job; `deliver` makes one try of it and says what became of it. Whose turn it
is stands in `receivers`; `sending` works through a message of them.
"""

from __future__ import annotations

import random
import secrets
import time
import uuid
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from sqlalchemy import BigInteger, Connection, DateTime, Text, Uuid, bindparam, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from standardwebhooks import Webhook

from worker import claims, egress, timeouts
from worker import text as words
from worker.egress import transports
from worker.errors import CallFailed
from worker.tables import Delivery

# Between tries; after the last the delivery is exhausted, three days and some hours after the event.
RETRIES = tuple(
    timedelta(seconds=seconds)
    for seconds in (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
)
GIVEN_UP = timedelta(hours=84)  # after the event, whatever was tried; the last retry is 83 h after it at the latest
_JITTER = 0.1  # so that receivers that were down together are not all called at one instant
_TRY = egress.Bounds(timeouts.DELIVERY.total_seconds(), cap=1 << 14)
_BODY = 0.2  # seconds for an answer's body; where it takes longer, or is longer than the cap, its connection is closed
_AT_ONCE = 5000  # deliveries that are given up together
GONE = 410  # the receiver wants no more
_BUSY = frozenset({429, 503})  # whose Retry-After is heeded
_LONGEST = timedelta(hours=24)  # that a Retry-After may ask for
_KEPT = 2048  # bytes of an answer that an endpoint's log shows
_HEADERS = {"content-type": "application/json", "user-agent": "Noria-Webhooks/1"}

# What a receiver is told of that names no events: how a job ends, and that it waits for the review it was to have.
DEFAULT_EVENTS = frozenset(
    {"job.succeeded", "job.rejected", "job.failed", "job.canceled", "job.expired", "job.awaiting_review"}
)
JOB_EVENTS = DEFAULT_EVENTS | {"job.queued", "job.held", "job.submitted", "job.running"}


@dataclass(frozen=True)
class Tried:
    """What became of one try: `state` is delivered, waiting or exhausted; `again_at` when the next one is due.

    `milliseconds` is what it took; `answer` how the receiver's words began.
    """

    state: str
    status: int | None
    error: str | None
    again_at: datetime | None
    milliseconds: int | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Posted:
    """What came back of one POST: a `status`, or the `error` why there is none."""

    status: int | None
    error: str | None
    headers: Mapping[str, str]
    answer: str
    milliseconds: int


def new_secret() -> str:
    """A signing secret: `whsec_` and 32 random bytes in base64."""
    return "whsec_" + b64encode(secrets.token_bytes(32)).decode()


def receiver(url: str) -> int:
    """The number of a URL's receiver: a checksum of host and port, which the path does not change."""
    return zlib.crc32(transports.host_and_port(url).encode())


def wanted(event_type: str, events: list[str] | None) -> bool:
    """Whether a job's receiver is told of an event: by default of its ends and of its review."""
    return event_type in (DEFAULT_EVENTS if events is None else events)


def enqueue(
    connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID | None, event_id: int, url: str, body: str
) -> None:
    """Writes the delivery of an event, of a job or (None) of a batch, once: a second call changes nothing."""
    enqueue_all(connection, project_id, [(job_id, event_id, url, body)])


def enqueue_all(
    connection: Connection, project_id: uuid.UUID, rows: Sequence[tuple[uuid.UUID | None, int, str, str]]
) -> None:
    """Writes the deliveries of a project's events as `enqueue` does, by one statement: job, event, URL and body."""
    jobs, events, urls, bodies = (list(column) for column in zip(*rows, strict=True))
    told = {"jobs": jobs, "events": events, "urls": urls, "bodies": bodies, "receivers": list(map(receiver, urls))}
    connection.execute(_ENQUEUE_ALL, {"of_project": project_id, **told})


def enqueue_alarm(connection: Connection, url: str, body: str) -> None:
    """Writes the delivery of an alarm to the operator: of no project, so nothing signs it."""
    connection.execute(_ENQUEUE, {"url": url, "receiver": receiver(url), "body": body})


def signed(message_id: str, body: str, secret: str, at: datetime) -> dict[str, str]:
    """What identifies and signs a message; `at` must be in UTC, since the library drops the zone.

    `secret` may be two, separated by a space: then there are two signatures.
    """
    moment = at.astimezone(UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(Webhook(one).sign(message_id, moment, body) for one in secret.split()),
    }


def post(transport: egress.Transport, url: str, headers: Mapping[str, str], body: str) -> Posted:
    """One POST; the status alone counts, and no redirect is followed."""
    began = time.monotonic()
    try:
        with egress.stream(transport, "POST", url, _TRY, {**_HEADERS, **headers}, body.encode()) as answer:
            spent = _milliseconds(began)
            said = egress.read_out(answer, _BODY, _KEPT).decode(errors="replace")
            return Posted(answer.status, None, answer.headers, words.storable(said), spent)
    except CallFailed as error:
        return Posted(None, str(error), {}, "", _milliseconds(began))


def deliver(transport: egress.Transport, delivery: Delivery, secret: str | None, now: datetime) -> Tried:
    """One try: 2xx is delivered, a redirect is a failure, 410 ends it, all else is tried again until the last.

    `secret` None: an alarm, which is not signed.
    """
    headers: dict[str, str] = {}
    if secret is not None and delivery.event_id is not None:
        headers = signed(f"evt_{delivery.event_id}", delivery.body, secret, now)
    posted = post(transport, delivery.url, headers, delivery.body)
    return replace(_judged(delivery, posted, now), milliseconds=posted.milliseconds, answer=posted.answer)


def why(posted: Posted) -> str | None:
    """Why it was not taken, in words; None where it was."""
    if posted.status is None:
        return posted.error
    if 200 <= posted.status < 300:
        return None
    if 300 <= posted.status < 400:
        return f"the receiver said {posted.status}: redirects are not followed; name the address that it leads to"
    return "the receiver said 410: gone" if posted.status == GONE else f"the receiver said {posted.status}"


def give_up(connection: Connection, now: datetime) -> None:
    """Ends the deliveries that have waited for too long, some thousands at a time."""
    connection.execute(_GIVE_UP, {"before": now - GIVEN_UP, "now": now})


def failed(delivery: Delivery, status: int | None, error: str, now: datetime, wait: timedelta = timedelta(0)) -> Tried:
    """A try that came to nothing: when the next one is due, no sooner than after `wait`, or that it was the last."""
    tries = delivery.tries + 1
    if tries >= len(RETRIES):
        return Tried("exhausted", status, error, None)
    pause = RETRIES[tries] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - not a secret
    again_at = now + max(pause, wait)
    if again_at > delivery.created_at + GIVEN_UP:
        return Tried("exhausted", status, error, None)
    return Tried("waiting", status, error, again_at)


def _judged(delivery: Delivery, posted: Posted, now: datetime) -> Tried:
    error = why(posted)
    if error is None:
        return Tried("delivered", posted.status, None, None)
    if posted.status == GONE:
        return Tried("exhausted", posted.status, error, None)
    wait = _asked_for(posted.headers.get("retry-after", ""), now) if posted.status in _BUSY else timedelta(0)
    return failed(delivery, posted.status, error, now, wait)


def _asked_for(retry_after: str, now: datetime) -> timedelta:
    """How long a receiver asks to be left alone: seconds, or a date (RFC 9110, 10.2.3); a day at the most."""
    try:
        if retry_after.isdigit():
            return min(timedelta(seconds=int(retry_after[:9])), _LONGEST)
        at = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return timedelta(0)
    return max(timedelta(0), min((at if at.tzinfo else at.replace(tzinfo=UTC)) - now, _LONGEST))


def _milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


# A new delivery, unless the event has one to that receiver.
_ENQUEUE = upsert(Delivery).on_conflict_do_nothing()
_TOLD = claims.unnested("told", jobs=Uuid(), events=BigInteger(), urls=Text(), bodies=Text(), receivers=BigInteger()).c
_ENQUEUE_ALL = (
    upsert(Delivery)
    .from_select(
        ["project_id", "job_id", "event_id", "url", "body", "receiver"],
        select(
            bindparam("of_project", type_=Uuid), _TOLD.jobs, _TOLD.events, _TOLD.urls, _TOLD.bodies, _TOLD.receivers
        ),
    )
    .on_conflict_do_nothing()
)

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
