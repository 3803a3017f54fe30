"""Reviews: approve a job's outputs, reject them, make another take, and see the takes side by side."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Connection

from api import answers, forms, submissions
from api.answers import JobList
from api.bodies import JsonBody, MayBeJson
from api.context import Context, Here, Mine, Tenant, moment
from api.problems import refusals
from api.routes.jobs import JobId
from worker.document import Answer, JobDocument
from worker.jobs import reading, review
from worker.tables import Job, Project

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["reviews"], responses=refusals(400, 401, 404, 422, 429, 503))

_COMMENT = "the cat has five legs"
_REJECTIONS = {
    "reject": {"summary": "no other take", "value": {"comment": _COMMENT}},
    "another seed": {"summary": "another take, with another seed", "value": {"comment": _COMMENT, "reroll": {}}},
    "another prompt": {
        "summary": "another take, with another prompt",
        "value": {"comment": _COMMENT, "reroll": {"prompt": "a kitten with four legs runs", "seed": 7}},
    },
}


class Rejection(Answer):
    """The job that was rejected, and the take that was made of it."""

    object: Literal["rejection"] = "rejection"
    job: JobDocument
    next_take: JobDocument | None = Field(description="null: none was made so far")


@router.post(
    "/approve",
    response_model=JobDocument,
    responses=refusals(409, 413, 415),
    openapi_extra=forms.body("ApproveCreate", required=False),
)
def approve(here: Here, mine: Mine, job_id: JobId, body: MayBeJson) -> Response:
    """Approve the outputs of a job that awaits a review: it has succeeded. A second time the answer is the same."""
    said = submissions.decision(here, forms.ApproveCreate, body)
    with here.engine.begin() as connection:
        job = review.approve(connection, mine.project.id, job_id, said.comment, moment(connection))
        shown = _documents(connection, mine, job)[0]
    here.tell(job, mine.project, [output.key for output in shown.outputs])
    return answers.answer(shown)


@router.post(
    "/reject",
    response_model=Rejection,
    responses=refusals(402, 409, 413, 415),
    openapi_extra=forms.body("RejectCreate", examples=_REJECTIONS),
)
def reject(here: Here, mine: Mine, job_id: JobId, body: JsonBody) -> Response:
    """Reject the outputs of a job that awaits a review; with `reroll` another take is made, a new job.

    A rejected job has one next take at the most: a second time the answer is the same, with the same take. One that was
    rejected without `reroll` may have it later.
    """
    said = submissions.decision(here, forms.RejectCreate, body)
    changes = said.reroll.model_dump(exclude_none=True) if said.reroll else None
    with here.engine.begin() as connection:
        job = review.reject(connection, mine.project.id, job_id, said.comment, moment(connection))
        take = review.next_take(connection, job)
        if take is None and changes is not None:
            take = _reroll(here, connection, mine.project, job, changes)
        shown = _documents(connection, mine, *filter(None, (job, take)))
    for told in filter(None, (job, take)):
        here.tell(told, mine.project)
    return answers.answer(Rejection(job=shown[0], next_take=shown[1] if take else None))


@router.get("/takes", response_model=JobList)
def takes(here: Here, mine: Mine, job_id: JobId) -> Response:
    """All takes of what the job was to make, side by side: the first, and what was made of each that was rejected."""
    with here.reading() as connection:
        found = review.takes(connection, reading.brief(connection, mine.project.id, job_id))
        return answers.page(JobList, _documents(connection, mine, *found))


def _reroll(here: Context, connection: Connection, project: Project, job: Job, changes: dict[str, Any]) -> Job:
    """Another take; raises a problem when the project is full."""
    if here.waiting.is_full(connection, job.project_id):
        raise here.waiting.refuse()
    return review.reroll(connection, here.catalog, here.of(project).settings, job, changes, moment(connection))


def _documents(connection: Connection, mine: Tenant, *jobs: Job) -> list[JobDocument]:
    return reading.documents(connection, mine.project.name, jobs, mine.now)
