"""Synchronous calls: what they are told, at the end of their run or in frames all through it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ops.sandbox import answers, embedding, generation, links, speech, wire
from ops.sandbox.models import Model
from ops.sandbox.tasks import Task


def whole(task: Task, model: Model, urls: list[str], link_seconds: float, request_id: str) -> dict[str, Any]:
    """Return the answer as one document; `urls` are those of the files made."""
    if task.answer is not None:
        return generation.finished(task.answer, task.order.form, request_id)
    if model.makes == "embedding":
        return embedding.finished(task.order, request_id)
    if model.makes == "speech":
        return speech.finished(task, urls[0], links.expires_at(task, link_seconds), request_id)
    return answers.finished(task, model, urls, request_id)


def frames(task: Task, last: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield the answer as events, evenly through the run; `last` is the whole of it."""
    answer, request_id = task.answer, last["request_id"]
    told = generation.frames(answer, task.order, request_id) if answer else speech.frames(task, last)
    return _paced(list(told), task.run_seconds)


async def _paced(documents: list[dict[str, Any]], seconds: float) -> AsyncIterator[bytes]:
    for number, document in enumerate(documents, 1):
        await asyncio.sleep(seconds / len(documents))
        yield wire.event(number, document)
