"""Legal holds: what a person says must be kept, whatever a project's days say."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection, text

from worker.errors import NotFound


def listed(connection: Connection) -> list[dict[str, Any]]:
    """The holds that are not released, the newest first."""
    return [dict(row) for row in connection.execute(_LISTED).mappings()]


def add(connection: Connection, project: uuid.UUID, job: uuid.UUID | None, batch: uuid.UUID | None, why: str) -> Any:
    """The id of a new hold on a project, or on one job or batch of it; raises NotFound where that is not the project's.

    It waits for a batch of pruning that is under way: what is there when this returns stays.
    """
    connection.execute(_LOCK, {"project": project})
    values = {"project": project, "job": job, "batch": batch, "why": why}
    made = connection.execute(_ADD, values).scalar_one_or_none()
    if made is None:
        raise NotFound("the project has no such job or batch")
    return made


def release(connection: Connection, hold: uuid.UUID) -> None:
    """Ends a hold; raises NotFound where there is none of that id."""
    if not connection.execute(_RELEASE, {"hold": hold}).rowcount:
        raise NotFound(f"no hold {hold}")


_LISTED = text(
    "select h.id, p.name as project, h.job_id, h.batch_id, h.why, h.since from holds h"
    " join projects p on p.id = h.project_id where h.released_at is null order by h.id desc limit 1000"
)
# conflicts with the share lock of a batch of pruning, and not with the submission of jobs
_LOCK = text("select from projects where id = :project for no key update")
_ADD = text(
    """
    insert into holds (project_id, job_id, batch_id, why)
    select :project, cast(:job as uuid), cast(:batch as uuid), :why
     where (cast(:job as uuid) is null or exists (select from jobs where id = :job and project_id = :project))
       and (cast(:batch as uuid) is null or exists (select from batches where id = :batch and project_id = :project))
    returning id
    """
)
_RELEASE = text("update holds set released_at = now() where id = :hold and released_at is null")
