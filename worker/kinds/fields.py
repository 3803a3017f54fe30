"""What users send: the types of fields, and whether an input fits its model, before anything is paid for.

The rules read the catalog and know no model by name. Where the provider takes a link to a picture, a clip or sound,
we take the key of an object in our bucket too; `worker/inputs` looks whether there is such an object.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, LiteralString, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from worker import text
from worker.catalog import Catalog, Model, Sizes
from worker.errors import MOST_FAULTS, Fault, InvalidInput

LINK_LIMIT = 4096  # characters; signed links are long
KEY_LIMIT = 1024  # characters; S3 takes no longer keys
INLINE_LIMIT = 28_000_000  # characters of base64 that a 20 MB picture makes, the provider's cap
SEED_LIMIT = 2**31 - 1


class Medium(StrEnum):
    """What the file is, whose key may stand in a field in place of a link."""

    PICTURE = "picture"
    SOUND = "sound"
    CLIP = "clip"


Path = tuple[str, ...]  # of a field in an input; "*" stands for each item of a list


# (model, value, fields validated before) → None, or raises `no`; the value may be None.
Rule = Callable[[Model, Any, Mapping[str, Any]], None]

_Form = TypeVar("_Form", bound=BaseModel)
_CODES = {"missing": "required", "extra_forbidden": "unknown_field", "string_unicode": "bad_text"}
_KEY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/[\w.-]+)+", re.ASCII)
# What may stand in the place of a required field: an effect brings its own ending (Alibaba docs, 'Wan
# first-and-last-frame-to-video'), and what goes on from a clip begins with it ('Wan 2.7 image-to-video').
_INSTEAD = {"last_frame_url": "template", "img_url": "clip_url"}
_LINE_ENDS = re.compile(r"\r?\n")  # of MIME's base64, a line of 76 characters each (RFC 2045, 6.8)
_INLINE = re.compile(r"data:image/(png|jpeg|jpg|bmp|webp);base64,[A-Za-z0-9+/]+={0,2}")


def no(code: LiteralString, message: str) -> PydanticCustomError:
    """A fault of a field, for a validator to raise: a stable code, and a message for a person."""
    return PydanticCustomError(code, "{message}", {"message": message})


def is_key(value: str) -> bool:
    """Whether it is spelled as the key of an object of some project: "<the project's id>/…"."""
    return len(value) <= KEY_LIMIT and _KEY.fullmatch(value) is not None


def is_fetched(link: str) -> bool:
    """Whether we fetch such a link: https, and http to a private address, whose network the operator may allow."""
    parts = urlsplit(link)
    return parts.scheme == "https" or (parts.scheme == "http" and _is_near(parts.hostname or ""))


def _is_near(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host


def _storable(value: str) -> str:
    if text.UNSTORABLE.search(value):
        raise no("bad_text", text.BAD_TEXT)
    return value


def _filled(value: str) -> str:
    if not value.strip():
        raise no("blank", "must not be empty")
    return value


def _line(value: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise no("control_character", "holds a control character, which terminals obey; it must be plain text")
    return value


def _link(value: str) -> str:
    if len(value) > LINK_LIMIT:
        raise no("too_long", f"is a link of {len(value)} characters; at most {LINK_LIMIT} are taken")
    if not _is_link(value):
        raise no("bad_link", "must be a link: https://…, http://… or oss://…, without a user or password in it")
    return value


def _link_or_key(value: str) -> str:
    return value if is_key(value) else _link(value)


def _picture(value: str) -> str:
    if not value.startswith("data:"):
        return _link_or_key(value)
    value = _LINE_ENDS.sub("", value)
    if len(value) > INLINE_LIMIT:
        raise no("too_long", "is a picture of over 20 MB; the provider takes none")
    if not _INLINE.fullmatch(value):
        raise no("bad_link", "must be data:image/png;base64,… (or jpeg, bmp, webp), a link, or a file's key")
    return value


def _is_link(value: str) -> bool:
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        return False
    is_plain = value.isprintable() and not re.search(r"\s|\\", value)
    return is_plain and parts.scheme in ("https", "http", "oss") and bool(host) and "@" not in parts.netloc


def _star(value: Any) -> Any:
    """1280x720, 1280×720 and 2k as the provider writes them: 1280*720 and 2K."""
    return re.sub(r"(?<=\d)\s*[xX×]\s*(?=\d)", "*", value[:40]).upper() if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return value[:40].upper() if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """A list of one may be written as its only item, as a table's cell has it."""
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_storable)]
Filled = Annotated[Text, AfterValidator(_filled)]
Line = Annotated[Text, AfterValidator(_line)]
Link = Annotated[str, AfterValidator(_link)]
Sound = Annotated[str, AfterValidator(_link_or_key), Medium.SOUND]
Clip = Annotated[str, AfterValidator(_link_or_key), Medium.CLIP]
Picture = Annotated[str, AfterValidator(_picture), Medium.PICTURE]
Pictures = Annotated[list[Picture], BeforeValidator(_listed)]
Clips = Annotated[list[Clip], BeforeValidator(_listed)]
Sounds = Annotated[list[Sound], BeforeValidator(_listed)]
Size = Annotated[Text, BeforeValidator(_star)]
Tier = Annotated[Text, BeforeValidator(_upper)]


class Input(BaseModel):
    """What users send for a kind; each field is held against the catalog while it is validated.

    So one pass finds every wrong field: those of the wrong type, and those that only this model refuses. An input that
    is read back from a job's row is not held against the catalog again: it was complete when it was taken. A field that
    the catalog names for no model of the kind is left to the kind's own validators.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    rules: ClassVar[Mapping[str, Rule]] = {}
    without_default: ClassVar[frozenset[str]] = frozenset()  # fields that are left to the provider where the user does
    example_fields: ClassVar[frozenset[str]] = frozenset()  # that an example has: one of several must be there

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context and info.field_name:
            _hold(info.context, info.field_name, value, info.data)
            if rule := cls.rules.get(info.field_name):
                rule(info.context["model"], value, info.data)
        return value


def media(form: type[BaseModel]) -> dict[Path, Medium]:
    """The fields in which a file's key may stand in place of a link, by each name, in lists and nested objects too.

    `("references", "*", "picture")` is the `picture` of each item of `references`.
    """
    found: dict[Path, Medium] = {}
    for name, described in form.model_fields.items():
        other_names = described.validation_alias.choices if isinstance(described.validation_alias, AliasChoices) else ()
        for path, medium in _marked(described.annotation, described.metadata):
            for spelled in dict.fromkeys([name, *map(str, other_names)]):
                other = found.setdefault((spelled, *path), medium)
                assert other is medium, f"{form.__name__}.{name} may be a {medium} or a {other}: give each its own name"
    return found


def check(kind: str, form: type[_Form], catalog: Catalog, model: Model, raw: Any, region: str | None) -> _Form:
    """The input, complete: what the user sent, and the model's defaults for the rest.

    `region` is the one that the job is bound to, None where any will do. Raises InvalidInput with every fault.
    """
    _serves(kind, catalog, model, region)
    if not isinstance(raw, Mapping):
        raise InvalidInput([Fault("/input", "not_an_object", "must be an object of fields")])
    given = {text.storable(str(key)): value for key, value in raw.items() if value is not None}
    context = {"catalog": catalog, "kind": kind, "model": model}
    try:
        return form.model_validate({**_defaults(model, form), **given}, context=context)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:MOST_FAULTS]
        raise InvalidInput([_fault(form, each) for each in found]) from None


def _defaults(model: Model, form: type[BaseModel]) -> dict[str, Any]:
    """The model's defaults for this form: a model of several kinds has some for each."""
    without_default: frozenset[str] = getattr(form, "without_default", frozenset())
    return {name: value for name, value in model.default.items() if name in form.model_fields.keys() - without_default}


def _serves(kind: str, catalog: Catalog, model: Model, region: str | None) -> None:
    others = ", ".join(other.id for other in catalog.models(kind) if not other.retired)
    if kind not in model.kinds:
        made = " or ".join(model.kinds)
        message = f"{model.id} makes {made}: say so as the kind, or take a model for {kind}: {others}"
        raise InvalidInput([Fault("/model", "wrong_kind", message)])
    if model.end and model.retired_by == "notice":  # by reports alone it is taken, with a warning
        raise InvalidInput([Fault("/model", "retired_model", f"{model.end}; others for {kind}: {others}")])
    if region is not None and model.region(region) is None:
        message = f"{model.id} is not served in {region}, but in {', '.join(model.regions)}"
        raise InvalidInput([Fault("/model", "not_in_region", message)])


def _marked(annotation: Any, marks: Sequence[Any]) -> Iterator[tuple[Path, Medium]]:
    """The paths under a type at which a `Medium` is marked."""
    if medium := next((mark for mark in marks if isinstance(mark, Medium)), None):
        yield (), medium
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from media(annotation).items()
    else:
        inner: Path = ("*",) if get_origin(annotation) in (list, tuple) else ()
        is_annotated = get_origin(annotation) is Annotated
        parts, of_parts = get_args(annotation), ()
        if is_annotated:
            parts, of_parts = parts[:1], parts[1:]
        for part in parts:
            yield from (((*inner, *path), medium) for path, medium in _marked(part, of_parts))


def _hold(context: Mapping[str, Any], name: str, value: Any, given: Mapping[str, Any]) -> None:
    """Raises the fault of one field by the catalog's entry for the model."""
    model: Model = context["model"]
    if value is None:
        if name in model.requires and not given.get(_INSTEAD.get(name, "")):
            raise no("required", f"{model.id} needs it")
    elif name not in model.fields:
        takers = [other.id for other in context["catalog"].models(context["kind"]) if name in other.fields]
        if takers:
            taken = ", ".join(sorted(model.fields))
            raise no("not_taken", f"{model.id} takes {taken}; models that take {name}: {', '.join(takers)}")
    elif name in model.choices and value not in model.choices[name]:
        choices: Any = model.choices[name]
        listed = str(choices) if isinstance(choices, Sizes) else ", ".join(map(str, choices))
        raise no("not_allowed", f"{value} is not one that {model.id} takes: {listed}")


def _fault(form: type[BaseModel], found: ErrorDetails) -> Fault:
    name = str(found["loc"][-1]) if found["loc"] else ""
    message = found["msg"]
    if found["type"] == "missing":
        field = form.model_fields.get(name)
        message = f"is required: {field.description}" if field else "is required"
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name[:40], form.model_fields, n=1) if len(found["loc"]) == 1 else []
        message = "is not a field of this kind" + (f"; did you mean {near[0]}?" if near else "")
    return Fault("/input" + text.pointer(found["loc"]), _CODES.get(found["type"], found["type"]), message)
