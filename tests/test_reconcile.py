"""Lost answers of create calls: found, proved absent, or left to a person; never paid for twice, never mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from stage import CLIP, Stage, stage
from test_edges import with_queries

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import keys, timeouts
from worker.errors import ClaimLost
from worker.states import State
from worker.tables import Job, Project


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=100)})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    limits = {model: {"concurrency": 5, "rps": 100} for model in ("wan2.5-t2v-preview", "wan2.5-i2v-preview")}
    with stage(environment, sandbox, limits=limits) as made:
        yield made


def clip(prompt: str) -> dict[str, object]:
    return {**CLIP, "prompt": prompt}


def made(sandbox: Sandbox) -> int:
    tasks: int = sandbox.ledger()["totals"]["tasks"]
    return tasks


def prompt_of(play: Stage, job: Job) -> str:
    """The prompt that the provider made the job's task from."""
    prompt: str = play.sandbox.task(play.job(job).task_id or "")["prompt"]
    return prompt


def other_project(play: Stage) -> Project:
    with play.ctx.engine.begin() as connection:
        return keys.create_project(connection, "another-tenant")


def both(play: Stage, *submitted: Job, state: State = State.SUCCEEDED) -> list[Job]:
    found: list[Job] = play.drive(
        lambda: [play.job(job) for job in submitted], lambda jobs: all(job.state == state for job in jobs)
    )
    return found


@pytest.mark.parametrize("what", ["lost_answer", "lost_body", "truncated", "hang"])
def test_a_task_whose_answer_was_lost_is_found_and_paid_once(
    environment: dict[str, str], sandbox: Sandbox, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "CREATE", timedelta(seconds=1))  # how long a call that hangs is waited for
    with stage(environment, sandbox) as play:
        sandbox.fault(where="create", what=what, times=1, is_done=True)

        job = play.until(play.submit())

        assert job.state == State.SUCCEEDED
        assert "uncertain" in play.states(job)
        assert made(sandbox) == 1
        assert sandbox.ledger()["totals"]["billed_micros"] == job.cost


def test_a_call_that_made_nothing_is_made_again_once_that_is_proved(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset", times=1)

    job = play.until(play.submit())

    assert job.state == State.SUCCEEDED
    # a busy machine may not have connected in time, which is no attempt that was lost
    first, second = (attempt for attempt in play.attempts(job) if attempt.outcome != "not_sent")
    assert (first.outcome, first.billed) == ("absent", "no")
    assert (second.sent_at - first.sent_at).total_seconds() > play.ctx.settings.settle_seconds
    assert made(play.sandbox) == 1


def test_a_call_that_was_lost_twice_waits_for_a_person(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset")

    job = play.until(play.submit(), State.HELD)

    assert job.held_for == "uncertain"
    assert len(play.attempts(job)) == 2
    assert play.ledger(job) == [("reserve", 1_500_000)]


def test_a_call_that_was_carried_out_late_is_found_before_it_is_called_absent(
    environment: dict[str, str], sandbox: Sandbox
) -> None:
    with stage(environment, sandbox, settle_seconds=3) as play:
        sandbox.fault(where="create", what="executed_late", after_ms=1500, times=1)

        job = play.until(play.submit())

        assert job.state == State.SUCCEEDED
        assert made(sandbox) == 1


def test_a_list_that_lags_is_waited_for(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, settle_seconds=4) as play:
        sandbox.fault(where="create", what="lost_answer", times=1)
        sandbox.fault(where="list", what="lag", after_ms=2000)

        job = play.until(play.submit())

        assert job.state == State.SUCCEEDED
        assert made(sandbox) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"what": "html"},
        {"what": "error", "code": "Throttling"},
        {"what": "error", "code": "InternalError"},
        {"what": "truncated"},
        {"what": "reset"},
    ],
)
def test_a_list_that_cannot_be_had_proves_nothing(play: Stage, fault: dict[str, str]) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    play.sandbox.fault(where="list", times=2, **fault)

    job = play.until(play.submit())

    assert job.state == State.SUCCEEDED
    assert made(play.sandbox) == 1


def test_a_server_error_is_settled_by_its_request_id(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="InternalError", is_done=True, times=1)

    job = play.until(play.submit())

    assert job.state == State.SUCCEEDED
    assert len(play.attempts(job)) == 1
    assert made(play.sandbox) == 1


def test_a_server_error_that_made_nothing_is_followed_by_one_more_call(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="InternalError", is_done=False, times=1)

    job = play.until(play.submit())

    assert job.state == State.SUCCEEDED
    assert [attempt.outcome for attempt in play.attempts(job)] == ["absent", "accepted"]


def test_two_lost_calls_each_find_their_own_task(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=2)
    cat, dog = play.submit(input=clip("a cat")), play.submit(input=clip("a dog"))

    both(play, cat, dog)

    assert (prompt_of(play, cat), prompt_of(play, dog)) == ("a cat", "a dog")
    assert made(play.sandbox) == 2


def test_equal_lost_calls_of_one_project_share_their_tasks_out(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=2)
    one, two = play.submit(), play.submit()

    found = both(play, one, two)

    assert len({job.task_id for job in found}) == 2
    assert made(play.sandbox) == 2


def test_of_two_equal_lost_calls_of_which_one_made_nothing_one_is_made_again(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    play.sandbox.fault(where="create", what="reset", times=1)
    one, two = play.submit(), play.submit()

    found = both(play, one, two)

    assert len({job.task_id for job in found}) == 2
    assert made(play.sandbox) == 2


def test_equal_lost_calls_of_two_tenants_wait_for_a_person(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=2)
    ours, theirs = play.submit(), play.submit(project=other_project(play))

    both(play, ours, theirs, state=State.HELD)

    assert made(play.sandbox) == 2
    assert play.tick() == []


def test_one_prompt_over_two_photos_proves_nothing(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=2)
    pictures = [f"https://example.com/{n}.png" for n in range(2)]
    moved = [
        play.submit("image-to-video", "wan2.5-i2v-preview", input={"img_url": picture, "prompt": "it moves"})
        for picture in pictures
    ]

    both(play, *moved, state=State.HELD)

    assert made(play.sandbox) == 2


def test_a_task_of_somebody_else_is_not_taken(play: Stage) -> None:
    foreign = play.until(play.submit(input=clip("not ours")))
    play.sql("update attempts set task_id = null, closed_at = now() where job_id = :id", id=foreign.id)
    play.sandbox.fault(where="create", what="reset", times=1)

    job = play.until(play.submit(input=clip("ours")))

    assert job.task_id != foreign.task_id
    assert prompt_of(play, job) == "ours"


def test_a_lost_task_that_failed_cost_nothing_and_is_as_good_as_absent(play: Stage) -> None:
    play.sandbox.set(queue_seconds=60)
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = play.until(play.submit(), State.UNCERTAIN)
    (lost,) = play.sandbox.ledger()["tasks"]
    play.ctx.clients["default"].cancel(lost["task_id"])
    play.sandbox.set(queue_seconds=0)

    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert ended.task_id != lost["task_id"]
    assert play.sandbox.ledger()["totals"]["billed_micros"] == ended.cost


def test_creates_go_one_at_a_time_while_an_answer_is_lost(play: Stage) -> None:
    play.sandbox.set(run_seconds=30)
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    lost = play.until(play.submit(), State.UNCERTAIN)
    one, two = play.submit(input=clip("one")), play.submit(input=clip("two"))
    claims = {claim.id: claim.number for message in play.tick() for claim in message.claims}
    first = play.spend(one.id, claims[one.id])
    step, clock = play.step(first)
    play.ctx.record(first, next(step), clock)

    play.runner.work([(two.id, claims[two.id])])

    assert play.job(lost).state == State.UNCERTAIN
    assert play.job(one).state == State.SUBMITTING
    assert play.job(two).state == State.ADMITTED
    assert play.sandbox.ledger()["totals"]["creates"] == 1


def test_a_lost_call_that_is_canceled_ends_canceled_if_it_made_nothing(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset", times=1)
    job = play.until(play.submit(), State.UNCERTAIN)

    assert play.cancel(job) == "requested"

    ended = play.until(job)
    assert ended.state == State.CANCELED
    assert made(play.sandbox) == 0
    assert play.ledger(job)[-1] == ("release", -1_500_000)


def test_a_call_older_than_the_providers_list_waits_for_a_person(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    play.sandbox.fault(where="list", what="reset")
    job = play.until(play.submit(), State.UNCERTAIN)
    play.sql("update attempts set sent_at = sent_at - interval '1 day' where job_id = :id", id=job.id)

    held = play.until(job, State.HELD)

    assert held.held_for == "uncertain"


def test_a_held_job_keeps_its_slot_since_its_task_may_live(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, limits={"wan2.5-t2v-preview": {"concurrency": 1}}) as play:
        sandbox.fault(where="create", what="reset")
        play.until(play.submit(), State.HELD)

        other = play.submit()

        assert play.tick() == []
        assert play.document(other)["waiting_on"]["code"] == "slot"


def test_the_history_tells_what_was_looked_at(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)

    job = play.until(play.submit())

    (attempt,) = play.attempts(job)
    assert attempt.outcome == "accepted"
    assert attempt.task_id == job.task_id
    whys = [row["why"] for row in play.sql("select why from events where job_id = :id order by id", id=job.id)]
    assert any(why.startswith("no certain answer") for why in whys)
    assert any(why.startswith("found: the task repeats what this call asked") for why in whys)


@pytest.mark.parametrize("answer", ["lost_answer", "reset"])
def test_a_model_that_repeats_no_prompt_leaves_it_to_a_person_what_a_task_is_whose(play: Stage, answer: str) -> None:
    def picture() -> Job:
        return play.submit("text-to-image", "wan2.6-t2i", input={"prompt": "a fox in the reeds"})

    stranger = play.until(picture(), State.COPYING, State.SUCCEEDED)
    play.sql("update attempts set task_id = null where job_id = :id", id=stranger.id)
    play.sandbox.fault(where="create", what=answer, times=1)

    held = play.until(picture(), State.HELD)

    assert held.held_for == "uncertain"
    assert len(play.attempts(held)) == 1, "a finished task that may be its own is no proof of absence"


def test_a_model_that_repeats_no_prompt_is_asked_again_when_nothing_was_made_at_all(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset", times=1)
    job = play.submit("text-to-image", "wan2.6-t2i", input={"prompt": "a fox in the reeds"})

    play.until(job)

    assert [attempt.outcome for attempt in play.attempts(job)] == ["absent", "accepted"]
    assert made(play.sandbox) == 1


def test_a_list_that_does_not_show_all_that_it_counts_proves_no_absence(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset", times=1)
    job = play.until(play.submit(), State.UNCERTAIN)
    page = {"data": [], "total": 3, "total_page": 1, "page_no": 1, "page_size": 100, "request_id": "r"}
    play = with_queries(play, {"status_code": 200, "json": page})
    play.sql("update attempts set sent_at = sent_at - interval '1 minute' where job_id = :id", id=job.id)

    for _ in range(3):
        play.sql("update jobs set run_at = now() where id = :id", id=job.id)
        play.play(play.tick())

    assert play.job(job).state == State.UNCERTAIN
    assert len(play.attempts(job)) == 1


def test_a_list_that_began_before_the_settle_time_was_over_proves_no_absence(
    environment: dict[str, str], sandbox: Sandbox
) -> None:
    with stage(environment, sandbox, settle_seconds=600) as play:
        sandbox.fault(where="create", what="reset", times=1)
        job = play.until(play.submit(), State.UNCERTAIN)

        for _ in range(3):
            play.sql("update jobs set run_at = now() where id = :id", id=job.id)
            play.play(play.tick())

        assert play.job(job).state == State.UNCERTAIN


def test_a_task_that_a_call_may_own_which_was_called_absent_is_left_to_a_person(play: Stage) -> None:
    """That verdict may have been wrong: the task that it says was never made would be handed to another tenant."""
    theirs = play.until(play.submit(project=other_project(play)))
    play.sql(
        "update attempts set task_id = null, request_id = null, outcome = 'absent', billed = 'no' where job_id = :id",
        id=theirs.id,
    )
    play.sandbox.fault(where="create", what="reset", times=1)

    ours = play.until(play.submit(), State.HELD)

    assert ours.held_for == "uncertain"
    assert len(play.attempts(ours)) == 1


def test_a_refused_call_is_tried_again_as_often_as_its_error_says(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="InvalidURL")
    job = play.submit()

    for _ in range(10):
        play.play(play.tick())
        play.sql("update jobs set run_at = now() where state = 'queued'")

    assert play.job(job).state == State.FAILED
    assert play.sandbox.ledger()["totals"]["creates"] == 1 + 3


def test_no_task_is_judged_while_another_call_of_the_lane_is_out(play: Stage) -> None:
    """The task in the list is that call's, whose answer is on its way: to adopt it would beat the answer."""
    one = play.submit()
    taken, step, clock = play.begin(one)
    begun = play.ctx.record(taken, next(step), clock)
    answer = step.send(begun)  # type: ignore[attr-defined]
    play.sandbox.fault(where="create", what="reset", times=1)
    lost = play.until(play.submit(), State.UNCERTAIN)
    play.drive(lambda: play.sandbox.ledger()["tasks"][0]["status"] == "SUCCEEDED" and play.now(), lambda at: bool(at))
    for _ in range(3):
        play.sql("update jobs set run_at = now() where id = :id", id=lost.id)
        play.play(play.tick())

    assert play.job(lost).state == State.UNCERTAIN
    assert play.ctx.record(begun, answer, clock).state == State.RUNNING
    both(play, one, lost)


@pytest.mark.parametrize("answer", ["lost_answer", "reset"])
def test_a_picture_that_a_lost_call_answered_with_is_not_paid_for_again(play: Stage, answer: str) -> None:
    play.sandbox.fault(where="create", what=answer, times=1)

    job = play.until(play.submit("text-to-image", "qwen-image-2.0", input={"prompt": "a fox"}), State.HELD)

    assert (job.held_for, job.billed) == ("uncertain", "unknown")
    assert len(play.attempts(job)) == 1
    assert play.ledger(job)[0][0] == "reserve"


def test_two_workers_that_find_a_call_absent_count_it_once(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset", times=1)
    job = play.until(play.submit(), State.UNCERTAIN)
    play.sql("update attempts set sent_at = sent_at - interval '1 minute' where job_id = :id", id=job.id)
    play.sql("update jobs set run_at = now() where id = :id", id=job.id)
    asleep, slow, clock = play.begin(job)
    absent = next(slow)
    assert absent.to is State.QUEUED
    play.lapse(job)
    taken, step, clock = play.begin(job)
    with pytest.raises(ClaimLost):
        play.ctx.record(asleep, absent, clock)

    assert play.ctx.record(taken, next(step), clock).state == State.QUEUED
    assert play.until(job).state == State.SUCCEEDED
    assert made(play.sandbox) == 1
