"""A clip changed by words, and by pictures that show what it shall have in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from worker.kinds import fields, text_to_video
from worker.kinds.fields import Clip, Filled, Pictures, Rule, Text, Tier
from worker.kinds.kind import CallKind
from worker.kinds.visual import MediaInput, pictures_fit

NAME = "video-edit"
_MOST = 9  # pictures; the most that any model takes


class VideoEdit(MediaInput):
    """The seconds of the clip and those of the result are both paid for: MP4 or MOV of up to 100 MB.

    The result is as long as the clip, or its first `duration` seconds.
    """

    rules: ClassVar[Mapping[str, Rule]] = {**MediaInput.rules, "pictures": pictures_fit}

    prompt: Filled | None = Field(None, description="what to change", examples=["turn it into clay animation"])
    video_url: Clip = Field(
        description="the clip: a link, or a file's key", examples=["https://example.com/street.mp4"]
    )
    pictures: Annotated[Pictures, Field(max_length=_MOST)] | None = Field(
        None, description="what shall be in it: links, files' keys, or data:image/…"
    )
    resolution: Tier | None = Field(None, description="the tier, which is what is paid for", examples=["720P"])
    ratio: Text | None = Field(None, description="width to height; as the clip's where it is left out")
    duration: int | None = Field(None, description="seconds of the clip that are kept; 0: all of them")
    audio_setting: Literal["auto", "origin"] | None = Field(None, description="origin: keep the clip's own sound")


KIND: CallKind = replace(text_to_video.KIND, name=NAME, input=VideoEdit, check=partial(fields.check, NAME, VideoEdit))
