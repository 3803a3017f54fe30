"""What users send to have something spoken, and whether the model can: found out before anything is paid for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from worker.catalog import Model
from worker.kinds import cutting, mp3, script
from worker.kinds.fields import Text, no
from worker.kinds.script import Paragraph

LONGEST = 200_000  # characters
MOST = 5_000  # paragraphs, each at least one call
SILENCE_LIMIT = 6 * 3600  # seconds; a WAV ends at 24 hours, and the longest text takes half of them
INSTRUCTIONS_LIMIT = 4_800  # characters, since the provider takes 1,600 tokens ('Qwen-TTS API reference')


def _split(value: Any) -> Any:
    """`wav, mp3` as the cell of a table has it."""
    return re.split(r"[\s,;]+", value.strip().lower()) if isinstance(value, str) else value


def _once(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value))


Seconds = Annotated[float, Field(ge=0, le=script.LONGEST_PAUSE, allow_inf_nan=False)]
Formats = Annotated[tuple[Literal["wav", "mp3"], ...], BeforeValidator(_split), AfterValidator(_once)]
Subtitles = Annotated[tuple[Literal["srt", "vtt"], ...], BeforeValidator(_split), AfterValidator(_once)]


class Voiced(BaseModel):
    """How something is to be spoken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    voice: Text | None = Field(None, description="who speaks; GET /v1/models names the voices", examples=["Cherry"])
    language: Text | None = Field(None, description="Auto finds out by itself", examples=["Auto", "Chinese"])
    instructions: Text | None = Field(
        None, max_length=INSTRUCTIONS_LIMIT, description="how to speak, for models that take it", examples=["slowly"]
    )

    @field_validator("voice", "language", mode="after")
    @classmethod
    def _is_offered(cls, value: str | None, info: ValidationInfo) -> str | None:
        """As the model spells it: the provider tells Cherry from cherry."""
        if value is None or not info.context or not info.field_name:
            return value
        return _spelled(info.context["model"], info.field_name, value)

    @field_validator("instructions", mode="after")
    @classmethod
    def _is_taken(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.context and "instructions" not in info.context["model"].fields:
            raise no("not_taken", f"{info.context['model'].id} takes none; the models with `instruct` in their name do")
        return value


class Part(Voiced):
    """A paragraph of a script; what it does not say of its voice, the script says."""

    text: Text = Field(description="what is said", examples=["Who is there?"])
    pause_after: Seconds | None = Field(None, description="seconds of silence after it")


class Speech(Voiced):
    """A text of any length, or a script of paragraphs in several voices; one of the two."""

    paragraphs: tuple[Part, ...] | None = Field(None, description="a script, as in a dialogue")
    text: Text | None = Field(
        None,
        validate_default=True,
        description="what is said, up to 200,000 characters; blank lines divide paragraphs",
        examples=["Once upon a time there was a water wheel."],
    )
    pause: Seconds = Field(0.25, description="seconds of silence between the segments of a paragraph")
    paragraph_pause: Seconds = Field(0.7, validate_default=True, description="seconds of silence between paragraphs")
    formats: Formats = Field(("wav",), min_length=1, description="wav, mp3 or both")
    subtitles: Subtitles = Field(("srt", "vtt"), description="srt, vtt, both or none")

    @property
    def voiced(self) -> list[Paragraph]:
        """Its paragraphs, each with a voice."""
        parts = self.paragraphs or tuple(Part(text=text) for text in script.paragraphs(self.text or ""))
        return [self._paragraph(part) for part in parts]

    @property
    def characters(self) -> int:
        """How many there are to be spoken, blanks among them."""
        return len(self.text or "") + sum(len(part.text) for part in self.paragraphs or ())

    def _paragraph(self, part: Part) -> Paragraph:
        pause = self.paragraph_pause if part.pause_after is None else part.pause_after
        voice, language = part.voice or self.voice, part.language or self.language
        assert voice is not None, "the model's default stands in for a voice that nobody named"
        return Paragraph(part.text, voice, language or "Auto", part.instructions or self.instructions, pause)

    @field_validator("paragraphs")
    @classmethod
    def _is_a_script(cls, value: tuple[Part, ...] | None, info: ValidationInfo) -> tuple[Part, ...] | None:
        if value is not None and info.context:
            _hold_text([part.text for part in value])
        return value

    @field_validator("text")
    @classmethod
    def _is_one_of_two(cls, value: str | None, info: ValidationInfo) -> str | None:
        if not info.context or "paragraphs" not in info.data:
            return value
        scripted = info.data["paragraphs"] is not None
        _hold(scripted or value is not None, "required", "is required: what is said; or paragraphs, in several voices")
        _hold(not scripted or value is None, "contradiction", "is given beside paragraphs: leave one of them out")
        if value is not None:
            _hold_text([value])
            _hold_count(script.paragraphs(value))
        return value

    @field_validator("paragraph_pause")
    @classmethod
    def _ends_some_day(cls, value: float, info: ValidationInfo) -> float:
        if info.context:
            parts = info.data.get("paragraphs") or tuple(script.paragraphs(info.data.get("text") or ""))
            pauses = (getattr(part, "pause_after", None) for part in parts)
            total = sum(value if pause is None else pause for pause in pauses)
            _hold(total <= SILENCE_LIMIT, "too_long", f"makes {total:,.0f} s of silence; at most {SILENCE_LIMIT:,}")
        return value

    @field_validator("formats")
    @classmethod
    def _can_be_made(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.context and "mp3" in value:
            _hold(mp3.is_installed(), "not_installed", "this server makes no MP3: it needs the extra `media` (PyAV)")
        return value


def _spelled(model: Model, name: str, value: str) -> str:
    offered: tuple[str, ...] = tuple(model.voices if name == "voice" else model.languages)
    spelled = {choice.casefold(): choice for choice in offered}
    known = spelled.get(value.strip().casefold())
    if known is None:
        near = difflib.get_close_matches(value.strip().casefold()[:40], spelled, n=3)
        advice = " or ".join(spelled[match] for match in near)
        listed = f"did you mean {advice}?" if near else f"it takes {', '.join(offered)}"
        raise no("not_allowed", f"{value[:40]} is not one that {model.id} takes; {listed}")
    return known


def _hold_text(texts: Sequence[str]) -> None:
    length = sum(map(len, texts))
    _hold(length <= LONGEST, "too_long", f"{length:,} characters; at most {LONGEST:,} are taken")
    _hold(any(map(cutting.is_spoken, texts)), "blank", "no letter and no digit in it, so nothing to be spoken")
    _hold_count(texts)


def _hold_count(parts: Sequence[str]) -> None:
    _hold(len(parts) <= MOST, "too_many", f"{len(parts):,} paragraphs; at most {MOST:,} are taken")


def _hold(holds: bool, code: Any, message: str) -> None:
    if not holds:
        raise no(code, message)
