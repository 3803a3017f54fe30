"""Refusals and failures as problems (RFC 9457, `application/problem+json`), with nothing of our insides in them.

`code` is stable and `detail` is for a person; `request_id` finds the request in the log. Where input is wrong,
`errors` names every wrong field: `pointer` is a JSON pointer into the body, or begins with /query or /header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_problem.error import Problem
from fastapi_problem.handler import ExceptionHandler, new_exception_handler
from pydantic import ConfigDict, Field, ValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from worker import database, errors, log, text
from worker.batches.document import RowFault
from worker.document import Answer
from worker.errors import MOST_FAULTS, Fault
from worker.storage import StorageTrouble

TYPE = "urn:noria:problem:"
MEDIA_TYPE = "application/problem+json"

_CODES = {
    "missing": "required",
    "extra_forbidden": "unknown_field",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "string_pattern_mismatch": "not_allowed",
    "literal_error": "not_allowed",
}
_MESSAGES = {"missing": "is required", "extra_forbidden": "is not a field here"}
_STATUS_CODES = {400: "bad_request", 404: "no_such_route", 405: "method_not_allowed"}
_SAYS = {400: "the request cannot be read", 404: "there is no such route; /docs shows those that there are"}
_AWAY_SECONDS = 2  # before a client asks a database again that is away

_log = log.get(__name__)


class ProblemDocument(Answer):
    """Why a request was refused, or failed (RFC 9457)."""

    type: str = Field(examples=["urn:noria:problem:invalid_input"])
    title: str
    status: int
    code: str = Field(description="stable, for programs", examples=["invalid_input"])
    request_id: str = Field(description="finds the request in the log; also in X-Request-Id")
    detail: str | None = Field(None, description="for people")
    errors: list[RowFault | Fault] | None = Field(None, description="every wrong field, where input is wrong")

    # unlike other answers it leaves out what there is none of
    model_config = ConfigDict(json_schema_serialization_defaults_required=False)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The statuses with which a route refuses, for its `responses`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem(status: int, code: str, detail: str, *, retry_after: int | None = None, **extras: Any) -> Problem:
    """A problem to raise or to answer with; `retry_after` is in seconds."""
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return Problem(HTTPStatus(status).phrase, type_=code, detail=detail, status=status, headers=headers, **extras)


def answer(request: Request, error: Exception) -> Response:
    """The answer to an error of whatever kind; where the fault is ours the log gets the cause."""
    made = _HANDLER(request, error)
    if made.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("a request failed", request=request.scope["state"]["request_id"], exc_info=error)
    return made


def handle(app: FastAPI) -> None:
    """Makes the app answer every error with a problem."""
    for error in (Problem, RequestValidationError, HTTPException, *_HANDLERS):
        app.add_exception_handler(error, answer)


def fault(slip: Mapping[str, Any], prefix: str = "") -> Fault:
    """One of pydantic's errors as a fault; `at` in its context names the field where the whole model was refused."""
    at = slip.get("ctx", {}).get("at")
    where = slip["loc"] if at is None else (*slip["loc"], at)
    return Fault(prefix + text.pointer(where), _CODES.get(slip["type"], slip["type"]), _message(slip))


def _message(slip: Mapping[str, Any]) -> str:
    of = slip.get("ctx", {})
    if slip["type"] == "too_long" and of.get("field_type") == "Value":  # a text, which pydantic takes for a list
        return f"String should have at most {of['max_length']} characters"
    return str(_MESSAGES.get(slip["type"], slip["msg"]))


def faults(error: ValidationError, prefix: str = "") -> list[Fault]:
    """A validation's errors as faults, the first of them where there are many."""
    slips = error.errors(include_url=False, include_input=False)[:MOST_FAULTS]
    return [fault(slip, prefix) for slip in slips]


def _invalid(_: Any, __: Request, error: errors.InvalidInput) -> Problem:
    return _of_faults(error.faults)


def _unreadable(_: Any, __: Request, error: RequestValidationError) -> Problem:
    slips = error.errors()
    if any(slip["loc"][0] == "path" for slip in slips):
        return problem(404, errors.NotFound.code, "nothing has an id of that form")
    return _of_faults([fault(slip) for slip in slips[:MOST_FAULTS]])


def _of_faults(found: list[Fault]) -> Problem:
    wrong = "; ".join(f"{fault.pointer or '/'} {fault.message}" for fault in found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    more += ": no further ones were looked for" if len(found) >= MOST_FAULTS else ""
    return problem(422, errors.InvalidInput.code, wrong + more, errors=[asdict(fault) for fault in found])


def _refused(_: Any, __: Request, error: errors.NotFound | errors.Conflict) -> Problem:
    return problem(404 if isinstance(error, errors.NotFound) else 409, error.code, str(error))


def _http(_: Any, __: Request, error: HTTPException) -> Problem:
    status = error.status_code
    made = problem(status, _STATUS_CODES.get(status, f"http_{status}"), _SAYS.get(status, str(error.detail)))
    made.headers = {**error.headers} if error.headers else None
    return made


def _database(_: Any, __: Request, error: DBAPIError) -> Problem:
    return _away(_, __, error) if database.is_away(error) else _internal()


def _away(_: Any, __: Request, ___: Exception) -> Problem:
    return problem(503, "database_away", "the database does not answer: ask again", retry_after=_AWAY_SECONDS)


def _storage(_: Any, __: Request, ___: StorageTrouble) -> Problem:
    return problem(503, StorageTrouble.code, "the bucket does not answer: ask again", retry_after=_AWAY_SECONDS)


def _internal(_: str = "") -> Problem:
    return problem(500, "internal", "this is a fault of Noria's own; the log has it under the request_id")


def _finished(content: dict[str, Any], request: Request, response: JSONResponse) -> tuple[dict[str, Any], Response]:
    """Adds to every problem its code and the request's id."""
    code = content["type"].removeprefix(TYPE)
    content |= {"code": code, "request_id": request.scope["state"]["request_id"]}
    response.body = response.render(content)
    return content, response


_HANDLERS: dict[type[Exception], Callable[..., Problem]] = {
    errors.InvalidInput: _invalid,
    errors.NotFound: _refused,
    errors.Conflict: _refused,
    StorageTrouble: _storage,
    DBAPIError: _database,
    PoolTimeout: _away,
}
_HANDLER: ExceptionHandler = new_exception_handler(
    handlers=dict(_HANDLERS),
    http_exception_handler=_http,
    request_validation_handler=_unreadable,
    unhandled_wrappers={"default": _internal},  # type: ignore[dict-item]
    post_hooks=[_finished],
    documentation_uri_template=TYPE + "{type}",
)
