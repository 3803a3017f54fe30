"""What users send to have something spoken, and whether the model can: found out before anything is paid for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from worker.catalog import Model
from worker.kinds.fields import Text, no
from worker.kinds.speech import cutting, markup, mp3, script
from worker.kinds.speech.script import Paragraph

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
Markup = Literal["pauses", "markdown", "none"]
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

    markup: Markup | None = Field(
        None,
        validate_default=True,
        description='pauses: <break time="1s"/> and [pause 1s] are silence, other tags are refused; markdown: so too, '
        "and Markdown is taken off, blocks of code with it; none: all is spoken as it stands; default: pauses",
    )
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
        """Its paragraphs, each with a voice; a pause within one ends it."""
        parts = self.paragraphs or tuple(Part(text=text) for text in script.paragraphs(self.text or ""))
        return [self._paragraph(part, text, pause) for part in parts for text, pause in _pieces(part.text, self.markup)]

    @property
    def spoken(self) -> str:
        """All that is to be spoken, blanks among it, without the marks of pauses."""
        texts = [self.text or "", *(part.text for part in self.paragraphs or ())]
        return "".join(piece for text in texts for piece, _ in _pieces(text, self.markup))

    def _paragraph(self, part: Part, text: str, pause: float | None) -> Paragraph:
        after = self.paragraph_pause if part.pause_after is None else part.pause_after
        voice, language = part.voice or self.voice, part.language or self.language
        assert voice is not None, "the model's default stands in for a voice that nobody named"
        instructions = part.instructions or self.instructions
        return Paragraph(text, voice, language or "Auto", instructions, after if pause is None else pause)

    @field_validator("markup")
    @classmethod
    def _is_said(cls, value: Markup | None, info: ValidationInfo) -> Markup | None:
        """What was taken before there was any choice is spoken as it stands."""
        return "pauses" if value is None and info.context else value

    @field_validator("paragraphs")
    @classmethod
    def _is_a_script(cls, value: tuple[Part, ...] | None, info: ValidationInfo) -> tuple[Part, ...] | None:
        if value is None or not info.context:
            return value
        said = info.data.get("markup")
        _hold_length([part.text for part in value])
        if said == "markdown":
            raise no("contradiction", "is given with markup: markdown, which is of a text: leave one of them out")
        _hold_text([part.text for part in value], said)
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
            _hold_length([value])
            value = _unmarked(value, info.data.get("markup"))
            _hold_text(script.paragraphs(value), info.data.get("markup"))
        return value

    @field_validator("paragraph_pause")
    @classmethod
    def _ends_some_day(cls, value: float, info: ValidationInfo) -> float:
        if info.context:
            parts = info.data.get("paragraphs") or [
                Part(text=t) for t in script.paragraphs(info.data.get("text") or "")
            ]
            pieces = ((part, pause) for part in parts for _, pause in _pieces(part.text, info.data.get("markup")))
            pauses = (part.pause_after if pause is None else pause for part, pause in pieces)
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


def _pieces(text: str, said: Markup | None) -> list[tuple[str, float | None]]:
    return [(text, None)] if said in (None, "none") else markup.pieces(text)


def _unmarked(text: str, said: Markup | None) -> str:
    try:
        return markup.plain(text) if said == "markdown" else text
    except markup.Unmarkable as error:
        raise no("bad_markdown", f"its Markdown {error}") from None


def _hold_length(texts: Sequence[str]) -> None:
    length = sum(map(len, texts))
    _hold(length <= LONGEST, "too_long", f"{length:,} characters; at most {LONGEST:,} are taken")


def _hold_text(texts: Sequence[str], said: Markup | None) -> None:
    pieces = [piece for text in texts for piece in _pieces(text, said)]
    _hold(any(cutting.is_spoken(text) for text, _ in pieces), "blank", "no letter and no digit, so nothing is spoken")
    _hold(len(pieces) <= MOST, "too_many", f"{len(pieces):,} paragraphs and pauses; at most {MOST:,} are taken")
    longest = max(pause or 0 for _, pause in pieces)
    most = script.LONGEST_PAUSE
    _hold(longest <= most, "too_long", f"a pause of {longest:g} s; at most {most:g} s are made")
    if said in ("pauses", "markdown"):
        for place, text in enumerate(texts, 1):
            tag = markup.strange(text)
            _hold(
                tag is None, "tag_not_taken", f"paragraph {place} has the tag <{tag}>, which would be read out: {_TAGS}"
            )


_TAGS = 'only <speak>, <p>, <s> and <break time="1s"/> are followed; take it out, or say markup: none to have it spoken'


def _hold(holds: bool, code: Any, message: str) -> None:
    if not holds:
        raise no(code, message)
