"""Embeddings over the compatible interface: the native call in other words, through the same limits and books."""

import asyncio
import hashlib

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ops.sandbox import chat, embedding, spoil
from ops.sandbox.exchange import PREFIX, Exchange
from ops.sandbox.faults import Where
from ops.sandbox.proposals import Arrival
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal


def router(provider: Provider) -> APIRouter:
    """Return the embeddings' route of one sandbox."""
    routes = APIRouter(prefix=PREFIX)

    @routes.post("/embeddings")
    async def embed(request: Request) -> Response:
        exchange = Exchange(provider, request, Where.CREATE)
        try:
            return await _embedded(exchange, await request.body())
        except Refusal as refusal:
            return exchange.refuse(refusal)

    return routes


async def _embedded(exchange: Exchange, body: bytes) -> Response:
    owner, document = exchange.owner, embedding.native(chat.parsed(body))
    digest, request_id = hashlib.sha256(body).hexdigest(), exchange.reply.request_id
    chat.find(exchange.provider.models, document["model"], "embedding")
    proposal = exchange.provider.consider(Arrival(owner, embedding.PATH, document, digest, request_id))
    rule = exchange.provider.faults.pick(Where.CREATE, proposal.model.id, proposal.entry.prompt)
    proposal.entry.fault = rule.what if rule else None

    async def make() -> Response:
        task = exchange.provider.make(proposal, rule)
        if task.failure is not None and rule is not None:
            raise Refusal(*rule.error)
        await asyncio.sleep(task.run_seconds)
        return exchange.reply.json(embedding.completion(task.order, request_id))

    return await spoil.carry_out(rule, make, exchange.refuse)
