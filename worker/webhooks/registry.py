"""The endpoints that a project has registered, and what was delivered to each.

A secret is shown where it is made, and nowhere else. Deleted endpoints keep their rows, without their secrets, since
events and deliveries name them. Every query of a user's carries the project, so another project's ids do not exist.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, TextClause, bindparam, insert, select, text, update

from worker import text as words
from worker import webhooks
from worker.errors import Conflict, NotFound
from worker.tables import Project, WebhookEndpoint

PING = "test.ping"
MOST = 16  # endpoints of a project
REDELIVERED = 10_000  # deliveries in one call
OVERLAP = timedelta(hours=24)  # for which the secret before signs too
STATES = ("waiting", "delivered", "exhausted")  # of a delivery
_FIRST, _LAST = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)
_BY_HAND = "disabled by the user"


@dataclass(frozen=True)
class Wanted:
    """What a user says of an endpoint; `events` null: the defaults."""

    url: str
    events: list[str] | None
    description: str


@dataclass(frozen=True)
class Which:
    """Which deliveries of an endpoint: of these states, with these ids (None: any), of events since then."""

    states: Collection[str] = STATES
    ids: Sequence[uuid.UUID] | None = None
    since: datetime | None = None


def make(connection: Connection, project_id: uuid.UUID, wanted: Wanted) -> WebhookEndpoint:
    """Registers an endpoint; raises Conflict for one more than there may be, or where the URL is registered."""
    connection.execute(_LOCK, {"the_project": project_id})
    urls = connection.execute(_URLS, {"the_project": project_id}).scalars().all()
    if wanted.url in urls:
        raise Conflict("endpoint_exists", "the project has an endpoint with this URL; rotate gives it a new secret")
    if len(urls) >= MOST:
        raise Conflict("too_many_endpoints", f"the project has {MOST} endpoints, as many as it may")
    row = {"project_id": project_id, "secret": webhooks.new_secret(), **_columns(wanted)}
    return WebhookEndpoint.of(connection.execute(_MAKE, row).mappings().one())


def one(connection: Connection, project_id: uuid.UUID, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    """The project's endpoint; raises NotFound."""
    return _found(connection, _ONE, project_id, endpoint_id)


def locked(connection: Connection, project_id: uuid.UUID, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    """The project's endpoint, locked; raises NotFound."""
    return _found(connection, _LOCKED, project_id, endpoint_id)


def all_of(connection: Connection, project_id: uuid.UUID) -> list[WebhookEndpoint]:
    """The project's endpoints, the oldest first."""
    return [WebhookEndpoint.of(row) for row in connection.execute(_ALL, {"the_project": project_id}).mappings()]


def change(
    connection: Connection, endpoint: WebhookEndpoint, wanted: Wanted, disabled: bool, now: datetime
) -> WebhookEndpoint:
    """An endpoint, which is locked, as it is wanted now; raises Conflict where another has that URL.

    What waits goes to where it was to go. One that is enabled again has failed at nothing yet.
    """
    others = connection.execute(_URLS, {"the_project": endpoint.project_id}).scalars().all()
    if wanted.url != endpoint.url and wanted.url in others:
        raise Conflict("endpoint_exists", "the project has an endpoint with this URL")
    columns = _columns(wanted)
    if disabled != (endpoint.disabled_at is not None):
        columns |= {"disabled_at": now, "disabled_why": _BY_HAND} if disabled else dict.fromkeys(_OFF)
    return _changed(connection, endpoint, columns)


def rotate(connection: Connection, endpoint: WebhookEndpoint, now: datetime) -> WebhookEndpoint:
    """The endpoint, which is locked, with a new secret; the one before signs too for a day."""
    previous = {"previous_secret": endpoint.secret, "previous_until": now + OVERLAP}
    return _changed(connection, endpoint, {"secret": webhooks.new_secret(), **previous})


def remove(connection: Connection, endpoint: WebhookEndpoint, now: datetime) -> None:
    """Deletes an endpoint, which is locked; nothing is sent there any more."""
    _changed(connection, endpoint, {"deleted_at": now, "secret": "", "previous_secret": None})


def secrets(endpoint: WebhookEndpoint, now: datetime) -> str:
    """What signs now: its secret, and for a day after a rotation the one before."""
    is_over = endpoint.previous_until is None or endpoint.previous_until <= now
    return endpoint.secret if is_over else f"{endpoint.secret} {endpoint.previous_secret}"


def ping(endpoint: WebhookEndpoint, now: datetime) -> str:
    """What an endpoint is told to try it."""
    data = {"object": "webhook_endpoint", "id": str(endpoint.id), "description": endpoint.description}
    return json.dumps({"type": PING, "timestamp": words.moment(now), "sequence": 0, "data": data}, ensure_ascii=False)


def deliveries(
    connection: Connection, endpoint: WebhookEndpoint, which: Which, before: uuid.UUID | None, limit: int
) -> Sequence[Row[Any]]:
    """At most `limit` deliveries, the newest first, after the one with the id `before`; each with its event."""
    bound = _bound(endpoint, which) | {"before": before or _LAST, "limit": limit}
    return connection.execute(_LOG, bound).all()


def redeliver(
    connection: Connection, endpoint: WebhookEndpoint, which: Which, after: uuid.UUID | None, now: datetime
) -> tuple[int, uuid.UUID | None]:
    """Makes deliveries due again from the first try on, under their old ids: how many, and after which to go on.

    They go to the endpoint's URL of now. Those on their way are left alone. Raises Conflict for one that is disabled.
    """
    if endpoint.disabled_at is not None:
        raise Conflict("endpoint_disabled", f"{endpoint.disabled_why}; PATCH it with disabled: false first")
    bound = _bound(endpoint, which) | {"after": after or _FIRST, "limit": REDELIVERED, "now": now}
    bound |= {"url": endpoint.url, "receiver": endpoint.receiver}
    if which.ids is None:
        found = connection.execute(_REDELIVER, bound).one()
    else:
        found = connection.execute(_REDELIVER_THESE, bound | {"ids": list(which.ids)}).one()
    return found.done, found.last if found.seen == REDELIVERED else None


def earliest(at: datetime) -> uuid.UUID:
    """The least UUIDv7 of that millisecond: ids of rows that were written before it are below."""
    return uuid.UUID(int=max(0, int(at.timestamp() * 1000)) << 80)


def _bound(endpoint: WebhookEndpoint, which: Which) -> dict[str, Any]:
    return {
        "endpoint": endpoint.id,
        "states": sorted(which.states),
        "since": _FIRST if which.since is None else earliest(which.since),
    }


def _columns(wanted: Wanted) -> dict[str, Any]:
    return {**vars(wanted), "receiver": webhooks.receiver(wanted.url)}


def _changed(connection: Connection, endpoint: WebhookEndpoint, columns: dict[str, Any]) -> WebhookEndpoint:
    changing = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id).values(columns)
    row = connection.execute(changing.returning(*WebhookEndpoint.__table__.c)).mappings().one()
    return WebhookEndpoint.of(row)


def _found(connection: Connection, how: Any, project_id: uuid.UUID, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    said = {"the_project": project_id, "the_endpoint": endpoint_id}
    row = connection.execute(how, said).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no webhook endpoint {endpoint_id}")
    return WebhookEndpoint.of(row)


# Statements are built once: to build one costs more than to run it.

_OFF = ("disabled_at", "disabled_why", "failing_since")
_MINE = (WebhookEndpoint.project_id == bindparam("the_project"), WebhookEndpoint.deleted_at.is_(None))
# so that two that are made at once are counted one after the other; jobs are made meanwhile
_LOCK = select(Project.id).where(Project.id == bindparam("the_project")).with_for_update(key_share=True)
_URLS = select(WebhookEndpoint.url).where(*_MINE)
_ALL = select(*WebhookEndpoint.__table__.c).where(*_MINE).order_by(WebhookEndpoint.id)
_ONE = select(*WebhookEndpoint.__table__.c).where(*_MINE, WebhookEndpoint.id == bindparam("the_endpoint"))
_LOCKED = _ONE.with_for_update(key_share=True)  # a delivery of it may be written meanwhile
_MAKE = insert(WebhookEndpoint).returning(*WebhookEndpoint.__table__.c)

# By state, so that each is a range of the index in its order, however few of an endpoint's deliveries are in it.
_WHICH = "endpoint_id = :endpoint and d.state = wanted.state and d.id >= :since"
# A range of one state, so that its order is that of the index alone: where a state has no rows, the planner would walk
# all deliveries there are by their ids.
_THESE = "endpoint_id = :endpoint and d.state between wanted.state and wanted.state and d.id >= :since"
_LOG = text(
    f"""
    select found.*, events.type, events.at, events.sequence, events.batch_id, events.endpoint_id as of_endpoint
      from unnest(cast(:states as text[])) as wanted (state)
     cross join lateral (
           select d.id, d.event_id, d.job_id, d.url, d.state, d.tries, d.last_status, d.last_error, d.last_ms,
                  d.last_answer, d.created_at, d.finished_at, d.run_at, d.claimed
             from deliveries as d where {_THESE} and d.id < :before
            order by d.state, d.id desc limit :limit) as found
      join events on events.id = found.event_id
     order by found.id desc limit :limit
    """  # noqa: S608 - words of ours
)


def _redelivering(which: str) -> TextClause:
    return text(
        f"""
    with found as materialized (
        select found.id from unnest(cast(:states as text[])) as wanted (state)
         cross join lateral (
               select d.id from deliveries as d where {which} and d.id > :after
                order by d.id limit :limit) as found
         order by found.id limit :limit
    ), picked as materialized (
        select id from deliveries where id = any (array(select id from found)) and claimed is null
         order by id for update skip locked
    ), again as (
        update deliveries
           set state = 'waiting', tries = 0, crashes = 0, run_at = :now, created_at = :now, finished_at = null,
               url = :url, receiver = :receiver, claim = claim + 1
          from picked where picked.id = deliveries.id
        returning deliveries.id
    )
    select (select count(*) from again) as done, (select count(*) from found) as seen,
           (select max(id::text)::uuid from found) as last
    """  # noqa: S608 - words of ours
    )


_REDELIVER = _redelivering(_WHICH)
_REDELIVER_THESE = _redelivering(f"{_WHICH} and d.id = any (cast(:ids as uuid[]))")
