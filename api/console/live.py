"""What moves while one looks: a batch, or all of them, as Server-Sent Events, each a part of the page written anew.

A look costs what a request does. The pause after each is two hundred times as long as it took, from two to fifteen
seconds, so that a page that is left open takes half a percent of a core: more only where a look takes over 75 ms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from fastapi_problem.error import Problem
from sqlalchemy.exc import SQLAlchemyError

from api import streams
from api.console.inside import Refused
from api.console.visit import Page, Visit, Visiting
from api.problems import problem
from worker.errors import NotFound

router = APIRouter(prefix="/console", route_class=Page)
_LEAST, _MOST, _SHARE = 2.0, 15.0, 200  # seconds, proxies close what is silent for thirty; times what a look took
_SECONDS = 3600.0  # that one stream lasts: then the browser asks again


@router.get("/batches/live")
async def batches(here: Visiting) -> Response:
    """The list of batches."""

    async def written() -> str:
        return await here.written("batches_live.html", found=await here.api.get("/v1/batches", limit=20))

    return await _streamed(here, written)


@router.get("/batches/{batch_id}/live")
async def batch(here: Visiting, batch_id: UUID) -> Response:
    """The head of a batch's page."""
    if (await here.api.get(f"/v1/batches/{batch_id}"))["state"] == "draft":
        raise problem(404, NotFound.code, "a draft does not move")

    async def written() -> str:
        return await here.written("batch_live.html", batch=await here.api.get(f"/v1/batches/{batch_id}"))

    return await _streamed(here, written)


async def _streamed(here: Visit, written: Callable[[], Awaitable[str]]) -> Response:
    caller = await here.caller()
    # both refuse before the stream begins; the place is held until it ends
    place = here.context.gates.streams.place(caller.project.id if caller.project else None)
    await here.request.scope["state"]["held"].enter_async_context(place)
    return EventSourceResponse(_looks(written), headers=streams.HEADERS)


async def _looks(written: Callable[[], Awaitable[str]]) -> AsyncIterator[bytes]:
    """The part whenever it has changed, until the session or the browser ends."""
    ends, before = time.monotonic() + _SECONDS, ""
    while time.monotonic() < ends:
        began = time.monotonic()
        try:
            now = await written()
        except (Refused, Problem) as error:
            if error.status in (401, 403, 404):
                yield format_sse_event(data_str="", event="over")
                return
            now = before  # too much is asked: the next look tells
        except SQLAlchemyError:
            now = before  # so does it once the database is back
        yield format_sse_event(data_str=now, event="part") if now != before else KEEPALIVE_COMMENT
        before = now
        await asyncio.sleep(min(_MOST, max(_LEAST, _SHARE * (time.monotonic() - began))))
