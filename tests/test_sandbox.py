"""The sandbox keeps the provider's wire contract: for the official SDK, and byte for byte where we lean on it."""

import base64
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import av
import dashscope
import httpx
import pytest
from dashscope import ImageSynthesis, VideoSynthesis
from fastcrc import crc64
from PIL import Image

from ops.sandbox import models
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
VIDEO = "/services/aigc/video-generation/video-synthesis"
FRAMES = "/services/aigc/image2video/video-synthesis"
PICTURES = "/services/aigc/text2image/image-synthesis"
MULTIMODAL = "/services/aigc/multimodal-generation/generation"
MESSAGES = "/services/aigc/image-generation/generation"
ASYNC = {"X-DashScope-Async": "enable"}
WORDS = {"messages": [{"role": "user", "content": [{"text": "a flower shop"}]}]}
AT_ONCE = Options(run_seconds=0, queue_seconds=0)


def said(*content: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


PART = {"image": "https://example.com/a.png"}
SHOWN = said(PART, {"text": "a hat"})


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with running(AT_ONCE) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served: Sandbox) -> Sandbox:
    served.reset()
    return served


@pytest.fixture
def wire(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with client(sandbox) as opened:
        yield opened


def client(sandbox: Sandbox, key: str = KEY) -> httpx.Client:
    return httpx.Client(base_url=sandbox.api, headers={"Authorization": f"Bearer {key}"}, timeout=10, verify=False)


def clip(prompt: str = "a kitten", model: str = "wan2.5-t2v-preview", **parameters: Any) -> dict[str, Any]:
    return {"model": model, "input": {"prompt": prompt}, "parameters": {"size": "832*480", "duration": 5} | parameters}


def create(wire: httpx.Client, body: dict[str, Any] | None = None, path: str = VIDEO) -> str:
    answer = wire.post(path, json=body or clip(), headers=ASYNC)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["output"]["task_id"])


def get(wire: httpx.Client, task_id: str) -> dict[str, Any]:
    answer = wire.get(f"/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def status(wire: httpx.Client, task_id: str) -> str:
    return str(get(wire, task_id)["output"]["task_status"])


def link(wire: httpx.Client) -> str:
    return str(get(wire, create(wire))["output"]["video_url"])


def beijing(at: datetime) -> str:
    return (at.astimezone(UTC) + timedelta(hours=8)).strftime("%Y%m%d%H%M%S")


class TestOfficialSdk:
    @pytest.fixture(autouse=True)
    def pointed_here(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        # Its `base_address` argument reaches the create and not the polls that follow.
        monkeypatch.setattr(dashscope, "base_http_api_url", sandbox.api)

    def test_a_video_call_returns_a_link(self, sandbox: Sandbox) -> None:
        answer = VideoSynthesis.call(
            model="wan2.5-t2v-preview",
            prompt="一只小猫",
            size="832*480",
            duration=5,
            api_key=KEY,
        )

        assert answer.output.task_status == "SUCCEEDED"
        assert httpx.get(answer.output.video_url).headers["content-type"] == "video/mp4"

    def test_a_task_is_made_fetched_listed_and_canceled(self, sandbox: Sandbox) -> None:
        sandbox.set(queue_seconds=60)
        made = VideoSynthesis.async_call(model="wan2.6-t2v", prompt="a kitten", size="1280*720", api_key=KEY)
        fetched = VideoSynthesis.fetch(made, api_key=KEY)
        listed = VideoSynthesis.list(model_name="wan2.6-t2v", status="PENDING", api_key=KEY)  # type: ignore[attr-defined]
        canceled = VideoSynthesis.cancel(made, api_key=KEY)

        assert made.output.task_id == fetched.output.task_id
        assert fetched.output.task_status == "PENDING"
        assert canceled.status_code == 200
        assert VideoSynthesis.fetch(made, api_key=KEY).output.task_status == "CANCELED"
        assert listed.output["total"] == 1

    def test_first_and_last_frames_go_by_their_own_path(self, sandbox: Sandbox) -> None:
        answer = VideoSynthesis.async_call(
            model="wan2.2-kf2v-flash",
            prompt="a door opens",
            first_frame_url="https://example.com/a.png",
            api_key=KEY,
        )

        assert answer.output.task_status == "PENDING"

    def test_pictures_come_as_results(self, sandbox: Sandbox) -> None:
        answer = ImageSynthesis.call(model="wan2.5-t2i-preview", prompt="flower", n=2, api_key=KEY)

        assert len(answer.output.results) == 2
        assert answer.usage.image_count == 2

    def test_a_refusal_carries_its_code(self, sandbox: Sandbox) -> None:
        answer = VideoSynthesis.async_call(model="wan2.5-t2v-plus", prompt="a kitten", api_key=KEY)

        assert (answer.status_code, answer.code, answer.message) == (400, "InvalidParameter", "Model not exist.")


class TestCreate:
    def test_the_answer_has_a_pending_task_under_the_request_id_of_its_headers(self, wire: httpx.Client) -> None:
        answer = wire.post(VIDEO, json=clip(), headers=ASYNC)

        assert answer.json()["output"]["task_status"] == "PENDING"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert "retry-after" not in answer.headers

    def test_unknown_input_is_ignored(self, wire: httpx.Client) -> None:
        body = clip()
        body["input"] |= {"extend_prompt": True, "function": "video-synthesis"}

        assert create(wire, body)

    @pytest.mark.parametrize(
        ("path", "body", "headers", "expected"),
        [
            (VIDEO, clip(), {}, (403, "AccessDenied", "current user api does not support synchronous calls.")),
            (
                MULTIMODAL,
                {"model": "qwen-image", "input": {"prompt": "x"}},
                ASYNC,
                (403, "AccessDenied", "current user api does not support asynchronous calls."),
            ),
            (FRAMES, clip(), ASYNC, (400, "InvalidParameter", "url error, please check url!")),
            (VIDEO, clip(model="wan2.5-t2v-plus"), ASYNC, (400, "InvalidParameter", "Model not exist.")),
            (VIDEO, clip(model="wan2.1-t2v-plus"), ASYNC, (400, "InvalidParameter", "Model not exist.")),
        ],
    )
    def test_a_wrong_header_path_or_model_is_refused(
        self,
        wire: httpx.Client,
        path: str,
        body: dict[str, Any],
        headers: dict[str, str],
        expected: tuple[int, str, str],
    ) -> None:
        answer = wire.post(path, json=body, headers=headers)

        assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == expected
        assert answer.json().keys() == {"code", "message", "request_id"}

    @pytest.mark.parametrize(
        "parameters", [{"size": "1:1"}, {"size": ["832*480"]}, {"duration": 6}, {"duration": "5"}, {"seed": -1}]
    )
    def test_a_parameter_outside_its_range_is_refused(self, wire: httpx.Client, parameters: dict[str, Any]) -> None:
        answer = wire.post(VIDEO, json=clip(**parameters), headers=ASYNC)

        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")

    def test_a_bad_parameter_may_fail_the_task_instead(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(late_checks=True)

        answer = get(wire, create(wire, clip(size="1:1")))

        assert (answer["output"]["task_status"], answer["output"]["code"]) == ("FAILED", "InvalidParameter")
        assert "code" not in answer

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": "wan2.6-t2v"}', b'{"input": {"prompt": "x"}}'])
    def test_an_unreadable_body_is_refused(self, wire: httpx.Client, body: bytes) -> None:
        answer = wire.post(VIDEO, content=body, headers=ASYNC)

        assert answer.status_code == 400
        assert answer.json()["code"].startswith("BadRequest.")

    def test_other_regions_spell_their_models_otherwise(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(region="ap-southeast-1")

        abroad = wire.post(VIDEO, json=clip(model="wan2.1-t2v-turbo"), headers=ASYNC)
        home = wire.post(VIDEO, json=clip(model="wanx2.1-t2v-turbo"), headers=ASYNC)

        assert abroad.status_code == 200
        assert home.json()["message"] == "Model not exist."

    def test_a_long_prompt_is_cut_without_a_word(self, wire: httpx.Client) -> None:
        output = get(wire, create(wire, clip(prompt="猫" * 1501)))["output"]

        assert output["orig_prompt"] == "猫" * 1500

    def test_an_oss_link_needs_its_header(self, wire: httpx.Client) -> None:
        body = {"model": "wan2.5-i2v-preview", "input": {"img_url": "oss://dashscope-instant/a.png"}}

        without = wire.post(VIDEO, json=body, headers=ASYNC)
        with_it = wire.post(VIDEO, json=body, headers=ASYNC | {"X-DashScope-OssResourceResolve": "enable"})

        # With it the link is looked up; that this one leads nowhere is another matter.
        codes = [answer.json()["code"] for answer in (without, with_it)]
        assert codes == ["InvalidParameter", "InvalidParameter.DataInspection"]


class TestAccounts:
    @pytest.mark.parametrize(
        ("header", "message"), [("", "No API-key provided."), ("Bearer nonsense", "Invalid API-key provided.")]
    )
    def test_a_missing_or_bad_key_is_refused(self, sandbox: Sandbox, header: str, message: str) -> None:
        answer = httpx.get(f"{sandbox.api}/tasks/1111", headers={"Authorization": header} if header else {})

        assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == (401, "InvalidApiKey", message)

    def test_keys_of_one_account_see_each_others_tasks_and_no_others(self, sandbox: Sandbox) -> None:
        sandbox.set(owners={"sk-one": "us", "sk-two": "us", "sk-three": "them"})

        task_id = create(client(sandbox, "sk-one"))

        assert status(client(sandbox, "sk-two"), task_id) == "SUCCEEDED"
        assert status(client(sandbox, "sk-three"), task_id) == "UNKNOWN"
        assert client(sandbox, "sk-three").get("/tasks").json()["total"] == 0


class TestTasks:
    def test_a_task_goes_from_pending_over_running_to_succeeded(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(queue_seconds=60, run_seconds=600)
        task_id = create(wire)

        pending = get(wire, task_id)["output"]
        sandbox.set(clock_offset_seconds=61)
        running_ = get(wire, task_id)["output"]
        sandbox.set(clock_offset_seconds=661)
        succeeded = get(wire, task_id)["output"]

        assert (pending["task_status"], "scheduled_time" in pending) == ("PENDING", False)
        assert (running_["task_status"], "end_time" in running_) == ("RUNNING", False)
        assert succeeded["task_status"] == "SUCCEEDED"
        assert succeeded["video_url"].split("?")[0].endswith(f"-{task_id}.mp4")

    def test_times_are_wall_clock_of_beijing(self, wire: httpx.Client) -> None:
        before = datetime.now(UTC)
        output = get(wire, create(wire))["output"]

        submitted = datetime.strptime(output["submit_time"] + "+0800", "%Y-%m-%d %H:%M:%S.%f%z")

        assert before - timedelta(seconds=1) <= submitted <= datetime.now(UTC)

    def test_strange_ids_are_unknown_under_200(self, wire: httpx.Client) -> None:
        assert get(wire, "1111")["output"] == {"task_id": "1111", "task_status": "UNKNOWN"}

    def test_a_task_is_forgotten_a_day_after_its_end(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        task_id = create(wire)

        sandbox.set(clock_offset_seconds=86_390)
        before = status(wire, task_id)
        sandbox.set(clock_offset_seconds=86_410)

        assert (before, status(wire, task_id)) == ("SUCCEEDED", "UNKNOWN")

    def test_only_a_pending_task_can_be_canceled(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        done = create(wire)
        sandbox.set(queue_seconds=60)
        pending = create(wire)

        refused = wire.post(f"/tasks/{done}/cancel")
        canceled = wire.post(f"/tasks/{pending}/cancel")

        assert (refused.status_code, refused.json()["code"]) == (400, "UnsupportedOperation")
        assert canceled.json().keys() == {"request_id"}
        assert status(wire, pending) == "CANCELED"
        assert sandbox.task(pending)["billed_micros"] == 0
        assert wire.post("/tasks/1111/cancel").status_code == 400

    def test_a_run_of_three_hours_fails(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(run_seconds=20_000)
        task_id = create(wire)

        sandbox.set(clock_offset_seconds=10_801)

        assert get(wire, task_id)["output"]["code"] == "InternalError.Timeout"

    def test_the_time_scale_shortens_runs_and_leaves_stamps_true(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(run_seconds=None, time_scale=0.001)
        task_id = create(wire, clip(model="wan2.2-t2v-plus"))

        entry = sandbox.task(task_id)

        assert abs(entry["submitted_at"] - time.time()) < 5
        assert 0 <= entry["started_at"] - entry["submitted_at"] < 0.1
        assert eventually(lambda: status(wire, task_id) == "SUCCEEDED")


class TestList:
    def test_rows_carry_the_creates_request_id_and_epoch_milliseconds(self, wire: httpx.Client) -> None:
        made = wire.post(VIDEO, json=clip(), headers=ASYNC).json()

        page = wire.get("/tasks").json()

        [row] = page["data"]
        assert (row["request_id"], row["task_id"]) == (made["request_id"], made["output"]["task_id"])
        assert row["gmt_create"] <= row["start_time"] <= row["end_time"]
        assert abs(row["gmt_create"] / 1000 - time.time()) < 5
        assert (page["total"], page["total_page"], page["page_no"], page["page_size"]) == (1, 1, 1, 10)
        assert "output" not in page

    def test_the_window_counts_in_beijing_time_and_is_a_day_at_most(self, wire: httpx.Client) -> None:
        create(wire)
        now = datetime.now(UTC)
        hour, long = timedelta(hours=1), timedelta(hours=25)

        around = wire.get("/tasks", params={"start_time": beijing(now - hour), "end_time": beijing(now + hour)})
        before = wire.get("/tasks", params={"start_time": beijing(now - 2 * hour), "end_time": beijing(now - hour)})
        too_long = wire.get("/tasks", params={"start_time": beijing(now - long), "end_time": beijing(now)})

        assert (around.json()["total"], before.json()["total"], too_long.status_code) == (1, 0, 400)

    def test_pages_are_newest_first_and_cut_to_the_largest(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(limits={"*": {"rps": 100}}, max_page_size=2)
        made = [create(wire) for _ in range(3)]

        first = wire.get("/tasks", params={"page_size": 50}).json()
        second = wire.get("/tasks", params={"page_size": 50, "page_no": 2}).json()

        assert [row["task_id"] for row in first["data"] + second["data"]] == made[::-1]
        assert (first["page_size"], first["total"], first["total_page"]) == (2, 3, 2)

    def test_filters_narrow_by_model_and_status(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        create(wire)
        sandbox.set(queue_seconds=60)
        create(wire, clip(model="wan2.2-t2v-plus"))

        by_model = wire.get("/tasks", params={"model_name": "wan2.2-t2v-plus"}).json()
        by_status = wire.get("/tasks", params={"status": "SUCCEEDED"}).json()

        assert [row["status"] for row in by_model["data"]] == ["PENDING"]
        assert [row["model_name"] for row in by_status["data"]] == ["wan2.5-t2v-preview"]


class TestUsage:
    @pytest.mark.parametrize(
        ("model", "path", "given", "parameters", "usage"),
        [
            (
                "wan2.6-t2v",
                VIDEO,
                {"prompt": "x"},
                {"size": "1280*720", "duration": 10},
                {
                    "duration": 10,
                    "input_video_duration": 0,
                    "output_video_duration": 10,
                    "SR": 720,
                    "size": "1280*720",
                    "video_count": 1,
                },
            ),
            (
                "wan2.6-i2v-flash",
                VIDEO,
                {"img_url": "https://example.com/a.png"},
                {"resolution": "720P", "audio": False},
                {
                    "duration": 5,
                    "input_video_duration": 0,
                    "output_video_duration": 5,
                    "SR": 720,
                    "video_count": 1,
                    "audio": False,
                },
            ),
            (
                "wan2.5-i2v-preview",
                VIDEO,
                {"img_url": "https://example.com/a.png"},
                {"resolution": "480P"},
                {"duration": 5, "SR": 480, "video_count": 1},
            ),
            (
                "wan2.5-t2v-preview",
                VIDEO,
                {"prompt": "x"},
                {"size": "480*832"},
                {"video_duration": 5, "video_ratio": "480*832", "video_count": 1},
            ),
            (
                "wanx2.1-i2v-turbo",
                VIDEO,
                {"img_url": "https://example.com/a.png"},
                {"duration": 3},
                {"video_duration": 3, "video_ratio": "standard", "video_count": 1},
            ),
            (
                "wan2.7-t2v",
                VIDEO,
                {"prompt": "x"},
                {"resolution": "720P", "ratio": "9:16"},
                {
                    "duration": 5,
                    "input_video_duration": 0,
                    "output_video_duration": 5,
                    "SR": 720,
                    "ratio": "9:16",
                    "video_count": 1,
                },
            ),
            ("wan2.5-t2i-preview", PICTURES, {"prompt": "x"}, {"n": 3}, {"image_count": 3}),
        ],
    )
    def test_fields_depend_on_the_models_generation(
        self,
        wire: httpx.Client,
        model: str,
        path: str,
        given: dict[str, Any],
        parameters: dict[str, Any],
        usage: dict[str, Any],
    ) -> None:
        body = {"model": model, "input": given, "parameters": parameters}

        assert get(wire, create(wire, body, path))["usage"] == usage

    def test_a_model_may_render_more_than_was_asked_and_bill_it(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        task_id = create(wire, clip(model="wan3.0-video", resolution="480P"))

        assert get(wire, task_id)["usage"]["SR"] == 1080
        assert sandbox.task(task_id)["billed_micros"] == 5 * 1_200_000

    def test_the_rewritten_prompt_is_told_by_older_models_only(self, wire: httpx.Client) -> None:
        older = get(wire, create(wire))["output"]
        as_asked = get(wire, create(wire, clip(prompt_extend=False)))["output"]
        newer = get(wire, create(wire, clip(model="wan2.6-t2v", size="1280*720")))["output"]

        assert ["actual_prompt" in output for output in (older, as_asked, newer)] == [True, False, False]

    def test_every_model_of_the_table_can_be_asked_for_with_its_defaults(
        self, sandbox: Sandbox, wire: httpx.Client
    ) -> None:
        sandbox.set(limits={"*": {"rps": 1000}})
        link_, words = "https://example.com/a.png", [{"role": "user", "content": [{"text": "a kitten"}]}]
        given = {
            "prompt": "a kitten",
            "messages": words,
            "img_url": link_,
            "first_frame_url": link_,
            "reference_urls": [link_],
            "images": [link_],
            "base_image_url": link_,
        }
        of_kinds = {"speech": {"text": "a kitten", "voice": "Cherry"}, "embedding": {"texts": ["a kitten"]}}
        asked = {"enable_thinking": False}

        for model in models.read("cn-beijing").values():
            for call in model.calls:
                if call.name in ("chat", "batch_chat"):  # of the compatible interface
                    continue
                headers = ASYNC if call.is_async else {}
                given["messages"] = words
                if model.shows and model.shows[0]:
                    shown_first = [{"image": link_}, {"text": "a kitten"}]
                    given["messages"] = [{"role": "user", "content": shown_first}]
                first = next((name for name in model.media if model.references and "reference" in name), "first_frame")
                shown = {"media": [{"type": "video" if model.edits else first, "url": link_}]} if model.media else {}
                body = {"model": model.id, "input": of_kinds.get(model.makes, given | shown), "parameters": asked}
                answer = wire.post(f"/services/{call.path}", json=body, headers=headers)
                assert answer.status_code == 200, (model.id, answer.text)

        billed = [task["billed_micros"] for task in sandbox.ledger()["tasks"]]
        assert all(micros > 0 for micros in billed)


class TestPictures:
    def test_a_synchronous_model_answers_with_the_picture(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        body = {"model": "qwen-image-max", "input": WORDS, "parameters": {"size": "1664*928", "n": 1}}

        answer = wire.post(MULTIMODAL, json=body).json()

        [part] = answer["output"]["choices"][0]["message"]["content"]
        assert answer["usage"] == {"height": 928, "image_count": 1, "width": 1664}
        assert answer["output"]["task_metric"] == {"TOTAL": 1, "SUCCEEDED": 1, "FAILED": 0}
        assert "/oss/7d/" in part["image"]
        assert Image.open(io.BytesIO(httpx.get(part["image"]).content)).format == "PNG"
        assert wire.get("/tasks").json()["total"] == 0

    def test_messages_make_a_task_on_the_asynchronous_path(self, wire: httpx.Client) -> None:
        body = {"model": "wan2.6-t2i", "input": WORDS, "parameters": {"n": 2}}

        answer = get(wire, create(wire, body, MESSAGES))

        contents = [choice["message"]["content"] for choice in answer["output"]["choices"]]
        assert [[part["type"] for part in content] for content in contents] == [["image"], ["image"]]
        assert "task_metrics" not in answer["output"]
        assert (answer["usage"]["image_count"], answer["usage"]["size"]) == (2, "1280*1280")

    def test_a_sequence_comes_in_one_message(self, wire: httpx.Client) -> None:
        body = {"model": "wan2.7-image", "input": WORDS, "parameters": {"enable_sequential": True, "n": 3}}

        answer = wire.post(MULTIMODAL, json=body).json()

        [choice] = answer["output"]["choices"]
        assert len(choice["message"]["content"]) == answer["usage"]["image_count"] == 3

    @pytest.mark.parametrize(
        ("model", "messages", "parameters", "message"),
        [
            ("qwen-image-edit", [], {}, "No messages found in input"),
            ("qwen-image-edit", [SHOWN, SHOWN], {}, "messages length only support 1"),
            ("qwen-image-edit", [said({"text": "a hat"})], {}, "lack of image or text"),
            ("qwen-image-2.0", [said(PART)], {}, "lack of image or text"),
            ("wan2.6-image", [said({"text": "a hat"})], {}, "lack of image or text"),
            ("wan2.7-image", [said(PART, {"text": "a hat"}, {"text": "red"})], {}, "content must hold one text."),
            ("qwen-image-2.0", [said(*[PART] * 4, {"text": "a hat"})], {}, "The number of images should be in [0, 3]."),
            ("qwen-image-edit", [SHOWN], {"n": 2}, "num_images_per_prompt must be 1."),
            ("wan2.7-image-pro", [SHOWN], {"size": "4K"}, "size must have 589824 to 4194304 pixels in all."),
            (
                "wan2.7-image-pro",
                [said({"text": "a hat"})],
                {"size": "4K", "enable_sequential": True, "n": 2},
                "size must have 589824 to 4194304 pixels in all.",
            ),
            ("wan2.6-t2i", [said({"text": "a hat"})], {"size": "1024*1024"}, "size must have 1625088 to 2073600"),
            ("wan2.7-image", [SHOWN], {"bbox_list": []}, "The length of bbox_list must equal the number of images."),
        ],
    )
    def test_what_a_picture_is_not_made_of_is_refused(
        self, wire: httpx.Client, model: str, messages: list[Any], parameters: dict[str, Any], message: str
    ) -> None:
        body = {"model": model, "input": {"messages": messages} if messages else {"x": 1}, "parameters": parameters}

        answer = wire.post(MULTIMODAL, json=body)

        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
        assert answer.json()["message"].startswith(message)

    def test_words_alone_may_make_a_larger_picture(self, wire: httpx.Client) -> None:
        body = {"model": "wan2.7-image-pro", "input": WORDS, "parameters": {"size": "4K", "n": 1}}

        assert wire.post(MULTIMODAL, json=body).json()["usage"]["size"] == "4096*4096"

    def test_qwen_image_makes_one_at_a_time(self, wire: httpx.Client) -> None:
        body = {"model": "qwen-image", "input": {"prompt": "x"}, "parameters": {"n": 2}}

        answer = wire.post(PICTURES, json=body, headers=ASYNC)

        assert answer.json()["message"] == "num_images_per_prompt must be 1."

    def test_one_failed_picture_of_several_is_told_in_its_place(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="task_partial")
        body = {"model": "wan2.5-t2i-preview", "input": {"prompt": "x"}, "parameters": {"n": 2}}
        task_id = create(wire, body, PICTURES)

        answer = get(wire, task_id)

        assert answer["output"]["task_status"] == "SUCCEEDED"
        assert answer["output"]["task_metrics"] == {"TOTAL": 2, "SUCCEEDED": 1, "FAILED": 1}
        assert [result.get("code") for result in answer["output"]["results"]] == [None, "DataInspectionFailed"]
        assert answer["usage"] == {"image_count": 1}
        assert sandbox.task(task_id)["billed_micros"] == 200_000


class TestLimits:
    def test_tasks_over_the_concurrency_wait_as_pending(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(run_seconds=100, limits={"*": {"concurrency": 2, "rps": 100}})
        made = [create(wire) for _ in range(5)]

        first = [status(wire, task_id) for task_id in made]
        sandbox.set(clock_offset_seconds=150)
        second = [status(wire, task_id) for task_id in made]

        assert first == ["RUNNING"] * 2 + ["PENDING"] * 3
        assert second == ["SUCCEEDED"] * 2 + ["RUNNING"] * 2 + ["PENDING"]
        assert list(sandbox.ledger()["peaks"]["in_flight"].values()) == [{"wan2.5-t2v-preview": 5}]

    def test_those_behind_a_canceled_task_move_up(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(run_seconds=100, limits={"*": {"concurrency": 1, "rps": 100}})
        _, second, third = (create(wire) for _ in range(3))

        wire.post(f"/tasks/{second}/cancel")
        sandbox.set(clock_offset_seconds=150)

        assert (status(wire, second), status(wire, third)) == ("CANCELED", "RUNNING")

    def test_the_concurrency_may_refuse_instead(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(run_seconds=100, over_concurrency="refuse", limits={"*": {"concurrency": 1}})
        create(wire)

        answer = wire.post(VIDEO, json=clip(), headers=ASYNC)

        assert (answer.status_code, answer.json()["code"]) == (429, "Throttling.RateQuota")

    def test_creates_over_the_rate_are_refused(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(retry_after_seconds=7, limits={"*": {"rps": 0.1}})
        create(wire)

        answer = wire.post(VIDEO, json=clip(), headers=ASYNC)

        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert sandbox.ledger()["throttled"] == {"create": 1}
        assert sandbox.ledger()["totals"]["tasks"] == 1

    @pytest.mark.parametrize(("query_limit", "expected"), [("shared", [200, 200, 429]), ("per-interface", [200] * 3)])
    def test_task_queries_share_a_limit_or_not(
        self, sandbox: Sandbox, wire: httpx.Client, query_limit: str, expected: list[int]
    ) -> None:
        sandbox.set(query_limit=query_limit, queries_per_second=2)

        answers = [wire.get("/tasks/1111"), wire.get("/tasks"), wire.get("/tasks/2222")]

        assert [answer.status_code for answer in answers] == expected

    def test_the_books_keep_the_most_queries_in_a_second(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        answers = [wire.get("/tasks/1111").status_code for _ in range(25)]

        [peaks] = sandbox.ledger()["peaks"]["per_second"].values()

        assert answers.count(200) >= 20
        assert 20 <= peaks["queries"] <= 25
        assert sandbox.ledger()["throttled"].get("get", 0) == answers.count(429)


class TestLinks:
    def test_headers_are_the_object_stores_and_checksums_are_true(self, wire: httpx.Client) -> None:
        answer = httpx.get(link(wire))

        assert answer.headers["server"] == "AliyunOSS"
        assert int(answer.headers["x-oss-hash-crc64ecma"]) == crc64.xz(answer.content)
        digest = hashlib.md5(answer.content)
        assert answer.headers["etag"] == f'"{digest.hexdigest().upper()}"'
        assert base64.b64decode(answer.headers["content-md5"]) == digest.digest()

    @pytest.mark.parametrize(
        ("asked", "start", "stop"), [("bytes=0-0", 0, 1), ("bytes=100-", 100, None), ("bytes=-10", -10, None)]
    )
    def test_ranges_are_served(self, wire: httpx.Client, asked: str, start: int, stop: int | None) -> None:
        url = link(wire)
        whole = httpx.get(url).content

        answer = httpx.get(url, headers={"Range": asked})

        assert (answer.status_code, answer.content) == (206, whole[start:stop])
        assert answer.headers["content-range"].endswith(f"/{len(whole)}")

    def test_a_range_that_cannot_be_served_gives_the_whole(self, wire: httpx.Client) -> None:
        assert httpx.get(link(wire), headers={"Range": "bytes=999999999-"}).status_code == 200

    def test_an_expired_link_is_denied(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        url = link(wire)
        sandbox.set(clock_offset_seconds=86_401)

        answer = httpx.get(url)

        assert (answer.status_code, answer.headers["x-oss-ec"]) == (403, "0002-00000069")
        assert answer.headers["content-type"] == "application/xml"
        assert "<Message>Request has expired.</Message>" in answer.text

    def test_a_link_is_good_for_one_verb_one_object_and_no_other_authority(self, wire: httpx.Client) -> None:
        url = link(wire)
        prolonged = url.replace("Expires=1", "Expires=2")

        assert httpx.head(url).status_code == 403
        assert "SignatureDoesNotMatch" in httpx.get(prolonged).text
        assert httpx.get(url.replace("/1-", "/2-")).status_code == 403
        assert httpx.get(url.split("?")[0]).status_code == 403
        assert httpx.get(url, headers={"Authorization": "Bearer sk-one"}).status_code == 400

    def test_a_task_looked_at_twice_gives_the_same_link(self, wire: httpx.Client) -> None:
        task_id = create(wire)

        assert get(wire, task_id)["output"]["video_url"] == get(wire, task_id)["output"]["video_url"]

    def test_a_purged_object_is_no_such_key(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="link", what="purged")

        answer = httpx.get(link(wire))

        assert (answer.status_code, "<Code>NoSuchKey</Code>" in answer.text) == (404, True)

    def test_a_padded_clip_still_plays_and_its_checksum_is_true(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(output_bytes=20_000_000)

        answer = httpx.get(link(wire))

        assert len(answer.content) == 20_000_000
        assert int(answer.headers["x-oss-hash-crc64ecma"]) == crc64.xz(answer.content)
        assert answer.headers["x-oss-object-type"] == "Multipart"
        assert "content-md5" not in answer.headers
        assert seconds_of(answer.content) == 5

    def test_a_gigabyte_is_promised_and_streamed(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="link", what="oversized", bytes=1_000_000_000)

        with httpx.stream("GET", link(wire)) as answer:
            first = next(answer.iter_bytes())

        assert answer.headers["content-length"] == "1000000000"
        assert first[4:8] == b"ftyp"


class TestMedia:
    def test_a_clip_plays_for_as_long_as_was_asked(self, wire: httpx.Client) -> None:
        task_id = create(wire, clip(duration=10, size="480*832"))

        content = httpx.get(get(wire, task_id)["output"]["video_url"]).content

        with av.open(io.BytesIO(content), "r") as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.height > stream.width
        assert seconds_of(content) == 10
        assert task_id.encode() in content

    def test_prompts_look_different_and_one_task_always_the_same(self, wire: httpx.Client) -> None:
        urls = [get(wire, create(wire, clip(prompt=prompt)))["output"]["video_url"] for prompt in ("猫", "狗")]

        cat, dog, again = (httpx.get(url).content for url in (*urls, urls[0]))

        assert cat == again
        assert colour_of(cat) != colour_of(dog)

    def test_the_true_size_is_drawn_on_request(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(true_size=True)

        with av.open(io.BytesIO(httpx.get(link(wire)).content), "r") as container:
            assert (container.streams.video[0].width, container.streams.video[0].height) == (832, 480)


class TestFaults:
    @pytest.mark.parametrize(
        ("what", "error", "tasks"),
        [
            ("reset", httpx.TransportError, 0),
            ("lost_answer", httpx.TransportError, 1),
            ("lost_body", httpx.RemoteProtocolError, 1),
            ("truncated", httpx.RemoteProtocolError, 1),
        ],
    )
    def test_a_cut_line_leaves_its_task_or_none(
        self, sandbox: Sandbox, wire: httpx.Client, what: str, error: type[Exception], tasks: int
    ) -> None:
        sandbox.fault(where="create", what=what, times=1)

        with pytest.raises(error):
            wire.post(VIDEO, json=clip(), headers=ASYNC)

        ledger = sandbox.ledger()
        assert ledger["totals"]["tasks"] == tasks
        assert ledger["creates"][0]["fault"] == what
        assert ledger["creates"][0]["body_sha256"]
        assert create(wire)

    def test_the_headers_of_a_lost_body_still_name_the_request(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="lost_body")

        with wire.stream("POST", VIDEO, json=clip(), headers=ASYNC) as answer:
            request_id = answer.headers["x-request-id"]
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()

        assert [task["request_id"] for task in sandbox.ledger()["tasks"]] == [request_id]

    def test_a_create_may_be_executed_late(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="executed_late", after_ms=30_000, times=1)
        with pytest.raises(httpx.TransportError):
            wire.post(VIDEO, json=clip(), headers=ASYNC)

        before = wire.get("/tasks").json()["total"]
        sandbox.set(clock_offset_seconds=31)

        assert (before, wire.get("/tasks").json()["total"]) == (0, 1)

    @pytest.mark.parametrize("where", ["create", "get", "list", "cancel", "link"])
    def test_a_hanging_call_never_answers(self, sandbox: Sandbox, wire: httpx.Client, where: str) -> None:
        url = link(wire)
        sandbox.fault(where=where, what="hang")
        calls = {
            "create": lambda: wire.post(VIDEO, json=clip(), headers=ASYNC, timeout=0.2),
            "get": lambda: wire.get("/tasks/1111", timeout=0.2),
            "list": lambda: wire.get("/tasks", timeout=0.2),
            "cancel": lambda: wire.post("/tasks/1111/cancel", timeout=0.2),
            "link": lambda: httpx.get(url, timeout=0.2),
        }

        with pytest.raises(httpx.ReadTimeout):
            calls[where]()

    def test_a_drip_gives_a_byte_a_second(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="get", what="slow_drip", bytes=3)

        with wire.stream("GET", "/tasks/1111") as answer:
            first = next(answer.iter_raw())

        assert len(first) == 3

    def test_a_gateway_may_answer_in_html(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="get", what="html")

        answer = wire.get("/tasks/1111")

        assert (answer.status_code, "x-request-id" in answer.headers) == (502, False)
        assert answer.text.startswith("<html>")

    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("Throttling.BurstRate", 429),
            ("Throttling.AllocationQuota", 429),
            ("Arrearage", 400),
            ("BudgetExhausted", 429),
            ("InternalError.Algo.DataInspectionFailed", 400),
            ("InternalError.DataInspection", 400),
            ("InvalidFile.DownloadFailed", 400),
            ("InvalidParameter.FileDownload", 400),
            ("ResourceExhausted", 429),
            ("ServiceOverloaded", 503),
            ("InvalidApiKey", 401),
            ("InternalError", 500),
            ("ModelUnavailable", 503),
        ],
    )
    def test_any_code_of_the_catalogue_can_be_had_anywhere(
        self, sandbox: Sandbox, wire: httpx.Client, code: str, expected: int
    ) -> None:
        sandbox.fault(where="any", what="error", code=code)

        answers = [wire.post(VIDEO, json=clip(), headers=ASYNC), wire.get("/tasks/1111"), wire.get("/tasks")]

        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(expected, code)}
        assert all(answer.json()["request_id"] for answer in answers)
        assert sandbox.ledger()["totals"]["tasks"] == 0

    def test_an_error_may_hide_a_task_that_was_made(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="error", is_done=True)

        answer = wire.post(VIDEO, json=clip(), headers=ASYNC)

        assert answer.status_code == 500
        assert wire.get("/tasks").json()["data"][0]["request_id"] == answer.json()["request_id"]

    def test_a_code_may_come_at_the_top_of_a_200(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="error_in_200", code="Throttling")

        answer = wire.post(VIDEO, json=clip(), headers=ASYNC)

        assert (answer.status_code, answer.json()["code"], "output" in answer.json()) == (200, "Throttling", False)

    def test_a_failed_task_tells_its_code_inside_output_and_costs_nothing(
        self, sandbox: Sandbox, wire: httpx.Client
    ) -> None:
        sandbox.fault(where="create", what="task_fails", code="DataInspectionFailed", prompt_contains="naughty")
        task_id = create(wire, clip(prompt="a naughty kitten"))

        answer = get(wire, task_id)

        assert (answer["output"]["task_status"], answer["output"]["code"]) == ("FAILED", "DataInspectionFailed")
        assert "usage" not in answer
        assert sandbox.task(task_id)["billed_micros"] == 0
        assert status(wire, create(wire)) == "SUCCEEDED"

    @pytest.mark.parametrize(("what", "expected"), [("unknown", "UNKNOWN"), ("suspended", "SUSPENDED")])
    def test_a_task_may_be_seen_otherwise_for_a_while(
        self, sandbox: Sandbox, wire: httpx.Client, what: str, expected: str
    ) -> None:
        task_id = create(wire)
        sandbox.fault(where="get", what=what, times=1)

        assert [status(wire, task_id), status(wire, task_id)] == [expected, "SUCCEEDED"]

    def test_the_list_may_lag_and_may_miss(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        create(wire, clip(prompt="a kitten"))
        create(wire, clip(prompt="a puppy"))

        sandbox.fault(where="list", what="lag", after_ms=60_000, times=1)
        sandbox.fault(where="list", what="misses", prompt_contains="puppy", times=1)

        assert [wire.get("/tasks").json()["total"] for _ in range(3)] == [0, 1, 2]

    def test_a_link_may_be_wrong_in_every_way(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        url = link(wire)
        true = httpx.get(url)

        def under(what: str, **more: Any) -> httpx.Response:
            sandbox.clear_faults()
            sandbox.fault(where="link", what=what, **more)
            return httpx.get(url)

        corrupt = under("corrupt")
        assert corrupt.headers["etag"] == true.headers["etag"]
        assert sum(a != b for a, b in zip(corrupt.content, true.content, strict=True)) == 1
        assert under("expired").headers["x-oss-ec"] == "0002-00000069"
        assert under("redirect", location="http://169.254.169.254/").headers["location"] == "http://169.254.169.254/"
        assert under("wrong_type").headers["content-type"].startswith("text/html")
        assert len(under("oversized", bytes=300_000).content) == 300_000
        with pytest.raises(httpx.RemoteProtocolError):
            under("truncated")

    def test_rules_strike_by_chance_as_their_seed_has_it(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(queries_per_second=10_000)

        def draws() -> list[int]:
            return [wire.get("/tasks/1111").status_code for _ in range(20)]

        rule = {"where": "get", "what": "error", "probability": 0.5}
        sandbox.fault(**rule)
        first = draws()
        sandbox.reset()
        sandbox.set(queries_per_second=10_000)
        sandbox.fault(**rule)

        assert draws() == first
        assert set(first) == {200, 500}

    def test_a_fault_that_cannot_happen_there_is_not_taken(self, sandbox: Sandbox) -> None:
        with pytest.raises(ValueError, match="cannot happen at create"):
            sandbox.fault(where="create", what="corrupt")

    def test_an_unknown_switch_is_not_taken(self, sandbox: Sandbox) -> None:
        with pytest.raises(ValueError, match="Extra inputs"):
            sandbox.set(no_such_switch=1)


class TestBooks:
    def test_the_bill_is_per_second_and_tier(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        task_id = create(wire, clip(duration=10, size="1280*720"))

        assert sandbox.task(task_id)["billed_micros"] == 10 * 600_000
        assert sandbox.ledger()["totals"]["billed_micros"] == 6_000_000

    def test_creates_are_found_by_the_hash_of_their_body(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        body = json.dumps(clip(prompt="小猫")).encode()

        wire.post(VIDEO, content=body, headers=ASYNC)

        [entry] = sandbox.ledger()["creates"]
        assert (entry["prompt"], entry["body_sha256"]) == ("小猫", hashlib.sha256(body).hexdigest())

    def test_a_page_shows_people_what_happened(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        create(wire, clip(prompt="<b>bold</b>"))

        page = httpx.get(f"{sandbox.url}/_sandbox/").text

        assert "1 creates received" in page
        assert "&lt;b&gt;bold" in page


class TestProcess:
    def test_a_restarted_sandbox_knows_its_tasks(self, tmp_path: Path) -> None:
        state = tmp_path / "tasks.jsonl"
        slow = Options(run_seconds=100, limits={"*": {"concurrency": 1, "rps": 100}})
        with running(slow, state=state) as before, client(before) as wire:
            made = [create(wire, clip(prompt=prompt)) for prompt in ("one", "two\u2028", "three")]
            wire.post(f"/tasks/{made[1]}/cancel")
            told = [get(wire, task_id)["output"] for task_id in made]
        with state.open("a") as torn:
            torn.write('{"made": {"id"')

        with running(slow, state=state) as after, client(after) as wire:
            told_again = [get(wire, task_id)["output"] for task_id in made]
            create(wire)
            after.set(clock_offset_seconds=150)

            assert told_again == told
            assert [status(wire, task_id) for task_id in made] == ["SUCCEEDED", "CANCELED", "RUNNING"]
        assert all(line.endswith("}") for line in state.read_text().split("\n")[:-1])

    def test_it_runs_as_a_process_and_says_where(self) -> None:
        command = [sys.executable, "-m", "ops.sandbox", "--port", "0", "--time-scale", "0", "--set", "seed=3"]

        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            ready = process.stdout.readline().split()
            answer = httpx.get(f"{ready[2]}/_sandbox/options", timeout=10)
            process.terminate()

        assert ready[:2] == ["sandbox", "ready"]
        assert (answer.json()["time_scale"], answer.json()["seed"]) == (0, 3)

    def test_many_callers_at_once_get_tasks_of_their_own(self, sandbox: Sandbox) -> None:
        sandbox.set(limits={"*": {"rps": 10_000, "concurrency": 1000}})
        with client(sandbox) as wire, ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda number: create(wire, clip(prompt=f"clip {number}")), range(100)))

        assert len(set(made)) == 100
        assert sandbox.ledger()["totals"]["tasks"] == 100

    def test_answers_are_compressed_where_the_client_offers_it(self, wire: httpx.Client) -> None:
        task_id = create(wire)

        squeezed = wire.get(f"/tasks/{task_id}")
        plain = wire.get(f"/tasks/{task_id}", headers={"Accept-Encoding": "identity"})

        assert squeezed.headers["content-encoding"] == "gzip"
        assert squeezed.json()["output"] == plain.json()["output"]
        assert parsedate_to_datetime(plain.headers["date"]).tzinfo is not None


def eventually(fact: Any, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if fact():
            return True
        time.sleep(0.05)
    return False


def seconds_of(content: bytes) -> float:
    with av.open(io.BytesIO(content), "r") as container:
        assert container.duration is not None
        return container.duration / 1_000_000


def colour_of(content: bytes) -> tuple[int, int]:
    """Return the chroma of the top left pixel, which shows the background."""
    with av.open(io.BytesIO(content), "r") as container:
        _, blue, red = next(container.decode(video=0)).planes
        return bytes(blue)[0], bytes(red)[0]
