"""Whether an input fits its model, found out before anything is paid for.

The rules read the catalog and know no model by name. They run as validators of the input's fields, so that one pass
finds every wrong field, those of the wrong type and those that only this model refuses alike. An input that is read
back from a job's row is not held against the catalog again: it was complete when it was taken.
"""

from __future__ import annotations

import difflib
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from worker import catalog, media
from worker.catalog import Model, Sizes
from worker.errors import MOST_FAULTS, Fault, InvalidInput
from worker.kinds.fields import Sound, Text, Tier, no

SEED_LIMIT = 2**31 - 1
_CODES = {"missing": "required", "extra_forbidden": "unknown_field", "string_unicode": "bad_text"}
_Form = TypeVar("_Form", bound=BaseModel)


class Input(BaseModel):
    """What users send for a kind, field by field held against the catalog.

    A field that the catalog names for no model of the kind is the kind's own affair.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context and info.field_name:
            _hold(info.context["kind"], info.context["model"], info.field_name, value, info.data)
        return value


class MediaInput(Input):
    """What the inputs of all media kinds share; the model's defaults fill what the user leaves out."""

    prompt: Text | None = Field(None, description="what to make, in any language")
    negative_prompt: Text | None = Field(None, description="what should not be in it", examples=["blurred"])
    prompt_extend: bool | None = Field(None, description="let the provider rewrite the prompt: slower, often better")
    watermark: bool | None = Field(None, description="mark it in the corner as made by AI")
    seed: int | None = Field(None, ge=0, le=SEED_LIMIT, description="equal seeds give similar results")


class VideoInput(MediaInput):
    """What the inputs of the video kinds share."""

    audio_url: Sound | None = Field(None, description="its sound, a link or a file's key: wav or mp3, 3 to 30 s, 15 MB")
    resolution: Tier | None = Field(None, description="the tier, which is what is paid for", examples=["720P"])
    duration: int | None = Field(None, description="seconds, each of them paid for", examples=[5])
    shot_type: Literal["single", "multi"] | None = Field(None, description="one shot or several; needs prompt_extend")


def check(kind: str, form: type[_Form], model: Model, raw: Any, region: str | None) -> _Form:
    """The input, complete: what the user said, and the model's defaults for the rest.

    `region` is the one that the job is bound to, None where any will do. Raises InvalidInput with every fault.
    """
    _serves(kind, model, region)
    if not isinstance(raw, Mapping):
        raise InvalidInput([Fault("/input", "not_an_object", "must be an object of fields")])
    said = {_storable_key(key): value for key, value in raw.items() if value is not None}
    try:
        return form.model_validate({**model.default, **said}, context={"kind": kind, "model": model})
    except ValidationError as error:
        slips = error.errors(include_url=False, include_input=False)[:MOST_FAULTS]
        raise InvalidInput([_fault(form, slip) for slip in slips]) from None


def _serves(kind: str, model: Model, region: str | None) -> None:
    others = ", ".join(other.id for other in catalog.load().models(kind) if not other.retired)
    if kind not in model.kinds:
        made = " or ".join(model.kinds)
        message = f"{model.id} makes {made}: say so as the kind, or take a model for {kind}: {others}"
        raise InvalidInput([Fault("/model", "wrong_kind", message)])
    if model.end and model.retired_by == "notice":  # by reports alone it is taken, with a warning
        raise InvalidInput([Fault("/model", "retired_model", f"{model.end}; others for {kind}: {others}")])
    if region is not None and model.region(region) is None:
        message = f"{model.id} is not served in {region}, but in {', '.join(model.regions)}"
        raise InvalidInput([Fault("/model", "not_in_region", message)])


def _hold(kind: str, model: Model, name: str, value: Any, given: Mapping[str, Any]) -> None:
    """Raises the fault of one field, if the model has one to find in it."""
    if value is None:
        _hold_missing(model, name, given)
        return
    if name not in model.fields:
        takers = ", ".join(other.id for other in catalog.load().models(kind) if name in other.fields)
        if not takers:
            return
        taken = ", ".join(sorted(model.fields))
        raise no("not_taken", f"{model.id} takes {taken}; models that take {name}: {takers}")
    if name in model.choices and value not in model.choices[name]:
        raise no("not_allowed", f"{value} is not one that {model.id} takes: {_listed(model.choices[name])}")
    if name in _RULES:
        _RULES[name](model, value, given)


def _hold_missing(model: Model, name: str, given: Mapping[str, Any]) -> None:
    # An effect brings its own ending ('Wan first-and-last-frame-to-video API reference').
    if name in model.requires and not given.get("template"):
        raise no("required", f"{model.id} needs it")


def _prompt_fits(model: Model, value: str, _given: Mapping[str, Any]) -> None:
    if not value.strip():
        raise no("blank", "says nothing")
    _length_fits(model.id, model.prompt_limit, value)


def _negative_prompt_fits(model: Model, value: str, _given: Mapping[str, Any]) -> None:
    _length_fits(model.id, model.negative_prompt_limit, value)


def _length_fits(model: str, limit: int | None, value: str) -> None:
    if limit is not None and len(value) > limit:
        cut = f"{model} reads {limit}: the provider would cut the rest silently and bill all the same"
        raise no("too_long", f"has {len(value)} characters, {cut}")


def _shots_fit(_model: Model, _value: str, given: Mapping[str, Any]) -> None:
    if given.get("prompt_extend") is False:
        raise no("needs_prompt_extend", "works only while prompt_extend is true")


def _sound_fits(_model: Model, value: bool, given: Mapping[str, Any]) -> None:
    if not value and given.get("audio_url"):
        raise no("contradiction", "is false, so the audio_url would be ignored: leave one of them out")


def _picture_fits(model: Model, value: str, _given: Mapping[str, Any]) -> None:
    """Of a picture that stands in the input itself; files of ours are looked at when they are found."""
    if model.pictures is None or not value.startswith("data:"):
        return
    encoded = value.partition(",")[2]
    head = b64decode(encoded[: media.HEADER * 4 // 3 // 4 * 4] + "==")
    if why := model.pictures.unfit(len(encoded) * 3 // 4 - encoded.count("="), media.shape(head)):
        raise no("picture_unfit", f"{why}, for {model.id}")


_RULES: dict[str, Callable[[Model, Any, Mapping[str, Any]], None]] = {
    "prompt": _prompt_fits,
    "negative_prompt": _negative_prompt_fits,
    "shot_type": _shots_fit,
    "audio": _sound_fits,
    "img_url": _picture_fits,
    "last_frame_url": _picture_fits,
}


def _listed(choices: Any) -> str:
    return str(choices) if isinstance(choices, Sizes) else ", ".join(map(str, choices))


def _storable_key(key: Any) -> str:
    return str(key).replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _fault(form: type[BaseModel], slip: ErrorDetails) -> Fault:
    name = str(slip["loc"][-1]) if slip["loc"] else ""
    path = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in slip["loc"])
    message = slip["msg"]
    if slip["type"] == "missing":
        field = form.model_fields.get(name)
        message = f"is required: {field.description}" if field else "is required"
    if slip["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name[:40], form.model_fields, n=1) if len(slip["loc"]) == 1 else []
        message = "is no field of this kind" + (f"; did you mean {near[0]}?" if near else "")
    return Fault("/input" + path, _CODES.get(slip["type"], slip["type"]), message)
