"""The compatible interface's batches: created, told of, listed, cancelled."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from ops.sandbox import backlog, batches, chat, exchange, files
from ops.sandbox.batches import Batch
from ops.sandbox.exchange import Exchange, Route
from ops.sandbox.faults import Rule, Where
from ops.sandbox.ledger import BatchCreate
from ops.sandbox.provider import Provider
from ops.sandbox.refusals import Refusal

MOST_LISTED = 100


def router(provider: Provider) -> APIRouter:
    """Return the batches' routes of one sandbox."""
    return exchange.mount(provider, CALLS)


async def create(desk: Exchange, owner: str, rule: Rule | None) -> Response:
    """Make a batch; whatever is wrong in its file is told by the batch, later."""
    provider = desk.provider
    entry = BatchCreate(provider.now(), owner, desk.reply.request_id, fault=rule.what if rule else None)
    provider.ledger.batch_creates.append(entry)
    try:
        batch = _made(desk, owner, chat.parsed(await desk.request.body()), rule)
    except Refusal as refusal:
        entry.refusal = refusal.code
        raise
    entry.batch_id, entry.ds_name = batch.id, batch.metadata.get("ds_name")
    return _told(desk, batch)


async def get(desk: Exchange, owner: str, _rule: Rule | None) -> Response:
    """Tell of one batch."""
    return _told(desk, desk.provider.backlog.find(owner, desk.path("batch_id"), desk.provider.now()))


async def list_batches(desk: Exchange, owner: str, rule: Rule | None) -> Response:
    """Tell of an account's batches, newest first; an empty list is null, as recorded."""
    now = desk.provider.now()
    found = desk.provider.backlog.listed(owner, desk.query, rule, now)
    shown, has_more = files.page(found, desk.query, MOST_LISTED)
    told = {
        "object": "list",
        "data": [batches.document(batch, now) for batch in shown] or None,
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": has_more,
    }
    return desk.reply.json(told)


async def cancel(desk: Exchange, owner: str, _rule: Rule | None) -> Response:
    """Cancel a batch; the answer, as recorded, does not yet say when."""
    batch = desk.provider.backlog.cancel(owner, desk.path("batch_id"), desk.provider.now())
    desk.provider.journal.note("batch_canceled", {"id": batch.id, "at": batch.canceled_at})
    return _told(desk, batch)


def _made(desk: Exchange, owner: str, document: Any, rule: Rule | None) -> Batch:
    provider, now = desk.provider, desk.provider.now()
    batch = backlog.order(document, owner, desk.reply.request_id, provider.options, provider.backlog.drawn, now)
    if rule is not None:
        backlog.bend(batch, rule, now)
    provider.backlog.add(batch, provider.models, provider.options.batch_lines)
    provider.journal.note("batch", batch.row())
    return batch


def _told(desk: Exchange, batch: Batch) -> Response:
    return desk.reply.json(batches.document(batch, desk.provider.now()))


CALLS = (
    Route("POST", "/batches", Where.BATCH_CREATE, "batch_create", create),
    Route("GET", "/batches", Where.BATCH_LIST, "batch_list", list_batches),
    Route("GET", "/batches/{batch_id}", Where.BATCH_GET, "batch_get", get),
    Route("POST", "/batches/{batch_id}/cancel", Where.BATCH_CANCEL, "batch_cancel", cancel),
)
