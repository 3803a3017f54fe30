"""From a request's body to a schedule's plan: its template is filled as of the next fire time, and checked as a job.

What is wrong with the form, the clock and the template is named in one answer.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from api import faults, submissions
from api.context import Context
from api.schemas import ScheduleCreate
from worker.errors import Fault, InvalidInput
from worker.schedules import cron, editing
from worker.schedules.editing import Plan

_NO_ZONE = "UTC"  # for looking at a template whose zone is wrong


def plan(here: Context, body: Any, kept: dict[str, Any], on: datetime) -> Plan:
    """The plan in a body, where it says nothing that of `kept`; raises InvalidInput with every fault."""
    clean, found = faults.scrubbed(body)
    whole = {**kept, **clean} if isinstance(clean, dict) else clean
    said, of_form = submissions.read(ScheduleCreate, whole, here.settings)
    of_rest = _faults(here, whole, on) if isinstance(whole, dict) else []
    found += submissions.unsaid(of_form, found)
    found += submissions.unsaid(of_rest, found)
    if found or said is None:
        raise InvalidInput(found)
    return Plan(**said.model_dump())


def _faults(here: Context, whole: dict[str, Any], on: datetime) -> list[Fault]:
    expression, time_zone = (_text(whole.get(name)) for name in ("cron", "time_zone"))
    of_clock = cron.faults(expression, time_zone)
    template = whole.get("template")
    if not isinstance(template, dict):
        return of_clock
    fire_at = None if of_clock else cron.after(expression, time_zone, on)
    zone = _NO_ZONE if of_clock else time_zone
    return of_clock + _of_template(here, template, fire_at or on, zone)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _of_template(here: Context, template: dict[str, Any], fire_at: datetime, time_zone: str) -> list[Fault]:
    filled, found = editing.rehearse(template, fire_at, time_zone)
    try:
        submissions.job(here, filled, fire_at)
    except InvalidInput as error:
        found = found + submissions.unsaid(error.faults, found)
    return [Fault("/template" + fault.pointer, fault.code, fault.message) for fault in found]
