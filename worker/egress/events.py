"""Server-sent events out of an answer that is still on its way.

The framing is httpx-sse's. DashScope says the status of each event in a comment before it, `:HTTP_STATUS/400`, which
is no part of an event by the standard, so the bytes are watched for it as they pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import httpx
import httpx_sse

from worker.egress import Streamed

_STATUS = re.compile(rb"(?:\A|[\r\n]):\s?HTTP_STATUS/(\d{3})(?=[\r\n])")
_BLANK = b"\xef\xbb\xbf \t\r\n"  # a byte-order mark's bytes, and what may stand before a body
_LONGEST = 32  # bytes that such a comment may be long, and so be cut by the end of a chunk


@dataclass(frozen=True)
class Event:
    """One event: its name ("result", "error"; empty in OpenAI's protocol), its data, and the last status told.

    That is the answer's own until a comment tells another.
    """

    name: str
    data: str
    status: int


def opened(answer: Streamed) -> tuple[Streamed, bool]:
    """The answer without blanks before it, and whether it is a JSON object: told by its first byte.

    Its Content-Type is not asked: some recorded streams have none.
    """
    begun = next(filter(None, (chunk.lstrip(_BLANK) for chunk in answer.chunks)), b"")
    return replace(answer, chunks=chain([begun], answer.chunks)), begun.startswith(b"{")


def events(answer: Streamed) -> Iterator[Event]:
    """The events of an answer, as they come; raises like its chunks.

    What stands after the last blank line counts too, so an answer that ends early may end in half an event.
    """
    watched = _Watched(answer)
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    source = httpx_sse.EventSource(httpx.Response(200, headers=headers, stream=watched))
    for event in source.iter_sse():
        yield Event(event.event, event.data, watched.status)


class _Watched(httpx.SyncByteStream):
    """The chunks as they come, and the last status that a comment among them told."""

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
