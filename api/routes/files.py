"""Files: photos, sound and documents that jobs use as their inputs, named there by their keys."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from api import answers, describe
from api.auth import Mine, Transferring
from api.context import Here
from api.uploads import Given
from worker.inputs import files
from worker.jobs import reading

router = APIRouter(prefix="/v1/files", tags=["files"], responses=describe.refusals(400, 401, 404, 422, 429, 503))

FileId = Annotated[UUID, Path(description="the file's id")]


@router.post(
    "",
    status_code=201,
    response_model=answers.File,
    responses={200: {"model": answers.File, "description": "it is there already"}, **describe.refusals(413, 415)},
    openapi_extra=describe.upload(),
)
def give(here: Here, mine: Transferring, given: Given) -> Response:
    """Put a file into the bucket, to be named by its `key` in a job's input.

    Taken are pictures (JPEG, PNG, BMP, WEBP), sound (WAV, MP3), PDF and text of any kind (plain, Markdown, HTML, CSV,
    JSONL), by their bytes. The same bytes under the same name are one file, so it is safe to repeat.
    """
    draft = files.draft(given.name, given.body)
    kept, is_new = files.keep(here.engine, here.bucket, mine.project.id, draft, mine.now)
    return JSONResponse(reading.file_shown(kept), 201 if is_new else 200, headers={"location": f"/v1/files/{kept.id}"})


@router.get("", response_model=answers.FileList)
def listed(
    here: Here,
    mine: Mine,
    cursor: Annotated[UUID | None, Query(description="the next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="files on a page")] = 20,
) -> Response:
    """List files, the newest first."""
    with here.engine.connect() as connection:
        found = files.page(connection, mine.project.id, cursor, limit + 1)
    page = found[:limit]
    more = str(page[-1].id) if len(found) > len(page) else None
    return answers.listed([reading.file_shown(file) for file in page], more)


@router.get("/{file_id}", response_model=answers.File)
def show(here: Here, mine: Mine, file_id: FileId) -> Response:
    """One file."""
    with here.engine.connect() as connection:
        return JSONResponse(reading.file_shown(files.one(connection, mine.project.id, file_id)))


@router.delete("/{file_id}", status_code=204, responses=describe.refusals(409))
def remove(here: Here, mine: Transferring, file_id: FileId) -> Response:
    """Delete a file. Refused while a job that has not ended names it; a job made again later would miss it."""
    with here.engine.begin() as connection:
        files.remove(connection, here.bucket, mine.project.id, file_id)
    return Response(status_code=204)
