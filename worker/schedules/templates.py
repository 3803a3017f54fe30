"""What a schedule submits: a submission in whose strings `{{date}}` and the like stand for what a run is about.

Everything is told from the fire time, in the schedule's zone, never from the clock: a late run says what it would have
said in time. `{{{{` stands for two braces; one brace is a brace.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self
from zoneinfo import ZoneInfo

from worker.errors import MOST_FAULTS, Fault

VARIABLES = {
    "date": "the day of the fire time: 2026-03-01",
    "yesterday": "the day before it: 2026-02-28",
    "time": "its time of day: 02:30",
    "week": "its ISO week: 2026-W09",
    "month": "its month: 2026-03",
    "fire_at": "the fire time: 2026-03-01T02:30:00+08:00",
    "since": "the `until` of the last run that submitted a job; a day before this `until` at first",
    "until": "a minute before the fire time, so that what is being written then falls into the next run",
    "run": "the run's id",
}
_EDGE = timedelta(minutes=1)
_FIRST = timedelta(days=1)
# A name is read once and never given back (`*+`): else blanks are tried in as many ways as there are pairs of them.
_SPOKEN = re.compile(r"(?P<braces>\{\{\{\{)|\{\{(?P<name>[^{}]*+)\}\}|(?P<open>\{\{)")


@dataclass(frozen=True)
class Occasion:
    """What one run is about. Windows are half-open, and each begins where the last ended: `since` until `until`."""

    fire_at: datetime
    time_zone: str
    since: datetime
    until: datetime
    run: uuid.UUID

    @classmethod
    def of(cls, fire_at: datetime, time_zone: str, last_until: datetime | None, run: uuid.UUID) -> Self:
        """The occasion of a fire time, after the window that ended at `last_until` (None: it is the first)."""
        until = fire_at - _EDGE
        if last_until is None:
            return cls(fire_at, time_zone, until - _FIRST, until, run)
        return cls(fire_at, time_zone, last_until, max(until, last_until), run)

    def values(self) -> dict[str, str]:
        """Each variable's value."""
        zone = ZoneInfo(self.time_zone)
        local = self.fire_at.astimezone(zone)
        year, week, _ = local.isocalendar()
        return {
            "date": local.date().isoformat(),
            "yesterday": (local.date() - timedelta(days=1)).isoformat(),
            "time": f"{local:%H:%M}",
            "week": f"{year}-W{week:02}",
            "month": f"{local:%Y-%m}",
            "fire_at": local.isoformat(timespec="seconds"),
            "since": self.since.astimezone(zone).isoformat(timespec="seconds"),
            "until": self.until.astimezone(zone).isoformat(timespec="seconds"),
            "run": str(self.run),
        }


def fill(template: Any, values: Mapping[str, str]) -> tuple[Any, list[Fault]]:
    """The template with its variables replaced, and what was no variable, by where it stands."""
    found: list[Fault] = []
    return _filled(template, values, "", found), found


def _filled(value: Any, values: Mapping[str, str], where: str, found: list[Fault]) -> Any:
    if isinstance(value, str):
        return _spoken(value, values, where, found)
    if isinstance(value, list):
        return [_filled(item, values, f"{where}/{n}", found) for n, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            _spoken(name, values, _below(where, name), found): _filled(item, values, _below(where, name), found)
            for name, item in value.items()
        }
    return value


def _spoken(text: str, values: Mapping[str, str], where: str, found: list[Fault]) -> str:
    def replaced(match: re.Match[str]) -> str:
        if match["braces"]:
            return "{{"
        name = (match["name"] or "").strip()
        if name in values:
            return values[name]
        if len(found) < MOST_FAULTS:
            found.append(_fault(match, name, values, where))
        return match[0]

    return _SPOKEN.sub(replaced, text)


def _fault(match: re.Match[str], name: str, values: Mapping[str, str], where: str) -> Fault:
    if match["open"]:
        return Fault(where, "bad_variable", "has {{ that begins no variable; {{{{ stands for two braces")
    known = ", ".join(values)
    return Fault(where, "unknown_variable", f"has {{{{{name[:40]}}}}}, and variables are: {known}")


def _below(where: str, name: str) -> str:
    return where + "/" + name.replace("~", "~0").replace("/", "~1")
