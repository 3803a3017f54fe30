"""Bodies of requests: JSON and files, each read as it comes, under a bound of bytes and of time.

A file is whole on the disk before anything else is done with it. So a sender on a slow line holds no thread, no
connection and no memory, and what is wrong with a file is known before the bucket sees it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, BinaryIO, TypeVar
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api.context import Drafting, Here, Receiving, Transferring
from api.problems import problem
from worker import text
from worker.errors import Fault, InvalidInput

BODY_LIMIT = 1 << 20  # bytes
ITEMS_LIMIT = 4 << 20  # bytes of a batch that comes as JSON
ROWS_LIMIT = 64 << 20  # bytes of a batch's file
FIELD = "file"  # the part of a form that holds a file
OPTIONS = "options"  # the part that says how a batch's file is to be taken
JSON, _MULTIPART = "application/json", "multipart/form-data"
_FIELDS, _FIELDS_LIMIT = 64, 256 << 10  # of a form without a file: how many, and bytes
_SECONDS = 60
_FILE_SECONDS = 600
_FRAMING = 64 << 10  # bytes of a form beside the file: boundaries and the part's headers

T = TypeVar("T")


async def json_body(request: Request) -> Any:
    """The body as JSON; raises problems: 408 where it is not whole in time, 413, 415 and 400 for what is not JSON."""
    if _media_type(request) != JSON:
        raise problem(415, "not_json", "send the body as JSON, with Content-Type: application/json")
    return await _json(
        request, BODY_LIMIT, "upload pictures, sound and documents (POST /v1/files), and name their keys"
    )


async def _json(request: Request, limit: int, advice: str) -> Any:
    too_large = f"a body may have {limit} bytes: {advice}"
    body = await _in_time(_whole(_chunks(request, limit, too_large)), _SECONDS, "body")
    return _parsed(body, "the body")


def _parsed(body: bytes, what: str) -> Any:
    try:
        return json.loads(body, parse_int=text.integer)  # infinity and NaN too: they are refused by name later
    except RecursionError:
        raise InvalidInput([Fault("", "too_deep", f"is nested more than {text.DEPTH} levels deep")]) from None
    except ValueError as error:  # also bytes that are not UTF-8
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it cannot be decoded"
        raise problem(400, "invalid_json", f"{what} is not JSON: {reason}") from None


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
    async with form(request, here.settings.max_input_bytes) as given:
        yield only(given, here.settings.max_input_bytes)


async def fields(request: Request) -> dict[str, str]:
    """The fields of a form without a file, their lines ended by a newline; raises problems: 408, 413 and 400."""
    body = await _in_time(_whole(_chunks(request, _FIELDS_LIMIT, "the form is too long")), _SECONDS, "form")
    try:
        said = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError:
        raise problem(400, "invalid_form", "the form cannot be read") from None
    return {name: value.replace("\r\n", "\n") for name, value in said}


Given = Annotated[UploadFile, Depends(upload)]


@dataclass(frozen=True)
class Rows:
    """The rows of a batch: a file, or the items of a JSON body as one; and what was said of them, as it came."""

    file: BinaryIO
    name: str
    content_type: str
    options: Any


async def rows(request: Request, here: Here, mine: Drafting) -> AsyncIterator[Rows]:
    """A batch's rows and options, for as long as the request lasts. Raises as `json_body` and `upload` do.

    A place among those that are checked is taken once all is here: a sender on a slow line keeps nobody from it.
    """
    async with _given_rows(request) as given, here.gates.drafts.place(mine.project.id):
        yield given


@asynccontextmanager
async def _given_rows(request: Request) -> AsyncIterator[Rows]:
    if _media_type(request) == JSON:
        said = await _json(request, ITEMS_LIMIT, "send more as a JSONL file")
        if not isinstance(said, dict) or not isinstance(said.get("items"), list):
            raise InvalidInput(
                [Fault("/items", "required", "is required: a list of jobs, as POST /v1/jobs takes them")]
            )
        yield Rows(BytesIO(_encoded(said.pop("items"))), "", JSON, said)
        return
    async with form(request, ROWS_LIMIT, fields=1) as given:
        file, options = only(given, ROWS_LIMIT), given.get(OPTIONS, "{}")
        if not isinstance(options, str):
            raise InvalidInput([Fault(f"/{OPTIONS}", "not_an_object", "must be text, a JSON object")])
        yield Rows(file.file, file.filename or "", file.content_type or "", _parsed(options.encode(), OPTIONS))


GivenRows = Annotated[Rows, Depends(rows)]


async def bulk_body(request: Request, here: Here, mine: Receiving) -> AsyncIterator[Any]:
    """The body as JSON; a place among bulk requests is taken once it is here. Raises as `json_body` does."""
    body = await json_body(request)
    async with here.gates.bulk.place(mine.project.id):
        yield body


BulkBody = Annotated[Any, Depends(bulk_body)]


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


@asynccontextmanager
async def form(request: Request, limit: int, fields: int = 0) -> AsyncIterator[FormData]:
    """The form with its file on the disk, which is gone afterwards; beside the file so many fields."""
    if _media_type(request) != _MULTIPART:
        raise problem(415, "not_multipart", f"send the file as multipart/form-data, in a part called {FIELD}")
    chunks = _chunks(request, limit + _FRAMING + fields * BODY_LIMIT, _too_large(limit))
    _hold_utf8(request)
    parser = MultiPartParser(request.headers, chunks, max_files=1, max_fields=fields, max_part_size=BODY_LIMIT)
    try:
        read = await _in_time(parser.parse(), _FILE_SECONDS, "file")
    except MultiPartException as error:
        raise problem(400, "invalid_form", f"the form cannot be read: {error.message}") from None
    try:
        yield read
    finally:
        await read.close()


def _hold_utf8(request: Request) -> None:
    """Raises a problem for another charset: Python decodes punycode in the square of its length."""
    _, said = parse_options_header(request.headers["content-type"])
    charset = said.get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):
        raise problem(415, "not_utf8", "the text of a form is taken in UTF-8 alone: leave the charset out")


def _encoded(items: list[Any]) -> bytes:
    """The items as they came, or, where one holds half of a surrogate pair, in ASCII."""
    try:
        return json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(items).encode()


def only(given: FormData, limit: int) -> UploadFile:
    """The form's one file; raises InvalidInput where there is none, and a problem where it is too large."""
    found = given.get(FIELD)
    if not isinstance(found, UploadFile):
        raise InvalidInput([Fault(f"/{FIELD}", "required", f"is required: a part called {FIELD}, with a file name")])
    if (found.size or 0) > limit:
        raise problem(413, "body_too_large", _too_large(limit))
    return found


def _too_large(limit: int) -> str:
    return f"a file may have {limit} bytes"
