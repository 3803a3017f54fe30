"""What an operator decides where nobody can prove what became of a call: checked, recorded, and paid for once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from serving import Served, served
from sqlalchemy.exc import IntegrityError
from stage import CLIP, Stage, stage

from ops.audit import audit
from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import keys
from worker.errors import Conflict
from worker.jobs import operator, submission
from worker.jobs.operator import Action, Decision
from worker.states import Move, State
from worker.steps import poll
from worker.tables import Job

MODEL = "wan2.5-t2v-preview"
BATCHES = {"batch_validating_seconds": 0, "batch_run_seconds": 0, "batch_finalizing_seconds": 0, "call_seconds": 0}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=100)}, **BATCHES)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, limits={MODEL: {"concurrency": 5, "rps": 100}}) as made:
        yield made


@pytest.fixture
def api(environment: dict[str, str], play: Stage) -> Iterator[Served]:
    with served(environment, dashscope_url=play.sandbox.url, settle_seconds=1) as made:
        yield made


@pytest.fixture
def ada(api: Served) -> Iterator[httpx.Client]:
    with api.engine.begin() as connection:
        _, plain = keys.new_key(connection, None, "Ada")
    with api.http(plain) as client:
        yield client


def held_twins(play: Stage) -> tuple[Job, Job]:
    """Two tenants' equal calls whose answers were lost: nothing proves which task is whose."""
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "another-tenant")
    play.sandbox.fault(where="create", what="lost_answer", times=2)
    ours, theirs = play.submit(), play.submit(project=other)
    play.drive(lambda: [play.job(job).state for job in (ours, theirs)], lambda found: set(found) == {State.HELD})
    return play.job(ours), play.job(theirs)


def held_alone(play: Stage) -> Job:
    """A call that was lost twice and of which no task is listed."""
    play.sandbox.fault(where="create", what="reset")
    job = play.until(play.submit(), State.HELD)
    play.sandbox.clear_faults()
    return job


def crashed(play: Stage, held_from: State, job: Job | None = None) -> Job:
    """A job that is held since workers died on it in that state."""
    job = job or (play.submit() if held_from is State.ADMITTED else play.until(play.submit(), held_from))
    play.sql(
        "update jobs set state = 'held', held_for = 'crashes', held_from = :state, run_at = null, claimed = null"
        " where id = :id",
        state=held_from, id=job.id,
    )  # fmt: skip
    return play.job(job)


def tasks(play: Stage) -> list[str]:
    return [task["task_id"] for task in play.sandbox.ledger()["tasks"]]


def decided(play: Stage, job: Job, action: Action, **more: Any) -> Job:
    decision = Decision(action, "Ada", **more)
    return operator.carry_out(play.ctx, job, operator.decide(play.ctx, job, decision))


def test_the_tasks_that_a_lost_call_may_have_made_are_shown(play: Stage) -> None:
    ours, _ = held_twins(play)

    found = operator.candidates(play.ctx, ours)

    assert {task.task_id for task in found} == set(tasks(play))
    assert {task.status for task in found} == {"SUCCEEDED"}
    assert {task.differs for task in found} == {()}


def test_an_adopted_task_is_copied_and_paid_once(play: Stage) -> None:
    ours, theirs = held_twins(play)
    first, second = tasks(play)

    decided(play, ours, Action.ADOPT, task_id=first)
    decided(play, theirs, Action.ADOPT, task_id=second)

    assert [play.until(job).task_id for job in (ours, theirs)] == [first, second]
    assert play.job(ours).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["billed_micros"] == 3_000_000
    assert play.ledger(ours)[-2:] == [("settle", 1_500_000), ("release", -1_500_000)]
    (attempt,) = play.attempts(ours)
    assert (attempt.outcome, attempt.task_id) == ("accepted", first)


def test_a_decision_is_in_the_history_under_the_name_of_who_took_it(play: Stage) -> None:
    ours, _ = held_twins(play)

    decided(play, ours, Action.ADOPT, task_id=tasks(play)[0])

    whys = [row["why"] for row in play.sql("select why from events where job_id = :id order by id", id=ours.id)]
    assert whys[-1] == f"adopt decided by Ada: task {tasks(play)[0]}"


def test_a_task_is_adopted_once(play: Stage) -> None:
    ours, theirs = held_twins(play)
    task = tasks(play)[0]
    decided(play, ours, Action.ADOPT, task_id=task)

    with pytest.raises(Conflict) as refused:
        decided(play, theirs, Action.ADOPT, task_id=task)

    assert refused.value.code == "task_taken"


def test_two_adoptions_of_one_task_at_once_leave_one(play: Stage) -> None:
    ours, theirs = held_twins(play)
    decision = Decision(Action.ADOPT, "Ada", tasks(play)[0])
    moves = [(job, operator.decide(play.ctx, job, decision)) for job in (ours, theirs)]
    operator.carry_out(play.ctx, *moves[0])

    with pytest.raises(Conflict) as refused:
        operator.carry_out(play.ctx, *moves[1])

    assert refused.value.code == "task_taken"
    assert play.job(theirs).state == State.HELD


def test_a_lost_call_is_looked_for_though_the_catalog_has_another_name_for_its_model_now(play: Stage) -> None:
    ours, _ = held_twins(play)
    play.sql("update attempts set model = 'its-name-before'")
    play.sql(
        "update jobs set state = 'uncertain', held_for = null, held_from = null, run_at = now() where id = :id",
        id=ours.id,
    )
    _, step, _ = play.begin(ours)

    assert next(step).to in (State.UNCERTAIN, State.QUEUED, State.HELD)


def test_a_decision_about_what_a_job_was_held_for_before_is_not_carried_out(play: Stage) -> None:
    job = crashed(play, State.ADMITTED)
    move = operator.decide(play.ctx, job, Decision(Action.REQUEUE, "Ada"))
    play.sql("update jobs set sequence = sequence + 2 where id = :id", id=job.id)  # it went on, and is held again

    with pytest.raises(Conflict, match="moved since"):
        operator.carry_out(play.ctx, job, move)

    assert play.job(job).state == State.HELD


def test_a_decision_that_breaks_a_rule_of_the_database_is_a_fault_and_no_conflict(play: Stage) -> None:
    job = crashed(play, State.ADMITTED)

    with pytest.raises(IntegrityError, match="billed"):
        operator.carry_out(play.ctx, job, Move(State.QUEUED, "as Ada decided", columns={"billed": "perhaps"}))

    assert play.job(job).state == State.HELD


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ({"input": {**CLIP, "prompt": "another"}}, "task_differs"),
        ({"input": {**CLIP, "size": "1280*720"}}, "task_differs"),
        ({"model": "wan2.2-t2v-plus", "input": {"prompt": CLIP["prompt"]}}, "task_not_listed"),
    ],
)
def test_a_task_of_another_request_is_not_adopted(play: Stage, made: dict[str, Any], code: str) -> None:
    other = play.until(play.submit(**made))
    play.sql("update attempts set task_id = null where job_id = :id", id=other.id)
    play.sql("update jobs set task_id = null where id = :id", id=other.id)
    job = held_alone(play)

    with pytest.raises(Conflict) as refused:
        decided(play, job, Action.ADOPT, task_id=other.task_id)

    assert refused.value.code == code
    assert play.job(job).state == State.HELD


def test_a_task_that_was_made_at_another_time_is_not_adopted(play: Stage) -> None:
    ours, _ = held_twins(play)
    play.sql("update attempts set sent_at = sent_at - interval '2 hours' where job_id = :id", id=ours.id)

    with pytest.raises(Conflict) as refused:
        decided(play, ours, Action.ADOPT, task_id=tasks(play)[0])

    assert refused.value.code == "task_not_listed"


def test_a_call_that_is_declared_to_have_made_nothing_is_made_again(play: Stage) -> None:
    job = held_alone(play)

    decided(play, job, Action.REQUEUE)

    ended = play.until(job)
    assert ended.state == State.SUCCEEDED
    assert [attempt.outcome for attempt in play.attempts(job)] == ["absent", "absent", "accepted"]
    assert play.sandbox.ledger()["totals"]["tasks"] == 1


@pytest.mark.parametrize(
    ("billed", "lines"), [("yes", [1_500_000, 1_500_000, -1_500_000]), ("no", [1_500_000, -1_500_000])]
)
def test_a_job_that_is_given_up_is_charged_as_it_is_said(play: Stage, billed: str, lines: list[int]) -> None:
    job = held_alone(play)

    ended = decided(play, job, Action.GIVE_UP, billed=billed)

    assert ended.state == State.FAILED
    assert ended.error is not None
    assert (ended.error["code"], ended.error["billed"]) == ("given_up", billed)
    assert [micros for _, micros in play.ledger(job)] == lines


def test_giving_up_says_whether_it_cost_money(play: Stage) -> None:
    job = held_alone(play)

    with pytest.raises(Conflict) as refused:
        decided(play, job, Action.GIVE_UP)

    assert refused.value.code == "billed_required"


def test_an_uncertain_job_is_taken_from_the_worker_that_looks_for_its_task(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset", times=1)
    job = play.until(play.submit(), State.UNCERTAIN)
    play.sql("update jobs set run_at = now()")
    asleep = play.take(job)
    step, clock = play.step(asleep)

    decided(play, play.job(job), Action.GIVE_UP, billed="no")

    with pytest.raises(Exception, match="failed under claim"):
        play.ctx.record(asleep, next(step), clock)
    assert play.job(job).state == State.FAILED


def test_a_job_that_moved_meanwhile_is_left_alone(play: Stage) -> None:
    job = held_alone(play)
    move = operator.decide(play.ctx, job, Decision(Action.REQUEUE, "Ada"))
    operator.carry_out(play.ctx, job, move)

    with pytest.raises(Conflict) as refused:
        operator.carry_out(play.ctx, job, move)

    assert refused.value.code == "moved_on"


@pytest.mark.parametrize(("held_from", "goes_to"), [(State.ADMITTED, State.QUEUED), (State.COPYING, State.COPYING)])
def test_a_job_that_killed_workers_goes_on_where_it_was(play: Stage, held_from: State, goes_to: State) -> None:
    job = crashed(play, held_from)

    moved = decided(play, job, Action.REQUEUE)

    assert moved.state == goes_to
    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["tasks"] == 1


def test_a_paid_job_that_killed_workers_is_given_up_and_stays_paid(play: Stage) -> None:
    job = crashed(play, State.COPYING)

    ended = decided(play, job, Action.GIVE_UP)

    assert (ended.state, ended.billed) == (State.FAILED, "yes")
    assert sum(micros for _, micros in play.ledger(job)) == 1_500_000


def test_a_parent_whose_parts_are_at_work_is_canceled_and_not_given_up(play: Stage) -> None:
    """Its parts would go on, and be paid for, and no line of its own would tell what they cost."""
    parent = play.submit(
        "summary", "qwen-flash", input={"mode": "calls", "documents": [{"text": "It tells of sales."}]}
    )
    play.until(parent, State.GATHERING)
    play.drive(lambda: play.sql("select from jobs where parent_id = :id", id=parent.id), bool)
    held = crashed(play, State.GATHERING, parent)

    with pytest.raises(Conflict) as refused:
        decided(play, held, Action.GIVE_UP)

    assert refused.value.code == "has_parts"
    assert play.cancel(held) == "requested"
    ended = play.until(parent)
    settled = [micros for entry, micros in play.ledger(parent) if entry == "settle"]
    assert (ended.state, ended.cost) == (State.CANCELED, sum(settled))
    assert sum(micros for _, micros in play.ledger(parent)) == ended.cost


def test_a_job_that_runs_has_nothing_to_resolve(play: Stage) -> None:
    job = play.until(play.submit(), State.RUNNING)

    with pytest.raises(Conflict) as refused:
        operator.candidates(play.ctx, job)

    assert refused.value.code == "nothing_to_resolve"


def held_batch(play: Stage) -> Job:
    """A provider batch whose create's answer was lost, and which waits for a person."""
    documents = [{"id": f"d{n}", "text": f"Document {n} tells of sales."} for n in range(3)]
    play.sandbox.fault(where="batch_create", what="lost_answer", times=1)
    job = play.submit("summary", "qwen-flash", input={"mode": "batch", "documents": documents})

    def parts() -> list[Job]:
        return [Job.of(row) for row in play.sql("select * from jobs where parent_id = :id", id=job.id)]

    (batch,) = play.drive(parts, lambda made: bool(made) and made[0].state == State.UNCERTAIN)
    play.sql(
        "update jobs set state = 'held', held_for = 'uncertain', held_from = 'uncertain', run_at = null, claimed = null"
        " where id = :id",
        id=batch.id,
    )
    return play.job(batch)


def test_a_lost_batch_is_shown_by_its_name_and_adopted(play: Stage) -> None:
    batch = held_batch(play)
    (found,) = operator.candidates(play.ctx, batch)
    assert found.differs == ()

    moved = decided(play, batch, Action.ADOPT, task_id=found.task_id)

    assert moved.deadline_at is not None
    assert moved.deadline_at - play.now() > timedelta(hours=47)
    assert play.until(batch).state == State.SUCCEEDED
    assert len(play.sandbox.ledger()["batches"]) == 1


def test_a_batch_of_another_name_is_not_adopted(play: Stage) -> None:
    batch = held_batch(play)

    with pytest.raises(Conflict) as refused:
        decided(play, batch, Action.ADOPT, task_id="batch_of_somebody")

    assert refused.value.code == "task_not_listed"


def lost(play: Stage, job: Job) -> Job:
    """The job, which was given up since the provider never told of its task's end."""
    play.sql("update jobs set deadline_at = now() - interval '1 s' where id = :id", id=job.id)
    return play.until(job)


def overdue(play: Stage) -> Job:
    """A job of which nobody will ever know what its task cost."""
    play.sandbox.set(run_seconds=600)
    job = lost(play, play.until(play.submit(), State.RUNNING))
    play.sandbox.set(run_seconds=0.1)
    return job


@pytest.mark.parametrize(("billed", "spent"), [("yes", 1_500_000), ("no", 0)])
def test_what_a_lost_task_cost_is_said_by_a_person_and_then_its_job_is_made_again(
    play: Stage, billed: str, spent: int
) -> None:
    job = overdue(play)
    assert operator.candidates(play.ctx, job) == []

    ended = decided(play, job, Action.GIVE_UP, billed=billed)

    assert (ended.state, ended.billed) == (State.FAILED, billed)
    assert sum(micros for _, micros in play.ledger(job)) == spent
    assert audit(play.ctx.engine) == []
    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job.id, play.now())
    assert play.until(job).state == State.SUCCEEDED


def test_of_a_job_that_has_ended_nothing_else_is_decided(play: Stage) -> None:
    job = overdue(play)

    with pytest.raises(Conflict) as again:
        decided(play, job, Action.REQUEUE)
    decided(play, job, Action.GIVE_UP, billed="no")
    with pytest.raises(Conflict) as twice:
        decided(play, play.job(job), Action.GIVE_UP, billed="yes")

    assert (again.value.code, twice.value.code) == ("has_ended", "nothing_to_resolve")


def test_what_a_lost_part_cost_stands_on_its_parent(play: Stage) -> None:
    play.sandbox.set(batch_run_seconds=600)
    batch = held_batch(play)
    decided(play, batch, Action.ADOPT, task_id=operator.candidates(play.ctx, batch)[0].task_id)
    play.sql("update jobs set estimate = 700 where id = :id", id=batch.id)
    lost(play, batch)
    parent = play.until(play.job(Job.of(play.sql("select * from jobs where parent_id is null")[0])))
    before = parent.cost or 0

    decided(play, play.job(batch), Action.GIVE_UP, billed="yes")

    assert (play.job(parent).cost, play.job(parent).billed) == (before + 700, "yes")


# Over the API


def test_an_operator_sees_candidates_and_money_and_decides(play: Stage, ada: httpx.Client) -> None:
    ours, _ = held_twins(play)

    seen = ada.get(f"/v1/jobs/{ours.id}/candidates")
    task_id = seen.json()["data"][0]["task_id"]
    said = {"action": "adopt", "task_id": task_id}
    dry = ada.post(f"/v1/jobs/{ours.id}/resolve", params={"dry_run": "true"}, json=said)
    assert play.job(ours).state == State.HELD
    done = ada.post(f"/v1/jobs/{ours.id}/resolve", json=said)

    assert seen.json()["at_stake"] == {"currency": "CNY", "estimated": "1.50", "billed": "unknown"}
    assert (dry.status_code, dry.json()["done"], dry.json()["job"]["state"]) == (200, False, "held")
    assert (done.status_code, done.json()["done"], done.json()["to"]) == (200, True, "running")
    assert "Ada" in done.json()["why"]
    assert play.until(ours).task_id == task_id


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ({"action": "adopt"}, 422, "invalid_input"),
        ({"action": "burn"}, 422, "invalid_input"),
        ({"action": "adopt", "task_id": "no-such-task"}, 409, "task_not_listed"),
        ({"action": "give_up"}, 409, "billed_required"),
    ],
)
def test_a_decision_that_cannot_be_says_why(
    play: Stage, ada: httpx.Client, said: dict[str, str], status: int, code: str
) -> None:
    job = held_alone(play)

    refused = ada.post(f"/v1/jobs/{job.id}/resolve", json=said)

    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert play.job(job).state == State.HELD


def test_a_provider_that_does_not_tell_is_asked_again_later(play: Stage, ada: httpx.Client) -> None:
    job = held_alone(play)
    play.sandbox.fault(where="list", what="error", code="InternalError")

    refused = ada.get(f"/v1/jobs/{job.id}/candidates")

    assert (refused.status_code, refused.json()["code"]) == (503, "provider_away")
    assert refused.headers["retry-after"] == "5"


# What is adopted before it has ended


def of_two_tenants(play: Stage) -> tuple[Job, Job, str]:
    """A held job of ours whose calls made nothing, another tenant's whose answer was lost, and the task that it made.

    The task still runs.
    """
    ours = held_alone(play)
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "another-tenant")
    play.sandbox.set(run_seconds=600)
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    theirs = play.until(play.submit(project=other, input={**CLIP, "prompt": "not ours"}), State.UNCERTAIN)
    (task,) = tasks(play)
    return ours, theirs, task


def test_another_tenants_task_that_was_adopted_while_it_ran_is_not_delivered(play: Stage) -> None:
    ours, theirs, task = of_two_tenants(play)
    decided(play, ours, Action.ADOPT, task_id=task)
    play.sandbox.set(clock_offset_seconds=700)

    held = play.until(ours, State.HELD)

    assert (held.held_for, held.task_id, held.sources) == ("uncertain", None, None)
    assert "copying" not in play.states(ours)
    assert play.document(ours)["outputs"] == []
    whys = [row["why"] for row in play.sql("select why from events where job_id = :id order by id", id=ours.id)]
    assert whys[-1] == "the task that was adopted was made for another request: orig_prompt differ"
    (found,) = operator.candidates(play.ctx, held)
    assert (found.task_id, found.differs) == (task, ("orig_prompt",))
    assert play.until(theirs).task_id == task


def test_a_task_that_was_adopted_while_it_ran_is_copied_if_it_repeats_the_request(play: Stage) -> None:
    play.sandbox.set(run_seconds=600)
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = play.until(play.submit(), State.UNCERTAIN)
    (task,) = tasks(play)
    decided(play, job, Action.ADOPT, task_id=task)
    play.sandbox.set(clock_offset_seconds=700)

    ended = play.until(job)

    assert (ended.state, ended.task_id) == (State.SUCCEEDED, task)
    assert len(play.attempts(job)) == 1


def test_a_call_of_the_jobs_own_needs_no_proof_whatever_was_adopted_before(play: Stage) -> None:
    play.sandbox.set(run_seconds=600)
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = play.until(play.submit(), State.UNCERTAIN)
    (task,) = tasks(play)
    decided(play, job, Action.ADOPT, task_id=task)
    play.sql("update jobs set state = 'expired', finished_at = now(), run_at = null, claimed = null")
    decided(play, play.job(job), Action.GIVE_UP, billed="no")
    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job.id, play.now())

    again = play.until(job, State.RUNNING)

    assert (again.task_id != task, again.unproven) == (True, False)


def test_an_adopted_task_that_cost_nothing_tells_not_whose_it_was(play: Stage) -> None:
    play.sandbox.set(queue_seconds=600)
    ours, _, task = of_two_tenants(play)
    decided(play, ours, Action.ADOPT, task_id=task)
    play.ctx.clients["default"].cancel(task)

    assert play.until(ours, State.HELD).held_for == "uncertain"


def test_nobody_cancels_what_may_be_another_tenants_task(play: Stage) -> None:
    play.sandbox.set(queue_seconds=600)
    ours, _, task = of_two_tenants(play)
    decided(play, ours, Action.ADOPT, task_id=task)

    play.cancel(ours)
    play.sql("update jobs set run_at = now() where id = :id", id=ours.id)
    play.play(play.tick())

    assert play.sandbox.task(task)["status"] == "PENDING"


def test_a_size_that_differs_is_said_of_a_task_that_repeats_no_prompt() -> None:
    asked = {"orig_prompt": "a fox", "size": "832*480", "tier": None}

    assert poll.differences(asked, {"size": "1280*720", "tier": "720P"}) == ("size",)
