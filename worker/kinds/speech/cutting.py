"""Text cut into pieces below a limit: at sentence ends, else at clauses, else between words; nothing lost or repeated.

What is cut is looked at through a view of equal length: where an editor wrapped a line there is a space, where a line
is a verse or an item of a list it ends like a sentence, and the stop of "Dr." is none. Places found in the view are
places in the text. One piece is looked for at a time, in a window a little longer than the limit, so that the time it
takes grows with the text and no faster (the splitter's own grows with the square where Chinese has no stops).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from semantic_text_splitter import TextSplitter

Measure = Callable[[str], int]

_AHEAD = 64  # characters after the limit, which may tell whether a stop before it ends a sentence
_WRAPPED = 50  # bytes; an editor wraps no shorter lines
_END = "\u2028"  # a line separator: for the splitter the end of a sentence, and no more than that
_TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|No|Sr|Jr|vs|Fig|[A-Z])\.(?=\s)")
_CLAUSE = re.compile(r"""(?:[,;:،؛—–](?=\s)|[，；：、])["'”’»」』）)\]]*\s*(?=[\w"'“‘«「『（(\[])""")
_BLANK = re.compile(r"\s+")


def in_bytes(text: str) -> int:
    """How long the text is in UTF-8."""
    return len(text.encode())


def in_columns(text: str) -> int:
    """How wide the text is on a screen: a Han character takes two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def is_spoken(text: str) -> bool:
    """Whether there is anything in it to be said: a letter or a digit."""
    return any(character.isalnum() for character in text)


def cut(text: str, limit: int, measure: Measure) -> Iterator[str]:
    """Pieces of at most `limit`, at least 4, each as long as may be; joined they are the text.

    `measure` gives every character at least 1. A grapheme (an emoji of several, a letter with its marks) is cut only
    when it is above the limit by itself.
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
    """How much of what the splitter found is taken: of a sentence above the limit, up to its last clause."""
    if not rest or found.endswith(_END) or not _is_open(found):
        return len(found)
    # A stop by itself would not be spoken, so a word goes with its stop.
    marks = (_CLAUSE, _BLANK) if unicodedata.category(rest[0])[0] == "P" else (_CLAUSE,)
    places = (place.end() for mark in marks for place in reversed([*mark.finditer(found)]))
    return next((place for place in places if place >= len(found) / 2), len(found))


def _is_open(found: str) -> bool:
    """Whether its last word goes on, with no mark after it."""
    return unicodedata.category(found.rstrip()[-1:] or ".")[0] in "LMN"
