"""The types of the inputs' fields: text that can be stored, links that can be followed, sizes as people write them.

Where the provider takes a link to a picture or to sound, we take the key of an object in our bucket too;
`worker/inputs` knows whether there is such a one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Any, LiteralString
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

LINK_LIMIT = 4096  # characters; signed links are long
KEY_LIMIT = 1024  # characters; S3 takes no longer keys
INLINE_LIMIT = 28_000_000  # characters of base64 that a 20 MB picture makes, the provider's cap

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_KEY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/[\w.-]+)+", re.ASCII)
_LINE_ENDS = re.compile(r"\r?\n")  # of MIME's base64, a line of 76 characters each (RFC 2045, 6.8)
_INLINE = re.compile(r"data:image/(png|jpeg|jpg|bmp|webp);base64,[A-Za-z0-9+/]+={0,2}")


def no(code: LiteralString, message: str) -> PydanticCustomError:
    """A fault of a field, for a validator to raise: a stable code, and a sentence for a person."""
    return PydanticCustomError(code, "{message}", {"message": message})


def is_storable(text: str) -> bool:
    """Whether Postgres takes the text: it refuses NUL and lone surrogates."""
    return _UNSTORABLE.search(text) is None


def storable(value: Any) -> Any:
    """JSON that others wrote, as Postgres takes it: with marks for NULs and halves of surrogate pairs, at any depth.

    A number that JSON does not have is None.
    """
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {storable(name): storable(each) for name, each in value.items()}
        case list() | tuple():
            return [storable(each) for each in value]
        case _:
            return value


def is_key(value: str) -> bool:
    """Whether it is spelled as the key of an object of a project's: "<the project's id>/…"."""
    return len(value) <= KEY_LIMIT and _KEY.fullmatch(value) is not None


def is_fetched(link: str) -> bool:
    """Whether we follow such a link: https, and http to a neighbour, whose network the operator may have named."""
    parts = urlsplit(link)
    return parts.scheme == "https" or (parts.scheme == "http" and _is_near(parts.hostname or ""))


def _is_near(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host


def _storable(text: str) -> str:
    if not is_storable(text):
        raise no("bad_text", "holds a NUL or half of a surrogate pair, which cannot be stored")
    return text


def _line(text: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise no("control_character", "holds a control character, which terminals obey; it is to be plain text")
    return text


def _link(value: str) -> str:
    if len(value) > LINK_LIMIT:
        raise no("too_long", f"is a link of {len(value)} characters; at most {LINK_LIMIT} are taken")
    if not _is_link(value):
        raise no("bad_link", "must be a link: https://…, http://… or oss://…, without a user or password in it")
    return value


def _sound(value: str) -> str:
    return value if is_key(value) else _link(value)


def _picture(value: str) -> str:
    if not value.startswith("data:"):
        return _sound(value)
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


Text = Annotated[str, AfterValidator(_storable)]
Line = Annotated[Text, AfterValidator(_line)]
Link = Annotated[str, AfterValidator(_link)]
Sound = Annotated[str, AfterValidator(_sound)]
Picture = Annotated[str, AfterValidator(_picture)]
Size = Annotated[Text, BeforeValidator(_star)]
Tier = Annotated[Text, BeforeValidator(_upper)]
