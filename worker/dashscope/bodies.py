"""JSON bodies read leniently: a field of another type than ours is as good as missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_DIGITS = 18  # of a number that a bigint holds, whatever they are


def read(data: bytes | str) -> dict[str, Any]:
    """The body, if it is a JSON object, else an empty one; without what cannot be stored."""
    try:
        body = _storable(json.loads(data, parse_int=_whole))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _whole(digits: str) -> int | float:
    """A whole number that a bigint holds; else the float nearest to it: Python reads no more than 4,300 digits."""
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def _storable(value: Any) -> Any:
    """The value without what Postgres refuses: NUL, halves of characters that a cut left behind, and no numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_storable(part) for part in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(part) for name, part in value.items()}
    return value


def field(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A field that is an object; empty when it is missing or anything else."""
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def word(body: Mapping[str, Any], name: str) -> str:
    """A field as text; empty when it is missing, null or no scalar."""
    value = body.get(name)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def words(body: Mapping[str, Any], name: str) -> str:
    """A field as text; of a list, as the multimodal path has it, the texts of its parts."""
    return "".join(word(part, "text") for part in listed(body, name)) or word(body, name)


def listed(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in a field that is a list; none when it is missing or anything else."""
    value = body.get(name)
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def number(body: Mapping[str, Any], name: str) -> int:
    """A field as a whole number; 0 when it is missing or none."""
    digits = word(body, name)
    return int(digits) if digits.isdecimal() and len(digits) <= _DIGITS else 0
