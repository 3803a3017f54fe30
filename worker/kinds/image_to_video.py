"""A clip from a picture: the Wan models that begin with a frame, or go from one frame to another.

The clip has the picture's shape, so there is a resolution and no size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pydantic import AliasChoices, Field

from worker.kinds import checks, text_to_video
from worker.kinds.checks import VideoInput
from worker.kinds.fields import Picture, Text
from worker.kinds.kind import Kind

NAME = "image-to-video"


class ImageToVideo(VideoInput):
    """Pictures: JPEG, PNG without transparency, BMP or WEBP, sides of 240 to 8000 pixels, at most 10 or 20 MB.

    Their limits are the provider's ('Wan image-to-video API reference'). A file's or a data URI's header is held
    against those of the model; what a link leads to the provider sees when the task runs. The bytes go to the provider
    as they came: nothing is turned by its EXIF orientation, converted from CMYK or flattened. GIF and HEIC are no
    pictures that it takes, whatever their names say: they are refused as files.
    """

    prompt: Text | None = Field(None, description="what happens", examples=["the cat looks up and yawns"])
    img_url: Picture = Field(
        validation_alias=AliasChoices("img_url", "image_url", "first_frame_url"),
        description="the picture that the clip begins with: a link, a file's key, or data:image/…",
        examples=["https://example.com/cat.png"],
    )
    template: Text | None = Field(None, description="an effect's name; the prompt is then ignored", examples=["flying"])
    last_frame_url: Picture | None = Field(None, description="the picture that the clip ends with")
    audio: bool | None = Field(None, description="false: without sound, at half the price")


KIND: Kind = replace(
    text_to_video.KIND,
    name=NAME,
    input=ImageToVideo,
    check=partial(checks.check, NAME, ImageToVideo),
)
