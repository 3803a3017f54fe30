"""A script as the provider is asked to speak it: paragraphs cut into segments, each one call, with silence between.

What holds no letter and no digit cannot be spoken and is not sent: a line of stars is a longer pause. All else is sent
once and in order, without the blanks around a segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from worker.kinds.speech import cutting
from worker.kinds.speech.cutting import Measure

LONGEST_PAUSE = 10.0  # seconds

_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Paragraph:
    """A part of the script in one voice, and the seconds of silence after it."""

    text: str
    voice: str
    language: str
    instructions: str | None
    pause: float


@dataclass(frozen=True)
class Segment:
    """What one call speaks: of which paragraph (from 1), in whose voice, and the seconds of silence after it."""

    paragraph: int
    text: str
    voice: str
    language: str
    instructions: str | None
    pause: float


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, which blank lines divide."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return [part for part in _BLANK_LINES.split(lines) if part.strip()]


def segments(script: Iterable[Paragraph], pause: float, limit: int, measure: Measure) -> list[Segment]:
    """The script in segments of at most `limit`; `pause` is between those of a paragraph. None is after the last."""
    found: list[Segment] = []
    for number, part in enumerate(script, 1):
        pieces = [piece.strip() for piece in cutting.cut(part.text, limit, measure) if piece.strip()]
        for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
            rest = pause if left else part.pause
            if cutting.is_spoken(piece):
                found.append(Segment(number, piece, part.voice, part.language, part.instructions, rest))
            elif found:
                found[-1] = replace(found[-1], pause=min(found[-1].pause + rest, LONGEST_PAUSE))
    return [*found[:-1], *(replace(last, pause=0.0) for last in found[-1:])]
