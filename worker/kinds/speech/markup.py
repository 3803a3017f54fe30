"""Marks in a text that is to be spoken: Markdown taken off, pauses made of what asks for one, other tags found.

    <break time="1s"/>   [pause 2s]   [pause]   （停顿）   （停顿2秒）   (pause 500ms)

What would be read out, and billed, as "asterisk" or "less than prosody" is never what was meant.
"""

from __future__ import annotations

import re

from worker.errors import NoriaError
from worker.kinds.reading import child

_PAUSE = 1.0  # seconds, where a mark does not say how long

# Bounded everywhere, so that a text of opening brackets takes no longer than one of words.
_BREAK = r"<break(?:\s[^<>]{0,100})?/?>"
_BRACKET = (
    r"[\[（(【]\s{0,3}(?:pause|停顿|停頓|暂停|暫停)\s{0,3}[:：]?\s{0,3}"
    r"(?:\d{1,5}(?:\.\d{1,3})?\s{0,3}(?:ms|毫秒|s|secs?|seconds?|秒)?)?\s{0,3}[\]）)】]"
)
_MARK = re.compile(f"{_BREAK}|{_BRACKET}", re.I)
_TIME = re.compile(r"(\d{1,5}(?:\.\d{1,3})?)\s{0,3}(ms|毫秒)?", re.I)
_TAG = re.compile(r"</?([A-Za-z][\w:.-]{0,40})(?:\s[^<>]{0,200})?/?>")
_SPOKEN_AROUND = re.compile(r"<\?xml[^<>]{0,200}>|</?(?:speak|p|s)(?:\s[^<>]{0,500})?>", re.I)

_SECONDS = 10.0  # by the clock, to take the Markdown off a text


class Unmarkable(NoriaError):
    """The Markdown cannot be taken off; the message says why."""

    code = "bad_markdown"


def plain(markdown: str) -> str:
    """The text without its Markdown, by a parser in a process of its own; raises Unmarkable."""
    try:
        answer = child.run("markdown", markdown.encode(errors="replace"), len(markdown), _SECONDS)
    except child.Exhausted as error:
        raise Unmarkable(str(error)) from None
    if "text" not in answer:
        raise Unmarkable(answer["message"])
    return str(answer["text"])


def pieces(text: str) -> list[tuple[str, float | None]]:
    """The text cut at its pauses: each piece, and the seconds of silence after it; None after the last."""
    found: list[tuple[str, float | None]] = []
    at = 0
    text = _SPOKEN_AROUND.sub(" ", text)
    for mark in _MARK.finditer(text):
        piece = text[at : mark.start()]
        if found and not piece.strip():
            found[-1] = (found[-1][0], (found[-1][1] or 0) + _seconds(mark[0]))
        else:
            found.append((piece, _seconds(mark[0])))
        at = mark.end()
    rest = text[at:]
    return [*found, (rest, None)] if rest.strip() or not found else found


def strange(text: str) -> str | None:
    """The name of the first tag that cannot be followed; None: there is none."""
    tags = (tag[1] for tag in _TAG.finditer(_MARK.sub("", _SPOKEN_AROUND.sub("", text))))
    return next(tags, None)


def _seconds(mark: str) -> float:
    said = _TIME.search(mark)
    if said is None:
        return _PAUSE
    return float(said[1]) / (1000 if said[2] else 1)
