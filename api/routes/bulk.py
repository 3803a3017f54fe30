"""Many jobs at once: canceled or made again by ids or a filter, and batches paused, resumed, canceled, retried.

Flower is told afterwards, of as many jobs as it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BeforeValidator

from api import answers, forms, submissions
from api.bodies import BulkBody
from api.context import Context, Here, Moving, Receiving, Tenant
from api.problems import refusals
from api.routes.batches import BatchId
from api.routes.jobs import model_id
from worker.batches import control
from worker.batches import reading as batches
from worker.batches.control import Controlled
from worker.batches.document import BatchDocument
from worker.jobs import bulk, reading
from worker.jobs.bulk import BulkDocument, Done
from worker.moves.bulk import AGAIN, chunks
from worker.states import State

_TOLD = 2000  # jobs that Flower is told of: it keeps as many rows
_AT_ONCE = 50  # of these in memory

router = APIRouter(prefix="/v1", responses=refusals(400, 401, 404, 422, 429, 503))


DryRun = Annotated[bool, Query(description="count and price only")]
Ends = Annotated[
    tuple[forms.EndName, ...],
    BeforeValidator(forms.apart),
    Query(description="of which ends the jobs are made again: all three, unless some are named"),
]


@router.post(
    "/jobs/bulk",
    response_model=BulkDocument,
    responses=refusals(408, 413, 415),
    openapi_extra=forms.body("BulkCreate"),
    tags=["jobs"],
)
def act(here: Here, mine: Receiving, body: BulkBody) -> Response:
    """Cancel or retry many jobs, by ids or by a filter; 10,000 a call.

    `dry_run` counts and prices, and changes nothing. Each job fares as it would by itself, and a call that broke off
    may be made again.
    """
    said = submissions.decision(here, forms.BulkCreate, body)
    done = Done()
    with here.reading() as connection:
        if said.filter is None:
            ids = list(dict.fromkeys(said.ids or ()))
        else:
            wanted = said.wanted(model_id(here, said.filter.model))
            ids, done.next_cursor = bulk.found(connection, mine.project.id, said.action, wanted)
        room = here.waiting.room(connection, mine.project.id)
        if said.dry_run:
            done.fates = bulk.foreseen(connection, mine.project.id, said.action, ids, room)
    if not said.dry_run:
        done.fates = bulk.carry_out(here.engine, mine.project.id, said.action, ids, room)
        _tell(here, mine, done.moved)
    return answers.answer(done.document(said.action, said.dry_run))


@router.post("/batches/{batch_id}/pause", response_model=BatchDocument, responses=refusals(409), tags=["batches"])
def pause(here: Here, mine: Moving, batch_id: BatchId) -> Response:
    """Pause a batch: what waits is held, what is with the provider goes on. Paused twice is paused."""
    return _controlled(here, mine, control.pause, batch_id)


@router.post("/batches/{batch_id}/resume", response_model=BatchDocument, responses=refusals(409), tags=["batches"])
def resume(here: Here, mine: Moving, batch_id: BatchId) -> Response:
    """Let a paused batch go on; its jobs have their old places in the line."""
    return _controlled(here, mine, control.resume, batch_id)


@router.post("/batches/{batch_id}/cancel", response_model=BatchDocument, responses=refusals(409), tags=["batches"])
def cancel(here: Here, mine: Moving, batch_id: BatchId) -> Response:
    """Cancel a batch: what was not sent ends unpaid, the provider is asked to drop the rest, what is copied goes on."""
    return _controlled(here, mine, control.cancel, batch_id)


@router.post("/batches/{batch_id}/retry-failed", response_model=BulkDocument, responses=refusals(409), tags=["batches"])
def retry_failed(here: Here, mine: Moving, batch_id: BatchId, dry_run: DryRun = False, states: Ends = ()) -> Response:
    """Make a batch's jobs again that failed, expired or were canceled. A dry run says how many, and at what price."""
    wanted = frozenset(map(State, states)) or AGAIN
    with here.reading() as connection:
        room = here.waiting.room(connection, mine.project.id)
        if dry_run:
            done = control.foresee_retry(connection, mine.project.id, batch_id, wanted, room)
            return answers.answer(done.document("retry", dry_run=True))
    done = control.retry_failed(here.engine, mine.project.id, batch_id, wanted, room)
    _tell(here, mine, done.moved)
    return answers.answer(done.document("retry", dry_run=False))


def _controlled(here: Context, mine: Tenant, act: Callable[[Any, UUID, UUID], Controlled], batch_id: UUID) -> Response:
    done = act(here.engine, mine.project.id, batch_id)
    _tell(here, mine, done.moved)
    with here.reading() as connection:
        (shown,) = batches.documents(connection, mine.project.name, [done.batch], mine.now, whole=True)
    return answers.answer(shown)


def _tell(here: Context, mine: Tenant, moved: Sequence[UUID]) -> None:
    """Tells Flower of what was moved, the first of it, and asks for a tick."""
    here.sender.hint()
    with here.reading() as connection:
        for some in chunks(moved[:_TOLD], _AT_ONCE):
            for job in reading.several(connection, mine.project.id, some):
                here.tell(job, mine.project)
