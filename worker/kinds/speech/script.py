"""A script cut into segments: one for each call, below the provider's limit, with silence between.

A text is cut at sentence ends, else at clauses, else between words; nothing is lost or repeated but the blanks around a
segment. What has no letter and no digit cannot be spoken and is not sent: a line of stars is a longer pause.

The splitter sees the text through a view of equal length. There a line that an editor wrapped goes on with a space, a
line of a verse or a list ends like a sentence, and the full stop of "Dr." is none. Pieces are found one at a time, in a
window a little longer than the limit, so the time grows linearly with the text (the splitter's own grows with the
square where Chinese has no full stops).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from semantic_text_splitter import TextSplitter

Measure = Callable[[str], int]

LONGEST_PAUSE = 10.0  # seconds

_BLANK_LINES = re.compile(r"\n\s*\n")
_AHEAD = 64  # characters after the limit: they tell whether a full stop before it ends a sentence
_WRAPPED = 50  # bytes; editors wrap no shorter lines
_END = "\u2028"  # a line separator, which the splitter takes for the end of a sentence
_TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|No|Sr|Jr|vs|Fig|[A-Z])\.(?=\s)")
_CLAUSE = re.compile(r"""(?:[,;:،؛—–](?=\s)|[，；：、])["'”’»」』）)\]]*\s*(?=[\w"'“‘«「『（(\[])""")
_BLANK = re.compile(r"\s+")


@dataclass(frozen=True)
class Paragraph:
    """A part of the script in one voice, and the seconds of silence after it."""

    text: str
    voice: str
    language: str
    instructions: str | None
    pause: float
    optimize_instructions: bool | None = field(default=None, kw_only=True)  # the provider puts the instructions better


@dataclass(frozen=True)
class Segment(Paragraph):
    """A part of a paragraph (counted from 1), which one call speaks."""

    paragraph: int


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, which blank lines divide."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return [part for part in _BLANK_LINES.split(lines) if part.strip()]


def segments(script: Iterable[Paragraph], pause: float, limit: int, measure: Measure) -> list[Segment]:
    """The script in segments of at most `limit`; `pause` is between those of a paragraph. None is after the last."""
    found: list[Segment] = []
    for number, part in enumerate(script, 1):
        pieces = [piece.strip() for piece in cut(part.text, limit, measure) if piece.strip()]
        for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
            rest = pause if left else part.pause
            if is_spoken(piece):
                own = vars(part) | {"text": piece, "pause": rest}
                found.append(Segment(**own, paragraph=number))
            elif found:
                found[-1] = replace(found[-1], pause=min(found[-1].pause + rest, LONGEST_PAUSE))
    return [*found[:-1], *(replace(last, pause=0.0) for last in found[-1:])]


def in_bytes(text: str) -> int:
    """How long the text is in UTF-8."""
    return len(text.encode())


def in_columns(text: str) -> int:
    """How wide the text is on a screen: a Han character takes two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def is_spoken(text: str) -> bool:
    """Whether it has anything to speak: a letter or a digit."""
    return any(character.isalnum() for character in text)


def cut(text: str, limit: int, measure: Measure) -> Iterator[str]:
    """Pieces of at most `limit` (4 or more), each as long as possible; joined they are the text.

    `measure` gives every character at least 1. A grapheme (an emoji of several characters, a letter with its marks) is
    cut only when it alone is above the limit.
    """
    splitter = TextSplitter.from_callback(measure, limit, trim=False)
    view, at = _view(text), 0
    assert len(view) == len(text), "places in the view are places in the text"
    while at < len(text):
        window = view[at : at + limit + _AHEAD]
        found = splitter.chunks(window)[0]
        size = _size(found, window[len(found) :])
        yield text[at : at + size]
        at += size


def _view(text: str) -> str:
    *lines, last = text.replace("\r", " ").split("\n")
    joined = "".join(line + (" " if in_bytes(line) >= _WRAPPED else _END) for line in lines)
    return _TITLE.sub(r"\1_", joined + last)


def _size(found: str, rest: str) -> int:
    """How much of the splitter's piece is taken: of a sentence above the limit, up to its last clause."""
    if not rest or found.endswith(_END) or not _is_open(found):
        return len(found)
    # A full stop alone would not be spoken, so the last word goes with it.
    marks = (_CLAUSE, _BLANK) if unicodedata.category(rest[0])[0] == "P" else (_CLAUSE,)
    places = (place.end() for mark in marks for place in reversed([*mark.finditer(found)]))
    return next((place for place in places if place >= len(found) / 2), len(found))


def _is_open(found: str) -> bool:
    """Whether its last word goes on, with no mark after it."""
    return unicodedata.category(found.rstrip()[-1:] or ".")[0] in "LMN"
