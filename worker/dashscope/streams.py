"""A streamed answer put together: what a model said and thought, the tools it called, and what it used.

Frames come in two protocols. Native ones have `output.choices[].message`, end by their `finish_reason`, and fail by
`event:error`; OpenAI's have `choices[].delta`, end with `[DONE]`, and fail by an `error` in a frame. The last usage
counts, since it is the sum of all. An error before the first word is a refusal like any other; after it, nobody knows
what is billed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.dashscope import responses
from worker.dashscope.bodies import field, listed, number, read, word, words
from worker.dashscope.responses import Accepted, Refused, ServerTrouble
from worker.egress import Answer
from worker.egress.events import Event
from worker.errors import Ambiguous

_THROTTLED = re.compile(r"throttl|limit|quota", re.IGNORECASE)
_SERVERS = re.compile(r"^(internal|system)|unavailable|timeout", re.IGNORECASE)


@dataclass
class _Said:
    """The answer as far as it has come."""

    content: list[str] = dataclasses.field(default_factory=list)
    reasoning: list[str] = dataclasses.field(default_factory=list)
    calls: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    finish_reason: str | None = None
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    request_id: str | None = None
    began: bool = False

    def hear(self, frame: Mapping[str, Any]) -> None:
        """Takes in a frame."""
        self.request_id = word(frame, "request_id") or self.request_id
        self.usage = field(frame, "usage") or self.usage
        for choice in listed(field(frame, "output") or frame, "choices")[:1]:
            self._take(field(choice, "message") or field(choice, "delta"))
            reason = word(choice, "finish_reason")
            self.finish_reason = reason if reason not in ("", "null") else self.finish_reason

    def output(self, reasoning: bool) -> dict[str, Any]:
        """What it comes to, as a call that does not stream answers."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.calls:
            message["tool_calls"] = [self.calls[n] for n in sorted(self.calls)]
        if reasoning and self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        return {"choices": [{"finish_reason": self.finish_reason, "message": message}]}

    def _take(self, message: Mapping[str, Any]) -> None:
        said, thought = words(message, "content"), word(message, "reasoning_content")
        self.content.append(said)
        self.reasoning.append(thought)
        calls = listed(message, "tool_calls")
        for call in calls:
            self._call(call)
        self.began = self.began or bool(said or thought or calls)

    def _call(self, piece: Mapping[str, Any]) -> None:
        """A piece of a call of a tool: its name comes once, its arguments bit by bit."""
        index, function = number(piece, "index"), field(piece, "function")
        call = self.calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call["id"] = word(piece, "id") or call["id"]
        call["function"]["name"] = word(function, "name") or call["function"]["name"]
        call["function"]["arguments"] += word(function, "arguments")


def assembled(events: Iterable[Event], request_id: str | None, reasoning: bool) -> Accepted | Refused:
    """What the stream comes to; `request_id` is the header's, `reasoning`: with what the model thought.

    Raises Ambiguous where it ends early or cannot be read, ServerTrouble for an error after the first word.
    """
    said = _Said(request_id=request_id)
    for event in events:
        if event.data.strip() == "[DONE]":
            break
        frame = _frame(event, said)
        if (refused := _error(event, frame, said)) is not None:
            return _settled(refused, said)
        said.hear(frame)
    if said.finish_reason is None:
        raise Ambiguous("the stream ended before the answer did", said.request_id)
    output = said.output(reasoning)
    body = {"output": output, "usage": said.usage, "request_id": said.request_id}
    return Accepted(None, "", said.request_id, output, said.usage, body)


def _frame(event: Event, said: _Said) -> dict[str, Any]:
    frame = read(event.data)
    if event.data and not frame:
        raise Ambiguous("a frame of the stream is not readable", said.request_id)
    return frame


def _error(event: Event, frame: Mapping[str, Any], said: _Said) -> Refused | None:
    """The refusal that a frame is; None: it is none."""
    no = responses.refused(Answer(0, {}, b"", said.request_id), frame)
    if event.name != "error" and not no.code:
        return None
    status = event.status if event.status >= 400 else _status(no.code)
    return Refused(status, no.code or "InternalError", no.message, no.request_id)


def _status(code: str) -> int:
    """The status that goes with a code; in OpenAI's protocol an error in a stream has none."""
    if _THROTTLED.search(code):
        return 429
    return 500 if _SERVERS.search(code) else 400


def _settled(refused: Refused, said: _Said) -> Refused:
    if said.began or not responses.is_definite(refused):
        when = "after the answer had begun" if said.began else "instead of an answer"
        raise ServerTrouble(f"{refused.code} {when}", refused)
    return refused
