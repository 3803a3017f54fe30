"""What is where in a narration: its segments as they were spoken, the subtitles and the manifest made of them.

Subtitles (SRT, WebVTT) show each segment's words over its true length, in cues that fit a screen.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pysubs2 import SSAEvent, SSAFile

from worker.catalog import MICRO
from worker.kinds.kind import Ended
from worker.kinds.speech import script
from worker.kinds.speech.audio import Sound
from worker.kinds.speech.script import Segment

CONTENT_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt"}

_COLUMNS = 84  # two lines of a screen
_UNREAD = "\u2060"  # a word joiner, which is not seen


@dataclass(frozen=True)
class Take:
    """A segment as it was spoken: where it begins in the whole, and the silence after it, in samples."""

    segment: Segment
    child: Ended
    sound: Sound
    start: int
    silence: int

    @property
    def end(self) -> int:
        """Where its sound ends."""
        return self.start + self.sound.frames


@dataclass(frozen=True)
class Line:
    """Words that are spoken from one second to another."""

    text: str
    start: float
    end: float


def subtitles(lines: Iterable[Line], form: str) -> str:
    """The subtitles in a format, "srt" or "vtt"."""
    file = SSAFile()
    for cue in (cue for line in lines for cue in cues(line)):
        start, end = round(cue.start * 1000), round(cue.end * 1000)
        file.append(SSAEvent(start=start, end=end, text=_plain(cue.text, form)))
    return file.to_string(form, keep_ssa_tags=True)


def cues(line: Line) -> Iterator[Line]:
    """The line in pieces that fit a screen, cut at sentence ends if possible; each has time by its length."""
    pieces = [" ".join(piece.split()) for piece in script.cut(line.text, _COLUMNS, script.in_columns)]
    spoken = [piece for piece in pieces if script.is_spoken(piece)]
    total, passed = sum(map(script.in_columns, spoken)), 0
    for piece in spoken:
        start, passed = passed, passed + script.in_columns(piece)
        yield Line(piece, _between(line, start / total), _between(line, passed / total))


def manifest(model: str, takes: Sequence[Take]) -> str:
    """The manifest as JSON: the format and length of the whole; of each segment its text, times, object and cost."""
    form, length = takes[0].sound.format, takes[-1].end
    whole = {
        "model": model,
        "sample_rate": form.rate,
        "channels": form.channels,
        "samples": length,
        "seconds": form.seconds(length),
        "currency": "CNY",
        "segments": [_entry(take) for take in takes],
    }
    return json.dumps(whole, ensure_ascii=False, indent=1)


def _between(line: Line, share: float) -> float:
    return line.start + (line.end - line.start) * share


def _plain(text: str, form: str) -> str:
    """The text escaped: no tags or line breaks of the format, and no arrow, which stands between two times."""
    shown = text.replace("\\", "\\" + _UNREAD)
    return html.escape(shown, quote=False) if form == "vtt" else shown.replace("-->", "--" + _UNREAD + ">")


def _entry(take: Take) -> dict[str, Any]:
    form, segment, cost = take.sound.format, take.segment, take.child.cost
    return {
        "job": str(take.child.id),
        "key": take.child.outputs[0].key,
        "paragraph": segment.paragraph,
        "voice": segment.voice,
        "language": segment.language,
        "start": form.seconds(take.start),
        "end": form.seconds(take.end),
        "cost": None if cost is None else f"{Decimal(cost) / MICRO:f}",
        "text": segment.text,
    }
