"""What the provider tells an account of its models: the list of them, and the quotas, at either of two addresses.

Alibaba docs, 'List models' and 'List model quotas' (2026). Prices and descriptions of models are left out.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ops.sandbox import listing, spoil
from ops.sandbox.faults import Where
from ops.sandbox.models import Model
from ops.sandbox.options import QuotasAt
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal
from ops.sandbox.wire import Reply

_NO_LIMIT = {
    "request_limit": None,
    "request_limit_period": None,
    "usage_limit": None,
    "usage_limit_field": None,
    "usage_limit_period": None,
    "async_user_queue_limit": None,
    "async_user_concurrency_limit": None,
}


def router(provider: Provider) -> APIRouter:
    """Return the routes of one sandbox."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/models")
    async def models(request: Request) -> Response:
        return await _answer(provider, request, "models", lambda model: _offer(provider, model))

    @routes.get("/quotas")
    async def quotas(request: Request) -> Response:
        return await _answer(provider, request, "quotas", lambda model: _quota(provider, model), QuotasAt.QUOTAS)

    @routes.get("/models/limits")
    async def limits(request: Request) -> Response:
        return await _answer(provider, request, "quotas", lambda model: _quota(provider, model), QuotasAt.LIMITS)

    return routes


async def _answer(
    provider: Provider,
    request: Request,
    name: str,
    row: Callable[[Model], dict[str, Any]],
    at: QuotasAt | None = None,
) -> Response:
    """Answer with a page of rows, one a model; `at`: the address, where it may be missing."""
    reply = Reply(request, is_query=True, allow_gzip=provider.options.gzip)

    def refuse(refusal: Refusal) -> Response:
        return reply.refusal(refusal, provider.options.retry_after_seconds)

    async def tell() -> Response:
        output = _page(provider, dict(request.query_params), name, row)
        return reply.json({"request_id": reply.request_id, "output": output})

    try:
        provider.authenticate(request.headers.get("authorization", ""))
        _require(at is None or provider.options.quotas_at in (QuotasAt.BOTH, at))
        return await spoil.carry_out(provider.faults.pick(Where.MODELS, "", ""), tell, refuse)
    except Refusal as refusal:
        return refuse(refusal)


def _page(
    provider: Provider, query: dict[str, str], name: str, row: Callable[[Model], dict[str, Any]]
) -> dict[str, Any]:
    number, size = listing.page({"page_size": "20"} | query, provider.options.max_page_size)
    found = [model for model in provider.offered() if _fits(model, query)]
    rows = [row(model) for model in found[(number - 1) * size : number * size]]
    return {"total": len(found), "page_no": number, "page_size": size, name: rows}


def _require(is_there: bool) -> None:
    if not is_there:
        raise Refusal(404, "NotFound", "The requested resource does not exist.")


def _fits(model: Model, query: dict[str, str]) -> bool:
    return query.get("model") in (None, "", model.id) and query.get("name", "") in model.id


def _offer(provider: Provider, model: Model) -> dict[str, Any]:
    ends = provider.options.ends.get(model.id)
    told = {"inference_offline_info": {"offline_time": ends}} if ends else {}
    return {"model": model.id, "name": model.id, **told}


def _quota(provider: Provider, model: Model) -> dict[str, Any]:
    return {"model": model.id, "workspace_id": "sandbox", "model_limit": _limit(provider, model)}


def _limit(provider: Provider, model: Model) -> dict[str, Any]:
    requests, seconds, tokens = provider.gate.published(model)
    concurrency = provider.gate.concurrency(model) if any(call.is_async for call in model.calls) else None
    counted = {"request_limit": requests, "request_limit_period": seconds} if requests else {}
    used = {"usage_limit": tokens, "usage_limit_field": "total_tokens", "usage_limit_period": 60} if tokens else {}
    at_once = {"async_user_queue_limit": 500, "async_user_concurrency_limit": concurrency} if concurrency else {}
    return {**_NO_LIMIT, **counted, **used, **at_once}
