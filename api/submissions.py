"""From a request's body to a submission that may be made: read under a bound, and every wrong field named at once.

What is wrong with the body's form and what the catalog refuses are looked for in one pass, so a client corrects a
submission once.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from api import faults
from api.context import Context
from api.problems import problem
from api.schemas import EstimateCreate, JobCreate, ResolveCreate
from worker.errors import Fault, InvalidInput
from worker.jobs import submission
from worker.jobs.submission import Prepared, Submission
from worker.kinds import OFFERED
from worker.settings import Settings

BODY_LIMIT = 1 << 20  # bytes
_SECONDS = 60
_DIGITS = 20  # of an integer: 2^63 has 19, and a sign

T = TypeVar("T", bound=BaseModel)


async def json_body(request: Request) -> Any:
    """The body as JSON; raises problems: 408 where it is not whole in time, 413, 415 and 400 for what is not JSON."""
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said != "application/json":
        raise problem(415, "not_json", "send the body as JSON, with Content-Type: application/json")
    body = await _in_time(request)
    try:
        return json.loads(body, parse_int=_integer)  # infinite and NaN go on too, to be refused where they stand
    except RecursionError:
        raise InvalidInput([Fault("", "too_deep", f"is nested more than {faults.DEPTH} levels deep")]) from None
    except ValueError as error:  # also bytes that are no UTF-8
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it cannot be decoded"
        raise problem(400, "invalid_json", f"the body is not JSON: {reason}") from None


JsonBody = Annotated[Any, Depends(json_body)]


async def _in_time(request: Request) -> bytes:
    """The body; a sender that drips would else keep its place among the requests for ever."""
    try:
        async with asyncio.timeout(_SECONDS):
            return await _bounded(request)
    except TimeoutError:
        raise problem(408, "too_slow", f"a body has to come within {_SECONDS} s") from None


async def _bounded(request: Request) -> bytes:
    """The body; its bytes are counted as they come, since Content-Length may lie."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > BODY_LIMIT:
            advice = "upload pictures, sound and documents (POST /v1/files), and name them by their keys"
            raise problem(413, "body_too_large", f"a body may have {BODY_LIMIT} bytes: {advice}")
    return bytes(read)


def job(here: Context, body: Any, on: datetime) -> Prepared:
    """The submission in a body, checked and priced for that day; raises InvalidInput with every fault."""
    return _prepared(here, JobCreate, body, on)


def estimate(here: Context, body: Any, on: datetime) -> Prepared:
    """The same of a body that has no more than kind, model and input."""
    return _prepared(here, EstimateCreate, body, on)


def decision(here: Context, body: Any) -> ResolveCreate:
    """What a body decides of a job; raises InvalidInput with every fault."""
    clean, found = faults.scrubbed(body)
    said, of_form = read(ResolveCreate, clean, here.settings)
    if said is None or found:
        raise InvalidInput(found + unsaid(of_form, found))
    return said


def read(form: type[T], body: Any, settings: Settings) -> tuple[T | None, list[Fault]]:
    """A body as that form, or its faults."""
    if not isinstance(body, dict):
        return None, [Fault("", "not_an_object", "the body is to be an object")]
    try:
        return form.model_validate(body, strict=True, context=settings), []
    except ValidationError as error:
        return None, faults.named(error)


def unsaid(found: list[Fault], already: list[Fault]) -> list[Fault]:
    """Those of the faults that are about other fields than the faults before, and not about what lies in one."""
    said = {fault.pointer for fault in already}
    return [fault for fault in found if not said.intersection(_around(fault.pointer))]


def _around(pointer: str) -> Iterator[str]:
    """The pointer, and those to all that hold what it points to."""
    while pointer:
        yield pointer
        pointer = pointer.rpartition("/")[0]
    yield ""


def _prepared(here: Context, form: type[EstimateCreate], body: Any, on: datetime) -> Prepared:
    clean, found = faults.scrubbed(body)
    said, of_form = read(form, clean, here.settings)
    prepared, of_catalog = _priced(here, said, clean, on)
    found += unsaid(of_form, found)
    found += unsaid(of_catalog, found)
    if found or prepared is None:
        raise InvalidInput(found)
    return prepared


def _priced(here: Context, said: EstimateCreate | None, body: Any, on: datetime) -> tuple[Prepared | None, list[Fault]]:
    """What the catalog says of the body, as far as it can be read."""
    asked = Submission(**said.model_dump()) if said else _legible(body)
    try:
        return submission.prepare(here.catalog, here.settings, asked, on), []
    except InvalidInput as error:
        without_input = not any(fault.pointer.startswith("/input") for fault in error.faults)
        return None, error.faults + (_of_input(asked) if without_input else [])


def _legible(body: Any) -> Submission:
    """What can be read of a body that is wrong somewhere; what the rest is taken for has its fault already."""
    said = body if isinstance(body, dict) else {}
    kind, model, wanted = said.get("kind"), said.get("model"), said.get("input")
    return Submission(
        kind=kind if isinstance(kind, str) else "",
        model=model if isinstance(model, str) else "",
        input=wanted if isinstance(wanted, dict) else {},
    )


def _of_input(asked: Submission) -> list[Fault]:
    """What is wrong with the input whatever the model: it could not be held against the one that was named."""
    if asked.kind not in OFFERED:
        return []
    try:
        OFFERED[asked.kind].input.model_validate(asked.input)
    except ValidationError as error:
        return faults.named(error, "/input")
    return []


def _integer(digits: str) -> int | float:
    """The number; infinite where it is too long, since to read one takes the square of its digits."""
    return int(digits) if len(digits) <= _DIGITS else math.inf
