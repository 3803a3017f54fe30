"""Looks at many tasks: what a list has shown to have ended is fetched first; lists are for when nothing is known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Lock

import httpx
import pytest
from stage import CLIP, Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import claims, moves, tick, work
from worker.context import Clock
from worker.dashscope.client import Client
from worker.egress import transports
from worker.lanes import query_budget
from worker.runner import looks
from worker.runner.looks import Looks
from worker.states import Move, State
from worker.steps import poll
from worker.steps.poll import Asked, pages
from worker.tables import Job

MODEL = "wan2.5-t2v-preview"


class Noted(httpx.BaseTransport):
    """Task queries on their way to the provider: "list RUNNING 1" or the task's id, in their order."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self._inner = transports.keeping()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = request.url.params
        listed = f"list {asked.get('status', '')} {asked.get('page_no', '')}"
        self.queries.append(listed if request.url.path.endswith("/tasks") else request.url.path.rpartition("/")[2])
        return self._inner.handle_request(request)

    @property
    def lists(self) -> list[str]:
        return [query for query in self.queries if query.startswith("list")]

    @property
    def fetched(self) -> list[str]:
        return [query for query in self.queries if not query.startswith("list")]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    limits = {"*": Limits(rps=1000, concurrency=1000)}
    with running(Options(run_seconds=600, queue_seconds=0, limits=limits, queries_per_second=1000)) as made:
        yield made


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox, noted: Noted) -> Iterator[Stage]:
    with stage(environment, sandbox, limits={MODEL: {"concurrency": 1000, "rps": 1000}}, poll_qps=200) as made:
        account = made.ctx.settings.all_accounts[0]
        made.ctx = replace(made.ctx, clients={"default": Client(account, noted, transports.single())})
        yield made


def at_work(play: Stage, count: int, ended: int) -> list[Job]:
    """So many jobs whose tasks run, in the order they were made, and have ended for the first of them; none is due."""
    play.sandbox.fault(where="create", what="task_runs", after_ms=0, prompt_contains="short")
    for n in range(count):
        play.submit(input={**CLIP, "prompt": f"a {'short' if n < ended else 'long'} clip, {n}"})
    play.drive(
        lambda: play.sql("select count(*) as n from jobs where state = 'running'")[0]["n"],
        lambda found: found == count,
    )
    play.sql(
        "update jobs set run_at = now() + interval '1 hour', claimed = null, task_status = 'RUNNING',"
        " submitted_at = (select min(submitted_at) from jobs) + numbered.n * interval '1 millisecond'"
        " from (select id, row_number() over (order by input->>'prompt' like '%long%',"
        " substring(input->>'prompt' from '\\d+')::int) as n from jobs) as numbered where numbered.id = jobs.id"
    )
    return [Job.of(row) for row in play.sql("select * from jobs order by submitted_at")]


def due(play: Stage, jobs: Sequence[Job] | None = None) -> list[tick.Message]:
    """The messages for a look at the jobs, or at all."""
    ids = [job.id for job in jobs or [Job.of(row) for row in play.sql("select * from jobs")]]
    play.sql("update jobs set run_at = now() where state = 'running' and id = any(:ids)", ids=ids)
    return [message for message in play.tick() if message.task == "noria.poll"]


def states(play: Stage, jobs: Sequence[Job]) -> list[str]:
    return [play.job(job).state for job in jobs]


def test_what_one_list_has_left_out_is_fetched_without_another_list(play: Stage, noted: Noted) -> None:
    jobs = at_work(play, 40, ended=25)
    noted.queries.clear()

    play.play(due(play))

    assert noted.lists == ["list RUNNING 1"]
    assert sorted(noted.fetched) == sorted(str(job.task_id) for job in jobs[:25])
    assert states(play, jobs) == ["copying"] * 25 + ["running"] * 15


def test_where_nothing_has_ended_a_list_is_all_that_is_asked(play: Stage, noted: Noted) -> None:
    at_work(play, 20, ended=0)
    noted.queries.clear()

    for _ in range(3):
        play.play(due(play))

    assert noted.queries == ["list RUNNING 1"] * 3


def test_a_task_that_the_list_has_left_out_by_mistake_runs_on(play: Stage, noted: Noted) -> None:
    jobs = at_work(play, 20, ended=0)
    play.sandbox.fault(where="list", what="misses", prompt_contains="a long")
    noted.queries.clear()

    play.play(due(play))

    assert len(noted.fetched) == 20
    assert set(states(play, jobs)) == {"running"}


def test_who_cancels_while_a_task_is_looked_at_need_not_wait_for_the_next_look(play: Stage) -> None:
    (asked,) = at_work(play, 1, ended=0)
    play.sql("update jobs set task_status = 'PENDING'")
    ((claim,),) = [message.claims for message in due(play, [asked])]
    taken = play.spend(claim.id, claim.number)
    play.cancel(asked)
    wait = Move(State.RUNNING, run_at=play.now() + timedelta(minutes=1))

    with play.ctx.engine.begin() as connection:
        assert moves.record_waits(connection, [(taken, wait)], play.now()) == 1

    found = play.job(asked)
    assert (found.claimed, found.cancel_requested) == (None, True)
    assert found.run_at is not None
    assert found.run_at <= play.now()
    again = replace(wait, run_at=play.now() + timedelta(minutes=1))
    (claim,) = (claim for message in due(play, [asked]) for claim in message.claims)
    with play.ctx.engine.begin() as connection:  # but a provider that does not answer is not asked without a pause
        moves.record_waits(connection, [(play.spend(claim.id, claim.number), again)], play.now())
    assert play.job(asked).run_at == again.run_at


def test_what_was_made_first_is_fetched_first_since_its_links_die_first(play: Stage) -> None:
    jobs = at_work(play, 30, ended=12)

    told = poll.sort(play.ctx, jobs[::-1], Clock(play.now()))

    assert [job.id for job in told.ended] == [job.id for job in jobs[:12]]
    assert {job.id for job, _ in told.running} == {job.id for job in jobs[12:]}


def test_several_messages_at_once_put_each_end_on_record_once(play: Stage, noted: Noted) -> None:
    jobs = at_work(play, 60, ended=45)
    messages = [message for start in range(4) for message in due(play, jobs[start::4])]
    noted.queries.clear()

    with ThreadPoolExecutor(8) as threads:  # each twice, as a broker may
        list(threads.map(lambda message: play.play([message]), messages * 2))
    play.drive(lambda: states(play, jobs[:45]), lambda found: "running" not in found)

    ended = {str(job.task_id) for job in jobs[:45]}
    assert set(states(play, jobs[45:])) == {"running"}
    # a message too short for a list may fetch what still runs
    assert sorted(task for task in noted.fetched if task in ended) == sorted(ended)
    assert play.sql("select count(*) as n from events where entered = 'copying'")[0]["n"] == 45


def test_four_of_five_queries_fetch_ends_while_many_wait(play: Stage, noted: Noted) -> None:
    jobs = at_work(play, 60, ended=45)
    messages = [message for start in range(4) for message in due(play, jobs[start::4])]
    noted.queries.clear()

    for message in messages:
        play.play([message])

    assert set(states(play, jobs[:45])) == {"copying"}
    assert len(noted.fetched) / len(noted.queries) >= 0.8


def test_only_one_message_of_an_account_lists_at_a_time_and_the_others_rows_are_due_again(
    play: Stage, noted: Noted
) -> None:
    jobs = at_work(play, 12, ended=3)
    (message,) = due(play)
    noted.queries.clear()

    with play.ctx.listing.setdefault("default", Lock()):  # by another thread
        play.play([message])

    found = [play.job(job) for job in jobs]
    assert noted.queries == []
    assert {(job.state, job.claimed, job.crashes) for job in found} == {("running", None, 0)}
    assert max(job.run_at for job in found if job.run_at) < play.now() + timedelta(seconds=3)


def test_a_list_is_read_only_once_nobody_has_booked_the_fetching_of_ends(play: Stage, noted: Noted) -> None:
    booked = play.ctx.queries.book("default", 200, query_budget.AHEAD)
    asked = Asked("default", play.now() - timedelta(hours=1), play.now(), status="RUNNING")
    with ThreadPoolExecutor(1) as threads:
        listing = threads.submit(lambda: next(pages(play.ctx, asked, timedelta(seconds=20))) and play.now())

        later = play.ctx.queries.book("default", 100, query_budget.AHEAD)  # by a thread that knows of more ends

        assert booked is not None
        assert later is not None
        assert later.at == booked.at + timedelta(seconds=1)
        assert listing.result() >= later.at + timedelta(seconds=0.5)


def test_what_a_list_does_not_come_to_is_neither_fetched_nor_lost(play: Stage, noted: Noted) -> None:
    jobs = at_work(play, 20, ended=5)
    (message,) = due(play)
    play.sql("update owners set next_query_at = now() + interval '1 hour'")
    noted.queries.clear()

    play.play([message])  # waits ten seconds for a place

    found = [play.job(job) for job in jobs]
    assert noted.queries == []
    assert {(job.state, job.claimed, job.crashes) for job in found} == {("running", None, 0)}
    assert max(job.run_at for job in found if job.run_at) < play.now() + timedelta(seconds=3)


def test_a_worker_that_dies_between_a_list_and_the_fetching_loses_nothing(play: Stage, noted: Noted) -> None:
    jobs = at_work(play, 20, ended=9)
    (message,) = due(play)
    with play.ctx.engine.begin() as connection:
        rows = claims.take(connection, Job, message.numbers, work.LEASE, looks.COLUMNS)
    known = Looks(play.runner).sorted([Job.of(row._mapping) for row in rows], Clock(rows[0].now))
    assert len(known) == 9
    assert [play.job(job).claimed for job in jobs] == ["taken"] * 9 + [None] * 11  # what runs is not in its hands

    play.sql("update jobs set run_at = now() where claimed = 'taken'")  # the leases of the dead worker lapse
    play.play(play.tick())

    assert states(play, jobs) == ["copying"] * 9 + ["running"] * 11
    assert {play.job(job).crashes for job in jobs} == {0}


def test_a_message_that_is_too_short_for_a_list_waits_for_known_ends_too(play: Stage, noted: Noted) -> None:
    jobs = at_work(play, 3, ended=1)
    (message,) = due(play)
    play.ctx.queries.book("default", 200, query_budget.AHEAD)
    noted.queries.clear()

    play.play([message])

    assert noted.queries == []
    assert {play.job(job).claimed for job in jobs} == {None}


def test_of_many_rows_no_prompt_is_read(play: Stage) -> None:
    at_work(play, 8, ended=0)
    (message,) = due(play)

    with play.ctx.engine.begin() as connection:
        rows = claims.take(connection, Job, message.numbers, work.LEASE, looks.COLUMNS)

    assert len(rows) == 8
    assert {"a long clip" in str(row) for row in rows} == {False}
    assert {play.ctx.learned.shape(Job.of(row._mapping)) for row in rows} == {"480P 5"}


def test_pages_of_what_runs_are_read_from_the_last_one_on(play: Stage, noted: Noted) -> None:
    """A task that ends in between moves those behind it to the page before, which is still to be read."""
    play.sandbox.set(max_page_size=4)
    at_work(play, 16, ended=0)
    noted.queries.clear()

    play.play(due(play))

    assert [re.sub("list RUNNING ", "", query) for query in noted.queries] == ["1", "4", "3", "2"]


@pytest.mark.parametrize("offset", [-20, 0, 20])
def test_a_provider_whose_clock_differs_is_asked_by_its_own_clock(play: Stage, noted: Noted, offset: float) -> None:
    play.sandbox.set(clock_offset_seconds=offset)
    jobs = at_work(play, 25, ended=0)
    play.play(due(play))
    noted.queries.clear()

    play.play(due(play))

    least, most = play.ctx.drifts["default"]
    assert least.total_seconds() < offset < most.total_seconds() + 1
    assert (most - least).total_seconds() < 30
    assert noted.queries == ["list RUNNING 1"]
    assert set(states(play, jobs)) == {State.RUNNING}


def test_a_provider_whose_clock_is_far_off_is_asked_singly_and_nothing_is_believed_ended(
    play: Stage, noted: Noted
) -> None:
    play.sandbox.set(clock_offset_seconds=300)
    jobs = at_work(play, 12, ended=0)
    noted.queries.clear()

    play.play(due(play))

    assert len(noted.fetched) == 12
    assert set(states(play, jobs)) == {State.RUNNING}
