"""A file in a request: read as it comes, onto the disk, under a bound.

It is whole on the disk before anything else is done with it. So a sender on a slow line holds no thread, no connection
and no memory, and what is wrong with a file is known before the bucket sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Annotated, BinaryIO

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api.auth import Transferring
from api.context import Here
from api.problems import problem
from worker.errors import Fault, InvalidInput

FIELD = "file"
_SECONDS = 600
_FRAMING = 64 << 10  # bytes beside the file's own: boundaries, and the part's headers


@dataclass(frozen=True)
class Upload:
    """A file that came, and what its sender calls it."""

    name: str
    body: BinaryIO


async def upload(request: Request, here: Here, _: Transferring) -> AsyncIterator[Upload]:
    """The file of a multipart body, for as long as the request lasts.

    Raises problems: 408 where it is not whole in ten minutes, 413 over the limit, 415 and 400 for what is no multipart
    form; InvalidInput unless there is one part in it, called `file`, with a file name.
    """
    form = await _in_time(request, here.settings.max_input_bytes)
    try:
        yield _only(form, here.settings.max_input_bytes)
    finally:
        await form.close()


Given = Annotated[Upload, Depends(upload)]


async def _in_time(request: Request, limit: int) -> FormData:
    """The form; a sender that drips would else keep its place, and what it sent so far, for ever."""
    try:
        async with asyncio.timeout(_SECONDS):
            return await _read(request, limit)
    except TimeoutError:
        raise problem(408, "too_slow", f"a file has to come within {_SECONDS} s") from None


async def _read(request: Request, limit: int) -> FormData:
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said != "multipart/form-data":
        raise problem(415, "not_multipart", f"send the file as multipart/form-data, in a part called {FIELD}")
    try:
        return await MultiPartParser(request.headers, _bounded(request, limit), max_files=1, max_fields=0).parse()
    except MultiPartException as error:
        raise problem(400, "invalid_form", f"the form cannot be read: {error.message}") from None


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body, counted as it comes, since Content-Length may lie."""
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > limit + _FRAMING:
            raise _too_large(limit)
        yield chunk


def _only(form: FormData, limit: int) -> Upload:
    found = form.get(FIELD)
    if not isinstance(found, UploadFile):
        raise InvalidInput([Fault(f"/{FIELD}", "required", f"is required: a part called {FIELD}, with a file name")])
    if (found.size or 0) > limit:
        raise _too_large(limit)
    return Upload(found.filename or "", found.file)


def _too_large(limit: int) -> Exception:
    return problem(413, "body_too_large", f"a file may have {limit} bytes")
