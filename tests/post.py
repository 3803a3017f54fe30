"""Deliveries that wait, made in numbers."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from worker import keys, webhooks
from worker.claims import Claim
from worker.tables import Project
from worker.webhooks import receivers

NOW = datetime(2026, 11, 22, 4, tzinfo=UTC)


class Post:
    """Deliveries that wait; the clock is the test's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def project(self, name: str) -> Project:
        return keys.create_project(self.connection, name)

    def write(self, project: Project, url: str, count: int = 1, at: datetime = NOW) -> None:
        """So many events of one job, each due to be told to the URL."""
        job = uuid.uuid4()
        values = {
            "job": job,
            "project": project.id,
            "url": url,
            "receiver": webhooks.receiver(url),
            "n": count,
            "at": at,
        }
        for statement in _WRITE.split(";\n"):
            self.connection.execute(text(statement), values)

    def claim(self, at: datetime = NOW) -> list[Claim]:
        return receivers.claim_due(self.connection, at)

    def urls(self, claimed: list[Claim]) -> Counter[str]:
        found = text("select url from deliveries where id = any(:ids)")
        return Counter(self.connection.execute(found, {"ids": [claim.id for claim in claimed]}).scalars())


_WRITE = """
insert into jobs (id, project_id, kind, model, input, state, run_at, finished_at)
values (:job, :project, 'text-to-video', 'wan2.5-t2v-preview', '{}', 'succeeded', null, :at);
insert into events (job_id, project_id, sequence, type, entered)
select :job, :project, n, 'job.noted', 'succeeded' from generate_series(1, :n) as n;
insert into deliveries (project_id, job_id, event_id, url, receiver, body, run_at, created_at)
select project_id, job_id, id, :url, :receiver, '{}', :at, :at from events where job_id = :job
"""
