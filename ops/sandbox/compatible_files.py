"""The compatible interface's files: uploaded, told of, listed, read, deleted."""

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from ops.sandbox import exchange, files
from ops.sandbox.exchange import Exchange, Route
from ops.sandbox.faults import Rule, Where
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import invalid

MOST_LISTED = 2000


def router(provider: Provider) -> APIRouter:
    """Return the files' routes of one sandbox."""
    return exchange.mount(provider, CALLS)


async def upload(desk: Exchange, owner: str, _rule: Rule | None) -> Response:
    """Keep a file."""
    async with desk.request.form() as form:
        given, purpose = form.get("file"), str(form.get("purpose") or "")
        if not isinstance(given, UploadFile):
            raise invalid("Missing required parameter: 'file'.")
        name, content = given.filename or "", await given.read()
    longest, now = desk.provider.options.batch_bytes, desk.provider.now()
    file = desk.provider.backlog.files.upload(owner, purpose, name, content, longest, now)
    desk.provider.journal.note("file", file.row())
    return desk.reply.json(file.document())


async def list_files(desk: Exchange, owner: str, _rule: Rule | None) -> Response:
    """Tell of an account's files, newest first."""
    found = desk.provider.backlog.files.listed(owner, desk.query)
    shown, has_more = files.page(found, desk.query, MOST_LISTED)
    return desk.reply.json({"object": "list", "data": [file.document() for file in shown], "has_more": has_more})


async def get(desk: Exchange, owner: str, _rule: Rule | None) -> Response:
    """Tell of one file."""
    return desk.reply.json(desk.provider.backlog.files.find(owner, desk.path("file_id")).document())


async def content(desk: Exchange, owner: str, _rule: Rule | None) -> Response:
    """Give what is in a file; as recorded, without a content type."""
    file = desk.provider.backlog.files.find(owner, desk.path("file_id"))
    return Response(file.content, 200, {"x-request-id": desk.reply.request_id, "server": "istio-envoy"})


async def delete(desk: Exchange, owner: str, _rule: Rule | None) -> Response:
    """Drop a file."""
    file = desk.provider.backlog.files.find(owner, desk.path("file_id"))
    desk.provider.backlog.files.bury(file.id)
    desk.provider.journal.note("file_deleted", {"id": file.id})
    return desk.reply.json({"id": file.id, "object": "file", "deleted": True})


CALLS = (
    Route("POST", "/files", Where.FILE, "file_upload", upload),
    Route("GET", "/files", Where.FILE, "file_list", list_files),
    Route("GET", "/files/{file_id}", Where.FILE, "file_get", get),
    Route("DELETE", "/files/{file_id}", Where.FILE, "file_delete", delete),
    Route("GET", "/files/{file_id}/content", Where.CONTENT, "content", content),
)
