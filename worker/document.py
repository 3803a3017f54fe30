"""A job as others see it: what the API shows of it, and what a webhook's receiver is told.

It is a value made of rows that are handed in, or read here by the project's own jobs. The provider's links are never
shown.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from worker import money
from worker.states import TERMINAL, Mode, State
from worker.tables import Attempt, Job, Output
from worker.text import moment

PRIORITIES = {"high": 1, "normal": 0, "low": -1}
_ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED)
_PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}


@dataclass(frozen=True)
class Waiting:
    """Why nothing is sent for a job now, in a code, a sentence, and the instant it may change (None: unknown)."""

    code: str
    detail: str
    until: datetime | None = None
    position: int | None = None  # in its project's line for the model


def shown(
    project: str,
    job: Job,
    stored: Sequence[Output],
    request_id: str | None,
    cause: Waiting | None,
    made_of: Counter[str] | None = None,
) -> dict[str, Any]:
    """One job as the API and the webhooks show it; `made_of` is what `parts` says of a parent."""
    path = f"/v1/jobs/{job.id}"
    return {
        "id": str(job.id),
        "object": "job",
        "kind": job.kind,
        "model": job.model,
        "project": project,
        "state": job.state,
        "is_terminal": State(job.state) in TERMINAL,
        "held_for": job.held_for,
        "cancel_requested": job.cancel_requested,
        "waiting_on": cause_shown(cause),
        "priority": _PRIORITY_NAMES[job.priority],
        "input": job.input,
        "metadata": job.labels,
        "custom_id": job.custom_id,
        "batch_id": None,
        "parent_id": str(job.parent_id) if job.parent_id else None,
        "round": job.round if job.parent_id or job.mode == Mode.PARENT else None,
        "place": job.place,
        "children": _children(made_of) if made_of is not None else None,
        "created_at": moment(job.created_at),
        "submitted_at": moment(job.submitted_at),
        "started_at": moment(job.started_at),
        "finished_at": moment(job.finished_at),
        "deadline_at": moment(job.deadline_at),
        "cost": {
            "currency": "CNY",
            "estimated": money.shown(job.estimate),
            "actual": money.shown(job.cost),
            "billed": job.billed,
        },
        "usage": job.usage,
        "provider": {
            "account": job.account,
            "region": job.region,
            "task_id": job.task_id,
            "request_id": request_id,
            "status": job.task_status,
            "links_expire_at": moment(job.links_expire_at),
        },
        "outputs": [_output(path, output) for output in stored],
        "result": job.result,
        "error": job.error,
        "urls": _urls(job, path),
    }


def outputs(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, list[Output]]:
    """The stored outputs of each job, in order."""
    found: dict[uuid.UUID, list[Output]] = {job.id: [] for job in jobs}
    for row in connection.execute(_OUTPUTS, {"jobs": list(found)}).mappings():
        found[row["job_id"]].append(Output.of(row))
    return found


def request_ids(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, str | None]:
    """The provider's request id of each job's last attempt: what its support asks for."""
    of_attempt = {job.attempt_id: job.id for job in jobs if job.attempt_id}
    if not of_attempt:
        return {}
    statement = select(Attempt.id, Attempt.request_id).where(Attempt.id.in_(list(of_attempt)))
    return {of_attempt[row.id]: row.request_id for row in connection.execute(statement)}


def parts(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, Counter[str]]:
    """How many children each parent has in each state; asks nothing where no job is a parent."""
    found: dict[uuid.UUID, Counter[str]] = {job.id: Counter() for job in jobs if job.mode == Mode.PARENT}
    if found:
        for row in connection.execute(_PARTS, {"parents": list(found)}):
            found[row.parent_id][row.state] = row.jobs
    return found


def cause_shown(cause: Waiting | None) -> dict[str, Any] | None:
    """What something waits for, as the API shows it."""
    return {**asdict(cause), "until": moment(cause.until)} if cause else None


# Built once: with the columns of a job, building a statement costs as much as running it.

_OUTPUTS = (
    select(*Output.__table__.c)
    .where(Output.job_id.in_(bindparam("jobs", expanding=True)))
    .order_by(Output.job_id, Output.n)
)

_PARTS = (
    select(Job.parent_id, Job.state, func.count().label("jobs"))
    .where(Job.parent_id.in_(bindparam("parents", expanding=True)))
    .group_by(Job.parent_id, Job.state)
    .order_by(Job.parent_id, Job.state)
)

_URLS = {
    "self": "",
    "events": "/events",
    "attempts": "/attempts",
    "children": "/children",
    "cancel": "/cancel",
    "retry": "/retry",
}


def _urls(job: Job, path: str) -> dict[str, str]:
    is_parent = job.mode == Mode.PARENT
    return {name: path + suffix for name, suffix in _URLS.items() if is_parent or name != "children"}


def _children(made_of: Counter[str]) -> dict[str, int]:
    ended = {str(state): made_of[state] for state in _ENDS}
    return {"total": made_of.total(), "unfinished": made_of.total() - sum(ended.values()), **ended}


def _output(path: str, output: Output) -> dict[str, Any]:
    return {
        "n": output.n,
        "role": output.role,
        "content_type": output.content_type,
        "bytes": output.bytes,
        "sha256": output.sha256,
        "duration": float(output.duration) if output.duration is not None else None,
        "key": output.key,
        "url": f"{path}/outputs/{output.n}",
    }
