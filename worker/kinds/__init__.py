"""What a job can make. A kind is pure: a user's input in, a provider's request out; a task in, sources and usage out.

Each kind is one file here and one row in `KINDS`. It does no I/O and reads no clock, so its test is a table. What kinds
share stands beside them: `checks` (whether an input fits its model), `wire` (how a request is spelled), `answers` (what
a finished task says).
"""

from __future__ import annotations

from worker.catalog import Usage
from worker.kinds import image_to_video, speech, summary, text, text_batch, text_to_image, text_to_video
from worker.kinds.kind import Kind, Request, Source
from worker.kinds.speech import speech_segment

__all__ = ["KINDS", "OFFERED", "Kind", "Request", "Source", "Usage"]

_ALL = (
    text_to_video.KIND,
    image_to_video.KIND,
    text_to_image.KIND,
    speech.KIND,
    speech_segment.KIND,
    summary.KIND,
    text.KIND,
    text_batch.KIND,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}

# What users may ask for; the others are made only as children.
OFFERED: dict[str, Kind] = {name: kind for name, kind in KINDS.items() if not kind.internal}
