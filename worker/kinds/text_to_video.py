"""A clip from words: the Wan text-to-video models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, Field

from worker.catalog import Model, Usage
from worker.kinds import answers, checks, wire
from worker.kinds.checks import VideoInput
from worker.kinds.fields import Size, Text
from worker.kinds.kind import Kind, Source

NAME = "text-to-video"


class TextToVideo(VideoInput):
    """Models up to 2.6 take `size`, those of 2.7 take `resolution` and `ratio`; GET /v1/models says which values."""

    prompt: Text = Field(description="what happens in the clip", examples=["a kitten runs in the moonlight"])
    size: Size | None = Field(None, description="width*height; its tier is what is paid for", examples=["1280*720"])
    ratio: Text | None = Field(None, description="width to height", examples=["16:9"])


def outputs(output: Mapping[str, Any]) -> tuple[Source, ...]:
    """The clip."""
    return answers.sources(output, "video", "mp4")


def estimate(_: Model, wanted: BaseModel) -> Usage:
    """Each second asked for, at its tier."""
    return Usage(answers.video_asked(wanted))


def words(wanted: BaseModel) -> str:
    """ "1280*720 5 s", "720P 16:9 5 s"."""
    asked = wanted.model_dump(exclude_none=True)
    shape = [asked[name] for name in ("size", "resolution", "ratio") if name in asked]
    return " ".join([*shape, f"{asked.get('duration', '?')} s"])


def echoes(wanted: BaseModel) -> dict[str, Any]:
    """The prompt as it was sent, and the shape of the clip."""
    asked, billed = wanted.model_dump(exclude_none=True), answers.video_asked(wanted)
    told = {"orig_prompt": asked.get("prompt"), "duration": billed.get("seconds"), "tier": billed.get("tier")}
    return {name: value for name, value in {**told, "size": asked.get("size")}.items() if value is not None}


KIND = Kind(
    name=NAME,
    input=TextToVideo,
    check=partial(checks.check, NAME, TextToVideo),
    request=wire.request,
    outputs=outputs,
    failures=answers.failures,
    usage=answers.video_usage,
    estimate=estimate,
    words=words,
    echoes=echoes,
    echoed=answers.video_echoed,
)
