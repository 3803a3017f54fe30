"""The feed as a stream: each event once, in the feed's order, soon, and within bounds."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import httpx_sse
import pytest
from psycopg import Connection, sql
from serving import CLIP, PATIENCE, Served, eventually, served
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from test_feed import START, make, read, write

from api import streams
from api.client import Client
from api.limits import Gate
from ops import cli
from worker import keys, tick
from worker.tables import Project
from worker.webhooks import feed

SSE = {"accept": "text/event-stream"}
# every connection of the API to the database is lost
LOST = """
select pg_terminate_backend(pid) from pg_stat_activity
 where datname = current_database() and application_name = 'noria' and pid <> pg_backend_pid()
"""
MANY = """
insert into events (job_id, project_id, sequence, type, entered, why)
select :job, :project, n, 'job.queued', 'queued', repeat('x', 1000) from generate_series(1, :many) as n
"""


@pytest.fixture
def project(api: Served) -> Project:
    with api.engine.begin() as connection:
        return keys.create_project(connection, "spring")


@contextmanager
def stream(http: httpx.Client, after: str = "") -> Iterator[Iterator[httpx_sse.ServerSentEvent]]:
    """The events of one stream; heartbeats are left out."""
    headers = {"last-event-id": after} if after else {}
    with httpx_sse.connect_sse(http, "GET", "/v1/events", headers=headers) as source:
        yield (event for event in source.iter_sse() if event.data)


def watched(api: Served) -> int:
    return len(api.app.state.context.watch)


def test_a_stream_gives_what_was_and_then_what_comes_as_the_pages_do(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        job = http.post("/v1/jobs", json=CLIP).json()
        with stream(http) as events:
            first = next(events)
            http.post(job["urls"]["cancel"])
            second = next(events)
        page = http.get("/v1/events").json()["data"]

    assert [first.json(), second.json()] == page
    assert [(event.event, event.id) for event in (first, second)] == [(one["type"], one["cursor"]) for one in page]


@pytest.mark.parametrize("by", ["header", "query"])
def test_a_stream_is_taken_up_after_the_last_event_that_was_seen(api: Served, by: str) -> None:
    with api.http(api.key("spring")) as http:
        made = [http.post("/v1/jobs", json=CLIP).json()["id"] for _ in range(3)]
        page = eventually(lambda: _of(http.get("/v1/events").json()["data"], 3))
        cursor = page[0]["cursor"]
        headers, query = ({"last-event-id": cursor}, {}) if by == "header" else ({}, {"after": cursor})
        with httpx_sse.connect_sse(http, "GET", "/v1/events", headers=headers, params=query) as source:
            events = source.iter_sse()
            seen = [next(event for event in events if event.data).json()["data"]["id"] for _ in range(2)]

    assert seen == made[1:]


@pytest.mark.parametrize("garbage", ["yesterday", "1", "1-", "-1-2", "1-2-3", "1" * 19 + "-1", "' or 1=1"])
def test_a_place_that_is_none_is_refused(api: Served, garbage: str) -> None:
    with api.http(api.key("spring"), **SSE) as http:
        refused = http.get("/v1/events", headers={"last-event-id": garbage})

    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")


def test_streams_that_are_lost_again_and_again_give_each_event_once_in_order_while_others_commit(
    api: Served, project: Project
) -> None:
    with api.engine.begin() as connection:
        jobs = [make(connection, project) for _ in range(6)]
    written: list[int] = []

    def writes(which: int) -> None:
        dice = random.Random(which)
        for n in range(30):
            with api.engine.connect() as connection:
                made = [write(connection, project, jobs[which], 2 * n + part) for part in range(2)]
                connection.execute(text("select pg_sleep(:s)"), {"s": dice.random() / 100})  # others commit meanwhile
                connection.commit()
                written.extend(made)

    def reads(http: httpx.Client, dice: random.Random) -> list[int]:
        """What a reader sees that is cut off after a few events, and comes back with the last id that it saw."""
        seen, place = [], str(START)
        while len(seen) < 6 * 60:
            with stream(http, place) as events:
                for _ in range(min(dice.randint(1, 40), 6 * 60 - len(seen))):
                    event = next(events)
                    place = event.id
                    seen.append(int(event.json()["id"].removeprefix("evt_")))
        return seen

    with ThreadPoolExecutor(8) as pool, api.http(api.key("spring")) as http:
        readers = [pool.submit(reads, http, random.Random(n)) for n in range(2)]
        for each in [pool.submit(writes, which) for which in range(6)]:
            each.result()
        seen = [reader.result() for reader in readers]

    assert sorted(seen[0]) == sorted(written)
    assert seen == [read(api.engine, project)[0]] * 2


def test_parts_of_jobs_are_passed_and_the_stream_keeps_its_place(
    api: Served, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_WALKED", 10)
    places: list[Any] = []
    page = feed.page
    monkeypatch.setattr(feed, "page", lambda *said: places.append(said[2]) or page(*said))
    with api.engine.begin() as connection:
        parent = make(connection, project)
        child = make(connection, project, parent)
        for n in range(35):
            write(connection, project, child, n)
    with api.http(api.key("spring")) as http, stream(http) as events:
        eventually(lambda: len(places) >= 4)
        with api.engine.begin() as connection:
            told = write(connection, project, parent, 1)
        event = next(events)

    assert event.json()["id"] == f"evt_{told}"
    assert len(set(places)) >= 4
    assert places == sorted(places), "no page is read twice from the beginning"


def test_anothers_events_are_never_in_a_stream(api: Served) -> None:
    with api.http(api.key("spring")) as spring, api.http(api.key("summer")) as summer:
        spring.post("/v1/jobs", json=CLIP)
        with stream(summer) as events:
            spring.post("/v1/jobs", json=CLIP)
            eventually(lambda: len(spring.get("/v1/events").json()["data"]) == 2)
            own = summer.post("/v1/jobs", json=CLIP).json()["id"]
            first = next(events).json()["data"]["id"]

    assert first == own


def test_the_tick_wakes_streams_while_there_is_news_and_is_silent_else(api: Served, project: Project) -> None:
    with feed.listening(api.engine) as ears:
        driver: Any = ears.connection.dbapi_connection

        def heard() -> int:
            with api.engine.begin() as connection:
                tick.run(connection)
            return len(list(driver.notifies(timeout=0.2)))

        before = heard()
        with api.engine.begin() as connection:
            write(connection, project, make(connection, project), 1)
        while_new = [heard(), heard()]
        api.sql("update events set at = at - interval '6 seconds'")
        after = heard()

    assert (before, while_new, after) == (0, [1, 1], 0)


def test_a_notification_ends_the_wait_for_the_next_look(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_LOOK_SECONDS", 2 * PATIENCE)
    with api.http(api.key("spring")) as http, ThreadPoolExecutor(1) as pool:
        with stream(http) as events:
            eventually(lambda: listeners(api))
            http.post("/v1/jobs", json=CLIP)
            eventually(lambda: http.get("/v1/events").json()["data"])
            with api.engine.begin() as connection:
                tick.run(connection)
            told = pool.submit(next, events).result(PATIENCE)
        eventually(lambda: watched(api) == 0)
        api.sql("select pg_notify('noria_events', '')")  # the thread need not wait to see that nobody follows

    assert told.event == "job.queued"


def test_streams_have_a_gate_of_their_own_and_pages_have_not(api: Served) -> None:
    made = api.app.state.context
    one = Gate("streams", each=1, most=2, patience=0)
    api.app.state.context = replace(made, gates=replace(made.gates, streams=one))
    with (
        api.http(api.key("spring")) as spring,
        api.http(api.key("summer")) as summer,
        api.http(api.key("fall")) as fall,
    ):
        with stream(spring):
            own, page = spring.get("/v1/events", headers=SSE), spring.get("/v1/events")
            with stream(summer):
                others = fall.get("/v1/events", headers=SSE)
        eventually(lambda: watched(api) == 0)
        with stream(spring):
            pass

    assert (own.status_code, own.json()["code"]) == (429, "too_many_streams")
    assert (others.status_code, others.json()["code"]) == (503, "too_many_streams")
    assert page.status_code == 200


def test_a_stream_in_which_nothing_happens_has_heartbeats(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.05)
    with api.http(api.key("spring"), **SSE) as http, http.stream("GET", "/v1/events") as answer:
        lines = answer.iter_lines()
        beats = [line for line in (next(lines) for _ in range(9)) if line]

    assert answer.headers["x-accel-buffering"] == "no"
    assert len(beats) >= 4
    assert all(line.startswith(":") for line in beats)


@pytest.mark.parametrize("ends", ["revoked_at = now()", "expires_at = now()"])
def test_a_stream_ends_with_its_key(api: Served, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.05)
    monkeypatch.setattr("api.context.HEARTBEAT", 0.05)
    with api.http(api.key("spring")) as http, stream(http) as events:
        http.post("/v1/jobs", json=CLIP)
        first = next(events)
        api.sql(f"update api_keys set {ends}")
        rest = list(events)
        refused = http.get("/v1/events", headers=SSE)

    assert first.event == "job.queued"
    assert rest == [], "it ended, and well"
    assert refused.status_code == 401


def test_a_busy_stream_ends_with_its_key_too(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.context.HEARTBEAT", 0.0)
    with api.http(api.key("spring")) as http, stream(http) as events:
        job = http.post("/v1/jobs", json=CLIP).json()
        next(events)
        api.sql("update api_keys set revoked_at = now()")
        api.app.state.context.callers.forget()
        with api.http(api.key("spring")) as other:
            other.post(job["urls"]["cancel"])
        rest = list(events)

    assert rest == [], "what came after the key had ended is not told"


def test_a_stream_ends_when_the_database_goes_away_and_is_taken_up_where_it_was(
    api: Served, engine: Engine, maintenance: Connection[Any], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.05)
    monkeypatch.setattr("api.context.HEARTBEAT", 0.05)
    allow = sql.SQL("alter database {} allow_connections {}")
    name = sql.Identifier(engine.url.database or "")
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        api.http(api.key("spring")) as http,
    ):
        job = make(connection, project)
        write(connection, project, job, 1)
        with stream(http) as events:
            place = next(events).id
            eventually(lambda: listeners(api))
            maintenance.execute(allow.format(name, False))
            connection.execute(text(LOST))
            rest = list(events)
        second = write(connection, project, job, 2)
        maintenance.execute(allow.format(name, True))
        eventually(lambda: http.get("/v1/events").status_code == 200)
        seen, told = [], [second]
        while len(seen) < 2:  # a connection that was lost with the others may end a stream once more
            with stream(http, place) as events:
                for event in events:
                    seen.append(event.json()["id"])
                    place = event.id
                    if len(seen) == 2:
                        break
                    told.append(write(connection, project, job, 3))

    assert rest == []
    assert seen == [f"evt_{each}" for each in told]


def test_slow_readers_hold_no_thread_and_no_connection(api: Served, project: Project) -> None:
    many = 6000
    with api.engine.begin() as connection:
        said = {"job": make(connection, project), "project": project.id, "many": many}
        connection.execute(text(MANY), said)
    reader = api.app.state.context.reader.pool
    with api.http(api.key("spring")) as http, ExitStack() as lines:
        for _ in range(4):
            lines.enter_context(closing(_stalled(api, http)))
        # each is stuck in the middle; if one held a connection meanwhile, there would never be none
        eventually(lambda: reader.checkedout() == 0 and [0 < each < many for each in _seen(api)] == [True] * 4)
        answered = http.get("/v1/jobs").status_code
    eventually(lambda: watched(api) == 0)

    assert answered == 200


def test_open_streams_do_not_keep_a_server_up(environment: dict[str, str]) -> None:
    with served(environment) as api, api.http(api.key("spring")) as http:
        line = _stalled(api, http)
        eventually(lambda: watched(api) == 1)

    with closing(line):
        assert watched(api) == 0, "the server has ended, and its streams with it"


def test_the_client_gives_each_event_once_across_lost_streams(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    page, cuts = feed.page, [SQLAlchemyError("lost")]
    with Client(api.url, api.key("spring")) as client:
        made = [client.submit(CLIP).id for _ in range(3)]
        eventually(lambda: len(list(client.feed_so_far())) == 3)
        events = client.feed()
        first = next(events)
        # the next read of the stream fails, and ends it
        monkeypatch.setattr(feed, "page", lambda *said: _raise(cuts.pop()) if cuts else page(*said))
        made.append(client.submit(CLIP).id)
        rest = [next(events) for _ in range(3)]
        later = list(client.feed_so_far(rest[0].cursor))
        waited = list(client.feed(rest[2].cursor, timeout=0.2))

    assert [event.data.id for event in (first, *rest)] == made
    assert [event.data.id for event in later] == made[2:]
    assert (waited, cuts) == ([], [])


def test_the_command_shows_events_of_the_types_that_are_asked_for(
    api: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    key = api.key("spring")
    with api.http(key) as http:
        job = http.post("/v1/jobs", json=CLIP | {"custom_id": "row-17"}).json()
        http.post(job["urls"]["cancel"])
        first, second = eventually(lambda: _of(http.get("/v1/events").json()["data"], 2))
    where = ["events", "--url", api.url, "--key", key]

    codes = [cli.run([*where, "--json"]), cli.run([*where, "--json", "--type", "job.can*"])]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    codes.append(cli.run([*where, "--after", first["cursor"]]))
    shown = capsys.readouterr()

    assert codes == [0, 0, 0]
    assert lines == [first, second, second]
    assert [line.split()[2:] for line in shown.out.splitlines() if "row-17" in line] == [
        ["job.canceled", "row-17", "canceled", "by", "the", "user"]
    ]
    assert f"--after {second['cursor']}" in shown.err


def listeners(api: Served) -> bool:
    """Whether a connection has looked for all that is followed, and listens."""
    return bool(
        api.sql("select 1 from pg_stat_activity where query like '%unnest(cast(%as wanted,%' and state = 'idle'")
    )


def _raise(error: Exception) -> Any:
    raise error


def _seen(api: Served) -> list[int]:
    """How far the streams were read."""
    return [follower.seen.id for follower in api.app.state.context.watch._followers]


def _stalled(api: Served, http: httpx.Client) -> socket.socket:
    """A connection that asks for the feed, and reads nothing of it."""
    line = socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])))
    head = {"host": "noria", "authorization": http.headers["authorization"], **SSE}
    said = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    line.sendall(f"GET /v1/events HTTP/1.1\r\n{said}\r\n".encode())
    return line


def _of(found: list[Any], count: int) -> list[Any]:
    return found if len(found) == count else []
