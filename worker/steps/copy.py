"""The step of a job whose outputs are on their way into the bucket."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from worker import document, kinds, storage, timeouts
from worker.context import Clock, Context
from worker.dashscope.responses import Refused
from worker.errors import CallFailed, ErrorClass, Failure, NoriaError
from worker.kinds import Source
from worker.states import Move, State
from worker.steps import finish
from worker.tables import Job


def step(ctx: Context, job: Job, clock: Clock) -> Move:
    """Copies every output into the bucket, links or words; all are on record once they are there and checked."""
    if job.result is not None and not job.sources:
        return _written(ctx, job, clock)
    now, dies_at = clock(), job.links_expire_at or clock() + timeouts.LINKS
    if now >= dies_at + timeouts.RELINK:  # with room for clocks that differ, and for asking for the link again
        last = (job.error or {}).get("message", "")
        return _expired(job, f"the links died before their outputs could be copied. {last}".strip())
    if not job.sources:
        failure = Failure("no_output", ErrorClass.PROVIDER, "the task succeeded without any output", billed=job.billed)
        return Move(State.FAILED, failure.message, columns={"error": failure.as_json()})
    deadline = timeouts.copying(now - job.state_at)
    stored = _stored(ctx, job) if len(job.sources) > 1 else frozenset()
    outputs: list[dict[str, Any]] = []
    try:
        for n, source in enumerate(job.sources):
            if n not in stored:
                outputs.append(_copied(ctx, job, n, Source(**source), deadline))
    except storage.LinkDead as dead:
        return _relinked(ctx, job, str(dead), clock, tuple(outputs))
    except (storage.BadSource, storage.SourceTrouble, storage.StorageTrouble) as trouble:
        # a source of a wrong type or host is tried again too: it is paid for, and a person can set that right while the
        # link lives; what is stored stays stored
        error = {"error": _trouble(trouble)}
        return Move(State.COPYING, run_at=_backoff(job, clock), columns=error, outputs=tuple(outputs))
    return finish.stored(job, {}, outputs)


def _stored(ctx: Context, job: Job) -> frozenset[int]:
    """The numbers of the job's outputs that are in the bucket already."""
    outputs = ctx.read(lambda connection: document.outputs(connection, [job]))
    return frozenset(output.n for output in outputs[job.id])


def _copied(ctx: Context, job: Job, n: int, source: Source, deadline: timedelta) -> dict[str, Any]:
    name = f"{storage.stem(job)}/{n}-{source.role}"
    stored = storage.copy(ctx.sources, ctx.bucket, source.url, name, ctx.settings, deadline.total_seconds())
    is_seen = stored.content_type.startswith(("video/", "image/"))
    poster = "wanted" if is_seen and ctx.settings.posters else None
    return storage.row(n, source.role, stored, (job.usage or {}).get("seconds")) | {"poster": poster}


def _written(ctx: Context, job: Job, clock: Clock) -> Move:
    """Writes an answer in words as an object of its own."""
    is_bulky = kinds.call(job.kind).is_bulky
    body = json.dumps(job.result, ensure_ascii=False, indent=None if is_bulky else 2).encode()
    key = f"{storage.stem(job)}/0-answer.json"
    try:
        stored = ctx.bucket.put_stream(key, (body,), "application/json", storage.Expected(len(body)))
    except NoriaError as trouble:
        return Move(State.COPYING, run_at=_backoff(job, clock), columns={"error": _trouble(trouble)})
    done = finish.stored(job, {"result": None} if is_bulky else {}, (storage.row(0, "answer", stored, None),))
    return replace(done, attempt={"output": None}) if is_bulky else done


def _relinked(ctx: Context, job: Job, dead: str, clock: Clock, kept: tuple[dict[str, Any], ...]) -> Move:
    """Asks once for the link again, while the provider still keeps the task; `kept` are the outputs that are stored."""
    if job.relinked or job.task_id is None:
        return replace(_expired(job, dead), outputs=kept)
    try:
        seen = ctx.client(job).task(job.task_id)
    except CallFailed:
        seen = None
    if seen is None or isinstance(seen, Refused):
        return Move(State.COPYING, run_at=_backoff(job, clock), outputs=kept)
    sources = kinds.call(job.kind).outputs(seen.output)
    if not sources:
        return replace(_expired(job, f"{dead}; the provider keeps the task no more"), outputs=kept)
    columns = {
        "relinked": True,
        "sources": [asdict(source) for source in sources],
        "links_expire_at": finish.links_expire(sources, clock()),
    }
    return Move(State.COPYING, "the link was dead and is asked for again", columns=columns, outputs=kept)


def _expired(job: Job, message: str) -> Move:
    failure = Failure("output_expired", ErrorClass.STORAGE, message, billed=job.billed, hint=_EXPIRED_HINT)
    return Move(State.EXPIRED, message, columns={"error": failure.as_json()})


def _trouble(trouble: NoriaError) -> dict[str, Any]:
    cls = ErrorClass.STORAGE if isinstance(trouble, storage.StorageTrouble) else ErrorClass.NETWORK
    return Failure(trouble.code, cls, str(trouble), retryable=True, billed="yes").as_json()


def _backoff(job: Job, clock: Clock) -> datetime:
    now = clock()
    return now + timeouts.backoff(now - job.state_at)


_EXPIRED_HINT = "the output was made and billed, and its link lives 24 h; look for what kept the bucket from taking it"
