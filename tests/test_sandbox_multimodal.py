"""The sandbox is shown pictures, clips and sound, by both official SDKs, and refuses what the provider refuses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import MultiModalConversation
from openai import BadRequestError, OpenAI
from PIL import Image

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
PICTURE, CLIP, SOUND = "https://example.com/a.png", "https://example.com/a.mp4", "https://example.com/a.mp3"
NATIVE = "/services/aigc/multimodal-generation/generation"
SEEN = {"type": "image_url", "image_url": {"url": PICTURE}}
PLAYED = {"type": "video_url", "video_url": {"url": CLIP}}
HEARD = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "mp3"}}
ASKED = {"type": "text", "text": "What is it?"}


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0, queue_seconds=0)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    served.reset()
    monkeypatch.setattr(dashscope, "base_http_api_url", served.api)
    monkeypatch.setattr(dashscope, "api_key", KEY)
    return served


@pytest.fixture
def sdk(sandbox: Sandbox) -> Iterator[OpenAI]:
    with OpenAI(api_key=KEY, base_url=f"{sandbox.url}/compatible-mode/v1", max_retries=0) as opened:
        yield opened


def inline(width: int, height: int) -> dict[str, Any]:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, "PNG")
    link = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": link}}


def asked(sdk: OpenAI, model: str, *parts: dict[str, Any], **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": [*parts, ASKED]}]
    return sdk.chat.completions.create(model=model, messages=messages, **more)


def refusal(sdk: OpenAI, model: str, *parts: dict[str, Any], **more: Any) -> str:
    with pytest.raises(BadRequestError) as refused:
        asked(sdk, model, *parts, **more)
    return str(refused.value)


def test_openais_sdk_shows_a_picture_and_a_clip(sdk: OpenAI) -> None:
    answer = asked(sdk, "qwen3-vl-plus", SEEN, PLAYED)

    assert answer.choices[0].message.content.startswith("I was shown image a.png, video a.mp4.")
    told = answer.usage.prompt_tokens_details
    assert answer.usage.prompt_tokens == told.text_tokens + told.image_tokens + told.video_tokens
    assert (told.image_tokens, told.video_tokens) == (1026, 1282)


def test_an_answer_tells_inline_pictures_apart_and_quotes_none(sdk: OpenAI) -> None:
    small, large = inline(320, 320), inline(640, 320)

    said = [asked(sdk, "qwen3-vl-plus", part).choices[0].message.content for part in (small, large, small)]

    assert said[0] == said[2] != said[1]
    assert not any(part["image_url"]["url"][-12:] in words for part, words in zip((small, large), said, strict=False))


@pytest.mark.parametrize(
    ("part", "most", "tokens"),
    [(inline(320, 320), None, 102), (inline(32, 32), None, 3), (inline(3200, 3200), None, 2562), (SEEN, 524288, 514)],
)
def test_a_picture_is_a_token_for_each_32_by_32_pixels_and_two_more(
    sdk: OpenAI, part: dict[str, Any], most: int | None, tokens: int
) -> None:
    scaled = part | ({"max_pixels": most} if most else {})

    assert asked(sdk, "qwen3-vl-plus", scaled).usage.prompt_tokens_details.image_tokens == tokens


def test_omni_answers_in_a_stream_alone_and_counts_what_it_heard(sdk: OpenAI, sandbox: Sandbox) -> None:
    streaming: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "modalities": ["text"]}

    assert "only support stream mode" in refusal(sdk, "qwen3.5-omni-plus", HEARD)
    chunks = list(asked(sdk, "qwen3.5-omni-plus", HEARD, **streaming))

    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said.startswith("I was shown audio a.mp3.")
    usage = chunks[-1].usage
    assert usage.prompt_tokens_details.audio_tokens == 125
    (task,) = sandbox.ledger()["tasks"]
    words = usage.prompt_tokens - 125
    assert task["billed_micros"] == words * 7 + 125 * 53 + usage.completion_tokens * 40


@pytest.mark.parametrize(
    ("model", "part", "why"),
    [
        ("qwen3-vl-plus", HEARD, "does not support audio input"),
        ("qwen-plus", SEEN, "does not support image input"),
        ("qwen3-vl-plus", inline(10, 40), "length and width do not meet"),
        ("qwen3-vl-plus", inline(11, 2300), "aspect ratio must be smaller than 200"),
        ("qwen3-vl-plus", {"type": "image_url", "image_url": {"url": "ftp://a"}}, "does not appear to be valid"),
        ("qwen3-vl-plus", {"type": "image_url", "image_url": {"url": "oss://a/b.png"}}, "does not appear to be valid"),
        ("qwen3-vl-plus", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "illegal"),
    ],
)
def test_what_a_model_cannot_be_shown_is_refused(sdk: OpenAI, model: str, part: dict[str, Any], why: str) -> None:
    assert why in refusal(sdk, model, part)


def test_an_upload_is_shown_where_its_resolution_is_asked_for(sdk: OpenAI) -> None:
    header = {"X-DashScope-OssResourceResolve": "enable"}
    part = {"type": "image_url", "image_url": {"url": "oss://nobody/b.png"}}

    assert "Unable to download the media resource" in refusal(sdk, "qwen3-vl-plus", part, extra_headers=header)


def test_the_official_sdk_shows_files_by_its_own_words(sandbox: Sandbox) -> None:
    content = [{"image": PICTURE}, {"video": CLIP, "fps": 2}, {"text": "What is it?"}]
    call: dict[str, Any] = {"model": "qwen3-vl-plus", "messages": [{"role": "user", "content": content}]}

    whole = MultiModalConversation.call(**call)
    pieces = list(MultiModalConversation.call(**call, stream=True, incremental_output=True))

    said = whole.output.choices[0].message.content[0]["text"]
    assert said.startswith("I was shown image a.png, video a.mp4.")
    streamed = (part["text"] for piece in pieces for part in piece.output.choices[0].message.content)
    assert "".join(streamed) == said
    assert (whole.usage["image_tokens"], whole.usage["video_tokens"]) == (1026, 1282)


def test_a_model_of_words_has_no_native_path_for_pictures(sandbox: Sandbox) -> None:
    body = {"model": "qwen3.5-omni-plus", "input": {"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}}

    answer = httpx.post(sandbox.api + NATIVE, json=body, headers={"Authorization": f"Bearer {KEY}"})

    assert (answer.status_code, answer.json()["message"]) == (400, "url error, please check url!")
