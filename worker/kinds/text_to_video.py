"""A clip from words: the Wan text-to-video models."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel, Field

from worker.kinds import fields, visual
from worker.kinds.fields import Filled, Size, Text
from worker.kinds.kind import CallKind
from worker.kinds.visual import VideoInput

NAME = "text-to-video"


class TextToVideo(VideoInput):
    """Models up to 2.6 take `size`, those of 2.7 take `resolution` and `ratio`; GET /v1/models says which values."""

    prompt: Filled = Field(description="what happens in the clip", examples=["a kitten runs in the moonlight"])
    size: Size | None = Field(None, description="width*height; its tier is what is paid for", examples=["1280*720"])
    ratio: Text | None = Field(None, description="width to height", examples=["16:9"])
    audio: bool | None = Field(None, description="false: without sound")


def words(wanted: BaseModel) -> str:
    """ "1280*720 5 s", "720P 16:9 5 s", "720P of open length"."""
    asked = wanted.model_dump(exclude_none=True)
    shape = [asked[name] for name in ("size", "resolution", "ratio") if name in asked]
    seconds = asked.get("duration", 0)
    return " ".join([*shape, f"{seconds} s" if seconds > 0 else "of open length"])


KIND = CallKind(
    name=NAME,
    input=TextToVideo,
    check=partial(fields.check, NAME, TextToVideo),
    request=visual.request,
    outputs=partial(visual.sources, role="video", extension="mp4"),
    failures=visual.failures,
    usage=visual.video_usage,
    estimate=visual.video_asked,
    words=words,
    echoes=visual.video_echoes,
    echoed=visual.video_echoed,
)
