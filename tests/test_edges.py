"""Stories that once went wrong: money paid twice, outputs lost, jobs stuck, one tenant's trouble made everybody's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from stage import Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import catalog, tick, timeouts
from worker.dashscope import responses
from worker.dashscope.client import Client
from worker.errors import ClaimLost, Conflict
from worker.jobs import operator
from worker.kinds import Source
from worker.states import Move, State
from worker.steps import finish
from worker.steps.batch import Bill
from worker.tables import Job

MODELS = ("wan2.5-t2v-preview", "wan2.5-i2v-preview", "wan2.6-t2i", "qwen-image-2.0-pro", "wan2.6-t2v")
PICTURE = "https://example.com/cat.png"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=100)})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    limits = {model: {"concurrency": 5, "rps": 100} for model in MODELS}
    with stage(environment, sandbox, limits=limits) as made:
        yield made


class Wire(httpx.BaseTransport):
    """A way out on which the first answers are replaced: by a page, or by an error before or after it is sent."""

    def __init__(self, real: httpx.BaseTransport, *first: Any) -> None:
        self._real = real
        self._first = list(first)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        instead = self._first.pop(0) if self._first else None
        if isinstance(instead, type):  # never sent
            raise instead("by the test", request=request)
        response = self._real.handle_request(request)
        if instead is None:
            return response
        response.read()
        response.close()
        return httpx.Response(**instead)


GATEWAY = {"status_code": 504, "headers": {"x-request-id": "a-gateways-own"}, "text": "<html>504</html>"}


def with_creates(play: Stage, *first: Any) -> Stage:
    """The stage, with the first answers of create calls replaced."""
    (account,) = play.ctx.settings.all_accounts
    real: Client = play.ctx.clients[account.name]
    client = Client(account, real._session._queries, Wire(real._session._creates, *first))
    return replace(play, ctx=replace(play.ctx, clients={account.name: client}))


def with_queries(play: Stage, answer: Mapping[str, Any]) -> Stage:
    """The stage, with every answer to a query replaced."""
    (account,) = play.ctx.settings.all_accounts
    real: Client = play.ctx.clients[account.name]
    client = Client(account, Wire(real._session._queries, *[answer] * 50), real._session._creates)
    return replace(play, ctx=replace(play.ctx, clients={account.name: client}))


def made(play: Stage) -> int:
    tasks: int = play.sandbox.ledger()["totals"]["tasks"]
    return tasks


def due(play: Stage, job: Job) -> None:
    play.sql("update jobs set run_at = now() - interval '1 s' where id = :id and run_at is not null", id=job.id)


@pytest.mark.parametrize(
    ("kind", "model", "asked"),
    [
        ("image-to-video", "wan2.5-i2v-preview", {"img_url": PICTURE}),
        ("text-to-image", "wan2.6-t2i", {"prompt": "a shop"}),
    ],
)
def test_a_task_that_repeats_no_prompt_is_no_proof_that_nothing_was_made(
    play: Stage, kind: str, model: str, asked: dict[str, Any]
) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)

    play.until(play.submit(kind, model, input=asked), State.HELD)

    assert made(play) == 1


def test_a_gateways_request_id_proves_nothing(play: Stage) -> None:
    play = with_creates(play, GATEWAY)

    job = play.until(play.submit())

    assert job.state == State.SUCCEEDED
    assert made(play) == 1


def test_a_result_that_was_on_record_is_not_paid_for_again(play: Stage) -> None:
    job = play.submit("text-to-image", "qwen-image-2.0-pro", input={"prompt": "a shop"})
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    answer = step.send(begun)  # type: ignore[attr-defined]
    play.lapse(job)
    play.play(play.tick())
    with pytest.raises(ClaimLost):
        play.ctx.record(begun, answer, clock)

    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert len(play.attempts(job)) == 1
    assert made(play) == 1


def test_a_late_no_answer_does_not_overwrite_what_was_found(play: Stage) -> None:
    play = with_creates(play, GATEWAY)
    job = play.submit()
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    late = step.send(begun)  # type: ignore[attr-defined]
    play.lapse(job)
    play.until(job)

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, late, clock)

    assert [attempt.outcome for attempt in play.attempts(job)] == ["accepted"]


def test_a_worker_that_died_in_mid_create_leaves_the_money_unknown(play: Stage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)
    play.ctx.record(taken, next(step), clock)
    play.lapse(job)

    play.play(play.tick())

    assert play.job(job).billed == "unknown"


def test_creates_that_cannot_be_sent_are_tried_ever_less_often(play: Stage) -> None:
    play = with_creates(play, *[httpx.ConnectError] * 8)
    job = play.submit()
    waits = []
    for number in range(1, 9):
        play.drive(
            lambda: play.job(job), lambda found, number=number: found.attempts == number and found.state == "queued"
        )
        waits.append(play.job(job).run_at - play.now())
        due(play, job)

    assert waits[-1] > timedelta(minutes=3)
    assert sorted(waits) == waits


def test_an_output_that_cannot_be_fetched_ends_with_its_link(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, egress_allow="10.0.0.0/8") as play:  # the sandbox's links are not in there
        job = play.until(play.submit(), State.COPYING)
        play.drive(lambda: play.job(job), lambda found: found.error is not None)
        play.sql(
            "update jobs set links_expire_at = now() - interval '2 hours', run_at = now() where id = :id", id=job.id
        )

        ended = play.until(job)

        assert ended.state == State.EXPIRED
        assert ended.cost == 1_500_000


def test_one_picture_that_cannot_be_stored_does_not_lose_the_other(play: Stage) -> None:
    play.sandbox.fault(where="link", what="wrong_type")
    asked = {"prompt": "x", "size": "1280*1280", "n": 2}
    job = play.until(play.submit("text-to-image", "wan2.5-t2i-preview", input=asked), State.COPYING)
    play.sandbox.clear_faults()
    broken = play.job(job).sources[1]["url"]
    play.sql(
        "update jobs set sources = jsonb_set(sources, '{1,url}', to_jsonb(cast(:url as text))) where id = :id",
        url=broken.replace("Signature=", "Signature=x"),
        id=job.id,
    )
    play.sql("update jobs set relinked = true where id = :id", id=job.id)
    due(play, job)

    ended = play.until(job)

    assert ended.state == State.EXPIRED
    assert [output["n"] for output in play.document(job)["outputs"]] == [0]


def test_a_task_that_nobody_may_look_at_ends_a_day_after_its_own_end(play: Stage) -> None:
    play.sandbox.set(run_seconds=1000)
    job = play.until(play.submit(), State.RUNNING)
    refused = {"status_code": 403, "json": {"code": "Workspace.AccessDenied", "message": "no", "request_id": "r"}}
    play = with_queries(play, refused)
    play.sql("update jobs set deadline_at = now() - interval '2 days' where id = :id", id=job.id)

    ended = play.until(job)

    assert (ended.state, ended.error["billed"]) == (State.EXPIRED, "unknown")


def test_looks_that_are_refused_do_not_put_off_the_try_that_ends_a_stop(play: Stage) -> None:
    play.sandbox.set(run_seconds=1000)
    job = play.until(play.submit(), State.RUNNING)
    refused = {"status_code": 401, "json": {"code": "InvalidApiKey", "message": "no", "request_id": "r"}}
    play = with_queries(play, refused)
    until: list[datetime | None] = []
    for _ in range(2):
        due(play, job)
        play.play(play.tick())
        until.append(play.sql("select stopped_until from owners")[0]["stopped_until"])

    assert None not in until
    assert until[0] == until[1]


def test_half_a_character_in_the_providers_words_ends_like_any_failure(play: Stage) -> None:
    play.sandbox.set(run_seconds=1000)
    job = play.until(play.submit(), State.RUNNING)
    cut = (
        '{"output":{"task_id":"x","task_status":"FAILED","code":"DataInspectionFailed","message":"cut \\ud83d\\u0000"}}'
    )
    play = with_queries(play, {"status_code": 200, "text": cut})

    ended = play.until(job)

    assert ended.state == State.FAILED
    assert ended.error["message"].startswith("cut")


def test_a_model_that_may_not_be_called_stops_itself_alone(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="Model.AccessDenied", model="wan2.6-t2v")
    forbidden = play.submit(model="wan2.6-t2v", input={"prompt": "x"})
    play.drive(lambda: play.attempts(forbidden), lambda found: found and found[0].outcome == "refused")

    other = play.until(play.submit())

    assert other.state == State.SUCCEEDED
    assert play.job(forbidden).state == State.QUEUED
    assert "authorize the model" in play.document(forbidden)["waiting_on"]["detail"]


def test_a_task_of_an_account_that_was_renamed_is_looked_after(play: Stage) -> None:
    job = play.until(play.submit(), State.RUNNING)
    play.sql("update jobs set account = 'its-old-name' where id = :id", id=job.id)

    assert play.until(job).state == State.SUCCEEDED


def test_a_cancel_during_the_create_call_is_passed_on_at_once(play: Stage) -> None:
    play.sandbox.set(queue_seconds=60)
    job = play.submit()
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    assert play.cancel(job) == "requested"

    play.ctx.record(begun, step.send(begun), clock)  # type: ignore[attr-defined]

    assert play.job(job).run_at <= play.now()
    assert play.until(job).state == State.CANCELED


@pytest.mark.parametrize("state", [State.ADMITTED, State.UNCERTAIN])
def test_a_move_that_breaks_a_rule_of_the_database_is_a_fault_and_no_lost_claim(play: Stage, state: State) -> None:
    job, _, clock = play.begin(play.submit())
    play.sql("update jobs set state = :state where id = :id", state=state, id=job.id)

    with pytest.raises(IntegrityError, match="billed"):
        play.ctx.record(play.job(job), Move(State.QUEUED, columns={"billed": "perhaps"}), clock)

    left = play.job(job)
    assert (left.state, left.claimed) == (state, "taken")


def test_a_job_that_waits_for_a_verdict_is_not_said_to_be_canceled(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset")
    job = play.until(play.submit(), State.HELD)

    with pytest.raises(Conflict) as refused:
        play.cancel(job)

    assert refused.value.code == "held_uncertain"


def test_one_receiver_with_many_deliveries_occupies_two_threads(play: Stage) -> None:
    for _ in range(40):
        play.submit(webhook_url="https://dead.example.com/hook", webhook_events=["job.queued"])

    first = [message for message in play.tick() if message.task == "noria.deliver"]
    second = [message for message in play.tick() if message.task == "noria.deliver"]

    assert (len(first), len(second)) == (2, 0)


def test_a_duty_that_fails_stops_nothing_else(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(connection: Connection, _: datetime) -> None:
        connection.exec_driver_sql("select 1/0")

    monkeypatch.setitem(tick._DUTIES, "learn", (timedelta(seconds=30), fails))
    play.sql("update duties set due_at = now()")

    assert play.until(play.submit()).state == State.SUCCEEDED


# Numbers that the provider cannot mean


NO_COUNTS = ["1" + "0" * 30, "1" + "0" * 5000, "-5", "NaN", "1e400", "1e300", '"many"', "true", "[5]", '"9e99"', "0"]


@pytest.mark.parametrize("count", NO_COUNTS, ids=lambda count: count[:9])
def test_a_use_that_cannot_be_is_taken_for_what_was_asked(play: Stage, count: str) -> None:
    play.sandbox.set(run_seconds=1000)
    job = play.until(play.submit(), State.RUNNING)
    ended = (
        '{"request_id": "r", "output": {"task_id": "x", "task_status": "SUCCEEDED", "video_url": "https://[x/?Expires",'
        ' "submit_time": "2026-01-01 00:00:00", "end_time": "2026-01-01 00:01:00+00:00"},'
        f' "usage": {{"duration": {count}, "video_count": {count}, "other": {count}}}}}'
    )
    play = with_queries(play, {"status_code": 200, "text": ended})

    made = play.until(job, State.COPYING)

    assert (made.cost, made.usage["seconds"], made.run_seconds) == (1_500_000, 5, None)
    assert play.ledger(job)[-2:] == [("settle", 1_500_000), ("release", -1_500_000)]


@pytest.mark.parametrize(("start", "end"), [("0001-01-01", "9999-01-01"), ("2026-01-02", "2026-01-01")])
def test_a_run_time_that_no_task_has_is_not_learned_from(play: Stage, start: str, end: str) -> None:
    play.sandbox.set(run_seconds=1000)
    job = play.until(play.submit(), State.RUNNING)
    output = {"task_id": "x", "task_status": "SUCCEEDED", "submit_time": start, "end_time": end}
    play = with_queries(play, {"status_code": 200, "json": {"output": output, "usage": {}}})

    play.drive(lambda: play.job(job), lambda found: found.state != State.RUNNING)

    assert play.job(job).run_seconds is None


@pytest.mark.parametrize("stamp", ["99999999999", "1", "9" * 400, "-5", "x"])
def test_a_link_lives_a_day_where_its_stamp_is_no_time(stamp: str) -> None:
    now = datetime(2026, 11, 26, tzinfo=UTC)

    dies_at = finish.links_expire([Source(f"https://example.com/a.mp4?Expires={stamp}", "video", "mp4")], now)

    assert dies_at == now + timedelta(days=1)


def test_a_pause_that_a_refusal_asks_for_is_an_hour_at_most(play: Stage) -> None:
    refused = {"code": "Throttling.RateQuota", "message": "too fast", "request_id": "r"}
    play = with_creates(play, {"status_code": 429, "headers": {"retry-after": "9" * 400}, "json": refused})
    job = play.submit()

    play.play(play.tick())

    assert play.job(job).state == State.QUEUED
    (parked,) = play.sql("select parked_until - now() as span from lanes where parked_until is not null")
    assert timedelta(minutes=59) < parked["span"] <= timedelta(minutes=61)


@pytest.mark.parametrize("count", NO_COUNTS, ids=lambda count: count[:9])
def test_an_answer_whose_numbers_cannot_be_is_kept_and_paid_for_once(play: Stage, count: str) -> None:
    answer = (
        '{"request_id": "r", "output": {"choices": [{"finish_reason": "stop", "score": %s, "message":'
        ' {"role": "assistant", "content": "red"}}]}, "usage": {"input_tokens": %s, "output_tokens": %s}}'
    )
    play = with_creates(play, {"status_code": 200, "text": answer % (count, count, count)})

    job = play.until(play.submit("text", "qwen-flash", input={"prompt": "Name a colour."}))

    assert (job.state, len(play.attempts(job))) == (State.SUCCEEDED, 1)
    assert job.usage["output_tokens"] == 1
    assert 0 < job.cost <= job.estimate


def test_a_count_that_cannot_be_is_no_part_of_a_batchs_bill() -> None:
    lines = [b'{"response": {"body": {"usage": {"prompt_tokens": %s, "completion_tokens": 2}}}}\n' % n for n in HUGE]
    bill = Bill(catalog.load().model("qwen-flash"))

    assert list(bill.read(lines)) == lines
    assert bill.units == {"output_tokens": 4}


def test_the_last_line_of_a_batch_is_billed_though_nothing_ends_it() -> None:
    bill = Bill(catalog.load().model("qwen-flash"))

    list(bill.read([b'{"response": {"body": {"usage": {"prompt_', b'tokens": 7, "completion_tokens": 2}}}}']))

    assert bill.units == {"input_tokens": 7, "output_tokens": 2}


def test_a_number_of_a_list_that_cannot_be_read_is_none() -> None:
    assert responses.number({"total": "9" * 5000}, "total") == 0
    assert responses.read('{"total": ' + "9" * 5000 + "}") == {"total": None}


HUGE = [b"1" + b"0" * 30, b"9" * 5000]


# A running job that kills workers


def dying(play: Stage, since: timedelta) -> Job:
    """A running job on which workers die at each look, that long after its deadline."""
    play.sandbox.set(run_seconds=1000)
    job = play.until(play.submit(), State.RUNNING)
    play.sql("update jobs set deadline_at = now() - :since, run_at = now() where id = :id", since=since, id=job.id)
    for _ in range(timeouts.CRASHES):
        play.take(job)
        play.lapse(job)
    return job


def test_a_running_job_that_kills_workers_ends_with_its_links(play: Stage) -> None:
    job = dying(play, timeouts.LINKS + timedelta(seconds=1))

    play.tick()

    ended = play.job(job)
    assert (ended.state, ended.billed, ended.error["code"]) == (State.EXPIRED, "unknown", "task_unseen")
    assert play.ledger(job) == [("reserve", 1_500_000)]
    given_up = operator.Decision(operator.Action.GIVE_UP, "Ada", billed="yes")
    operator.carry_out(play.ctx, ended, operator.decide(play.ctx, ended, given_up))
    assert sum(micros for _, micros in play.ledger(job)) == 1_500_000


def test_a_running_job_that_kills_workers_is_looked_at_while_its_links_may_live(play: Stage) -> None:
    job = dying(play, timeouts.LINKS - timedelta(minutes=1))

    (message,) = play.tick()

    assert [claim.id for claim in message.claims] == [job.id]
    assert play.job(job).state == State.RUNNING
