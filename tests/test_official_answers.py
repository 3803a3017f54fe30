"""Answers as the official pages document them, and as clients recorded them: what our kinds read in each.

A row is an answer's shape; ids, links and words are ours. Pages are Alibaba's API references of Model Studio in the
editions of May 2026 unless a row says otherwise.
"""

from __future__ import annotations

import json
from typing import Any

import peers
import pytest
from pydantic import SecretStr

from worker import catalog, kinds
from worker.catalog import Surface
from worker.dashscope.client import Client
from worker.dashscope.responses import Accepted
from worker.egress import transports
from worker.kinds import KINDS, Request, text
from worker.settings import Account

CATALOG = catalog.load()
WORDS = "a kitten runs in the moonlight"
PICTURE, CLIP = "https://example.com/a.png", "https://example.com/a.mp4"
MP4, PNG = "https://dashscope-result-sh.oss-cn-shanghai.aliyuncs.com/1d/a.mp4?Expires=1", "https://oss/a.png?Expires=1"
TIMES = {"submit_time": "2025-09-29 14:18:52.331", "end_time": "2025-09-29 14:23:39.407"}
INPUTS: dict[str, dict[str, Any]] = {
    "text-to-video": {"prompt": WORDS},
    "image-to-video": {"img_url": PICTURE},
    "reference-to-video": {"prompt": WORDS, "references": [{"clip": CLIP}]},
    "video-edit": {"prompt": WORDS, "video_url": CLIP},
    "text-to-image": {"prompt": WORDS},
    "image-edit": {"prompt": WORDS, "pictures": [PICTURE]},
    "speech-segment": {"text": WORDS, "voice": "Cherry", "language": "Auto"},
    "text": {"prompt": WORDS},
    "understand": {"prompt": WORDS, "pictures": [PICTURE]},
}

Row = tuple[str, str, dict[str, Any], dict[str, Any], int, dict[str, Any]]


def clip(**usage: Any) -> dict[str, Any]:
    return {"output": {"task_status": "SUCCEEDED", **TIMES, "orig_prompt": WORDS, "video_url": MP4}, "usage": usage}


def choices(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": list(content)}
    return {"choices": [{"finish_reason": "stop", "message": message}], **more}


# The kind, the model, what of the input matters, the answer → how many files, and what is billed.
FILES: list[Row] = [
    # clips, by the generations of their usage
    ("text-to-video", "wan2.5-t2v-preview", {}, clip(video_duration=5, video_ratio="832*480", video_count=1), 1,
     {"seconds": 5, "tier": "480P"}),
    ("text-to-video", "wan2.6-t2v", {},
     clip(duration=10, input_video_duration=0, output_video_duration=10, SR=720, size="1280*720", video_count=1), 1,
     {"seconds": 10, "tier": "720P"}),
    ("text-to-video", "wan2.6-t2v", {}, clip(duration=10.0, SR="720", size="1280*720"), 1,  # the Java SDK's sample
     {"seconds": 10, "tier": "720P"}),
    ("image-to-video", "wan2.5-i2v-preview", {}, clip(SR=480, duration=5, video_count=1), 1,  # recorded
     {"seconds": 5, "tier": "480P"}),
    ("image-to-video", "wan2.6-i2v-flash", {"audio": False},
     clip(duration=10, input_video_duration=0, output_video_duration=10, SR=720, audio=True, video_count=1), 1,
     {"seconds": 10, "tier": "720P", "audio": True}),
    ("image-to-video", "wanx2.1-i2v-turbo", {}, clip(video_duration=5, video_ratio="standard", video_count=1), 1,
     {"seconds": 5, "tier": "480P"}),  # the tier as asked for: the answer has none
    ("image-to-video", "wan2.2-kf2v-flash", {"last_frame_url": PICTURE}, clip(duration=5, SR=720, video_count=1), 1,
     {"seconds": 5, "tier": "720P"}),
    ("image-to-video", "wan2.7-i2v", {},
     clip(duration=15, input_video_duration=0, output_video_duration=15, SR=720, video_count=1), 1, {"seconds": 15}),
    ("image-to-video", "wan2.7-i2v", {}, clip(duration=10.0, video_duration=0, SR=720), 1, {"seconds": 10}),  # SDK pads
    ("text-to-video", "wan2.7-t2v", {},
     clip(duration=15, input_video_duration=0, output_video_duration=15, SR=720, ratio="16:9", video_count=1), 1,
     {"seconds": 15, "tier": "720P"}),
    ("reference-to-video", "wan2.7-r2v", {},
     clip(duration=15.0, input_video_duration=5.0, output_video_duration=10.0, SR=720, ratio="16:9", video_count=1), 1,
     {"seconds": 15, "input_seconds": 5, "tier": "720P"}),
    ("reference-to-video", "wan2.6-r2v", {},
     clip(duration=10, input_video_duration=5, output_video_duration=5, SR=720, size="1280*720", video_count=1), 1,
     {"seconds": 10, "input_seconds": 5}),
    ("video-edit", "wan2.7-videoedit", {},
     clip(duration=10.04, input_video_duration=5.02, output_video_duration=5.02, SR=720, video_count=1), 1,
     {"seconds": 10.04, "input_seconds": 5.02}),
    ("video-edit", "happyhorse-1.0-video-edit", {},
     clip(duration=13.24, input_video_duration=6.62, output_video_duration=6.62, SR=720, video_count=1), 1,
     {"seconds": 13.24, "input_seconds": 6.62}),
    ("text-to-video", "happyhorse-1.1-t2v", {},
     clip(duration=5, input_video_duration=0, output_video_duration=5, SR=1080, ratio="16:9", video_count=1), 1,
     {"seconds": 5, "tier": "1080P"}),
    # recorded: 1080P whatever was asked for
    ("text-to-video", "wan3.0-video", {"resolution": "480P"},
     clip(duration=5, output_video_duration=5, SR=1080, ratio="16:9"), 1, {"seconds": 5, "tier": "1080P"}),
    ("image-to-video", "wan2.6-i2v", {}, {"output": {"results": {"video_url": MP4}}, "usage": {"duration": 5}}, 1,
     {"seconds": 5}),  # an object instead of a list, as the animate models have it
    ("text-to-video", "wan2.6-t2v", {}, {"output": {"task_status": "SUCCEEDED"}, "usage": {}}, 0, {"seconds": 5}),
    # pictures
    ("text-to-image", "wan2.5-t2i-preview", {"n": 2},
     {"output": {"results": [{"orig_prompt": WORDS, "actual_prompt": WORDS, "url": PNG}, {"url": PNG + "2"}],
                 "task_metrics": {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}}, "usage": {"image_count": 2}}, 2,
     {"images": 2}),
    ("text-to-image", "wan2.2-t2i-flash", {"n": 4},
     {"output": {"results": [{"url": PNG}, {"code": "DataInspectionFailed", "message": "Output data may contain"}],
                 "task_metrics": {"TOTAL": 2, "SUCCEEDED": 1, "FAILED": 1}}, "usage": {"image_count": 1}}, 1,
     {"images": 1}),
    ("text-to-image", "qwen-image-max", {},  # recorded
     {"output": choices({"image": PNG}, task_metric={"FAILED": 0, "SUCCEEDED": 1, "TOTAL": 1}),
      "usage": {"height": 928, "image_count": 1, "width": 1664}}, 1, {"images": 1}),
    ("text-to-image", "wan2.7-image-pro", {},
     {"output": choices({"image": PNG, "type": "image"}, finished=True),
      "usage": {"image_count": 1, "input_tokens": 10867, "output_tokens": 2, "size": "1488*704"}}, 1, {"images": 1}),
    ("text-to-image", "wan2.7-image", {"sequence": True, "n": 8},
     {"output": choices(*({"image": f"{PNG}{n}", "type": "image"} for n in range(4)), finished=True),
      "usage": {"image_count": 4}}, 4, {"images": 4}),
    ("image-edit", "wan2.6-image", {"n": 2},
     {"output": {"choices": [choices({"image": f"{PNG}{n}", "type": "image"})["choices"][0] for n in range(2)]},
      "usage": {"image_count": 2, "size": "1376*768", "total_tokens": 0}}, 2, {"images": 2}),
    ("image-edit", "wan2.6-image", {},  # words between pictures are no file
     {"output": choices({"type": "text", "text": "Step 1"}, {"type": "image", "image": PNG}),
      "usage": {"image_count": 1}}, 1, {"images": 1}),
    ("image-edit", "qwen-image-2.0-pro", {},
     {"output": choices({"image": PNG}), "usage": {"height": 2048, "image_count": 1, "width": 2048}}, 1,
     {"images": 1}),
    ("image-edit", "wan2.5-i2i-preview", {},
     {"output": {"results": [{"orig_prompt": WORDS, "url": PNG}]}, "usage": {"image_count": 1}}, 1, {"images": 1}),
    ("text-to-image", "qwen-image-3.0", {"n": 2},  # by reports
     {"output": choices({"image": PNG}, {"image": PNG + "2"}), "usage": {"output_image_count": 2}}, 2, {"images": 2}),
    ("text-to-image", "z-image-turbo", {"prompt_extend": True},
     {"output": choices({"image": PNG}, {"text": WORDS}), "usage": {"image_count": 1, "width": 1024}}, 1,
     {"images": 1, "prompt_extend": True}),
    # speech: plain http, as recorded; some answers have tokens of zero beside
    ("speech-segment", "qwen3-tts-flash", {},
     {"output": {"audio": {"data": "", "expires_at": 1771004886, "id": "audio_1", "url": "http://oss/a.wav?Expires=1"},
                 "finish_reason": "stop"}, "usage": {"characters": 87}}, 1, {"characters": 87}),
    ("speech-segment", "qwen3-tts-instruct-flash", {},
     {"output": {"audio": {"data": "", "url": "https://oss/a.wav"}, "finish_reason": "stop"},
      "usage": {"characters": 195, "input_tokens": 0, "output_tokens": 0}}, 1, {"characters": 195}),
    ("speech-segment", "qwen-tts-latest", {},
     {"output": {"audio": {"url": "http://oss/a.wav"}},
      "usage": {"input_tokens": 21, "output_tokens": 303, "total_tokens": 324,
                "output_tokens_details": {"audio_tokens": 303, "text_tokens": 0}}}, 1,
     {"input_tokens": 21, "output_tokens": 303}),
    ("speech-segment", "qwen3-tts-flash", {}, {"output": {"audio": {}}, "usage": None}, 0, {"characters": len(WORDS)}),
]  # fmt: skip

# The kind, the model, the answer as the client hands it on → the content, the finish reason, tokens.
SAID: list[tuple[str, str, dict[str, Any], str, str, dict[str, int]]] = [
    ("text", "qwen-plus",
     {"output": {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "I am Qwen."}}]},
      "usage": {"input_tokens": 22, "output_tokens": 17, "total_tokens": 39,
                "prompt_tokens_details": {"cached_tokens": 0}}}, "I am Qwen.", "stop",
     {"input_tokens": 22, "output_tokens": 17}),
    ("text", "qwen-plus", {"output": {"text": "I am Qwen.", "finish_reason": "stop"},
                           "usage": {"input_tokens": 22, "output_tokens": 17}}, "I am Qwen.", "stop",
     {"input_tokens": 22, "output_tokens": 17}),
    ("text", "qwen3.6-plus",
     {"output": {"choices": [{"finish_reason": "length", "index": 0, "message": {"content": "cut"}}]},
      "usage": {"prompt_tokens": 3019, "completion_tokens": 104,
                "prompt_tokens_details": {"cached_tokens": 2048},
                "completion_tokens_details": {"reasoning_tokens": 64}}}, "cut", "length",
     {"input_tokens": 3019, "output_tokens": 104, "cached_tokens": 2048, "reasoning_tokens": 64}),
    ("text", "qwen3.6-plus",
     {"output": {"choices": [{"finish_reason": "stop", "message": {"content": None, "role": "assistant"}}]},
      "usage": {"prompt_tokens": 5, "completion_tokens": 1}}, "", "stop", {"input_tokens": 5, "output_tokens": 1}),
    ("text", "qwen-plus",  # recorded: the end and the model beside the choices
     {"output": {"finish_reason": "stop", "model_name": "qwen-plus",
                 "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "wheel"}}]},
      "usage": {"total_tokens": 122, "output_tokens": 11, "input_tokens": 111}}, "wheel", "stop",
     {"input_tokens": 111, "output_tokens": 11}),
    ("text", "qwen-plus",  # recorded: the limit came before the first word, all of it thought
     {"output": {"choices": [{"finish_reason": "length",
                              "message": {"content": "", "reasoning_content": "Hm.", "role": "assistant"}}]},
      "usage": {"input_tokens": 12, "output_tokens": 21, "output_tokens_details": {"reasoning_tokens": 20},
                "prompt_tokens_details": {"cached_tokens": 0}}}, "", "length",
     {"input_tokens": 12, "output_tokens": 21, "reasoning_tokens": 20}),
    ("text", "qwen-plus",  # recorded: a call of a tool that ended with "stop", its content missing
     {"output": {"choices": [{"finish_reason": "stop", "message": {
         "role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}, "index": 0,
                                              "id": "call_1", "type": "function"}]}}]},
      "usage": {"total_tokens": 219, "output_tokens": 8, "input_tokens": 211}}, "", "stop",
     {"input_tokens": 211, "output_tokens": 8}),
    ("text", "qwen-plus",  # recorded: of several answers the first
     {"output": {"choices": [{"finish_reason": "stop", "index": n, "message": {"content": word, "role": "assistant"}}
                             for n, word in enumerate(("one", "two"))]},
      "usage": {"input_tokens": 186, "output_tokens": 83}}, "one", "stop", {"input_tokens": 186, "output_tokens": 83}),
    ("text", "qwen-plus",  # recorded: counts and what was found, of a search
     {"output": {"choices": [{"message": {"content": "167[1]", "role": "assistant"}, "finish_reason": "stop"}],
                 "search_info": {"search_results": [{"index": 1, "title": "t", "url": "https://example.com"}]}},
      "usage": {"output_tokens": 266, "input_tokens": 2707, "plugins": {"search": {"count": 1, "strategy": "turbo"}}}},
     "167[1]", "stop", {"input_tokens": 2707, "output_tokens": 266}),
    ("text", "qwen-plus",  # recorded: how likely its words were
     {"output": {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "2"},
                              "logprobs": {"content": [{"token": "2", "logprob": 0.0, "bytes": [50],
                                                        "top_logprobs": []}]}}]},
      "usage": {"output_tokens": 1, "input_tokens": 20}}, "2", "stop", {"input_tokens": 20, "output_tokens": 1}),
    ("text", "qwen-plus",  # counts as strings, as one gateway writes them
     {"output": {"choices": [{"finish_reason": "stop", "message": {"content": "one"}}]},
      "usage": {"input_tokens": "22", "output_tokens": "17"}}, "one", "stop",
     {"input_tokens": 22, "output_tokens": 17}),
    ("text", "qwen-plus", {"output": {"choices": [{"finish_reason": "stop", "message": {"content": "one"}}]}},
     "one", "stop", {"output_tokens": 1}),  # no usage at all
    ("understand", "qwen3-vl-plus",  # a part may hold more than words
     {"output": {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": [
         {"ocr_result": {"words_info": [{"text": "a", "location": [1, 2, 3, 4]}]}, "text": "a"}]}}]},
      "usage": {"prompt_tokens": 1895, "completion_tokens": 432}}, "a", "stop",
     {"input_tokens": 1895, "output_tokens": 432}),
    ("understand", "qwen3-vl-plus",
     {"output": {"choices": [{"finish_reason": "stop", "message": {"content": "a cat", "reasoning_content": ""}}]},
      "usage": {"prompt_tokens": 3604, "completion_tokens": 283, "total_tokens": 3887,
                "prompt_tokens_details": {"video_tokens": 3586, "text_tokens": 18},
                "completion_tokens_details": {"text_tokens": 283}}}, "a cat", "stop",
     {"input_tokens": 3604, "vision_tokens": 3586, "text_tokens": 18, "audio_tokens": 0}),
    ("understand", "qwen3.5-omni-plus",
     {"output": {"choices": [{"finish_reason": "stop", "message": {"content": "a cat"}}]},
      "usage": {"prompt_tokens": 160, "completion_tokens": 442,
                "prompt_tokens_details": {"audio_tokens": 152, "text_tokens": 8, "image_tokens": 0},
                "completion_tokens_details": {"text_tokens": 442, "audio_tokens": 0}}}, "a cat", "stop",
     {"input_tokens": 160, "audio_tokens": 152, "text_tokens": 8, "vision_tokens": 0, "output_tokens": 442}),
    ("understand", "qwen3-vl-plus",
     {"output": {"choices": [{"finish_reason": "stop", "message": {"content": "a cat", "role": "assistant"}}]},
      "usage": {"prompt_tokens": 1259, "completion_tokens": 267, "total_tokens": 1526,
                "completion_tokens_details": {"audio_tokens": None, "reasoning_tokens": None, "text_tokens": 267},
                "prompt_tokens_details": {"audio_tokens": None, "cached_tokens": 0}}}, "a cat", "stop",
     {"input_tokens": 1259, "output_tokens": 267}),
    ("understand", "qwen-vl-max",  # the native path's parts
     {"output": {"choices": [{"finish_reason": "stop",
                              "message": {"role": "assistant", "content": [{"text": "a "}, {"text": "cat"}]}}]},
      "usage": {"input_tokens": 1277, "output_tokens": 81, "image_tokens": 1247}}, "a cat", "stop",
     {"input_tokens": 1277, "output_tokens": 81}),
]  # fmt: skip

# The kind, the `output` of a task that succeeded as a whole or did not → the codes of its parts that failed.
FAILED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("text-to-image", {"results": [{"url": PNG}, {"code": "InternalError.Timeout", "message": "Timed out"}]},
     ["InternalError.Timeout"]),
    ("text-to-image", {"results": [{"code": "DataInspectionFailed", "message": "Output data"}] * 2},
     ["DataInspectionFailed"] * 2),
    ("image-edit", {"results": [{"code": "InvalidURL", "message": None}]}, ["InvalidURL"]),
    ("text-to-image", {"results": [{"url": PNG}, None, "x"]}, []),
    ("text-to-video", {"task_status": "FAILED", "code": "InvalidParameter", "message": "The size is not match"}, []),
]  # fmt: skip


def frames(*told: dict[str, Any], blank: str = "\n") -> bytes:
    """Native events, as recorded."""
    return "".join(
        f"id:{n}\nevent:result\n:HTTP_STATUS/200\ndata:{json.dumps(each)}\n{blank}" for n, each in enumerate(told, 1)
    ).encode()


def chunks(*told: dict[str, Any]) -> bytes:
    """Events of the compatible surface."""
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in told) + b"data: [DONE]\n\n"


def piece(content: Any, end: str = "null", **more: Any) -> dict[str, Any]:
    return {"output": {"choices": [{"message": {"content": content, "role": "assistant"}, "finish_reason": end}]},
            "usage": {"input_tokens": 8, "output_tokens": 3}, "request_id": "r", **more}  # fmt: skip


def delta(end: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-r", "choices": [{"delta": more, "finish_reason": end, "index": 0}], "usage": None}


TOLD = {"prompt_tokens": 160, "completion_tokens": 9, "prompt_tokens_details": {"audio_tokens": 152, "text_tokens": 8}}

# The surface, the stream → the content, why it ended, what its usage holds.
STREAMS: list[tuple[Surface, bytes, str, str, dict[str, Any]]] = [
    (Surface.NATIVE, frames(piece("a "), piece("cat"), piece("", "stop")), "a cat", "stop", {"input_tokens": 8}),
    (Surface.NATIVE, frames(piece([{"text": "a "}]), piece([{"text": "cat"}], "stop")), "a cat", "stop", {}),
    (Surface.NATIVE, frames(piece([{"text": "a cat"}]), piece([], "stop")), "a cat", "stop", {"output_tokens": 3}),
    # words without a message, which older models answer with whatever `result_format` says
    (Surface.NATIVE, frames(*({"output": {"finish_reason": end, "text": word}, "usage": {"input_tokens": 16}}
                              for word, end in (("a ", "null"), ("cat", "null"), ("", "stop")))),
     "a cat", "stop", {"input_tokens": 16}),
    (Surface.NATIVE, b"\n" + frames(piece("a cat", "length")), "a cat", "length", {}),  # a blank line before it
    (Surface.NATIVE, frames(piece("a cat", "stop"), blank=""), "a cat", "stop", {}),  # none after it
    (Surface.NATIVE, json.dumps(piece("a cat", "stop")).encode(), "a cat", "stop", {"input_tokens": 8}),  # no stream
    (Surface.COMPATIBLE, chunks(delta(role="assistant", content=""), delta(content="a cat"), delta("stop", content=""),
                                {"id": "chatcmpl-r", "choices": [], "usage": TOLD}), "a cat", "stop", TOLD),
    (Surface.COMPATIBLE, chunks(delta(content=None, reasoning_content="Hm."), delta(content="a cat"), delta("stop")),
     "a cat", "stop", {}),
    (Surface.COMPATIBLE, chunks({**delta(content="a cat"), "usage": {"prompt_tokens": 1}},
                                {**delta("stop", content=""), "usage": TOLD}), "a cat", "stop", TOLD),
]  # fmt: skip


@pytest.mark.parametrize(("surface", "stream", "content", "reason", "usage"), STREAMS)
@pytest.mark.parametrize("content_type", [{"content_type": "text/event-stream;charset=UTF-8"}, {}])
def test_a_stream_is_one_answer(
    surface: Surface, stream: bytes, content: str, reason: str, usage: dict[str, Any], content_type: dict[str, str]
) -> None:
    asked = Request("/generation", {}, {}, surface=surface, streams=True)

    with peers.peer(peers.answers(200, stream, **content_type)) as made:
        account = Account(url=made.url, key=SecretStr("sk-one"))
        accepted = Client(account, transports.keeping(), transports.single()).create(asked, 5)

    assert isinstance(accepted, Accepted)
    kept = text.result(accepted.output)
    assert (kept["content"], kept["finish_reason"]) == (content, reason)
    assert usage.items() <= accepted.usage.items()


@pytest.mark.parametrize(("kind", "output", "codes"), FAILED)
def test_parts_that_failed_are_told(kind: str, output: dict[str, Any], codes: list[str]) -> None:
    assert [failure["code"] for failure in kinds.call(kind).failures(output)] == codes


@pytest.mark.parametrize(("kind", "model", "more", "answer", "files", "billed"), FILES)
def test_files_and_what_is_billed_are_read(
    kind: str, model: str, more: dict[str, Any], answer: dict[str, Any], files: int, billed: dict[str, Any]
) -> None:
    entry, reads = CATALOG.model(model), kinds.call(kind)
    wanted = KINDS[kind].check(CATALOG, entry, {**INPUTS[kind], **more}, None)

    used = reads.usage(entry, wanted, answer).units

    assert len(reads.outputs(answer["output"])) == files
    assert {name: used[name] for name in billed} == billed


@pytest.mark.parametrize(("kind", "model", "answer", "content", "reason", "tokens"), SAID)
def test_what_was_said_and_its_tokens_are_read(
    kind: str, model: str, answer: dict[str, Any], content: str, reason: str, tokens: dict[str, int]
) -> None:
    entry, reads = CATALOG.model(model), kinds.call(kind)
    wanted = KINDS[kind].check(CATALOG, entry, INPUTS[kind], None)

    kept = reads.result(wanted, answer["output"])

    assert kept is not None
    assert (kept["content"], kept["finish_reason"]) == (content, reason)
    assert tokens.items() <= reads.usage(entry, wanted, answer).units.items()
