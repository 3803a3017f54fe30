"""Subtitles of a narration, as SRT and WebVTT: each segment's words over its true length, in cues that can be read."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pysubs2 import SSAEvent, SSAFile

from worker.kinds.speech import cutting

CONTENT_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt"}

_COLUMNS = 84  # two lines of a screen
_UNREAD = "\u2060"  # a word joiner: no width, and no sense


@dataclass(frozen=True)
class Line:
    """What is said from one second to another."""

    text: str
    start: float
    end: float


def written(lines: Iterable[Line], form: str) -> str:
    """The subtitles, "srt" or "vtt"."""
    file = SSAFile()
    for cue in (cue for line in lines for cue in cues(line)):
        start, end = round(cue.start * 1000), round(cue.end * 1000)
        file.append(SSAEvent(start=start, end=end, text=_plain(cue.text, form)))
    return file.to_string(form, keep_ssa_tags=True)


def cues(line: Line) -> Iterator[Line]:
    """The line in pieces that fit a screen, cut at sentence ends where that is possible; time is shared by length."""
    pieces = [" ".join(piece.split()) for piece in cutting.cut(line.text, _COLUMNS, cutting.in_columns)]
    said = [piece for piece in pieces if cutting.is_spoken(piece)]
    total, passed = sum(map(cutting.in_columns, said)), 0
    for piece in said:
        start, passed = passed, passed + cutting.in_columns(piece)
        yield Line(piece, _between(line, start / total), _between(line, passed / total))


def _between(line: Line, share: float) -> float:
    return line.start + (line.end - line.start) * share


def _plain(text: str, form: str) -> str:
    """Text as text: no tags or line breaks of another format's, and no arrow as stands between two times."""
    shown = text.replace("\\", "\\" + _UNREAD)
    return html.escape(shown, quote=False) if form == "vtt" else shown.replace("-->", "--" + _UNREAD + ">")
