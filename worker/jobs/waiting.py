"""What unfinished jobs wait for: a code, a sentence, the instant it may change, and the place in the line.

A page of jobs is answered with a statement for each kind of fact, however long the page. What holds all of a lane
comes before what holds one project, and that before the line itself; of several lanes that could take a job, the one
counts that opens first.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, DateTime, Row, bindparam, exists, func, or_, select
from sqlalchemy.orm import aliased

from worker.document import Waiting
from worker.lanes import slots
from worker.states import HeldFor, Mode, State
from worker.tables import Job, Lane, Owner, Project

_NEVER = datetime.max.replace(tzinfo=UTC)
_MISSED = (State.FAILED, State.EXPIRED)
_HELD = {
    HeldFor.UNCERTAIN: "nobody can prove whether the provider made a task: a person has to decide",
    HeldFor.CRASHES: "several workers died on it: a person has to look",
    HeldFor.BUDGET: "the project's budget is spent",
    HeldFor.BATCH: "its batch has not begun, or is paused",
    HeldFor.REVIEW: "waits for a person's review",
}


@dataclass(frozen=True)
class _Line:
    """A waiting job's place in its project's line, and whether other projects' jobs wait for the model too."""

    position: int
    has_others: bool


_PARTS = Waiting("parts", "waits to be divided into its parts")
_DAY = Waiting("quota", "of the model's tokens a day fewer are left than it may take: smaller calls go first")
_SLOT = Waiting("slot", "waits for one of the model's concurrent tasks")
_TURN = Waiting("turn", "waits for its turn: projects take turns in the model's concurrent tasks")


def waiting_on(connection: Connection, jobs: Sequence[Job], now: datetime) -> dict[uuid.UUID, Waiting | None]:
    """What each job waits for; None when it is being worked on or has ended."""
    found = {job.id: _by_state(job) for job in jobs}
    queued = [job for job in jobs if job.state == State.QUEUED and job.mode != Mode.PARENT]
    due = [job for job in queued if job.run_at is None or job.run_at <= now]
    found |= {job.id: Waiting("backoff", "waits before it is tried again", job.run_at) for job in queued}
    return found | _in_line(connection, due, now) if due else found


def at_first(job: Job) -> Waiting:
    """What a job waits for that was just made, without its place in the line: to count that costs too much there."""
    return _PARTS if job.mode == Mode.PARENT else _SLOT


def on_parts(made_of: Mapping[str, int]) -> Waiting:
    """What a parent waits for, by how many of its children are in each state."""
    total, missed = sum(made_of.values()), sum(made_of.get(state, 0) for state in _MISSED)
    failed = f"; {missed} failed" if missed else ""
    if not total:
        return Waiting("children", "its parts are being laid out")
    return Waiting("children", f"{made_of.get(State.SUCCEEDED, 0)} of {total} parts are made{failed}")


def of_lane(lane: Row[Any]) -> Waiting | None:
    """What holds a lane up, the cause that lasts longest first; a row with what `slots.obstacles` tells."""
    if lane.all_paused or lane.lane_paused:
        return Waiting("paused", f"a person paused {'all creates' if lane.all_paused else 'the model'}")
    if lane.stopped_at:
        return Waiting("account", f"the provider's account is stopped: {lane.stopped_why}", lane.stopped_until)
    if lane.paused_why:
        return Waiting("quota", f"the model waits for a person: {lane.paused_why}")
    if lane.is_parked:
        return Waiting("quota", f"the model's lane is parked: {lane.parked_why}", lane.parked_until)
    if lane.booked_until:
        return Waiting("rate", "the model's rate is used up for a while", lane.booked_until)
    return None


def _by_state(job: Job) -> Waiting | None:
    match State(job.state):
        case State.QUEUED if job.mode == Mode.PARENT:  # others wait in a line
            return _PARTS
        case State.HELD:
            return Waiting("held", _HELD[HeldFor(job.held_for or "")])
        case State.ADMITTED:
            return Waiting("rate", "has a slot, and waits for the lane's request rate", job.run_at)
        case State.UNCERTAIN:
            return Waiting("uncertain", "the create call's answer was lost; the task is being looked for", job.run_at)
        case State.RUNNING:
            return Waiting("provider", f"the provider says {job.task_status or 'nothing yet'}", job.run_at)
        case State.COPYING if job.claimed is None:
            trouble = f": {job.error['message']}" if job.error else ""
            return Waiting("storage", f"waits to be copied into the bucket{trouble}", job.run_at)
    return None


def _in_line(connection: Connection, jobs: Sequence[Job], now: datetime) -> dict[uuid.UUID, Waiting | None]:
    by_model = _lanes(connection, {job.model for job in jobs}, now)
    held_up = _projects(connection, {job.project_id for job in jobs})
    places = _places(connection, jobs)
    return {
        job.id: _placed(by_model.get(job.model) or held_up[job.project_id] or _alone(job), places.get(job.id))
        for job in jobs
    }


def _alone(job: Job) -> Waiting:
    """What it waits for where nothing holds its lane or its project up."""
    return _SLOT if job.tokens is None else _DAY


def _placed(waiting: Waiting, line: _Line | None) -> Waiting:
    if line is None:  # admitted since the job was read
        return waiting
    return replace(_TURN if waiting is _SLOT and line.has_others else waiting, position=line.position)


def _lanes(connection: Connection, models: Collection[str], now: datetime) -> Mapping[str, Waiting | None]:
    """What holds all of a model's lanes up; None where one of them is open."""
    best: dict[str, Waiting | None] = {}
    for lane in connection.execute(_LANES, {"models": list(models), "now": now}):
        held_up = of_lane(lane)
        if lane.model not in best:
            best[lane.model] = held_up
        elif (other := best[lane.model]) is not None:
            best[lane.model] = min(held_up, other, key=_opens) if held_up else None
    return best


def _opens(waiting: Waiting) -> datetime:
    return waiting.until or _NEVER


def _projects(connection: Connection, projects: Collection[uuid.UUID]) -> dict[uuid.UUID, Waiting | None]:
    """What holds all of a project's jobs up."""
    rows = connection.execute(_PROJECTS, {"projects": list(projects)})
    return {row.id: _project(row) for row in rows}


def _project(row: Row[Any]) -> Waiting | None:
    if row.paused_at:
        return Waiting("paused", "a person paused the project")
    if row.max_in_flight is not None and row.in_flight >= row.max_in_flight:
        return Waiting("project", f"the project has all of its {row.max_in_flight} tasks at once in flight")
    return None


def _places(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, _Line]:
    said = {
        "jobs": [job.id for job in jobs],
        "models": list({job.model for job in jobs}),
        "projects": list({job.project_id for job in jobs}),
    }
    return {row.id: _Line(row.position, row.has_others) for row in connection.execute(_PLACES, said)}


# Built once: to build a statement costs more than to run it.

_LANES = (
    select(Lane.model, Lane.paused_why, Lane.parked_until, Lane.parked_why)
    .add_columns(*slots.obstacles(bindparam("now", type_=DateTime(timezone=True))))
    .join(Owner, Owner.name == Lane.owner)
    .where(Lane.model.in_(bindparam("models", expanding=True)))
)
_PROJECTS = (
    select(Project.id, Project.paused_at, Project.max_in_flight)
    .add_columns(
        select(func.count())
        .where(Job.project_id == Project.id, slots.holds_slot())
        .scalar_subquery()
        .label("in_flight")
    )
    .where(Project.id.in_(bindparam("projects", expanding=True)))
)
_LINE = (
    select(
        Job.id,
        Job.model,
        Job.project_id,
        func.row_number().over(partition_by=(Job.project_id, Job.model), order_by=(Job.rank_at, Job.id)).label("n"),
    )
    .where(
        slots.in_line(),
        Job.model.in_(bindparam("models", expanding=True)),
        Job.project_id.in_(bindparam("projects", expanding=True)),
    )
    .subquery()
)
_OTHER = aliased(Job)
_PLACES = select(
    _LINE.c.id,
    _LINE.c.n.label("position"),
    exists()
    .where(
        slots.in_line(_OTHER),
        _OTHER.model == _LINE.c.model,
        # not `<>`: these two are looks into an index
        or_(_OTHER.project_id < _LINE.c.project_id, _OTHER.project_id > _LINE.c.project_id),
    )
    .label("has_others"),
).where(_LINE.c.id.in_(bindparam("jobs", expanding=True)))
