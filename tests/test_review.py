"""Reviews: outputs that wait for a person, what approving and rejecting them does, and takes side by side."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from celery.events.state import State as FlowerState
from pytest_httpserver import HTTPServer
from serving import Served, eventually, served
from sqlalchemy.exc import IntegrityError
from stage import Stage

from api import forms
from ops import audit
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import catalog, document
from worker.jobs import review, submission
from worker.jobs.submission import Submission
from worker.kinds import OFFERED
from worker.moves import children
from worker.settings import Settings
from worker.states import State
from worker.tables import Job

WAITS = State.AWAITING_REVIEW
COMMENT = "the cat has five legs"
PICTURES = {"kind": "text-to-image", "model": "wan2.2-t2i-flash", "input": {"prompt": "two cats", "n": 2}}
VERSES = {"kind": "speech", "model": "qwen3-tts-flash", "input": {"paragraphs": [{"text": "One."}, {"text": "Two."}]}}
WORDS = {"kind": "text", "model": "qwen-plus", "input": {"prompt": "Say hello."}}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.05, queue_seconds=0, call_seconds=0)) as made:
        yield made


@pytest.fixture
def http(api: Served, play: Stage) -> Iterator[httpx.Client]:
    with api.http(api.key(play.project.name)) as client:
        yield client


def waiting(play: Stage, **more: Any) -> Job:
    """A job whose outputs wait for a review."""
    return play.until(play.submit(review="required", **more), WAITS)


def approve(http: httpx.Client, job: Job, **said: Any) -> httpx.Response:
    return http.post(f"/v1/jobs/{job.id}/approve", json=said)


def reject(
    http: httpx.Client, job: Job, reroll: dict[str, Any] | None = None, comment: str = COMMENT
) -> httpx.Response:
    said = {"comment": comment} | ({} if reroll is None else {"reroll": reroll})
    return http.post(f"/v1/jobs/{job.id}/reject", json=said)


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def pointers(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 422, answer.text
    return {fault["pointer"] for fault in answer.json()["errors"]}


def take_of(play: Stage, answer: httpx.Response) -> Job:
    """The next take in an answer."""
    assert answer.status_code == 200, answer.text
    (row,) = play.sql("select * from jobs where id = :id", id=answer.json()["next_take"]["id"])
    return Job.of(row)


def together(play: Stage, job: Job, *asks: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """What is asked at once: all requests wait for the job's row before any of them goes on."""
    blocked = (
        "select count(*) as n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    with ThreadPoolExecutor(len(asks)) as threads:
        with play.ctx.engine.begin() as connection:
            connection.exec_driver_sql("select from jobs where id = %s for update", (job.id,))
            answers: list[Future[httpx.Response]] = [threads.submit(ask) for ask in asks]
            eventually(lambda: play.sql(blocked)[0]["n"] == len(asks))
        return [answer.result() for answer in answers]


class TestWaiting:
    def test_outputs_wait_in_the_bucket_until_a_person_approves_them(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        shown = http.get(f"/v1/jobs/{job.id}").json()
        fetched = http.get(shown["outputs"][0]["url"])
        approved = approve(http, job, comment="the light is right").json()

        assert play.states(job)[-3:] == ["copying", "awaiting_review", "succeeded"]
        assert (shown["state"], shown["is_terminal"], shown["finished_at"]) == ("awaiting_review", False, None)
        assert shown["waiting_on"]["code"] == "review"
        assert shown["review"] == {"decision": None, "comment": None, "at": None}
        assert {"approve", "reject", "takes"} <= shown["urls"].keys()
        assert fetched.status_code == 302
        assert httpx.get(fetched.headers["location"]).content[4:8] == b"ftyp"
        assert (approved["state"], approved["is_terminal"]) == ("succeeded", True)
        assert (approved["review"]["decision"], approved["review"]["comment"]) == ("approved", "the light is right")
        assert approved["finished_at"] == approved["review"]["at"]
        assert approved["outputs"] == shown["outputs"]
        assert {"approve", "reject"}.isdisjoint(approved["urls"])

    def test_it_is_at_rest_and_has_been_paid_for(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        row, ledger = play.job(job), play.ledger(job)
        approve(http, job)

        assert (row.run_at, row.claimed, row.sources, row.deadline_at) == (None, None, None, None)
        assert (row.billed, row.cost) == ("yes", row.estimate)
        assert sorted(ledger) == sorted([("reserve", row.cost), ("settle", row.cost), ("release", -(row.cost or 0))])
        assert play.ledger(job) == ledger, "a person's word costs nothing"
        assert audit.audit(play.ctx.engine) == []

    @pytest.mark.parametrize("asked", [PICTURES, WORDS, VERSES], ids=lambda asked: asked["kind"])
    def test_every_kind_of_job_waits_and_its_parts_do_not(self, play: Stage, asked: dict[str, Any]) -> None:
        job = waiting(play, **asked)

        parts = play.sql("select state, review from jobs where parent_id is not null")
        assert {(part["state"], part["review"]) for part in parts} <= {("succeeded", None)}
        assert play.document(job)["outputs"]
        assert audit.audit(play.ctx.engine) == []

    def test_what_the_parts_cost_is_shown_and_their_reservation_given_back(self, play: Stage) -> None:
        job = waiting(play, **VERSES)

        row, paid = play.job(job), play.sandbox.ledger()["totals"]["billed_micros"]
        assert (row.cost, row.billed) == (paid, "yes")
        assert sum(micros for entry, micros in play.ledger(job) if entry in ("reserve", "release")) == 0

        # the verdict on a part's call may come later still
        play.sql("update ledger set micros = micros + 5 where id = (select min(id) from ledger where entry = 'settle')")
        with play.ctx.engine.begin() as connection:
            children.tell_paid(connection, job.id)
        assert play.job(job).cost == paid + 5

    def test_a_worker_of_a_version_without_reviews_cannot_end_it(self, play: Stage) -> None:
        job = play.until(play.submit(review="required"), State.COPYING)

        with pytest.raises(IntegrityError, match="ck_jobs_reviewed"):
            play.sql("update jobs set state = 'succeeded', run_at = null, finished_at = now()")

        assert play.until(job, WAITS).review == "required"

    def test_a_job_that_nobody_is_to_look_at_just_succeeds(self, play: Stage, http: httpx.Client) -> None:
        job = play.until(play.submit())

        shown = http.get(f"/v1/jobs/{job.id}").json()

        assert (shown["state"], shown["review"]) == ("succeeded", None)
        assert {"approve", "reject", "takes"}.isdisjoint(shown["urls"])

    def test_a_list_finds_what_waits(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)
        play.until(play.submit())

        found = http.get("/v1/jobs?state=awaiting_review").json()["data"]

        assert [one["id"] for one in found] == [str(job.id)]

    def test_it_is_too_late_to_cancel_and_not_the_time_to_retry(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        canceled = http.post(f"/v1/jobs/{job.id}/cancel").json()
        retried = http.post(f"/v1/jobs/{job.id}/retry")

        assert (canceled["outcome"], canceled["job"]["state"]) == ("too_late", "awaiting_review")
        assert not canceled["job"]["cancel_requested"]
        assert refused(retried) == (409, "not_retryable")


class TestDeciding:
    def test_approving_twice_gives_the_same_answer(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        first, again = approve(http, job, comment="good"), approve(http, job, comment="still good")
        without_a_body = http.post(f"/v1/jobs/{job.id}/approve")

        assert [answer.status_code for answer in (first, again, without_a_body)] == [200] * 3
        assert first.json() == again.json() == without_a_body.json()
        assert play.states(job).count("succeeded") == 1

    def test_rejecting_twice_gives_the_same_answer(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        first, again = reject(http, job), reject(http, job, comment="and the dog none")

        assert first.json() == again.json()
        assert first.json()["next_take"] is None
        rejected = first.json()["job"]
        assert (rejected["state"], rejected["is_terminal"]) == ("rejected", True)
        assert (rejected["review"]["decision"], rejected["review"]["comment"]) == ("rejected", COMMENT)
        assert rejected["outputs"], "what was rejected can still be looked at"
        assert audit.audit(play.ctx.engine) == []

    def test_a_decision_is_final(self, play: Stage, http: httpx.Client) -> None:
        kept, thrown = waiting(play), waiting(play)
        approve(http, kept)
        reject(http, thrown)

        assert refused(reject(http, kept, {})) == (409, "already_approved")
        assert refused(approve(http, thrown)) == (409, "already_rejected")

    def test_what_cannot_be_decided_is_refused_with_a_reason(self, play: Stage, http: httpx.Client) -> None:
        plain, queued = play.submit(), play.submit(review="required")
        failed = play.submit(review="required")
        play.sql("update jobs set state = 'failed', finished_at = now(), run_at = null where id = :id", id=failed.id)

        for job, code in ((plain, "no_review"), (queued, "nothing_to_review"), (failed, "nothing_to_review")):
            assert refused(approve(http, job)) == (409, code)
            assert refused(reject(http, job, {})) == (409, code)

    def test_a_rejection_says_why_and_every_fault_is_named(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)
        url = f"/v1/jobs/{job.id}/reject"

        assert pointers(http.post(url, json={})) == {"/comment"}
        assert pointers(http.post(url, json={"comment": "  ", "reroll": {"seed": -1, "size": "x"}})) == {
            "/comment",
            "/reroll/seed",
            "/reroll/size",
        }
        long = {"comment": "x" * (review.COMMENT_LENGTH + 1)}
        for answer in (http.post(url, json=long), approve(http, job, **long)):
            (fault,) = answer.json()["errors"]
            assert (fault["pointer"], fault["message"]) == ("/comment", "String should have at most 2000 characters")
        assert play.job(job).state == WAITS

    def test_a_rejected_job_is_not_retried_but_told_what_to_do(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)
        reject(http, job)

        answer = http.post(f"/v1/jobs/{job.id}/retry")

        assert refused(answer) == (409, "not_retryable")
        assert "reroll" in answer.json()["detail"]


class TestTakes:
    def test_a_rejection_makes_another_take_with_another_seed(self, play: Stage, http: httpx.Client) -> None:
        said = {"metadata": {"sku": "A17"}, "custom_id": "row-17", "priority": "high"}
        job = waiting(play, webhook_url="http://127.0.0.1:9/hooks", webhook_events=["job.rejected"], **said)

        answer = reject(http, job, {})

        take, made = take_of(play, answer), answer.json()["next_take"]
        assert (made["state"], made["take"], made["first_take"]) == ("queued", 2, str(job.id))
        assert made["review"] == {"decision": None, "comment": None, "at": None}
        assert {name: made[name] for name in said} == said
        assert (take.webhook_url, take.webhook_events) == (job.webhook_url, job.webhook_events)
        assert isinstance(take.input["seed"], int)
        assert {**take.input, "seed": None} == {**job.input, "seed": None}
        assert play.ledger(take) == [("reserve", take.estimate)]
        assert play.until(take, WAITS).attempts == 1
        assert audit.audit(play.ctx.engine) == []

    def test_a_seed_or_a_prompt_may_be_said(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        second = play.until(take_of(play, reject(http, job, {"seed": 7})), WAITS)
        third = take_of(play, reject(http, second, {"prompt": "a dog"}))

        assert second.input == {**job.input, "seed": 7}
        assert third.input == {**job.input, "seed": 7, "prompt": "a dog"}, "with the seed that it had"
        assert (third.take, third.first_take) == (3, job.id)

    def test_all_takes_stand_side_by_side_whichever_is_asked(self, play: Stage, http: httpx.Client) -> None:
        first = waiting(play)
        second = play.until(take_of(play, reject(http, first, {})), WAITS)
        third = take_of(play, reject(http, second, {}))

        takes = first, second, third
        lists = [http.get(f"/v1/jobs/{job.id}/takes").json()["data"] for job in takes]

        # their links are signed anew each second
        assert [[(one["id"], one["take"]) for one in shown] for shown in lists] == [
            [(str(job.id), n) for n, job in enumerate(takes, 1)]
        ] * 3

    def test_rejecting_again_gives_the_same_take(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        first, again = reject(http, job, {}).json(), reject(http, job, {"prompt": "a dog"}).json()
        without = reject(http, job).json()

        assert first["next_take"]["id"] == again["next_take"]["id"] == without["next_take"]["id"]
        assert len(play.sql("select from jobs")) == 2

    def test_what_was_rejected_may_have_its_take_later(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)
        reject(http, job)

        answer = reject(http, job, {})

        assert take_of(play, answer).take == 2
        assert answer.json()["job"]["review"]["comment"] == COMMENT

    def test_a_take_of_a_narration_is_made_of_parts_anew(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play, **VERSES)

        take = play.until(take_of(play, reject(http, job, {})), WAITS)

        assert take.input == job.input
        assert len(play.sql("select from jobs where parent_id = :id", id=take.id)) == 2
        assert audit.audit(play.ctx.engine) == []

    def test_no_seed_is_drawn_for_a_model_that_takes_none(
        self, play: Stage, http: httpx.Client, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = waiting(play)
        model = api.app.state.context.catalog.model(job.model)
        monkeypatch.setitem(vars(model), "fields", model.fields - {"seed"})

        take = take_of(play, reject(http, job, {}))

        assert take.input == job.input
        assert "seed" not in take.input

    @pytest.mark.parametrize(
        ("asked", "change"), [(VERSES, {"prompt": "x"}), (VERSES, {"seed": 1}), (PICTURES, {"prompt": "x" * 5000})]
    )
    def test_a_change_that_cannot_be_names_its_field_and_decides_nothing(
        self, play: Stage, http: httpx.Client, asked: dict[str, Any], change: dict[str, Any]
    ) -> None:
        job = waiting(play, **asked)

        answer = reject(http, job, change)

        assert pointers(answer) == {f"/reroll/{name}" for name in change}
        assert (play.job(job).state, play.job(job).review) == (WAITS, "required")

    def test_a_time_to_send_by_that_has_passed_is_not_carried_over(self, play: Stage, http: httpx.Client) -> None:
        later = play.now() + timedelta(days=1)
        on_time, late = waiting(play, not_after=later), waiting(play, not_after=later)
        play.sql("update jobs set not_after = now() - interval '1 s' where id = :id", id=late.id)

        assert take_of(play, reject(http, on_time, {})).not_after == later
        assert take_of(play, reject(http, late, {})).not_after is None

    def test_a_row_has_so_many_takes(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)
        play.sql("update jobs set take = :most", most=review.MOST_TAKES)

        assert refused(reject(http, job, {})) == (409, "too_many_takes")
        assert reject(http, job).status_code == 200

    def test_a_project_that_is_full_makes_no_take_and_keeps_what_it_has(
        self, play: Stage, environment: dict[str, str]
    ) -> None:
        job, made = waiting(play), waiting(play)
        with served(environment, max_waiting=2) as api, api.http(api.key(play.project.name)) as http:
            first = reject(http, made, {}).json()
            play.submit(review="required")

            assert refused(reject(http, job, {})) == (429, "too_many_waiting")
            assert play.job(job).state == WAITS
            assert reject(http, made, {}).json()["next_take"]["id"] == first["next_take"]["id"]
            assert reject(http, job).status_code == 200

    def test_the_row_of_its_batch_leads_to_the_newest_take_and_the_batch_runs_again(
        self, play: Stage, http: httpx.Client
    ) -> None:
        job = waiting(play)
        (batch,) = play.sql(
            "insert into batches (project_id, name, digest, source, report, rows, state)"
            " values (:project, 'spring', '', '{}', '{}', 2, 'completed') returning id",
            project=play.project.id,
        )
        play.sql(
            "insert into batch_rows (batch_id, n, line, outcome, job_id)"
            " select :batch, n, n + 1, 'made', case n when 2 then cast(:job as uuid) end from generate_series(1, 2) n",
            batch=batch["id"],
            job=job.id,
        )
        play.sql("update jobs set batch_id = :batch, batch_row = 2", batch=batch["id"])

        take = take_of(play, reject(http, job, {}))

        assert (take.batch_id, take.batch_row) == (batch["id"], 2)
        rows = play.sql("select n, job_id from batch_rows order by n")
        assert [row["job_id"] for row in rows] == [None, take.id]
        assert play.sql("select state from batches")[0]["state"] == "running"


class TestTogether:
    def test_of_two_who_reject_at_once_both_get_the_one_take(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        answers = together(play, job, lambda: reject(http, job, {}), lambda: reject(http, job, {"prompt": "a dog"}))

        assert {take_of(play, answer).take for answer in answers} == {2}
        assert len(play.sql("select from jobs")) == 2

    def test_of_approving_and_rejecting_at_once_one_wins(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)

        answers = together(play, job, lambda: approve(http, job), lambda: reject(http, job, {}))

        assert sorted(answer.status_code for answer in answers) == [200, 409]
        takes = play.sql("select from jobs where first_take is not null")
        assert len(takes) == (0 if answers[0].status_code == 200 else 1)

    def test_of_many_who_approve_at_once_all_get_the_same_answer(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play)
        start = threading.Barrier(4)

        def ask(n: int) -> dict[str, Any]:
            start.wait()
            said: dict[str, Any] = approve(http, job, comment=str(n)).json()
            return said

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(ask, range(4)))

        assert answers == [answers[0]] * 4
        assert play.states(job).count("succeeded") == 1


class TestTelling:
    @pytest.mark.parametrize("decision", ["approved", "rejected"])
    def test_a_receiver_hears_that_a_review_is_due_and_how_it_ended(
        self, play: Stage, http: httpx.Client, httpserver: HTTPServer, decision: str
    ) -> None:
        httpserver.expect_request("/hook").respond_with_data("ok")
        job = waiting(play, webhook_url=httpserver.url_for("/hook"))
        answer = approve(http, job) if decision == "approved" else reject(http, job)

        play.drive(play.deliveries, lambda found: all(one.state == "delivered" for one in found))

        said = sorted((json.loads(one.get_data()) for one, _ in httpserver.log), key=lambda one: one["sequence"])
        end = "succeeded" if decision == "approved" else "rejected"
        assert answer.status_code == 200
        assert [one["type"] for one in said] == ["job.awaiting_review", f"job.{end}"]
        assert said[0]["data"]["outputs"]
        assert {"approve", "reject"} <= said[0]["data"]["urls"].keys()
        assert said[1]["data"]["review"]["decision"] == decision

    def test_a_receiver_hears_only_what_it_asked_for(self, play: Stage, http: httpx.Client) -> None:
        job = waiting(play, webhook_url="http://127.0.0.1:9/hook", webhook_events=["job.rejected"])
        reject(http, job)

        (delivery,) = play.deliveries()
        assert json.loads(delivery.body)["type"] == "job.rejected"
        assert audit.audit(play.ctx.engine) == []

    @pytest.mark.parametrize("end", [State.SUCCEEDED, State.REJECTED])
    def test_flower_shows_what_waits_and_how_it_ended(self, play: Stage, end: State) -> None:
        job, flower = waiting(play), FlowerState()
        for n, event in enumerate(play.told):
            flower.event({**event, "hostname": "noria", "clock": n})
        row = flower.tasks[str(job.id)]
        assert (row.state, row.result.rpartition("/")[2]) == ("AWAITING_REVIEW", "0-video.mp4")

        with play.ctx.engine.begin() as connection:
            if end is State.SUCCEEDED:
                ended = review.approve(connection, job.project_id, job.id, None, play.now())
            else:
                ended = review.reject(connection, job.project_id, job.id, COMMENT, play.now())
        told = document.flower_event(ended, "spring", ["k/0-video.mp4"])
        assert told is not None
        flower.event({**told, "hostname": "noria", "clock": 99})

        if end is State.SUCCEEDED:
            assert (row.state, row.result) == ("SUCCESS", "k/0-video.mp4")
        else:
            assert (row.state, row.exception) == ("REJECTED_IN_REVIEW", f"rejected: {COMMENT}")
            assert row.result.endswith("0-video.mp4"), "what was rejected can still be found"
        assert "kitten" not in repr(told)

    def test_flower_is_told_of_a_decision_and_of_the_next_take(
        self, api: Served, play: Stage, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[dict[str, Any]] = []
        job, other = waiting(play), waiting(play)
        monkeypatch.setattr(api.app.state.context.sender, "tell", told.append)

        approve(http, other)
        take = take_of(play, reject(http, job, {}))

        assert [(event["type"], event["uuid"]) for event in told] == [
            ("task-succeeded", str(other.id)),
            ("task-rejected_in_review", str(job.id)),
            ("task-received", str(take.id)),
        ]
        assert told[0]["result"].endswith("0-video.mp4")


@pytest.mark.parametrize("kind", OFFERED)
def test_what_a_kind_took_once_it_takes_again_as_it_was_stored(kind: str) -> None:
    known = Settings.model_validate({"database_url": "", "broker_url": "", "dashscope_api_key": "sk-test"})
    said, now = forms.example(kind), datetime(2026, 11, 27, tzinfo=UTC)

    first = submission.prepare(catalog.load(), known, Submission(**said), now)
    again = submission.prepare(catalog.load(), known, Submission(kind, first.model, first.input), now)

    assert (again.input, again.estimate) == (first.input, first.estimate)
