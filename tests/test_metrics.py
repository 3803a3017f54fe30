"""What an alarm watches: figures that are true, for who has the token, and no figure where there is none to be had."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, served
from sqlalchemy import create_engine, text
from stage import Stage

from worker import broker, work
from worker.jobs import metrics

TOKEN = "watch-me"


@pytest.fixture
def api(environment: dict[str, str], play: Stage) -> Iterator[Served]:
    with served(environment, metrics_token=TOKEN) as made:
        yield made


def read(api: Served, token: str | None = TOKEN) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.get(f"{api.url}/metrics", headers=headers, trust_env=False)


def figures(api: Served) -> dict[str, dict[tuple[str, ...], float]]:
    """Every figure, by the values of its labels."""
    answer = read(api)
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples} for family in families
    }


@pytest.mark.parametrize("token", [None, "watch", "watch-me-too"])
def test_who_has_not_the_token_is_told_nothing(api: Served, token: str | None) -> None:
    answer = read(api, token)

    assert answer.status_code == 401
    assert "noria_" not in answer.text


def test_without_a_token_there_are_none(environment: dict[str, str]) -> None:
    with served(environment) as api:
        assert read(api).status_code == 404
        assert read(api, "x").status_code == 404


def test_a_database_that_is_away_fails_the_scrape(api: Served) -> None:
    context = api.app.state.context
    away = create_engine("postgresql+psycopg://noria@127.0.0.1:1/noria", connect_args={"connect_timeout": 1})
    object.__setattr__(context, "beside", away)

    answer = read(api)

    assert answer.status_code == 503
    assert "noria_" not in answer.text


def test_what_waits_runs_and_is_held_is_counted(api: Served, play: Stage) -> None:
    name = play.project.name
    play.until(play.submit())
    play.submit()
    play.tick()  # which admits it
    late, held, copied = (play.submit() for _ in range(3))
    play.sql("update jobs set created_at = now() - interval '1 hour' where id = :id", id=late.id)
    play.sql("update jobs set state = 'held', held_for = 'budget', run_at = null where id = :id", id=held.id)
    play.sql(
        "update jobs set state = 'copying', links_expire_at = now() + interval '1 hour', run_at = now() where id = :id",
        id=copied.id,
    )

    found = figures(api)

    assert found["noria_held"] == {("budget",): 1}
    assert found["noria_uncertain"] == {(): 0}
    assert found["noria_links_dying"] == {(): 1}
    waiting = found["noria_oldest_waiting_seconds"]["wan2.5-t2v-preview", name]
    assert 3600 <= waiting < 3700
    lane = next(of for of in found["noria_lane_queued"] if of[0] == "wan2.5-t2v-preview")
    assert found["noria_lane_queued"][lane] == 1
    assert found["noria_lane_used"][lane] == 1
    assert found["noria_lane_allowed"][lane] == found["noria_lane_limit"][lane] > 0
    assert found["noria_spent_today_cny"] == {(name,): 1.5}
    assert found["noria_recent_outputs"] == {(): 1}
    assert found["noria_recent_output_bytes"][()] > 1000
    assert 0 < found["noria_recent_copy_seconds"][()] < 60
    assert found["noria_recent_calls"]["accepted", "200"] == 1


def test_what_no_worker_has_begun_is_counted_by_the_queue_that_works_it(api: Served, play: Stage) -> None:
    play.until(play.submit())
    assert set(figures(api)["noria_backlog"].values()) == {0}
    assert {queue for _, queue in figures(api)["noria_backlog"]} == {*broker.QUEUES} - {"tick"}
    at_each = {key: play.submit() for key in work.WORK}
    for (mode, state), job in at_each.items():
        play.sql(
            "update jobs set mode = :mode, state = :state, run_at = now() where id = :id",
            mode=mode,
            state=state,
            id=job.id,
        )
    queues = Counter(wants.group.queue for wants in work.WORK.values() if wants.group is not work.LOOKS)

    assert _backlog(api, "none") == queues
    assert _backlog(api, "sent") == {}

    play.sql("update jobs set claimed = 'sent', run_at = now() + interval '1 minute' where finished_at is null")
    assert _backlog(api, "sent") == queues
    assert _backlog(api, "none") == {}

    play.sql("update jobs set claimed = 'taken' where finished_at is null")
    assert _backlog(api, "sent") == _backlog(api, "none") == {}, "a worker has them"

    play.sql("update jobs set run_at = now() - interval '1 second' where finished_at is null")
    assert _backlog(api, "none") == queues, "it had them"

    play.sql("update jobs set claimed = null, run_at = now() + interval '1 minute' where finished_at is null")
    assert _backlog(api, "none") == {}, "they are not due"


def test_webhooks_that_no_worker_has_begun_are_counted(api: Served, play: Stage) -> None:
    play.submit(webhook_url="https://example.com/x", webhook_events=["job.queued"])

    assert _backlog(api, "none") == {"webhook": 1}
    play.tick()
    assert "webhook" in _backlog(api, "sent")
    assert _backlog(api, "none") == {}


def _backlog(api: Served, message: str) -> dict[str, float]:
    found = figures(api)["noria_backlog"]
    return {queue: rows for (of, queue), rows in found.items() if of == message and rows}


def test_webhooks_that_are_not_taken_are_counted(api: Served, play: Stage) -> None:
    play.submit(webhook_url="https://example.com/x", webhook_events=["job.queued"])
    play.sql("update deliveries set tries = 2")

    found = figures(api)

    assert found["noria_deliveries_waiting"] == found["noria_deliveries_failing"] == {(): 1}


def test_an_endpoint_that_was_disabled_is_counted(api: Served, play: Stage) -> None:
    with api.http(api.key(play.project.name)) as http:
        assert http.post("/v1/webhook-endpoints", json={"url": "https://example.com/x"}).status_code == 201
    assert figures(api)["noria_endpoints_disabled"] == {(): 0}

    play.sql("update webhook_endpoints set disabled_at = now(), disabled_why = 'gone'")

    assert figures(api)["noria_endpoints_disabled"] == {(): 1}


def test_a_clock_that_stands_still_is_seen(api: Served, play: Stage) -> None:
    play.tick()
    assert figures(api)["noria_tick_age_seconds"][()] < 5

    play.sql("update duties set due_at = now() - interval '10 minutes'")
    assert 600 <= figures(api)["noria_tick_age_seconds"][()] < 700

    play.sql("delete from duties")
    assert figures(api)["noria_tick_age_seconds"][()] == math.inf, "it has never ticked"


@pytest.mark.parametrize("why", [None, "AccessDenied.Unpurchased"], ids=["by a person", "by the provider's refusal"])
def test_a_lane_that_waits_for_a_person_is_seen(api: Served, play: Stage, why: str | None) -> None:
    play.sql("update lanes set paused_at = now(), paused_why = :why where model = 'qwen-plus'", why=why)

    stopped = figures(api)["noria_lane_stopped"]

    assert {model for (model, _, _), figure in stopped.items() if figure} == {"qwen-plus"}


def test_a_stopped_account_is_seen(api: Served, play: Stage) -> None:
    assert set(figures(api)["noria_lane_stopped"].values()) == {0}

    play.sql("update owners set stopped_at = now(), stopped_until = now() + interval '5 minutes', stopped_why = 'x'")

    assert set(figures(api)["noria_lane_stopped"].values()) == {1}


def test_a_name_of_any_form_is_a_label(api: Served, play: Stage) -> None:
    play.submit()
    play.sql("update jobs set model = E'a\"b\\\\c\\nd'")

    assert any(model == 'a"b\\c\nd' for model, _ in figures(api)["noria_oldest_waiting_seconds"])


@pytest.mark.parametrize(
    "statement", [row[-1] for row in metrics._STATEMENTS], ids=[row[0] for row in metrics._STATEMENTS]
)
def test_no_figure_reads_a_whole_table_of_what_is_done(play: Stage, statement: object) -> None:
    """By indexes that hold what is unfinished, or by the last minutes."""
    values = {"now": play.now(), "recent": metrics.RECENT, "soon": metrics.SOON}
    with play.ctx.engine.connect() as connection:
        connection.execute(text("set enable_seqscan = off"))
        plan = "\n".join(connection.execute(text(f"explain {statement}"), values).scalars())
        connection.execute(text("reset enable_seqscan"))

    for table in ("jobs", "attempts", "outputs", "deliveries", "events"):
        assert f"Seq Scan on {table}" not in plan
    for index in ("ix_jobs_groups", "ix_jobs_listing", "jobs_pkey", "ix_jobs_batch "):
        assert index not in plan, "it grows with what is done"
