"""Webhook endpoints: what is told to whom, what became of it, how it is sent again, and when one is left alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import peers
import pytest
from peers import Peer, peer
from serving import CLIP, Served, eventually
from sqlalchemy import event
from stage import Stage
from standardwebhooks import Webhook, WebhookVerificationError

from worker import keys, webhooks
from worker.errors import Conflict
from worker.moves import bulk
from worker.states import State
from worker.tables import Delivery, WebhookEndpoint
from worker.webhooks import registry
from worker.webhooks.registry import Wanted

TOLD = peers.answers(204, b"")
NOW = datetime(2026, 11, 27, 4, tzinfo=UTC)
ENDS = ["job.succeeded"]
WAITS = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


@pytest.fixture
def receiver() -> Iterator[Peer]:
    with peer(TOLD) as made:
        yield made


def register(
    play: Stage, url: str, events: list[str] | None = None, project: uuid.UUID | None = None
) -> WebhookEndpoint:
    with play.ctx.engine.begin() as connection:
        return registry.make(connection, project or play.project.id, Wanted(url, events, ""))


def written(play: Stage) -> set[tuple[str, str]]:
    """The event and the URL of each delivery."""
    rows = play.sql("select type, url from deliveries join events on events.id = event_id")
    return {(row["type"], row["url"]) for row in rows}


def deliver(play: Stage) -> None:
    """Sends what waits, for as long as something is due."""
    while messages := [message for message in play.tick() if message.task == "noria.deliver"]:
        play.play(messages)


def parsed(request: bytes) -> tuple[dict[str, str], str]:
    """The headers of a request, and its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.partition(":") for line in head.decode().split("\r\n")[1:]]
    return {name.lower(): value.strip() for name, _, value in lines}, body.decode()


def received(receiver: Peer) -> list[tuple[dict[str, str], str]]:
    return [parsed(request) for request in receiver.requests]


def endpoint_of(play: Stage, endpoint: WebhookEndpoint) -> Any:
    (row,) = play.sql("select * from webhook_endpoints where id = :id", id=endpoint.id)
    return row


# Who is told of what


def test_an_event_goes_to_the_jobs_own_receiver_and_to_each_endpoint_that_wants_it(play: Stage, receiver: Peer) -> None:
    own, ends, every, none, others = (f"{receiver.url}/{name}" for name in ("own", "ends", "every", "none", "others"))
    for url, events in ((ends, None), (every, ["job.*"]), (none, ["batch.completed"])):
        register(play, url, events)
    register(play, others, ["job.*"], _project(play, "autumn").id)

    job = play.until(play.submit(webhook_url=own), State.SUCCEEDED)
    deliver(play)

    assert written(play) == {
        ("job.succeeded", own),
        ("job.succeeded", ends),
        *((f"job.{state}", every) for state in ("queued", "submitted", "running", "succeeded")),
    }
    assert {delivery.job_id for delivery in play.deliveries()} == {job.id}
    assert len({headers["webhook-id"] for headers, _ in received(receiver)}) == 4
    assert len(receiver.requests) == 6


def test_a_jobs_receiver_that_is_an_endpoint_too_is_told_as_both(play: Stage, receiver: Peer) -> None:
    register(play, receiver.url, ENDS)

    play.until(play.submit(webhook_url=receiver.url), State.SUCCEEDED)

    assert [bool(delivery.endpoint_id) for delivery in play.deliveries()].count(True) == 1
    assert len(play.deliveries()) == 2


def test_of_the_parts_of_a_job_no_endpoint_is_told(play: Stage, receiver: Peer) -> None:
    register(play, receiver.url, ["job.*"])

    job = play.until(play.submit("speech", "qwen3-tts-flash", input={"text": "One. Two.", "voice": "Cherry"}))

    assert job.state == State.SUCCEEDED
    assert play.sql("select 1 from jobs where parent_id is not null") != []
    assert {delivery.job_id for delivery in play.deliveries()} == {job.id}


def test_what_many_jobs_are_asked_for_at_once_is_told_to_endpoints(play: Stage) -> None:
    register(play, "https://shop.example/", ["job.canceled", "job.queued"])
    job = play.submit()

    play.cancel(job)

    assert written(play) == {(f"job.{state}", "https://shop.example/") for state in ("queued", "canceled")}


def test_jobs_of_two_projects_that_end_together_are_told_by_each_projects_own(play: Stage) -> None:
    autumn = _project(play, "autumn")
    register(play, "https://autumn.example/", ["job.failed"], autumn.id)
    late = play.now() + timedelta(hours=1)
    for project in (play.project, autumn):
        play.submit(project=project, webhook_url="https://own.example/", not_after=late)

    with play.ctx.engine.begin() as connection:
        bulk.end_overdue(connection, late + timedelta(minutes=1))

    rows = play.sql(
        "select d.project_id = j.project_id as own, url, body from deliveries d join jobs j on j.id = job_id"
    )
    assert {(row["url"], row["own"]) for row in rows} == {
        ("https://own.example/", True),
        ("https://autumn.example/", True),
    }
    assert sorted(json.loads(row["body"])["data"]["project"] for row in rows) == ["autumn"] * 2 + ["spring-campaign"]


def test_a_batch_tells_endpoints_of_each_job_and_of_its_end(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        for url, events in (("https://each.example/", ["job.queued"]), ("https://end.example/", ["batch.*"])):
            assert http.post("/v1/webhook-endpoints", json={"url": url, "events": events}).status_code == 201
        http.post("/v1/batches?commit=true", json={"items": [CLIP | {"custom_id": str(n)} for n in range(3)]})

    rows = api.sql("select url, count(distinct job_id) as jobs from deliveries group by url")

    assert [dict(row) for row in rows] == [{"url": "https://each.example/", "jobs": 3}]


def test_the_end_of_a_batch_is_told_to_endpoints(play: Stage, api: Served, receiver: Peer) -> None:
    endpoint = register(play, receiver.url)
    with api.engine.begin() as connection:
        (_, key) = keys.new_key(connection, play.project, "")
    with api.http(key) as http:
        http.post("/v1/batches?commit=true", json={"items": [CLIP]})
    play.drive(lambda: play.sql("select state from batches"), lambda found: found[0]["state"] == "completed")

    assert written(play) == {("job.succeeded", endpoint.url), ("batch.completed", endpoint.url)}


def test_a_project_without_endpoints_sends_no_statement_more(play: Stage) -> None:
    register(play, "https://autumn.example/", ["job.*"], _project(play, "autumn").id)
    sent: list[str] = []
    event.listen(play.ctx.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))

    job = play.until(play.submit(), State.SUCCEEDED)
    again = play.submit()
    play.cancel(again)

    asked = [statement for statement in sent if "webhook_endpoints" in statement]
    assert job.state == State.SUCCEEDED
    assert len(asked) >= 6
    assert [one for one in asked if not ("INSERT INTO events" in one or "FOR NO KEY UPDATE" in one)] == []
    assert play.deliveries() == []


def test_a_move_that_is_rolled_back_tells_nobody(play: Stage) -> None:
    register(play, "https://shop.example/", ["job.*"])
    job = play.submit()

    with play.ctx.engine.connect() as connection:
        bulk.cancel(connection, play.project.id, [job.id], play.now())
        connection.rollback()

    assert written(play) == {("job.queued", "https://shop.example/")}


# What is sent, and what is signed


def test_while_a_secret_is_rotated_both_sign_and_after_a_day_the_new_one_alone(play: Stage) -> None:
    with peer(TOLD) as receiver:
        endpoint = register(play, receiver.url, ["job.queued"])
        with play.ctx.engine.begin() as connection:
            rotated = registry.rotate(connection, endpoint, play.now())
        play.submit()
        deliver(play)
        play.sql("update webhook_endpoints set previous_until = now() - interval '1 s'")
        play.submit()
        deliver(play)

        (first, first_body), (second, second_body) = received(receiver)

    for secret in (endpoint.secret, rotated.secret):
        Webhook(secret).verify(first_body, first)
    Webhook(rotated.secret).verify(second_body, second)
    with pytest.raises(WebhookVerificationError):
        Webhook(endpoint.secret).verify(second_body, second)
    assert (first["webhook-signature"].count("v1,"), second["webhook-signature"].count("v1,")) == (2, 1)


def test_the_log_says_what_came_back(play: Stage) -> None:
    with peer(peers.answers(500, "出错了".encode() * 500 + b"\0")) as receiver:
        endpoint = register(play, receiver.url, ["job.queued"])
        play.submit()
        play.play([message for message in play.tick() if message.task == "noria.deliver"])

    (row,) = log(play, endpoint)
    assert (row.state, row.tries, row.last_status, row.type) == ("waiting", 1, 500, "job.queued")
    assert row.last_answer.startswith("出错了出错了")
    assert len(row.last_answer.encode()) <= 2050
    assert 0 <= row.last_ms < 10_000
    assert row.run_at > play.now()


def test_the_answer_to_a_jobs_own_receiver_is_not_kept(play: Stage) -> None:
    with peer(peers.answers(500, b"no")) as receiver:
        play.submit(webhook_url=receiver.url, webhook_events=["job.queued"])
        play.play([message for message in play.tick() if message.task == "noria.deliver"])

    (delivery,) = play.deliveries()
    assert (delivery.tries, delivery.last_answer) == (1, None)


@pytest.mark.parametrize(
    ("said", "wait"),
    [
        ("120", timedelta(seconds=120)),
        ("9999999999999", timedelta(hours=24)),
        ("Fri, 27 Nov 2026 05:00:00 GMT", timedelta(hours=1)),
        ("Fri, 27 Nov 2026 03:00:00 GMT", timedelta(seconds=5)),
        ("soon", timedelta(seconds=5)),
        ("²", timedelta(seconds=5)),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_receiver_that_is_busy_says_when_the_next_try_comes(said: str, wait: timedelta, status: int) -> None:
    tried = _tried(lambda _: httpx.Response(status, headers={"retry-after": said}))

    assert tried.state == "waiting"
    assert wait * 0.89 <= (tried.again_at or NOW) - NOW <= wait * 1.11


def test_another_failures_retry_after_is_not_heeded_and_a_redirect_is_named() -> None:
    broken = _tried(lambda _: httpx.Response(500, headers={"retry-after": "3600"}))
    moved = _tried(lambda _: httpx.Response(301, headers={"location": "https://elsewhere.example/"}))

    assert (broken.again_at or NOW) - NOW < timedelta(seconds=10)
    assert (moved.state, moved.status) == ("waiting", 301)
    assert "redirects are not followed" in (moved.error or "")


# When an endpoint is left alone


def test_410_disables_at_once_and_the_other_endpoints_hear_of_it(play: Stage) -> None:
    with peer(peers.answers(410, b"")) as gone, peer(TOLD) as other:
        endpoint, hears = register(play, gone.url, ["job.queued"]), register(play, other.url, ["endpoint.disabled"])
        for _ in range(2):
            play.submit()
        deliver(play)
        play.submit()
        deliver(play)

        assert len(gone.requests) == 1, "what waited is not sent either"
        (_, body) = received(other)[0]

    row = endpoint_of(play, endpoint)
    assert (row["disabled_why"], row["disabled_at"] is not None) == ("it said 410: gone", True)
    said = json.loads(body)
    assert (said["type"], said["data"]["id"]) == ("endpoint.disabled", str(endpoint.id))
    assert [one.state for one in log(play, endpoint)] == ["exhausted"] * 2
    assert endpoint_of(play, hears)["disabled_at"] is None
    assert play.sql("select * from dead_receivers") == [], "what was not sent says nothing of its receiver"


def test_five_days_of_failures_in_a_row_disable(play: Stage) -> None:
    with peer(peers.answers(500, b"")) as receiver:
        endpoint = register(play, receiver.url, ["job.queued"])
        play.submit()
        deliver(play)
        began = endpoint_of(play, endpoint)["failing_since"]
        assert began is not None
        for ago, is_on in (("4 days 23 hours", True), ("5 days", False)):
            play.sql(f"update webhook_endpoints set failing_since = now() - interval '{ago}'")
            play.sql("update deliveries set run_at = now()")
            deliver(play)

            assert (endpoint_of(play, endpoint)["disabled_at"] is None) is is_on

    assert endpoint_of(play, endpoint)["disabled_why"] == "it failed for five days in a row"
    assert len(play.sql("select 1 from events where type = 'endpoint.disabled'")) == 1


def test_one_success_ends_a_row_of_failures(play: Stage) -> None:
    answers = iter([peers.answers(500, b""), TOLD])

    def script(conn: Any, request: bytes) -> None:
        next(answers)(conn, request)

    with peer(script) as receiver:
        endpoint = register(play, receiver.url, ["job.queued"])
        for fails in (True, False):
            play.submit()
            deliver(play)

            assert (endpoint_of(play, endpoint)["failing_since"] is not None) is fails


def test_what_is_redelivered_has_its_old_id_and_all_its_tries(play: Stage) -> None:
    with peer(TOLD) as receiver:
        endpoint = register(play, receiver.url, ["job.queued"])
        play.submit()
        deliver(play)
        play.sql("update deliveries set created_at = now() - interval '9 days', tries = 10, state = 'exhausted'")

        count, _ = redeliver(play, endpoint, registry.Which(("exhausted",)))
        with play.ctx.engine.begin() as connection:
            webhooks.give_up(connection, play.now())
        deliver(play)

        ids = [headers["webhook-id"] for headers, _ in received(receiver)]
    assert count == 1
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert [(one.state, one.tries) for one in log(play, endpoint)] == [("delivered", 1)]


def test_redelivery_goes_by_ids_by_time_and_by_state_and_never_to_what_is_on_its_way(play: Stage) -> None:
    endpoint, other = (register(play, f"https://{name}.example/", ["job.queued"]) for name in ("one", "two"))
    for _ in range(3):
        play.submit()
    play.sql("update deliveries set state = 'exhausted', run_at = null, finished_at = now()")
    first = log(play, endpoint)[-1]
    last = log(play, endpoint)[0]
    after = play.now() + timedelta(minutes=1)

    assert redeliver(play, endpoint, registry.Which(ids=[first.id, log(play, other)[0].id]))[0] == 1
    assert redeliver(play, endpoint, registry.Which(since=after))[0] == 0
    assert redeliver(play, endpoint, registry.Which(("delivered",)))[0] == 0
    play.sql("update deliveries set claimed = 'taken' where id = :id", id=first.id)
    assert redeliver(play, endpoint, registry.Which(since=first.at - timedelta(seconds=1)))[0] == 2
    assert [row.state for row in log(play, other)] == ["exhausted"] * 3
    assert last.id > first.id


def test_redelivery_of_many_goes_on_after_a_cursor(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REDELIVERED", 2)
    endpoint = register(play, "https://shop.example/", ["job.queued"])
    for _ in range(3):
        play.submit()
    play.sql("update deliveries set state = 'delivered', run_at = null, finished_at = now()")

    first, after = redeliver(play, endpoint, registry.Which(("delivered",)))
    second, end = redeliver(play, endpoint, registry.Which(("delivered",)), after)

    assert (first, second, end) == (2, 1, None)


# The API


def test_a_secret_is_shown_where_it_is_made_and_nowhere_else(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        made = http.post("/v1/webhook-endpoints", json={"url": "https://shop.example/hooks"})
        rotated = http.post(made.json()["urls"]["self"] + "/rotate")
        shown = http.get(made.json()["urls"]["self"])
        listed = http.get("/v1/webhook-endpoints")
        changed = http.patch(made.json()["urls"]["self"], json={"description": "the shop"})

    assert made.json()["secret"].startswith("whsec_")
    assert rotated.json()["secret"] not in ("", made.json()["secret"])
    assert rotated.json()["previous_secret_until"] is not None
    for answer in (shown, listed, changed):
        assert "whsec_" not in answer.text
    assert changed.json()["description"] == "the shop"


def test_an_endpoint_may_be_called_only_where_a_webhook_may(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        for url in ("http://10.0.0.1/", "https://169.254.169.254/", "ftp://shop.example/"):
            refused = http.post("/v1/webhook-endpoints", json={"url": url})

            assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/url"), url
        made = http.post("/v1/webhook-endpoints", json={"url": "https://shop.example/"}).json()
        moved = http.patch(made["urls"]["self"], json={"url": "https://10.0.0.1/"})

    assert moved.status_code == 422


def test_a_name_that_leads_to_a_private_address_is_not_called(play: Stage, api: Served) -> None:
    api.sql("update projects set name = 'spring' where id = :id", id=play.project.id)
    with api.http(api.key("spring")) as http:
        made = http.post("/v1/webhook-endpoints", json={"url": "https://shop.example/"}).json()
        api.sql("update webhook_endpoints set url = 'https://10.0.0.1/'")
        tested = http.post(made["urls"]["self"] + "/test").json()

    assert (tested["delivered"], tested["status"]) == (False, None)
    assert "10.0.0.1" in tested["error"]


def test_a_wrong_endpoint_is_refused_by_name(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        for body, pointer in (
            ({"url": "https://shop.example/", "events": ["job.done"]}, "/events/0"),
            ({"url": "https://shop.example/", "events": []}, "/events"),
            ({"url": "https://shop.example/", "secret": "mine"}, "/secret"),
            ({}, "/url"),
        ):
            refused = http.post("/v1/webhook-endpoints", json=body)

            assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer)
        made = http.post("/v1/webhook-endpoints", json={"url": "https://shop.example/"}).json()
        empty = http.post(made["urls"]["self"] + "/redeliver", json={})
        both = http.post(made["urls"]["self"] + "/redeliver", json={"ids": [made["id"]], "status": "exhausted"})

    assert [one.json()["errors"][0]["code"] for one in (empty, both)] == ["ids_or_filter"] * 2


def test_a_project_has_sixteen_endpoints_however_many_are_made_at_once(api: Served) -> None:
    key = api.key("spring")

    def make(n: int) -> int:
        with api.http(key) as http:
            return http.post("/v1/webhook-endpoints", json={"url": f"https://n{n}.example/"}).status_code

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(make, range(20)))

    assert (found.count(201), found.count(409)) == (16, 4)
    with api.http(key) as http:
        (first, *_) = http.get("/v1/webhook-endpoints").json()["data"]
        assert http.delete(first["urls"]["self"]).status_code == 204
        assert http.get(first["urls"]["self"]).status_code == 404
        assert http.post("/v1/webhook-endpoints", json={"url": first["url"]}).status_code == 201
        again = http.post("/v1/webhook-endpoints", json={"url": first["url"]})
    assert (again.status_code, again.json()["code"]) == (409, "endpoint_exists")
    assert api.sql("select secret from webhook_endpoints where deleted_at is not null") == [{"secret": ""}]


def test_a_deleted_endpoint_gets_nothing_more(play: Stage) -> None:
    with peer(TOLD) as receiver:
        endpoint = register(play, receiver.url, ["job.queued"])
        play.submit()
        with play.ctx.engine.begin() as connection:
            registry.remove(connection, endpoint, play.now())
        play.submit()
        deliver(play)

        assert receiver.requests == []
    assert [delivery.state for delivery in play.deliveries()] == ["exhausted"]


def test_a_test_is_sent_at_once_and_answers_what_came_back(api: Served) -> None:
    with peer(peers.answers(418, b"a teapot")) as receiver, api.http(api.key("spring")) as http:
        made = http.post("/v1/webhook-endpoints", json={"url": receiver.url}).json()
        tested = http.post(made["urls"]["self"] + "/test")
        (headers, body) = received(receiver)[0]

    Webhook(made["secret"]).verify(body, headers)
    said = tested.json()
    assert json.loads(body)["type"] == "test.ping"
    assert headers["webhook-id"] == said["webhook_id"]
    assert (said["delivered"], said["status"], said["answer"]) == (False, 418, "a teapot")
    assert api.sql("select * from deliveries") == []


def test_a_disabled_endpoint_is_enabled_again_and_what_it_missed_is_sent(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        made = http.post(
            "/v1/webhook-endpoints", json={"url": "https://shop.example/", "events": ["job.queued"]}
        ).json()
        self, again = made["urls"]["self"], made["urls"]["self"] + "/redeliver"
        http.post("/v1/jobs", json=CLIP)
        api.sql("update deliveries set state = 'exhausted', run_at = null, finished_at = now()")
        off = http.patch(self, json={"disabled": True}).json()
        http.post("/v1/jobs", json=CLIP)
        refused = http.post(again, json={"status": "exhausted"})
        api.sql("update webhook_endpoints set failing_since = now()")
        on = http.patch(self, json={"disabled": False}).json()
        sent = http.post(again, json={"status": "exhausted"})
        (delivery,) = http.get(made["urls"]["deliveries"]).json()["data"]

    assert (off["disabled_why"], on["disabled_why"], on["failing_since"]) == ("disabled by the user", None, None)
    assert (refused.status_code, refused.json()["code"]) == (409, "endpoint_disabled")
    assert (sent.json()["deliveries"], sent.json()["has_more"]) == (1, False)
    assert (delivery["state"], delivery["tries"], delivery["type"]) == ("waiting", 0, "job.queued")


def test_the_log_has_pages_and_filters(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        made = http.post("/v1/webhook-endpoints", json={"url": "https://shop.example/", "events": ["job.*"]}).json()
        jobs = [http.post("/v1/jobs", json=CLIP).json()["id"] for _ in range(5)]
        log = made["urls"]["deliveries"]
        api.sql("update deliveries set state = 'delivered', run_at = null where job_id = :id", id=jobs[0])
        pages, cursor = [], None
        while True:
            page = http.get(log, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
            pages.append([delivery["job_id"] for delivery in page["data"]])
            if not (cursor := page["next_cursor"]):
                break
        delivered = http.get(log, params={"state": "delivered"}).json()["data"]
        later = http.get(log, params={"since": "2099-01-01T00:00:00Z"}).json()["data"]

    assert pages == [jobs[4:2:-1], jobs[2:0:-1], jobs[:1]]
    assert [delivery["job_id"] for delivery in delivered] == jobs[:1]
    assert later == []


def test_no_secret_is_logged(play: Stage, written: Any) -> None:
    with peer(peers.answers(410, b"")) as gone:
        endpoint = register(play, gone.url, ["job.queued"])
        play.submit()
        deliver(play)

    assert "an endpoint is disabled" in written()
    assert endpoint.secret not in written()


def test_two_endpoints_that_are_made_at_once_are_counted_one_after_the_other(play: Stage) -> None:
    for n in range(registry.MOST - 1):
        register(play, f"https://n{n}.example/")

    with ThreadPoolExecutor(1) as pool:
        with play.ctx.engine.begin() as connection:
            registry.make(connection, play.project.id, Wanted("https://last.example/", None, ""))
            late = pool.submit(register, play, "https://late.example/")
            eventually(lambda: late.done() or play.sql(WAITS))
        with pytest.raises(Conflict, match="as many as it may"):
            late.result()


def log(play: Stage, endpoint: WebhookEndpoint) -> list[Any]:
    with play.ctx.engine.connect() as connection:
        return list(registry.deliveries(connection, endpoint, registry.Which(), None, 100))


def redeliver(
    play: Stage, endpoint: WebhookEndpoint, which: registry.Which, after: uuid.UUID | None = None
) -> tuple[int, uuid.UUID | None]:
    with play.ctx.engine.begin() as connection:
        return registry.redeliver(connection, endpoint, which, after, play.now())


def _project(play: Stage, name: str) -> Any:
    with play.ctx.engine.begin() as connection:
        return keys.create_project(connection, name)


def _tried(answer: Any) -> webhooks.Tried:
    delivery = Delivery(project_id=None, url="https://shop.example/", body="{}", tries=0, created_at=NOW)
    return webhooks.deliver(httpx.MockTransport(answer), delivery, None, NOW)
