"""A create from its arrival to the task it proposes: read and checked by what its model makes."""

import uuid
from dataclasses import dataclass
from typing import Any

from ops.sandbox import embedding, generation, orders, speech, text
from ops.sandbox.ledger import Create
from ops.sandbox.models import Call, Model
from ops.sandbox.options import Options
from ops.sandbox.orders import Order
from ops.sandbox.refusals import Refusal, invalid
from ops.sandbox.tasks import Task
from ops.sandbox.text import Answer, Cache

BATCH_CHAT = "batch-chat"  # the path of its calls: here, the provider has it on a host of its own


@dataclass(frozen=True)
class Arrival:
    """A create call as it came, in the native form whatever interface it came by."""

    owner: str
    path: str  # under /api/v1/services/
    document: dict[str, Any]
    body_sha256: str
    request_id: str
    is_async: bool = False
    resolves_oss: bool = False
    streams: bool = False


@dataclass(frozen=True)
class Proposal:
    """A create that may go ahead: what it asks for, of which model, and its line in the ledger."""

    model: Model
    call: Call
    order: Order
    entry: Create
    failure: tuple[str, str] | None  # why the task will fail: a bad parameter that is found late
    answer: Answer | None  # of a text call

    def task(self, now: float) -> Task:
        """Return the task that is proposed, without times and price."""
        return Task(
            id=str(uuid.uuid4()),
            owner=self.entry.owner,
            order=self.order,
            request_id=self.entry.request_id,
            body_sha256=self.entry.body_sha256,
            received_at=now,
            submitted_at=now,
            queue_seconds=0.0,
            run_seconds=0.0,
            failure=self.failure,
            failed_pictures=0,
            price_micros=0,
            is_async=self.call.is_async,
            answer=self.answer,
        )


def order(arrival: Arrival, model: Model, call: Call, options: Options) -> tuple[Order, tuple[str, str] | None]:
    """Return the order that a create places, and why it will fail later; or raise the Refusal it earns."""
    document = arrival.document
    if model.makes == "speech":
        return speech.check(document, model, options.speech_unit), None
    if model.makes == "embedding":
        return embedding.check(document, model), None
    if model.makes == "text":
        if not arrival.resolves_oss and any(link.startswith("oss://") for link in orders.links(document["input"])):
            raise invalid("The provided URL does not appear to be valid. Ensure it is correctly formatted.")
        return generation.check(document, model, call, arrival.streams), None
    try:
        return orders.check(document, model, call, arrival.resolves_oss), None
    except Refusal as refusal:
        if not options.late_checks or not call.is_async or refusal.code != "InvalidParameter":
            raise
        failure = (refusal.code, refusal.message)
        return orders.check(document | {"parameters": {}}, model, call, arrival.resolves_oss), failure


def answer(arrival: Arrival, model: Model, cache: Cache, seed: int) -> Answer | None:
    """Return the answer to a text call, None for any other."""
    if model.makes != "text":
        return None
    messages = generation.messages(arrival.document)
    asked = generation.asked(arrival.document, arrival.streams)
    # Batch Chat's discount is its own, as a batch's is.
    seen = 0 if arrival.path == BATCH_CHAT else cache.hit(arrival.owner, model, messages)
    return text.answer(model, messages, asked, seed, seen)
