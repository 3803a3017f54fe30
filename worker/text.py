"""Text and values as they are written down: times, digests, JSON pointers, and text that Postgres can keep."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # what Postgres keeps in no text
DEPTH = 32  # of nested objects and lists in what users send; an input needs four
_DIGITS = 20  # of an integer: 2^63 has 19, and a sign
_NUMBERS = 2**63  # the limit of integers in Postgres; no field of ours comes near it

_SLIPS = 100  # that are noted in one value: nobody corrects more

# What a spreadsheet takes for a formula, the full-width signs of Chinese and Japanese ones too; but for a number.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
# Where lists are separated by semicolons, Excel parts the lines of a CSV at those and at line ends within a cell.
# Possessive: else a run of line ends takes the square of its length.
_INNER = re.compile(r"([;\t\r\n]\s*+\"?+)([=+\-@＝＋－＠]?)")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")

BAD_TEXT = "holds a NUL or half of a surrogate pair, which cannot be stored"
Slip = tuple[str, str, str]  # a JSON pointer, a code, and a message: what `errors.Fault` is made of
T = TypeVar("T")


def moment(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None


def digest(value: Any) -> bytes:
    """SHA-256 of the value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


def storable(value: str) -> str:
    """The text as Postgres can keep it: NULs and halves of surrogate pairs become U+FFFD."""
    return UNSTORABLE.sub("\ufffd", value)


def pointer(steps: Iterable[object]) -> str:
    """A JSON pointer (RFC 6901) that can be written as UTF-8, whatever the names hold."""
    return "".join("/" + storable(str(step)).replace("~", "~0").replace("/", "~1") for step in steps)


def integer(digits: str) -> int | float:
    """The number, for `json.loads`; infinite where it is too long: reading one takes the square of its digits."""
    return int(digits) if len(digits) <= _DIGITS else math.inf


def scrubbed(value: Any) -> tuple[Any, list[Slip]]:
    """JSON that users sent, without what Postgres refuses or what is nested too deep; and those places."""
    found: list[Slip] = []
    return _scrub(value, (), found), found


def _scrub(value: Any, where: tuple[Any, ...], found: list[Slip]) -> Any:
    if len(where) > DEPTH:
        return _refused(None, where, found, "too_deep", f"lies more than {DEPTH} levels deep")
    if isinstance(value, str):
        return _scrub_text(value, where, found)
    if isinstance(value, int | float) and not -_NUMBERS <= value < _NUMBERS:  # NaN too
        return _refused(None, where, found, "bad_number", "must be a number below 2^63")
    if isinstance(value, list):
        return [_scrub(item, (*where, n), found) for n, item in enumerate(value)]
    if isinstance(value, dict):
        items = ((name, (*where, name), item) for name, item in value.items())
        return {_scrub_text(name, below, found): _scrub(item, below, found) for name, below, item in items}
    return value


def _scrub_text(value: str, where: tuple[Any, ...], found: list[Slip]) -> str:
    if not UNSTORABLE.search(value):
        return value
    return _refused(storable(value), where, found, "bad_text", BAD_TEXT)


def _refused(instead: T, where: tuple[Any, ...], found: list[Slip], code: str, message: str) -> T:
    """Notes the slip; `instead` stands in for the value, so that the rest is looked through too."""
    if len(found) < _SLIPS:
        found.append((pointer(where), code, message))
    return instead


def csv_of(rows: Iterable[Sequence[Any]]) -> bytes:
    """The rows as CSV in UTF-8, CRLF, with no cell that a spreadsheet would carry out as a formula."""
    written = io.StringIO()
    csv.writer(written).writerows([_harmless(cell) for cell in row] for row in rows)
    return written.getvalue().encode()


def _harmless(cell: Any) -> Any:
    """The cell as text where a spreadsheet would carry it, or a part of it, out."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return ("'" if _FORMULA.match(cell) else "") + _INNER.sub(lambda at: at[1] + (f"'{at[2]}" if at[2] else ""), cell)
