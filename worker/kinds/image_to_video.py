"""A clip from a picture: the Wan models that begin with a frame, or go from one frame to another.

The clip has the picture's shape, so there is a resolution and no size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from pydantic import AliasChoices, Field

from worker.catalog import Model
from worker.kinds import fields, text_to_video
from worker.kinds.fields import Clip, Filled, Picture, Rule, Text, no
from worker.kinds.kind import CallKind
from worker.kinds.visual import VideoInput, picture_fits, sound_fits

NAME = "image-to-video"


def _clip_fits(_model: Model, value: str | None, given: Mapping[str, Any]) -> None:
    if value and given.get("audio_url"):
        raise no("contradiction", "has its own sound: leave audio_url out")


def _first_fits(model: Model, value: str | None, given: Mapping[str, Any]) -> None:
    if value and given.get("clip_url"):
        raise no("contradiction", "begins the clip, and so does clip_url: leave one of them out")
    picture_fits(model, value, given)


class ImageToVideo(VideoInput):
    """Pictures: JPEG, PNG without transparency, BMP or WEBP, sides of 240 to 8000 pixels, at most 10 or 20 MB.

    Their limits are the provider's ('Wan image-to-video API reference'). The header of a file or of a data URI is
    checked against the model's; what is behind a link the provider sees when the task runs. The bytes go to the
    provider unchanged: nothing is turned by its EXIF orientation, converted from CMYK or flattened. GIF and HEIC are
    refused as files, whatever their names say.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **VideoInput.rules,
        "clip_url": _clip_fits,
        "img_url": _first_fits,
        "last_frame_url": picture_fits,
        "audio": sound_fits,
    }

    prompt: Filled | None = Field(None, description="what happens", examples=["the cat looks up and yawns"])
    clip_url: Clip | None = Field(
        None, description="the clip that it goes on from, of whose length `duration` is the sum"
    )
    img_url: Picture | None = Field(
        None,
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
