"""A clip from a picture: the Wan models that begin with a frame, or go from one frame to another.

The clip has the picture's shape, so there is a resolution and no size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar

from pydantic import AliasChoices, Field

from worker.kinds import fields, text_to_video, visual
from worker.kinds.fields import Filled, Picture, Rule, Text
from worker.kinds.kind import CallKind
from worker.kinds.visual import VideoInput

NAME = "image-to-video"


class ImageToVideo(VideoInput):
    """Pictures: JPEG, PNG without transparency, BMP or WEBP, sides of 240 to 8000 pixels, at most 10 or 20 MB.

    Their limits are the provider's ('Wan image-to-video API reference'). The header of a file or of a data URI is
    checked against the model's; what is behind a link the provider sees when the task runs. The bytes go to the
    provider unchanged: nothing is turned by its EXIF orientation, converted from CMYK or flattened. GIF and HEIC are
    refused as files, whatever their names say.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **VideoInput.rules,
        "img_url": visual.picture_fits,
        "last_frame_url": visual.picture_fits,
        "audio": visual.sound_fits,
    }

    prompt: Filled | None = Field(None, description="what happens", examples=["the cat looks up and yawns"])
    img_url: Picture = Field(
        validation_alias=AliasChoices("img_url", "image_url", "first_frame_url"),
        description="the picture that the clip begins with: a link, a file's key, or data:image/…",
        examples=["https://example.com/cat.png"],
    )
    template: Text | None = Field(None, description="an effect's name; the prompt is then ignored", examples=["flying"])
    last_frame_url: Picture | None = Field(None, description="the picture that the clip ends with")
    audio: bool | None = Field(None, description="false: without sound, at half the price")


KIND: CallKind = replace(
    text_to_video.KIND,
    name=NAME,
    input=ImageToVideo,
    check=partial(fields.check, NAME, ImageToVideo),
)
