"""Schedules: jobs that the clock submits. Every query carries the caller's project, so others' ids are 404."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import AwareDatetime

from api import answers, forms, submissions
from api.answers import Page
from api.bodies import JsonBody
from api.context import Here, Mine, moment
from api.problems import refusals
from api.routes.jobs import IdempotencyKey
from worker import text
from worker.kinds.fields import Text
from worker.schedules import fire, plan
from worker.schedules.fire import FireContext
from worker.schedules.plan import Plan, RunDocument, ScheduleDocument
from worker.tables import Schedule

router = APIRouter(prefix="/v1/schedules", tags=["schedules"], responses=refusals(400, 401, 404, 422, 429, 503))


class ScheduleList(Page[ScheduleDocument]):
    """A page of schedules, the newest first."""


class RunList(Page[RunDocument]):
    """A page of a schedule's runs, the latest fire time first; the cursor is the last one's."""


ScheduleId = Annotated[UUID, Path(description="the schedule's id")]
Limit = Annotated[int, Query(ge=1, le=100, description="on a page")]


@router.post(
    "",
    status_code=201,
    response_model=ScheduleDocument,
    responses={
        200: {"model": ScheduleDocument, "description": "it was made before with the same fields"},
        **refusals(409, 413, 415),
    },
    openapi_extra=forms.body("ScheduleCreate"),
)
def make(here: Here, mine: Mine, body: JsonBody) -> Response:
    """Make a schedule. Its template is checked as its next fire time will fill it; every wrong field is named."""
    wanted = submissions.schedule(here.of(mine.project), body, {"time_zone": mine.project.time_zone}, mine.now)
    with here.engine.begin() as connection:
        most = here.settings.max_schedules
        made, is_old = plan.make(connection, mine.project, wanted, most, moment(connection))
    shown = ScheduleDocument.of(made)
    return answers.answer(shown, 200 if is_old else 201, {"location": shown.urls["self"]})


@router.get("", response_model=ScheduleList)
def search(
    here: Here,
    mine: Mine,
    name: Annotated[Text | None, Query(description="the schedule's name")] = None,
    cursor: Annotated[UUID | None, Query(description="the next_cursor of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """List schedules, the newest first."""
    with here.reading() as connection:
        found = plan.page(connection, mine.project.id, name, cursor, limit + 1)
    page = [ScheduleDocument.of(schedule) for schedule in found[:limit]]
    return answers.page(ScheduleList, page, page[-1].id if len(found) > limit else None)


@router.get("/{schedule_id}", response_model=ScheduleDocument)
def show(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """One schedule: when it fires next, and what it submits."""
    with here.reading() as connection:
        return _shown(plan.one(connection, mine.project.id, schedule_id))


@router.patch(
    "/{schedule_id}",
    response_model=ScheduleDocument,
    responses=refusals(409, 413, 415),
    openapi_extra=forms.body("ScheduleUpdate"),
)
def change(here: Here, mine: Mine, schedule_id: ScheduleId, body: JsonBody) -> Response:
    """Change a schedule; fields that are left out stay. Old fire times that are due and not fired yet are skipped."""
    with here.engine.begin() as connection:
        found = plan.locked(connection, mine.project.id, schedule_id)
        wanted = submissions.schedule(here.of(mine.project), body, asdict(Plan.of(found)), mine.now)
        return _shown(plan.change(connection, found, wanted, moment(connection)))


@router.delete("/{schedule_id}", status_code=204)
def remove(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """Delete a schedule with its history. Its jobs stay, and go on."""
    with here.engine.begin() as connection:
        plan.remove(connection, plan.locked(connection, mine.project.id, schedule_id))
    return Response(status_code=204)


@router.post("/{schedule_id}/pause", response_model=ScheduleDocument)
def pause(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """Pause a schedule: it does not fire, runs that wait are dropped, jobs go on."""
    with here.engine.begin() as connection:
        found = plan.locked(connection, mine.project.id, schedule_id)
        return _shown(plan.pause(connection, found, moment(connection)))


@router.post("/{schedule_id}/resume", response_model=ScheduleDocument)
def resume(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """Resume a schedule from its next fire time on; what the pause left out is not made up for."""
    with here.engine.begin() as connection:
        found = plan.locked(connection, mine.project.id, schedule_id)
        return _shown(plan.resume(connection, found, moment(connection)))


@router.post(
    "/{schedule_id}/run",
    status_code=201,
    response_model=RunDocument,
    responses={
        200: {"model": RunDocument, "description": "a replay (Idempotency-Replayed)"},
        **refusals(409),
    },
)
def run(here: Here, mine: Mine, schedule_id: ScheduleId, idempotency_key: IdempotencyKey = None) -> Response:
    """Run a schedule now, as if this were a fire time: `outcome` says what became of it. A pause does not stop it."""
    with here.engine.begin() as connection:
        found = plan.locked(connection, mine.project.id, schedule_id)
        ctx = FireContext(connection, here.catalog, here.settings, moment(connection))
        made = fire.run_now(ctx, found, idempotency_key)
        shown = RunDocument.model_validate(plan.run(connection, made.run))
    if made.job:
        here.tell(made.job, mine.project)
    if made.replayed:
        return answers.answer(shown, headers={"idempotency-replayed": "true"})
    return answers.answer(shown, 201)


@router.get("/{schedule_id}/runs", response_model=RunList)
def runs(
    here: Here,
    mine: Mine,
    schedule_id: ScheduleId,
    cursor: Annotated[AwareDatetime | None, Query(description="the next_cursor of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """What became of each fire time, the latest first: its job, or why there is none."""
    with here.reading() as connection:
        schedule = plan.one(connection, mine.project.id, schedule_id)
        found = plan.runs(connection, schedule, cursor, limit + 1)
    page = [RunDocument.model_validate(row) for row in found[:limit]]
    return answers.page(RunList, page, text.moment(page[-1].fire_at) if len(found) > limit else None)


def _shown(schedule: Schedule) -> Response:
    return answers.answer(ScheduleDocument.of(schedule))
