"""From a request's body to a submission, or a schedule's plan, that may be made: every wrong field is named at once.

The faults of the body's form and those that the catalog finds are looked for in one pass, so a client corrects a
submission once. A schedule's template is filled as of the next fire time, and checked as a job.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api import problems
from api.bodies import scrubbed
from api.context import Context
from api.forms import BatchForm, JobForm, ScheduleCreate
from worker.batches.checking import Options
from worker.errors import Fault, InvalidInput
from worker.jobs import submission
from worker.jobs.submission import Prepared, Submission
from worker.kinds import OFFERED
from worker.schedules import clock, plan
from worker.schedules.plan import Plan
from worker.settings import Settings

_NO_ZONE = "UTC"  # in which a template is checked whose own zone is wrong

T = TypeVar("T", bound=BaseModel)


def job(here: Context, body: Any, on: datetime) -> Prepared:
    """The submission in a body, checked and priced for that day; raises InvalidInput with every fault."""
    clean, found = scrubbed(body)
    said, of_form = _read(JobForm, clean, here.settings)
    prepared, of_catalog = _priced(here, said, clean, on)
    found += _unsaid(of_form, found)
    found += _unsaid(of_catalog, found)
    if found or prepared is None:
        raise InvalidInput(found)
    return prepared


def decision(here: Context, form: type[T], body: Any) -> T:
    """A person's decision about a job in a body of that form; raises InvalidInput with every fault."""
    clean, found = scrubbed(body)
    said, of_form = _read(form, clean, here.settings)
    if said is None or found:
        raise InvalidInput(found + _unsaid(of_form, found))
    return said


def batch(here: Context, said: Any) -> Options:
    """What is said of a batch as a whole; raises InvalidInput with every fault.

    The defaults stay as they were sent, since a row's identity is made of them.
    """
    clean, found = scrubbed(said)
    form, of_form = _read(BatchForm, clean, here.settings)
    if form is None or found:
        raise InvalidInput(found + _unsaid(of_form, found))
    return Options(form.name, clean.get("defaults", {}), form.files, form.repeat, form.webhook_url)


def schedule(here: Context, body: Any, kept: dict[str, Any], on: datetime) -> Plan:
    """The plan in a body, completed from `kept`; raises InvalidInput with every fault of form, clock and template."""
    clean, found = scrubbed(body)
    whole = {**kept, **clean} if isinstance(clean, dict) else clean
    said, of_form = _read(ScheduleCreate, whole, here.settings)
    of_rest = _of_schedule(here, whole, on) if isinstance(whole, dict) else []
    found += _unsaid(of_form, found)
    found += _unsaid(of_rest, found)
    if found or said is None:
        raise InvalidInput(found)
    return Plan(**said.model_dump())


def _read(form: type[T], body: Any, settings: Settings) -> tuple[T | None, list[Fault]]:
    """A body as that form, or its faults."""
    if not isinstance(body, dict):
        return None, [Fault("", "not_an_object", "the body must be an object")]
    try:
        return form.model_validate(body, strict=True, context=settings), []
    except ValidationError as error:
        return None, problems.faults(error)


def _unsaid(found: list[Fault], already: list[Fault]) -> list[Fault]:
    """The faults about other fields than those that have a fault already, and about no field inside one of them."""
    said = {fault.pointer for fault in already}
    return [fault for fault in found if not said.intersection(_around(fault.pointer))]


def _around(pointer: str) -> Iterator[str]:
    """The pointer, and the pointers to all values around it."""
    while pointer:
        yield pointer
        pointer = pointer.rpartition("/")[0]
    yield ""


def _priced(here: Context, said: JobForm | None, body: Any, on: datetime) -> tuple[Prepared | None, list[Fault]]:
    """What the catalog says of the body, as far as it can be read."""
    asked = Submission(**said.model_dump()) if said else _legible(body)
    try:
        return submission.prepare(here.catalog, here.settings, asked, on), []
    except InvalidInput as error:
        without_input = not any(fault.pointer.startswith("/input") for fault in error.faults)
        return None, error.faults + (_of_input(asked) if without_input else [])


def _legible(body: Any) -> Submission:
    """What can be read of a body that is wrong somewhere; the other fields have their faults already."""
    said = body if isinstance(body, dict) else {}
    kind, model, wanted = said.get("kind"), said.get("model"), said.get("input")
    return Submission(
        kind=kind if isinstance(kind, str) else "",
        model=model if isinstance(model, str) else "",
        input=wanted if isinstance(wanted, dict) else {},
    )


def _of_input(asked: Submission) -> list[Fault]:
    """What is wrong with the input whatever the model, where it could not be checked with the one that was named."""
    if asked.kind not in OFFERED:
        return []
    try:
        OFFERED[asked.kind].input.model_validate(asked.input)
    except ValidationError as error:
        return problems.faults(error, "/input")
    return []


def _of_schedule(here: Context, whole: dict[str, Any], on: datetime) -> list[Fault]:
    """What is wrong with a schedule's clock and its template."""
    expression, time_zone = (_text(whole.get(name)) for name in ("cron", "time_zone"))
    of_clock = clock.faults(expression, time_zone)
    template = whole.get("template")
    if not isinstance(template, dict):
        return of_clock
    fire_at = None if of_clock else clock.after(expression, time_zone, on)
    zone = _NO_ZONE if of_clock else time_zone
    return of_clock + _of_template(here, template, fire_at or on, zone)


def _of_template(here: Context, template: dict[str, Any], fire_at: datetime, time_zone: str) -> list[Fault]:
    filled, found = plan.rehearse(template, fire_at, time_zone)
    if template.get("not_after") is not None:
        found = [
            *found,
            Fault("/not_after", "not_allowed", "is an instant, and a schedule has many runs"),
        ]
    try:
        job(here, filled, fire_at)
    except InvalidInput as error:
        found = found + _unsaid(error.faults, found)
    return [Fault("/template" + fault.pointer, fault.code, fault.message) for fault in found]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
