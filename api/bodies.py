"""Bodies of requests: JSON and files, each read as it comes, under a bound of bytes and of time.

A file is whole on the disk before anything else is done with it. So a sender on a slow line holds no thread, no
connection and no memory, and what is wrong with a file is known before the bucket sees it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api.context import Here, Transferring
from api.problems import problem
from worker import text
from worker.errors import Fault, InvalidInput

BODY_LIMIT = 1 << 20  # bytes
FIELD = "file"  # the part of a form that holds a file
_SECONDS = 60
_FILE_SECONDS = 600
_FRAMING = 64 << 10  # bytes of a form beside the file: boundaries and the part's headers

T = TypeVar("T")


async def json_body(request: Request) -> Any:
    """The body as JSON; raises problems: 408 where it is not whole in time, 413, 415 and 400 for what is not JSON."""
    if _media_type(request) != "application/json":
        raise problem(415, "not_json", "send the body as JSON, with Content-Type: application/json")
    advice = "upload pictures, sound and documents (POST /v1/files), and name them by their keys"
    too_large = f"a body may have {BODY_LIMIT} bytes: {advice}"
    body = await _in_time(_whole(_chunks(request, BODY_LIMIT, too_large)), _SECONDS, "body")
    try:
        return json.loads(body, parse_int=text.integer)  # infinity and NaN too: they are refused by name later
    except RecursionError:
        raise InvalidInput([Fault("", "too_deep", f"is nested more than {text.DEPTH} levels deep")]) from None
    except ValueError as error:  # also bytes that are not UTF-8
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it cannot be decoded"
        raise problem(400, "invalid_json", f"the body is not JSON: {reason}") from None


async def json_or_nothing(request: Request) -> Any:
    """The body as JSON; an empty object where there is none. Raises as `json_body` does."""
    is_empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    return {} if is_empty else await json_body(request)


JsonBody = Annotated[Any, Depends(json_body)]
MayBeJson = Annotated[Any, Depends(json_or_nothing)]


async def upload(request: Request, here: Here, _: Transferring) -> AsyncIterator[UploadFile]:
    """The file of a multipart body, for as long as the request lasts.

    Raises problems: 408 where it is not whole in ten minutes, 413 over the limit, 415 and 400 for what is no multipart
    form; InvalidInput unless it holds exactly one part, called `file`, with a file name.
    """
    if _media_type(request) != "multipart/form-data":
        raise problem(415, "not_multipart", f"send the file as multipart/form-data, in a part called {FIELD}")
    form = await _in_time(_form(request, here.settings.max_input_bytes), _FILE_SECONDS, "file")
    try:
        yield _only(form, here.settings.max_input_bytes)
    finally:
        await form.close()


Given = Annotated[UploadFile, Depends(upload)]


def scrubbed(value: Any) -> tuple[Any, list[Fault]]:
    """The body without what Postgres refuses or what is nested too deep, and the faults of those places."""
    clean, found = text.scrubbed(value)
    return clean, [Fault(*slip) for slip in found]


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _in_time(reading: Awaitable[T], seconds: int, what: str) -> T:
    """What is read; without a limit a sender that drips would keep its place among the requests forever."""
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError:
        raise problem(408, "too_slow", f"a {what} has to come within {seconds} s") from None


async def _chunks(request: Request, limit: int, too_large: str) -> AsyncGenerator[bytes, None]:
    """The body; its bytes are counted as they come, since Content-Length may lie."""
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > limit:
            raise problem(413, "body_too_large", too_large)
        yield chunk


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _form(request: Request, limit: int) -> FormData:
    chunks = _chunks(request, limit + _FRAMING, _too_large(limit))
    try:
        return await MultiPartParser(request.headers, chunks, max_files=1, max_fields=0).parse()
    except MultiPartException as error:
        raise problem(400, "invalid_form", f"the form cannot be read: {error.message}") from None


def _only(form: FormData, limit: int) -> UploadFile:
    found = form.get(FIELD)
    if not isinstance(found, UploadFile):
        raise InvalidInput([Fault(f"/{FIELD}", "required", f"is required: a part called {FIELD}, with a file name")])
    if (found.size or 0) > limit:
        raise problem(413, "body_too_large", _too_large(limit))
    return found


def _too_large(limit: int) -> str:
    return f"a file may have {limit} bytes"
