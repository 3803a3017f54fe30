"""What users send to have something spoken, and whether the model can speak it: found out before anything is paid for.

Marks in the text are taken out: Markdown by a parser, and pauses, which become silence. Any other tag is refused, since
it would be read out, and billed, as "less than prosody".

    <break time="1s"/>   [pause 2s]   [pause]   （停顿）   （停顿2秒）   (pause 500ms)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, LiteralString

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from worker.catalog import Catalog, Model
from worker.kinds import reading
from worker.kinds.fields import Text, no
from worker.kinds.speech import audio, script
from worker.kinds.speech.script import Paragraph

LONGEST = 200_000  # characters
MOST = 5_000  # paragraphs, each at least one call
SILENCE_LIMIT = 6 * 3600  # seconds; a WAV ends at 24 hours, and the longest text takes half of them
VOICE_LIMIT = 200  # characters; names that the provider gives to an account's voices have about 50
INSTRUCTIONS_LIMIT = 4_800  # characters, since the provider takes 1,600 tokens ('Qwen-TTS API reference')

_PAUSE = 1.0  # seconds, where a mark names none

# Every repetition is bounded, so that a text of opening brackets takes no longer than one of words.
_BREAK = r"<break(?:\s[^<>]{0,100})?/?>"
_BRACKET = (
    r"[\[（(【]\s{0,3}(?:pause|停顿|停頓|暂停|暫停)\s{0,3}[:：]?\s{0,3}"
    r"(?:\d{1,5}(?:\.\d{1,3})?\s{0,3}(?:ms|毫秒|s|secs?|seconds?|秒)?)?\s{0,3}[\]）)】]"
)
_MARK = re.compile(f"{_BREAK}|{_BRACKET}", re.I)
_TIME = re.compile(r"(\d{1,5}(?:\.\d{1,3})?)\s{0,3}(ms|毫秒)?", re.I)
_TAG = re.compile(r"</?([A-Za-z][\w:.-]{0,40})(?:\s[^<>]{0,200})?/?>")
_SPOKEN_AROUND = re.compile(r"<\?xml[^<>]{0,200}>|</?(?:speak|p|s)(?:\s[^<>]{0,500})?>", re.I)

_SECONDS = 10.0  # of the clock, to take the Markdown off a text
_TAGS = 'only <speak>, <p>, <s> and <break time="1s"/> are followed; take it out, or say markup: none to have it spoken'


def _split(value: Any) -> Any:
    """A list from the cell of a table: `wav, mp3`."""
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

    voice: Text | None = Field(
        None,
        max_length=VOICE_LIMIT,
        description="who speaks: a voice that GET /v1/models names, or one of your account's own",
        examples=["Cherry"],
    )
    language: Text | None = Field(None, description="Auto finds out by itself", examples=["Auto", "Chinese"])
    instructions: Text | None = Field(
        None, max_length=INSTRUCTIONS_LIMIT, description="how to speak, for models that take it", examples=["slowly"]
    )
    optimize_instructions: bool | None = Field(None, description="let the provider put the instructions better")

    @field_validator("voice", "language", mode="after")
    @classmethod
    def _is_offered(cls, value: str | None, info: ValidationInfo) -> str | None:
        """As the model spells it: the provider distinguishes Cherry and cherry."""
        if value is None or not info.context or not info.field_name:
            return value
        return _spelled(info.context["catalog"], info.context["model"], info.field_name, value)

    @field_validator("instructions", "optimize_instructions", mode="after")
    @classmethod
    def _is_taken(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.context and info.field_name not in info.context["model"].fields:
            raise no("not_taken", f"{info.context['model'].id} takes none; the models with `instruct` in their name do")
        return value


class Part(Voiced):
    """A paragraph of a script; its voice is the script's where it has none of its own."""

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
    preview: bool | None = Field(None, description="speak the first segment alone, to hear it before the whole is paid")
    pause: Seconds = Field(0.25, description="seconds of silence between the segments of a paragraph")
    paragraph_pause: Seconds = Field(0.7, validate_default=True, description="seconds of silence between paragraphs")
    formats: Formats = Field(("wav",), min_length=1, description="wav, mp3 or both")
    subtitles: Subtitles = Field(("srt", "vtt"), description="srt, vtt, both or none")

    @property
    def voiced(self) -> list[Paragraph]:
        """The paragraphs, each with a voice; a pause within a paragraph ends it."""
        parts = _parts(self.paragraphs, self.text)
        return [self._paragraph(part, text, pause) for part in parts for text, pause in _pieces(part.text, self.markup)]

    @property
    def spoken(self) -> str:
        """All that is to be spoken, with its blanks, without the marks of pauses."""
        texts = [self.text or "", *(part.text for part in self.paragraphs or ())]
        return "".join(piece for text in texts for piece, _ in _pieces(text, self.markup))

    def _paragraph(self, part: Part, text: str, pause: float | None) -> Paragraph:
        after = self.paragraph_pause if part.pause_after is None else part.pause_after
        voice, language = part.voice or self.voice, part.language or self.language
        assert voice is not None, "the model's default stands in for a voice that nobody named"
        instructions = part.instructions or self.instructions
        improve = self.optimize_instructions if part.optimize_instructions is None else part.optimize_instructions
        rest = after if pause is None else pause
        return Paragraph(text, voice, language or "Auto", instructions, rest, optimize_instructions=improve)

    @field_validator("markup")
    @classmethod
    def _is_said(cls, value: Markup | None, info: ValidationInfo) -> Markup | None:
        """Jobs that were stored before this field existed have none: they are spoken as they are."""
        return "pauses" if value is None and info.context else value

    @field_validator("paragraphs")
    @classmethod
    def _is_a_script(cls, value: tuple[Part, ...] | None, info: ValidationInfo) -> tuple[Part, ...] | None:
        if value is None or not info.context:
            return value
        markup, texts = info.data.get("markup"), [part.text for part in value]
        _hold_length(texts)
        _hold_voices(info.context["model"], value, info.data.get("voice"))
        _hold(markup != "markdown", "contradiction", "is given with markup: markdown, which only a text can have")
        _hold_text(texts, markup)
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
            value = _without_markdown(value) if info.data.get("markup") == "markdown" else value
            _hold_text(script.paragraphs(value), info.data.get("markup"))
            _hold_voices(info.context["model"], [Part(text="")], info.data.get("voice"))
        return value

    @field_validator("paragraph_pause")
    @classmethod
    def _ends_some_day(cls, value: float, info: ValidationInfo) -> float:
        if info.context:
            parts = _parts(info.data.get("paragraphs"), info.data.get("text"))
            pieces = ((part, pause) for part in parts for _, pause in _pieces(part.text, info.data.get("markup")))
            pauses = (part.pause_after if pause is None else pause for part, pause in pieces)
            total = sum(value if pause is None else pause for pause in pauses)
            _hold(total <= SILENCE_LIMIT, "too_long", f"makes {total:,.0f} s of silence; at most {SILENCE_LIMIT:,}")
        return value

    @field_validator("formats")
    @classmethod
    def _can_be_made(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.context and "mp3" in value:
            _hold(audio.makes_mp3(), "not_installed", "this server makes no MP3: it needs the extra `media` (PyAV)")
        return value


def _strange_tag(text: str) -> str | None:
    """The name of the first tag that is not followed; None: there is none."""
    tags = (tag[1] for tag in _TAG.finditer(_MARK.sub("", _SPOKEN_AROUND.sub("", text))))
    return next(tags, None)


def _seconds(mark: str) -> float:
    found = _TIME.search(mark)
    return _PAUSE if found is None else float(found[1]) / (1000 if found[2] else 1)


def _pieces(text: str, markup: Markup | None) -> list[tuple[str, float | None]]:
    """The text cut at its pauses: each piece, and the seconds of silence after it; None after the last."""
    if markup in (None, "none"):
        return [(text, None)]
    found: list[tuple[str, float | None]] = []
    at, text = 0, _SPOKEN_AROUND.sub(" ", text)
    for mark in _MARK.finditer(text):
        piece = text[at : mark.start()]
        if found and not piece.strip():
            found[-1] = (found[-1][0], (found[-1][1] or 0) + _seconds(mark[0]))
        else:
            found.append((piece, _seconds(mark[0])))
        at = mark.end()
    rest = text[at:]
    return [*found, (rest, None)] if rest.strip() or not found else found


def _parts(paragraphs: Sequence[Part] | None, text: str | None) -> Sequence[Part]:
    return paragraphs or [Part(text=each) for each in script.paragraphs(text or "")]


def _spelled(catalog: Catalog, model: Model, name: str, value: str) -> str:
    offered: tuple[str, ...] = tuple(model.voices if name == "voice" else model.languages)
    if not offered:  # of the account's own
        return value.strip()
    spelled = {choice.casefold(): choice for choice in offered}
    known = spelled.get(value.strip().casefold())
    if known is None:
        near = difflib.get_close_matches(value.strip().casefold()[:40], spelled, n=3)
        advice = " or ".join(spelled[match] for match in near)
        listed = f"did you mean {advice}?" if near else f"it takes {', '.join(offered)}"
        if name == "voice" and (others := _with_voice(catalog, value)):
            listed += f"; models that have it: {others}"
        raise no("not_allowed", f"{value[:40]} is not one that {model.id} takes; {listed}")
    return known


def _with_voice(catalog: Catalog, voice: str) -> str:
    wanted = voice.strip().casefold()
    models = (model for model in catalog.models("speech") if not model.retired)
    return ", ".join(model.id for model in models if wanted in map(str.casefold, model.voices))


def _hold_voices(model: Model, parts: Sequence[Part], usual: str | None) -> None:
    """A model without voices of its own needs the name of the account's own for each paragraph."""
    silent = next((place for place, part in enumerate(parts, 1) if not (part.voice or usual)), None)
    whose = f"paragraph {silent} has no voice, and {model.id} has none of its own: name one that the account has made"
    _hold(silent is None, "required", whose)


def _without_markdown(text: str) -> str:
    """The text without its Markdown, by a parser in a process of its own."""
    try:
        answer = reading.run("markdown", text.encode(errors="replace"), len(text), _SECONDS)
    except reading.Exhausted as error:
        raise no("bad_markdown", f"its Markdown {error}") from None
    if "text" not in answer:
        raise no("bad_markdown", f"its Markdown {answer['message']}")
    return str(answer["text"])


def _hold_length(texts: Sequence[str]) -> None:
    length = sum(map(len, texts))
    _hold(length <= LONGEST, "too_long", f"{length:,} characters; at most {LONGEST:,} are taken")


def _hold_text(texts: Sequence[str], markup: Markup | None) -> None:
    found = [piece for text in texts for piece in _pieces(text, markup)]
    _hold(any(script.is_spoken(text) for text, _ in found), "blank", "no letter and no digit, so nothing is spoken")
    _hold(len(found) <= MOST, "too_many", f"{len(found):,} paragraphs and pauses; at most {MOST:,} are taken")
    longest, most = max(pause or 0 for _, pause in found), script.LONGEST_PAUSE
    _hold(longest <= most, "too_long", f"a pause of {longest:g} s; at most {most:g} s are made")
    for place, text in enumerate(texts if markup in ("pauses", "markdown") else (), 1):
        tag = _strange_tag(text)
        _hold(tag is None, "tag_not_taken", f"paragraph {place} has the tag <{tag}>, which would be read out: {_TAGS}")


def _hold(holds: bool, code: LiteralString, message: str) -> None:
    if not holds:
        raise no(code, message)
