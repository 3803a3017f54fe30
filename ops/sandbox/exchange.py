"""The way of a request to the compatible interface: let in or refused, met by a fault or not, answered."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ops.sandbox import envelope, spoil
from ops.sandbox.faults import Rule, Where
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal
from ops.sandbox.wire import Reply

PREFIX = "/compatible-mode/v1"


class CompatibleReply(Reply):
    """How one request to the compatible interface is answered."""

    def refusal(self, refusal: Refusal, retry_after_seconds: int | None) -> Response:
        """Return the error envelope; a 429 says when to come back only if the sandbox is set to."""
        payload = {"error": envelope.error(refusal), "request_id": self.request_id}
        throttled = refusal.status == 429 and retry_after_seconds is not None
        return self.json(payload, refusal.status, {"retry-after": str(retry_after_seconds)} if throttled else None)


class Exchange:
    """One request on its way to its answer."""

    def __init__(self, provider: Provider, request: Request, where: Where) -> None:
        self.provider = provider
        self.request = request
        self.reply = CompatibleReply(request, is_query=where is not Where.CREATE, allow_gzip=provider.options.gzip)
        self._where = where

    @property
    def owner(self) -> str:
        """The main account that the request's key belongs to; raises the Refusal of a bad key."""
        return self.provider.authenticate(self.request.headers.get("authorization", ""))

    @property
    def query(self) -> dict[str, str]:
        """The parameters behind the path."""
        return dict(self.request.query_params)

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])

    async def serve(self, counted_as: str, perform: "Perform") -> Response:
        """Return what `perform` answers to one who is let in, as the fault leaves it."""
        try:
            owner = self.owner
        except Refusal as refusal:
            return self.refuse(refusal)
        self.provider.ledger.peaks.add(owner, counted_as)
        self.provider.advance()
        rule = self._rule()
        return await spoil.carry_out(rule, partial(perform, self, owner, rule), self.refuse)

    def refuse(self, refusal: Refusal) -> Response:
        """Return a refusal in the error envelope."""
        return self.reply.refusal(refusal, self.provider.options.retry_after_seconds)

    def _rule(self) -> Rule | None:
        if self._where is Where.BATCH_LIST:
            return self.provider.faults.pick_for_list(self._where)
        return self.provider.faults.pick(self._where, "", "")


Perform = Callable[[Exchange, str, Rule | None], Awaitable[Response]]  # the exchange, the owner, the fault it met


@dataclass(frozen=True)
class Route:
    """One call of the interface: where faults strike it, what the ledger counts it as, what it does."""

    method: str
    path: str
    where: Where
    counted_as: str
    perform: Perform


def mount(provider: Provider, calls: tuple[Route, ...]) -> APIRouter:
    """Return the routes of some calls."""
    routes = APIRouter(prefix=PREFIX)
    for call in calls:
        routes.add_api_route(call.path, _endpoint(provider, call), methods=[call.method])
    return routes


def _endpoint(provider: Provider, call: Route) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await Exchange(provider, request, call.where).serve(call.counted_as, call.perform)

    return answer
