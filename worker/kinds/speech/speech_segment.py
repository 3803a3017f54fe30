"""A segment of a narration: one call, which speaks a text within the model's limit and answers with a link to a WAV.

Alibaba docs, 'Qwen-TTS API reference'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from worker.catalog import Model, Usage
from worker.kinds import answers, fields
from worker.kinds.fields import Text
from worker.kinds.kind import CallKind, Request, Source

NAME = "speech-segment"

# Unicode's script Han: the unified and compatibility ideographs, radicals, and 々, 〇 and the like.
_HAN = re.compile(
    r"[\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_BILLED = ("characters", "input_tokens", "output_tokens", "total_tokens")


class SpeechSegment(BaseModel):
    """Complete: the narration cut it to the model's limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text = Field(description="what is said")
    voice: Text = Field(description="who speaks, as the provider spells it")
    language: Text = Field(description="which language, or Auto")
    instructions: Text | None = Field(None, description="how to speak")
    optimize_instructions: bool | None = Field(None, description="let the provider put the instructions better")


def request(model: Model, region: str, wanted: SpeechSegment) -> Request:
    """The call; its own answer has the link."""
    here, asked = model.region(region), wanted.model_dump(exclude_none=True)
    assert here is not None, "a job goes only to a region that serves its model"
    asked["language_type"] = asked.pop("language")
    return Request(model.path, {}, {"model": here.id, "input": asked, "parameters": dict(model.always)}, model.surface)


def outputs(output: Mapping[str, Any]) -> tuple[Source, ...]:
    """The link to the WAV."""
    link = answers.mapping(output.get("audio")).get("url")
    return (Source(link, "audio", "wav"),) if answers.is_link(link) else ()


def usage(_: Model, wanted: SpeechSegment, answer: Mapping[str, Any]) -> Usage:
    """Characters as the provider counted them, else as they were sent; tokens, of the models that bill those."""
    told = answers.mapping(answer.get("usage"))
    counted = answers.known({name: answers.number(told.get(name)) for name in _BILLED})
    return Usage({"characters": billed(wanted.text), **counted})


def estimate(_: Model, wanted: SpeechSegment) -> Usage:
    """The characters; tokens as for slow speech."""
    return spoken(wanted.text)


def spoken(text: str) -> Usage:
    """What a text is billed: a Han character lasts a quarter of a second, which is 13 tokens of sound."""
    return Usage({"characters": billed(text), "input_tokens": len(text), "output_tokens": 13 * len(text)})


def billed(text: str) -> int:
    """The characters that the provider bills: 2 for a Han character (Chinese, kanji, hanja), 1 for any other.

    Alibaba docs, 'Speech synthesis - Qwen' (2026-01-06): simplified and traditional Chinese, kanji and hanja are 2,
    all else (letters, punctuation, blanks) is 1. The sample answer of 'Qwen-TTS API reference' agrees: 92 Han
    characters and 11 others are `usage.characters` 195. Nothing is documented of 々, 〇 and radicals: they count 2, so
    that in doubt too much is reserved.
    """
    return len(text) + len(_HAN.findall(text))


def words(wanted: SpeechSegment) -> str:
    """ "187 characters, Cherry"."""
    return f"{len(wanted.text):,} characters, {wanted.voice}"


KIND = CallKind(
    name=NAME,
    input=SpeechSegment,
    check=partial(fields.check, NAME, SpeechSegment),
    request=request,
    outputs=outputs,
    usage=usage,
    estimate=estimate,
    words=words,
    internal=True,
)
