"""Webhook endpoints, what was delivered to each, and the feed. A secret is shown where it is made, and never again."""

from __future__ import annotations

import uuid
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, Field
from sqlalchemy import Connection, Row

from api import answers, forms, streams, submissions
from api.answers import Page
from api.bodies import JsonBody
from api.context import Calling, Following, Here, Mine, Searching, follows, moment, still_welcome
from api.problems import refusals
from api.streams import Followed, Part
from worker import webhooks
from worker.document import Answer, Moment
from worker.tables import WebhookEndpoint
from worker.webhooks import endpoints, feed, registry
from worker.webhooks.registry import Wanted, Which

router = APIRouter(prefix="/v1", tags=["webhooks"], responses=refusals(400, 401, 404, 422, 429, 503))

_AT = "/webhook-endpoints/{endpoint_id}"
_CURSOR = r"^[0-9]{1,18}-[0-9]{1,18}$"


class EndpointDocument(Answer):
    """A receiver of the project's events."""

    id: UUID
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    events: list[str] = Field(description="the types that it is told of")
    description: str
    failing_since: Moment | None = Field(description="the first failure since it last took something")
    disabled_at: Moment | None = Field(description="since when nothing is sent there: PATCH it with disabled: false")
    disabled_why: str | None
    previous_secret_until: Moment | None = Field(description="until when the secret before signs too")
    created_at: Moment
    urls: dict[str, str]

    @classmethod
    def of(cls, endpoint: WebhookEndpoint, now: datetime, **more: Any) -> Self:
        """The document of an endpoint's row."""
        path, until = f"/v1/webhook-endpoints/{endpoint.id}", endpoint.previous_until
        return cls(
            id=endpoint.id,
            url=endpoint.url,
            events=sorted(endpoints.DEFAULTS) if endpoint.events is None else endpoint.events,
            description=endpoint.description,
            failing_since=endpoint.failing_since,
            disabled_at=endpoint.disabled_at,
            disabled_why=endpoint.disabled_why,
            previous_secret_until=until if until is not None and until > now else None,
            created_at=endpoint.created_at,
            urls={"self": path, "deliveries": f"{path}/deliveries"},
            **more,
        )


class EndpointSecret(EndpointDocument):
    """A receiver of the project's events, with the secret that it is signed with from now on."""

    secret: str = Field(description="keep it: it is not shown again")


class EndpointList(Page[EndpointDocument]):
    """All endpoints of the project, the oldest first."""


class DeliveryDocument(Answer):
    """One event on its way to one endpoint."""

    id: UUID
    object: Literal["delivery"] = "delivery"
    webhook_id: str = Field(description="the header webhook-id, the same on every try")
    type: str = Field(description="of the event")
    timestamp: Moment = Field(description="of the event")
    job_id: UUID | None
    batch_id: UUID | None = Field(description="of an event of a batch")
    url: str
    state: Literal["waiting", "delivered", "exhausted"]
    tries: int
    status: int | None = Field(description="of the last try; null: there was no answer")
    error: str | None
    milliseconds: int | None = Field(description="that the last try took")
    answer: str | None = Field(description="how the last answer began, 2 kB of it, as text")
    created_at: Moment = Field(description="or when it was last asked for again: it is given up 84 h later")
    next_try_at: Moment | None = Field(description="null: it has ended, or is on its way")
    finished_at: Moment | None

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """The document of a row of the log."""
        return cls(
            id=row.id,
            webhook_id=f"evt_{row.event_id}",
            type=row.type,
            timestamp=row.at,
            job_id=row.job_id,
            batch_id=row.batch_id,
            url=row.url,
            state=row.state,
            tries=row.tries,
            status=row.last_status,
            error=row.last_error,
            milliseconds=row.last_ms,
            answer=row.last_answer,
            created_at=row.created_at,
            next_try_at=row.run_at if row.claimed is None else None,
            finished_at=row.finished_at,
        )


class DeliveryList(Page[DeliveryDocument]):
    """A page of deliveries, the newest first."""


class Redelivery(Answer):
    """How many deliveries are due again."""

    object: Literal["redelivery"] = "redelivery"
    deliveries: int = Field(description="what is on its way just now is not among them")
    has_more: bool
    next_cursor: UUID | None = Field(description="give it as `cursor` to go on")


class TestDocument(Answer):
    """What came back of a `test.ping`."""

    object: Literal["test"] = "test"
    webhook_id: str
    delivered: bool
    status: int | None
    error: str | None
    milliseconds: int
    answer: str = Field(description="how the answer began")


class Subject(Answer):
    """What an event is about."""

    object: Literal["job", "batch", "webhook_endpoint", "budget"]
    id: UUID
    state: str = Field(description="that it entered")
    left: str | None = Field(description="the state before; null: it was made")
    custom_id: str | None = Field(None, description="of a job")
    batch_id: UUID | None = Field(None, description="of a job of a batch")
    why: str


class EventDocument(Answer):
    """What a webhook says, without the job itself."""

    id: str = Field(description="the header webhook-id of its deliveries")
    object: Literal["event"] = "event"
    type: str
    timestamp: Moment
    sequence: int = Field(description="within what it is about")
    cursor: str = Field(description="its place in the feed: give it as `after` to go on", examples=["7301-412"])
    data: Subject

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """The document of a row of the feed."""
        about = {"job": row.job_id, "batch": row.batch_id, "webhook_endpoint": row.endpoint_id, "budget": row.budget_id}
        name, its_id = next((name, found) for name, found in about.items() if found is not None)
        said = {"object": name, "id": its_id, "state": row.entered, "left": row.left, "why": row.why}
        # null but of jobs, and of jobs of a batch
        subject = Subject.model_validate(said | {"custom_id": row.custom_id, "batch_id": row.job_batch_id})
        return cls(
            id=f"evt_{row.id}",
            type=row.type,
            timestamp=row.at,
            sequence=row.sequence,
            cursor=str(feed.Place(row.xid, row.id)),
            data=subject,
        )


class Feed(Answer):
    """Events in an order that never changes; a page may hold fewer than asked for, or none, and have more after it."""

    object: Literal["list"] = "list"
    data: list[EventDocument]
    has_more: bool = Field(description="false: ask again later, with the same `after`")
    after: str = Field(description="give it as `after` to go on")


EndpointId = Annotated[UUID, Path(description="the endpoint's id")]


@router.post(
    "/webhook-endpoints",
    status_code=201,
    response_model=EndpointSecret,
    responses=refusals(408, 409, 413, 415),
    openapi_extra=forms.body("EndpointCreate"),
)
def make(here: Here, mine: Mine, body: JsonBody) -> Response:
    """Register a receiver of the project's events, 16 at the most. Its secret is shown here, and not again."""
    said = submissions.decision(here, forms.EndpointCreate, body)
    with here.engine.begin() as connection:
        made = registry.make(connection, mine.project.id, Wanted(**said.model_dump()))
    shown = EndpointSecret.of(made, mine.now, secret=made.secret)
    return answers.answer(shown, 201, {"location": shown.urls["self"]})


@router.get("/webhook-endpoints", response_model=EndpointList)
def search(here: Here, mine: Mine) -> Response:
    """List the endpoints, the oldest first."""
    with here.reading() as connection:
        found = registry.all_of(connection, mine.project.id)
    return answers.page(EndpointList, [EndpointDocument.of(endpoint, mine.now) for endpoint in found])


@router.get(_AT, response_model=EndpointDocument)
def show(here: Here, mine: Mine, endpoint_id: EndpointId) -> Response:
    """One endpoint: what it is told of, and whether it fails."""
    with here.reading() as connection:
        return answers.answer(EndpointDocument.of(registry.one(connection, mine.project.id, endpoint_id), mine.now))


@router.patch(
    _AT,
    response_model=EndpointDocument,
    responses=refusals(408, 409, 413, 415),
    openapi_extra=forms.body("EndpointUpdate"),
)
def change(here: Here, mine: Mine, endpoint_id: EndpointId, body: JsonBody) -> Response:
    """Change an endpoint, or enable it again; fields that are left out stay."""
    given = submissions.decision(here, forms.EndpointUpdate, body).model_dump(exclude_unset=True)
    given = {name: value for name, value in given.items() if value is not None or name == "events"}
    with here.engine.begin() as connection:
        found = registry.locked(connection, mine.project.id, endpoint_id)
        disabled = given.pop("disabled", found.disabled_at is not None)
        kept = {"url": found.url, "events": found.events, "description": found.description}
        changed = registry.change(connection, found, Wanted(**kept | given), disabled, moment(connection))
    return answers.answer(EndpointDocument.of(changed, mine.now))


@router.delete(_AT, status_code=204)
def remove(here: Here, mine: Mine, endpoint_id: EndpointId) -> Response:
    """Delete an endpoint: nothing is sent there any more."""
    with here.engine.begin() as connection:
        found = registry.locked(connection, mine.project.id, endpoint_id)
        registry.remove(connection, found, moment(connection))
    return Response(status_code=204)


@router.post(_AT + "/rotate", response_model=EndpointSecret)
def rotate(here: Here, mine: Mine, endpoint_id: EndpointId) -> Response:
    """Give an endpoint a new secret, shown here alone. For 24 h the one before signs too, in the same header."""
    with here.engine.begin() as connection:
        found = registry.locked(connection, mine.project.id, endpoint_id)
        changed = registry.rotate(connection, found, moment(connection))
    return answers.answer(EndpointSecret.of(changed, mine.now, secret=changed.secret))


@router.post(_AT + "/test", response_model=TestDocument)
def test(here: Here, mine: Calling, endpoint_id: EndpointId) -> Response:
    """Send a `test.ping` now, also to one that is disabled, and answer what came back."""
    with here.reading() as connection:
        found, now = registry.one(connection, mine.project.id, endpoint_id), moment(connection)
    message_id = f"test_{uuid.uuid4().hex}"
    body = registry.ping(found, now)
    signed = webhooks.signed(message_id, body, registry.secrets(found, now), now)
    posted = webhooks.post(here.provider.webhooks, found.url, signed, body)
    why = webhooks.why(posted)
    shown = TestDocument(
        webhook_id=message_id,
        delivered=why is None,
        status=posted.status,
        error=why,
        milliseconds=posted.milliseconds,
        answer=posted.answer,
    )
    return answers.answer(shown)


@router.get(_AT + "/deliveries", response_model=DeliveryList)
def deliveries(
    here: Here,
    mine: Searching,
    endpoint_id: EndpointId,
    state: Annotated[
        list[Literal["waiting", "delivered", "exhausted"]] | None, Query(description="one or several; none: all")
    ] = None,
    since: Annotated[AwareDatetime | None, Query(description="RFC 3339, of the event")] = None,
    cursor: Annotated[UUID | None, Query(description="the next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="on a page")] = 20,
) -> Response:
    """What was sent to an endpoint, the newest first: tries, what it said and when the next try is due."""
    which = Which(states=state or registry.STATES, since=since)
    with here.reading() as connection:
        found = registry.one(connection, mine.project.id, endpoint_id)
        rows = registry.deliveries(connection, found, which, cursor, limit + 1)
    page = [DeliveryDocument.of(row) for row in rows[:limit]]
    return answers.page(DeliveryList, page, page[-1].id if len(rows) > limit else None)


@router.post(
    _AT + "/redeliver",
    response_model=Redelivery,
    responses=refusals(408, 409, 413, 415),
    openapi_extra=forms.body("RedeliverCreate"),
)
def redeliver(here: Here, mine: Mine, endpoint_id: EndpointId, body: JsonBody) -> Response:
    """Send deliveries again, under the same webhook-id: by ids, by the event's time, or by status; 10,000 a call."""
    said = submissions.decision(here, forms.RedeliverCreate, body)
    states = registry.STATES if said.status is None else (said.status,)
    with here.engine.begin() as connection:
        found = registry.locked(connection, mine.project.id, endpoint_id)
        which = Which(states, said.ids, said.since)
        count, last = registry.redeliver(connection, found, which, said.cursor, moment(connection))
    here.sender.hint()
    return answers.answer(Redelivery(deliveries=count, has_more=last is not None, next_cursor=last))


@router.get("/events", response_model=Feed, responses={200: {"content": answers.streamed(EventDocument)}})
def events(
    request: Request,
    here: Here,
    mine: Following,
    after: Annotated[str, Query(pattern=_CURSOR, description="the `after` of the page before, or a cursor")] = "0-0",
    last_event_id: Annotated[str | None, Header(pattern=_CURSOR, description="of a stream: go on after it")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="on a page")] = 100,
) -> Response:
    """Everything that webhooks said, each event once, for whoever missed them; its order never changes behind a reader.

    An event is here once all transactions that began before its own have ended. `sequence` is a job's own order. With
    `Accept: text/event-stream` it goes on, each event as it comes.
    """
    place = feed.Place.of(last_event_id or after)
    if follows(request):
        read = partial(_part, mine.project.id)
        return streams.answer(here.watch, Followed(mine.project.id, read, still_welcome(request)), place)
    with here.reading() as connection:
        found = feed.page(connection, mine.project.id, place, limit)
    data = [EventDocument.of(row) for row in found.events]
    return answers.answer(Feed(data=data, has_more=found.has_more, after=str(found.after)))


def _part(project_id: UUID, connection: Connection, after: feed.Place) -> Part:
    """The project's events after that place, of which a page may hold none and have passed many."""
    found = feed.page(connection, project_id, after, streams.PAGE)
    said = [EventDocument.of(row) for row in found.events]
    return Part([streams.frame(event, event.type, event.cursor) for event in said], found.after, found.has_more)
