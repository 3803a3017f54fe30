"""Long stories of a batch: people do all that they may do to it, all at once, while the provider and workers fail.

However it went, nothing of it may be lost, made twice, or stand wrongly in the ledger, and its end is told.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from serving import Served, served
from stage import CLIP, Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from tests.chaos import witnesses
from tests.chaos.witnesses import Witnesses
from worker import claims, tick
from worker.errors import ClaimLost
from worker.tables import Batch, Delivery, Job

ROWS = 24
STEPS = 60  # of each person
PEOPLE = 3
SECONDS = 90.0  # until all has to be at rest
LIMIT = (datetime.now(UTC) + timedelta(days=1)).isoformat()  # one, since equal rows are to be known again
FAULTS: tuple[dict[str, Any], ...] = (
    {"where": "create", "what": "lost_answer"},
    {"where": "create", "what": "reset"},
    {"where": "create", "what": "task_fails", "code": "InternalError"},
    {"where": "create", "what": "error", "status": 429, "code": "Throttling.RateQuota"},
    {"where": "create", "what": "error", "status": 400, "code": "DataInspectionFailed"},
    {"where": "get", "what": "reset"},
    {"where": "link", "what": "truncated"},
    {"where": "link", "what": "purged"},
)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    quick = {"*": Limits(rps=200, concurrency=20)}
    with running(Options(run_seconds=0.2, queue_seconds=0.1, call_seconds=0, limits=quick)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox) as made:
        made.sql("update lanes set interval_us = 5000, concurrency = 20")
        yield made


@pytest.fixture
def api(environment: dict[str, str], play: Stage) -> Iterator[Served]:
    with served(environment) as made:
        yield made


@dataclass
class Worker:
    """A thread that ticks and works; unless it is careful, it loses messages, and dies in the middle of a step."""

    play: Stage
    chance: random.Random
    is_careful: bool = False

    def turn(self) -> None:
        """A tick, and its messages."""
        messages = self.play.tick()
        for message in messages:
            fate = 1.0 if self.is_careful else self.chance.random()
            if fate > 0.15:
                self.play.play([message])
            elif fate > 0.05:
                self._die(message)
        if not messages:
            self.play.hurry()
            for table in ("jobs", "batches"):  # what was lost comes again, without a minute's wait for it
                self.play.sql(
                    f"update {table} set run_at = now() where id in (select id from {table} where claimed = 'sent'"
                    " and run_at < now() + interval '58 s' for update skip locked)"
                )
            time.sleep(0.02)

    def _die(self, message: tick.Message) -> None:
        """Takes what is to be done, does some of it, and puts no more on record."""
        table = {"noria.complete": Batch, "noria.deliver": Delivery}.get(message.task, Job)
        with self.play.ctx.engine.begin() as connection:
            taken = claims.take(connection, table, message.numbers, timedelta(minutes=1))
        if table is Job and message.task == "noria.work":
            for row in taken:
                job = Job.of({name: value for name, value in row._mapping.items() if name != "now"})
                with contextlib.suppress(ClaimLost, StopIteration):
                    self._begin(job)
        for row in taken:
            self.play.sql(
                f"update {table.__tablename__} set run_at = now() where id = :id and claim = :claim"
                " and claimed = 'taken'",
                id=row.id,
                claim=row.claim,
            )

    def _begin(self, job: Job) -> None:
        step, clock = self.play.step(job)
        move = next(step)
        for _ in range(self.chance.randrange(3)):
            job = self.play.ctx.record(job, move, clock)
            move = step.send(job)


@dataclass
class Person:
    """Somebody who does whatever the API offers, one thing after the other, while some work is done."""

    play: Stage
    http: httpx.Client
    chance: random.Random

    def act(self) -> None:
        """All of it."""
        worker = Worker(self.play, self.chance)
        ways = [self.make, *[self.control] * 3, *[self.judge] * 6, *[self.one] * 2, self.bulk, self.late, self.fail]
        for _ in range(STEPS):
            self.chance.choice(ways)()
            for _ in range(self.chance.randrange(8)):
                worker.turn()

    def make(self) -> None:
        """A file, the same one as before or another; committed at once, or never."""
        said = {"repeat": self.chance.choice(["", "again"]), "webhook_url": "http://127.0.0.1:9/hooks"}
        content = "".join(json.dumps(row) + "\n" for row in rows(self.chance.choice([0, 0, ROWS // 2])))
        commit = self.chance.choice(["true", "false"])
        files = {"file": ("spring.jsonl", content)}
        made = self._post(f"/v1/batches?commit={commit}", files=files, data={"options": json.dumps(said)})
        if made and commit == "false":
            self.chance.choice([self._delete, lambda path: self._post(f"{path}/commit")])(f"/v1/batches/{made['id']}")

    def control(self) -> None:
        """A batch paused, resumed, canceled, made again."""
        if batch := self._one("select id from batches where state <> 'draft'"):
            ways = ["pause", "pause", "resume", "resume", *["retry-failed"] * 3]
            ways += ["cancel"] if self.chance.random() < 0.2 else []
            self._post(f"/v1/batches/{batch}/{self.chance.choice(ways)}")

    def judge(self) -> None:
        """An output approved, rejected, made another time."""
        if job := self._one("select id from jobs where state = 'awaiting_review' or state = 'rejected'"):
            again = {"comment": "no", "reroll": self.chance.choice([{}, {"prompt": "another"}])}
            said = self.chance.choice([{}, {"comment": "no"}, again, again])
            self._post(f"/v1/jobs/{job}/{'reject' if said else 'approve'}", json=said)

    def one(self) -> None:
        """A job canceled, or made again."""
        if job := self._one("select id from jobs where parent_id is null"):
            self._post(f"/v1/jobs/{job}/{self.chance.choice(['cancel', 'retry', 'retry'])}")

    def bulk(self) -> None:
        """Jobs by a filter."""
        action, state = self.chance.choice([("cancel", "uncertain"), ("cancel", "copying"), ("retry", "failed")])
        self._post("/v1/jobs/bulk", json={"action": action, "filter": {"state": [state]}})

    def late(self) -> None:
        """The time passes by which a job was to be sent."""
        if job := self._one("select id from jobs where not_after is not null and finished_at is null"):
            self.play.sql("update jobs set not_after = now() where id = :job", job=job)

    def fail(self) -> None:
        """The provider errs."""
        self.play.sandbox.fault(**self.chance.choice(FAULTS), times=1)

    def _one(self, statement: str) -> Any:
        found = [row["id"] for row in self.play.sql(statement)]
        return self.chance.choice(found) if found else None

    def _post(self, path: str, **more: Any) -> Any:
        answer = self.http.post(path, **more)
        assert answer.status_code < 500, (path, answer.text)
        return answer.json() if answer.is_success else None

    def _delete(self, path: str) -> None:
        assert self.http.delete(path).status_code < 500


def rows(first: int) -> Iterator[dict[str, Any]]:
    """A file's: clips, some to be looked at and some to be sent soon, and some speech, which is made in parts."""
    for n in range(first, first + ROWS):
        if n % 6 == 5:
            paragraphs = [{"text": f"Verse {part} of {n}."} for part in range(3)]
            yield {"kind": "speech", "model": "qwen3-tts-flash", "input": {"paragraphs": paragraphs}}
            continue
        clip = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": {**CLIP, "prompt": f"heron {n}"}}
        limit = {"not_after": LIMIT} if n % 3 else {}
        yield (clip | ({"review": "required"} if n % 2 else {}) | limit)


def settle(play: Stage, http: httpx.Client, operator: httpx.Client) -> None:
    """Somebody sees to all that waits for a person, until every batch is complete."""

    def look() -> list[Any]:
        for batch in play.sql("select id from batches where state = 'paused'"):
            http.post(f"/v1/batches/{batch['id']}/resume")
        for job in play.sql("select id from jobs where state = 'awaiting_review'"):
            http.post(f"/v1/jobs/{job['id']}/approve", json={})
        for job in play.sql("select id from jobs where state = 'held' and held_for = 'crashes'"):
            operator.post(f"/v1/jobs/{job['id']}/resolve", json={"action": "requeue"})
        left = "select state, held_for, held_from, run_at, claimed from jobs where finished_at is null"
        open_ = "select id from batches where state in ('running', 'paused')"
        return [dict(row) for row in (*play.sql(left), *play.sql(open_))]

    worker = Worker(play, random.Random(), is_careful=True)
    deadline = time.monotonic() + SECONDS
    while left := look():
        play.sql("update duties set due_at = now() where name = 'gather'")
        assert time.monotonic() < deadline, left
        worker.turn()


@pytest.mark.parametrize("seed", range(2))
def test_whatever_people_and_the_provider_do_nothing_is_lost_doubled_or_wrongly_paid(
    play: Stage, api: Served, seed: int
) -> None:
    with api.http(api.key(play.project.name)) as http, ThreadPoolExecutor(PEOPLE) as threads:
        people = [Person(play, http, random.Random(f"{seed} {n}")) for n in range(PEOPLE)]
        people[0]._post("/v1/batches?commit=true", json={"items": list(rows(0))})
        for done in [threads.submit(person.act) for person in people]:
            done.result()
        play.sandbox.clear_faults()
        with api.http(api.key()) as operator:
            settle(play, http, operator)

    assert witnesses.audit(play.ctx.engine, Witnesses(ledger=play.sandbox.ledger(), bucket=play.ctx.bucket)) == []
