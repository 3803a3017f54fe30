"""Chat completions over the compatible interface: the native text call in other words.

A call goes the native one's way, through the same limits, books and faults; only its words differ.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ops.sandbox import chat, spoil
from ops.sandbox.chat import Ask
from ops.sandbox.exchange import PREFIX, Exchange
from ops.sandbox.faults import Rule, Where
from ops.sandbox.proposals import BATCH_CHAT, Arrival, Proposal
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal, invalid
from ops.sandbox.tasks import Task

NATIVE_PATH = "aigc/text-generation/generation"
CHAT_PATH = "chat"  # of models that no native text path has
LOOK_SECONDS = 0.05  # between two looks whether a caller in line is still there
NATIVE = {"result_format": "message", "incremental_output": True}  # what this interface does whatever is asked


def router(provider: Provider) -> APIRouter:
    """Return the chat route of one sandbox."""
    routes = APIRouter(prefix=PREFIX)

    @routes.post("/chat/completions")
    async def complete(request: Request) -> Response:
        exchange = Exchange(provider, request, Where.CREATE)
        try:
            return await _complete(exchange, await request.body())
        except Refusal as refusal:
            return exchange.refuse(refusal)

    return routes


def batch_chat_router(provider: Provider) -> APIRouter:
    """Return Batch Chat, which has a host of its own with the provider, and a path of its own here."""
    routes = APIRouter(prefix=f"/{BATCH_CHAT}{PREFIX}")

    @routes.post("/chat/completions")
    async def complete(request: Request) -> Response:
        exchange = Exchange(provider, request, Where.CREATE)
        try:
            return await _complete(exchange, await request.body(), BATCH_CHAT)
        except Refusal as refusal:
            return exchange.refuse(refusal)

    return routes


async def _complete(exchange: Exchange, body: bytes, path: str = NATIVE_PATH) -> Response:
    owner, ask = exchange.owner, chat.read(chat.parsed(body))
    if path == BATCH_CHAT:
        exchange.provider.ledger.peaks.add(owner, "batch_chat")
        _let_in(exchange.provider, ask)
        if not await _waited(exchange):
            exchange.provider.ledger.peaks.add(owner, "batch_chat_left")
            return Response(status_code=499)
    if (unknown := exchange.provider.options.unknown_parameter) in ask.parameters:
        raise invalid(f"Unsupported parameter: '{unknown}' is not supported with this model.")
    proposal = _propose(exchange, owner, ask, body, path)
    rule = exchange.provider.faults.pick(Where.CREATE, ask.model, ask.words)
    proposal.entry.fault = rule.what if rule else None

    async def make() -> Response:
        return await _made(exchange, ask, proposal, rule)

    return await spoil.carry_out(rule, make, exchange.refuse)


def _let_in(provider: Provider, ask: Ask) -> None:
    """Raise the Refusal of a key of another region, of an account without access, or of a model that it has not."""
    if provider.options.region != "cn-beijing":
        raise Refusal(401, "InvalidApiKey", "Invalid API-key provided.")
    if not provider.options.batch_chat:
        raise Refusal(403, "AccessDenied", "Access denied.")
    if not chat.find(provider.models, ask.model).batch_chat:
        raise Refusal(404, "ModelNotFound", f"The model `{ask.model}` does not exist or you do not have access to it.")


async def _waited(exchange: Exchange) -> bool:
    """Wait in line; False for a caller who hung up meanwhile, and pays nothing."""
    ends = time.monotonic() + exchange.provider.options.batch_chat_seconds
    while (left := ends - time.monotonic()) > 0:
        await asyncio.sleep(min(left, LOOK_SECONDS))
        if await exchange.request.is_disconnected():
            return False
    return True


def _propose(exchange: Exchange, owner: str, ask: Ask, body: bytes, path: str) -> Proposal:
    document = {"model": ask.model, "input": {"messages": ask.messages}, "parameters": ask.parameters | NATIVE}
    digest, request_id = hashlib.sha256(body).hexdigest(), exchange.reply.request_id
    model = exchange.provider.models.get(ask.model)
    if path == NATIVE_PATH and model is not None and model.call(NATIVE_PATH) is None:
        path = CHAT_PATH
    resolves_oss = exchange.request.headers.get("x-dashscope-ossresourceresolve", "") == "enable"
    arrival = Arrival(owner, path, document, digest, request_id, resolves_oss=resolves_oss, streams=ask.is_streamed)
    try:
        return exchange.provider.consider(arrival)
    except Refusal:
        chat.find(exchange.provider.models, ask.model)  # an unknown model is refused in words of this interface's own
        raise


async def _made(exchange: Exchange, ask: Ask, proposal: Proposal, rule: Rule | None) -> Response:
    task = exchange.provider.make(proposal, rule)
    if task.failure is not None and rule is not None:
        raise Refusal(*rule.error)
    assert task.answer is not None, "a text call has its answer when it is made"
    if ask.is_streamed:
        return exchange.reply.stream(_frames(ask, task))
    await asyncio.sleep(task.run_seconds)
    return exchange.reply.json(chat.completion(task.answer, ask.model, task.request_id, task.received_at))


async def _frames(ask: Ask, task: Task) -> AsyncIterator[bytes]:
    assert task.answer is not None, "a text call has its answer when it is made"
    chunks = list(chat.chunks(task.answer, ask, task.request_id, task.received_at))
    for chunk in chunks:
        await asyncio.sleep(task.run_seconds / len(chunks))
        yield b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
