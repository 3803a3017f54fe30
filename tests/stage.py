"""A stage for stories: the engine on real servers, with a sandbox DashScope, driven message by message.

There is no Celery here: `tick` gives the messages that would be published, `play` does what a worker would do with
them, so a test can lose, repeat and reorder them, and stop a step between any two of its lines.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import context, keys, steps, tick, work
from worker.claims import NOW
from worker.context import Clock, Context
from worker.jobs import reading, submission
from worker.runner import Runner
from worker.settings import Settings
from worker.states import TERMINAL, Move, State
from worker.storage import Expected
from worker.tables import Delivery, Job, Project

PATIENCE = 60.0  # seconds, on a busy machine

CLIP = {"prompt": "a kitten runs in the moonlight", "size": "832*480", "duration": 5}


@dataclass
class Stage:
    """The engine, a project, and what it told Flower."""

    ctx: Context
    sandbox: Sandbox
    project: Project
    told: list[dict[str, Any]] = field(default_factory=list)
    hints: int = 0

    @property
    def runner(self) -> Runner:
        return Runner(self.ctx, self._hint, self.told.append)

    def submit(
        self,
        kind: str = "text-to-video",
        model: str = "wan2.5-t2v-preview",
        project: Project | None = None,
        **more: Any,
    ) -> Job:
        """A job, of the stage's project unless another is named; `input` defaults to a short clip."""
        said = {"input": CLIP, **more}
        prepared = submission.prepare(
            self.ctx.catalog, self.ctx.settings, submission.Submission(kind, model, **said), self.now()
        )
        with self.ctx.engine.begin() as connection:
            job, _ = submission.submit(connection, project or self.project, prepared, None, self.now())
        return job

    def file(self, content: bytes, content_type: str = "image/png", name: str = "0199.png") -> str:
        """The key of a file of the project, as it is after an upload; nothing is known of its sides or seconds."""
        key = f"{self.project.id}/files/2026/01/02/{name}"
        self.ctx.bucket.put_stream(key, [content], content_type, Expected())
        self.sql(
            "insert into files (project_id, key, name, content_type, bytes, sha256)"
            " values (:project, :key, :name, :type, :bytes, :key)",
            project=self.project.id,
            key=key,
            name=name,
            type=content_type,
            bytes=len(content),
        )
        return key

    def tick(self, now: datetime | None = None) -> list[tick.Message]:
        """What a tick would publish."""
        with self.ctx.engine.begin() as connection:
            return tick.run(connection, NOW if now is None else now)

    def play(self, messages: Iterable[tick.Message]) -> None:
        """What a worker does with messages."""
        tasks = {
            "noria.work": self.runner.work,
            "noria.poll": self.runner.poll,
            "noria.deliver": self.runner.deliver,
            "noria.complete": self.runner.complete,
            "noria.fire": lambda _: self.runner.fire(),
            "noria.sweep": lambda _: self.runner.sweep(),
            "noria.prune": lambda _: self.runner.prune(),
            "noria.quotas": lambda _: self.runner.import_quotas(),
            "noria.posters": lambda _: self.runner.make_posters(),
        }
        for message in messages:
            tasks[message.task]([(claim.id, claim.number) for claim in message.claims])

    def take(self, job: Job) -> Job:
        """The job, taken by a worker of the test's own."""
        for message in self.tick():
            for claim in message.claims:
                if claim.id == job.id:
                    return self.spend(claim.id, claim.number)
        raise AssertionError(f"job {job.id} is not due: {self.job(job).state} at {self.job(job).run_at}")

    def spend(self, job_id: uuid.UUID, number: int) -> Job:
        from worker import claims

        with self.ctx.engine.begin() as connection:
            rows = claims.take(connection, Job, [(job_id, number)], work.LEASE)
        assert rows, "the claim was spent"
        return Job.of({name: value for name, value in rows[0]._mapping.items() if name != "now"})

    def begin(self, job: Job) -> tuple[Job, Iterator[Move], Clock]:
        """The job taken, and its step, not yet run."""
        taken = self.take(job)
        return taken, *self.step(taken)

    def step(self, taken: Job) -> tuple[Iterator[Move], Clock]:
        """The step of a job that is taken, not yet run."""
        clock = Clock(self.now())
        return steps.of(taken)(self.ctx, taken, clock), clock

    def until(self, job: Job, *states: State) -> Job:
        """Drives everything until the job is in one of the states, or has ended."""
        return self.drive(lambda: self.job(job), lambda found: found.state in (states or TERMINAL))

    def drive(self, look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
        """Ticks and works until what `look` gives is enough; fails after a while."""
        deadline = time.monotonic() + PATIENCE
        while not enough(found := look()):
            assert time.monotonic() < deadline, f"waited {PATIENCE} s; it is {_described(found)}"
            messages = self.tick()
            self.play(messages)
            if not messages:
                self.hurry()
                time.sleep(0.02)
        return found

    def hurry(self) -> None:
        """Makes waiting looks due soon, so that no test waits for a poll's interval."""
        self.sql(
            "update jobs set run_at = least(run_at, now() + interval '50 ms')"
            " where claimed is null and run_at is not null"
            " and state in ('running', 'gathering', 'copying', 'uncertain')"
        )

    def lapse(self, job: Job) -> None:
        """Lets the job's lease lapse."""
        self.sql("update jobs set run_at = now() - interval '1 s' where id = :id", id=job.id)

    def job(self, job: Job) -> Job:
        with self.ctx.engine.connect() as connection:
            return self._row(connection, job.id)

    def cancel(self, job: Job) -> str:
        with self.ctx.engine.begin() as connection:
            return submission.cancel(connection, self.project.id, job.id, self.now())[1]

    def states(self, job: Job) -> list[str]:
        """Every state that the job has entered, in order."""
        with self.ctx.engine.connect() as connection:
            events = reading.history(connection, job)
        return [event.entered for event in events if event.type != "job.noted"]

    def document(self, job: Job) -> dict[str, Any]:
        with self.ctx.engine.connect() as connection:
            return reading.documents(connection, self.project.name, [self.job(job)], self.now())[0].as_json()

    def attempts(self, job: Job) -> list[Any]:
        with self.ctx.engine.connect() as connection:
            return reading.attempts(connection, job)

    def deliveries(self) -> Sequence[Delivery]:
        return [Delivery.of(row) for row in self.sql("select * from deliveries order by created_at")]

    def ledger(self, job: Job) -> list[tuple[str, int]]:
        rows = self.sql("select entry, micros from ledger where job_id = :id order by id", id=job.id)
        return [(row["entry"], row["micros"]) for row in rows]

    def sql(self, statement: str, **values: Any) -> Sequence[Any]:
        with self.ctx.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return result.mappings().all() if result.returns_rows else []

    def now(self) -> datetime:
        with self.ctx.engine.connect() as connection:
            moment: datetime = connection.execute(text("select clock_timestamp()")).scalar_one()
        return moment.astimezone(UTC)

    def _hint(self) -> None:
        self.hints += 1

    def _row(self, connection: Any, job_id: uuid.UUID) -> Job:
        row = connection.execute(text("select * from jobs where id = :id"), {"id": job_id}).mappings().one()
        return Job.of(row)


@contextmanager
def stage(environment: dict[str, str], sandbox: Sandbox, **settings: Any) -> Iterator[Stage]:
    """The engine on the servers of `environment` and the sandbox; `settings` by their names."""
    values = {name.removeprefix("NORIA_").lower(): value for name, value in environment.items()}
    made = Settings.model_validate(
        {
            **values,
            "dashscope_url": sandbox.url,
            "dashscope_batch_chat_url": f"{sandbox.url}/batch-chat",
            "settle_seconds": 1,
            "posters": False,  # a message beside those that a test is about
            **settings,
        }
    )
    ctx = context.make(made)
    with ctx.engine.begin() as connection:
        tick.prepare(connection, ctx)
        project = keys.create_project(connection, "spring-campaign")
    try:
        yield Stage(ctx, sandbox, project)
    finally:
        ctx.engine.dispose()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox in which nothing takes long."""
    with running(Options(run_seconds=0.05, queue_seconds=0, call_seconds=0)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    """A stage on the test's own servers; a sandbox that several tests share has forgotten the others."""
    sandbox.reset()
    with stage(environment, sandbox) as made:
        yield made


def _described(found: Any) -> str:
    return f"{found.state}, {found.error or ''}" if isinstance(found, Job) else repr(found)
