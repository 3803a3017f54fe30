"""The create protocol as a machine: lost, late and never answers, dead workers, a list that lags, equal prompts of two
tenants, in any order that Hypothesis can think of, against the engine's own steps, Postgres, and the sandbox's books.

Time is the machine's own, and both sides get it as an argument: the engine by the clocks that its steps are given, the
sandbox by its offset. So minutes pass in milliseconds, and the settle time is as long as it should be.

The last tests are the other half of the proof: each shortcut that one might take breaks the same promises.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import select
from stage import CLIP, Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import claims, keys, timeouts
from worker.context import Clock, Context
from worker.dashscope.responses import Page
from worker.states import TERMINAL, Mode, Move, State
from worker.steps import STEPS, Moves, Step
from worker.tables import Attempt, Job, Project

SETTLE = 60  # seconds; a late create and the list's lag take 20 together
LATE, LAG = timedelta(seconds=12), timedelta(seconds=8)
RUN = timedelta(seconds=5)
LIMITS = {"wan2.5-t2v-preview": {"concurrency": 3, "rps": 500}}
PROMPTS = ("a fox in the reeds", "an owl at noon")
TABLES = "jobs, attempts, events, outputs, deliveries, ledger, idempotency_keys"
ENDS = TERMINAL | {State.HELD, State.COPYING}  # here a job is over as soon as its task is


class Protocol:
    """The engine and the provider under one clock; each way in which a create may go wrong is a method."""

    def __init__(self, play: Stage, steps: Mapping[tuple[Mode, State], Step]) -> None:
        self.play = play
        self.steps = steps
        self.ahead = timedelta(0)
        self.made: defaultdict[uuid.UUID, list[str]] = defaultdict(list)  # job → its tasks, by the provider's books
        play.sandbox.reset()
        play.sandbox.fault(where="list", what="lag", after_ms=int(LAG.total_seconds() * 1000))
        play.sql(f"truncate {TABLES} cascade")
        play.sql("update lanes set next_at = now() - interval '1 day'")
        play.sql("update owners set next_query_at = now() - interval '1 day'")
        self.projects = [_project(play) for _ in range(2)]

    def now(self) -> datetime:
        return self.play.now() + self.ahead

    def submit(self, tenant: int, prompt: str) -> Job:
        return self.play.submit(project=self.projects[tenant], input={**CLIP, "prompt": prompt})

    def advance(self, span: timedelta) -> None:
        self.ahead += span
        self.play.sandbox.set(clock_offset_seconds=self.ahead.total_seconds())

    def work(self, fate: str = "well") -> None:
        """A tick, and what workers do with its messages; `fate` is that of the create calls among them.

        Only jobs that somebody is told of are worked on, so a claim whose worker died waits for its lease.
        """
        for message in self.play.tick(self.now()):
            for claim in message.claims:
                if message.queue == "provider":
                    self._step(claim, fate)

    def jobs(self) -> list[Job]:
        return [Job.of(row) for row in self.play.sql("select * from jobs order by id")]

    def settle(self) -> None:
        """Until nothing changes any more: faults are over, and time goes on."""
        for _ in range(40):
            if all(job.state in ENDS for job in self.jobs()):
                return
            self.work()
            self.advance(timedelta(seconds=20))
        raise AssertionError(f"no end: {[(job.state, job.run_at) for job in self.jobs()]}")

    def check(self) -> None:
        """The promises, by the provider's books: paid once, no task of another's request, nothing stuck."""
        found = {job.id: job for job in self.jobs()}
        jobs = Counter(map(_request, found.values()))
        made: Counter[tuple[uuid.UUID, str]] = Counter()
        for job_id, tasks in self.made.items():
            made[_request(found[job_id])] += len(tasks)
        # Jobs of one project that ask for the same may share out what was made of that.
        for request, count in made.items():
            assert count <= jobs[request], f"{jobs[request]} jobs for {request[1]} made {count} tasks"
        asked = {task: found[job_id] for job_id, tasks in self.made.items() for task in tasks}
        taken = Counter(job.task_id for job in found.values() if job.task_id)
        for job in found.values():
            assert job.state in ENDS or job.run_at is not None, f"nobody will pick job {job.id}, {job.state}"
            if job.task_id:
                assert taken[job.task_id] == 1, "a task is one job's"
                assert _request(job) == _request(asked[job.task_id]), f"job {job.id} has another's task"

    def _step(self, claim: claims.Claim, fate: str) -> None:
        with self.play.ctx.engine.begin() as connection:
            rows = claims.take(connection, Job, [(claim.id, claim.number)], timedelta(minutes=1))
        if not rows:
            return
        job = Job.of({name: value for name, value in rows[0]._mapping.items() if name != "now"})
        self.play.sql(
            "update jobs set run_at = :at where id = :id", at=self.now() + timeouts.LEASES["submit"], id=job.id
        )
        if job.state == State.COPYING:
            return
        before = self._tasks()
        self._run(job, fate)
        self.made[job.id] += self._tasks() - before

    def _run(self, job: Job, fate: str) -> None:
        """The step, to its end or to where its worker dies, with what the provider does wrong meanwhile."""
        clock = Clock(self.now())
        step = self.steps[Mode(job.mode), State(job.state)](self.play.ctx, job, clock)
        if job.state != State.ADMITTED:
            self.play.ctx.record(job, next(step), clock)
            return
        if fate in FAULTS:
            self.play.sandbox.fault(where="create", times=1, **FAULTS[fate])
        begun = self.play.ctx.record(job, next(step), clock)
        if fate == "dies before the call" or begun.state != State.SUBMITTING:
            return
        answer = step.send(begun)
        if fate != "dies after the call":
            self.play.ctx.record(begun, answer, clock)

    def _tasks(self) -> set[str]:
        return {create["task_id"] for create in self.play.sandbox.ledger()["creates"] if create["task_id"]}


FAULTS: dict[str, dict[str, Any]] = {
    "the answer is lost": {"what": "lost_answer"},
    "the body is lost": {"what": "lost_body"},
    "it is executed late": {"what": "executed_late", "after_ms": int(LATE.total_seconds() * 1000)},
    "it never arrives": {"what": "reset"},
    "a gateway answers": {"what": "html"},
}
FATES = ("well", "dies before the call", "dies after the call", *FAULTS)


class Machine(RuleBasedStateMachine):
    """Hypothesis at the levers of a Protocol; `play` is the stage of the whole test."""

    play: Stage

    def __init__(self) -> None:
        super().__init__()
        self.protocol = Protocol(self.play, STEPS)

    @rule(tenant=st.integers(0, 1), prompt=st.sampled_from(PROMPTS))
    def submit(self, tenant: int, prompt: str) -> None:
        self.protocol.submit(tenant, prompt)

    @rule(fate=st.sampled_from(FATES))
    def work(self, fate: str) -> None:
        self.protocol.work(fate)

    @rule(seconds=st.sampled_from([1, 7, 30, 100]))
    def advance(self, seconds: int) -> None:
        self.protocol.advance(timedelta(seconds=seconds))

    @invariant()
    def promises_hold(self) -> None:
        self.protocol.check()

    def teardown(self) -> None:
        self.protocol.settle()
        self.protocol.check()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    options = Options(run_seconds=RUN.total_seconds(), queue_seconds=0, limits={"*": Limits(rps=1000, concurrency=100)})
    with running(options) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, limits=LIMITS, settle_seconds=SETTLE, poll_qps=10_000) as made:
        yield made


def test_whatever_becomes_of_create_calls_each_job_is_paid_once_and_gets_its_own_task(play: Stage) -> None:
    class Played(Machine):
        pass

    Played.play = play
    run_state_machine_as_test(
        Played,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )


class Sleeper(Clock):
    """A clock whose process can be stopped for a while."""

    slept = timedelta(0)

    def __call__(self) -> datetime:
        return super().__call__() + self.slept


def test_a_worker_that_is_stopped_before_its_call_and_wakes_late_does_not_make_it(play: Stage) -> None:
    job = play.submit()
    taken = play.take(job)
    clock = Sleeper(play.now())
    step = STEPS[Mode.TASK, State.ADMITTED](play.ctx, taken, clock)
    begun = play.ctx.record(taken, next(step), clock)
    assert begun.state == State.SUBMITTING

    clock.slept = timeouts.SEND + timedelta(seconds=1)
    queued = play.ctx.record(begun, step.send(begun), clock)

    assert queued.state == State.QUEUED
    assert play.sandbox.ledger()["creates"] == []
    assert [attempt.outcome for attempt in play.attempts(job)] == ["not_sent"]


def late_create(protocol: Protocol) -> None:
    """A create whose answer is lost, and that the provider carries out some seconds later."""
    protocol.submit(0, PROMPTS[0])
    protocol.work("it is executed late")
    for _ in range(5):
        protocol.advance(timedelta(seconds=7))
        protocol.work()


def death_after_the_call(protocol: Protocol) -> None:
    """A worker that dies with the provider's answer in its hand."""
    protocol.submit(0, PROMPTS[0])
    protocol.work("dies after the call")
    for _ in range(5):
        protocol.advance(timedelta(seconds=100))
        protocol.work()


def two_tenants_in_doubt(protocol: Protocol) -> None:
    """One tenant's call that never arrived, and another's whose answer was lost."""
    protocol.submit(0, PROMPTS[0])
    protocol.work("it never arrives")
    protocol.submit(1, PROMPTS[1])
    protocol.work("the answer is lost")
    protocol.work()  # both have looked once, the first one first, before the list shows anything
    protocol.advance(timedelta(seconds=10))
    protocol.work()


STORIES = (late_create, death_after_the_call, two_tenants_in_doubt)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_protocol_stands_each_story_that_a_shortcut_does_not(
    play: Stage, story: Callable[[Protocol], None]
) -> None:
    protocol = Protocol(play, STEPS)

    story(protocol)
    protocol.check()
    protocol.settle()

    protocol.check()
    assert all(len(tasks) == 1 for tasks in protocol.made.values())
    assert {job.state for job in protocol.jobs()} == {State.COPYING}


def test_a_settle_time_shorter_than_a_late_create_pays_twice(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, limits=LIMITS, settle_seconds=5, poll_qps=10_000) as play:
        protocol = Protocol(play, STEPS)
        late_create(protocol)

        with pytest.raises(AssertionError, match="1 jobs for a fox in the reeds made 2 tasks"):
            protocol.check()


def test_a_lapsed_create_that_is_simply_queued_again_pays_twice(play: Stage) -> None:
    protocol = Protocol(play, {**STEPS, (Mode.TASK, State.SUBMITTING): queues_again})
    death_after_the_call(protocol)

    with pytest.raises(AssertionError, match="1 jobs for a fox in the reeds made 2 tasks"):
        protocol.check()


def test_the_first_task_in_the_window_may_be_another_tenants(play: Stage) -> None:
    protocol = Protocol(play, {**STEPS, (Mode.TASK, State.UNCERTAIN): adopts_the_first})
    two_tenants_in_doubt(protocol)

    with pytest.raises(AssertionError, match="has another's task"):
        protocol.check()


def queues_again(_ctx: Context, _job: Job, clock: Clock) -> Moves:
    """What every generic queue does with a lapsed lease."""
    yield Move(State.QUEUED, "the lease lapsed", clock(), attempt={"closed_at": clock()})


def adopts_the_first(ctx: Context, job: Job, clock: Clock) -> Moves:
    """Takes the first listed task that no job has."""
    attempt = ctx.answer_of(job)
    assert attempt is not None
    minute = timedelta(minutes=1)
    page = ctx.client(job).tasks(attempt.sent_at - minute, clock() + minute, 1, 100, attempt.model)
    assert isinstance(page, Page)
    with ctx.engine.connect() as connection:
        bound = set(connection.execute(select(Attempt.task_id)).scalars())
    free = [row.task_id for row in page.rows if row.task_id not in bound]
    if not free:
        yield Move(State.UNCERTAIN, run_at=clock() + timedelta(seconds=3))
        return
    said = {"outcome": "accepted", "task_id": free[0]}
    yield Move(State.RUNNING, "the first in the window", clock(), {"task_id": free[0]}, said)


def _project(play: Stage) -> Project:
    with play.ctx.engine.begin() as connection:
        return keys.create_project(connection, f"tenant-{uuid.uuid4()}")


def _request(job: Job) -> tuple[uuid.UUID, str]:
    return job.project_id, job.input["prompt"]
