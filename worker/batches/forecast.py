"""How long jobs take at today's limits: what the lanes are allowed, how long tasks run, and who waits before them.

For each model, over its lanes that are not closed: C tasks at once, R creates a second, and T seconds from a task's
create to its end. N jobs that stand behind `ahead` others, while `used` slots are taken, of which half the time has
passed on average, end after

    max((used / 2 + ahead + N) * T / C,  (ahead + N - 1) / R + T)

seconds: the slots bound the first, the rate the second, whichever lasts longer. Ahead are the project's own jobs that
wait for the model, and of each other project's as many as the fair queue lets pass meanwhile: its weight for each of
ours, and no more than it has.

T is the mean of the medians that were learned of the model's shapes, or what the catalog says. What is not counted:
tokens a minute and a day, retries, and what others submit later.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, Connection, DateTime, Row, Text, any_, bindparam, case, func, select

from worker import catalog
from worker.kinds import KINDS, ParentKind
from worker.lanes import slots, throttle
from worker.tables import Job, Lane, Owner, Project, RunTime

_SECOND_US = 1e6


@dataclass(frozen=True)
class Limits:
    """What a model's open lanes allow together, how many slots are in use, and in how many seconds one opens."""

    at_once: int
    per_second: float
    used: int
    opens: float = 0.0


@dataclass(frozen=True)
class Line:
    """Who waits for a model: jobs of the project's own, and of each other one, by how many pass for one of ours."""

    own: int = 0
    others: tuple[tuple[int, float], ...] = ()

    def ahead(self, jobs: int) -> float:
        """The jobs that are served before the last of so many more."""
        return self.own + sum(min(waiting, (self.own + jobs) * share) for waiting, share in self.others)


def spans(
    connection: Connection,
    counts: Mapping[tuple[str, str], int],
    project_id: uuid.UUID,
    now: datetime,
) -> dict[tuple[str, str], timedelta | None]:
    """The time until so many jobs of each kind and model have ended, behind what waits already.

    None: not known, as of what is made in parts, or whose lanes are closed until a person acts. Of jobs that stand in
    line already, ask for one more: it ends when they have.
    """
    jobs: Counter[str] = Counter()
    for (kind, model), count in counts.items():
        jobs[model] += 0 if _is_parent(kind) else count
    by_model = _by_model(connection, [model for model in jobs if jobs[model]], project_id, now)
    return {
        (kind, model): None if _is_parent(kind) or model not in by_model else _span(jobs[model], *by_model[model])
        for kind, model in counts
    }


def run_times(connection: Connection, models: Sequence[str]) -> dict[str, float]:
    """How many seconds a task of each model runs: the module's T."""
    learned = {row.model: row.seconds for row in connection.execute(_LEARNED, {"models": list(models)})}
    return {model: learned.get(model) or catalog.load().model(model).run_seconds.median for model in models}


def seconds(jobs: int, limits: Limits, line: Line, runs: float) -> float:
    """The module's formula."""
    ahead = line.ahead(jobs)
    by_slots = (limits.used / 2 + ahead + jobs) * runs / limits.at_once
    by_rate = (ahead + jobs - 1) / limits.per_second + runs
    return limits.opens + max(by_slots, by_rate)


def _span(jobs: int, limits: Limits, line: Line, runs: float) -> timedelta:
    return timedelta(seconds=seconds(jobs, limits, line, runs))


def _is_parent(kind: str) -> bool:
    return isinstance(KINDS.get(kind), ParentKind)


def _by_model(
    connection: Connection, models: Sequence[str], project_id: uuid.UUID, now: datetime
) -> dict[str, tuple[Limits, Line, float]]:
    """What is known of each model that has an open lane, or one that opens by itself."""
    project = connection.execute(_PROJECT, {"project": project_id}).one()
    if not models or project.paused_at is not None:
        return {}
    bound = {"models": list(models), "now": now}
    lanes = connection.execute(_LANES, bound).all()
    waiting = connection.execute(_WAITING, bound).all()
    runs = run_times(connection, models)
    known: dict[str, tuple[Limits, Line, float]] = {}
    for model in models:
        limits = _limits([lane for lane in lanes if lane.model == model], project.max_in_flight, now)
        if limits is not None:
            line = _line([row for row in waiting if row.model == model], project_id, project.weight)
            known[model] = (limits, line, runs[model])
    return known


def _limits(lanes: Collection[Row[Any]], max_in_flight: int | None, now: datetime) -> Limits | None:
    """Of the lanes that are open, or else of those that open first; None where none does by itself."""
    usable = [lane for lane in lanes if lane.at_once > 0]
    now_open = [lane for lane in usable if lane.opens_at is None]
    first = min((lane.opens_at for lane in usable if lane.opens_at), default=None)
    some = now_open or [lane for lane in usable if lane.opens_at == first]
    if not some:
        return None
    at_once = sum(lane.at_once for lane in some)
    return Limits(
        at_once=min(at_once, max_in_flight or at_once),
        per_second=sum(_SECOND_US / max(1, lane.interval_us) * lane.pace_now for lane in some),
        used=sum(lane.used for lane in some),
        opens=0.0 if now_open or first is None else max(0.0, (first - now).total_seconds()),
    )


def _line(waiting: Iterable[Any], project_id: uuid.UUID, weight: int) -> Line:
    rows = list(waiting)
    own = sum(row.jobs for row in rows if row.project_id == project_id)
    return Line(own, tuple((row.jobs, row.weight / weight) for row in rows if row.project_id != project_id))


# Statements are built once: to build one costs more than to run it.

_NOW = bindparam("now", type_=DateTime(timezone=True))
_MODELS = any_(bindparam("models", type_=ARRAY(Text)))
_PROJECT = select(Project.weight, Project.max_in_flight, Project.paused_at).where(Project.id == bindparam("project"))
# the lanes that nobody paused, and whose account is not stopped; `opens_at` of one that is parked
_LANES = (
    select(
        Lane.model,
        Lane.interval_us,
        throttle.concurrency(_NOW).label("at_once"),
        throttle.pace(_NOW).label("pace_now"),
        slots.used().label("used"),
        case((throttle.is_parked(_NOW), Lane.parked_until)).label("opens_at"),
    )
    .join(Owner, Owner.name == Lane.owner)
    .where(Lane.model == _MODELS, Lane.paused_at.is_(None), Owner.paused_at.is_(None), Owner.stopped_at.is_(None))
)
# the jobs that wait for each model, by project: counted in the order of an index, then given the project's weight
_LINES = (
    select(Job.model, Job.project_id, func.count().label("jobs"))
    .where(slots.in_line(), Job.model == _MODELS)
    .group_by(Job.model, Job.project_id)
    .subquery()
)
_WAITING = (
    select(*_LINES.c, Project.weight)
    .join(Project, Project.id == _LINES.c.project_id)
    .where(Project.paused_at.is_(None))
)

# how long the last tasks of each model took
_LEARNED = (
    select(RunTime.model, func.avg(RunTime.median).label("seconds"))
    .where(RunTime.model == _MODELS)
    .group_by(RunTime.model)
)
