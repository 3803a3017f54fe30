"""Temporary uploads over HTTP: the native interface hands out a policy, the object store takes the form."""

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from ops.sandbox import spoil, uploads, wire
from ops.sandbox.faults import Where
from ops.sandbox.links import Denial
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal, invalid
from ops.sandbox.wire import Reply

HOST = f"/_upload/{uploads.BUCKET}"


def router(provider: Provider) -> APIRouter:
    """Return the routes of temporary uploads of one sandbox."""
    routes = APIRouter()

    @routes.get("/api/v1/uploads")
    async def grant(request: Request) -> Response:
        return await _grant(provider, request)

    @routes.post(HOST)
    async def take(request: Request) -> Response:
        rule = provider.faults.pick(Where.UPLOAD, "", "")
        return await spoil.carry_out(rule, partial(_take, provider, request), _refuse)

    return routes


async def _grant(provider: Provider, request: Request) -> Response:
    reply = Reply(request, is_query=False, allow_gzip=provider.options.gzip)
    model = request.query_params.get("model", "")

    def refuse(refusal: Refusal) -> Response:
        return reply.refusal(refusal, provider.options.retry_after_seconds)

    async def perform() -> Response:
        owner = provider.authenticate(request.headers.get("authorization", ""))
        provider.gate.policy(owner, model)
        if request.query_params.get("action") != "getPolicy" or not model:
            raise invalid("action must be getPolicy, and model the model that the file is for.")
        host = f"http://{request.headers['host']}{HOST}"
        data = provider.uploads.grant(owner, model, host, reply.request_id, provider.now())
        return reply.json({"data": data, "request_id": reply.request_id})

    return await spoil.carry_out(provider.faults.pick(Where.POLICY, model, ""), perform, refuse)


async def _take(provider: Provider, request: Request) -> Response:
    try:
        async with request.form() as form:
            fields, size = _fields(form.multi_items())
            directory = provider.uploads.check(fields, provider.now())
            upload = provider.uploads.add(directory, fields["key"], size, provider.now())
    except Denial as denied:
        return wire.denial(denied, uploads.BUCKET, with_body=True)
    provider.ledger.peaks.add(upload.owner, "upload")
    provider.journal.note("upload", upload.row())
    is_told = fields.get("success_action_status") == "200"
    return Response(status_code=200 if is_told else 204, headers=wire.store_headers())


def _fields(items: list[tuple[str, UploadFile | str]]) -> tuple[dict[str, str], int]:
    """Return a form's fields, and how many bytes its file has; what follows the file is not looked at."""
    fields: dict[str, str] = {}
    for name, value in items:
        if name == "file":
            size = value.size if isinstance(value, UploadFile) else len(value.encode())
            return fields, size or 0
        fields[name] = value if isinstance(value, str) else ""
    raise Denial(400, "InvalidArgument", "POST requires exactly one file upload per request.", "0002-00000205")


def _refuse(refusal: Refusal) -> Response:
    denied = Denial(refusal.status, refusal.code, refusal.message, "0005-00000001")
    return wire.denial(denied, uploads.BUCKET, with_body=True)
