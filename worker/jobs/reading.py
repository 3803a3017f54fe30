"""Reading jobs: one, a page of them, their history and attempts, and what unfinished ones wait for.

Every query carries the project, so another project's ids do not exist. A page of jobs is answered with one statement
for each kind of fact, however long the page. Of several causes that hold a job up, one that holds the whole lane is
named first, then one that holds the project, then the job's place in its project's line. If several lanes could take
the job, the lane that opens first counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import (
    ARRAY,
    CTE,
    Connection,
    DateTime,
    Result,
    Row,
    String,
    Uuid,
    bindparam,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased
from sqlalchemy.sql.expression import cast

from worker import document
from worker.document import Answer, Billed, JobDocument, Moment, Waiting
from worker.errors import NotFound
from worker.lanes import account_stops, slots
from worker.money import budgets
from worker.states import HeldFor, Mode, State
from worker.tables import Attempt, Batch, Event, Job, Lane, Output, Owner, Project

LOOKED_THROUGH = 10_000  # jobs that one search reads where no index finds what it is for
_NEVER = datetime.max.replace(tzinfo=UTC)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_EPOCH, _LAST = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)
_MAKING = timedelta(minutes=1)  # between a job's `created_at` and its id: the longest time that its transaction takes
_MISSED = (State.FAILED, State.EXPIRED)
_HELD = {
    HeldFor.UNCERTAIN: "nobody can prove whether the provider made a task: a person has to decide",
    HeldFor.CRASHES: "several workers died on it: a person has to look",
    HeldFor.BUDGET: "waits for room in the project's budget",
    HeldFor.BATCH: "its batch is paused",
}


@dataclass(frozen=True)
class Filter:
    """Which jobs to list; what is None or empty does not narrow. `before` is the last id of the page before."""

    states: tuple[str, ...] = ()
    kind: str | None = None
    model: str | None = None
    batch: uuid.UUID | None = None
    schedule: uuid.UUID | None = None
    custom_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None
    before: uuid.UUID | None = None
    last: uuid.UUID | None = None  # the oldest job that is looked at

    @property
    def ids(self) -> tuple[uuid.UUID, uuid.UUID]:
        """The ids between which the wanted jobs are, both exclusive: an id begins with the time when it was made."""
        after, before = _EPOCH, self.before or _LAST
        if self.created_after:
            after = _id_at(self.created_after, -_MAKING)
        if self.created_before:
            before = min(before, _id_at(self.created_before, _MAKING))
        return after, before


class JobEvent(Answer):
    """A recorded move."""

    object: Literal["event"] = "event"
    id: str
    job_id: uuid.UUID
    sequence: int = Field(description="counts within the job; the stream's id")
    type: str = Field(examples=["job.running"])
    from_: str | None = Field(alias="from", description="the state it left; null: it was made")
    to: str
    why: str
    at: Moment

    @classmethod
    def of(cls, event: Any) -> JobEvent:
        """The document of an event's row."""
        return cls(
            id=f"evt_{event.id}",
            job_id=event.job_id,
            sequence=event.sequence,
            type=event.type,
            from_=event.left,
            to=event.entered,
            why=event.why,
            at=event.at,
        )


class AttemptDocument(Answer):
    """One create call to the provider: what may have cost money."""

    object: Literal["attempt"] = "attempt"
    id: uuid.UUID
    number: int
    model: str
    region: str
    account: str
    sent_at: Moment
    answered_at: Moment | None
    outcome: Literal["sent", "accepted", "refused", "not_sent", "unknown", "absent"]
    http_status: int | None
    request_id: str | None
    task_id: str | None
    code: str | None
    message: str | None
    billed: Billed


class Tokens(Answer):
    """Tokens of a lane: what calls may take a minute and a day, what is booked ahead, and what today took."""

    per_minute: int | None
    ahead: int | None
    per_day: int | None
    today: int


class LaneDocument(Answer):
    """What the provider's limits apply to: a model in a region. What is in use and waits is the caller's own."""

    object: Literal["lane"] = "lane"
    model: str
    region: str
    account: str | None = Field(description="whose limits these are; only for operators")
    concurrency: int = Field(description="tasks at once, as configured")
    allowed: int = Field(description="tasks at once now: fewer, where the provider takes fewer")
    per_second: float | None = Field(description="creates, at full pace")
    pace: float = Field(description="the share of that rate that is used now, after throttling")
    in_use: int
    queued: int
    tokens: Tokens | None = Field(description="null where the provider does not limit them")
    waiting_on: Waiting | None = Field(description="what holds the lane up")

    @classmethod
    def of(cls, lane: Row[Any], is_operator: bool) -> LaneDocument:
        """The document of a lane as `slots.listed` gives it."""
        return cls(
            model=lane.model,
            region=lane.region,
            account=lane.owner if is_operator else None,
            concurrency=lane.concurrency,
            allowed=lane.allowed,
            per_second=round(1e6 / lane.interval_us, 3) if lane.interval_us else None,
            pace=round(lane.pace_now, 3),
            in_use=lane.in_use,
            queued=lane.queued,
            tokens=_tokens(lane),
            waiting_on=of_lane(lane),
        )


@dataclass(frozen=True)
class _Line:
    """A waiting job's place in its project's line, and whether other projects' jobs wait for the model too."""

    position: int
    has_others: bool


_REVIEW = Waiting("review", "a person is to approve or reject its outputs")
_PAUSED_BATCH = Waiting("paused", "its batch is paused")
_PARTS = Waiting("parts", "waits to be divided into its parts")
_DAY = Waiting("quota", "of the model's tokens a day fewer are left than it may take: smaller calls go first")
_SLOT = Waiting("slot", "waits for one of the model's concurrent tasks")
_TURN = Waiting("turn", "waits for its turn: projects take turns in the model's concurrent tasks")


def one(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The project's job; raises NotFound."""
    row = connection.execute(_ONE, {"project": project_id, "job": job_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return Job.of(row)


def brief(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The project's job as lists have it, with what is long cut; raises NotFound."""
    statement = select(*LISTED).where(Job.project_id == project_id, Job.id == job_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return Job.of(row)


def several(connection: Connection, project_id: uuid.UUID, job_ids: Collection[uuid.UUID]) -> list[Job]:
    """Those of the jobs that are the project's, whole: few at a time, since an input may hold a picture."""
    statement = select(*Job.__table__.c).where(Job.project_id == project_id, Job.id.in_(job_ids)).order_by(Job.id)
    return _jobs(connection.execute(statement))


def page(connection: Connection, project_id: uuid.UUID, wanted: Filter, limit: int) -> list[Job]:
    """At most `limit` top-level jobs, the newest first, as lists show them: long inputs and results are cut."""
    if wanted.metadata and not wanted.q:
        return _labelled(connection, project_id, wanted, limit)
    if wanted.custom_id or wanted.q or wanted.schedule:
        return _looked_through(connection, project_id, wanted, limit)
    said = _said(project_id, wanted, limit)
    if wanted.batch:
        return _jobs(connection.execute(_NEWEST_OF_BATCH, said))
    if not (wanted.states or wanted.kind or wanted.model):
        return _jobs(connection.execute(_NEWEST, said))
    return _jobs(connection.execute(_NEWEST_OF_GROUPS, said))


def ids(connection: Connection, project_id: uuid.UUID, wanted: Filter, limit: int) -> list[uuid.UUID]:
    """The ids of the newest `limit` top-level jobs that the filter finds, the newest first; without `q`."""
    if wanted.metadata or wanted.custom_id or wanted.schedule:
        mine = _matching(project_id, wanted)
        newest = select(mine.c.id).order_by(mine.c.id.desc()).limit(limit)
    else:
        newest = select((_OF_BATCH if wanted.batch else _FOUND).c.id)
    return list(connection.execute(newest, _said(project_id, wanted, limit)).scalars())


def last_to_look_at(
    connection: Connection, project_id: uuid.UUID, wanted: Filter, most: int | None = None
) -> uuid.UUID | None:
    """The last of as many jobs as one search may look through, found by the index; None: there are fewer."""
    statement = select(Job.id).where(Job.project_id == project_id, Job.parent_id.is_(None))
    after, before = wanted.ids
    statement = statement.where(Job.id > after, Job.id < before)
    found: uuid.UUID | None = connection.execute(
        statement.order_by(Job.id.desc()).offset((most or LOOKED_THROUGH) - 1).limit(1)
    ).scalar_one_or_none()
    return found


def children(
    connection: Connection, parent: Job, states: Sequence[str], after: tuple[int, int], limit: int
) -> list[Job]:
    """At most `limit` of the job's children after a (round, place), in that order, cut as `page` cuts them.

    All states where none is named.
    """
    places = tuple_(Job.round, Job.place)
    statement = select(*LISTED).where(Job.parent_id == parent.id, places > after)
    if states:
        statement = statement.where(Job.state.in_(states))
    return _jobs(connection.execute(statement.order_by(Job.round, Job.place).limit(limit)))


def history(connection: Connection, job: Job, after: int = 0, limit: int | None = None) -> Sequence[Row[tuple[Event]]]:
    """The job's events after a sequence number, oldest first."""
    statement = (
        select(*Event.__table__.c)
        .where(Event.job_id == job.id, Event.project_id == job.project_id, Event.sequence > after)
        .order_by(Event.sequence)
        .limit(limit)
    )
    return connection.execute(statement).all()


def sequences(connection: Connection, job_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    """The sequence number of each job's last event; of jobs that were read as their project's before."""
    statement = select(Job.id, Job.sequence).where(Job.id.in_(job_ids))
    return {row.id: row.sequence for row in connection.execute(statement)}


def attempts(connection: Connection, job: Job) -> list[Attempt]:
    """Every create call of the job, oldest first, without its `output`, which is the job's."""
    statement = select(*_CALL).where(Attempt.job_id == job.id).order_by(Attempt.number)
    return [Attempt.of(row) for row in connection.execute(statement).mappings()]


def output(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, n: int) -> Output:
    """The n-th stored output of the project's job; raises NotFound."""
    statement = select(*Output.__table__.c).where(
        Output.project_id == project_id, Output.job_id == job_id, Output.n == n
    )
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no output {n} of job {job_id}")
    return Output.of(row)


def documents(connection: Connection, project: str, jobs: Sequence[Job], now: datetime) -> list[JobDocument]:
    """The jobs as the API shows them, in their order."""
    stored, requests = document.outputs(connection, jobs), document.request_ids(connection, jobs)
    made_of = document.parts(connection, jobs)
    causes = waiting_on(connection, jobs, now)
    causes |= {job.id: on_parts(made_of[job.id]) for job in jobs if job.state == State.GATHERING}
    return [
        document.shown(project, job, stored[job.id], requests.get(job.id), causes[job.id], made_of.get(job.id))
        for job in jobs
    ]


def waiting_on(connection: Connection, jobs: Sequence[Job], now: datetime) -> dict[uuid.UUID, Waiting | None]:
    """What each job waits for; None when it is being worked on or has ended."""
    found = {job.id: _by_state(job) for job in jobs}
    queued = [job for job in jobs if job.state == State.QUEUED and job.mode != Mode.PARENT]
    due = [job for job in queued if job.run_at is None or job.run_at <= now]
    found |= {
        job.id: Waiting("backoff", f"waits before it is tried again{_trouble(job)}", job.run_at) for job in queued
    }
    if due:
        found |= _in_line(connection, due, now)
    return found | _passed_by(connection, jobs) | _without_room(connection, jobs, now)


def at_first(job: Job) -> Waiting:
    """What a job waits for that was just made, without its place in the line: to count that costs too much there."""
    if job.state == State.HELD:
        return Waiting("budget", _HELD[HeldFor.BUDGET])
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


def _tokens(lane: Row[Any]) -> Tokens | None:
    if lane.tpm is None and lane.tpd is None:
        return None
    ahead = None if lane.tokens_ahead is None else int(lane.tokens_ahead)
    return Tokens(per_minute=lane.tpm, ahead=ahead, per_day=lane.tpd, today=lane.tokens_today)


def _said(project_id: uuid.UUID, wanted: Filter, limit: int) -> dict[str, Any]:
    after, before = wanted.ids
    return {
        "project": project_id,
        "after": after,
        "before": before,
        "created_after": wanted.created_after or _LONG_AGO,
        "created_before": wanted.created_before or _NEVER,
        "kind": wanted.kind,
        "model": wanted.model,
        "states": list(wanted.states) or None,
        "batch": wanted.batch,
        "most": limit,
    }


def _conditions(wanted: Filter) -> list[Any]:
    simple = {
        Job.kind: wanted.kind,
        Job.model: wanted.model,
        Job.custom_id: wanted.custom_id,
        Job.batch_id: wanted.batch,
        Job.schedule_id: wanted.schedule,
    }
    conditions: list[Any] = [column == value for column, value in simple.items() if value is not None]
    if wanted.states:
        conditions.append(Job.state.in_(wanted.states))
    if wanted.metadata:
        # the second is true of all that the first finds, and lets the index be one of the jobs with labels alone
        conditions += [Job.labels.op("@>")(cast(dict(wanted.metadata), JSONB)), Job.labels != literal_column("'{}'")]
    if wanted.created_after:
        conditions.append(Job.created_at > wanted.created_after)
    if wanted.created_before:
        conditions.append(Job.created_at < wanted.created_before)
    if wanted.before or wanted.created_after or wanted.created_before:
        after, before = wanted.ids
        conditions += [Job.id > after, Job.id < before]
    if wanted.last:
        conditions.append(Job.id >= wanted.last)
    if wanted.q:
        pattern = "%" + wanted.q.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
        conditions.append(or_(Job.input["prompt"].astext.ilike(pattern), Job.custom_id.ilike(pattern)))
    return conditions


def _id_at(at: datetime, later: timedelta) -> uuid.UUID:
    """An id of that time and a little more or less, before all others of its millisecond."""
    millis = (at - datetime.fromtimestamp(0, UTC) + later) // timedelta(milliseconds=1)
    return uuid.UUID(int=min(max(millis, 0), 2**48 - 1) << 80)


def _labelled(connection: Connection, project_id: uuid.UUID, wanted: Filter, limit: int) -> list[Job]:
    """Jobs by their labels: what many have is among the newest, what few have is found by the index."""
    last = last_to_look_at(connection, project_id, wanted)
    newest = _looked_through(connection, project_id, replace(wanted, last=last), limit)
    if last is None or len(newest) == limit:
        return newest
    found = _matching(project_id, wanted)
    first = select(found.c.id).order_by(found.c.id.desc()).limit(limit).subquery()
    return _jobs(connection.execute(select(*LISTED).join(first, first.c.id == Job.id).order_by(Job.id.desc())))


def _matching(project_id: uuid.UUID, wanted: Filter) -> CTE:
    """The ids of all jobs that few indexes know of; materialized, or the planner would look through all the others."""
    matching = select(Job.id).where(Job.project_id == project_id, Job.parent_id.is_(None), *_conditions(wanted))
    return matching.cte("found").prefix_with("materialized")


def _looked_through(connection: Connection, project_id: uuid.UUID, wanted: Filter, limit: int) -> list[Job]:
    mine = select(*LISTED).where(Job.project_id == project_id, Job.parent_id.is_(None), *_conditions(wanted))
    return _jobs(connection.execute(mine.order_by(Job.id.desc()).limit(limit)))


def _jobs(rows: Result[Any]) -> list[Job]:
    return [Job.of(row) for row in rows.mappings().all()]


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
        case State.AWAITING_REVIEW:
            return _REVIEW
        case State.COPYING if job.claimed is None:
            return Waiting("storage", f"waits to be copied into the bucket{_trouble(job)}", job.run_at)
    return None


def _trouble(job: Job) -> str:
    return f": {job.error['message']}" if job.error else ""


def _in_line(connection: Connection, jobs: Sequence[Job], now: datetime) -> dict[uuid.UUID, Waiting | None]:
    lanes = _lanes(connection, {job.model for job in jobs}, now)
    projects, places = _projects(connection, {job.project_id for job in jobs}), _places(connection, jobs)
    held_up = {
        (model, account): _of_lanes([lane for lane in lanes if lane.model == model], account)
        for model, account in {(job.model, projects[job.project_id].account) for job in jobs}
    }
    found: dict[uuid.UUID, Waiting | None] = {}
    for job in jobs:
        project = projects[job.project_id]
        waiting = held_up[job.model, project.account] or _project(project) or _alone(job)
        found[job.id] = _in(project.account, _placed(waiting, places.get(job.id)))
    return found


def _passed_by(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, Waiting | None]:
    """What those jobs wait for that came back to the line while their batch is paused."""
    queued = {job.id: job.batch_id for job in jobs if job.state == State.QUEUED and job.batch_id}
    if not queued:
        return {}
    paused = set(connection.execute(_PAUSED, {"batches": list(set(queued.values()))}).scalars())
    return {job_id: _PAUSED_BATCH for job_id, batch_id in queued.items() if batch_id in paused}


def _without_room(connection: Connection, jobs: Sequence[Job], now: datetime) -> dict[uuid.UUID, Waiting | None]:
    """Which of its project's budgets each job waits for that is held for one."""
    held = [job for job in jobs if job.held_for == HeldFor.BUDGET]
    rooms = {project: budgets.seen(connection, project, now) for project in {job.project_id for job in held}}
    fullest = {job.id: rooms[job.project_id].fullest() for job in held}
    return {
        job_id: Waiting("budget", f"waits for room in {standing.says()}", standing.span.ends_at)
        for job_id, standing in fullest.items()
        if standing  # else it was deleted just now
    }


def _alone(job: Job) -> Waiting:
    """What it waits for where nothing holds its lane or its project up."""
    return _SLOT if job.tokens is None else _DAY


def _placed(waiting: Waiting, line: _Line | None) -> Waiting:
    if line is None:  # admitted since the job was read
        return waiting
    return replace(_TURN if waiting is _SLOT and line.has_others else waiting, position=line.position)


def _in(account: str | None, waiting: Waiting) -> Waiting:
    """The same of a job that can go to one account alone."""
    if account is None or waiting.code not in ("slot", "turn"):
        return waiting
    return replace(waiting, detail=f"{waiting.detail}, in the account {account} alone, to which its project is bound")


def _lanes(connection: Connection, models: Collection[str], now: datetime) -> Sequence[Row[Any]]:
    """The lanes of these models in which some account may create."""
    return connection.execute(_LANES, {"models": list(models), "now": now}).all()


def _of_lanes(lanes: Sequence[Row[Any]], account: str | None) -> Waiting | None:
    """What holds all of a model's lanes up, or all that the account has; None where one of them is open."""
    mine = [lane for lane in lanes if account is None or account in lane.accounts]
    if account is not None and not mine:
        return Waiting("account", f"its project is bound to the account {account}, which is not set up for this model")
    able = [lane for lane in mine if account in lane.able or (account is None and lane.able)]
    if mine and not able:
        return Waiting(
            "account", f"the provider refuses the key of {account or 'each account'}: `noria doctor` says why"
        )
    held_up = [of_lane(lane) for lane in able]
    return None if None in held_up else min(filter(None, held_up), key=_opens, default=None)


def _opens(waiting: Waiting) -> datetime:
    return waiting.until or _NEVER


def _projects(connection: Connection, projects: Collection[uuid.UUID]) -> dict[uuid.UUID, Row[Any]]:
    return {row.id: row for row in connection.execute(_PROJECTS, {"projects": list(projects)})}


def _project(row: Row[Any]) -> Waiting | None:
    """What holds all of a project's jobs up."""
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


_SHORT: Mapping[str, Any] = {  # what a list never loads whole: megabytes each; a text that was cut ends in "…"
    "input": func.shortened(Job.input, type_=JSONB),
    "result": func.shortened(Job.result, type_=JSONB),
    "note": null(),
    "sources": null(),
}
LISTED = [_SHORT[column.name].label(column.name) if column.name in _SHORT else column for column in Job.__table__.c]
_CALL = [null().label("output") if column.name == "output" else column for column in Attempt.__table__.c]

# Built once: with the columns of a job, building a statement costs as much as running it.
_ONE = select(*Job.__table__.c).where(Job.project_id == bindparam("project"), Job.id == bindparam("job"))
_NEWEST = (
    select(*LISTED)
    .where(
        Job.project_id == bindparam("project"),
        Job.parent_id.is_(None),
        Job.id > bindparam("after"),
        Job.id < bindparam("before"),
        Job.created_at > bindparam("created_after"),
        Job.created_at < bindparam("created_before"),
    )
    .order_by(Job.id.desc())
    .limit(bindparam("most"))
)
# The newest jobs of each (kind, model, state) of the project that the filter lets through, and of these the newest:
# a look or two into one index for each such group, however many jobs there are.
_GROUPS = text(
    """
    with recursive groups (kind, model, state) as (
        (select kind, model, state from jobs where project_id = :project and parent_id is null
          order by kind, model, state limit 1)
        union all
        select next.* from groups cross join lateral (
               select kind, model, state from jobs
                where project_id = :project and parent_id is null
                  and (kind, model, state) > (groups.kind, groups.model, groups.state)
                order by kind, model, state limit 1) as next
    )
    select newest.id from groups cross join lateral (
           select id from jobs
            where project_id = :project and parent_id is null
              and kind = groups.kind and model = groups.model and state = groups.state
              and id > :after and id < :before and created_at > :created_after and created_at < :created_before
            order by id desc limit :most) as newest
     where (cast(:kind as text) is null or kind = :kind)
       and (cast(:model as text) is null or model = :model)
       and (cast(:states as text[]) is null or state = any(:states))
     order by newest.id desc limit :most
    """
)
_FOUND = _GROUPS.bindparams(bindparam("states", type_=ARRAY(String))).columns(id=Uuid).subquery("found")
# The same within a batch: its jobs lie together in one index, by kind, model and state.
_GROUPS_OF_BATCH = text(
    """
    with recursive groups (kind, model, state) as (
        (select kind, model, state from jobs
          where batch_id = :batch and exists (select from batches where id = :batch and project_id = :project)
          order by kind, model, state limit 1)
        union all
        select next.* from groups cross join lateral (
               select kind, model, state from jobs
                where batch_id = :batch and (kind, model, state) > (groups.kind, groups.model, groups.state)
                order by kind, model, state limit 1) as next
    )
    select newest.id from groups cross join lateral (
           select id from jobs
            where batch_id = :batch and kind = groups.kind and model = groups.model and state = groups.state
              and project_id = :project and parent_id is null
              and id > :after and id < :before and created_at > :created_after and created_at < :created_before
            order by id desc limit :most) as newest
     where (cast(:kind as text) is null or groups.kind = :kind)
       and (cast(:model as text) is null or groups.model = :model)
       and (cast(:states as text[]) is null or groups.state = any(:states))
     order by newest.id desc limit :most
    """
)
_OF_BATCH = (
    _GROUPS_OF_BATCH.bindparams(bindparam("states", type_=ARRAY(String)), bindparam("batch", type_=Uuid))
    .columns(id=Uuid)
    .subquery("found")
)
_NEWEST_OF_BATCH = select(*LISTED).join(_OF_BATCH, _OF_BATCH.c.id == Job.id).order_by(Job.id.desc())
_NEWEST_OF_GROUPS = select(*LISTED).join(_FOUND, _FOUND.c.id == Job.id).order_by(Job.id.desc())
_LANES = (
    select(Lane.model, Lane.paused_why, Lane.parked_until, Lane.parked_why)
    .add_columns(slots.accounts().label("accounts"))
    .add_columns(account_stops.able(slots.accounts(), bindparam("now", type_=DateTime(timezone=True))).label("able"))
    .add_columns(*slots.obstacles(bindparam("now", type_=DateTime(timezone=True))))
    .join(Owner, Owner.name == Lane.owner)
    .where(Lane.model.in_(bindparam("models", expanding=True)), func.cardinality(slots.accounts()) > 0)
)
_PROJECTS = (
    select(Project.id, Project.account, Project.paused_at, Project.max_in_flight)
    .add_columns(
        select(func.count())
        .where(Job.project_id == Project.id, slots.holds_slot())
        .scalar_subquery()
        .label("in_flight")
    )
    .where(Project.id.in_(bindparam("projects", expanding=True)))
)
_PAUSED = select(Batch.id).where(Batch.id.in_(bindparam("batches", expanding=True)), Batch.state == "paused")
_QUEUED = (
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
# The first and the last project in the model's line, each at an end of the index: asked for any other project, the
# planner expects to meet one soon, and reads the whole table where there is none.
_AN_END = select(_OTHER.project_id).where(slots.in_line(_OTHER), _OTHER.model == _QUEUED.c.model).limit(1)
_PLACES = select(
    _QUEUED.c.id,
    _QUEUED.c.n.label("position"),
    or_(
        _AN_END.order_by(_OTHER.project_id).scalar_subquery() != _QUEUED.c.project_id,
        _AN_END.order_by(_OTHER.project_id.desc()).scalar_subquery() != _QUEUED.c.project_id,
    ).label("has_others"),
).where(_QUEUED.c.id.in_(bindparam("jobs", expanding=True)))
