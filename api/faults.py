"""Wrong fields, named: pydantic's words as ours, and text that cannot be stored, found wherever it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from worker.errors import MOST_FAULTS, Fault

DEPTH = 32  # of objects and lists in one another; an input needs four
NUMBERS = 2**63  # Postgres keeps integers below it, and no field of ours comes near it

_CODES = {
    "missing": "required",
    "extra_forbidden": "unknown_field",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "string_pattern_mismatch": "not_allowed",
    "literal_error": "not_allowed",
}
_MESSAGES = {"missing": "is required", "extra_forbidden": "is no field here"}
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def fault(slip: Mapping[str, Any], prefix: str = "") -> Fault:
    """One of pydantic's errors as a fault; where the model as a whole was refused, `at` in its context says whose."""
    at = slip.get("ctx", {}).get("at")
    where = slip["loc"] if at is None else (*slip["loc"], at)
    return Fault(
        prefix + pointer(where), _CODES.get(slip["type"], slip["type"]), _MESSAGES.get(slip["type"], slip["msg"])
    )


def named(error: ValidationError, prefix: str = "") -> list[Fault]:
    """A validation's errors as faults, the first of them where there are many."""
    slips = error.errors(include_url=False, include_input=False)[:MOST_FAULTS]
    return [fault(slip, prefix) for slip in slips]


def pointer(where: tuple[Any, ...]) -> str:
    """A JSON pointer (RFC 6901) that can be written as UTF-8, whatever the names hold."""
    steps = (_storable(str(step)).replace("~", "~0").replace("/", "~1") for step in where)
    return "".join("/" + step for step in steps)


def scrubbed(value: Any) -> tuple[Any, list[Fault]]:
    """The body without what Postgres refuses and without what is nested too deep, and where that was."""
    found: list[Fault] = []
    return _scrub(value, (), found), found


def _scrub(value: Any, where: tuple[Any, ...], found: list[Fault]) -> Any:
    if len(where) > DEPTH:
        return _refused(None, where, found, "too_deep", f"lies more than {DEPTH} levels deep")
    if isinstance(value, str):
        return _text(value, where, found)
    if isinstance(value, int | float) and not -NUMBERS <= value < NUMBERS:  # also what is no number
        return _refused(None, where, found, "bad_number", "is no number below 2^63, which can be kept")
    if isinstance(value, list):
        return [_scrub(item, (*where, n), found) for n, item in enumerate(value)]
    if isinstance(value, dict):
        return {_text(key, (*where, key), found): _scrub(item, (*where, key), found) for key, item in value.items()}
    return value


def _text(value: str, where: tuple[Any, ...], found: list[Fault]) -> str:
    if not _UNSTORABLE.search(value):
        return value
    said = "holds a NUL or half of a surrogate pair, which cannot be stored"
    _refused(None, where, found, "bad_text", said)
    return _storable(value)


def _refused(instead: Any, where: tuple[Any, ...], found: list[Fault], code: str, message: str) -> Any:
    """What goes on in a value's stead, so that the rest is looked through too."""
    if len(found) < MOST_FAULTS:
        found.append(Fault(pointer(where), code, message))
    return instead


def _storable(text: str) -> str:
    return _UNSTORABLE.sub("\ufffd", text)
