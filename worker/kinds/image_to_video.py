"""A clip from a picture: the Wan models that begin with a frame, or go from one frame to another.

The clip has the picture's shape, so there is a resolution and no size.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from pydantic import AliasChoices, Field

from worker import media
from worker.catalog import Model
from worker.kinds import fields, text_to_video
from worker.kinds.fields import Filled, Picture, Rule, Text, no
from worker.kinds.kind import CallKind
from worker.kinds.visual import VideoInput

NAME = "image-to-video"


def _picture_fits(model: Model, value: str | None, _given: Mapping[str, Any]) -> None:
    # Files in our bucket are checked by `worker/inputs`; what is behind a link only the provider sees.
    if value is None or model.pictures is None or not value.startswith("data:"):
        return
    encoded = value.partition(",")[2]
    head = b64decode(encoded[: media.HEADER * 4 // 3 // 4 * 4] + "==")
    if why := model.pictures.unfit(len(encoded) * 3 // 4 - encoded.count("="), media.shape(head)):
        raise no("picture_unfit", f"{why}, for {model.id}")


def _sound_fits(_model: Model, value: bool | None, given: Mapping[str, Any]) -> None:
    if value is False and given.get("audio_url"):
        raise no("contradiction", "is false, so the audio_url would be ignored: leave one of them out")


class ImageToVideo(VideoInput):
    """Pictures: JPEG, PNG without transparency, BMP or WEBP, sides of 240 to 8000 pixels, at most 10 or 20 MB.

    Their limits are the provider's ('Wan image-to-video API reference'). The header of a file or of a data URI is
    checked against the model's; what is behind a link the provider sees when the task runs. The bytes go to the
    provider unchanged: nothing is turned by its EXIF orientation, converted from CMYK or flattened. GIF and HEIC are
    refused as files, whatever their names say.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **VideoInput.rules,
        "img_url": _picture_fits,
        "last_frame_url": _picture_fits,
        "audio": _sound_fits,
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
