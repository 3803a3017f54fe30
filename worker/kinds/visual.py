"""What the kinds of pictures and clips share: the fields of their inputs, how a request is spelled, what answers tell.

A request is spelled by the model's protocol: it says where each field goes in the body, and a field that it does not
name goes to `parameters` under its own name. Everything that is billed is complete in the input, so nothing is left to
the provider's defaults. Where an answer lacks what is billed, the input's own numbers stand in for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from worker import media, text
from worker.catalog import Model, Protocol, Usage
from worker.kinds import answers
from worker.kinds.fields import SEED_LIMIT, Clip, Filled, Input, Picture, Rule, Sound, Text, Tier, no
from worker.kinds.kind import Request, Source
from worker.states import Mode

_LINKS = ("video_url", "url", "image")
_SORTS = ("picture", "clip", "sound")  # of what a reference shows
_NUMBER_LIMIT = 2**63
_WORD_LIMIT = 200  # characters; longer texts are no measure of use
_TIER = re.compile(r"(\d{3,4})P?", re.IGNORECASE)

_PROMPTS = {"prompt": "input.prompt", "negative_prompt": "input.negative_prompt"}
_PLACES: dict[Protocol, dict[str, str]] = {
    # Alibaba docs, 'Wan text-to-video', 'image-to-video (first frame)' and 'text-to-image V2 API reference'
    Protocol.PROMPT: {
        **_PROMPTS,
        "audio_url": "input.audio_url",
        "img_url": "input.img_url",
        "template": "input.template",
        "references": "input.reference_urls",  # 'Wan reference-to-video API reference', wan2.6
        "pictures": "input.images",  # 'Wan 2.5 general image editing API reference'
    },
    # 'Wan first-and-last-frame-to-video API reference'
    Protocol.FRAMES: {
        **_PROMPTS,
        "img_url": "input.first_frame_url",
        "last_frame_url": "input.last_frame_url",
        "template": "input.template",
    },
    # 'Wan 2.7' pages of image-to-video, reference-to-video and video editing; 'HappyHorse' pages (all May 2026)
    Protocol.MEDIA: {
        **_PROMPTS,
        "img_url": "media.first_frame",
        "clip_url": "media.first_clip",
        "last_frame_url": "media.last_frame",
        "audio_url": "media.driving_audio",
        "first_frame_url": "media.first_frame",
        "video_url": "media.video",
        "references": "media.reference",
        "pictures": "media.reference_image",
    },
    # 'Wan text-to-image V2', wan2.6; 'Wan 2.7 image generation and editing'; 'Qwen-Image' pages of both (May 2026)
    Protocol.MESSAGES: {
        "prompt": "messages.text",
        "pictures": "messages.image",
        "sequence": "parameters.enable_sequential",
        "boxes": "parameters.bbox_list",
    },
}


def _prompt_fits(model: Model, value: str | None, _given: Mapping[str, Any]) -> None:
    _length_fits(model.id, model.prompt_limit, value)


def _negative_prompt_fits(model: Model, value: str | None, _given: Mapping[str, Any]) -> None:
    _length_fits(model.id, model.negative_prompt_limit, value)


def _length_fits(model: str, limit: int | None, value: str | None) -> None:
    if value is not None and limit is not None and len(value) > limit:
        cut = f"{model} reads {limit}: the provider would cut the rest silently and bill all the same"
        raise no("too_long", f"has {len(value)} characters, {cut}")


def _shots_fit(_model: Model, value: str | None, given: Mapping[str, Any]) -> None:
    if value is not None and given.get("prompt_extend") is False:
        raise no("needs_prompt_extend", "works only while prompt_extend is true")


def picture_fits(model: Model, value: str | None, _given: Mapping[str, Any]) -> None:
    """Raises the fault of a picture within the request that the model does not take."""
    # Files in our bucket are checked by `worker/inputs`; what is behind a link only the provider sees.
    if value is None or model.pictures is None or not value.startswith("data:"):
        return
    encoded = value.partition(",")[2]
    if why := model.pictures.unfit(len(encoded) * 3 // 4 - encoded.count("="), media.inline_shape(value)):
        raise no("picture_unfit", f"{why}, for {model.id}")


def pictures_fit(model: Model, value: list[str] | None, given: Mapping[str, Any]) -> None:
    """Raises the fault of a list of pictures: too many, or one that the model does not take."""
    if value and model.references and (why := model.references.unfit({"pictures": len(value)})):
        raise no("too_many", f"{why}, for {model.id}")
    for picture in value or ():
        picture_fits(model, picture, given)


def references_fit(model: Model, value: list[Reference] | None, given: Mapping[str, Any]) -> None:
    """Raises the fault of references: too many of a sort or in all, or one that the model does not take."""
    most = model.references
    if not value or most is None:
        return
    counts = {f"{sort}s": sum(getattr(each, sort) is not None for each in value) for sort in _SORTS}
    if why := most.unfit(counts):
        raise no("too_many", f"{why}, for {model.id}")
    if not most.has_voices and any(each.voice for each in value):
        raise no("not_taken", f"has a voice, which {model.id} does not take")
    if all(each.sound for each in value):
        raise no("nothing_shown", "has sound alone: a picture or a clip must be among them")
    longest, seconds = most.seconds_with_clips, given.get("duration")
    if longest and seconds and seconds > longest and any(each.clip for each in value):
        raise no("contradiction", f"has a clip: {model.id} makes {longest} seconds at most then, not {seconds}")
    for each in value:
        picture_fits(model, each.picture, given)


def sound_fits(_model: Model, value: bool | None, given: Mapping[str, Any]) -> None:
    """Raises the fault of a silent clip that has a sound of its user's."""
    if value is False and given.get("audio_url"):
        raise no("contradiction", "is false, so the audio_url would be ignored: leave one of them out")


def number_fits(model: Model, value: int | None, given: Mapping[str, Any]) -> None:
    """Raises the fault of a number of pictures: of a sequence it must be told, and only a sequence may be long."""
    if given.get("sequence"):
        if value == 1:
            raise no("required", f"says how many the sequence has at most, each paid for: 2 to {model.sequence_max}")
    elif value is not None and value > model.n_max:
        raise no("not_allowed", f"{value} pictures are made only as a sequence; otherwise {model.n_max} at most")


def edited_size_fits(model: Model, value: str | None, _given: Mapping[str, Any]) -> None:
    """Raises the fault of a size that the model makes only of words."""
    if value and model.edited_sizes and value not in model.edited_sizes:
        raise no("not_allowed", f"{value} is made of words alone; else {model.id} takes {model.edited_sizes}")


class MediaInput(Input):
    """What the inputs of all media kinds share; the model's defaults fill what the user leaves out."""

    rules: ClassVar[Mapping[str, Rule]] = {"prompt": _prompt_fits, "negative_prompt": _negative_prompt_fits}

    prompt: Filled | None = Field(None, description="what to make, in any language")
    negative_prompt: Text | None = Field(None, description="what should not be in it", examples=["blurred"])
    prompt_extend: bool | None = Field(None, description="let the provider rewrite the prompt: slower, often better")
    watermark: bool | None = Field(None, description="mark it in the corner as made by AI")
    seed: int | None = Field(None, ge=0, le=SEED_LIMIT, description="equal seeds give similar results")


class VideoInput(MediaInput):
    """What the inputs of the video kinds share."""

    rules: ClassVar[Mapping[str, Rule]] = {**MediaInput.rules, "shot_type": _shots_fit}

    audio_url: Sound | None = Field(None, description="its sound, a link or a file's key: wav or mp3, 3 to 30 s, 15 MB")
    resolution: Tier | None = Field(None, description="the tier, which is what is paid for", examples=["720P"])
    duration: int | None = Field(
        None, description="seconds, each of them paid for; -1: the model decides", examples=[5]
    )
    shot_type: Literal["single", "multi"] | None = Field(None, description="one shot or several; needs prompt_extend")


class Reference(BaseModel):
    """Somebody or something to be shown: a picture, a clip, or how it sounds; and with whose voice it speaks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    picture: Picture | None = Field(None, description="a link, a file's key, or data:image/…")
    clip: Clip | None = Field(None, description="a link to a video, or a file's key")
    sound: Sound | None = Field(None, description="a link to sound, or a file's key")
    voice: Sound | None = Field(None, description="the voice of the one who is shown: a link to sound, or a file's key")

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if sum(value is not None for value in (self.picture, self.clip, self.sound)) != 1:
            raise no("one_of", "must have one of picture, clip and sound")
        if self.voice and self.sound:
            raise no("contradiction", "is sound already: a voice goes with a picture or a clip")
        return self

    @property
    def url(self) -> str:
        """The link to what is shown."""
        return str(self.picture or self.clip or self.sound)

    @property
    def type(self) -> str:
        """What the provider calls it."""
        return "image" if self.picture else "video" if self.clip else "audio"


def request(model: Model, region: str, wanted: BaseModel) -> Request:
    """The create call for a checked input, with the model's id as that region spells it.

    A list fills its place item by item: media in its order, the parts of a message before its text.
    """
    here = model.region(region)
    assert here is not None, "a job goes only to a region that serves its model"
    body: dict[str, Any] = {"model": here.id, "input": {}, "parameters": dict(model.always)}
    for name, value in ((name, value) for name, value in wanted if value is not None):
        _put(body, _PLACES[model.protocol].get(name, f"parameters.{name}"), value)
    headers = {} if model.mode is Mode.CALL else {"X-DashScope-Async": "enable"}
    return Request(model.path, headers, body)


def sources(output: Mapping[str, Any], role: str, extension: str) -> tuple[Source, ...]:
    """Every link in the `output` of a finished task or call, in its order; parts that failed have none."""
    links = (part.get(name) for part in _parts(output) for name in _LINKS)
    return tuple(Source(link, role, extension) for link in dict.fromkeys(filter(answers.is_link, links)))


def failures(output: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Code and message of each part that failed in a task that succeeded as a whole."""
    failed = (part for part in map(answers.mapping, answers.items(output.get("results"))) if part.get("code"))
    return tuple({"code": part["code"], "message": part.get("message")} for part in failed)


def video_asked(model: Model, wanted: BaseModel) -> Usage:
    """Seconds and tier as they were asked for, whether with sound where that is a choice, and input seconds.

    Where clips that are shown are billed too, `seconds` is the sum, with as many `input_seconds` as may be billed. A
    duration that is left to the model or the clip (-1, 0 or none at all) counts as the longest.
    """
    asked = wanted.model_dump(exclude_none=True)
    tier = asked.get("resolution") or model.tier(asked.get("size", ""))
    shown = model.input_seconds if _shows_clips(wanted) else 0
    made = _positive(asked.get("duration")) or max(model.durations, default=model.input_seconds)
    units = {"seconds": made + shown, "input_seconds": shown or None, "tier": tier, "audio": asked.get("audio")}
    return Usage(answers.known(units))


def video_usage(model: Model, wanted: BaseModel, answer: Mapping[str, Any]) -> Usage:
    """Seconds and tier: `duration` else `video_duration`, `SR` else the size, else what was asked for.

    `duration` is the sum of input and output seconds ('Wan 2.7 reference-to-video API reference').
    """
    told = answers.mapping(answer.get("usage"))
    seconds = answers.number(told.get("duration")) or answers.number(told.get("video_duration"))
    shown = told.get("input_video_duration")
    audio = told.get("audio") if isinstance(told.get("audio"), bool) else None
    billed = {"seconds": seconds, "tier": _tier_told(model, told), "audio": audio}
    asked = video_asked(model, wanted)
    if "input_seconds" in asked.units and isinstance(shown, int | float | str):
        billed["input_seconds"] = answers.number(shown) or 0
    return _settled(told, asked, billed)


def image_asked(_model: Model, wanted: BaseModel) -> Usage:
    """Pictures as they were asked for, and what else moves their price."""
    asked = wanted.model_dump(exclude_none=True)
    return Usage(answers.known({"images": asked.get("n"), "prompt_extend": asked.get("prompt_extend")}))


def image_usage(model: Model, wanted: BaseModel, answer: Mapping[str, Any]) -> Usage:
    """Pictures: `image_count` (of qwen-image-3.0 `output_image_count`), else links, else as many as were asked for."""
    told = answers.mapping(answer.get("usage"))
    count = answers.number(told.get("image_count")) or answers.number(told.get("output_image_count"))
    links = len(sources(answers.mapping(answer.get("output")), "image", "png"))
    return _settled(told, image_asked(model, wanted), {"images": count or links or None})


def video_echoes(model: Model, wanted: BaseModel) -> dict[str, Any]:
    """The prompt as it was sent, and the shape of the clip as far as the model keeps to it.

    What may come otherwise than it was asked for is left out: a job would take its own task for another's, and pay for
    a second one.
    """
    asked, billed = wanted.model_dump(exclude_none=True), video_asked(model, wanted).units
    shape = {"duration": _positive(asked.get("duration")), "tier": billed.get("tier"), "size": asked.get("size")}
    if asked.get("clip_url"):
        shape["duration"] = None  # of both clips together, and no sample shows how the answer counts
    return answers.known({"orig_prompt": asked.get("prompt"), **(shape if model.keeps_shape else {})})


def video_echoed(model: Model, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider repeats of a clip's request, as far as it does; whole seconds, since 5.02 were asked for as 5.

    Where clips that are shown are billed, `duration` is the sum, and says nothing of what was asked for.
    """
    told = answers.mapping(answer.get("usage"))
    lengths = ["output_video_duration", *(() if model.input_seconds else ("duration", "video_duration"))]
    seconds = next(filter(None, (answers.number(told.get(name)) for name in lengths)), None)
    shape = {
        "duration": round(seconds) if seconds else None,
        "tier": _tier_told(model, told),
        "size": next((size for size in _sizes(told) if isinstance(size, str) and model.tier(size)), None),
    }
    return answers.known({"orig_prompt": _prompt(answer), **shape})


def image_echoes(_model: Model, wanted: BaseModel) -> dict[str, Any]:
    """The prompt as it was sent, and how many pictures, unless fewer may come."""
    asked = wanted.model_dump(exclude_none=True)
    return {"orig_prompt": asked.get("prompt"), "n": None if asked.get("sequence") else asked.get("n")}


def image_echoed(_model: Model, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider repeats of a picture's request, as far as it does."""
    metrics = answers.mapping(answers.mapping(answer.get("output")).get("task_metrics"))
    return answers.known({"orig_prompt": _prompt(answer), "n": answers.number(metrics.get("TOTAL"))})


def _put(body: dict[str, Any], place: str, value: Any) -> None:
    part, _, name = place.partition(".")
    match part:
        case "media":
            shown = body["input"].setdefault("media", [])
            shown.extend(_medium(name, each) for each in _each(value))
            shown.sort(key=lambda each: each["type"] == "driving_audio")  # stable: sound comes last, as in the samples
        case "messages":
            content = body["input"].setdefault("messages", [{"role": "user", "content": []}])[0]["content"]
            content.extend({name: each} for each in _each(value))
            content.sort(key=lambda each: "text" in each)  # stable: pictures come first
        case _:
            body[part][name] = [_url(each) for each in value] if isinstance(value, list) else value


def _medium(name: str, shown: Any) -> dict[str, str]:
    if not isinstance(shown, Reference):
        return {"type": name, "url": shown}
    voice = {"reference_voice": shown.voice} if shown.voice else {}
    return {"type": f"{name}_{shown.type}", "url": shown.url, **voice}


def _url(shown: Any) -> Any:
    return shown.url if isinstance(shown, Reference) else shown


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shows_clips(wanted: BaseModel) -> bool:
    shown = getattr(wanted, "references", None) or ()
    return bool(getattr(wanted, "video_url", None)) or any(isinstance(each, Reference) and each.clip for each in shown)


def _positive(duration: Any) -> int | None:
    return duration if isinstance(duration, int) and duration > 0 else None


def _settled(told: Mapping[str, Any], asked: Usage, billed: Mapping[str, Any]) -> Usage:
    """What is billed; beside it whatever else the provider counted, as far as the database takes it."""
    kept = {name: value for name, value in told.items() if _is_stored(name) and _is_plain(value)}
    return Usage({**kept, **asked.units, **answers.known(billed)})


def _is_plain(value: Any) -> bool:
    """Whether a value is a number or a short text that JSON in the database can hold."""
    is_number = isinstance(value, int | float) and abs(value) < _NUMBER_LIMIT  # False for NaN
    return is_number or (isinstance(value, str) and len(value) <= _WORD_LIMIT and _is_stored(value))


def _is_stored(value: str) -> bool:
    return text.UNSTORABLE.search(value) is None


def _sizes(told: Mapping[str, Any]) -> list[Any]:
    return [told.get(name) for name in ("SR", "size", "video_ratio")]


def _tier_told(model: Model, told: Mapping[str, Any]) -> str | None:
    """The first tier among what the provider says of the size: 720, "720P" or "1280*720"."""
    for value in _sizes(told):
        digits = _TIER.fullmatch(str(answers.number(value) or value))
        if tier := f"{digits[1]}P" if digits else model.tier(str(value)):
            return tier
    return None


def _prompt(answer: Mapping[str, Any]) -> str | None:
    prompts = (part.get("orig_prompt") for part in _parts(answers.mapping(answer.get("output"))))
    return next((prompt for prompt in prompts if isinstance(prompt, str)), None)


def _parts(output: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The output itself, its results (a list, or for some models one object), and the contents of its messages."""
    yield output
    yield answers.mapping(output.get("results"))
    yield from map(answers.mapping, answers.items(output.get("results")))
    for choice in map(answers.mapping, answers.items(output.get("choices"))):
        yield from map(answers.mapping, answers.items(answers.mapping(choice.get("message")).get("content")))
