"""Text calls on both surfaces: answers, streams put together, and what a broken stream proves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import peers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer
from pydantic import SecretStr

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import catalog
from worker.catalog import Surface
from worker.dashscope.client import Client
from worker.dashscope.responses import Accepted, Refused, ServerTrouble
from worker.dashscope.streams import Event, events, opened
from worker.egress import Streamed, transports
from worker.errors import Ambiguous
from worker.kinds import Request, text
from worker.settings import Account

KEY = "sk-text"
REGION = "cn-beijing"
QUESTION = "Name three colours.\n\nThey should be warm."
NATIVE = Request("/services/aigc/text-generation/generation", {}, {"model": "qwen-plus"}, streams=True)
OPENAI = Request("/chat/completions", {}, {"model": "qwen3.5-plus"}, surface=Surface.COMPATIBLE, streams=True)
EITHER = pytest.mark.parametrize("asked", [NATIVE, OPENAI], ids=["native", "compatible"])
THROTTLED = {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded.", "request_id": "r"}


def client(url: str) -> Client:
    return Client(Account(url=url, key=SecretStr(KEY)), transports.keeping(), transports.single())


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(call_seconds=0)) as made:
        yield made


def request(name: str, **said: Any) -> Request:
    model = catalog.load().model(name)
    return text.KIND.request(
        model, REGION, text.KIND.check(catalog.load(), model, {"prompt": QUESTION, **said}, REGION)
    )


def native(content: str = "", end: str = "null", **more: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": content, **more}, "finish_reason": end}
    return {"output": {"choices": [choice]}, "usage": {"input_tokens": 8, "output_tokens": 2}, "request_id": "r"}


def openai(content: str | None = None, end: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {"content": content, **more}
    return {"id": "chatcmpl-r", "choices": [{"index": 0, "delta": delta, "finish_reason": end}], "usage": None}


def event(data: object, name: str = "result", status: int = 200) -> bytes:
    return f"id:1\nevent:{name}\n:HTTP_STATUS/{status}\ndata:{json.dumps(data)}\n\n".encode()


def chunk(data: object) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def frames(asked: Request, *words: str, end: str | None = "stop") -> bytes:
    """A stream of these words, as the surface has it; without `end` it breaks off."""
    if asked.surface is Surface.NATIVE:
        return b"".join([event(native(word)) for word in words] + ([event(native("", end))] if end else []))
    return b"".join(
        [chunk(openai(word)) for word in words] + ([chunk(openai(None, end)), b"data: [DONE]\n\n"] if end else [])
    )


def streams(body: bytes) -> peers.Script:
    return peers.answers(200, body, content_type="text/event-stream;charset=UTF-8", x_request_id="r-head")


def said(script: peers.Script, asked: Request) -> Accepted | Refused:
    with peer(script) as made:
        return client(made.url).create(asked, 1)


def answered(script: peers.Script, asked: Request) -> dict[str, Any]:
    accepted = said(script, asked)
    assert isinstance(accepted, Accepted)
    return text.result(accepted.output) or {}


# Against the sandbox


@pytest.mark.parametrize("name", ["qwen-plus", "qwen3-32b", "qwen3.5-plus", "qwen3.6-plus", "qwen-max"])
def test_a_question_is_answered_on_the_surface_of_its_model(sandbox: Sandbox, name: str) -> None:
    accepted = client(sandbox.url).create(request(name), 10)

    assert isinstance(accepted, Accepted)
    assert accepted.task_id is None
    result = text.result(accepted.output)
    assert result is not None
    assert result["content"]
    assert result["finish_reason"] == "stop"
    units = text.KIND.usage(catalog.load().model(name), text.Conversation(prompt=QUESTION), accepted.body).units
    assert units["input_tokens"] > 0
    assert units["output_tokens"] > 0


@pytest.mark.parametrize("name", ["qwen-plus", "qwen3-32b", "qwen3.5-plus"])
def test_a_thinking_model_streams_and_its_thoughts_are_dropped(sandbox: Sandbox, name: str) -> None:
    dashscope = client(sandbox.url)

    silent = dashscope.create(request(name, enable_thinking=True), 10)
    aloud = dashscope.create(request(name, enable_thinking=True, include_reasoning=True), 10)

    assert isinstance(silent, Accepted)
    assert isinstance(aloud, Accepted)
    assert "reasoning" not in json.dumps(silent.output)
    result = text.result(aloud.output) or {}
    assert result["reasoning"]
    assert result["content"] == (text.result(silent.output) or {})["content"]
    assert (
        text.KIND.usage(catalog.load().model(name), text.Conversation(prompt=QUESTION), aloud.body).units[
            "reasoning_tokens"
        ]
        > 0
    )


def test_a_refusal_is_the_same_value_from_either_surface(sandbox: Sandbox) -> None:
    unlike = {"max_tokens": 10**9}
    native_call, openai_call = request("qwen-plus"), request("qwen3.5-plus")
    native_call.body["parameters"] |= unlike
    openai_call.body.update(unlike)

    refused = [client(sandbox.url).create(asked, 10) for asked in (native_call, openai_call)]

    assert [isinstance(each, Refused) and each.http_status for each in refused] == [400, 400]
    assert [isinstance(each, Refused) and bool(each.request_id and each.message) for each in refused] == [True, True]


def test_a_tool_is_called(sandbox: Sandbox) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    choice = {"type": "function", "function": {"name": "weather"}}

    for name in ("qwen-plus", "qwen3.5-plus"):
        accepted = client(sandbox.url).create(request(name, tools=[tool], tool_choice=choice), 10)

        assert isinstance(accepted, Accepted)
        [call] = (text.result(accepted.output) or {})["tool_calls"]
        assert call["function"]["name"] == "weather"


# Streams, byte by byte


@EITHER
def test_the_pieces_of_a_stream_make_one_answer(asked: Request) -> None:
    accepted = said(streams(frames(asked, "一只", "小猫", "\u2028 and \x85 so on")), asked)

    assert isinstance(accepted, Accepted)
    assert accepted.output == {
        "choices": [
            {"finish_reason": "stop", "message": {"role": "assistant", "content": "一只小猫\u2028 and \x85 so on"}}
        ]
    }
    assert accepted.body["output"] == accepted.output


def test_a_stream_is_asked_for_as_each_surface_wants_it() -> None:
    with peer(streams(frames(NATIVE, "a"))) as made:
        client(made.url).create(NATIVE, 2)
    with peer(streams(frames(OPENAI, "a"))) as other:
        client(other.url).create(OPENAI, 2)

    assert made.requests[0].startswith(b"POST /api/v1/services/aigc/text-generation/generation HTTP")
    assert b"x-dashscope-sse: enable" in made.requests[0].lower()
    assert other.requests[0].startswith(b"POST /compatible-mode/v1/chat/completions HTTP")
    assert b"accept: text/event-stream" in other.requests[0].lower()


def test_the_usage_of_a_stream_is_the_last_one_told() -> None:
    last = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}, "id": "chatcmpl-r"}
    body = chunk(openai("a", "stop")) + chunk(last) + b"data: [DONE]\n\n"

    accepted = said(streams(body), OPENAI)

    assert isinstance(accepted, Accepted)
    assert accepted.usage == last["usage"]


def test_the_arguments_of_a_tools_call_come_bit_by_bit() -> None:
    pieces: Iterable[dict[str, Any]] = (
        {"index": 0, "id": "c0", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "id": "", "function": {"name": "", "arguments": '{"city": '}},
        {"index": 1, "id": "c1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": '"Oslo"}'}},
    )
    body = b"".join(event(native("", tool_calls=[piece])) for piece in pieces) + event(native("", "tool_calls"))

    result = answered(streams(body), NATIVE)

    assert result["finish_reason"] == "tool_calls"
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in result["tool_calls"]] == [
        ("c0", "weather", '{"city": "Oslo"}'),
        ("c1", "time", "{}"),
    ]


@EITHER
def test_an_answer_without_a_stream_is_taken_all_the_same(asked: Request) -> None:
    whole = (
        native("Red.", "stop")
        if asked is NATIVE
        else {"choices": [{"message": {"content": "Red."}, "finish_reason": "stop"}]}
    )

    assert answered(peers.answers(200, json.dumps(whole).encode()), asked)["content"] == "Red."


@EITHER
@pytest.mark.parametrize(
    "content_type",
    ["", "text/event-stream", "Text/Event-Stream;charset=utf-8", "TEXT/EVENT-STREAM;CHARSET=UTF-8", "application/json"],
)
def test_a_stream_is_told_by_its_body_whatever_its_content_type_says(asked: Request, content_type: str) -> None:
    named = {"content_type": content_type} if content_type else {}

    assert answered(peers.answers(200, frames(asked, "Re", "d."), **named), asked)["content"] == "Red."


@EITHER
@pytest.mark.parametrize(
    "spelled",
    [
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: b"\r\n\n" + body,
        lambda body: body.replace(b"\n", b"\r\n"),
        lambda body: body.replace(b"\n", b"\r"),
        lambda body: body.replace(b"data: ", b"data:"),
        lambda body: body.replace(b"data:", b": a comment\n:another\ndata:"),
        lambda body: body.replace(b"event:result\n", b"event: result\n"),
        lambda body: body.replace(b":HTTP_STATUS/200\n", b""),
    ],
    ids=["mark", "blanks", "CRLF", "CR", "no space", "comments", "space", "no status"],
)
def test_a_stream_may_be_spelled_in_many_ways(asked: Request, spelled: Any) -> None:
    script = peers.answers(200, spelled(frames(asked, "Re", "d.")))

    assert answered(script, asked)["content"] == "Red."


@EITHER
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/event-stream;charset=UTF-8"])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" \n"])
def test_an_error_in_json_where_a_stream_was_asked_for_is_a_refusal(
    asked: Request, content_type: str, before: bytes
) -> None:
    body = before + json.dumps(THROTTLED).encode()

    for status in (200, 429):
        refused = said(peers.answers(status, body, content_type=content_type), asked)
        assert isinstance(refused, Refused)
        assert (refused.http_status, refused.code) == (status, "Throttling.AllocationQuota")


def test_a_refusal_by_an_event_under_its_own_status_is_read_as_one() -> None:
    frame = event(THROTTLED, "error", 429)
    bare = frame.replace(b":HTTP_STATUS/429\n", b"")
    strange = {"code": "Strange", "message": "no", "request_id": "r"}

    for body in (frame, bare):
        refused = said(peers.answers(429, body, content_type="text/event-stream;charset=UTF-8"), NATIVE)
        assert refused == Refused(429, "Throttling.AllocationQuota", "Allocated quota exceeded.", "r")
    told = said(peers.answers(403, event(strange, "error", 403), content_type="text/event-stream"), NATIVE)
    assert told == Refused(403, "Strange", "no", "r")


def test_a_stream_cut_at_any_byte_is_opened_all_the_same() -> None:
    body = b"\xef\xbb\xbf" + frames(NATIVE, "Red.")

    for cut in range(1, 40):
        answer, is_json = opened(Streamed(200, {}, iter([body[:cut], body[cut:]])))
        assert (is_json, next(iter(events(answer))).data) == (False, json.dumps(native("Red.")))
    assert opened(Streamed(200, {}, iter([])))[1] is False


def test_words_in_parts_are_read_too() -> None:
    parts = [{"text": "Re"}, {"text": "d."}]
    whole = {"output": {"choices": [{"message": {"role": "assistant", "content": parts}, "finish_reason": "stop"}]}}
    body = event(native([parts[0]])) + event(native([parts[1]])) + event(native([], "stop"))  # type: ignore[arg-type]

    assert answered(streams(body), NATIVE)["content"] == "Red."
    assert answered(peers.answers(200, json.dumps(whole).encode()), NATIVE)["content"] == "Red."


# The samples of 'Qwen-TTS API reference' and 'DashScope API reference': what stands beside a result is no refusal.
BESIDE = {"status_code": 200, "code": "", "message": "", "request_id": "5c63c65c"}


@pytest.mark.parametrize(
    "output",
    [
        {
            "text": None,
            "finish_reason": "stop",
            "choices": None,
            "audio": {"data": "", "url": "http://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/a.wav", "id": "a"},
        },
        {"text": None, "finish_reason": None, "choices": [{"finish_reason": "stop", "message": {"content": "Hi"}}]},
        {"finish_reason": "stop", "text": "Hi"},
    ],
)
def test_empty_codes_beside_a_result_are_no_refusal(output: dict[str, Any]) -> None:
    body = json.dumps({**BESIDE, "output": output, "usage": {"characters": 195}}).encode()

    for asked in (NATIVE, Request(NATIVE.path, {}, NATIVE.body)):
        accepted = said(peers.answers(200, body), asked)
        assert isinstance(accepted, Accepted)
        assert (accepted.output, accepted.usage, accepted.request_id) == (output, {"characters": 195}, "5c63c65c")


def test_an_error_before_the_first_word_is_a_refusal_with_the_status_of_its_comment() -> None:
    assert said(streams(event(THROTTLED, "error", 429)), NATIVE) == Refused(
        429, "Throttling.AllocationQuota", "Allocated quota exceeded.", "r"
    )
    assert said(streams(event(native("")) + event(THROTTLED, "error", 400)), NATIVE) == Refused(
        400, "Throttling.AllocationQuota", "Allocated quota exceeded.", "r"
    )


@pytest.mark.parametrize(
    ("code", "status"), [("limit_requests", 429), ("data_inspection_failed", 400), ("invalid_parameter_error", 400)]
)
def test_an_error_in_a_compatible_stream_has_the_status_of_its_code(code: str, status: int) -> None:
    body = chunk({"error": {"code": code, "message": "no"}, "request_id": "r"})

    assert said(streams(body), OPENAI) == Refused(status, code, "no", "r")


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        (NATIVE, event(native("Re")) + event(THROTTLED, "error", 429)),
        (NATIVE, event({**THROTTLED, "code": "InternalError"}, "error", 500)),
        (OPENAI, chunk(openai("Re")) + chunk({"error": {"code": "limit_requests", "message": "no"}})),
        (OPENAI, chunk({"error": {"code": "internal_error", "message": "no"}})),
    ],
)
def test_an_error_after_the_first_word_or_of_the_server_proves_nothing(asked: Request, body: bytes) -> None:
    with pytest.raises(ServerTrouble) as raised:
        said(streams(body), asked)

    assert raised.value.refused.code


@EITHER
@pytest.mark.parametrize(
    "cut",
    [
        lambda asked: streams(frames(asked, "Re", end=None)),
        lambda asked: streams(b""),
        lambda asked: streams(frames(asked, "Re", "d.")[:-60]),
        lambda asked: streams(b"data: {not json}\n\n"),
        lambda asked: peers.breaks(
            peers.whole(200, frames(asked, "Re", "d."), content_type="text/event-stream", x_request_id="r-head")[:-20]
        ),
        lambda asked: peers.drips(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: r-head\r\n\r\n",
            frames(asked, *["word"] * 50),
        ),
    ],
    ids=["no end", "nothing", "half a frame", "not JSON", "reset", "dripping"],
)  # fmt: skip
def test_a_stream_that_ends_early_proves_nothing(asked: Request, cut: Any) -> None:
    with pytest.raises(Ambiguous) as raised:
        said(cut(asked), asked)

    assert raised.value.request_id in ("r", "r-head")


def test_a_stream_without_end_is_cut_at_the_cap() -> None:
    with peer(streams(b":" * (65 << 20))) as made, pytest.raises(Ambiguous, match="more than 67108864 bytes"):
        client(made.url).create(NATIVE, 20)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8),
    cuts=st.lists(st.integers(1, 400), max_size=12),
    newline=st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_are_the_same_however_the_bytes_are_cut(words: list[str], cuts: list[int], newline: bytes) -> None:
    body = b"".join(event(word, "error", 400 + n) for n, word in enumerate(words)).replace(b"\n", newline)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[start:end] for start, end in itertools.pairwise(edges)]

    found = list(events(Streamed(200, {}, iter(chunks))))

    assert [(each.name, json.loads(each.data)) for each in found if each.data] == [("error", word) for word in words]
    assert not words or found[len(words) - 1].status == 400 + len(words) - 1


def test_the_last_event_counts_without_its_blank_line() -> None:
    [found] = events(Streamed(200, {}, iter([b"event:result\n:HTTP_STATUS/200\ndata:7"])))

    assert found == Event("result", "7", 200)
