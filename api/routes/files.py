"""Files: photos, sound and documents that jobs use as their inputs, named there by their keys."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import Field

from api import answers, forms
from api.answers import Page
from api.bodies import Given
from api.context import Here, Mine, Transferring
from api.problems import refusals
from worker.document import Answer, Moment
from worker.inputs import files

router = APIRouter(prefix="/v1/files", tags=["files"], responses=refusals(400, 401, 404, 422, 429, 503))


class FileDocument(Answer):
    """A file in the bucket, to be named by its key in a job's input."""

    object: Literal["file"] = "file"
    id: UUID
    name: str = Field(description="as its sender calls it", examples=["cat.png"])
    key: str = Field(description="what an input names it by")
    content_type: str = Field(description="by its bytes", examples=["image/png"])
    bytes: int
    sha256: str
    seconds: float | None = Field(None, description="that a clip or sound plays, where its header says")
    created_at: Moment


class FileList(Page[FileDocument]):
    """A page of files, the newest first."""


FileId = Annotated[UUID, Path(description="the file's id")]


@router.post(
    "",
    status_code=201,
    response_model=FileDocument,
    responses={200: {"model": FileDocument, "description": "it is there already"}, **refusals(413, 415)},
    openapi_extra=forms.file_body(),
)
def give(here: Here, mine: Transferring, given: Given) -> Response:
    """Put a file into the bucket, to be named by its `key` in a job's input.

    Taken are pictures (JPEG, PNG, BMP, WEBP), sound (WAV, MP3), clips (MP4, MOV), PDF and text of any kind (plain,
    Markdown, HTML, CSV, JSONL), by their bytes. The same bytes under the same name are one file, so a repetition does
    no harm.
    """
    draft = files.draft(given.filename or "", given.file)
    kept, is_new = files.keep(here.engine, here.bucket, mine.project.id, draft, mine.now)
    shown = FileDocument.model_validate(kept)
    return answers.answer(shown, 201 if is_new else 200, {"location": f"/v1/files/{kept.id}"})


@router.get("", response_model=FileList)
def listed(
    here: Here,
    mine: Mine,
    cursor: Annotated[UUID | None, Query(description="the next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="files on a page")] = 20,
) -> Response:
    """List files, the newest first."""
    with here.reading() as connection:
        found = files.page(connection, mine.project.id, cursor, limit + 1)
    page = [FileDocument.model_validate(file) for file in found[:limit]]
    return answers.page(FileList, page, page[-1].id if len(found) > limit else None)


@router.get("/{file_id}", response_model=FileDocument)
def show(here: Here, mine: Mine, file_id: FileId) -> Response:
    """One file."""
    with here.reading() as connection:
        return answers.answer(FileDocument.model_validate(files.one(connection, mine.project.id, file_id)))


@router.delete("/{file_id}", status_code=204, responses=refusals(409))
def remove(here: Here, mine: Transferring, file_id: FileId) -> Response:
    """Delete a file. Refused while a job that has not ended names it; a job made again later would miss it."""
    with here.engine.begin() as connection:
        files.remove(connection, here.bucket, mine.project.id, file_id)
    return Response(status_code=204)
