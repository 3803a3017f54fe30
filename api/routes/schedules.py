"""Schedules: jobs that the clock submits. Every query carries the caller's project, so others' ids are 404."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response
from pydantic import AwareDatetime

from api import answers, describe, plans
from api.auth import Mine
from api.context import Here, moment
from api.routes.jobs import IdempotencyKey
from api.submissions import JsonBody
from worker.kinds.fields import Text
from worker.schedules import editing, firing, timetable
from worker.schedules.editing import Plan
from worker.schedules.runs import Desk
from worker.tables import Schedule

router = APIRouter(
    prefix="/v1/schedules", tags=["schedules"], responses=describe.refusals(400, 401, 404, 422, 429, 503)
)

ScheduleId = Annotated[UUID, Path(description="the schedule's id")]
Limit = Annotated[int, Query(ge=1, le=100, description="on a page")]


@router.post(
    "",
    status_code=201,
    response_model=answers.Schedule,
    responses={
        200: {"model": answers.Schedule, "description": "it is there already, in the same words"},
        **describe.refusals(409, 413, 415),
    },
    openapi_extra=describe.plain_body("ScheduleCreate"),
)
def make(here: Here, mine: Mine, body: JsonBody) -> Response:
    """Make a schedule. Its template is checked as its next fire time will fill it; every wrong field is named."""
    plan = plans.plan(here, body, {"time_zone": mine.project.time_zone}, mine.now)
    with here.engine.begin() as connection:
        most = here.settings.max_schedules
        made, is_old = editing.make(connection, mine.project, plan, most, moment(connection))
    shown = timetable.shown(made)
    return JSONResponse(shown, 200 if is_old else 201, headers={"location": shown["urls"]["self"]})


@router.get("", response_model=answers.ScheduleList)
def search(
    here: Here,
    mine: Mine,
    name: Annotated[Text | None, Query(description="the schedule's name")] = None,
    cursor: Annotated[UUID | None, Query(description="the next_cursor of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """List schedules, the newest first."""
    with here.engine.connect() as connection:
        found = timetable.page(connection, mine.project.id, name, cursor, limit + 1)
    page = found[:limit]
    more = str(page[-1].id) if len(found) > len(page) else None
    return answers.listed([timetable.shown(schedule) for schedule in page], more)


@router.get("/{schedule_id}", response_model=answers.Schedule)
def show(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """One schedule: when it fires next, and what it submits."""
    with here.engine.connect() as connection:
        return _shown(timetable.one(connection, mine.project.id, schedule_id))


@router.patch(
    "/{schedule_id}",
    response_model=answers.Schedule,
    responses=describe.refusals(409, 413, 415),
    openapi_extra=describe.plain_body("ScheduleUpdate"),
)
def change(here: Here, mine: Mine, schedule_id: ScheduleId, body: JsonBody) -> Response:
    """Change a schedule; what is not said stays. What is due by the old times and not fired yet is left out."""
    with here.engine.begin() as connection:
        held = timetable.held(connection, mine.project.id, schedule_id)
        plan = plans.plan(here, body, asdict(Plan.of(held)), mine.now)
        return _shown(editing.change(connection, held, plan, moment(connection)))


@router.delete("/{schedule_id}", status_code=204)
def remove(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """Delete a schedule with its history. Its jobs stay, and go on."""
    with here.engine.begin() as connection:
        editing.remove(connection, timetable.held(connection, mine.project.id, schedule_id))
    return Response(status_code=204)


@router.post("/{schedule_id}/pause", response_model=answers.Schedule)
def pause(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """Let a schedule fire no more; runs that wait are dropped, jobs go on."""
    with here.engine.begin() as connection:
        held = timetable.held(connection, mine.project.id, schedule_id)
        return _shown(editing.pause(connection, held, moment(connection)))


@router.post("/{schedule_id}/resume", response_model=answers.Schedule)
def resume(here: Here, mine: Mine, schedule_id: ScheduleId) -> Response:
    """Let a schedule fire again, from its next fire time on; what a pause left out is not made up for."""
    with here.engine.begin() as connection:
        held = timetable.held(connection, mine.project.id, schedule_id)
        return _shown(editing.resume(connection, held, moment(connection)))


@router.post(
    "/{schedule_id}/run",
    status_code=201,
    response_model=answers.Run,
    responses={
        200: {"model": answers.Run, "description": "a replay (Idempotency-Replayed)"},
        **describe.refusals(409),
    },
)
def run(here: Here, mine: Mine, schedule_id: ScheduleId, idempotency_key: IdempotencyKey = None) -> Response:
    """Run a schedule now, as if this were a fire time: `outcome` says what became of it. A pause does not stop it."""
    with here.engine.begin() as connection:
        held = timetable.held(connection, mine.project.id, schedule_id)
        desk = Desk(connection, here.catalog, here.settings, moment(connection))
        made = firing.run_now(desk, held, idempotency_key)
        shown = timetable.run_shown(timetable.run(connection, made.run))
    if made.job:
        here.tell(made.job, mine.project)
    if made.replayed:
        return JSONResponse(shown, headers={"idempotency-replayed": "true"})
    return JSONResponse(shown, 201)


@router.get("/{schedule_id}/runs", response_model=answers.RunList)
def runs(
    here: Here,
    mine: Mine,
    schedule_id: ScheduleId,
    cursor: Annotated[AwareDatetime | None, Query(description="the next_cursor of the page before")] = None,
    limit: Limit = 20,
) -> Response:
    """What became of each fire time, the latest first: its job, or why there is none."""
    with here.engine.connect() as connection:
        schedule = timetable.one(connection, mine.project.id, schedule_id)
        found = timetable.runs(connection, schedule, cursor, limit + 1)
    page = [timetable.run_shown(row) for row in found[:limit]]
    return answers.listed(page, page[-1]["fire_at"] if len(found) > len(page) else None)


def _shown(schedule: Schedule) -> Response:
    return JSONResponse(timetable.shown(schedule))
