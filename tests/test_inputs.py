"""Objects of ours in a job's input: checked when they are named, handed over when the call is made."""

from __future__ import annotations

import struct
from base64 import b64encode, encodebytes
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import time_machine
from serving import Served
from stage import Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import inputs, kinds, media, text, timeouts
from worker.errors import CallFailed, InvalidInput, NotFound
from worker.inputs import Handover
from worker.jobs import reading
from worker.kinds import Request
from worker.lanes import throttle
from worker.states import State
from worker.tables import Job

MODEL = "wan2.5-i2v-preview"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24
WAV = b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 28


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=100)})) as made:
        yield made


@pytest.fixture(params=["link", "upload"])
def play(request: pytest.FixtureRequest, environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, input_handover=request.param) as made:
        yield made


def given(http: httpx.Client, name: str, content: bytes) -> str:
    key: str = http.post("/v1/files", files={"file": (name, content)}).json()["key"]
    return key


def submitted(http: httpx.Client, path: str = "/v1/jobs", **wanted: Any) -> httpx.Response:
    return http.post(path, json={"kind": "image-to-video", "model": MODEL, "input": wanted})


def faults(answer: httpx.Response) -> dict[str, str]:
    """Pointer → code."""
    return {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]}


def request_of(play: Stage, job: Job) -> Request:
    kind = kinds.call(job.kind)
    return kind.request(play.ctx.catalog.model(job.model), "cn-beijing", kind.input.model_validate(job.input))


def test_a_job_keeps_the_key_of_the_file_that_it_names(http: httpx.Client) -> None:
    picture, sound = given(http, "cat.png", PNG), given(http, "purr.wav", WAV)

    job = submitted(http, img_url=picture, audio_url=sound)

    assert job.status_code == 201
    assert (job.json()["input"]["img_url"], job.json()["input"]["audio_url"]) == (picture, sound)


def test_a_key_that_names_nothing_or_the_wrong_thing_is_named_before_anything_is_made(
    http: httpx.Client, api: Served
) -> None:
    picture, sound, large = (given(http, *file) for file in (("a.png", PNG), ("a.wav", WAV), ("b.png", PNG)))
    api.sql("update files set bytes = :bytes where key = :key", bytes=20 * 1024 * 1024 + 1, key=large)

    for path in ("/v1/jobs", "/v1/jobs?dry_run=true"):
        assert faults(submitted(http, path, img_url=picture + "x")) == {"/input/img_url": "no_such_file"}
        assert faults(submitted(http, path, img_url=sound, audio_url=picture)) == {
            "/input/img_url": "file_unfit",
            "/input/audio_url": "file_unfit",
        }
        assert faults(submitted(http, path, img_url=large)) == {"/input/img_url": "file_unfit"}
        assert faults(submitted(http, path, img_url="cat.png")) == {"/input/img_url": "bad_link"}
    assert api.sql("select id from jobs") == []


def test_an_output_of_an_earlier_job_is_an_input_too(http: httpx.Client, api: Served) -> None:
    job = submitted(http, img_url="https://example.com/cat.png").json()
    project = api.sql("select id from projects")[0]["id"]
    key = f"{project}/2026/01/02/{job['id']}/0-image.png"
    api.sql(
        "insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64)"
        " select id, 0, project_id, 'image', :key, 'image/png', 6, '', '' from jobs",
        key=key,
    )

    assert submitted(http, img_url=key).status_code == 201


def png(width: int, height: int, colour: int = 2) -> bytes:
    """The beginning of a PNG, which says its size and whether it has an alpha channel; colour type 2 has none."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHH", 12_000_054, 0, 54, 40, width, height, 1, 24)


# What the model's page does not allow, each with a word of the reason; the header alone is read.
UNFIT = [
    (png(120, 90), "120*90 pixels"),
    (png(8200, 300), "8200*300 pixels"),
    (png(640, 239), "sides of 240 to 8000 pixels"),
    (png(640, 480, 6), "alpha channel"),
    (png(640, 480, 4), "alpha channel"),
    (bmp(2000, 200), "2000*200 pixels"),
]


@pytest.mark.parametrize(("content", "why"), UNFIT)
@pytest.mark.parametrize("way", ["file", "data"])
def test_a_picture_that_the_model_does_not_take_is_refused_by_its_header(
    http: httpx.Client, content: bytes, why: str, way: str
) -> None:
    inline = f"data:image/{'bmp' if content[:2] == b'BM' else 'png'};base64,{b64encode(content).decode()}"
    picture = given(http, "a.png", content) if way == "file" else inline

    answer = http.post(
        "/v1/jobs", json={"kind": "image-to-video", "model": "wan2.2-i2v-flash", "input": {"img_url": picture}}
    )

    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == "/input/img_url"
    assert fault["code"] in ("file_unfit", "picture_unfit")
    assert why in fault["message"]


def test_a_picture_may_be_as_large_as_its_own_model_takes(http: httpx.Client, api: Served) -> None:
    picture = given(http, "a.bmp", bmp(2000, 2000))
    api.sql("update files set bytes = 12000054")

    def code(model: str) -> int:
        said = {"kind": "image-to-video", "model": model, "input": {"img_url": picture, "prompt": "it purrs"}}
        return http.post("/v1/jobs?dry_run=true", json=said).status_code

    assert (code("wan2.2-i2v-flash"), code("wan2.5-i2v-preview")) == (422, 200)


@pytest.mark.parametrize("content", [png(240, 240), png(8000, 8000), png(0, 0), b"\xff\xd8\xff\xe0\0\x10JFIF", PNG])
def test_a_picture_that_fits_or_does_not_say_is_taken(http: httpx.Client, content: bytes) -> None:
    said = {"kind": "image-to-video", "model": "wan2.2-i2v-flash", "input": {"img_url": given(http, "a", content)}}

    assert http.post("/v1/jobs", json=said).status_code == 201


def test_base64_with_the_line_ends_of_mime_is_taken_and_kept_without_them(http: httpx.Client) -> None:
    wrapped = encodebytes(png(640, 480) + bytes(300)).decode().replace("\n", "\r\n")

    job = submitted(http, img_url=f"data:image/png;base64,{wrapped}").json()

    assert job["input"]["img_url"] == "data:image/png;base64," + "".join(wrapped.split())
    assert faults(submitted(http, img_url="data:image/png;base64,AA AA")) == {"/input/img_url": "bad_link"}


def test_a_body_that_is_too_large_says_how_to_send_pictures(http: httpx.Client) -> None:
    answer = submitted(http, img_url="data:image/png;base64," + "A" * (1 << 20))

    assert answer.status_code == 413
    assert "POST /v1/files" in answer.json()["detail"]


def test_what_another_project_has_is_no_input(http: httpx.Client, api: Served) -> None:
    job = submitted(http, img_url="https://example.com/cat.png").json()
    project = api.sql("select id from projects")[0]["id"]
    output = f"{project}/2026/01/02/{job['id']}/0-image.png"
    api.sql(
        "insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64)"
        " select id, 0, project_id, 'image', :key, 'image/png', 6, '', '' from jobs",
        key=output,
    )

    with api.http(api.key("spring-2")) as others:
        for key in (output, given(http, "cat.png", PNG)):
            assert faults(submitted(others, img_url=key)) == {"/input/img_url": "no_such_file"}


def test_documents_that_are_said_to_be_files_have_to_be_there(http: httpx.Client, api: Served) -> None:
    key = given(http, "a.txt", b"some words")
    project = api.sql("select id from projects")[0]["id"]
    other = f"{project}/files/2026/01/02/none.txt"
    found = [{"key": key}, {"key": other}, {"text": "words"}, {"key": f"{project}/mine/put-there-by-myself.txt"}]

    with api.engine.connect() as connection:
        inputs.check(connection, project, "qwen-flash", {"documents": found[:1]})
        with pytest.raises(InvalidInput) as refused:
            inputs.check(connection, project, "qwen-flash", {"documents": found})

    assert [fault.pointer for fault in refused.value.faults] == ["/input/documents/1/key"]


def test_a_file_that_was_named_by_a_replayed_submission_may_be_gone(http: httpx.Client, api: Served) -> None:
    said = {"kind": "image-to-video", "model": MODEL, "input": {"img_url": given(http, "cat.png", PNG)}}
    first = http.post("/v1/jobs", json=said, headers={"idempotency-key": "k1"})
    api.sql("delete from files")

    again = http.post("/v1/jobs", json=said, headers={"idempotency-key": "k1"})

    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_the_provider_is_given_something_that_it_can_follow_and_the_record_keeps_the_key(play: Stage) -> None:
    key = play.file(PNG)
    job = play.submit("image-to-video", MODEL, input={"img_url": key, "prompt": "it purrs"})

    made = play.until(job)

    assert made.state == State.SUCCEEDED, made.error
    assert made.input["img_url"] == key
    assert play.attempts(job)[0].request_hash == text.digest(request_of(play, job).body)


def test_a_link_into_the_bucket_is_followed_without_a_key_of_ours(
    environment: dict[str, str], sandbox: Sandbox
) -> None:
    with stage(environment, sandbox) as play:
        key = play.file(PNG)
        job = play.submit("image-to-video", MODEL, input={"img_url": key, "prompt": key})
        request = play.ctx.handover.request(play.ctx.client(job), job, request_of(play, job))

        link = request.body["input"]["img_url"]
        assert httpx.get(link).content == PNG
        assert "X-Amz-Expires=21600" in link
        assert request.headers == request_of(play, job).headers


def test_a_link_from_a_host_whose_clock_is_eight_hours_behind_has_not_expired(
    environment: dict[str, str], sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "CLOCK_KEPT", timedelta(0))
    with stage(environment, sandbox) as play:
        key = play.file(PNG)
        job = play.submit("image-to-video", MODEL, input={"img_url": key, "prompt": key})
        with time_machine.travel(datetime.now(UTC) - timedelta(hours=8), tick=True):
            request = play.ctx.handover.request(play.ctx.client(job), job, request_of(play, job))

        assert httpx.get(request.body["input"]["img_url"]).content == PNG
        play.ctx.bucket.learn_clock(timedelta(0))  # it is right again


def test_an_upload_is_used_again_for_the_same_model_and_account_and_no_other(
    environment: dict[str, str], sandbox: Sandbox
) -> None:
    with stage(environment, sandbox, input_handover="upload") as play:
        job = play.submit("image-to-video", MODEL, input={"img_url": play.file(PNG), "prompt": "it purrs"})
        request = request_of(play, job)
        other = replace(request, body={**request.body, "model": "wan2.6-i2v"})
        handover = Handover(play.ctx.settings, play.ctx.bucket)

        first, again, elsewhere = (
            handover.request(play.ctx.client(job), job, each) for each in (request, request, other)
        )

    assert first.headers["X-DashScope-OssResourceResolve"] == "enable"
    assert first.body["input"]["img_url"].startswith("oss://")
    assert first.body == again.body
    assert elsewhere.body["input"]["img_url"] != first.body["input"]["img_url"]


def test_what_names_no_object_of_ours_is_handed_over_as_it_is(play: Stage) -> None:
    job = play.submit("image-to-video", MODEL, input={"img_url": "https://example.com/cat.png"})
    request = request_of(play, job)

    assert play.ctx.handover.request(play.ctx.client(job), job, request) is request


@pytest.mark.parametrize(
    "given", [{"img_url": "oss://dashscope/a.png"}, {"media": [{"type": "video", "url": "oss://dashscope/a.mp4"}]}]
)
def test_an_address_in_the_providers_store_asks_for_its_resolution(play: Stage, given: dict[str, Any]) -> None:
    job = play.submit("image-to-video", MODEL, input={"img_url": "oss://dashscope/a.png"})
    request = replace(request_of(play, job), body={"model": MODEL, "input": given})

    sent = play.ctx.handover.request(play.ctx.client(job), job, request)

    assert sent.headers == {**request.headers, "X-DashScope-OssResourceResolve": "enable"}
    assert sent.body == request.body


def test_an_object_that_is_gone_is_told_from_one_that_does_not_come_now(
    environment: dict[str, str], sandbox: Sandbox
) -> None:
    with stage(environment, sandbox, input_handover="upload") as play:
        key = play.file(PNG)
        job = play.submit("image-to-video", MODEL, input={"img_url": key})
        play.ctx.bucket.delete(key)

        with pytest.raises(NotFound):
            play.ctx.handover.request(play.ctx.client(job), job, request_of(play, job))


def test_every_rule_is_about_types_that_are_sniffed() -> None:
    clips = (b"\0\0\0\x18ftypmp42", b"\0\0\0\x14ftypqt  ")
    heads = (PNG, WAV, b"\xff\xd8\xff", b"ID3", b"RIFF\0\0\0\0WEBP", *clips)
    kinds = {media.sniff_input(head, "x") for head in heads} | {media.BMP}

    assert {kind.content_type for kind in kinds if kind} == media.PICTURES | media.SOUNDS | media.CLIPS


@pytest.fixture
def uploading(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, input_handover="upload") as made:
        yield made


def refusing(play: Stage, status: int, code: str, message: str = "") -> Job:
    """A job whose picture the provider refused once."""
    play.sandbox.fault(where="upload", what="error", status=status, code=code, message=message, times=1)
    job = play.submit("image-to-video", MODEL, input={"img_url": play.file(PNG)})
    play.play(play.tick())
    return play.job(job)


def test_a_file_that_is_refused_for_good_fails_its_job_and_costs_nothing(uploading: Stage) -> None:
    job = refusing(uploading, 400, "InvalidParameter", "no such purpose")

    assert (job.state, job.billed, uploading.attempts(job)) == (State.FAILED, "no", [])
    assert job.error is not None
    assert (job.error["code"], job.error["message"]) == ("invalid_parameter", "no such purpose")


def test_a_file_that_comes_too_soon_waits_without_a_slot(uploading: Stage) -> None:
    job = refusing(uploading, 429, "Throttling.RateQuota")

    assert (job.state, job.lane_id) == (State.QUEUED, None)
    assert job.run_at is not None
    assert job.run_at > uploading.now()
    uploading.lapse(job)
    assert uploading.until(job).state == State.SUCCEEDED


def test_a_key_that_may_upload_nothing_rests_its_lane(uploading: Stage) -> None:
    job = refusing(uploading, 401, "InvalidApiKey")
    (lane,) = uploading.sql("select * from lanes where model = :model", model=MODEL)

    assert job.state == State.QUEUED
    assert lane["parked_until"] > uploading.now()
    assert lane["paused_at"] is None


def test_a_file_that_the_day_has_no_quota_for_waits_for_its_lane_and_goes_when_that_is_let_go(uploading: Stage) -> None:
    job = refusing(uploading, 429, "Throttling.AllocationQuota", "daily quota exceeded")
    (lane,) = uploading.sql("select * from lanes where model = :model", model=MODEL)
    assert job.state == State.QUEUED
    assert lane["parked_until"] > uploading.now() + timedelta(seconds=50)

    with uploading.ctx.engine.begin() as connection:
        throttle.forget(connection, MODEL)

    assert uploading.until(job).state == State.SUCCEEDED


def test_a_store_that_fails_is_tried_again_soon(uploading: Stage) -> None:
    job = refusing(uploading, 500, "InternalError")

    assert (job.state, job.lane_id) == (State.QUEUED, None), "it would hold the slot for as long as the store fails"
    with uploading.ctx.engine.connect() as connection:
        waiting = reading.waiting_on(connection, [job], uploading.now())[job.id]
    assert waiting is not None
    assert job.error is not None
    assert (waiting.code, waiting.detail) == ("backoff", f"waits before it is tried again: {job.error['message']}")
    uploading.lapse(job)
    assert uploading.until(job).state == State.SUCCEEDED


def test_the_inputs_of_a_job_share_one_span_of_time(uploading: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "HANDOVER", timedelta(0))
    job = uploading.submit("image-to-video", MODEL, input={"img_url": uploading.file(PNG)})

    with pytest.raises(CallFailed):
        uploading.ctx.handover.request(uploading.ctx.client(job), job, request_of(uploading, job))
