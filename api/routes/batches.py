"""Batches: a file's rows checked and priced as a draft, committed together, and looked at."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import Connection

from api import answers, forms, submissions
from api.answers import Page
from api.bodies import GivenRows
from api.context import Committing, Context, Drafting, Here, Mine, Tenant, moment
from api.problems import problem, refusals
from api.routes.jobs import IdempotencyKey
from worker.batches import checking, commit, draft, reading
from worker.batches.checking import Checked, Upload
from worker.batches.document import BatchDocument, BatchState, Report
from worker.batches.draft import Sent
from worker.document import flower_event
from worker.tables import Batch

router = APIRouter(prefix="/v1/batches", tags=["batches"], responses=refusals(400, 401, 404, 422, 429, 503))


class BatchList(Page[BatchDocument]):
    """A page of batches, the newest first, without their reports."""


class BatchQuery(BaseModel):
    """Which batches to list."""

    model_config = ConfigDict(extra="forbid")

    state: Annotated[list[BatchState], BeforeValidator(forms.apart)] = Field([], description="one or several states")
    cursor: UUID | None = Field(None, description="the next_cursor of the page before")
    limit: int = Field(20, ge=1, le=100, description="batches on a page")


BatchId = Annotated[UUID, Path(description="the batch's id")]
SkipBad = Annotated[bool, Query(description="make the good rows, and leave out those with faults")]


@router.post(
    "",
    status_code=201,
    response_model=BatchDocument,
    responses={200: {"model": BatchDocument, "description": "a replay"}, **refusals(402, 409, 413, 415)},
    openapi_extra=forms.batch_body(),
)
def make(
    here: Here,
    mine: Drafting,
    given: GivenRows,
    idempotency_key: IdempotencyKey = None,
    commit: Annotated[bool, Query(description="make the jobs at once, if no row has a fault")] = False,
    skip_bad: SkipBad = False,
) -> Response:
    """Check and price a file's rows, a job each: CSV, JSONL or JSON. Nothing is made nor spent before the commit.

    The answer is a draft with a report: every fault, the price, how long it will take. It is forgotten after a day,
    or once its project has twenty newer ones.
    With `commit` the jobs are made in the same step; a row with a fault then makes nothing (422), unless `skip_bad`.
    """
    options = submissions.batch(here, given.options)
    upload = Upload(given.file, given.name, given.content_type)
    said = checking.fingerprint(upload, given.options, commit, skip_bad) if idempotency_key else b""
    sent = Sent(idempotency_key, said) if idempotency_key else None
    if sent is not None and (first := _first(here, mine, sent)):
        return first
    check = partial(submissions.job, here.of(mine.project), on=mine.now)
    with checking.checked(here.engine, mine.project.id, upload, options, check) as made:
        if commit and made.bad and not skip_bad:
            raise _bad_rows(made.report)
        return _kept(here, mine, made, sent, skip_bad if commit else None)


@router.post("/{batch_id}/commit", response_model=BatchDocument, responses=refusals(402, 409))
def commit_draft(here: Here, mine: Committing, batch_id: BatchId, skip_bad: SkipBad = False) -> Response:
    """Make the jobs of a draft, all of them or none; done again it answers the same.

    Rows that the project has a job for already are linked to it, and not made again. Refused (409) while rows have
    faults, unless `skip_bad`.
    """
    with here.engine.begin() as connection:
        batch, is_new = _committed(here, connection, mine, batch_id, skip_bad)
        shown = _document(connection, mine, batch)
    if is_new:
        _tell(here, mine, batch)
    return answers.answer(shown)


@router.delete("/{batch_id}", status_code=204, responses=refusals(409))
def drop(here: Here, mine: Mine, batch_id: BatchId) -> Response:
    """Delete a draft. What was committed stays."""
    with here.engine.begin() as connection:
        draft.drop(connection, mine.project.id, batch_id)
    return Response(status_code=204)


@router.get("", response_model=BatchList)
def listed(
    here: Here,
    mine: Mine,
    wanted: Annotated[BatchQuery, Query()],
) -> Response:
    """List batches, the newest first."""
    limit = wanted.limit
    with here.reading() as connection:
        found = reading.page(connection, mine.project.id, wanted.state, wanted.cursor, limit + 1)
        page = found[:limit]
        data = reading.documents(connection, mine.project.name, page, mine.now, whole=False)
    return answers.page(BatchList, data, page[-1].id if len(found) > limit else None)


@router.get("/{batch_id}", response_model=BatchDocument)
def show(here: Here, mine: Mine, batch_id: BatchId) -> Response:
    """One batch: its report, how far its jobs are, what they cost so far and to come, and when it ends."""
    with here.reading() as connection:
        return answers.answer(_document(connection, mine, reading.one(connection, mine.project.id, batch_id)))


def _first(here: Context, mine: Tenant, sent: Sent) -> Response | None:
    """The answer to a repeated request; None: it is the first under its key."""
    with here.engine.connect() as connection:
        first = draft.replayed(connection, mine.project.id, sent)
        return _replay(_document(connection, mine, first)) if first else None


def _kept(here: Context, mine: Tenant, made: Checked, sent: Sent | None, skip_bad: bool | None) -> Response:
    """The draft, kept, and committed too unless `skip_bad` is None."""
    with here.engine.begin() as connection:
        batch, is_replay = draft.keep(connection, mine.project.id, made, sent, moment(connection))
        if skip_bad is not None and not is_replay:
            batch, _ = _committed(here, connection, mine, batch.id, skip_bad)
        shown = _document(connection, mine, batch)
    if is_replay:
        return _replay(shown)
    if skip_bad is not None:
        _tell(here, mine, batch)
    return answers.answer(shown, 201, {"location": shown.urls["self"]})


def _committed(
    here: Context, connection: Connection, mine: Tenant, batch_id: UUID, skip_bad: bool
) -> tuple[Batch, bool]:
    """The batch, committed, and whether it was now; raises a problem where the project has no room for its jobs."""
    batch, is_new = commit.commit(connection, mine.project, batch_id, skip_bad, moment(connection))
    if is_new and batch.made and here.waiting.is_over(connection, mine.project.id):
        raise here.waiting.refuse()
    return batch, is_new


def _tell(here: Context, mine: Tenant, batch: Batch) -> None:
    """Tells Flower of the first jobs, and asks for a tick."""
    with here.reading() as connection:
        jobs = commit.first_jobs(connection, batch)
    for job in jobs:
        time.sleep(0)  # others go on meanwhile, as in a draft's check
        if event := flower_event(job, mine.project.name, []):
            here.sender.tell(event)
    here.sender.hint()


def _bad_rows(report: Report) -> Exception:
    first = "; ".join(f"line {fault.line} {fault.pointer} {fault.message}" for fault in report.faults[:3])
    more = f"; and {report.faults_total - 3} more" if report.faults_total > 3 else ""
    errors = [fault.as_json() for fault in report.faults]
    return problem(422, "invalid_input", first + more, errors=errors)


def _replay(shown: BatchDocument) -> Response:
    return answers.answer(shown, headers={"idempotency-replayed": "true"})


def _document(connection: Connection, mine: Tenant, batch: Batch) -> BatchDocument:
    return reading.documents(connection, mine.project.name, [batch], mine.now, whole=True)[0]
