"""Jobs as Flower shows them: Celery events made by hand, one row for each top-level job.

Flower merges only the fields that it knows, an unknown `task-foo` becomes state FOO, and after a terminal event
nothing shows any more. `name` becomes a metric's label, so it is kind and model, nothing of the user's. The prompt
is never in an event.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from worker.kinds import KINDS
from worker.states import State
from worker.tables import Job

_TYPES = {
    State.QUEUED: "task-received",
    State.SUBMITTING: "task-submitted",
    State.RUNNING: "task-running",
    State.GATHERING: "task-gathering",
    State.COPYING: "task-copying",
    State.HELD: "task-held",
    State.SUCCEEDED: "task-succeeded",
    State.FAILED: "task-failed",
    State.EXPIRED: "task-failed",
    State.CANCELED: "task-revoked",
}


def event(job: Job, project: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """What tells Flower of the state that a job has entered; None where it has no row or no use for it."""
    event_type = _TYPES.get(State(job.state))
    if event_type is None or job.parent_id is not None:
        return None
    said = {
        "type": event_type,
        "uuid": str(job.id),
        "name": f"{job.kind} · {job.model}",
        "args": _words(job),
        "kwargs": repr({"project": project, "custom_id": job.custom_id or "", "id": str(job.id)}),
        "retries": job.retries,
        "timestamp": job.state_at.timestamp(),
        "local_received": time.time(),
    }
    return said | _end(job, keys)


def _words(job: Job) -> str:
    kind = KINDS[job.kind]
    return kind.words(kind.input.model_validate(job.input))


def _end(job: Job, keys: Sequence[str]) -> dict[str, Any]:
    took = (job.finished_at - job.created_at).total_seconds() if job.finished_at else None
    if job.state == State.SUCCEEDED:
        return {"result": ", ".join(keys), "runtime": took}
    if job.state in (State.FAILED, State.EXPIRED):
        error = job.error or {}
        reason = f"{error.get('code')}: {error.get('message')}"
        return {"exception": reason, "traceback": error.get("hint") or "", "runtime": took}
    if job.state == State.CANCELED:
        return {"terminated": False, "signum": None, "expired": False}
    return {}
