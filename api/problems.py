"""Every refusal and failure as a problem (RFC 9457, `application/problem+json`), and nothing of our insides in it.

`code` is stable and `detail` is for a person; `request_id` finds the request in the log. Where input is wrong,
`errors` names every wrong field: `pointer` is a JSON pointer into the body, or begins with /query or /header.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_problem.error import Problem
from fastapi_problem.handler import ExceptionHandler, new_exception_handler
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api import faults
from worker import database, errors, log
from worker.storage import StorageTrouble

TYPE = "urn:noria:problem:"
MEDIA_TYPE = "application/problem+json"

_STATUS_CODES = {400: "bad_request", 404: "no_such_route", 405: "method_not_allowed"}
_SAYS = {400: "the request cannot be read", 404: "there is no such route; /docs shows those that there are"}
_AWAY_SECONDS = 2  # before a client asks a database again that is away

_log = log.get(__name__)


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


def _invalid(_: Any, __: Request, error: errors.InvalidInput) -> Problem:
    return _of_faults(error.faults)


def _unreadable(_: Any, __: Request, error: RequestValidationError) -> Problem:
    slips = error.errors()
    if any(slip["loc"][0] == "path" for slip in slips):
        return problem(404, errors.NotFound.code, "an id of that form belongs to nothing")
    return _of_faults([faults.fault(slip) for slip in slips[: errors.MOST_FAULTS]])


def _of_faults(found: list[errors.Fault]) -> Problem:
    shown = [{"pointer": fault.pointer, "code": fault.code, "message": fault.message} for fault in found]
    wrong = "; ".join(f"{fault.pointer or '/'} {fault.message}" for fault in found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    more += ": no further ones were looked for" if len(found) >= errors.MOST_FAULTS else ""
    return problem(422, errors.InvalidInput.code, wrong + more, errors=shown)


def _not_found(_: Any, __: Request, error: errors.NotFound) -> Problem:
    return problem(404, error.code, str(error))


def _conflict(_: Any, __: Request, error: errors.Conflict) -> Problem:
    return problem(409, error.code, str(error))


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
    """What every problem says: its code, and which request it was."""
    code = content["type"].removeprefix(TYPE)
    content |= {"code": code, "request_id": request.scope["state"]["request_id"]}
    response.body = response.render(content)
    return content, response


_HANDLERS: dict[type[Exception], Callable[..., Problem]] = {
    errors.InvalidInput: _invalid,
    errors.NotFound: _not_found,
    errors.Conflict: _conflict,
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
