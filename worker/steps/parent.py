"""The steps of a parent: a job whose children do the work.

    queued      begin      it skips its lane, since it calls nobody itself
    gathering   gather     the next round of children, when those of the last have ended; or their common end
    copying     assemble   its outputs from theirs, streamed into the bucket

A round is made in portions. Each is on record with the kind's own note of how far it is, so a parent whose worker dies
goes on where it was. Between rounds only its children's end makes the parent due.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from worker import egress, kinds, money, moves, storage, timeouts
from worker.context import Clock, Context, Moves
from worker.errors import CallFailed, ErrorClass, Failure, NoriaError, NotFound
from worker.kinds import KINDS, ParentKind
from worker.kinds.kind import Child, Expansion, Found, Parent, Piece, Stored, Unfit
from worker.lanes import throttle
from worker.moves import children
from worker.moves.children import Counts
from worker.states import Move, State
from worker.steps import finish
from worker.tables import Job

_ROOM = timedelta(seconds=10)  # between two looks whether the project may have more children


def begin(_: Context, job: Job, clock: Clock) -> Move:
    """On to its children; or its end, where nobody wants it any more, or its time has passed."""
    if job.cancel_requested:
        return Move(State.CANCELED, "canceled before anything was sent")
    if job.not_after is not None and job.not_after < clock():
        return moves.overdue(job.not_after, job.billed)
    return Move(State.GATHERING)


def gather(ctx: Context, job: Job, clock: Clock) -> Moves:
    """The next children, or a rest while some are at work; then its outputs, or its end."""
    fan_out, counts = kinds.parent(job.kind), ctx.children(job)
    doomed = _doomed(job, fan_out, counts)
    if counts.unfinished and (doomed or not job.round_open):
        yield Move(State.GATHERING, doomed or "", effects=(children.Cancel(doomed),) if doomed else (), rests=True)
        ctx.wake(job.id)  # they may have ended in the meantime
        return
    if job.cancel_requested:
        yield Move(State.CANCELED, "canceled, and its parts have ended")
    elif doomed:
        yield _failed(ctx.read(lambda connection: children.first_failed(connection, job)))
    else:
        yield from _expand(ctx, job, fan_out, counts, clock)


def assemble(ctx: Context, job: Job, clock: Clock) -> Move:
    """Its outputs into the bucket, all of them on record at once."""
    fan_out, parent = kinds.parent(job.kind), _parent(ctx, job, job.round, 0)
    store = _KindStore(ctx, job, parent, clock, clock() + timeouts.copying(clock() - job.state_at))
    outputs: list[dict[str, Any]] = []
    try:
        for n, piece in enumerate(fan_out.assemble(parent, store)):
            outputs.append(store.keep(n, piece))
    except (Unfit, NotFound) as error:
        return _ended(_unusable(ctx, parent, error), {})
    except NoriaError as trouble:
        return _troubled(job, State.COPYING, trouble, clock())
    return finish.stored(job, {"usage": fan_out.usage(parent)}, outputs)


def _expand(ctx: Context, job: Job, fan_out: ParentKind, counts: Counts, clock: Clock) -> Moves:
    """Asks the kind for what comes next, and puts it on record; waits while the project has too many children."""
    if _is_full(ctx, job):
        yield Move(State.GATHERING, run_at=clock() + _ROOM)
        return
    number, made = (job.round, counts.in_round) if job.round_open else (job.round + 1, 0)
    parent = _parent(ctx, job, number - 1, made)
    store = _KindStore(ctx, job, parent, clock, clock() + timeouts.GATHER)
    try:
        said = fan_out.expand(parent, store)
    except NotFound as error:
        said = _unusable(ctx, parent, error)
    except NoriaError as trouble:
        yield _troubled(job, State.GATHERING, trouble, clock())
        return
    columns: dict[str, Any] = {"error": None} if said.note is None else {"error": None, "note": said.note}
    total = made + len(said.children)
    if said.failure is not None and not counts.unfinished:
        yield _ended(said, columns | {"usage": fan_out.usage(parent)})
    elif said.failure is not None:
        # nothing of this answer is kept: the kind is asked the same again once they have ended
        why = said.failure.message
        yield Move(State.GATHERING, why, effects=(children.Cancel(why),), rests=True)
        ctx.wake(job.id)
    elif said.more:
        columns |= {"round": number, "round_open": True}
        again_at = clock() + (said.again_after or timedelta(0))
        make = children.Make(_rows(ctx, number, made, said, clock))
        yield Move(State.GATHERING, said.why, again_at, columns, effects=(make,))
    elif total:
        columns |= {"round": number, "round_open": False}
        why = said.why or f"round {number}: {total} parts"
        make = children.Make(_rows(ctx, number, made, said, clock))
        yield Move(State.GATHERING, why, columns=columns, effects=(make,), rests=True)
        ctx.wake(job.id)
    else:
        yield Move(State.COPYING, said.why, columns=columns | {"round_open": False})


def _is_full(ctx: Context, job: Job) -> bool:
    """Whether the project has as many unfinished children as it may.

    Parents are not counted: those that wait for room would otherwise block each other forever.
    """
    most = ctx.settings.max_waiting
    return ctx.read(lambda connection: children.unfinished(connection, job.project_id, most)) >= most


def _unusable(ctx: Context, parent: Parent, error: NoriaError) -> Expansion:
    """The end of a parent whose parts are of no use, or gone from the bucket; those that are gone can be made again."""
    gone = tuple(
        part.id for part in parent.ended if any(ctx.bucket.head(output.key) is None for output in part.outputs)
    )
    cls = ErrorClass.STORAGE if gone else ErrorClass.PROVIDER
    return Expansion(failure=Failure(error.code, cls, str(error), retryable=bool(gone), billed="yes"), unfit=gone)


def _ended(said: Expansion, columns: dict[str, Any]) -> Move:
    assert said.failure is not None, "only a failure ends a parent here"
    told, why = {**columns, "error": said.failure.as_json()}, said.failure.message
    return Move(State.FAILED, why, columns=told, effects=(children.Fail(said.unfit, why),))


def _troubled(job: Job, state: State, trouble: NoriaError, now: datetime) -> Move:
    """A wait for the bucket or a link; it ends after three days once all parts are made and only joining is left."""
    failure = Failure(trouble.code, ErrorClass.STORAGE, str(trouble), retryable=True, billed="yes")
    columns = {"error": failure.as_json()}
    if state is State.COPYING and now - job.state_at > timeouts.ASSEMBLED:
        return Move(State.FAILED, f"could not be put together for three days: {trouble}", columns=columns)
    return Move(state, run_at=now + timeouts.backoff(now - job.state_at), columns=columns)


def _doomed(job: Job, fan_out: ParentKind, counts: Counts) -> str | None:
    """Why the children that have not begun need not begin; None where they are wanted."""
    if job.cancel_requested:
        return "its job was canceled"
    if fan_out.all_or_none and counts.failed:
        return "another part failed, and all of them are needed"
    return None


def _failed(part: Job | None) -> Move:
    assert part is not None, "a part was counted as failed"
    error = part.error or {}
    message = (
        f"part {(part.place or 0) + 1} of round {part.round} {part.state}: {error.get('message', 'no reason given')}"
    )
    told = {
        **error,
        "message": message,
        "code": error.get("code", "part_failed"),
        "class": error.get("class", "provider"),
    }
    return Move(State.FAILED, message, columns={"error": told})


def _parent(ctx: Context, job: Job, rounds: int, made: int) -> Parent:
    return Parent(
        model=job.model,
        input=KINDS[job.kind].input.model_validate(job.input),
        note=job.note or {},
        round=rounds,
        made=made,
        ended=ctx.read(lambda connection: children.ended(connection, job, rounds)),
        prefixes=(f"{job.project_id}/", f"inbox/{ctx.project_name(job)}/"),
        settings=ctx.settings_of(job),
        catalog=ctx.catalog,
    )


def _rows(ctx: Context, number: int, made: int, said: Expansion, clock: Clock) -> tuple[dict[str, Any], ...]:
    on = clock().date()
    return tuple(_row(ctx, number, made + n, child, on) for n, child in enumerate(said.children))


def _row(ctx: Context, number: int, place: int, child: Child, on: date) -> dict[str, Any]:
    model, kind = ctx.catalog.model(child.model), KINDS[child.kind]
    wanted = kind.input.model_validate(child.input)
    return {
        "round": number,
        "place": place,
        "kind": child.kind,
        "model": model.id,
        "mode": model.mode,
        "input": wanted.model_dump(mode="json", exclude_none=True),  # complete, like any job's
        "note": child.note,
        "estimate": money.estimate(ctx.catalog, ctx.settings, child.kind, model.id, wanted, on),
    }


@dataclass(frozen=True)
class _KindStore:
    """What a kind may read and write for one job: its project's objects, users' links, working material."""

    ctx: Context
    job: Job
    parent: Parent
    clock: Clock
    until: datetime

    def read(self, key: str, limit: int) -> bytes:
        """An object's bytes, if it is the project's."""
        self._mine(key)
        return self.ctx.bucket.read(key, limit)

    def chunks(self, key: str) -> Iterator[bytes]:
        """An object's bytes, a piece at a time."""
        return self.ctx.bucket.chunks(key)

    def stream(self, key: str) -> Iterator[bytes]:
        """An object's bytes, a piece at a time, if it is the project's."""
        self._mine(key)
        return self.ctx.bucket.chunks(key)

    def listing(self, prefix: str) -> Iterator[Found]:
        """The objects under a prefix of the project's."""
        self._mine(prefix)
        return (Found(*found) for found in self.ctx.bucket.listing(prefix))

    def fetch(self, url: str, limit: int) -> tuple[bytes, str]:
        """What a user's link gives, each hop of it guarded."""
        bounds = egress.Bounds(timeouts.DOCUMENT.total_seconds(), limit)
        answer = egress.fetch(self.ctx.documents, url, bounds)
        if answer.status != 200:
            raise CallFailed(f"the link answers HTTP {answer.status}")
        return answer.body, answer.headers.get("content-type", "")

    def put(self, name: str, chunks: Iterable[bytes], content_type: str) -> Stored:
        """Working material, under the job's own name."""
        made = self.ctx.bucket.put_stream(
            f"{storage.stem(self.job)}/work/{name}", chunks, content_type, storage.Expected()
        )
        return Stored("work", made.key, made.bytes, None)

    def unserved(self, model: str) -> str | None:
        """Why the provider does not serve the account with the model, by its own word of the last days."""
        return self.ctx.read(lambda connection: throttle.unserved(connection, model))

    def is_late(self) -> bool:
        """Whether the step has had its time."""
        return self.clock() > self.until

    def keep(self, n: int, piece: Piece) -> dict[str, Any]:
        """An output, stored and checked: its row."""
        key = f"{storage.stem(self.job)}/{n}-{piece.role}.{piece.extension}"
        made = self.ctx.bucket.put_stream(key, self._in_time(piece.chunks), piece.content_type, storage.Expected())
        return storage.row(n, piece.role, made, piece.duration)

    def _in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, until the step's lease would lapse: another worker may begin anew then."""
        for chunk in chunks:
            if self.is_late():
                raise storage.SourceTrouble("not put together in time; more of it is given to the next try")
            yield chunk

    def _mine(self, key: str) -> None:
        if not key.startswith(self.parent.prefixes) or "/../" in key:
            raise NotFound(f"no object {key}")
