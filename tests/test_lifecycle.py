"""The life of a job, as a story: from the submission to the webhook, and the ways in which it may end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from pytest_httpserver import HTTPServer
from stage import CLIP, Stage, stage
from standardwebhooks import Webhook

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker.errors import InvalidInput
from worker.states import State

PICTURE = "https://example.com/cat.png"


def billed(sandbox: Sandbox) -> int:
    """Micro-CNY by the provider's own books."""
    micros: int = sandbox.ledger()["totals"]["billed_micros"]
    return micros


def tasks(sandbox: Sandbox) -> int:
    made: int = sandbox.ledger()["totals"]["tasks"]
    return made


def test_a_clip_goes_from_submission_to_the_bucket(play: Stage) -> None:
    job = play.submit()

    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert play.states(job) == ["queued", "admitted", "submitting", "running", "copying", "succeeded"]
    shown = play.document(job)
    assert shown["cost"] == {"currency": "CNY", "estimated": "1.50", "actual": "1.50", "billed": "yes"}
    assert play.ledger(job) == [("reserve", 1_500_000), ("settle", 1_500_000), ("release", -1_500_000)]
    assert billed(play.sandbox) == 1_500_000
    output = shown["outputs"][0]
    assert output["content_type"] == "video/mp4"
    assert output["key"].endswith(f"{job.id}/0-video.mp4")
    head = play.ctx.bucket.head(output["key"])
    assert head is not None
    assert head.bytes == output["bytes"]
    assert ended.sources is None


def test_a_picture_becomes_a_clip(play: Stage) -> None:
    asked = {"img_url": PICTURE, "prompt": "it moves", "resolution": "480P", "duration": 5}

    job = play.until(play.submit("image-to-video", "wan2.5-i2v-preview", input=asked))

    assert job.state == State.SUCCEEDED
    assert play.document(job)["outputs"][0]["role"] == "video"


def test_two_pictures_are_two_outputs_and_two_prices(play: Stage) -> None:
    asked = {"prompt": "a flower shop", "size": "1280*1280", "n": 2}

    job = play.until(play.submit("text-to-image", "wan2.5-t2i-preview", input=asked))

    shown = play.document(job)
    assert [output["content_type"] for output in shown["outputs"]] == ["image/png", "image/png"]
    assert shown["cost"]["actual"] == "0.40"
    assert billed(play.sandbox) == 400_000


@pytest.mark.parametrize("model", ["wan2.6-t2v", "wan2.2-t2v-plus", "wanx2.1-t2v-turbo", "wan2.7-t2v"])
def test_each_generation_is_billed_as_estimated(play: Stage, model: str) -> None:
    job = play.until(play.submit(model=model, input={"prompt": "a kitten runs"}))

    assert job.state == State.SUCCEEDED
    assert job.cost == job.estimate == billed(play.sandbox)


def test_an_alias_is_the_real_model(play: Stage) -> None:
    job = play.submit(model="wan2.5-t2v-plus")

    assert job.model == "wan2.5-t2v-preview"


def test_a_receiver_is_told_once_and_can_check_who_says_it(play: Stage, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/done", method="POST").respond_with_data("ok")
    job = play.until(play.submit(webhook_url=httpserver.url_for("/done"), metadata={"sku": "A17"}))

    play.drive(play.deliveries, lambda found: all(delivery.state == "delivered" for delivery in found))

    (request, _), *others = httpserver.log
    assert not others
    said = Webhook(play.project.webhook_secret).verify(request.get_data(), dict(request.headers.items()))
    assert said["type"] == "job.succeeded"
    assert said["data"]["id"] == str(job.id)
    assert said["data"]["metadata"] == {"sku": "A17"}
    assert said["data"]["outputs"][0]["url"] == f"/v1/jobs/{job.id}/outputs/0"
    assert "input" not in said["data"]
    assert "Signature=" not in request.get_data(as_text=True)


def test_a_receiver_that_is_down_is_tried_again_with_the_same_id(play: Stage, httpserver: HTTPServer) -> None:
    httpserver.expect_ordered_request("/done").respond_with_data("no", status=503)
    httpserver.expect_ordered_request("/done").respond_with_data("ok")
    play.until(play.submit(webhook_url=httpserver.url_for("/done")))
    play.drive(play.deliveries, lambda found: found[0].tries == 1)
    waits = play.sql("select extract(epoch from run_at - now()) as seconds from deliveries")[0]["seconds"]
    assert 3.5 < waits < 5.6

    play.sql("update deliveries set run_at = now()")
    play.drive(play.deliveries, lambda found: found[0].state == "delivered")

    ids = [request.headers["webhook-id"] for request, _ in httpserver.log]
    assert len(ids) == 2
    assert len(set(ids)) == 1


@pytest.mark.parametrize(("status", "state"), [(410, "exhausted"), (302, "waiting")])
def test_a_receiver_that_is_gone_is_not_tried_and_a_redirect_is_a_failure(
    play: Stage, httpserver: HTTPServer, status: int, state: str
) -> None:
    httpserver.expect_request("/done").respond_with_data("", status=status, headers={"Location": "/other"})
    play.until(play.submit(webhook_url=httpserver.url_for("/done")))

    (delivery,) = play.drive(play.deliveries, lambda found: found and found[0].tries == 1)

    assert delivery.state == state
    assert len(httpserver.log) == 1


def test_a_receiver_hears_of_every_state_it_asked_for(play: Stage, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/all").respond_with_data("ok")
    wanted = ["job.queued", "job.submitted", "job.running", "job.succeeded"]

    play.until(play.submit(webhook_url=httpserver.url_for("/all"), webhook_events=wanted))
    play.drive(play.deliveries, lambda found: all(delivery.state == "delivered" for delivery in found))

    said = sorted((json.loads(request.get_data()) for request, _ in httpserver.log), key=lambda one: one["sequence"])
    assert [one["type"] for one in said] == wanted


def test_a_prompt_that_is_refused_fails_with_the_providers_words_and_costs_nothing(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="DataInspectionFailed")

    job = play.until(play.submit())

    assert job.state == State.FAILED
    assert job.error["class"] == "content"
    assert job.error["provider"]["code"] == "DataInspectionFailed"
    assert job.error["billed"] == "no"
    assert play.ledger(job) == [("reserve", 1_500_000), ("release", -1_500_000)]


def test_a_task_that_fails_for_its_content_is_not_made_again(play: Stage) -> None:
    play.sandbox.fault(where="create", what="task_fails", code="DataInspectionFailed")

    job = play.until(play.submit())

    assert job.state == State.FAILED
    assert job.error["provider"]["code"] == "DataInspectionFailed"
    assert tasks(play.sandbox) == 1
    assert billed(play.sandbox) == 0


def test_a_task_that_fails_by_the_providers_fault_is_made_once_more(play: Stage) -> None:
    play.sandbox.fault(where="create", what="task_fails", code="InternalError", times=1)
    job = play.submit()
    play.until(job, State.QUEUED, State.RUNNING)
    play.drive(lambda: play.job(job), lambda found: found.retries == 1)
    play.sql("update jobs set run_at = now()")

    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert [attempt.billed for attempt in play.attempts(job)] == ["no", "yes"]
    assert billed(play.sandbox) == ended.cost


def test_a_throttled_lane_waits_and_its_job_keeps_its_place(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="Throttling.RateQuota", times=1)
    job = play.submit()

    waiting = play.drive(lambda: play.document(job), lambda found: (found["waiting_on"] or {}).get("code") == "quota")

    assert waiting["state"] == "queued"
    assert waiting["waiting_on"]["until"] is not None
    play.sql("update lanes set parked_until = null")
    assert play.until(job).state == State.SUCCEEDED
    assert [attempt.outcome for attempt in play.attempts(job)] == ["refused", "accepted"]


def test_arrears_stop_the_account_not_the_jobs(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="Arrearage")
    held, waiting = play.submit(), play.submit(model="wan2.2-t2v-plus", input={"prompt": "a dog"})

    play.drive(lambda: play.document(waiting), lambda found: (found["waiting_on"] or {}).get("code") == "account")

    creates = play.sandbox.ledger()["totals"]["creates"]
    play.play(play.tick())
    assert play.sandbox.ledger()["totals"]["creates"] == creates
    play.sandbox.clear_faults()
    play.sql("update owners set stopped_until = now()")
    play.sql("update jobs set run_at = now() where state = 'queued'")
    assert play.until(held).state == State.SUCCEEDED
    assert play.until(waiting).state == State.SUCCEEDED


def test_a_call_that_was_never_sent_is_made_again(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, dashscope_url="http://127.0.0.1:9") as play:
        job = play.submit()

        play.drive(lambda: play.attempts(job), lambda found: found and found[0].outcome == "not_sent")

        assert play.job(job).state == State.QUEUED
        assert play.job(job).billed == "no"


def test_a_queued_job_is_canceled_at_once(play: Stage) -> None:
    job = play.submit()

    assert play.cancel(job) == "canceled"

    assert play.job(job).state == State.CANCELED
    assert play.ledger(job)[-1] == ("release", -1_500_000)
    assert play.cancel(job) == "already_finished"
    assert tasks(play.sandbox) == 0


def test_a_task_that_has_not_started_is_canceled_at_the_provider(play: Stage) -> None:
    play.sandbox.set(queue_seconds=60)
    job = play.until(play.submit(), State.RUNNING)

    assert play.cancel(job) == "requested"

    ended = play.until(job)
    assert ended.state == State.CANCELED
    assert billed(play.sandbox) == 0
    assert play.ledger(job)[-1] == ("release", -1_500_000)


def test_a_task_that_has_started_runs_on_and_says_so(play: Stage) -> None:
    play.sandbox.set(run_seconds=1)
    job = play.until(play.submit(), State.RUNNING)
    play.sql("update jobs set task_status = 'PENDING'")  # as it looked at the last look

    assert play.cancel(job) == "requested"

    ended = play.until(job)
    assert ended.state == State.SUCCEEDED
    assert not ended.cancel_requested
    assert play.cancel(ended) == "already_finished"


def test_a_running_task_is_too_late_to_cancel(play: Stage) -> None:
    play.sandbox.set(run_seconds=30)
    job = play.until(play.submit(), State.RUNNING)
    play.drive(lambda: play.job(job), lambda found: found.task_status == "RUNNING")

    assert play.cancel(job) == "too_late"


def test_a_strange_status_is_waited_on(play: Stage) -> None:
    play.sandbox.fault(where="get", what="suspended", times=3)

    assert play.until(play.submit()).state == State.SUCCEEDED


@pytest.mark.parametrize(
    "fault",
    [
        {"what": "html"},
        {"what": "error", "code": "InternalError"},
        {"what": "error", "code": "Throttling"},
        {"what": "reset"},
        {"what": "truncated"},
        {"what": "unknown"},
    ],
)
def test_a_look_that_fails_is_a_look_later(play: Stage, fault: dict[str, str]) -> None:
    play.sandbox.fault(where="get", times=2, **fault)
    job = play.submit()

    play.drive(lambda: play.sandbox.ledger()["faults"], lambda faults: sum(faults.values()) == 2)
    play.sql("update jobs set run_at = now() where state = 'running'")

    assert play.until(job).state == State.SUCCEEDED
    assert tasks(play.sandbox) == 1


def test_unknown_is_believed_after_ten_minutes_of_looks(play: Stage) -> None:
    play.sandbox.fault(where="get", what="unknown")
    job = play.until(play.submit(), State.RUNNING)
    play.drive(lambda: play.job(job), lambda found: found.unknown_since is not None)
    play.sql("update jobs set unknown_since = unknown_since - interval '11 minutes', run_at = now()")
    play.sql("update owners set seen_at = now()")  # other tasks of the account can be seen

    ended = play.until(job)

    assert ended.state == State.EXPIRED
    assert ended.error["billed"] == "unknown"
    assert play.ledger(job) == [("reserve", 1_500_000)]


def test_a_dead_link_is_asked_for_again_once(play: Stage) -> None:
    play.sandbox.fault(where="link", what="expired", times=1)

    job = play.until(play.submit())

    assert job.state == State.SUCCEEDED
    assert job.relinked


def test_an_output_whose_links_are_all_dead_is_expired_with_what_it_cost(play: Stage) -> None:
    play.sandbox.fault(where="link", what="purged")

    job = play.until(play.submit())

    assert job.state == State.EXPIRED
    assert job.cost == 1_500_000
    assert job.error["code"] == "output_expired"
    assert job.error["billed"] == "yes"


@pytest.mark.parametrize("what", ["truncated", "corrupt", "wrong_type", "reset"])
def test_a_copy_that_went_wrong_is_made_again_while_the_link_lives(play: Stage, what: str) -> None:
    play.sandbox.fault(where="link", what=what, times=1)
    job = play.until(play.submit(), State.COPYING)
    play.drive(lambda: play.job(job), lambda found: found.error is not None)

    play.sql("update jobs set run_at = now()")

    ended = play.until(job)
    assert ended.state == State.SUCCEEDED
    assert ended.error is None


def test_a_redirect_into_the_machine_is_not_followed(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox) as play:
        sandbox.fault(where="link", what="redirect", location="http://169.254.169.254/latest/meta-data")
        job = play.until(play.submit(), State.COPYING)

        stuck = play.drive(lambda: play.job(job), lambda found: found.error is not None)

        assert stuck.state == State.COPYING
        assert stuck.error["code"] == "bad_source"


def test_no_more_tasks_run_than_the_model_allows(environment: dict[str, str]) -> None:
    with (
        running(Options(run_seconds=0.3, queue_seconds=0, limits={"*": Limits(rps=50)})) as sandbox,
        stage(environment, sandbox, limits={"wan2.5-t2v-preview": {"concurrency": 3, "rps": 50}}) as play,
    ):
        submitted = [play.submit() for _ in range(9)]

        play.drive(lambda: [play.job(job).state for job in submitted], lambda states: set(states) == {"succeeded"})

        assert list(sandbox.ledger()["peaks"]["in_flight"].values()) == [{"wan2.5-t2v-preview": 3}]
        assert sandbox.ledger()["throttled"] == {}


def test_creates_are_spread_over_the_lanes_rate(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, limits={"wan2.5-t2v-preview": {"concurrency": 9, "rps": 5}}) as play:
        sandbox.set(limits={"*": {"rps": 1000, "concurrency": 100}})
        submitted = [play.submit() for _ in range(6)]

        play.drive(lambda: [play.job(job).state for job in submitted], lambda states: set(states) == {"succeeded"})

        sent = sorted(play.attempts(job)[0].sent_at for job in submitted)
        apart = [later - earlier for earlier, later in itertools.pairwise(sent)]
        assert min(apart) >= timedelta(seconds=1 / (5 * 0.9)) - timedelta(milliseconds=1)


def test_high_priority_goes_first(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, limits={"wan2.5-t2v-preview": {"concurrency": 1, "rps": 50}}) as play:
        low, normal, high = (play.submit(priority=priority) for priority in ("low", "normal", "high"))

        play.drive(
            lambda: [play.job(job) for job in (low, normal, high)],
            lambda found: all(job.state == "succeeded" for job in found),
        )

        order = sorted((low, normal, high), key=lambda job: play.job(job).submitted_at)
        assert [job.id for job in order] == [high.id, normal.id, low.id]


def test_flower_is_told_one_row_a_job_and_no_prompt(play: Stage) -> None:
    job = play.until(play.submit(custom_id="row-17"))

    told = [(event["type"], event["uuid"]) for event in play.told]
    assert told == [
        (kind, str(job.id)) for kind in ("task-submitted", "task-running", "task-copying", "task-succeeded")
    ]
    assert play.told[-1]["result"].endswith("0-video.mp4")
    assert play.told[-1]["name"] == "text-to-video · wan2.5-t2v-preview"
    assert "kitten" not in repr(play.told)


def test_a_submission_that_cannot_work_costs_nothing_and_names_every_fault(play: Stage) -> None:
    wrong = {"prompt": "x" * 2000, "size": "480P", "duration": 7}

    with pytest.raises(InvalidInput) as caught:
        play.submit(input=wrong)

    assert {fault.pointer for fault in caught.value.faults} == {"/input/prompt", "/input/size", "/input/duration"}


def test_no_link_key_or_prompt_is_logged(
    play: Stage, written: Callable[[], str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    play.sandbox.fault(where="link", what="expired", times=1)
    play.until(play.submit(input={**CLIP, "prompt": "canary-in-the-prompt"}))

    printed = capsys.readouterr()
    logged = written() + caplog.text + printed.out + printed.err
    assert "moved" in written()
    assert not [word for word in ("canary", "Signature=", "sk-test", "OSSAccessKeyId") if word in logged]
