"""One question about pictures, clips and sound: an answer in words, kept in the job's row as that of `text` is.

What a file costs depends on its pixels, frames and seconds, which nobody but the provider knows of a link: it is
estimated at the most that the model makes of it (`vision` and `sound_tokens` of the catalog). Pixels of a picture that
is given inline are read from its header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from worker import media
from worker.catalog import Model, Surface, Usage
from worker.kinds import answers, fields, text
from worker.kinds.fields import SEED_LIMIT, Clips, Filled, Input, Pictures, Rule, Sounds, Text, no
from worker.kinds.kind import CallKind, Request
from worker.kinds.visual import picture_fits

NAME = "understand"
_MOST = 256  # files of a sort; the most that any model takes
_SORTS = ("pictures", "clips", "sounds")
_OURS = frozenset(  # spelled another way, or not sent
    {"prompt", "system", *_SORTS, "fps", "max_pixels", "max_seconds", "response_format", "include_reasoning"}
)
_SOUNDS = {".wav": "wav"}  # what a link says of its format; all else goes as mp3
_AROUND = 2  # tokens that stand around a picture (Alibaba docs, 'Visual understanding')


def _counted(name: str, model: Model, value: list[str] | None, given: Mapping[str, Any]) -> None:
    """Raises the fault of too many files of a sort, or in all; the sorts are validated in the order of `_SORTS`."""
    most = model.references
    if not value or most is None:
        return
    others = {other: len(given[other]) for other in _SORTS if other != name and given.get(other)}
    if others and not most.is_mixed:
        raise no("contradiction", f"stand beside {min(others)}, and {model.id} takes files of one sort: leave one out")
    if why := most.unfit({name: len(value), **others}):
        raise no("too_many", f"{why}, for {model.id}")


def _pictures_fit(model: Model, value: list[str] | None, given: Mapping[str, Any]) -> None:
    _counted("pictures", model, value, given)
    for picture in value or ():
        picture_fits(model, picture, given)
    # the last of the sorts: where the others were refused, they are faults of their own
    if not value and all(name in given and not given[name] for name in ("clips", "sounds")):
        sorts = " or ".join(name for name in _SORTS if name in model.fields)
        raise no("nothing_shown", f"there is nothing to be asked about: name files in {sorts}")


def _pixels_fit(model: Model, value: int | None, _given: Mapping[str, Any]) -> None:
    if value is not None and model.vision and not model.vision.pixels[0] <= value <= model.vision.pixels[1]:
        least, most = model.vision.pixels
        raise no("not_allowed", f"{model.id} scales a picture to {least:,} to {most:,} pixels")


def _is_about_clips(_model: Model, value: float | None, given: Mapping[str, Any]) -> None:
    if value is not None and not given.get("clips"):
        raise no("needs_clips", "is about clips, and there are none")


class Understand(Input):
    """A question, and what it is about: pictures, clips and sound, in this order. The answer stands in `result`.

    Pictures: JPEG, PNG, BMP or WEBP, sides of more than 10 pixels, of up to 10 MB. Clips: MP4 or MOV; sound: WAV or
    MP3. GET /v1/models says how many of each a model takes.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "pictures": _pictures_fit,
        "clips": partial(_counted, "clips"),
        "sounds": partial(_counted, "sounds"),
        "fps": _is_about_clips,
        "max_pixels": _pixels_fit,
        **text.WRITING_RULES,
    }

    example_fields: ClassVar[frozenset[str]] = frozenset({"pictures"})

    system: Text | None = Field(None, description="what the model is told before all else")
    prompt: Filled = Field(description="the question", examples=["What is on sale, and for how much?"])
    sounds: Annotated[Sounds, Field(max_length=_MOST)] | None = Field(None, description="links, or files' keys")
    clips: Annotated[Clips, Field(max_length=_MOST)] | None = Field(None, description="videos: links, or files' keys")
    pictures: Annotated[Pictures, Field(max_length=_MOST)] | None = Field(
        None,
        description="links, files' keys, or data:image/…",
        examples=[["https://example.com/shelf.jpg"]],
    )
    fps: float | None = Field(None, ge=0.1, le=10, description="frames a second that are taken of clips", examples=[1])
    max_pixels: int | None = Field(None, description="of each picture: a larger one is scaled down", examples=[1003520])
    max_seconds: int | None = Field(
        None,
        ge=1,
        description="that each clip or sound plays: so many are reserved; a file that is longer is refused",
    )
    max_tokens: int | None = Field(None, ge=1, description="of the answer, each of them paid for", examples=[800])
    enable_thinking: bool | None = Field(None, description="let the model reason first: slower, dearer, often better")
    thinking_budget: int | None = Field(None, ge=1, description="tokens that it may think")
    include_reasoning: bool | None = Field(None, description="give what it thought beside the answer")
    response_format: text.Format = Field(None, description="text, json, or a JSON schema that the answer should fit")
    temperature: float | None = Field(None, ge=0, lt=2, description="how freely it chooses its words")
    top_p: float | None = Field(None, gt=0, le=1, description="the share of likely words that it chooses from")
    seed: int | None = Field(None, ge=0, le=SEED_LIMIT, description="equal seeds give similar answers")
    stop: Text | tuple[Text, ...] | None = Field(None, description="what the answer ends before")


def request(model: Model, region: str, wanted: Understand) -> Request:
    """The create call; it streams where the model thinks, or answers no other way."""
    streams = model.streams or text.will_think(model, wanted.enable_thinking)
    asked = {name: value for name, value in wanted.model_dump(exclude_none=True).items() if name not in _OURS}
    asked |= text.steering(model, wanted.enable_thinking, wanted.response_format)
    if model.sound_tokens:
        asked["modalities"] = ["text"]  # and no speech, which is dear
    return Request(
        model.path,
        {},
        text.spelled(model, region, _messages(wanted), asked, Surface.COMPATIBLE, streams=streams),
        surface=model.surface,
        streams=streams,
        reasoning=bool(wanted.include_reasoning),
        instead=text.OTHER_LIMIT,
    )


def usage(model: Model, wanted: Understand, answer: Mapping[str, Any]) -> Usage:
    """Tokens in and out; those of the input by what they are of, as the answer tells them, else as we estimate them."""
    output, told = answers.mapping(answer.get("output")) or answer, answers.mapping(answer.get("usage"))
    guess = estimate(model, wanted).units
    reported = answers.tokens(told)
    read = int(reported.get("input_tokens", guess["input_tokens"]))
    wrote = reported.get("output_tokens", text.tokens(str(text.result(output)["content"])))
    return Usage(
        {
            **reported,
            "input_tokens": read,
            "output_tokens": wrote,
            **_shares(read, answers.mapping(told.get("prompt_tokens_details")), guess),
            "thinking": bool(wanted.enable_thinking),
        }
    )


def estimate(model: Model, wanted: Understand) -> Usage:
    """The most that the files may be, as far as the window goes; the words by a count that is rather too high."""
    heard = math.ceil(_seconds(model, wanted) * model.sound_tokens)
    seen = _seen(model, wanted)
    said = text.tokens(wanted.prompt + (wanted.system or "")) + text.tokens(str(wanted.response_format or ""))
    window = max(0, (model.context or 0) - said)
    audio = min(heard, window)
    vision = min(seen, window - audio)
    return Usage(
        {
            "input_tokens": said + vision + audio,
            "text_tokens": said,
            "vision_tokens": vision,
            "audio_tokens": audio,
            **text.most_written(model, wanted),
        }
    )


def words(wanted: Understand) -> str:
    """ "2 pictures, 1 clip"."""
    counts = {name: len(getattr(wanted, name) or ()) for name in _SORTS}
    return ", ".join(f"{count} {name if count > 1 else name[:-1]}" for name, count in counts.items() if count)


def _messages(wanted: Understand) -> list[dict[str, Any]]:
    """A message of the files and the question; the system's before it, with the instruction that JSON needs."""
    scale = {"max_pixels": wanted.max_pixels} if wanted.max_pixels else {}
    pace = {"fps": wanted.fps} if wanted.fps else {}
    parts: list[dict[str, Any]] = [
        *({"type": "image_url", "image_url": {"url": url}, **scale} for url in wanted.pictures or ()),
        *({"type": "video_url", "video_url": {"url": url}, **pace} for url in wanted.clips or ()),
        *({"type": "input_audio", "input_audio": {"data": url, "format": _format(url)}} for url in wanted.sounds or ()),
        {"type": "text", "text": wanted.prompt},
    ]
    told = [part for part in (wanted.system, answers.instruction(wanted.response_format, wanted.prompt)) if part]
    system = [{"role": "system", "content": "\n\n".join(told)}] if told else []
    return [*system, {"role": "user", "content": parts}]


def _format(link: str) -> str:
    return _SOUNDS.get(PurePosixPath(urlsplit(link).path).suffix.lower(), "mp3")


def _seconds(model: Model, wanted: Understand) -> float:
    """How long the sounds play at most, and those of clips where the model hears them."""
    most = wanted.max_seconds or math.inf
    sounds, clips = (min(limits.seconds[1], most) if limits else 0 for limits in (model.sounds, model.clips))
    return len(wanted.sounds or ()) * sounds + len(wanted.clips or ()) * clips


def _seen(model: Model, wanted: Understand) -> int:
    if model.vision is None:
        return 0
    pictures = (_picture_tokens(model, picture, wanted.max_pixels) for picture in wanted.pictures or ())
    return sum(pictures) + len(wanted.clips or ()) * model.vision.clip_tokens


def _picture_tokens(model: Model, picture: str, most: int | None) -> int:
    """The tokens of a picture: as its header says, if it is inline, and at most as the model makes of any.

    Each side is rounded up to whole tokens, and a picture of too few pixels is enlarged first (Alibaba docs, 'OpenAI
    Vision compatibility', 2024, and 'Visual understanding', 2025; some editions round to the nearest).
    """
    vision = model.vision
    assert vision is not None, "only a model that sees is shown pictures"
    tokens = math.ceil((most or vision.usual_pixels) / vision.token_pixels)
    if picture.startswith("data:") and (shape := media.inline_shape(picture)):
        scale = max(1.0, math.sqrt(vision.pixels[0] / (shape.width * shape.height)))
        sides = (math.ceil(side * scale / math.isqrt(vision.token_pixels)) for side in (shape.width, shape.height))
        tokens = min(tokens, math.prod(sides))
    return tokens + _AROUND


def _shares(read: int, told: Mapping[str, Any], guess: Mapping[str, Any]) -> dict[str, int]:
    """The input's tokens of sound, of what is seen and of words; they add up to all of them."""
    audio, image, video = (answers.number(told.get(f"{name}_tokens")) for name in ("audio", "image", "video"))
    if audio is None and image is None and video is None:
        audio, image = guess["audio_tokens"], guess["vision_tokens"]
    heard = min(int(audio or 0), read)
    seen = min(int((image or 0) + (video or 0)), read - heard)
    return {"audio_tokens": heard, "vision_tokens": seen, "text_tokens": read - heard - seen}


KIND = CallKind(
    name=NAME,
    input=Understand,
    check=partial(fields.check, NAME, Understand),
    request=request,
    usage=usage,
    estimate=estimate,
    words=words,
    result=lambda wanted, output: text.kept(wanted.response_format, output),
    accepts=lambda answer: "json_error" not in answer,
)
