"""Registered endpoints, told of the events of all jobs and batches of their project that they want.

Whether a project has one that wants an event is asked by the statement that writes the event (`listens`), so a project
without endpoints pays for a look into an empty index and for nothing else. Where one listens, a delivery an endpoint is
written in the same transaction (`enqueue_all`), beside that of a job's own `webhook_url`. It is like any other, but
that its endpoint signs it, and that what became of it is kept for its log and for the endpoint (`note`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    DateTime,
    Row,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import claims, log, text
from worker.tables import Delivery, Event, WebhookEndpoint
from worker.webhooks import DEFAULT_EVENTS, GONE, JOB_EVENTS, Tried

DISABLED = "endpoint.disabled"
_BUDGETS = frozenset({"budget.threshold", "budget.exhausted"})
EVENTS = JOB_EVENTS | _BUDGETS | {"batch.completed", DISABLED}
ALL = frozenset(f"{event.partition('.')[0]}.*" for event in EVENTS)  # as `job.*`
DEFAULTS = DEFAULT_EVENTS | _BUDGETS | {"batch.completed", DISABLED}  # what one is told of that names no events
PATIENCE = timedelta(days=5)  # of failures in a row, after which it is disabled

_log = log.get(__name__)


def listens(project_id: Any, event_type: Any) -> ColumnElement[bool]:
    """Whether a project has an endpoint that wants an event, one of `EVENTS`; both are columns or bound values."""
    found = exists().where(WebhookEndpoint.project_id == project_id, _IS_ON, _wants(event_type))
    return found.correlate_except(WebhookEndpoint)


def exist(project_id: Any) -> ColumnElement[bool]:
    """Whether a project has an endpoint that is on, whatever it wants."""
    return exists().where(WebhookEndpoint.project_id == project_id, _IS_ON).correlate_except(WebhookEndpoint)


def enqueue_all(
    connection: Connection,
    project_id: uuid.UUID,
    event_type: str,
    rows: Sequence[tuple[uuid.UUID | None, int, str]],
) -> None:
    """Writes a delivery of each event (its job, its number, its body) for each endpoint that wants its type, once."""
    jobs, events, bodies = (list(column) for column in zip(*rows, strict=True))
    told = {"of_project": project_id, "the_type": event_type, "jobs": jobs, "events": events, "bodies": bodies}
    connection.execute(_ENQUEUE, told)


def note(connection: Connection, tries: Sequence[tuple[Delivery, Tried]], now: datetime) -> None:
    """Notes of the endpoints among the receivers since when they fail, and disables those that want no more.

    That is who said 410, and who has failed for five days in a row.
    """
    last = {delivery.endpoint_id: tried for delivery, tried in tries if delivery.endpoint_id is not None}
    if not last:
        return
    has_failed = [tried.state != "delivered" for tried in last.values()]
    bound = {"endpoints": list(last), "failed": has_failed, "now": now}
    connection.execute(_NOTE, bound)
    if any(has_failed):
        gone = [endpoint_id for endpoint_id, tried in last.items() if tried.status == GONE]
        failing = [endpoint_id for endpoint_id, tried in last.items() if tried.state != "delivered"]
        said = {"failing": failing, "gone": gone, "now": now, "before": now - PATIENCE}
        for endpoint in connection.execute(_DISABLE, said).all():
            _tell(connection, endpoint, now)


def _tell(connection: Connection, endpoint: Row[Any], now: datetime) -> None:
    """Tells the project's other endpoints that one is disabled."""
    _log.warning("an endpoint is disabled", endpoint=str(endpoint.id), why=endpoint.disabled_why)
    row = {
        "endpoint_id": endpoint.id,
        "project_id": endpoint.project_id,
        "sequence": endpoint.sequence,
        "type": DISABLED,
        "entered": "disabled",
        "why": endpoint.disabled_why,
        "at": now,
    }
    event_id = connection.execute(_EVENT, row).scalar_one()
    # without the URL, which may hold a token and be of no concern to the others
    data = {
        "object": "webhook_endpoint",
        "id": str(endpoint.id),
        "description": endpoint.description,
        "why": endpoint.disabled_why,
    }
    said = {"type": DISABLED, "timestamp": text.moment(now), "sequence": endpoint.sequence, "data": data}
    body = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    enqueue_all(connection, endpoint.project_id, DISABLED, [(None, event_id, body)])


def _wants(event_type: Any) -> ColumnElement[bool]:
    """Whether an endpoint wants an event of that type."""
    named = func.coalesce(WebhookEndpoint.events, _DEFAULTS)
    family = func.split_part(event_type, literal_column("'.'"), literal_column("1")).concat(literal_column("'.*'"))
    return or_(event_type == any_(named), family == any_(named))


# Statements are built once: to build one costs more than to run it.

_DEFAULTS: ColumnElement[Any] = literal_column(f"'{{{','.join(sorted(DEFAULTS))}}}'::text[]")
_IS_ON = and_(WebhookEndpoint.deleted_at.is_(None), WebhookEndpoint.disabled_at.is_(None))
_NOW = bindparam("now", type_=DateTime(timezone=True))
_ROWS = claims.unnested("told", jobs=Uuid(), events=BigInteger(), bodies=Text())
_TOLD = _ROWS.c
# Deliveries of events, one for each endpoint that wants them, unless there are some already.
_ENQUEUE = (
    upsert(Delivery)
    .from_select(
        ["project_id", "endpoint_id", "url", "receiver", "job_id", "event_id", "body"],
        select(
            WebhookEndpoint.project_id,
            WebhookEndpoint.id,
            WebhookEndpoint.url,
            WebhookEndpoint.receiver,
            _TOLD.jobs,
            _TOLD.events,
            _TOLD.bodies,
        )
        .join_from(WebhookEndpoint, _ROWS, true())
        .where(
            WebhookEndpoint.project_id == bindparam("of_project", type_=Uuid),
            _IS_ON,
            _wants(bindparam("the_type", type_=Text)),
        ),
    )
    .on_conflict_do_nothing()
)
_SAID = claims.unnested("said", endpoints=Uuid(), failed=Boolean()).c
# Since when endpoints fail; those are left alone of which nothing is new, which are nearly all.
_NOTE = (
    update(WebhookEndpoint)
    .where(WebhookEndpoint.id == _SAID.endpoints, _SAID.failed == WebhookEndpoint.failing_since.is_(None))
    .values(failing_since=case((_SAID.failed, _NOW), else_=null()))
)
_IS_GONE = WebhookEndpoint.id == any_(bindparam("gone", type_=ARRAY(Uuid)))
_BEFORE = bindparam("before", type_=DateTime(timezone=True))
_NAMED = ("id", "project_id", "description", "sequence", "disabled_why")
_DISABLE = (
    update(WebhookEndpoint)
    .where(
        WebhookEndpoint.id == any_(bindparam("failing", type_=ARRAY(Uuid))),
        _IS_ON,
        or_(_IS_GONE, WebhookEndpoint.failing_since <= _BEFORE),
    )
    .values(
        disabled_at=_NOW,
        disabled_why=case((_IS_GONE, literal("it said 410: gone")), else_=literal("it failed for five days in a row")),
        sequence=WebhookEndpoint.sequence + 1,
    )
    .returning(*(WebhookEndpoint.__table__.c[name] for name in _NAMED))
)
_EVENT = insert(Event).returning(Event.id)

# of a delivery, for whoever sends it: what its endpoint signs with, and whether that wants no more
_ITS = WebhookEndpoint.id == Delivery.endpoint_id
_PREVIOUS = case((WebhookEndpoint.previous_until > claims.NOW, WebhookEndpoint.previous_secret))
SECRETS = select(func.concat_ws(" ", WebhookEndpoint.secret, _PREVIOUS)).where(_ITS).scalar_subquery()
IS_OFF = func.coalesce(select(~_IS_ON).where(_ITS).scalar_subquery(), False).label("is_off")
