"""What became of a batch: its rows as pages, and all of it as files that are streamed.

A stream reads a chunk when the last one was taken, on one of the few threads that streams have. While a client is slow
it holds no thread and no connection, only a place of its project.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, TypeVar
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import Connection

from api import answers
from api.answers import Page
from api.context import Context, Exporting, Here, Searching, Tenant
from api.forms import StateName, apart
from api.problems import refusals
from api.routes.batches import BatchId
from worker.batches import exports, items, reading
from worker.batches.document import ItemDocument, Outcome
from worker.batches.items import Read, Wanted
from worker.tables import Batch

T = TypeVar("T")

router = APIRouter(prefix="/v1/batches", tags=["batches"], responses=refusals(400, 401, 404, 422, 429, 503))


class ItemList(Page[ItemDocument]):
    """A page of a batch's rows, in the order of the file; the cursor is the last one's number."""


class ItemQuery(BaseModel):
    """Which rows to list; filters narrow together."""

    model_config = ConfigDict(extra="forbid")

    outcome: Annotated[list[Outcome], BeforeValidator(apart)] = Field([], description="what became of the row")
    state: Annotated[list[StateName], BeforeValidator(apart)] = Field([], description="of the row's job")
    cursor: int = Field(0, ge=0, le=2**31 - 1, description="the next_cursor of the page before")
    limit: int = Field(20, ge=1, le=100, description="rows on a page")


def _file(media_type: str, about: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {"schema": {"type": "string"}}}, "description": about}}


@router.get("/{batch_id}/items", response_model=ItemList)
def list_items(here: Here, mine: Searching, batch_id: BatchId, wanted: Annotated[ItemQuery, Query()]) -> Response:
    """The rows of a batch, each with its job: the newest take."""
    said = Wanted(wanted.outcome, wanted.state, wanted.cursor)
    with here.reading() as connection:
        batch = reading.one(connection, mine.project.id, batch_id)
        found = items.page(connection, batch, said, wanted.limit + 1)
        page = found[: wanted.limit]
        data = items.documents(connection, mine.project.name, page, mine.now)
    return answers.page(ItemList, data, page[-1].row.n if len(found) > len(page) else None)


@router.get(
    "/{batch_id}/report.csv", response_class=StreamingResponse, responses=_file("text/csv", "a line for each row")
)
async def report(here: Here, mine: Exporting, batch_id: BatchId) -> Response:
    """All rows for a spreadsheet: UTF-8 with a BOM, and no cell that it would carry out as a formula."""
    return await _streamed(here, mine, batch_id, "report.csv", "text/csv; charset=utf-8", exports.report)


@router.get(
    "/{batch_id}/results.jsonl",
    response_class=StreamingResponse,
    responses=_file("application/jsonl", "a line for each row whose job succeeded"),
)
async def results(here: Here, mine: Exporting, batch_id: BatchId) -> Response:
    """What was made so far: the objects' keys in the bucket, and of texts what was answered."""
    return await _streamed(here, mine, batch_id, "results.jsonl", "application/jsonl", exports.results)


@router.get(
    "/{batch_id}/errors.jsonl",
    response_class=StreamingResponse,
    responses=_file("application/jsonl", "a line for each row with faults, or without an output that was kept"),
)
async def errors(here: Here, mine: Exporting, batch_id: BatchId) -> Response:
    """What is wrong so far: rows with faults; and jobs that failed, expired, were canceled or rejected."""
    return await _streamed(here, mine, batch_id, "errors.jsonl", "application/jsonl", exports.errors)


async def _streamed(
    here: Context,
    mine: Tenant,
    batch_id: UUID,
    name: str,
    media_type: str,
    export: Callable[[Read, Batch], Iterator[bytes]],
) -> Response:
    """The export as it is made; its first chunk is there before the answer begins, so that a failure is answered."""

    def read(look: Callable[[Connection], T]) -> T:
        with here.reading() as connection:
            return look(connection)

    def begin() -> tuple[Batch, Iterator[bytes], bytes]:
        batch = read(lambda connection: reading.one(connection, mine.project.id, batch_id))
        chunks = export(read, batch)
        return batch, chunks, next(chunks, b"")

    batch, chunks, first = await run_sync(begin, limiter=here.watch.threads)

    async def stream() -> AsyncIterator[bytes]:
        chunk: bytes | None = first
        while chunk is not None:
            if chunk:
                yield chunk
            chunk = await run_sync(next, chunks, None, limiter=here.watch.threads)

    disposition = {"content-disposition": f'attachment; filename="{batch.id}-{name}"'}
    return StreamingResponse(stream(), headers=disposition, media_type=media_type)
