"""The sandbox's clock: true wall time, moved by an offset that a test may set.

Instants are epoch seconds. Run times may be scaled; a stamp never is.
"""

import time
from datetime import UTC, datetime, timedelta, timezone

BEIJING = timezone(timedelta(hours=8))
DAY = 86_400.0


def now(offset_seconds: float) -> float:
    """Return the sandbox's present instant, in epoch seconds."""
    return time.time() + offset_seconds


def stamp(instant: float) -> str:
    """Return a task's time string: `2026-11-20 02:10:00.101`, wall clock of UTC+8, without a zone.

    Alibaba docs, "Manage asynchronous tasks"; the zone is what recorded answers show.
    """
    return datetime.fromtimestamp(instant, BEIJING).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def from_compact(text: str) -> float:
    """Return the instant of a list parameter such as `20261120000000` (UTC+8), or raise ValueError."""
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=BEIJING).timestamp()


def from_stamp(text: str) -> float:
    """Return the instant of a time such as `2026-10-10 00:00:00` (UTC+8), or raise ValueError."""
    return datetime.fromisoformat(text).replace(tzinfo=BEIJING).timestamp()


def day(instant: float) -> str:
    """Return the date of an instant as `20261120`, as links carry it."""
    return datetime.fromtimestamp(instant, BEIJING).strftime("%Y%m%d")


def http_date(instant: float) -> str:
    """Return an instant as HTTP headers write it."""
    return datetime.fromtimestamp(instant, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def iso(instant: float) -> str:
    """Return an instant as OSS writes it: `2026-11-21T02:53:25.000Z`."""
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def from_iso(text: str) -> float:
    """Return the instant of a time as OSS writes it, or raise ValueError."""
    return datetime.fromisoformat(text).timestamp()
