"""Usage: what calls used and cost, by what they were for, and the roll-up beside the ledger that it is made of."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest
from serving import served
from sqlalchemy import text
from stage import Stage

from ops import audit
from worker import keys, money
from worker.errors import InvalidInput
from worker.jobs import usage
from worker.jobs.usage import Question
from worker.money import Bill, budgets
from worker.states import State
from worker.tables import Job

WORDS: dict[str, Any] = {
    "kind": "text",
    "model": "qwen-flash",
    "input": {"prompt": "What does a heron eat?", "max_tokens": 50},
}


@pytest.fixture
def http(environment: dict[str, str], play: Stage) -> Iterator[httpx.Client]:
    with served(environment) as there, there.http(there.key(play.project.name)) as client:
        yield client


def asked(play: Stage, *group_by: str, **narrowed: Any) -> list[Any]:
    """The groups of the stage's project, in all the days around now."""
    today = play.now().date()
    question = Question(today - timedelta(days=2), today + timedelta(days=2), group_by, **narrowed)
    with play.ctx.engine.connect() as connection:
        return usage.report(connection, keys.project(connection, play.project.name), question).data


def added_up(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        budgets.add_up(connection, play.now())


def total(play: Stage) -> dict[str, int]:
    """What the roll-up has of all, in micro-CNY."""
    (row,) = play.sql(
        "select sum(settled) as settled, sum(unknown) as unknown, sum(reserved) as reserved from usage_sums"
    )
    return {name: int(value or 0) for name, value in row.items()}


def ledger(play: Stage) -> int:
    (row,) = play.sql("select coalesce(sum(micros), 0) as micros from ledger")
    return int(row["micros"])


def test_a_call_counts_with_its_tokens_in_the_groups_it_belongs_to(play: Stage) -> None:
    play.until(play.submit(**WORDS, metadata={"sku": "A17"}))
    clip = play.until(play.submit())

    by_model = {line.model: line for line in asked(play, "model")}

    words = by_model["qwen-flash"]
    assert (words.jobs, words.calls, words.settled) == (1, 1, money.shown(_cost(play, "text")))
    assert words.input_tokens > 0
    assert words.output_tokens > 0
    assert (by_model[clip.model].seconds, by_model[clip.model].unknown) == (5.0, "0.00")
    assert [line.begins_on for line in asked(play, "day")] == [_today(play)]
    assert {line.kind for line in asked(play, "kind")} == {"text", "text-to-video"}


def test_what_is_reserved_and_what_nobody_knows_stand_apart_from_what_is_settled(play: Stage) -> None:
    waiting = play.submit()

    (line,) = asked(play, "day")
    assert (line.reserved, line.settled, line.jobs, line.calls) == (money.shown(waiting.estimate), "0.00", 1, 0)

    attempt = _attempt(play, waiting)
    with play.ctx.engine.begin() as connection:
        money.pay(connection, waiting, attempt, Bill("unknown"), play.now())
    (line,) = asked(play, "day")
    assert (line.reserved, line.unknown, line.settled, line.calls) == ("0.00", money.shown(waiting.estimate), "0.00", 1)

    with play.ctx.engine.begin() as connection:
        money.book(connection, waiting, attempt, Bill("yes", 1_250_000, {"seconds": 5}), play.now())
    (line,) = asked(play, "day")
    assert (line.unknown, line.settled, line.seconds, line.calls) == ("0.00", "1.25", 5.0, 1)

    with play.ctx.engine.begin() as connection:
        money.book(connection, waiting, attempt, Bill("no"), play.now())
    (line,) = asked(play, "day")
    assert (line.unknown, line.settled, line.seconds, line.calls) == ("0.00", "0.00", 0.0, 0)


def test_a_call_whose_price_nobody_knows_is_counted_with_what_it_used(play: Stage) -> None:
    job = play.submit()
    play.sql("delete from ledger; update jobs set estimate = null")
    with play.ctx.engine.begin() as connection:
        unpriced = job.changed({"estimate": None})
        money.book(connection, unpriced, _attempt(play, job), Bill("yes", None, {"seconds": 5}), play.now())

    (line,) = [line for line in asked(play, "model") if line.calls]

    assert (line.settled, line.unknown, line.seconds, line.calls) == ("0.00", "0.00", 5.0, 1)


@pytest.mark.parametrize("said", ["many", True, -1, 1e300, float("nan"), float("inf"), {"a": 1}, None])
def test_what_cannot_be_counted_fails_no_booking(play: Stage, said: Any) -> None:
    job = play.submit(**WORDS)
    usage_of_call = {"input_tokens": said, "output_tokens": 7}

    with play.ctx.engine.begin() as connection:
        money.pay(connection, job, _attempt(play, job), Bill("yes", 9, usage_of_call), play.now())

    (line,) = asked(play, "day")
    assert (line.input_tokens, line.output_tokens, line.calls) == (0, 7, 1)


def test_a_zone_that_postgres_does_not_know_is_refused(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.clock, "zone_fault", lambda _: None)  # as of a newer list of zones than Postgres has
    with play.ctx.engine.begin() as connection, pytest.raises(InvalidInput, match="Mars"):
        keys.set_project(connection, play.project.name, time_zone="Mars/Olympus")


def test_parts_of_the_roll_up_say_the_same_when_they_are_added_up(play: Stage) -> None:
    for _ in range(2):
        play.until(play.submit(**WORDS))
    before = asked(play, "day", "model", "kind", "batch", "schedule")

    added_up(play)
    once = play.sql("select count(*) as n from usage_sums")[0]["n"]
    play.until(play.submit(**WORDS))
    added_up(play)

    assert before != asked(play, "day", "model", "kind", "batch", "schedule")
    assert asked(play, "model")[0].jobs == 3
    assert (once, play.sql("select count(*) as n from usage_sums")[0]["n"]) == (1, 1)


def test_the_roll_up_is_the_ledger(play: Stage) -> None:
    for job in (play.submit(**WORDS), play.submit(), play.submit(**WORDS)):
        play.until(job)
    play.submit()

    added_up(play)

    assert sum(total(play).values()) == ledger(play) > 0
    assert _findings(play) == []


def test_the_audit_finds_a_roll_up_that_is_not_the_ledger(play: Stage) -> None:
    play.until(play.submit(**WORDS))

    play.sql("update usage_sums set settled = settled + 1")

    assert [finding.invariant for finding in _findings(play)] == ["M"]


def test_usage_is_grouped_by_the_metadata_that_the_project_has_chosen_from_then_on(play: Stage) -> None:
    play.submit(metadata={"sku": "A16", "campaign": "spring"})
    with play.ctx.engine.begin() as connection:
        keys.set_usage_keys(connection, play.project.name, ["sku"])
    for sku in ("A17", "A17", "A18"):
        play.submit(metadata={"sku": sku, "campaign": "spring"})

    lines = asked(play, "metadata.sku")

    assert {line.metadata["sku"]: line.jobs for line in lines} == {None: 1, "A17": 2, "A18": 1}
    assert [line.jobs for line in asked(play, "day", metadata={"sku": "A17"})] == [2]
    with pytest.raises(InvalidInput) as refused:
        asked(play, "metadata.campaign")
    assert "noria projects set" in refused.value.faults[0].message


def test_a_day_begins_at_midnight_in_the_projects_zone(play: Stage) -> None:
    play.sql("update projects set time_zone = 'Asia/Shanghai'")
    job = play.submit()
    late = datetime(2026, 11, 20, 16, 30, tzinfo=UTC)  # half past midnight of the 21st there

    play.sql("update ledger set reserved_at = :late where job_id = :job", late=late, job=job.id)

    (row,) = play.sql("select day from usage_sums group by day having sum(reserved) <> 0")
    assert row["day"] == date(2026, 11, 21)


def test_a_run_that_took_twice_the_tokens_of_those_before_is_marked(play: Stage) -> None:
    schedule = play.sql(
        "insert into schedules (project_id, name, cron, time_zone, template) values"
        " (:project, 'nightly', '0 2 * * *', 'UTC', '{}') returning id",
        project=play.project.id,
    )[0]["id"]
    for night, tokens in enumerate((100, 110, 90, 330)):
        _ran(play, schedule, night, tokens)

    lines = asked(play, "run", schedule=schedule)

    assert [(line.input_tokens, line.grew) for line in lines] == [(330, 3.3), (90, None), (110, None), (100, None)]


def test_a_run_is_of_the_day_that_it_is_in_the_projects_zone(play: Stage) -> None:
    schedule = play.sql(
        "insert into schedules (project_id, name, cron, time_zone, template) values"
        " (:project, 'nightly', '0 2 * * *', 'UTC', '{}') returning id",
        project=play.project.id,
    )[0]["id"]
    _ran(play, schedule, 0, 100)
    play.sql("update runs set fire_at = '2026-11-20T18:00:00Z'")  # two at night of the 21st in Shanghai
    the_21st = date(2026, 11, 21)

    with play.ctx.engine.connect() as connection:
        found = usage.report(connection, play.project, Question(the_21st, the_21st, ("run",), schedule=schedule))

    assert [line.input_tokens for line in found.data] == [100]


def test_groups_that_there_are_not_are_refused(http: httpx.Client) -> None:
    answers = [
        http.get("/v1/usage", params=params)
        for params in (
            {"group_by": "colour"},
            {"group_by": "day,week"},
            {"group_by": "kind,kind"},
            {"group_by": "run"},
            {"group_by": "run", "schedule": str(uuid.uuid4()), "model": "qwen-flash"},
            {"since": "2026-11-02", "until": "2026-11-01"},
            {"metadata.sku": "A17"},
            {"modell": "qwen-flash"},
        )
    ]

    assert [answer.status_code for answer in answers] == [422] * 8
    assert [answer.json()["errors"][0]["code"] for answer in answers] == [
        *("unknown_group", "one_period", "group_twice", "run_of_a_schedule", "run_of_a_schedule"),
        *("after_until", "usage_key_not_kept", "unknown_filter"),
    ]


def test_the_days_before_the_first_one_are_those_that_there_are() -> None:
    first = date(1, 1, 1)

    assert usage.days(None, date(1, 1, 5), first) == (first, date(1, 1, 5))
    assert usage.days(None, None, date(2026, 3, 1)) == (date(2026, 1, 31), date(2026, 3, 1))


def test_usage_comes_as_csv_with_the_same_groups(play: Stage, http: httpx.Client) -> None:
    play.until(play.submit(**WORDS))
    shown = http.get("/v1/usage", params={"group_by": "day,model"}).json()

    answer = http.get("/v1/usage", params={"group_by": "day,model"}, headers={"accept": "text/csv"})

    (row,) = csv.DictReader(answer.text.splitlines())
    assert answer.headers["content-type"].startswith("text/csv")
    assert (row["day"], row["model"], row["settled"]) == (
        shown["data"][0]["begins_on"],
        "qwen-flash",
        shown["total"]["settled"],
    )


@pytest.mark.parametrize(
    ("model", "most", "advice"),
    [
        ("qwen-plus", 50, ["cheaper_model"]),  # a label
        ("qwen-plus", 4000, []),  # a long text
        ("qwen-flash", 50, []),  # there is none that is lighter
    ],
)
def test_a_price_names_the_cheaper_model_that_does_as_well_for_a_short_text(
    http: httpx.Client, model: str, most: int, advice: list[str]
) -> None:
    body = {"kind": "text", "model": model, "input": {"prompt": "Is this a heron or a stork?", "max_tokens": most}}

    priced = http.post("/v1/jobs", params={"dry_run": True}, json=body).json()
    draft = http.post("/v1/batches", json={"items": [body, body]}).json()
    made = http.post("/v1/jobs", json=body).json()

    assert [warning["code"] for warning in priced["warnings"]] == advice
    assert [warning["code"] for warning in draft["report"]["warnings"]] == advice
    assert all("qwen-flash does as well" in warning["message"] for warning in priced["warnings"])
    assert made["warnings"] == []


def test_an_operator_sees_what_each_project_used(environment: dict[str, str], play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "summer")
    play.submit()
    play.submit(project=other)
    play.submit(project=other)

    with served(environment) as there:
        with there.http(there.key(None)) as operator:
            seen = operator.get("/v1/usage", params={"group_by": "project"}).json()
        with there.http(there.key("summer")) as summer:
            own = summer.get("/v1/usage", params={"group_by": "project"}).json()

    assert {line["project"]: line["jobs"] for line in seen["data"]} == {"summer": 2, play.project.name: 1}
    assert [(line["project"], line["jobs"]) for line in own["data"]] == [("summer", 2)]


def test_another_projects_schedule_has_no_runs(environment: dict[str, str], play: Stage) -> None:
    schedule = play.sql(
        "insert into schedules (project_id, name, cron, time_zone, template) values"
        " (:project, 'nightly', '0 2 * * *', 'UTC', '{}') returning id",
        project=play.project.id,
    )[0]["id"]
    _ran(play, schedule, 0, 100)

    with served(environment) as there, there.http(there.key("summer")) as summer:
        seen = summer.get("/v1/usage", params={"group_by": "run", "schedule": str(schedule)}).json()

    assert seen["data"] == []


def test_thirty_days_that_would_begin_before_all_days_begin_with_the_first() -> None:
    assert usage.days(None, date(1, 1, 5), date(2026, 11, 27)) == (date.min, date(1, 1, 5))


def _ran(play: Stage, schedule: uuid.UUID, night: int, tokens: int) -> None:
    """A run of that night, whose job's call read so many tokens."""
    job = play.submit(**WORDS)
    with play.ctx.engine.begin() as connection:
        money.pay(connection, job, _attempt(play, job), Bill("yes", 7, {"input_tokens": tokens}), play.now())
        connection.execute(
            text(
                "insert into runs (schedule_id, project_id, fire_at, trigger, outcome, job_id)"
                " values (:schedule, :project, now() - interval '1 day' + make_interval(hours => :night), 'clock',"
                "  'submitted', :job)"
            ),
            {"schedule": schedule, "project": play.project.id, "night": night, "job": job.id},
        )


def _attempt(play: Stage, job: Job) -> uuid.UUID:
    """A call of the job's, on record."""
    (row,) = play.sql(
        "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash, closed_at)"
        " select id, project_id, 1, 'o', 'a', 'cn-beijing', model, '', now() from jobs where id = :job returning id",
        job=job.id,
    )
    attempt: uuid.UUID = row["id"]
    return attempt


def _cost(play: Stage, kind: str) -> int:
    (row,) = play.sql("select cost from jobs where kind = :kind and state = :state", kind=kind, state=State.SUCCEEDED)
    return int(row["cost"])


def _today(play: Stage) -> date:
    (row,) = play.sql("select (now() at time zone time_zone)::date as today from projects limit 1")
    today: date = row["today"]
    return today


def _findings(play: Stage) -> list[audit.Finding]:
    with play.ctx.engine.connect() as connection:
        return audit.look(connection)
