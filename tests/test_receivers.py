"""Whose webhook goes next: by project, then by host and port; one that is dead holds up nobody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from post import NOW, Post
from pytest_httpserver import HTTPServer
from sqlalchemy import Engine, event, text
from stage import Stage

from worker import tick, timeouts, webhooks
from worker.egress import transports
from worker.settings import Settings
from worker.tables import Delivery
from worker.webhooks import receivers

DEAD = "http://127.0.0.1:9/hook"


@pytest.fixture
def post(engine: Engine) -> Iterator[Post]:
    with engine.begin() as connection:
        yield Post(connection)


# Whose turn it is


def test_a_receiver_is_a_host_and_a_port_however_its_url_goes_on() -> None:
    same = ["https://a.example", "https://A.example:443/x?n=1", "https://a.example./?n=2", "https://u@a.example/y"]
    others = ["https://b.example", "https://a.example:8443", "http://a.example"]

    assert len({webhooks.receiver(url) for url in same}) == 1
    assert len({webhooks.receiver(url) for url in [*same, *others]}) == 4


def test_many_urls_of_one_host_are_one_receiver_with_two_messages(post: Post) -> None:
    project = post.project("spring")
    for n in range(40):
        post.write(project, f"https://victim.example/?n={n}")

    assert len(post.claim()) == 2 * receivers.ROWS
    assert post.claim() == []


def test_two_projects_that_name_one_receiver_share_what_it_may_have(post: Post) -> None:
    spring, autumn = post.project("spring"), post.project("autumn")
    post.write(spring, "https://shared.example/spring", 500, NOW - timedelta(hours=1))
    post.write(autumn, "https://shared.example/autumn", 500)

    claimed = post.urls(post.claim())

    assert claimed == {"https://shared.example/spring": 8, "https://shared.example/autumn": 8}


def test_three_projects_that_name_one_receiver_have_two_messages_and_all_their_turn(post: Post) -> None:
    for n, name in enumerate(("spring", "summer", "autumn")):
        post.write(post.project(name), f"https://shared.example/{name}", 500, NOW - timedelta(hours=n))
    told = text("update deliveries set state = 'delivered', run_at = null, claimed = null where claimed is not null")
    done = Counter[str]()

    for _ in range(30):
        claimed = post.claim()
        assert [count for _, count in Counter(claim.group for claim in claimed).items()] == [receivers.ROWS] * 2
        done += post.urls(claimed)
        post.connection.execute(told)

    assert len(done) == 3, "the oldest does not go first for ever"


def test_a_thread_that_goes_on_leaves_what_a_worker_died_on_to_the_tick(post: Post) -> None:
    spring = post.project("spring")
    post.write(spring, DEAD, 3)
    post.connection.execute(text("update deliveries set crashes = 1 where id = (select id from deliveries limit 1)"))

    assert len(receivers.take_more(post.connection, spring.id, webhooks.receiver(DEAD))) == 2
    assert receivers.next_receiver(post.connection, spring.id, 0) is None


def test_a_thread_goes_on_to_no_receiver_that_another_project_waits_for(post: Post) -> None:
    spring, autumn = post.project("spring"), post.project("autumn")
    shared, own = "https://shared.example/", "https://spring.example/"
    for url in (shared, own):
        post.write(spring, url, 40)
    post.write(autumn, shared)
    told = text("update deliveries set state = 'delivered', run_at = null where project_id = :autumn")

    first = [
        receivers.next_receiver(post.connection, spring.id, start) for start in map(webhooks.receiver, (shared, own))
    ]
    post.connection.execute(told, {"autumn": autumn.id})
    then = receivers.next_receiver(post.connection, spring.id, webhooks.receiver(own))

    assert first == [webhooks.receiver(own)] * 2
    assert then == webhooks.receiver(shared)


def test_a_project_with_many_receivers_has_four_on_their_way_and_starves_no_other(post: Post) -> None:
    spring, autumn = post.project("spring"), post.project("autumn")
    for n in range(300):
        post.write(spring, f"https://n{n}.example/", 1, NOW - timedelta(hours=1))
    post.write(autumn, "https://autumn.example/")

    claimed = post.urls(post.claim())

    assert claimed["https://autumn.example/"] == 1
    assert len(claimed) == 4 + 1
    assert post.claim() == []


def test_every_receiver_of_many_has_its_turn(post: Post) -> None:
    spring = post.project("spring")
    for n in range(250):  # more than a tick looks at
        post.write(spring, f"https://n{n}.example/")
    done = Counter[str]()

    for _ in range(250):
        claimed = post.claim()
        done += post.urls(claimed)
        ended = text("update deliveries set state = 'delivered', run_at = null, claimed = null where id = any(:ids)")
        post.connection.execute(ended, {"ids": [claim.id for claim in claimed]})

    assert len(done) == 250


def test_the_next_deliveries_go_as_soon_as_a_receivers_last_ones_are_told(post: Post) -> None:
    post.write(post.project("spring"), "https://healthy.example/", 40)
    told = text("update deliveries set state = 'delivered', run_at = null, claimed = null where claimed is not null")

    rounds = []
    for _ in range(3):
        rounds.append(len(post.claim()))
        post.connection.execute(told)

    assert rounds == [16, 16, 8]


def test_an_alarm_of_no_project_goes_too(post: Post) -> None:
    webhooks.enqueue_alarm(post.connection, "https://alarms.example/", "{}")

    assert len(post.claim(datetime.now(UTC) + timedelta(seconds=1))) == 1


@pytest.mark.parametrize("statistics", ["of now", "that know of none", "that know of more"])
def test_a_look_at_what_is_next_reads_a_few_of_the_deliveries_that_wait(engine: Engine, statistics: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("alter table deliveries set (autovacuum_enabled = false)"))
        waiting = Post(connection)
        spring = waiting.project("spring")
        waiting.write(spring, DEAD, 5000)
        if statistics == "that know of none":
            connection.execute(text(_DELIVERED))
        connection.execute(text("vacuum analyze deliveries"))
        if statistics == "that know of none":
            waiting.write(spring, DEAD, 2000)
        if statistics == "that know of more":
            connection.execute(text(_DELIVERED))
            connection.execute(text("vacuum deliveries"))

    with engine.begin() as connection:
        before = connection.execute(text(_READ)).scalar_one()
        claimed = receivers.claim_due(connection, datetime.now(UTC))
        assert receivers.claim_due(connection, datetime.now(UTC)) == []
        assert receivers.next_receiver(connection, spring.id, 0) is None
        more = receivers.take_more(connection, spring.id, webhooks.receiver(DEAD))
        read = connection.execute(text(_READ)).scalar_one() - before

    assert (len(claimed), len(more)) == ((0, 0) if statistics == "that know of more" else (16, 32))
    assert read < 300


def test_a_tick_reads_no_deliveries_that_have_ended_whatever_the_statistics_say(post: Post) -> None:
    post.write(post.project("spring"), DEAD, 5000)
    post.connection.execute(text("analyze deliveries"))
    post.connection.execute(text(_DELIVERED))
    before = post.connection.execute(text(_READ)).scalar_one()

    assert tick.run(post.connection) == []

    assert post.connection.execute(text(_READ)).scalar_one() - before < 300


_DELIVERED = "update deliveries set state = 'delivered', run_at = null"
_READ = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'deliveries'"


def test_a_tick_looks_at_jobs_only_where_some_are_due(play: Stage) -> None:
    statements: list[str] = []
    event.listen(play.ctx.engine, "before_cursor_execute", lambda *said: statements.append(said[2]))
    with play.ctx.engine.begin() as connection:
        Post(connection).write(play.project, DEAD, 1, play.now() - timedelta(minutes=1))
        receivers.pause(connection, Delivery(project_id=play.project.id, receiver=webhooks.receiver(DEAD)), play.now())
    play.sql("update duties set due_at = now() + interval '1 h'")
    statements.clear()

    assert play.tick() == []

    assert len(statements) == 3, "a look, a lock, and whose turn it is"


# Receivers that do not answer


def test_a_dead_receiver_is_tried_once_and_left_alone_for_a_while(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        Post(connection).write(play.project, DEAD, 40, play.now() - timedelta(minutes=1))

    for _ in range(5):
        play.play(play.tick())

    assert sum(found.tries for found in play.deliveries()) == 2, "one for each of its threads"
    assert play.sql("select failures from dead_receivers")[0]["failures"] == 2
    play.sql("update dead_receivers set resume_at = now() - interval '1 s'")
    assert [message.task for message in play.tick()] == ["noria.deliver"] * 2


def test_a_receivers_silence_grows_to_five_minutes_and_ends_with_an_answer(play: Stage, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook").respond_with_data("no", status=500)
    one = Delivery(project_id=play.project.id, receiver=webhooks.receiver(httpserver.url_for("/hook")))
    waits = []
    for _ in range(9):
        with play.ctx.engine.begin() as connection:
            receivers.pause(connection, one, NOW)
        waits.append((play.sql("select resume_at from dead_receivers")[0]["resume_at"] - NOW).total_seconds())
    with play.ctx.engine.begin() as connection:
        Post(connection).write(play.project, httpserver.url_for("/hook"), 1, play.now() - timedelta(seconds=1))
    play.sql("update dead_receivers set resume_at = now() - interval '1 s'")

    play.play(play.tick())

    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert play.sql("select * from dead_receivers") == [], "an error is an answer"


def test_receivers_that_answer_go_before_those_that_do_not(post: Post) -> None:
    spring = post.project("spring")
    for n in range(20):
        url = f"https://dead{n}.example/"
        post.write(spring, url, 1, NOW - timedelta(hours=1))
        receivers.pause(
            post.connection, Delivery(project_id=spring.id, receiver=webhooks.receiver(url)), NOW - timedelta(minutes=1)
        )
    post.write(spring, "https://healthy.example/")

    assert "https://healthy.example/" in post.urls(post.claim())


# How a delivery ends


def _tried(tries: int, created_at: datetime, now: datetime) -> webhooks.Tried:
    delivery = Delivery(project_id=None, url="ftp://nobody/", body="{}", tries=tries, created_at=created_at)
    transport = transports.webhooks(Settings.model_validate({"database_url": "", "broker_url": ""}))
    return webhooks.deliver(transport, delivery, None, now)


def test_the_last_retry_of_the_table_happens_and_then_the_delivery_ends() -> None:
    now, waits = NOW, []
    for tries in range(len(webhooks.RETRIES)):
        tried = _tried(tries, NOW, now)
        if tried.again_at is None:
            break
        waits.append((tried.again_at - now) / webhooks.RETRIES[tries + 1])
        now = tried.again_at

    assert tries == len(webhooks.RETRIES) - 1 == 9, "the tenth try is made, a day after the ninth"
    assert (tried.state, tried.again_at) == ("exhausted", None)
    assert all(0.9 <= wait <= 1.1 for wait in waits)
    assert now - NOW < webhooks.GIVEN_UP


@pytest.mark.parametrize(
    "said",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2030 00:00:00 +99999999999999999999",
        "Mon, 01 Jan 2030 99999999999999999999:00:00 GMT",
        "soon",
    ],
)
def test_a_receiver_that_asks_to_be_left_alone_until_no_time_is_tried_as_any_other(
    said: str, play: Stage, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook").respond_with_data("", status=503, headers={"Retry-After": said})
    play.until(play.submit(webhook_url=httpserver.url_for("/hook")))

    play.play(play.tick())

    (delivery,) = play.deliveries()
    assert (delivery.tries, delivery.last_status, delivery.claimed) == (1, 503, None)


def test_a_delivery_whose_next_try_would_come_too_late_ends_before_it() -> None:
    assert _tried(1, NOW - webhooks.GIVEN_UP, NOW).state == "exhausted"
    assert _tried(1, NOW - webhooks.GIVEN_UP + timedelta(minutes=6), NOW).state == "waiting"


def test_deliveries_that_nobody_had_time_for_end_by_their_age(post: Post) -> None:
    post.write(post.project("spring"), DEAD, 30, NOW - webhooks.GIVEN_UP - timedelta(minutes=1))
    post.write(post.project("autumn"), DEAD, 3, NOW - webhooks.GIVEN_UP + timedelta(minutes=1))

    webhooks.give_up(post.connection, NOW)

    rows = post.connection.execute(
        text("select state, count(*), max(last_error) from deliveries group by 1 order by 1")
    )
    (ended, waiting) = rows.all()
    assert (ended[0], ended[1]) == ("exhausted", 30)
    assert "three and a half days" in ended[2]
    assert (waiting[0], waiting[1]) == ("waiting", 3)


def test_a_delivery_that_is_on_its_way_is_not_given_up_meanwhile(post: Post) -> None:
    post.write(post.project("spring"), DEAD, 1, NOW - webhooks.GIVEN_UP - timedelta(minutes=1))
    assert len(post.claim()) == 1

    webhooks.give_up(post.connection, NOW)
    assert post.connection.execute(text("select state from deliveries")).scalar_one() == "waiting"
    webhooks.give_up(post.connection, NOW + timeouts.SENT)  # nobody took it
    assert post.connection.execute(text("select state from deliveries")).scalar_one() == "exhausted"


def test_the_tick_gives_up_what_is_too_old(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        Post(connection).write(play.project, DEAD, 1, play.now() - webhooks.GIVEN_UP - timedelta(minutes=1))
    play.sql("update duties set due_at = now()")

    assert [message for message in play.tick() if message.task == "noria.deliver"] == []

    assert [found.state for found in play.deliveries()] == ["exhausted"]
