"""Text and values as they are written down: times, digests, JSON pointers, and text that Postgres can keep."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # what Postgres keeps in no text


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
