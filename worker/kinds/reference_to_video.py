"""A clip with people and things in it that pictures, clips and sound show: the models that take references.

A prompt speaks of them by their number, as the model's page says: "Image 1", "Video 1", each counted apart in the order
given, or "character1" for the first of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field

from worker.kinds import fields, text_to_video
from worker.kinds.fields import Filled, Picture, Rule, Size, Text
from worker.kinds.kind import CallKind
from worker.kinds.visual import Reference, VideoInput, picture_fits, references_fit, sound_fits

NAME = "reference-to-video"
_MOST = 20  # references; the most that any model takes


class ReferenceToVideo(VideoInput):
    """Pictures are as those of image-to-video; clips are MP4 or MOV of up to 100 MB, voices WAV or MP3 of up to 15 MB.

    GET /v1/models says how many of each a model takes, and for how many of their seconds it bills (`input_seconds`).
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **VideoInput.rules,
        "references": references_fit,
        "first_frame_url": picture_fits,
        "audio": sound_fits,
    }

    prompt: Filled = Field(description="what happens, and who of the references does it", examples=["Image 1 dances"])
    references: Annotated[list[Reference], Field(min_length=1, max_length=_MOST)] = Field(
        description="who and what is to be seen, in the order in which the prompt counts them",
        examples=[[{"picture": "https://example.com/girl.png"}]],
    )
    first_frame_url: Picture | None = Field(None, description="the picture that the clip begins with")
    size: Size | None = Field(None, description="width*height; its tier is what is paid for", examples=["1280*720"])
    ratio: Text | None = Field(None, description="width to height", examples=["16:9"])
    audio: bool | None = Field(None, description="false: without sound, at half the price")


KIND: CallKind = replace(
    text_to_video.KIND,
    name=NAME,
    input=ReferenceToVideo,
    check=partial(fields.check, NAME, ReferenceToVideo),
)
