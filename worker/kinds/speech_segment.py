"""A segment of a narration: one call, which speaks at most 600 of text and answers with a link to a WAV.

Alibaba docs, 'Qwen-TTS API reference'.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from worker.catalog import Model, Usage
from worker.kinds import answers, checks
from worker.kinds.fields import Text
from worker.kinds.kind import Kind, Request, Source

NAME = "speech-segment"

_BILLED = ("characters", "input_tokens", "output_tokens", "total_tokens")


class SpeechSegment(BaseModel):
    """Complete: whoever cut it knows the model's limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text = Field(description="what is said")
    voice: Text = Field(description="who speaks, as the provider spells it")
    language: Text = Field(description="which language, or Auto")
    instructions: Text | None = Field(None, description="how to speak")


def request(model: Model, region: str, wanted: BaseModel) -> Request:
    """The call; what it makes is told in its own answer."""
    here, said = model.region(region), wanted.model_dump(exclude_none=True)
    assert here is not None, "a job goes only to a region that serves its model"
    said["language_type"] = said.pop("language")
    return Request(model.path, {}, {"model": here.id, "input": said, "parameters": dict(model.always)}, model.surface)


def outputs(output: Mapping[str, Any]) -> tuple[Source, ...]:
    """The link to the WAV."""
    audio = output.get("audio")
    link = audio.get("url") if isinstance(audio, Mapping) else None
    is_link = isinstance(link, str) and link.startswith(("http://", "https://"))
    return (Source(str(link), "audio", "wav"),) if is_link else ()


def usage(wanted: BaseModel, answer: Mapping[str, Any]) -> Usage:
    """Characters as the provider counted them, else as they were sent; tokens, of the models that bill those."""
    said = answer.get("usage")
    counted = {name: answers.number(said.get(name)) for name in _BILLED} if isinstance(said, Mapping) else {}
    told = {name: count for name, count in counted.items() if count is not None}
    return Usage({"characters": len(wanted.model_dump()["text"]), **told})


def estimate(_: Model, wanted: BaseModel) -> Usage:
    """The characters; tokens as for slow speech."""
    return spoken(len(wanted.model_dump()["text"]))


def spoken(characters: int) -> Usage:
    """What so much text takes: a Han character lasts a quarter of a second, which is 13 tokens of sound."""
    return Usage({"characters": characters, "input_tokens": characters, "output_tokens": 13 * characters})


def words(wanted: BaseModel) -> str:
    """ "187 characters, Cherry"."""
    said = wanted.model_dump()
    return f"{len(said['text']):,} characters, {said['voice']}"


def _nothing(_: Any) -> dict[str, Any]:
    """A call cannot be looked for, so nothing is compared."""
    return {}


KIND = Kind(
    name=NAME,
    input=SpeechSegment,
    check=partial(checks.check, NAME, SpeechSegment),
    request=request,
    outputs=outputs,
    failures=answers.failures,
    usage=usage,
    estimate=estimate,
    words=words,
    echoes=_nothing,
    echoed=_nothing,
    internal=True,
)
