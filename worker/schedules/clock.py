"""When a schedule fires: cron expressions of five fields, in a zone of the tz database.

A fire time is an instant. Where clocks change, Debian's rules hold, as cronsim has them: a fixed time that is skipped
fires as soon as the gap ends, one that comes twice fires the first time; where the minute or the hour begins with
a star, each instant that reads so fires.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from worker.errors import Fault, InvalidInput

_FIELDS = 5  # minute, hour, day, month, weekday; a sixth would be seconds, and a minute is the least
_INVERTED = re.compile(r"Etc/GMT([+-])(\d{1,2})")
_OFFSET = re.compile(r"(utc|gmt)?[+-]\d{1,2}(:?\d\d)?")
_UTC_8 = re.compile(r"(utc|gmt)?\+0?8(:?00)?")
_CHINA = frozenset(
    {"cst", "bjt", "china", "chinastandardtime", "beijing", "beijingtime", "asia/beijing", "asia/peking", "shanghai"}
)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def faults(expression: str, time_zone: str) -> list[Fault]:
    """What is wrong with either, as faults of the fields `cron` and `time_zone`."""
    found = [_cron_fault(expression), zone_fault(time_zone)]
    return [fault for fault in found if fault]


def after(expression: str, time_zone: str, moment: datetime) -> datetime | None:
    """The first fire time later than `moment`, in UTC; None when there is none in 50 years.

    Raises InvalidInput for an expression or a zone that this machine cannot read.
    """
    if found := faults(expression, time_zone):
        raise InvalidInput(found)
    return next(_fire_times(expression, ZoneInfo(time_zone), moment), None)


def explain(expression: str) -> str:
    """The expression in English: `At 02:30 every day`; the expression itself where it cannot be read."""
    if _cron_fault(expression):
        return expression
    return str(CronSim(expression, _EPOCH).explain())


def _fire_times(expression: str, zone: ZoneInfo, moment: datetime) -> Iterator[datetime]:
    """Compared as instants: local times of the hour that comes twice are out of order."""
    found = (local.astimezone(UTC) for local in CronSim(expression, moment.astimezone(zone)))
    return (fires for fires in found if fires > moment)


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def zone_fault(name: str) -> Fault | None:
    """What is wrong with a zone's name; None: nothing."""
    if name in _zones():
        return None
    if advice := _of_an_offset(name):
        return Fault("/time_zone", "unknown_zone", f"is not a zone of the tz database, like Asia/Shanghai{advice}")
    known = {zone.lower(): zone for zone in _zones()}
    near = difflib.get_close_matches(name[:40].lower(), known, n=1)
    advice = f"; did you mean {known[near[0]]}?" if near else ""
    return Fault("/time_zone", "unknown_zone", f"is not a zone of the tz database, like Asia/Shanghai{advice}")


def zone_warning(name: str) -> str | None:
    """Why an existing zone is probably not the one that is meant; None: it is."""
    found = _INVERTED.fullmatch(name)
    if found is None or found[2] == "0":
        return None
    sign = "-" if found[1] == "+" else "+"
    return f"{name} is UTC{sign}{found[2]}: its sign is the other way round (POSIX). UTC+8 is Asia/Shanghai"


def _of_an_offset(name: str) -> str:
    """Advice for an offset or another name of China's zone, given as a zone; empty for other names."""
    plain = re.sub(r"[\s_]", "", name).lower()
    if plain in _CHINA or _UTC_8.fullmatch(plain):
        return "; did you mean Asia/Shanghai?"
    return ": an offset is not a zone, name a place" if _OFFSET.fullmatch(plain) else ""


def _cron_fault(expression: str) -> Fault | None:
    fields = len(expression.split())
    if fields != _FIELDS:
        message = f"must have five fields (minute, hour, day, month, weekday), this has {fields}"
        return Fault("/cron", "bad_cron", message)
    try:
        ever = list(islice(CronSim(expression, _EPOCH), 1))
    except CronSimError as error:
        return Fault("/cron", "bad_cron", f"has a {str(error).lower()}")
    return None if ever else Fault("/cron", "never", "must be a time that comes")
