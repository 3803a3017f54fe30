"""A create call, read and checked: what the sandbox was asked to make, or why it refuses.

Checks go in the provider's order: the model and its path, the async header, the input, the parameters. Unknown
keys of `input` and `parameters` are ignored, and prompts over the limit are cut silently, as the provider does.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from ops.sandbox import parts, shapes
from ops.sandbox.models import Call, Model
from ops.sandbox.refusals import Refusal, invalid

SEED_LIMIT = 2**31 - 1
CLIP_SECONDS = 5  # of every clip that is shown: the sandbox does not measure them
CLIPS = ("video", "reference_video")  # types of media whose seconds are billed; a first clip's are part of the duration
CLIP_ENDINGS = (".mp4", ".mov")


@dataclass(frozen=True)
class Order:
    """What one create asks for, with every default filled in."""

    model: str
    call: str
    prompt: str  # as cut
    size: str = ""  # W*H
    tier: str = "each"  # 480P, 720P, 1080P; "each" for images
    ratio: str = ""
    seconds: int = 0  # of video
    input_seconds: int = 0
    pictures: int = 1  # files: clips, pictures or recordings
    is_sequence: bool = False  # pictures that belong together
    has_audio: bool = True
    extends_prompt: bool = True
    voice: str = ""  # speech has one
    form: str = ""  # of a text answer: text or message; of embeddings: dense, sparse or both
    is_incremental: bool = False  # a stream of text tells differences
    texts: tuple[str, ...] = ()  # to be embedded
    dimension: int = 0
    purpose: str = ""  # what the vectors are for


def read(body: bytes) -> dict[str, Any]:
    """Return a create's body as JSON, or raise the Refusal that an unreadable one gets."""
    try:
        document = json.loads(body)
    except ValueError:
        raise Refusal(400, "BadRequest.IllegalInput", "The request body is not valid JSON.") from None
    if not isinstance(document, dict) or not isinstance(document.get("model"), str) or not document["model"]:
        raise Refusal(400, "BadRequest.EmptyModel", 'Required parameter "model" missing from request.')
    if not isinstance(document.get("input"), dict) or not document["input"]:
        raise Refusal(400, "BadRequest.EmptyInput", 'Required parameter "input" missing from request.')
    if not isinstance(document.setdefault("parameters", {}), dict):
        raise invalid("parameters must be an object.")
    return document


def route(model: Model | None, path: str, is_async: bool, async_text: bool) -> tuple[Model, Call]:
    """Return the model and the way it is called, or raise the Refusal for a wrong model, path or header."""
    if model is None:
        raise invalid("Model not exist.")
    call = model.call(path)
    if call is None:
        raise invalid("url error, please check url!")
    if call.is_async and not is_async:
        raise Refusal(403, "AccessDenied", "current user api does not support synchronous calls.")
    if is_async and model.makes == "text" and async_text:
        return model, replace(call, is_async=True)
    if is_async and not call.is_async:
        raise Refusal(403, "AccessDenied", "current user api does not support asynchronous calls.")
    return model, call


def check(document: dict[str, Any], model: Model, call: Call, resolves_oss: bool) -> Order:
    """Return the order that a body places, or raise the Refusal for what is wrong in it."""
    given, asked = document["input"], document["parameters"]
    if model.makes == "image" and call.name in ("multimodal", "messages"):
        _message(given, model)
    prompt = _prompt(given, model, call)
    _inputs(given, model, resolves_oss)
    _shown(given, model)
    _pictures_shown(given, model)
    _boxes(given, asked)
    _seed(asked)
    size, tier, ratio = shapes.read(asked, model)
    _area(size, given, asked, model)
    return Order(
        model=model.id,
        call=call.name,
        prompt=prompt[: model.prompt_limit],
        size=size,
        tier=tier,
        ratio=ratio,
        seconds=_duration(asked, model),
        input_seconds=_input_seconds(given),
        pictures=_pictures(asked, model),
        is_sequence=_sequence(asked, model) > 0,
        has_audio=asked.get("audio") is not False,
        extends_prompt=asked.get("prompt_extend") is not False,
    )


def prompt_of(document: dict[str, Any]) -> str:
    """Return the prompt of a body in any protocol, uncut; empty where it has none."""
    given = document["input"]
    prompt = given.get("prompt") or given.get("text")
    if isinstance(given.get("texts"), list):
        prompt = "\n".join(text for text in given["texts"] if isinstance(text, str))
    if not isinstance(prompt, str):
        prompt = " ".join(text for message in _messages(given) for text in _texts(message))
    # JSON can carry halves of surrogate pairs; no answer and no file could.
    return prompt.encode("utf-8", "replace").decode()


def _messages(given: dict[str, Any]) -> list[dict[str, Any]]:
    messages = given.get("messages")
    return [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []


def _texts(message: dict[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part.get("text"), str)]


def _message(given: dict[str, Any], model: Model) -> None:
    """Refuse all but one message with one text, and pictures where the model needs some ("Error codes", May 2026)."""
    if not given.get("messages"):
        raise invalid("No messages found in input")
    if len(_messages(given)) != 1:
        raise invalid("messages length only support 1")
    texts = sum(isinstance(part.get("text"), str) for part in _parts(given))
    fewest = model.shows[0] if model.shows else 0
    if not texts or sum(bool(part.get("image")) for part in _parts(given)) < fewest:
        raise invalid("lack of image or text")
    if texts > 1:  # no page has the words
        raise invalid("content must hold one text.")


def _prompt(given: dict[str, Any], model: Model, call: Call) -> str:
    if call.name in ("multimodal", "messages") and not _parts(given):
        raise invalid("input.messages must hold a message with content.")
    prompt = prompt_of({"input": given})
    if "prompt" in model.needs and not prompt:
        raise invalid("prompt must contain words.")
    return prompt


def _parts(given: dict[str, Any]) -> list[dict[str, Any]]:
    messages = _messages(given)
    content = messages[-1].get("content") if messages else None
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _inputs(given: dict[str, Any], model: Model, resolves_oss: bool) -> None:
    for key in model.needs:
        if key != "prompt" and not given.get(key):
            raise invalid(f"Missing required parameter: input.{key}")
    for link in links(given):
        if not link.startswith(("http://", "https://", "data:", "oss://")):
            raise Refusal(400, "InvalidURL", "The provided URL does not appear to be valid.")
        if link.startswith("oss://") and not resolves_oss:
            raise invalid("The provided URL does not appear to be valid. Ensure it is correctly formatted.")


def links(given: dict[str, Any]) -> list[str]:
    """Return the links that an input names."""
    media = [item.get(name) for item in _media(given) for name in ("url", "reference_voice")]
    named = [given.get(key) for key in ("img_url", "first_frame_url", "last_frame_url", "audio_url", "base_image_url")]
    return [
        str(link)
        for link in (*media, *named, *_references(given), *_shown_pictures(given), *parts.links(given.get("messages")))
        if link
    ]


def _shown_pictures(given: dict[str, Any]) -> list[Any]:
    named = given.get("images")
    shown = [part["image"] for part in _parts(given) if part.get("image")]
    return [*shown, *(named if isinstance(named, list) else ())]


def _media(given: dict[str, Any]) -> list[dict[str, Any]]:
    media = given.get("media")
    return [item for item in media if isinstance(item, dict)] if isinstance(media, list) else []


def _seed(asked: dict[str, Any]) -> None:
    seed = asked.get("seed")
    if seed is not None and not (_is_int(seed) and 0 <= seed <= SEED_LIMIT):
        raise invalid(f"seed must be an integer in [0, {SEED_LIMIT}].")


def _duration(asked: dict[str, Any], model: Model) -> int:
    if model.makes == "image":
        return 0
    seconds = asked.get("duration")
    if model.edits and not seconds:
        return CLIP_SECONDS
    if model.decides_seconds and seconds == -1:
        return model.decides_seconds
    if seconds is None:
        return 5
    if not _is_int(seconds) or seconds not in model.seconds:
        raise invalid(f"duration must be in {list(model.seconds)}.")
    return int(seconds)


def _pictures(asked: dict[str, Any], model: Model) -> int:
    pictures, sequence = asked.get("n"), _sequence(asked, model)
    if sequence and (pictures is None or (_is_int(pictures) and 1 <= pictures <= sequence)):
        return int(pictures or sequence)
    if model.makes == "video" or pictures is None:
        return model.default_pictures
    if not _is_int(pictures) or not 1 <= pictures <= model.pictures:
        raise invalid("num_images_per_prompt must be 1." if model.pictures == 1 else f"n must be 1..{model.pictures}.")
    return int(pictures)


def _sequence(asked: dict[str, Any], model: Model) -> int:
    """Return how many pictures a sequence may have, 0 where none is asked for."""
    return model.sequence if asked.get("enable_sequential") is True else 0


def _pictures_shown(given: dict[str, Any], model: Model) -> None:
    if model.makes != "image":
        return
    named = given.get("images") if "images" in model.needs else [part for part in _parts(given) if part.get("image")]
    count, (fewest, most) = len(named or ()), model.shows or (0, 0)
    if count > most:
        raise invalid(f"The number of images should be in [{fewest}, {most}].")


def _area(size: str, given: dict[str, Any], asked: dict[str, Any], model: Model) -> None:
    is_of_words = not _shown_pictures(given) and not _sequence(asked, model)
    area = model.area_of_words if is_of_words and model.area_of_words else model.area
    if area and not area[0] <= math.prod(int(side) for side in size.split("*")) <= area[1]:
        raise invalid(f"size must have {area[0]} to {area[1]} pixels in all.")


def _boxes(given: dict[str, Any], asked: dict[str, Any]) -> None:
    boxes = asked.get("bbox_list")
    if boxes is not None and (not isinstance(boxes, list) or len(boxes) != len(_shown_pictures(given))):
        raise invalid("The length of bbox_list must equal the number of images.")


def _input_seconds(given: dict[str, Any]) -> int:
    """Return the seconds of input video that are billed: at most 5 of all references, as 'Model pricing' has it."""
    clips = [item for item in _media(given) if item.get("type") in CLIPS]
    named = [link for link in _references(given) if urlsplit(link).path.lower().endswith(CLIP_ENDINGS)]
    return CLIP_SECONDS if clips or named else 0


def _references(given: dict[str, Any]) -> list[str]:
    named = given.get("reference_urls")
    return [link for link in named if isinstance(link, str)] if isinstance(named, list) else []


def _shown(given: dict[str, Any], model: Model) -> None:
    """Refuse media of a type that the model lacks, too many of it, and frames beside references (wan3.0)."""
    types = Counter(str(item.get("type")) for item in _media(given))
    if model.media:
        if strange := types.keys() - model.media.keys():
            raise invalid(f"media type {sorted(strange)[0]} is not supported, should be in {list(model.media)}.")
        if many := [name for name, count in types.items() if count > model.media[name]]:
            raise invalid(f"The number of {many[0]} should not be greater than {model.media[many[0]]}.")
    references = len(_references(given)) + sum(types[name] for name in types if name.startswith("reference_"))
    if model.references and references > model.references:
        raise invalid(f"The number of references should not be greater than {model.references}.")
    if model.decides_seconds and references and (types["first_frame"] or types["last_frame"]):
        raise invalid("Frames and references cannot be used together.")
    if model.edits and not types["video"]:
        raise invalid("media must hold one video.")
    if types["first_clip"] and (types["first_frame"] or types["driving_audio"]):
        raise invalid("first_clip cannot be combined with first_frame or driving_audio.")
    if not model.edits and model.references and model.needs and "media" in model.needs and not references:
        raise invalid("media must hold a reference_image or a reference_video.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
