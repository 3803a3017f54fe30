"""What stands where in a narration: the segments as they were spoken, and the file that tells of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from worker.catalog.prices import MICRO
from worker.kinds.kind import Ended
from worker.kinds.speech.script import Segment
from worker.kinds.speech.wav_files import Sound


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


def written(model: str, takes: Sequence[Take]) -> str:
    """The manifest as JSON: the whole's format and length, and each segment with its text, times, object and cost."""
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
