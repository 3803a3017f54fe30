"""A streamed answer put together: a model's words, its reasoning, the tools it called, and what it used.

Events come in two protocols. Native ones have `output.choices[].message`, end by their `finish_reason`, and fail by
`event:error`; OpenAI's have `choices[].delta`, end with `[DONE]`, and fail by an `error` in the data. The last usage
counts, since it is the sum of all. An error before the first word is a refusal like any other; after it, what is billed
is unknown.

The framing is httpx-sse's. DashScope gives the status of each event in a comment before it, `:HTTP_STATUS/400`, which
is no part of an event by the standard, so it is read from the bytes as they pass.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import httpx
import httpx_sse

from worker.dashscope import responses
from worker.dashscope.responses import Accepted, Refused, ServerTrouble, field, listed, number, read, word, words
from worker.egress import Answer, Streamed
from worker.errors import Ambiguous

_STATUS = re.compile(rb"(?:\A|[\r\n]):\s?HTTP_STATUS/(\d{3})(?=[\r\n])")
_BLANK = b"\xef\xbb\xbf \t\r\n"  # a byte-order mark's bytes, and what may stand before a body
_LONGEST = 32  # bytes of such a comment, which the end of a chunk may cut

_THROTTLED = re.compile(r"throttl|limit|quota", re.IGNORECASE)
_SERVERS = re.compile(r"^(internal|system)|unavailable|timeout", re.IGNORECASE)


@dataclass(frozen=True)
class Event:
    """One event: its name ("result", "error"; empty in OpenAI's protocol), its data, and the last status given.

    The status is the answer's until a comment gives another.
    """

    name: str
    data: str
    status: int


def opened(answer: Streamed) -> tuple[Streamed, bool]:
    """The answer without leading blanks, and whether it is a JSON object, by its first byte.

    Its Content-Type is not used: some recorded streams have none.
    """
    begun = next(filter(None, (chunk.lstrip(_BLANK) for chunk in answer.chunks)), b"")
    return dataclasses.replace(answer, chunks=chain([begun], answer.chunks)), begun.startswith(b"{")


def events(answer: Streamed) -> Iterator[Event]:
    """The events of an answer, as they come; raises like its chunks.

    What follows the last blank line counts too, so an answer that ends early may end in half an event.
    """
    watched = _Watched(answer)
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    source = httpx_sse.EventSource(httpx.Response(200, headers=headers, stream=watched))
    for event in source.iter_sse():
        yield Event(event.event, event.data, watched.status)


def assembled(events: Iterable[Event], request_id: str | None, reasoning: bool) -> Accepted | Refused:
    """The answer that the events make up; `request_id` is the header's, `reasoning` whether the model's is kept.

    Raises Ambiguous where it ends early or cannot be read, ServerTrouble for an error after the first word.
    """
    message = _Message(request_id=request_id)
    for event in events:
        if event.data.strip() == "[DONE]":
            break
        frame = _frame(event, message)
        if (refused := _error(event, frame, message)) is not None:
            return _settled(refused, message)
        message.add(frame)
    if message.finish_reason is None:
        raise Ambiguous("the stream ended before the answer did", message.request_id)
    output = message.output(reasoning)
    body = {"output": output, "usage": message.usage, "request_id": message.request_id}
    return Accepted(None, "", message.request_id, output, message.usage, body)


class _Watched(httpx.SyncByteStream):
    """The chunks as they come, and the last status that a comment among them gave."""

    def __init__(self, answer: Streamed) -> None:
        self.status = answer.status
        self._chunks = answer.chunks

    def __iter__(self) -> Iterator[bytes]:
        before = b""
        for chunk in self._chunks:
            found = _STATUS.findall(before + chunk)
            self.status = int(found[-1]) if found else self.status
            before = (before + chunk)[-_LONGEST:]
            yield chunk
        yield b"\n\n"


@dataclass
class _Message:
    """The answer so far."""

    content: list[str] = dataclasses.field(default_factory=list)
    reasoning: list[str] = dataclasses.field(default_factory=list)
    calls: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    finish_reason: str | None = None
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    request_id: str | None = None
    began: bool = False

    def add(self, frame: Mapping[str, Any]) -> None:
        """Adds an event's data."""
        self.request_id = word(frame, "request_id") or self.request_id
        self.usage = field(frame, "usage") or self.usage
        output = field(frame, "output") or frame
        # Words without a message, as some native streams were recorded.
        for choice in listed(output, "choices")[:1] or [{**output, "message": {"content": output.get("text")}}]:
            self._take(field(choice, "message") or field(choice, "delta"))
            reason = word(choice, "finish_reason")
            self.finish_reason = reason if reason not in ("", "null") else self.finish_reason

    def output(self, reasoning: bool) -> dict[str, Any]:
        """The output as a call that does not stream has it."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.calls:
            message["tool_calls"] = [self.calls[n] for n in sorted(self.calls)]
        if reasoning and self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        return {"choices": [{"finish_reason": self.finish_reason, "message": message}]}

    def _take(self, message: Mapping[str, Any]) -> None:
        content, reasoning = words(message, "content"), word(message, "reasoning_content")
        self.content.append(content)
        self.reasoning.append(reasoning)
        calls = listed(message, "tool_calls")
        for call in calls:
            self._call(call)
        self.began = self.began or bool(content or reasoning or calls)

    def _call(self, piece: Mapping[str, Any]) -> None:
        """Adds a piece of a tool call: its name comes once, its arguments in pieces."""
        index, function = number(piece, "index"), field(piece, "function")
        call = self.calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call["id"] = word(piece, "id") or call["id"]
        call["function"]["name"] = word(function, "name") or call["function"]["name"]
        call["function"]["arguments"] += word(function, "arguments")


def _frame(event: Event, message: _Message) -> dict[str, Any]:
    frame = read(event.data)
    if event.data and not frame:
        raise Ambiguous("a frame of the stream is not readable", message.request_id)
    return frame


def _error(event: Event, frame: Mapping[str, Any], message: _Message) -> Refused | None:
    """The refusal in an event; None: there is none."""
    refusal = responses.refused(Answer(0, {}, b"", message.request_id), frame)
    if event.name != "error" and not refusal.code:
        return None
    status = event.status if event.status >= 400 else _status(refusal.code)
    return Refused(status, refusal.code or "InternalError", refusal.message, refusal.request_id)


def _status(code: str) -> int:
    """The status that goes with a code; an error in a stream of OpenAI's protocol has none."""
    if _THROTTLED.search(code):
        return 429
    return 500 if _SERVERS.search(code) else 400


def _settled(refused: Refused, message: _Message) -> Refused:
    if message.began or not responses.is_definite(refused):
        when = "after the answer had begun" if message.began else "instead of an answer"
        raise ServerTrouble(f"{refused.code} {when}", refused)
    return refused
