"""The sandbox speaks as qwen3-tts does: for the official SDK, and byte for byte where we lean on it."""

import base64
import io
import json
import time
import wave
from array import array
from collections.abc import Iterator
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import MultiModalConversation
from dashscope.audio.qwen_tts import SpeechSynthesizer
from fastcrc import crc64

from ops.sandbox import bills
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
PATH = "/services/aigc/multimodal-generation/generation"
SSE = {"X-DashScope-SSE": "enable"}
AT_ONCE = Options(run_seconds=0, queue_seconds=0, limits={"*": {"rpm": 100_000}})


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
    with httpx.Client(
        base_url=sandbox.api, headers={"Authorization": f"Bearer {KEY}"}, timeout=10, verify=False
    ) as opened:
        yield opened


def body(text: str = "你好世界", model: str = "qwen3-tts-flash", **given: Any) -> dict[str, Any]:
    return {"model": model, "input": {"text": text, "voice": "Cherry", "language_type": "Chinese"} | given}


def speak(wire: httpx.Client, text: str = "你好世界", **given: Any) -> dict[str, Any]:
    answer = wire.post(PATH, json=body(text, **given))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def recording(answer: dict[str, Any]) -> wave.Wave_read:
    return wave.open(io.BytesIO(httpx.get(answer["output"]["audio"]["url"]).content))


def events(content: bytes) -> list[list[str]]:
    return [event.split("\n") for event in content.decode().split("\n\n")[:-1]]


def documents(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(event[-1].removeprefix("data:")) for event in events(content)]


class TestOfficialSdk:
    @pytest.fixture(autouse=True)
    def pointed_here(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dashscope, "base_http_api_url", sandbox.api)

    def test_a_call_returns_a_link_to_a_recording(self) -> None:
        answer = SpeechSynthesizer.call(model="qwen3-tts-flash", text="你好世界", voice="Cherry", api_key=KEY)

        assert answer.status_code == 200
        assert answer.usage["characters"] == 8
        assert httpx.get(answer.output.audio["url"]).content[:4] == b"RIFF"

    def test_a_stream_carries_the_samples_and_then_the_link(self) -> None:
        answers = MultiModalConversation.call(
            model="qwen3-tts-flash", text="你好" * 50, voice="Cherry", language_type="Chinese", stream=True, api_key=KEY
        )

        *pieces, last = list(answers)

        samples = b"".join(base64.b64decode(piece.output.audio.data) for piece in pieces)
        assert last.output.finish_reason == "stop"
        assert httpx.get(last.output.audio.url).content[44:] == samples

    def test_a_refusal_carries_its_code(self) -> None:
        answer = SpeechSynthesizer.call(model="qwen3-tts-flash", text="你" * 601, voice="Cherry", api_key=KEY)

        assert (answer.status_code, answer.code) == (400, "InvalidParameter")
        assert "Range of input length should be [0, 600]" in answer.message


class TestAnswer:
    def test_it_has_the_recorded_form(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body())
        output, request_id = answer.json()["output"], answer.headers["x-request-id"]

        assert output["finish_reason"] == "stop"
        assert output["audio"]["data"] == ""
        assert output["audio"]["id"] == f"audio_{request_id}"
        assert output["audio"]["url"].startswith("http://")
        assert f"Expires={output['audio']['expires_at']}&" in output["audio"]["url"]
        assert answer.json()["usage"] == {"characters": 8}

    def test_the_documented_sample_is_billed_as_documented(self, wire: httpx.Client) -> None:
        sample = "那我来给大家推荐一款T恤，这款呢真的是超级好看。"  # 21 Han characters, a letter, two marks

        assert wire.post(PATH, json=body(sample)).json()["usage"] == {"characters": 2 * 21 + 3}

    def test_the_older_models_count_tokens(self, wire: httpx.Client) -> None:
        answer = speak(wire, model="qwen-tts")

        assert answer["usage"]["input_tokens"] == 4
        assert answer["usage"]["output_tokens_details"]["audio_tokens"] == 24  # 0.48 s, at 50 a second

    def test_the_sound_is_24_khz_mono_and_as_long_as_its_text(self, wire: httpx.Client) -> None:
        with recording(speak(wire, "你好, you")) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (24_000, 1, 2)
            assert sound.getnframes() == round(24_000 * (2 * 0.12 + 5 * 0.06))

    def test_it_can_be_heard_and_told_from_another(self, wire: httpx.Client) -> None:
        first, again, other, voice = (
            recording(speak(wire, text, voice=name)).readframes(100_000)
            for text, name in [("今天", "Cherry"), ("今天", "Cherry"), ("明天", "Cherry"), ("今天", "Ethan")]
        )

        assert max(array("h", first)) > 5_000
        assert first == again
        assert len({first, other, voice}) == 3

    def test_its_link_is_served_as_the_store_serves_any(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        url = speak(wire)["output"]["audio"]["url"]

        answer, part = httpx.get(url), httpx.get(url, headers={"Range": "bytes=0-3"})

        assert answer.headers["content-type"] == "audio/wav"
        assert answer.headers["x-oss-hash-crc64ecma"] == str(crc64.xz(answer.content))
        assert (part.status_code, part.content) == (206, b"RIFF")
        assert httpx.head(url).status_code == 403
        sandbox.set(clock_offset_seconds=86_400)
        assert "Request has expired" in httpx.get(url).text


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"voice": "cherry"}, "voice"),
            ({"voice": None}, "voice"),
            ({"language_type": "Latin"}, "language_type"),
            ({"text": ""}, "input.text"),
        ],
    )
    def test_a_bad_input_is_named(self, wire: httpx.Client, given: dict[str, Any], message: str) -> None:
        answer = wire.post(PATH, json=body() | {"input": body()["input"] | given})

        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
        assert message in answer.json()["message"]

    @pytest.mark.parametrize("model", ["qwen3-tts-instruct-flash", "qwen3-tts-flash-2025-09-18", "qwen-tts"])
    def test_a_voice_of_other_models_is_refused(self, wire: httpx.Client, model: str) -> None:
        answer = wire.post(PATH, json=body(model=model, voice="Radio Gol"))

        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
        assert "input.voice" in answer.json()["message"]

    @pytest.mark.parametrize(("unit", "fits"), [("characters", 600), ("bytes", 200)])
    def test_600_are_characters_or_bytes(self, sandbox: Sandbox, wire: httpx.Client, unit: str, fits: int) -> None:
        sandbox.set(speech_unit=unit)

        answers = [wire.post(PATH, json=body("好" * count)).status_code for count in (fits, fits + 1)]

        assert answers == [200, 400]

    def test_there_are_no_tasks_of_speech(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body(), headers={"X-DashScope-Async": "enable"})

        assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")

    def test_the_requests_of_a_minute_are_kept_by_the_second(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(limits={})

        answers = [wire.post(PATH, json=body()) for _ in range(8)]

        codes = [answer.json().get("code") for answer in answers]
        assert codes[:4] == [None] * 4
        assert "Throttling.RateQuota" in codes[4:]
        (minutes,) = sandbox.ledger()["peaks"]["per_minute"].values()
        assert minutes["requests qwen3-tts-flash"] == 8


class TestStream:
    def test_frames_are_told_apart_and_the_last_is_whole(self, wire: httpx.Client) -> None:
        content = wire.post(PATH, json=body("好" * 20), headers=SSE).content
        first, *_, last = documents(content)

        assert [line.partition(":")[0] for line in events(content)[0]] == ["id", "event", "", "data"]
        assert first["output"]["finish_reason"] == "null"
        assert "usage" not in first
        assert last["usage"] == {"characters": 40}
        assert last["output"]["audio"]["data"] == ""

    def test_a_refusal_is_an_event_under_200(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body(voice="Nobody"), headers=SSE)

        (event,) = events(answer.content)
        assert answer.status_code == 200
        assert event[1:3] == ["event:error", ":HTTP_STATUS/400"]

    @pytest.mark.parametrize("headers", [{}, SSE])
    def test_it_takes_its_time(self, sandbox: Sandbox, wire: httpx.Client, headers: dict[str, str]) -> None:
        sandbox.set(call_seconds=0.3)
        begun_at = time.monotonic()

        wire.post(PATH, json=body(), headers=headers)

        assert time.monotonic() - begun_at >= 0.3


class TestBill:
    def test_each_call_says_what_it_was_paid_for(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        for text in ("你好", "你好世界"):
            speak(wire, text)
        ledger = sandbox.ledger()

        assert [task["usage"] for task in ledger["tasks"]] == [{"characters": 4}, {"characters": 8}]
        assert [task["billed_micros"] for task in ledger["tasks"]] == [320, 640]  # 0.80 CNY for 10,000
        assert ledger["paid"] == {"qwen3-tts-flash": {"tasks": 2, "characters": 12, "billed_micros": 960}}

    def test_tokens_of_sound_are_counted_without_a_rounding_error(self) -> None:
        counted = [bills.speech_tokens("字" * han + "x" * others) for han in range(40) for others in range(40)]

        exact = [6 * han + 3 * others for han in range(40) for others in range(40)]  # 50 a second
        assert [tokens["output_tokens"] for tokens in counted] == exact

    @pytest.mark.parametrize("what", ["lost_answer", "truncated", "lost_body"])
    def test_an_answer_that_is_lost_is_billed(self, sandbox: Sandbox, wire: httpx.Client, what: str) -> None:
        sandbox.fault(where="create", what=what, times=1)

        with pytest.raises(httpx.TransportError):
            wire.post(PATH, json=body())

        assert sandbox.ledger()["totals"]["billed_micros"] == 640

    @pytest.mark.parametrize("what", ["reset", "html", "error", "task_fails"])
    def test_a_call_that_fails_is_not(self, sandbox: Sandbox, wire: httpx.Client, what: str) -> None:
        sandbox.fault(where="create", what=what)

        if what == "reset":
            with pytest.raises(httpx.TransportError):
                wire.post(PATH, json=body())
        else:
            assert wire.post(PATH, json=body()).status_code in (500, 502)

        assert sandbox.ledger()["totals"]["billed_micros"] == 0
