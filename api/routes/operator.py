"""For operators: decisions about jobs whose outcome nobody can prove; and the lanes, with a project's share of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Connection, select

from api import answers, forms, submissions
from api.answers import Page
from api.bodies import JsonBody
from api.context import Anyone, Asking, Context, Here, moment
from api.problems import problem, refusals
from api.routes.jobs import JobId
from worker import money
from worker.document import STATES, Amount, Answer, Billed, JobDocument, Moment
from worker.errors import NotFound, NotTold
from worker.jobs import operator, reading
from worker.jobs.operator import Action, Decision
from worker.jobs.reading import LaneDocument
from worker.keys import Caller
from worker.lanes import slots
from worker.tables import ApiKey, Job, Project

_AWAY_SECONDS = 5  # before a provider is asked again that did not answer

router = APIRouter()

_REFUSALS = refusals(400, 401, 403, 404, 409, 422, 429, 503)


class CandidateDocument(Answer):
    """A task that no job has, of the model and time of the job's open call."""

    task_id: str
    request_id: str | None
    status: str
    created_at: Moment | None
    differs: list[str] | None = Field(description="what differs from the job's request; null: not known")


class AtStake(Answer):
    """What another call would cost, if the open one did make something."""

    currency: Literal["CNY"] = "CNY"
    estimated: Amount | None
    billed: Billed


class CandidateList(Page[CandidateDocument]):
    """What may be adopted, and the money at stake."""

    at_stake: AtStake


class Resolution(Answer):
    """What was decided of a job, or would be (`done` false: a dry run)."""

    object: Literal["resolution"] = "resolution"
    action: Action
    done: bool
    to: str = Field(description="the state that the job enters", json_schema_extra=STATES)
    why: str
    at_stake: AtStake
    job: JobDocument


class LaneList(Page[LaneDocument]):
    """The lanes, by model and region."""


def operator_name(here: Here, who: Asking) -> str:
    """The name of the operator's key that asks; raises a problem, 403, for a project's."""
    with here.engine.connect() as connection:
        key = connection.execute(select(*ApiKey.__table__.c).where(ApiKey.id == who.key_id)).one()
    if key.project_id is not None:
        raise problem(403, "operator_required", "this takes an operator's key: it is about what the account pays for")
    return f"{key.name} ({key.prefix}…)" if key.name else f"{key.prefix}…"


Operator = Annotated[str, Depends(operator_name)]


@router.get("/v1/jobs/{job_id}/candidates", tags=["jobs"], response_model=CandidateList, responses=_REFUSALS)
def candidates(here: Here, who: Asking, _: Operator, job_id: JobId) -> Response:
    """The provider's tasks that an uncertain job's call may have made, and the money at stake."""
    job, _project = _found(here, who, job_id)
    try:
        found = operator.candidates(here.provider, job)
    except NotTold as error:
        raise _away(error) from error
    data = [CandidateDocument.model_validate(candidate) for candidate in found]
    return answers.answer(CandidateList(data=data, has_more=False, next_cursor=None, at_stake=_at_stake(job)))


@router.post(
    "/v1/jobs/{job_id}/resolve",
    tags=["jobs"],
    response_model=Resolution,
    responses=_REFUSALS | refusals(413, 415),
    openapi_extra=forms.body("ResolveCreate"),
)
def decide(
    here: Here,
    who: Asking,
    by: Operator,
    job_id: JobId,
    body: JsonBody,
    dry_run: Annotated[bool, Query(description="check only; nothing is changed")] = False,
) -> Response:
    """Decide what became of an uncertain job, or of one that is held since workers died on it.

    A task is adopted only if the provider lists it for the job's model and time, no job has it, and what it repeats of
    its request is the job's.
    """
    said = submissions.decision(here, forms.ResolveCreate, body)
    job, project = _found(here, who, job_id)
    decision = Decision(Action(said.action), by, said.task_id, said.billed)
    try:
        move = operator.decide(here.provider, job, decision)
    except NotTold as error:
        raise _away(error) from error
    moved = job if dry_run else operator.carry_out(here.provider, job, move)
    if not dry_run:
        here.tell(moved, project)
    with here.engine.connect() as connection:
        shown = reading.documents(connection, project.name, [moved], moment(connection))[0]
    return answers.answer(
        Resolution(
            action=decision.action,
            done=not dry_run,
            to=move.to,
            why=move.why,
            at_stake=_at_stake(job),
            job=shown,
        )
    )


def _found(here: Context, who: Caller, job_id: Any) -> tuple[Job, Project]:
    """The job and its project: the one that the operator named, or any."""
    with here.engine.connect() as connection:
        project = who.project or _project_of(connection, job_id)
        return reading.one(connection, project.id, job_id), project


def _project_of(connection: Connection, job_id: Any) -> Project:
    statement = select(*Project.__table__.c).join(Job, Job.project_id == Project.id).where(Job.id == job_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return Project.of(row)


def _at_stake(job: Job) -> AtStake:
    return AtStake(estimated=money.shown(job.estimate), billed=job.billed)


def _away(error: NotTold) -> Exception:
    return problem(503, "provider_away", f"the provider does not answer: {error}", retry_after=_AWAY_SECONDS)


@router.get("/v1/limits", tags=["limits"], response_model=LaneList, responses=refusals(401, 404, 422, 429, 503))
def limits(here: Here, who: Anyone) -> Response:
    """The lanes. An operator sees all that is in use and waits, a project what is its own."""
    with here.reading() as connection:
        found = slots.listed(connection, who.now, who.project.id if who.project else None)
    lanes = [LaneDocument.of(lane, who.project is None) for lane in found]
    return answers.page(LaneList, lanes)
