"""Speech of any length from words: cut below the provider's limit, spoken in pieces, joined to one narration."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import BaseModel

from worker.catalog import Model, Usage
from worker.kinds import answers, checks
from worker.kinds.kind import Kind, Request
from worker.kinds.speech import narration, speech_segment
from worker.kinds.speech.form import Speech

NAME = "speech"


def request(_model: Model, _region: str, _wanted: BaseModel) -> Request:
    """There is none: its segments are what is asked for."""
    raise AssertionError("a narration makes no call of its own")


def estimate(_: Model, wanted: BaseModel) -> Usage:
    """Every character, as the provider counts them."""
    return speech_segment.spoken(_read(wanted).spoken)


def words(wanted: BaseModel) -> str:
    """ "12,300 characters, Cherry", "840 characters, 2 voices"."""
    said = _read(wanted)
    voices = {part.voice for part in said.voiced}
    return f"{len(said.spoken):,} characters, {voices.pop() if len(voices) == 1 else f'{len(voices)} voices'}"


def echoes(_: Any) -> dict[str, Any]:
    """Nothing: it is not looked for."""
    return {}


def _read(wanted: BaseModel) -> Speech:
    assert isinstance(wanted, Speech)
    return wanted


KIND = Kind(
    name=NAME,
    input=Speech,
    check=partial(checks.check, NAME, Speech),
    request=request,
    outputs=speech_segment.outputs,
    failures=answers.failures,
    usage=speech_segment.usage,
    estimate=estimate,
    words=words,
    echoes=echoes,
    echoed=echoes,
    fan_out=narration.FAN_OUT,
)
