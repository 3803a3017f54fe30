"""The object store behind the links: one route, `/oss/…`, and what may go wrong on it."""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from ops.sandbox import links, spoil, wire
from ops.sandbox.faults import Rule, What, Where
from ops.sandbox.links import Body, Denial
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal
from ops.sandbox.tasks import Status, Task

WHOLE_FROM = 1_048_576  # bytes; larger answers are streamed
OVERSIZED_BYTES = 5_368_709_120  # more than any copy should take, where the rule names no length


def router(provider: Provider) -> APIRouter:
    """Return the object store's route of one sandbox."""
    routes = APIRouter()

    @routes.api_route("/oss/{key:path}", methods=["GET", "HEAD"])
    async def fetch(key: str, request: Request) -> Response:
        return await Fetch(provider, request, key).answer()

    return routes


class Fetch:
    """One request for an object on its way to its answer."""

    def __init__(self, provider: Provider, request: Request, key: str) -> None:
        self._provider = provider
        self._request = request
        self._key = key

    async def answer(self) -> Response:
        """Return the object, a part of it, or the store's refusal, as a fault leaves it."""
        try:
            task, number = self._find()
        except Denial as denied:
            return self._deny(denied)
        rule = self._provider.faults.pick(Where.LINK, task.order.model, task.order.prompt)

        async def serve() -> Response:
            return await self._serve(task, number, rule)

        return await spoil.carry_out(rule, serve, self._refuse)

    def _find(self) -> tuple[Task, int]:
        if "authorization" in self._request.headers:
            # A signed link is one way to sign; the store does not take two.
            message = "The request carries both a signed query and an Authorization header."
            raise Denial(400, "InvalidArgument", message, "0002-00000227")
        now = self._provider.now()
        links.verify(self._request.method, self._key, self._request.query_params, now)
        task_id, number = links.locate(self._key)
        task = self._provider.tasks.by_id.get(task_id)
        if task is None or task.status(now) is not Status.SUCCEEDED:
            raise links.purged()
        return task, number

    async def _serve(self, task: Task, number: int, rule: Rule | None) -> Response:
        if rule is not None and rule.what is What.EXPIRED:
            return self._deny(links.expired(int(self._provider.now()) - 1, self._provider.now()))
        if rule is not None and rule.what is What.PURGED:
            return self._deny(links.purged())
        options = self._provider.options
        size = options.output_bytes
        if rule is not None and rule.what is What.OVERSIZED:
            size = rule.bytes or OVERSIZED_BYTES
        whole = await run_in_threadpool(links.body, task, number, size, options.true_size)
        if rule is not None and rule.what is What.CORRUPT:
            whole = _corrupt(whole)
        self._provider.ledger.downloads[task.id] += 1
        return self._part(task, whole)

    def _part(self, task: Task, whole: Body) -> Response:
        headers = links.headers(whole, task.order, task.ended_at)
        part = links.span(self._request.headers.get("range"), whole.size)
        start, stop = part or (0, whole.size)
        headers |= wire.store_headers() | {"Content-Length": str(stop - start)}
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole.size}"
        status = 200 if part is None else 206
        if stop - start >= WHOLE_FROM:
            return wire.streamed(whole.chunks(start, stop), status, headers)
        return Response(b"".join(whole.chunks(start, stop)), status, headers)

    def _deny(self, denied: Denial) -> Response:
        host = self._request.headers.get("host", "")
        return wire.denial(denied, host, with_body=self._request.method != "HEAD")

    def _refuse(self, refusal: Refusal) -> Response:
        return self._deny(Denial(refusal.status, refusal.code, refusal.message, "0005-00000001"))


def _corrupt(whole: Body) -> Body:
    middle = len(whole.head) // 2
    wrong = whole.head[:middle] + bytes([whole.head[middle] ^ 0xFF]) + whole.head[middle + 1 :]
    return Body(wrong, whole.zeros, whole.crc64, whole.md5)
