"""Jobs: submit, look, follow, fetch, cancel, retry. Queries carry the caller's project, so others' ids are 404."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field
from sqlalchemy import Connection

from api import answers, forms, streams, submissions
from api.answers import JobList, Page
from api.bodies import JsonBody
from api.context import Context, Following, Here, Mine, Searching, Tenant, follows, moment, still_welcome
from api.forms import ChildQuery, JobQuery
from api.problems import problem, refusals
from api.streams import Followed, Part
from worker import document, inputs, money, storage, text, tracing
from worker.document import Amount, Answer, JobDocument
from worker.errors import Conflict, Fault, InvalidInput, NotFound
from worker.jobs import reading, submission
from worker.jobs.reading import AttemptDocument, JobEvent
from worker.jobs.submission import Prepared, Sent
from worker.kinds import OFFERED, ParentKind
from worker.money import budgets
from worker.states import TERMINAL, Mode, State
from worker.tables import Job, Output

_LINK = timedelta(minutes=5)  # how long a link to an output is good for
_MOST = 2**31 - 1  # of numbers in addresses and headers

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=refusals(400, 401, 404, 422, 429, 503))


class Submitted(JobDocument):
    """The job that was made, or the first one under the same Idempotency-Key."""

    warnings: list[Fault] = Field(description="of what is accepted nevertheless: a model that others report as retired")


class EstimatedCost(Answer):
    """Null where no price is known."""

    currency: Literal["CNY"] = "CNY"
    estimated: Amount | None


class Segment(Answer):
    """What one call of a narration would speak, with whose voice; a Han character is billed as two."""

    text: str
    voice: str
    characters: int = Field(description="that are billed")


class Segments(Answer):
    """The segments of a narration: how many there are, and the first of them."""

    total: int
    first: list[Segment] = Field(description="at most 200")


class Estimate(Answer):
    """What a submission would be and cost; nothing was made."""

    object: Literal["estimate"] = "estimate"
    kind: str
    model: str
    input: dict[str, Any]
    cost: EstimatedCost
    state: Literal["queued", "held"] = Field(description="in which it would begin; held: a budget has no room now")
    segments: Segments | None = Field(None, description="of speech: how the text would be cut")
    warnings: list[Fault] = Field(
        description="of what would be accepted nevertheless; `cheaper_model`: one that does as well, and the saving"
    )


class Cancellation(Answer):
    """What a cancel led to: canceled, requested (the provider is asked), too_late (billed), already_finished.

    For a job that awaits a review it is too late: approve or reject it.
    """

    object: Literal["cancellation"] = "cancellation"
    outcome: Literal["canceled", "requested", "too_late", "already_finished"]
    job: JobDocument


class EventList(Page[JobEvent]):
    """A page of a job's events, the oldest first; the cursor is the last one's sequence."""


class AttemptList(Page[AttemptDocument]):
    """Every attempt of a job, the oldest first."""


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]*$",
        description="makes a submission safe to repeat; printable ASCII, kept 7 days",
    ),
]
JobId = Annotated[UUID, Path(description="the job's id")]
OutputNumber = Annotated[int, Path(ge=0, le=2**15 - 1, description="which output, from 0")]
Place = Annotated[int, Query(ge=0, le=_MOST, description="the sequence after which to go on")]


@router.post(
    "",
    status_code=201,
    response_model=Submitted,
    responses={
        200: {
            "model": Submitted | Estimate,
            "description": "a replay (Idempotency-Replayed), or a dry run",
        },
        **refusals(402, 409, 413, 415),
    },
    openapi_extra=forms.job_body(),
)
def submit(
    here: Here,
    mine: Mine,
    body: JsonBody,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="check and price only")] = False,
) -> Response:
    """Submit a job. Every wrong field is named in one answer; nothing is spent before all of it is right.

    A dry run is refused as the submission would be, by the project's budgets too, and makes nothing.
    """
    try:
        prepared = submissions.job(here.of(mine.project), body, mine.now)
    except InvalidInput:
        # a repeated submission may have been right by the catalog of its day
        if dry_run or (first := _first(here, mine, body, idempotency_key)) is None:
            raise
        return _replay(first, [])
    if dry_run:
        with here.engine.connect() as connection:
            inputs.check(connection, mine.project.id, prepared.model, prepared.input)
            is_held = budgets.seen(connection, mine.project.id).holds(prepared.estimate, prepared.model)
        return answers.answer(_estimate(here, prepared, is_held))
    sent = Sent(idempotency_key, text.digest(body)) if idempotency_key else None
    job, replay = _submitted(here, mine, prepared, sent)
    if replay is not None:
        return _replay(replay, prepared.warnings)
    here.tell(job, mine.project)
    parts: Counter[str] | None = Counter() if job.mode == Mode.PARENT else None
    made = document.shown(mine.project.name, job, [], None, reading.at_first(job), parts)
    return answers.answer(_submission(made, prepared.warnings), 201, {"location": made.urls["self"]})


@router.get("", response_model=JobList)
def search(here: Here, mine: Searching, wanted: Annotated[JobQuery, Query()]) -> Response:
    """List jobs, the newest first. `metadata.KEY=value` finds by metadata; several filters narrow together.

    With `q` a page looks through some ten thousand jobs, and may hold few or none although `has_more` is true.
    """
    said = wanted.filter(model_id(here, wanted.model))
    with here.reading() as connection:
        last = reading.last_to_look_at(connection, mine.project.id, said) if said.q else None
        found = reading.page(connection, mine.project.id, replace(said, last=last), wanted.limit + 1)
        page = found[: wanted.limit]
        data = reading.documents(connection, mine.project.name, page, mine.now)
    cursor = page[-1].id if len(found) > len(page) else last
    return answers.page(JobList, data, cursor)


@router.get("/{job_id}", response_model=JobDocument)
def show(here: Here, mine: Mine, job_id: JobId) -> Response:
    """One job: where it is, what it waits for, what it made and cost."""
    with here.reading() as connection:
        return answers.answer(_document(connection, mine, reading.one(connection, mine.project.id, job_id)))


@router.get(
    "/{job_id}/events",
    response_model=EventList,
    responses={
        200: {"content": answers.streamed(JobEvent)},
        204: {"description": "the stream has ended, and was read to its end"},
    },
)
def events(
    request: Request,
    here: Here,
    mine: Following,
    job_id: JobId,
    last_event_id: Annotated[int | None, Header(ge=0, le=_MOST, description="of a stream: go on after it")] = None,
    cursor: Place = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="events on a page")] = 500,
) -> Response:
    """The job's history. With `Accept: text/event-stream` it goes on until the job has ended."""
    after = cursor if last_event_id is None else last_event_id
    with here.reading() as connection:
        job = reading.brief(connection, mine.project.id, job_id)
        if follows(request):
            return _stream(request, here, job, min(after, job.sequence))
        found = reading.history(connection, job, after, limit + 1)
    page = [JobEvent.of(event) for event in found[:limit]]
    return answers.page(EventList, page, page[-1].sequence if len(found) > limit else None)


@router.get("/{job_id}/attempts", response_model=AttemptList)
def attempts(here: Here, mine: Mine, job_id: JobId) -> Response:
    """Every create call to the provider: what may have cost money."""
    with here.reading() as connection:
        made = reading.attempts(connection, reading.brief(connection, mine.project.id, job_id))
    return answers.page(AttemptList, [AttemptDocument.model_validate(attempt) for attempt in made])


@router.get("/{job_id}/children", response_model=JobList)
def children(here: Here, mine: Mine, job_id: JobId, wanted: Annotated[ChildQuery, Query()]) -> Response:
    """The parts that a job is made in, each a job itself, in the order of their rounds and places."""
    with here.reading() as connection:
        parent = reading.brief(connection, mine.project.id, job_id)
        found = reading.children(connection, parent, wanted.state, wanted.after, wanted.limit + 1)
        page = found[: wanted.limit]
        data = reading.documents(connection, mine.project.name, page, mine.now)
    return answers.page(JobList, data, f"{page[-1].round}-{page[-1].place}" if len(found) > len(page) else None)


@router.get(
    "/{job_id}/outputs/{n}",
    status_code=302,
    response_class=RedirectResponse,
    responses={302: {"description": "to a link to the object, good for five minutes"}, **refusals(410)},
)
def fetch(
    here: Here,
    mine: Mine,
    job_id: JobId,
    n: OutputNumber,
    download: Annotated[bool, Query(description="as a file, not shown by the browser")] = False,
) -> Response:
    """Fetch an output: a redirect to a short-lived link into the bucket."""
    output = _output(here, mine, job_id, n)
    return RedirectResponse(here.bucket.presign(output.key, _LINK, _filename(output) if download else None), 302)


@router.get(
    "/{job_id}/outputs/{n}/poster",
    status_code=302,
    response_class=RedirectResponse,
    responses={302: {"description": "to a link to the JPEG, good for five minutes"}, **refusals(410)},
)
def fetch_poster(here: Here, mine: Mine, job_id: JobId, n: OutputNumber) -> Response:
    """Fetch a small still of a video or picture, of 480 pixels at most: a redirect to a short-lived link to a JPEG.

    404 where there is none, or not yet: an output's `poster` says when there is one.
    """
    output = _output(here, mine, job_id, n)
    if output.poster != "made":
        raise NotFound(f"output {n} of job {job_id} has no poster")
    return RedirectResponse(here.bucket.presign(storage.poster(output.key), _LINK, None), 302)


@router.post("/{job_id}/cancel", response_model=Cancellation)
def cancel(here: Here, mine: Mine, job_id: JobId) -> Response:
    """Ask a job to stop. The provider drops only what has not started: `outcome` says what will happen.

    What awaits a review is made and paid for: approve or reject it.
    """
    with here.engine.begin() as connection:
        job, outcome = submission.cancel(connection, mine.project.id, job_id, moment(connection))
        shown = _document(connection, mine, job)
    if outcome == "canceled":
        here.tell(job, mine.project)
    here.sender.hint()
    return answers.answer(Cancellation.model_validate({"outcome": outcome, "job": shown}))


@router.post("/{job_id}/retry", response_model=JobDocument, responses=refusals(402, 409))
def retry(here: Here, mine: Mine, job_id: JobId) -> Response:
    """Make a job again that failed, expired or was canceled; of one made in parts, only those that did not succeed."""
    with here.engine.begin() as connection:
        if here.waiting.is_full(connection, mine.project.id):
            raise here.waiting.refuse()
        job = submission.retry(connection, mine.project.id, job_id, moment(connection))
        shown = _document(connection, mine, job)
    here.tell(job, mine.project)
    return answers.answer(shown)


def model_id(here: Context, name: str | None) -> str | None:
    """The id that jobs are kept under, where an alias was given; what the catalog does not know stays as it is."""
    with suppress(InvalidInput):
        return here.catalog.model(name).id if name else None
    return name


def _estimate(here: Context, prepared: Prepared, is_held: bool) -> Estimate:
    return Estimate(
        kind=prepared.submission.kind,
        model=prepared.model,
        input=prepared.input,
        cost=EstimatedCost(estimated=money.shown(prepared.estimate)),
        state="held" if is_held else "queued",
        segments=_segments(here, prepared),
        warnings=[*prepared.warnings, *prepared.advice],
    )


def _segments(here: Context, prepared: Prepared) -> Segments | None:
    kind = OFFERED[prepared.submission.kind]
    if not isinstance(kind, ParentKind) or kind.outline is None:
        return None
    wanted = kind.input.model_validate(prepared.input)
    outline = kind.outline(here.catalog.model(prepared.model), wanted, here.settings)
    return Segments(total=outline.total, first=[Segment(**child) for child in outline.children])


def _submission(made: JobDocument, warnings: list[Fault]) -> Submitted:
    return Submitted(**dict(made), warnings=warnings)


def _first(here: Context, mine: Tenant, body: Any, key: str | None) -> JobDocument | None:
    """The document of the job that the same body made under this key before; None: there is none."""
    if key is None:
        return None
    with suppress(Conflict, RecursionError), here.engine.connect() as connection:
        sent = Sent(key, text.digest(body))
        first = submission.replayed(connection, mine.project, sent, None)
        return _document(connection, mine, first) if first else None
    return None


def _replay(first: JobDocument, warnings: list[Fault]) -> Response:
    return answers.answer(_submission(first, warnings), headers={"idempotency-replayed": "true"})


def _submitted(here: Context, mine: Tenant, prepared: Prepared, sent: Sent | None) -> tuple[Job, JobDocument | None]:
    """The job, committed; and its document if it was made before. Raises a problem when the project is full."""
    began = time.time_ns()
    with here.engine.begin() as connection:
        is_full = here.waiting.is_full(connection, mine.project.id)
        if is_full and not (sent and submission.replayed(connection, mine.project, sent, prepared)):
            raise here.waiting.refuse()
        job, replayed = submission.submit(connection, mine.project, prepared, sent, None)
        first = _document(connection, mine, job) if replayed else None
    if not replayed:
        tracing.submitted(job.id, began)
    return job, first


def _document(connection: Connection, mine: Tenant, job: Job) -> JobDocument:
    return reading.documents(connection, mine.project.name, [job], mine.now)[0]


def _stream(request: Request, here: Context, job: Job, after: int) -> Response:
    if after == job.sequence and State(job.state) in TERMINAL:
        return Response(status_code=204)  # tells an EventSource not to come back
    followed = Followed(job.id, partial(_part, job), still_welcome(request))
    return streams.answer(here.watch, followed, after)


def _part(job: Job, connection: Connection, after: int) -> Part:
    """The job's events after a sequence number; the last of them ends the stream where it ended the job."""
    found = reading.history(connection, job, after, streams.PAGE)
    frames = [streams.frame(JobEvent.of(event), event.type, event.sequence) for event in found]
    has_more = len(found) == streams.PAGE
    is_last = bool(found) and not has_more and State(found[-1].entered) in TERMINAL
    return Part(frames, found[-1].sequence if found else after, has_more, is_last)


def _output(here: Context, mine: Tenant, job_id: UUID, n: int) -> Output:
    """The project's output; one that went is a 410."""
    with here.reading() as connection:
        output = reading.output(connection, mine.project.id, job_id, n)
    if output.pruned_at:
        raise problem(410, "pruned", f"the project no longer keeps it: pruned at {output.pruned_at:%Y-%m-%dT%H:%M:%SZ}")
    return output


def _filename(output: Output) -> str:
    return f"{output.job_id}-{PurePosixPath(output.key).name}"
