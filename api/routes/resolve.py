"""What an operator decides of jobs of which nobody can prove what became. A project's key may not: it is money."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Connection, select

from api import answers, describe, submissions
from api.auth import Asking
from api.context import Context, Here, moment
from api.problems import problem
from api.routes.jobs import JobId
from api.submissions import JsonBody
from worker import money, text
from worker.errors import NotFound, NotTold
from worker.jobs import operator, reading
from worker.jobs.operator import Action, Candidate, Decision
from worker.keys import Caller
from worker.tables import ApiKey, Job, Project

_AWAY_SECONDS = 5  # before a provider is asked again that did not tell

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], responses=describe.refusals(400, 401, 403, 404, 409, 422, 429, 503)
)


def operator_name(here: Here, who: Asking) -> str:
    """The name of the operator's key that asks; raises a problem, 403, for a project's."""
    with here.engine.connect() as connection:
        key = connection.execute(select(*ApiKey.__table__.c).where(ApiKey.id == who.key_id)).one()
    if key.project_id is not None:
        raise problem(403, "operator_required", "this takes an operator's key: it is about what the account pays for")
    return f"{key.name} ({key.prefix}…)" if key.name else f"{key.prefix}…"


Operator = Annotated[str, Depends(operator_name)]


@router.get("/{job_id}/candidates", response_model=answers.CandidateList)
def candidates(here: Here, who: Asking, _: Operator, job_id: JobId) -> Response:
    """The provider's tasks that an uncertain job's call may have made, and the money at stake."""
    job, _project = _found(here, who, job_id)
    try:
        found = operator.candidates(here.provider, job)
    except NotTold as error:
        raise _away(error) from error
    data = [_candidate(candidate) for candidate in found]
    return JSONResponse(
        {"object": "list", "data": data, "has_more": False, "next_cursor": None, "at_stake": _at_stake(job)}
    )


@router.post(
    "/{job_id}/resolve",
    response_model=answers.Resolution,
    responses=describe.refusals(413, 415),
    openapi_extra=describe.plain_body("ResolveCreate"),
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
    said = submissions.decision(here, body)
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
        document = reading.documents(connection, project.name, [moved], moment(connection))[0]
    return JSONResponse(
        {
            "object": "resolution",
            "action": said.action,
            "done": not dry_run,
            "to": move.to,
            "why": move.why,
            "at_stake": _at_stake(job),
            "job": document,
        }
    )


def _found(here: Context, who: Caller, job_id: Any) -> tuple[Job, Project]:
    """The job, of the project that the operator named, or of any."""
    with here.engine.connect() as connection:
        project = who.project or _project_of(connection, job_id)
        return reading.one(connection, project.id, job_id), project


def _project_of(connection: Connection, job_id: Any) -> Project:
    statement = select(*Project.__table__.c).join(Job, Job.project_id == Project.id).where(Job.id == job_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return Project.of(row)


def _candidate(candidate: Candidate) -> dict[str, Any]:
    differs = None if candidate.differs is None else list(candidate.differs)
    return {**asdict(candidate), "created_at": text.moment(candidate.created_at), "differs": differs}


def _at_stake(job: Job) -> dict[str, Any]:
    return {"currency": "CNY", "estimated": money.shown(job.estimate), "billed": job.billed}


def _away(error: NotTold) -> Exception:
    return problem(503, "provider_away", f"the provider does not tell: {error}", retry_after=_AWAY_SECONDS)
