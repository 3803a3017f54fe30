"""Looks at tasks: when, how many at once, within which budget; and what slows them, which is nothing else's concern."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from stage import CLIP, Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import catalog
from worker.claims import NOW
from worker.context import Clock
from worker.errors import NotTold
from worker.lanes import query_budget
from worker.lanes.query_budget import Times
from worker.runner.looks import Looks
from worker.states import State
from worker.steps.poll import Asked, pages
from worker.tables import Job

BEGAN = datetime(2026, 11, 20, tzinfo=UTC)
MODEL = "wan2.5-t2v-preview"
SECOND = timedelta(seconds=1)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=60, queue_seconds=0, limits={"*": Limits(rps=1000, concurrency=1000)})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, limits={MODEL: {"concurrency": 1000, "rps": 1000}}, poll_qps=200) as made:
        yield made


def calls(sandbox: Sandbox) -> dict[str, int]:
    """How many task queries the provider got, by interface."""
    made = sandbox.ledger()["calls"]
    return {name: sum(by.get(name, 0) for by in made.values()) for name in ("get", "list")}


def at_work(play: Stage, count: int) -> list[Job]:
    """So many jobs whose tasks run, none of them due."""
    submitted = [play.submit(input={**CLIP, "prompt": f"clip {n}"}) for n in range(count)]
    play.drive(
        lambda: play.sql("select count(*) as n from jobs where state = 'running'")[0]["n"],
        lambda found: found == count,
    )
    play.sql("update jobs set run_at = now() + interval '1 hour', claimed = null")
    return submitted


def look(play: Stage) -> None:
    """One look at every running job, in one message."""
    play.sql("update jobs set run_at = now() where state = 'running'")
    play.play([message for message in play.tick() if message.task == "noria.poll"])


# When


def test_the_first_look_is_when_hardly_any_task_has_ended() -> None:
    assert query_budget.first_look(BEGAN, Times(60, 90), apart=4) == BEGAN + timedelta(seconds=60)


def test_a_model_that_is_not_learned_is_looked_at_soon_and_then_ever_less() -> None:
    looks = [query_budget.first_look(BEGAN, None, apart=2)]
    while looks[-1] < BEGAN + timedelta(minutes=30):
        looks.append(query_budget.next_look(BEGAN, looks[-1], None, apart=2))

    apart = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(looks)]
    assert looks[0] - BEGAN == timedelta(seconds=4)
    assert apart == sorted(apart)
    assert apart[-1] == 64
    assert len(looks) < 80


def test_looks_are_closest_around_the_median_and_then_ever_further_apart() -> None:
    times = Times(140, 200)

    apart = {
        ran: (query_budget.next_look(BEGAN, BEGAN + ran * SECOND, times, apart=4) - BEGAN) / SECOND - ran
        for ran in (10, 150, 200, 290, 520, 3600)
    }

    assert apart[10] >= 130
    assert max(apart[ran] for ran in (150, 200, 290)) <= 4.5
    assert apart[290] < apart[520] < apart[3600] <= 72


def test_looks_of_many_jobs_fall_together() -> None:
    began = [BEGAN + timedelta(seconds=n / 7) for n in range(400)]
    now = BEGAN + timedelta(seconds=230, milliseconds=500)

    looks = {query_budget.next_look(moment, now, Times(140, 200), apart=4) for moment in began}

    assert len(looks) == 1


@pytest.mark.parametrize("times", [None, Times(50, 60), Times(140, 200), Times(300, 400)])
def test_where_there_is_room_tasks_are_looked_at_each_second_around_their_ends(times: Times | None) -> None:
    began = BEGAN + timedelta(seconds=0.4)
    look = query_budget.first_look(began, times, apart=1)
    assert look - began == timedelta(seconds=times.early if times else 3.6)

    # a tick comes once a second, at whatever fraction of one, and an instant passes until the look
    while look < BEGAN + timedelta(seconds=times.median if times else 60):
        looked_at = look + timedelta(seconds=0.95)
        look = query_budget.next_look(began, looked_at, times, apart=1)
        assert timedelta(0) < look - looked_at <= timedelta(seconds=1.05)


def test_looks_are_each_second_while_half_of_the_rate_is_enough_and_then_further_apart(play: Stage) -> None:
    at_work(play, 12)
    play.sql("update jobs set polls = 1")

    def apart(per_second: float) -> int:
        with play.ctx.engine.begin() as connection:
            return query_budget.apart(connection, per_second)["default"]

    assert apart(4) == 1  # a page of those that run, and one of those that wait
    assert (apart(3.9), apart(2), apart(1.9)) == (2, 2, 4)
    play.sql("update owners set page_size = 10")
    assert (apart(8), apart(7.9)) == (1, 2)
    play.sql("update jobs set state = 'copying' where id in (select id from jobs where state = 'running' limit 5)")
    assert (apart(14), apart(13.9)) == (1, 2)  # seven are looked at singly
    play.ctx.queries.slow("default")
    assert (apart(28), apart(20)) == (1, 2)
    assert apart(0.01) == 64


def test_tasks_that_cannot_have_ended_yet_do_not_put_looks_further_apart(play: Stage) -> None:
    at_work(play, 12)
    play.sql("update jobs set polls = 0")

    with play.ctx.engine.begin() as connection:
        assert query_budget.apart(connection, 0.01) == {"default": 1}


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        ({"prompt": "a", "size": "832*480", "duration": 5}, "480P 5"),
        ({"prompt": "a", "size": "480*832", "duration": 5}, "480P 5"),
        ({"prompt": "a", "resolution": "1080P", "duration": 10}, "1080P 10"),
        ({"prompt": "a", "size": "1280*1280", "n": 2}, "1280*1280 2"),
    ],
)
def test_run_times_depend_on_tier_and_length_not_on_the_prompt(wanted: dict[str, object], shape: str) -> None:
    assert query_budget.shape(catalog.load(), wanted) == shape


def test_run_times_are_learned_by_model_and_shape(play: Stage) -> None:
    for seconds, duration in itertools.product((50, 60, 70, 80, 90), (5, 10)):
        job = play.submit(input={**CLIP, "duration": duration})
        play.sql(
            "update jobs set run_seconds = :took, shape = :shape, lane_id = (select id from lanes where model = :model)"
            " where id = :id",
            took=seconds * duration / 5, shape=f"480P {duration}", model=MODEL, id=job.id,
        )  # fmt: skip

    with play.ctx.engine.begin() as connection:
        query_budget.learn(connection, connection.execute(select(NOW)).scalar_one())

    short, long = play.submit(), play.submit(input={**CLIP, "duration": 10})
    assert play.ctx.learned.times(short) == Times(50.8, 70)
    assert play.ctx.learned.times(long) == Times(101.6, 140)
    assert play.ctx.learned.times(play.submit(input={**CLIP, "size": "1920*1080"})) is None


def test_what_a_task_took_is_kept_with_its_shape(play: Stage) -> None:
    play.sandbox.set(run_seconds=0.1)

    job = play.until(play.submit())

    assert job.shape == "480P 5"
    assert 0.05 < (job.run_seconds or 0) < 1


# How many at once


def test_many_looks_are_one_list_call(play: Stage) -> None:
    submitted = at_work(play, 30)
    before, began = calls(play.sandbox), play.now()

    look(play)

    made = calls(play.sandbox)
    assert (made["list"] - before["list"], made["get"] - before["get"]) == (1, 0)
    found = [play.job(job) for job in submitted]
    assert {job.task_status for job in found} == {"RUNNING"}
    assert {job.claimed for job in found} == {None}
    # later than the look; what was later than its end would be here already on a busy machine
    assert min(job.run_at for job in found if job.run_at) > began + timedelta(seconds=query_budget._NEARLY)


def test_only_what_the_list_does_not_show_as_running_is_looked_at_singly(play: Stage) -> None:
    play.sandbox.fault(where="create", what="task_runs", after_ms=0, prompt_contains="clip 7")
    submitted = at_work(play, 12)
    before = calls(play.sandbox)

    look(play)

    made = calls(play.sandbox)
    assert (made["list"] - before["list"], made["get"] - before["get"]) == (1, 1)
    assert [play.job(job).state for job in submitted].count("copying") == 1


def test_a_task_that_the_list_leaves_out_is_looked_at_singly(play: Stage) -> None:
    submitted = at_work(play, 10)
    play.sandbox.fault(where="list", what="misses", prompt_contains="clip 3")
    before = calls(play.sandbox)

    look(play)

    assert calls(play.sandbox)["get"] - before["get"] == 1
    assert {play.job(job).state for job in submitted} == {"running"}


def test_tasks_that_wait_at_the_provider_are_listed_too(play: Stage) -> None:
    play.sandbox.set(queue_seconds=60)
    submitted = at_work(play, 20)
    before = calls(play.sandbox)

    look(play)

    made = calls(play.sandbox)
    assert (made["list"] - before["list"], made["get"] - before["get"]) == (2, 0)
    assert {play.job(job).task_status for job in submitted} == {"PENDING"}


def test_a_job_to_be_canceled_gets_its_cancel_though_many_are_listed(play: Stage) -> None:
    play.sandbox.set(queue_seconds=60)
    submitted = at_work(play, 12)
    play.cancel(submitted[5])

    look(play)

    assert play.job(submitted[5]).state == State.CANCELED


def test_the_page_size_that_the_provider_accepts_is_found_and_kept(play: Stage) -> None:
    play.sandbox.set(max_page_size=4)
    at_work(play, 12)
    before = calls(play.sandbox)

    look(play)

    made = calls(play.sandbox)
    assert (made["list"] - before["list"], made["get"] - before["get"]) == (3, 0)
    assert play.ctx.queries.page_size("default") == 4


def test_pages_are_read_no_further_than_single_looks_would_cost(play: Stage) -> None:
    play.sandbox.set(max_page_size=1)
    at_work(play, 10)
    before = calls(play.sandbox)

    look(play)

    made = calls(play.sandbox)
    assert made["list"] - before["list"] + made["get"] - before["get"] <= 11


# Budget and trouble


def test_queries_of_all_processes_share_the_accounts_rate(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, poll_qps=10) as play, play.ctx.engine.begin() as connection:
        now = play.now()
        first = query_budget.book(connection, "default", 10, 10, now)
        second = query_budget.book(connection, "default", 10, 10, now)

        assert first is not None
        assert second is not None
        assert (first.at, first.apart) == (now, timedelta(seconds=0.1))
        assert second.at - first.at == timedelta(seconds=1)


def test_what_does_not_fit_the_budget_is_looked_at_a_little_later(play: Stage) -> None:
    (job,) = at_work(play, 1)
    play.sql("update owners set next_query_at = now() + interval '1 hour'")

    look(play)

    assert calls(play.sandbox)["get"] == 0
    again = play.job(job)
    assert again.claimed is None
    assert again.crashes == 0
    assert again.run_at is not None
    assert timedelta(0) < again.run_at - play.now() < timedelta(seconds=3)


class Sleepy(Clock):
    """Of a thread that wakes a while after the instant that it waited for."""

    def __init__(self, now: datetime, late: timedelta) -> None:
        super().__init__(now)
        self._late = late

    def wait_until(self, moment: datetime) -> None:
        self._now += max(timedelta(0), moment - self()) + self._late


@pytest.mark.parametrize(("late", "looks"), [(0.0, 1), (0.4, 0)])
def test_a_look_later_than_its_booking_is_put_off(play: Stage, late: float, looks: int) -> None:
    (job,) = at_work(play, 1)
    play.sql("update jobs set run_at = now() where id = :id", id=job.id)
    taken = play.take(job)

    looks_of_one = Looks(play.runner, lambda now: Sleepy(now, timedelta(seconds=late)))
    looks_of_one.look([taken], Clock(play.now()), SECOND, play.now())

    again = play.job(job)
    assert (calls(play.sandbox)["get"], again.polls - taken.polls) == (looks, looks)
    assert again.claimed is None
    assert again.run_at is not None
    assert looks or timedelta(0) < again.run_at - play.now() <= timedelta(seconds=2)


@pytest.mark.parametrize("fault", [{"what": "error", "code": "Throttling"}, {"what": "error", "code": "InternalError"}])
@pytest.mark.parametrize("where", ["get", "list"])
def test_a_query_that_is_throttled_or_fails_slows_queries_and_nothing_else(
    play: Stage, fault: dict[str, str], where: str
) -> None:
    submitted = at_work(play, 1 if where == "get" else 12)
    play.sandbox.fault(where=where, **fault)

    look(play)

    now = play.now()
    with play.ctx.engine.begin() as connection:
        slowed = query_budget.book(connection, "default", 1, 200, now, timedelta(minutes=1))
        later = query_budget.book(connection, "default", 1, 200, now + timedelta(seconds=60), timedelta(minutes=1))
    assert slowed is not None
    assert later is not None
    assert slowed.apart == timedelta(seconds=1 / 100)
    assert later.apart == timedelta(seconds=1 / 200)
    assert {play.job(job).state for job in submitted} == {"running"}
    assert {play.job(job).claimed for job in submitted} == {None}
    assert play.sql("select stopped_until from owners")[0]["stopped_until"] is None
    play.sandbox.clear_faults()
    assert play.until(play.submit(), State.RUNNING).state == State.RUNNING


def test_the_pace_is_not_halved_by_each_of_many_looks_that_fail_together(play: Stage) -> None:
    at_work(play, 7)
    play.sandbox.fault(where="get", what="error", code="Throttling")

    look(play)

    assert play.sql("select query_pace from owners")[0]["query_pace"] == 0.5


def test_a_list_that_does_not_come_costs_nobody_a_look(play: Stage) -> None:
    play.sandbox.set(run_seconds=0.1)
    submitted = at_work(play, 20)
    play.sandbox.fault(where="list", what="error", code="AccessDenied")

    left = play.drive(lambda: {play.job(job).state for job in submitted}, lambda found: "running" not in found)

    assert left <= {"copying", "succeeded"}


def test_a_key_that_queries_refuse_stops_creates_and_looks_go_on(play: Stage) -> None:
    play.sandbox.set(run_seconds=0.1)
    (job,) = at_work(play, 1)
    play.sandbox.fault(where="get", what="error", code="InvalidApiKey", times=1)

    look(play)

    assert play.sql("select stopped_until from owners")[0]["stopped_until"] > play.now()
    assert play.until(job).state == State.SUCCEEDED


def test_a_strange_status_is_told_once(play: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    play.sandbox.fault(where="get", what="suspended", times=3)
    (job,) = at_work(play, 1)

    for _ in range(3):
        look(play)

    assert play.job(job).state == State.RUNNING
    assert play.ctx.strange == {"SUSPENDED"}


def unknown_for_long(play: Stage) -> Job:
    (job,) = at_work(play, 1)
    play.sandbox.fault(where="get", what="unknown")
    look(play)
    play.sql("update jobs set unknown_since = now() - interval '11 minutes'")
    return job


def test_unknown_is_not_believed_while_no_other_task_is_seen(play: Stage) -> None:
    job = unknown_for_long(play)
    play.sql("update owners set seen_at = now() - interval '12 minutes'")

    look(play)

    assert play.job(job).state == State.RUNNING


def test_unknown_is_believed_when_other_tasks_were_seen_since(play: Stage) -> None:
    job = unknown_for_long(play)
    play.sql("update owners set seen_at = now() - interval '1 minute'")

    look(play)

    assert play.job(job).state == State.EXPIRED


def test_unknown_is_given_up_at_the_deadline_though_nothing_else_is_seen(play: Stage) -> None:
    job = unknown_for_long(play)
    play.sql("update owners set seen_at = null")
    play.sql("update jobs set deadline_at = now()")

    look(play)

    assert play.job(job).state == State.EXPIRED


def test_a_listing_gives_up_when_the_budget_is_spent(play: Stage) -> None:
    play.sql("update owners set next_query_at = now() + interval '1 hour'")
    clock = Clock(play.now())
    asked = Asked("default", clock() - timedelta(hours=1), clock())

    with pytest.raises(NotTold, match="budget"):
        next(pages(play.ctx, asked, timedelta(seconds=1)))
