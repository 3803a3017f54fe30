"""Budgets: what a project may spend in a day, in a month, or in all, whoever asks and however many ask at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from serving import Served, eventually, served
from sqlalchemy import event
from stage import CLIP, Stage
from test_cli import Shell, api, noria

from ops import audit
from ops.doctor import Exam, Verdict, rows
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import moves
from worker.errors import BudgetExhausted
from worker.jobs import spending, submission
from worker.jobs.spending import Wanted
from worker.jobs.submission import Submission
from worker.money import budgets
from worker.moves import bulk
from worker.states import State
from worker.tables import Budget, Job

__all__ = ["api", "noria"]

PRICE = 1_500_000  # of a clip of the stage, micro-CNY
BODY = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": CLIP}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.05, queue_seconds=0, call_seconds=0)) as made:
        yield made


@pytest.fixture
def http(environment: dict[str, str], play: Stage) -> Iterator[httpx.Client]:
    with served(environment) as there, there.http(there.key(play.project.name)) as client:
        yield client


def cap(play: Stage, micros: int, period: str = "total", over: str = "refuse", zone: str | None = None) -> Budget:
    """A budget of the stage's project."""
    with play.ctx.engine.begin() as connection:
        return spending.make(connection, play.project, Wanted(period, micros, over, zone))


def asked(play: Stage) -> dict[str, Any]:
    """What is asked for of a clip, checked and priced."""
    said = Submission("text-to-video", "wan2.5-t2v-preview", CLIP)
    prepared = submission.prepare(play.ctx.catalog, play.ctx.settings, said, play.now())
    return {"project_id": play.project.id, **submission.asked(prepared)}


def is_made(play: Stage, row: dict[str, Any], at: datetime | None = None) -> bool:
    """Makes a job; whether the budget has room for it."""
    try:
        with play.ctx.engine.begin() as connection:
            moves.make(connection, row, at)
    except BudgetExhausted:
        return False
    return True


def used(play: Stage) -> int:
    """What is used of the project's budgets, from the sums."""
    with play.ctx.engine.begin() as connection:
        room = budgets.seen(connection, play.project.id)
    return room.standings[0].used


def test_a_job_that_costs_more_than_is_left_is_refused_with_the_budget(play: Stage, http: httpx.Client) -> None:
    made = http.post("/v1/budgets", json={"period": "day", "limit": "2.00"}).json()
    first = http.post("/v1/jobs", json=BODY)

    refused = http.post("/v1/jobs", json=BODY)

    assert (first.status_code, refused.status_code) == (201, 402)
    problem = refused.json()
    assert problem["code"] == "budget_exhausted"
    assert problem["budget"] == {
        "id": made["id"],
        "period": "day",
        "limit": "2.00",
        "used": "1.50",
        "estimate": "1.50",
        "ends_at": made["ends_at"],
    }
    assert "the budget of the day: of 2.00 CNY 0.50 CNY are left" in problem["detail"]
    assert play.sql("select count(*) as n from jobs")[0]["n"] == 1


@pytest.mark.parametrize(("over", "status", "state"), [("refuse", 402, None), ("hold", 200, "held")])
def test_a_dry_run_says_what_the_budgets_would_do_and_takes_no_room(
    http: httpx.Client, over: str, status: int, state: str | None
) -> None:
    http.post("/v1/budgets", json={"period": "day", "limit": "2.00", "over": over})
    fits = [http.post("/v1/jobs", params={"dry_run": True}, json=BODY) for _ in range(2)]
    http.post("/v1/jobs", json=BODY)

    over_it = http.post("/v1/jobs", params={"dry_run": True}, json=BODY)

    assert [answer.json()["state"] for answer in fits] == ["queued", "queued"]
    assert (over_it.status_code, over_it.json().get("state")) == (status, state)
    assert http.get("/v1/jobs").json()["data"][0]["state"] == "queued"


def test_what_is_used_is_what_the_ledger_has_of_the_period(play: Stage) -> None:
    cap(play, 10 * PRICE)
    job = play.until(play.submit())
    play.submit()

    assert job.state == "succeeded"
    billed = sum(micros for entry, micros in play.ledger(job) if entry == "settle")
    assert used(play) == billed + PRICE
    with play.ctx.engine.begin() as connection:
        budgets.add_up(connection, play.now())
    assert used(play) == billed + PRICE
    (sums,) = play.sql("select count(*) as n, sum(micros) as micros from ledger_sums")
    assert sums == {"n": 1, "micros": billed + PRICE}


def test_cancel_gives_room_back(play: Stage) -> None:
    cap(play, PRICE)
    job = play.submit()
    with pytest.raises(BudgetExhausted):
        play.submit()

    play.cancel(job)

    play.submit()


def test_of_a_hundred_that_submit_at_once_as_many_are_made_as_there_is_room_for(
    play: Stage, http: httpx.Client
) -> None:
    cap(play, 10 * PRICE + PRICE - 1, "day")
    row, ready = asked(play), threading.Barrier(100)

    def submit(_: int) -> bool:
        ready.wait()
        return is_made(play, row)

    with ThreadPoolExecutor(100) as pool:
        made = list(pool.map(submit, range(100)))

    assert sum(made) == 10
    assert play.sql("select count(*) as n from jobs")[0]["n"] == 10
    assert used(play) == 10 * PRICE


def test_a_job_under_a_key_is_answered_again_when_the_budget_is_spent(play: Stage, http: httpx.Client) -> None:
    cap(play, PRICE)

    first, again, another = (
        http.post("/v1/jobs", json=BODY, headers={"idempotency-key": key}) for key in ("one", "one", "two")
    )

    assert (first.status_code, again.status_code, another.status_code) == (201, 200, 402)
    assert again.json()["id"] == first.json()["id"]
    assert play.sql("select key from idempotency_keys") == [{"key": "one"}]


def test_a_project_without_a_budget_makes_a_job_with_one_statement(play: Stage) -> None:
    row, said = asked(play), list[str]()
    event.listen(play.ctx.engine, "before_cursor_execute", lambda *given: said.append(given[2]))

    is_made(play, row)

    assert len(said) == 1


def test_what_has_no_known_price_is_refused_where_there_is_a_budget(play: Stage, http: httpx.Client) -> None:
    cap(play, 10 * PRICE)
    play.sql("update budgets set over = 'hold'")
    with play.ctx.engine.begin() as connection:
        room = budgets.locked(connection, play.project.id)

    with pytest.raises(Exception, match="price of some-model is not known"):
        room.holds(None, "some-model")


def due(play: Stage, at: datetime | None = None) -> None:
    """What the tick does about budgets once in a while."""
    with play.ctx.engine.begin() as connection:
        now = at or play.now()
        bulk.let_go_within_budgets(connection, now)
        spending.tell_thresholds(connection, now)
        budgets.add_up(connection, now)


def states(play: Stage) -> list[str]:
    """The states of all jobs, in the order in which they were made."""
    return [row["state"] for row in play.sql("select state from jobs order by id")]


def no_findings(play: Stage) -> bool:
    """Whether the rows keep every promise."""
    with play.ctx.engine.connect() as connection:
        return not audit.look(connection)


def test_a_job_that_has_no_room_is_held_and_says_for_which_budget(play: Stage, http: httpx.Client) -> None:
    budget = http.post("/v1/budgets", json={"period": "day", "limit": "2.00", "over": "hold"}).json()
    http.post("/v1/jobs", json=BODY)

    held = http.post("/v1/jobs", json=BODY)

    assert (held.status_code, held.json()["waiting_on"]["code"]) == (201, "budget")
    shown = http.get(held.json()["urls"]["self"]).json()
    assert (shown["state"], shown["held_for"]) == ("held", "budget")
    assert shown["waiting_on"] == {
        "code": "budget",
        "detail": "waits for room in the budget of the day: of 2.00 CNY 0.50 CNY are left",
        "until": budget["ends_at"],
        "position": None,
    }
    assert play.sql("select count(*) as n from ledger")[0]["n"] == 1
    assert http.get("/v1/budgets").json()["data"][0]["held"] == 1
    assert no_findings(play)


def test_what_is_held_goes_on_oldest_first_when_the_budget_is_raised(play: Stage, http: httpx.Client) -> None:
    budget = cap(play, 0 + PRICE, "total", "hold")
    jobs = [play.submit() for _ in range(4)]
    due(play)
    assert states(play) == ["queued", "held", "held", "held"]

    raised = http.patch(f"/v1/budgets/{budget.id}", json={"limit": "4.50"})
    play.tick()

    assert raised.status_code == 200
    assert [state != "held" for state in states(play)] == [True, True, True, False]
    assert play.ledger(jobs[1]) == [("reserve", PRICE)]
    assert play.states(jobs[1])[:2] == ["held", "queued"]
    assert no_findings(play)


def test_what_is_held_goes_on_in_the_next_period_and_counts_there(play: Stage) -> None:
    cap(play, PRICE, "day", "hold", "Europe/Berlin")
    row = asked(play)
    before, midnight = datetime(2026, 3, 29, 21, 59, tzinfo=UTC), datetime(2026, 3, 29, 22, tzinfo=UTC)
    assert is_made(play, row, before)
    assert is_made(play, row, before)
    assert is_made(play, row, before)

    due(play, before)
    early = states(play)
    due(play, midnight)

    assert (early, states(play)) == (["queued", "held", "held"], ["queued", "queued", "held"])
    lines = play.sql("select reserved_at from ledger order by id")
    assert [line["reserved_at"] for line in lines] == [before, midnight]
    job = Job.of(play.sql("select * from jobs order by id offset 1 limit 1")[0])
    play.cancel(job)
    assert {line["reserved_at"] for line in play.sql("select * from ledger where job_id = :id", id=job.id)} == {
        midnight
    }


def test_a_bill_counts_in_the_period_that_let_the_job_go(play: Stage) -> None:
    cap(play, PRICE, "total", "hold")
    first, held = play.submit(), play.submit()
    let_go_at = play.now() + timedelta(hours=2)
    play.cancel(first)
    due(play, let_go_at)
    play.sql("update jobs set run_at = now() where id = :id", id=held.id)

    assert play.until(held).state == "succeeded"

    lines = play.sql("select entry, reserved_at from ledger where job_id = :id order by id", id=held.id)
    assert {(line["entry"], line["reserved_at"]) for line in lines} == {
        (entry, let_go_at) for entry in ("reserve", "release", "settle")
    }


def test_what_a_bill_leaves_of_an_estimate_is_room_for_what_waits(play: Stage) -> None:
    cap(play, PRICE, "total", "hold")
    first, second = play.submit(), play.submit()

    play.cancel(first)
    due(play)

    assert play.until(second).state == "succeeded"
    assert used(play) == PRICE
    assert no_findings(play)


def test_many_that_are_held_go_on_a_few_hundred_a_tick(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 2)
    budget = cap(play, PRICE, "total", "hold")
    for _ in range(6):
        play.submit()
    play.sql("update budgets set micros = :all where id = :id", all=6 * PRICE, id=budget.id)
    play.sql("update duties set due_at = now() where name = 'budgets'")

    held = []
    for _ in range(3):
        play.tick()
        held.append(states(play).count("held"))

    assert held == [3, 1, 0]


def test_who_comes_later_does_not_overtake_what_is_held(play: Stage) -> None:
    cap(play, PRICE, "total", "hold")
    first = play.submit()
    play.submit()
    play.cancel(first)

    play.submit()

    assert states(play) == ["canceled", "held", "held"]
    due(play)
    assert states(play) == ["canceled", "queued", "held"]


def test_a_dear_job_is_not_overtaken_by_cheaper_ones_that_came_later(play: Stage) -> None:
    cap(play, 2 * PRICE, "total", "hold")
    first = play.submit()
    play.submit(input=CLIP | {"duration": 10})
    play.submit()

    due(play)
    kept = states(play)
    play.cancel(first)
    due(play)

    assert kept == ["queued", "held", "held"]
    assert states(play) == ["canceled", "queued", "held"]


def test_what_is_held_is_let_go_when_the_budget_is_deleted(play: Stage, http: httpx.Client) -> None:
    budget = cap(play, PRICE, "total", "hold")
    for _ in range(3):
        play.submit()

    http.delete(f"/v1/budgets/{budget.id}")
    due(play)

    assert states(play) == ["queued"] * 3
    assert play.sql("select count(*) as n from ledger")[0]["n"] == 3


def test_what_costs_more_than_a_whole_budget_is_refused_and_keeps_nobody_waiting(play: Stage) -> None:
    budget = cap(play, PRICE - 1, "total", "hold")
    with pytest.raises(BudgetExhausted):
        play.submit()
    play.sql("update budgets set micros = :all", all=2 * PRICE)
    dear = play.submit(input=CLIP | {"duration": 10})
    small = play.submit()
    play.sql("update budgets set micros = :less where id = :id", less=PRICE, id=budget.id)
    play.cancel(dear)
    play.sql("update jobs set estimate = :dear where id = :id", dear=3 * PRICE, id=small.id)
    last = play.submit()

    due(play)

    assert (play.job(small).state, play.job(last).state) == ("held", "queued")


def test_a_held_job_is_canceled_and_costs_nothing(play: Stage) -> None:
    cap(play, 0, "total")
    play.sql("update budgets set over = 'hold', micros = :price", price=PRICE)
    play.submit()
    job = play.submit()

    assert play.cancel(job) == "canceled"

    assert play.ledger(job) == []
    assert no_findings(play)


def test_of_many_that_submit_at_once_those_without_room_are_held(play: Stage) -> None:
    cap(play, 3 * PRICE, "month", "hold")
    row, ready = asked(play), threading.Barrier(20)

    def submit(_: int) -> bool:
        ready.wait()
        return is_made(play, row)

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(submit, range(20)))

    assert sorted(states(play)) == ["held"] * 17 + ["queued"] * 3
    assert used(play) == 3 * PRICE


@pytest.mark.parametrize("over", ["refuse", "hold"])
def test_what_is_made_again_needs_room(play: Stage, http: httpx.Client, over: str) -> None:
    cap(play, PRICE, "total", over)
    job = play.submit()
    play.cancel(job)
    other = play.submit()
    again = f"/v1/jobs/{job.id}/retry"

    answer = http.post(again)

    if over == "refuse":
        assert (answer.status_code, answer.json()["code"]) == (402, "budget_exhausted")
        play.cancel(other)
        assert http.post(again).json()["state"] == "queued"
    else:
        assert (answer.status_code, answer.json()["state"]) == (200, "held")
        play.cancel(other)
        due(play)
        assert play.job(job).state == "queued"
    assert used(play) == PRICE
    assert no_findings(play)


@pytest.mark.parametrize(("over", "left"), [("refuse", "budget_exhausted"), ("hold", "held")])
def test_many_are_made_again_as_far_as_there_is_room(play: Stage, http: httpx.Client, over: str, left: str) -> None:
    jobs = [play.submit() for _ in range(5)]
    for job in jobs:
        play.cancel(job)
    cap(play, 2 * PRICE, "total", over)
    said = {"action": "retry", "ids": [str(job.id) for job in jobs]}

    foreseen = http.post("/v1/jobs/bulk", json=said | {"dry_run": True}).json()
    done = http.post("/v1/jobs/bulk", json=said).json()

    assert done["outcomes"] == foreseen["outcomes"] == {"retried": 2, left: 3}
    assert used(play) == 2 * PRICE
    assert no_findings(play)


def test_a_schedules_run_is_refused_with_its_reason(play: Stage, http: httpx.Client) -> None:
    cap(play, PRICE - 1)
    schedule = {"name": "nightly", "cron": "0 2 * * *", "template": BODY}
    made = http.post("/v1/schedules", json=schedule).json()

    run = http.post(f"/v1/schedules/{made['id']}/run").json()

    assert (run["outcome"], run["job_id"]) == ("refused", None)
    assert "the budget in all: of 1.499999 CNY" in run["why"]


def test_another_take_needs_room(play: Stage, http: httpx.Client) -> None:
    cap(play, PRICE)
    job = play.until(play.submit(review="required"), State.AWAITING_REVIEW)

    refused = http.post(f"/v1/jobs/{job.id}/reject", json={"comment": "no", "reroll": {"seed": 7}})

    assert (refused.status_code, refused.json()["code"]) == (402, "budget_exhausted")
    assert play.job(job).state == "awaiting_review"


def items(n: int, **more: Any) -> dict[str, Any]:
    """Rows of a batch, each another job."""
    return {"items": [BODY | {"custom_id": f"row-{i}"} | more for i in range(n)]}


def test_a_batch_that_does_not_fit_is_refused_as_a_whole(play: Stage, http: httpx.Client) -> None:
    cap(play, 4 * PRICE)

    draft = http.post("/v1/batches", json=items(5)).json()
    refused = http.post(f"/v1/batches/{draft['id']}/commit")
    fits = http.post("/v1/batches?commit=true", json=items(4)).json()

    assert "of 6.00 CNY 6.00 CNY are left; this may cost 7.50 CNY" in draft["report"]["budget"]
    assert (refused.status_code, refused.json()["budget"]["estimate"]) == (402, "7.50")
    assert (fits["rows"]["made"], fits["report"]["budget"]) == (4, None)
    assert used(play) == 4 * PRICE


def test_of_a_batch_the_first_rows_that_fit_are_queued_and_the_others_held(play: Stage, http: httpx.Client) -> None:
    cap(play, 3 * PRICE, "month", "hold")
    play.submit()

    draft = http.post("/v1/batches", json=items(4)).json()
    committed = http.post(f"/v1/batches/{draft['id']}/commit").json()

    assert draft["report"]["budget"].endswith("this may cost 6.00 CNY, so what does not fit is held")
    assert committed["jobs"]["by_state"] == {"queued": 2, "held": 2}
    assert states(play) == ["queued", "queued", "queued", "held", "held"]
    assert used(play) == 3 * PRICE
    assert no_findings(play)


def test_a_row_without_a_price_keeps_a_batch_from_being_made(play: Stage, http: httpx.Client) -> None:
    cap(play, 10 * PRICE, over="hold")
    draft = http.post("/v1/batches", json=items(2)).json()
    play.sql("update batch_rows set estimate = null where n = 2")

    refused = http.post(f"/v1/batches/{draft['id']}/commit")

    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "price_unknown")
    assert BODY["model"] in refused.json()["detail"]
    assert states(play) == []


def told(play: Stage) -> list[tuple[str, str]]:
    """The events of budgets, in order."""
    rows = play.sql("select type, entered from events where budget_id is not null order by id")
    return [(row["type"], row["entered"]) for row in rows]


def test_each_threshold_is_told_of_once_a_period(play: Stage) -> None:
    cap(play, 10 * PRICE, "day", zone="Asia/Shanghai")
    row, day = asked(play), datetime(2026, 5, 5, 10, tzinfo=UTC)
    found = []
    for made in (4, 1, 3, 2):
        for _ in range(made):
            assert is_made(play, row, day)
        due(play, day)
        due(play, day)
        found.append(told(play))
    for _ in range(10):
        assert is_made(play, row, day + timedelta(days=1))
    due(play, day + timedelta(days=1))

    first = [("budget.threshold", "50 %"), ("budget.threshold", "80 %"), ("budget.exhausted", "100 %")]
    assert found == [[], first[:1], first[:2], first]
    assert told(play) == first * 2
    sequences = play.sql("select sequence from events where budget_id is not null order by id")
    assert [row["sequence"] for row in sequences] == [*range(1, 7)]


def test_a_threshold_that_was_told_of_is_not_told_again_when_room_comes_and_goes(play: Stage) -> None:
    cap(play, 2 * PRICE)
    job = play.submit()
    due(play)
    play.cancel(job)
    due(play)
    play.submit()
    due(play)

    assert told(play) == [("budget.threshold", "50 %")]


@pytest.mark.parametrize(
    ("period", "zone", "at", "begins", "ends"),
    [
        # 23 hours: clocks go forward in Berlin
        ("day", "Europe/Berlin", "2026-03-29T10:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        # 25 hours
        ("day", "Europe/Berlin", "2026-10-25T22:59Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        ("day", "Europe/Berlin", "2026-10-25T23:00Z", "2026-10-25T23:00Z", "2026-10-26T23:00Z"),
        # midnight is skipped: the day begins at one o'clock
        ("day", "Africa/Cairo", "2026-04-24T12:00Z", "2026-04-23T22:00Z", "2026-04-24T21:00Z"),
        ("day", "Asia/Kathmandu", "2026-01-01T00:00Z", "2025-12-31T18:15Z", "2026-01-01T18:15Z"),
        ("month", "Asia/Shanghai", "2026-12-31T16:00Z", "2026-12-31T16:00Z", "2027-01-31T16:00Z"),
        ("month", "America/New_York", "2026-03-15T00:00Z", "2026-03-01T05:00Z", "2026-04-01T04:00Z"),
    ],
)
def test_a_period_begins_and_ends_at_midnight_in_its_zone(
    period: str, zone: str, at: str, begins: str, ends: str
) -> None:
    span = budgets.span(period, zone, datetime.fromisoformat(at))

    assert span.begins_at == datetime.fromisoformat(begins)
    assert span.ends_at == datetime.fromisoformat(ends)


def test_what_was_reserved_before_midnight_counts_in_that_day(play: Stage) -> None:
    cap(play, PRICE, "day", zone="Europe/Berlin")
    midnight = datetime(2026, 10, 25, 23, tzinfo=UTC)  # of the day that has 25 hours
    row = asked(play)

    instants = [datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 22, 59, 59, tzinfo=UTC), midnight]
    assert [is_made(play, row, at) for at in instants] == [True, False, True]


@pytest.mark.parametrize(
    ("said", "pointer"),
    [
        ({"period": "week", "limit": "1.00"}, "/period"),
        ({"period": "day", "limit": 7}, "/limit"),
        ({"period": "day", "limit": "-1"}, "/limit"),
        ({"period": "day", "limit": "0.0000001"}, "/limit"),
        ({"period": "day", "limit": "1e3"}, "/limit"),
        ({"period": "day"}, "/limit"),
        ({"period": "day", "limit": "1.00", "time_zone": "UTC+8"}, "/time_zone"),
        ({"period": "day", "limit": "1.00", "over": "warn"}, "/over"),
    ],
)
def test_a_budget_that_says_something_else_is_refused(http: httpx.Client, said: dict[str, Any], pointer: str) -> None:
    refused = http.post("/v1/budgets", json=said)

    assert refused.status_code == 422, refused.text
    assert [fault["pointer"] for fault in refused.json()["errors"]] == [pointer]


def test_a_budget_is_set_read_changed_and_deleted(play: Stage, http: httpx.Client) -> None:
    made = http.post("/v1/budgets", json={"period": "month", "limit": "7.5"})
    http.post("/v1/jobs", json=BODY)

    changed = http.patch(f"/v1/budgets/{made.json()['id']}", json={"limit": "0.10"})
    listed = http.get("/v1/budgets").json()["data"]
    refused = http.post("/v1/jobs", json=BODY)
    deleted = http.delete(f"/v1/budgets/{made.json()['id']}")

    assert (made.status_code, made.json()["limit"], made.json()["over"]) == (201, "7.50", "refuse")
    assert made.json()["time_zone"] == play.project.time_zone
    assert (changed.json()["limit"], changed.json()["used"], changed.json()["left"]) == ("0.10", "1.50", "-1.40")
    assert listed == [changed.json()]
    assert (refused.status_code, deleted.status_code) == (402, 204)
    assert http.get("/v1/budgets").json()["data"] == []
    assert http.post("/v1/jobs", json=BODY).status_code == 201


def test_the_ledger_is_read_page_by_page(play: Stage, http: httpx.Client) -> None:
    jobs = [play.submit() for _ in range(3)]
    play.cancel(jobs[0])

    pages, cursor = [], None
    while not pages or cursor:
        page = http.get("/v1/ledger", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        pages.append(page["data"])
        cursor = page["next_cursor"]

    lines = [line for page in pages for line in page]
    assert [len(page) for page in pages] == [3, 1]
    assert [(line["entry"], line["amount"]) for line in lines] == [("release", "-1.50"), *3 * [("reserve", "1.50")]]
    of_one = http.get("/v1/ledger", params={"job": str(jobs[0].id)}).json()["data"]
    assert [line["job_id"] for line in of_one] == [str(jobs[0].id)] * 2
    since = http.get("/v1/ledger", params={"since": lines[0]["at"]}).json()["data"]
    until = http.get("/v1/ledger", params={"until": lines[-1]["at"]}).json()["data"]
    assert (len(since), len(until)) == (1, 0)


def test_the_doctor_says_which_budget_is_used_up_and_what_it_holds(play: Stage) -> None:
    exam = Exam(play.ctx.settings, play.ctx.catalog, play.ctx.engine, play.ctx.bucket)
    cap(play, PRICE, "total", "hold")
    well = list(rows.spending(exam))
    play.submit()
    play.submit()

    (found,) = rows.spending(exam)

    assert [it.what for it in well] == ["no budget is used up"]
    assert found.verdict == Verdict.WARNING
    assert found.what == (
        "project spring-campaign: the budget in all: of 1.50 CNY 0.00 CNY are left; 1 of its jobs are held for a budget"
    )


def test_a_budget_is_set_listed_and_deleted_on_the_command_line(noria: Shell, api: Served) -> None:
    nothing = noria("budgets", "list")
    made = noria("budgets", "set", "day", "2", "--json").json
    raised = noria("budgets", "set", "day", "7.5", "--over", "hold", "--json").json
    listed = noria("budgets", "list")
    deleted = noria("budgets", "delete", "day")
    unknown = noria("budgets", "delete", "month")

    assert (nothing.out, nothing.err.strip()) == ("", "No budgets.")
    assert (made["limit"], made["over"], raised["limit"], raised["over"]) == ("2.00", "refuse", "7.50", "hold")
    assert made["id"] == raised["id"]
    assert "day     0.00  7.50  hold" in listed.out
    assert max(len(line) for line in listed.out.splitlines()) <= 80
    assert (deleted.code, unknown.code, noria("budgets", "list", "--json").json) == (0, 5, [])


def test_endpoints_and_the_feed_are_told_of_thresholds(play: Stage, http: httpx.Client) -> None:
    endpoint = http.post("/v1/webhook-endpoints", json={"url": "http://127.0.0.1:9/hooks"}).json()
    cap(play, 2 * PRICE)

    play.submit()
    due(play)

    [body] = [json.loads(row["body"]) for row in play.sql("select body from deliveries where endpoint_id is not null")]
    assert (body["type"], body["data"]["limit"], body["data"]["used"]) == ("budget.threshold", "3.00", "1.50")
    [sent] = http.get(f"/v1/webhook-endpoints/{endpoint['id']}/deliveries").json()["data"]
    assert sent["type"] == "budget.threshold"
    # once no older transaction of the whole server is open
    feed = eventually(lambda: [one for one in http.get("/v1/events").json()["data"] if one["type"] == sent["type"]])
    assert [(one["data"]["object"], one["data"]["state"]) for one in feed] == [("budget", "50 %")]


def test_an_endpoint_is_told_what_becomes_of_each_row_of_a_batch(play: Stage, http: httpx.Client) -> None:
    http.post("/v1/webhook-endpoints", json={"url": "http://127.0.0.1:9/hooks", "events": ["job.*"]})
    cap(play, PRICE, over="hold")
    rows = [{"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": CLIP, "custom_id": n} for n in "ab"]

    http.post("/v1/batches?commit=true", json={"items": rows})

    told_of = play.sql("select type from deliveries join events on events.id = event_id order by events.id")
    assert sorted(row["type"] for row in told_of) == ["job.held", "job.queued"]


def test_jobs_that_fit_into_no_budget_keep_nobody_waiting_however_many_they_are(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 2)
    with play.ctx.engine.begin() as connection:
        made = spending.make(connection, play.project, Wanted("total", 100 * PRICE, "hold", None))
    for _ in range(2):
        dear = play.submit()
        play.sql("update ledger set micros = 0 where job_id = :id", id=dear.id)
        waits = "state = 'held', held_for = 'budget', held_from = 'queued', run_at = null"
        play.sql(f"update jobs set {waits}, estimate = :dear where id = :id", id=dear.id, dear=3 * PRICE)
    play.sql("update ledger_sums set micros = 0")
    play.sql("update budgets set micros = :less where id = :id", less=PRICE, id=made.id)
    last = play.submit()
    assert play.job(last).state == State.HELD

    with play.ctx.engine.begin() as connection:
        bulk.let_go_within_budgets(connection, play.now())

    assert play.job(last).state == State.QUEUED
