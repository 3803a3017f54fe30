"""The native interface: create, get, list and cancel under `/api/v1`.

Each request goes the same way: let in or refused, met by a fault or not, answered.
"""

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ops.sandbox import answers, calls, listing, orders, spoil
from ops.sandbox.faults import Rule, What, Where
from ops.sandbox.models import Model
from ops.sandbox.proposals import Arrival, Proposal
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal
from ops.sandbox.tasks import Status, Task
from ops.sandbox.wire import Reply


def router(provider: Provider) -> APIRouter:
    """Return the native routes of one sandbox."""
    routes = APIRouter(prefix="/api/v1")

    @routes.post("/services/{path:path}")
    async def create(path: str, request: Request) -> Response:
        exchange = Exchange(provider, request, Where.CREATE)
        return await exchange.answer(exchange.create(path, await request.body()))

    @routes.get("/tasks")
    @routes.get("/tasks/")
    async def list_tasks(request: Request) -> Response:
        exchange = Exchange(provider, request, Where.LIST)
        return await exchange.answer(exchange.list_tasks())

    @routes.get("/tasks/{task_id}")
    async def get(task_id: str, request: Request) -> Response:
        exchange = Exchange(provider, request, Where.GET)
        return await exchange.answer(exchange.get(task_id))

    @routes.post("/tasks/{task_id}/cancel")
    async def cancel(task_id: str, request: Request) -> Response:
        exchange = Exchange(provider, request, Where.CANCEL)
        return await exchange.answer(exchange.cancel(task_id))

    return routes


class Exchange:
    """One native request on its way to its answer."""

    def __init__(self, provider: Provider, request: Request, where: Where) -> None:
        self._provider = provider
        self._request = request
        self._where = where
        self._streams = where is Where.CREATE and _wants_stream(request)
        self._reply = Reply(request, is_query=where is not Where.CREATE, allow_gzip=provider.options.gzip)

    async def answer(self, answered: Awaitable[Response]) -> Response:
        """Return the answer, or the refusal of who or what is not let in."""
        try:
            return await answered
        except Refusal as refusal:
            return self._refuse(refusal)

    async def create(self, path: str, body: bytes) -> Response:
        """Answer a create: with a task, or at once with what was made."""
        proposal = self._propose(path, body)
        rule = self._provider.faults.pick(Where.CREATE, proposal.model.id, proposal.entry.prompt)
        proposal.entry.fault = rule.what if rule else None

        async def make() -> Response:
            task = self._provider.make(proposal, rule)
            if proposal.call.is_async:
                return self._reply.json(answers.made(task, self._reply.request_id))
            if task.failure is not None and rule is not None:
                raise Refusal(*rule.error)
            return await self._answered(task, proposal.model)

        return await spoil.carry_out(rule, make, self._refuse)

    async def _answered(self, task: Task, model: Model) -> Response:
        """Answer a synchronous call, at the end of its run or in frames all through it."""
        link_seconds = self._provider.options.link_seconds
        whole = calls.whole(task, model, self._links(task), link_seconds, self._reply.request_id)
        if self._streams and model.makes in ("speech", "text"):
            return self._reply.stream(calls.frames(task, whole))
        await asyncio.sleep(task.run_seconds)
        return self._reply.json(whole)

    async def get(self, task_id: str) -> Response:
        """Answer a task query."""
        owner = self._let_in()
        task = self._provider.find(owner, task_id)
        rule = self._pick(task)

        async def tell() -> Response:
            return self._reply.json(self._told(task, task_id, rule.what if rule else None))

        return await spoil.carry_out(rule, tell, self._refuse)

    async def list_tasks(self) -> Response:
        """Answer a list query."""
        owner = self._let_in()
        rule = self._provider.faults.pick_for_list()

        async def tell() -> Response:
            return self._reply.json(self._page(owner, rule))

        return await spoil.carry_out(rule, tell, self._refuse)

    async def cancel(self, task_id: str) -> Response:
        """Answer a cancel."""
        owner = self._let_in()
        rule = self._pick(self._provider.find(owner, task_id))

        async def stop() -> Response:
            self._provider.cancel(owner, task_id)
            return self._reply.json({"request_id": self._reply.request_id})

        return await spoil.carry_out(rule, stop, self._refuse)

    def _propose(self, path: str, body: bytes) -> Proposal:
        arrival = Arrival(
            self._owner(),
            path,
            orders.read(body),
            hashlib.sha256(body).hexdigest(),
            self._reply.request_id,
            is_async=self._enables("x-dashscope-async"),
            resolves_oss=self._enables("x-dashscope-ossresourceresolve"),
            streams=self._streams,
        )
        return self._provider.consider(arrival)

    def _enables(self, header: str) -> bool:
        return self._request.headers.get(header, "").lower() == "enable"

    def _let_in(self) -> str:
        owner = self._owner()
        self._provider.gate.query(owner, self._where)
        return owner

    def _owner(self) -> str:
        return self._provider.authenticate(self._request.headers.get("authorization", ""))

    def _refuse(self, refusal: Refusal) -> Response:
        # Keys are checked before a stream begins; what the model's side refuses is told on it.
        if self._streams and refusal.status not in (200, 401):
            return self._reply.refused_stream(refusal)
        return self._reply.refusal(refusal, self._provider.options.retry_after_seconds)

    def _pick(self, task: Task | None) -> Rule | None:
        order = task.order if task else None
        return self._provider.faults.pick(self._where, order.model if order else "", order.prompt if order else "")

    def _told(self, task: Task | None, task_id: str, fault: What | None) -> dict[str, Any]:
        if task is None or fault is What.UNKNOWN:
            return answers.unknown(task_id, self._reply.request_id)
        now = self._provider.now()
        status = Status.SUSPENDED if fault is What.SUSPENDED else task.status(now)
        found = self._links(task) if status is Status.SUCCEEDED else []
        model = self._provider.models[task.order.model]
        return answers.told(task, model, status, found, now, self._reply.request_id)

    def _page(self, owner: str, rule: Rule | None) -> dict[str, Any]:
        query = dict(self._request.query_params)
        now, options = self._provider.now(), self._provider.options
        found = listing.select(self._provider.tasks, owner, query, rule, now)
        number, size = listing.page(query, options.max_page_size)
        return {
            "total": len(found),
            "data": [
                answers.row(task, self._provider.models[task.order.model], options.region, now)
                for task in found[(number - 1) * size : number * size]
            ],
            "total_page": -(-len(found) // size),
            "page_no": number,
            "page_size": size,
            "request_id": self._reply.request_id,
        }

    def _links(self, task: Task) -> list[str]:
        return self._provider.links(task, f"http://{self._request.headers['host']}")


def _wants_stream(request: Request) -> bool:
    headers = request.headers
    return headers.get("x-dashscope-sse", "").lower() == "enable" or "text/event-stream" in headers.get("accept", "")
