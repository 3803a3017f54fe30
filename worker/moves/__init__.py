"""Moves on record: the one way to make a job and to move it.

`record` names the state and the claim that it leaves, and writes everything that belongs to the move (its event, the
attempt's answer, outputs, ledger lines, deliveries) in the same transaction. Many at a time are moved by `fair_queue`,
which admits jobs, by `children`, and by `bulk`, where a person asks for it; the statements are all `transition`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    DateTime,
    LargeBinary,
    Row,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import claims, document, money, text, webhooks, work
from worker.claims import NOW, Now
from worker.errors import ClaimLost, ErrorClass, Failure
from worker.lanes import slots, throttle
from worker.money import budgets
from worker.moves import children, making, transition
from worker.states import DONE, TERMINAL, HeldFor, Mode, Move, State
from worker.tables import Attempt, Event, IdempotencyKey, Job, Output, Project
from worker.webhooks import endpoints

_NO_ANSWER = frozenset({"unknown", "not_sent"})
_ANSWERS = frozenset({"accepted", "refused", "not_sent"})  # that settle what became of a lost call
_CANCELED = {
    "no": "canceled, and nothing was made",
    "unknown": "canceled; a call for it went without an answer, and may be billed",
    "yes": "canceled; a call for it was answered too late, and is billed",
}
_NOTED = "job.noted"  # nobody but the history is told of it
_TYPES = {State.SUBMITTING: "job.submitted"}  # the event's type where it is not the state's own name


class AlreadyRecorded(Exception):  # not an error: the commit held and its answer was lost
    """The move is on record already; `job` is the row."""

    def __init__(self, job: Job) -> None:
        super().__init__(str(job.id))
        self.job = job


def make(connection: Connection, row: dict[str, Any], now: datetime | None) -> Job:
    """Makes a job, as its first event says, and reserves its estimate; `row` is what was asked for.

    `now` is when; None: the time of the statement, by Postgres. It is held where a budget of its project holds what it
    has no room for. Raises BudgetExhausted where one refuses it, InvalidInput where one counts, and the price is not
    known.
    """
    job = _make(connection, row, _making(tuple(row), once=False, free=True), {"now": now})
    job = job or _make_within(connection, row, budgets.locked(connection, row["project_id"], now))
    assert job is not None, "without a key nothing keeps it from being made"
    return job


def make_once(connection: Connection, row: dict[str, Any], key: Mapping[str, Any], now: datetime | None) -> Job | None:
    """Makes a job as `make` does; None where its project has a job under that Idempotency-Key already.

    `key` is the key and the hash of its request. While another transaction makes a job under it, this one waits.
    """
    job = _make(connection, row, _making(tuple(row), once=True, free=True), {"now": now, **key})
    if job is not None:
        return job
    room = budgets.locked(connection, row["project_id"], now)
    used = {"the_project": row["project_id"], "the_key": key["key"]}
    # looked at under the lock: whoever makes a job under it had to have that
    if not room.standings or connection.execute(_KEY_USED, used).scalar_one():
        return None
    return _make_within(connection, row, room, key)


def record(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    """Puts a move on record; the job as it is then.

    For a move to `submitting` look at what came back: it is `admitted` still when the lane's rate makes it wait,
    `canceled` when somebody asked for that, and `failed` when it is after its `not_after`. It is `uncertain` when what
    was inferred of a lost call came later than the call's own answer. Raises ClaimLost when the row is no longer ours;
    what `move.attempt` says is written and booked all the same, so commit. Raises AlreadyRecorded when it is called
    again after a commit that held.
    """
    left = State(job.state)
    if move.to is State.SUBMITTING:
        return _begin(connection, job, move, now)
    if job.mode == Mode.PARENT and move.to in DONE:
        move = replace(move, columns={**move.columns, **children.paid(connection, job.id)})
    event = transition.Told(_type(left, move.to), move.why, now) if move.to is not left or move.why else None
    answer = _answer(job, move, now)
    written = transition.one(connection, job, move.to, _columns(job, move, now), event, answer)
    if answer is not None and answer.guard == "unanswered" and written.attempt is None:
        return record(connection, job, Move(State.UNCERTAIN, "the call's own answer has come meanwhile", now), now)
    moved = written.job
    settles = moved is not None and written.attempt is not None and job.parent_id is None and _is_paid(move)
    if written.attempt is not None:
        _book(connection, job, move, written.attempt, settles, now)
    if moved is None:
        raise _lost(connection, job, move, now)
    _carry_out(connection, job, move, now)
    if event is not None:
        _send(connection, moved, event.type, written.event_id, written.listens, now)
    if move.to is State.RUNNING and moved.cancel_requested:
        # asked for while the create call was out: the provider drops only what has not started, so now or never
        connection.execute(_HURRY, {"the_id": job.id, "now": now})
    if not settles:
        _release(connection, moved, left, move, now)
    if move.to is State.QUEUED and moved.cancel_requested:
        return record(connection, moved, canceled(moved), now)
    return moved


def suspect(connection: Connection, job: Job, attempt: Mapping[str, Any], why: str, now: datetime) -> Job:
    """Makes a job that waits uncertain, with a call that these rows did not make; `attempt` is that call's row."""
    connection.execute(insert(Attempt).values({**attempt, "job_id": job.id, "project_id": job.project_id}))
    columns = {
        "attempt_id": attempt["id"],
        "attempts": attempt["number"],
        "submitted_at": attempt["sent_at"],
        "billed": "unknown",
    }
    where = {name: getattr(job, name) for name in ("account", "region", "lane_id")}
    return record(connection, job, Move(State.UNCERTAIN, why, columns=columns | where), now)


def note(connection: Connection, job: Job, columns: dict[str, Any], why: str, now: datetime) -> Job:
    """Changes columns of a job that stays in its state, under its claim, and writes an event that says why."""
    mine = update(Job).where(Job.id == job.id, Job.state == job.state, Job.claim == job.claim)
    noted = mine.values(columns | {"sequence": Job.sequence + 1}).returning(*Job.__table__.c)
    changed = Job.of(connection.execute(noted).mappings().one())
    said = {
        "job_id": changed.id,
        "project_id": changed.project_id,
        "sequence": changed.sequence,
        "type": _NOTED,
        "left": changed.state,
        "entered": changed.state,
        "why": why,
        "claim": changed.claim,
        "at": now,
    }
    connection.execute(_EVENT, said)
    return changed


def canceled(job: Job) -> Move:
    """The end of a job that is to be canceled, while no call of its is out: what it may have cost is said."""
    return Move(State.CANCELED, _CANCELED[job.billed])


def overdue(not_after: datetime | None, billed: str) -> Move:
    """The end of a job that was not sent by its `not_after`."""
    failure = Failure(
        "not_sent_in_time",
        ErrorClass.DEADLINE,
        f"it was not sent to the provider by {text.moment(not_after)}, as was asked",
        retryable=True,
        billed=billed,  # a call before this one may have gone without an answer
        hint="retry it, which takes the time limit off, or submit it again with a later not_after",
    )
    return Move(State.FAILED, failure.message, columns={"error": failure.as_json()})


def record_waits(connection: Connection, waits: Sequence[tuple[Job, Move]], now: datetime) -> int:
    """Puts many waits of `running` jobs on record at once; of how many. Rows that are no longer ours are left alone."""
    if not waits:
        return 0
    looks = zip(*(_look(job, move, now) for job, move in waits), strict=True)
    return connection.execute(_WAITED, dict(zip(_LOOKS.c.keys(), map(list, looks), strict=True))).rowcount


def reread(connection: Connection, job: Job) -> Job:
    """The job's row as it is now."""
    return Job.of(connection.execute(_REREAD, {"the_id": job.id}).mappings().one())


def _make(connection: Connection, row: dict[str, Any], making: Select[Any], more: dict[str, Any]) -> Job | None:
    bound = {f"to_{name}": value for name, value in row.items()}
    made = connection.execute(making, bound | more).mappings().one_or_none()
    if made is None:
        return None
    job = Job.of(made)
    _send(connection, job, _type(None, State(job.state)), made["event_id"], made["listens"], job.created_at)
    return job


def _make_within(
    connection: Connection, row: dict[str, Any], room: budgets.Room, key: Mapping[str, Any] | None = None
) -> Job | None:
    """Makes a job within its project's budgets, or held for one."""
    if room.holds(row["estimate"], row["model"]):
        row = row | budgets.HELD
    making = _making(tuple(row), once=key is not None, free=False)
    return _make(connection, row, making, {"now": room.at, **(key or {})})


def _type(left: State | None, to: State) -> str:
    """The type of a move's event."""
    return _TYPES.get(to, f"job.{to}") if left != to else _NOTED


def _begin(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    """Admitted to submitting: an attempt on record, an instant of the lane's rate booked; or a wait, or canceled."""
    assert move.attempt is not None, "a create call is an attempt"
    attempt = {name: value for name, value in move.attempt.items() if name != "tokens"}
    wanted = move.attempt.get("tokens")
    columns = {
        "state": State.SUBMITTING,
        "state_at": now,
        "crashes": 0,
        "attempt_id": attempt["id"],
        "attempts": attempt["number"],
        "unproven": False,
        # a whole lease for the call: what came before it may have used this one up
        "run_at": now + work.of_create(job.mode),
    }
    event = transition.Told(_type(State.ADMITTED, State.SUBMITTING), move.why, now)
    reserving, reserved = slots.reserving(connection, job, wanted, now)
    booked, begun = transition.begin(connection, job, columns, event, reserving, reserved, attempt)
    if booked is None:
        return _wait(connection, job, slots.obstacle(connection, job, wanted, now), now)
    if begun.job is None:
        if booked.is_counted and wanted is not None and job.lane_id:
            throttle.settle_tokens(connection, job.lane_id, -wanted, now, now)
        return _not_begun(connection, job, move, now)
    _send(connection, begun.job, event.type, begun.event_id, begun.listens, now)
    return begun.job


def _wait(connection: Connection, job: Job, wait: slots.Wait, now: datetime) -> Job:
    """Keeps the slot until the lane's rate allows the create; gives it back where the lane has closed."""
    if wait.again_at is not None:
        return record(connection, job, Move(State.ADMITTED, run_at=wait.again_at), now)
    if reread(connection, job).cancel_requested:
        return record(connection, job, canceled(job), now)
    back = Move(State.QUEUED, "gave its slot back: nothing may be sent now", columns={"tokens": wait.short})
    return record(connection, job, back, now)


def _not_begun(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    assert move.attempt is not None
    found = reread(connection, job)
    if found.state == State.SUBMITTING and found.attempt_id == move.attempt["id"]:
        return found  # our own commit, whose answer was lost
    if found.claim != job.claim or found.state != State.ADMITTED:
        raise ClaimLost(f"job {job.id} is {found.state} under claim {found.claim}")
    end = canceled(job) if found.cancel_requested else overdue(job.not_after, job.billed)
    return record(connection, job, end, now)


def _answer(job: Job, move: Move, now: datetime) -> transition.Answer | None:
    """What a move says of the open attempt, and what its row must say still, for this to be written over it."""
    said = move.attempt
    if said is None:
        return None
    columns, bound = {"answered_at": now, **said}, dict[str, Any]()
    if job.state == State.RUNNING:
        guard = "its_task" if "task_id" in said else "any"
        bound = {"the_task": job.task_id} if guard == "its_task" else {}
    elif job.state == State.HELD or (job.state == State.UNCERTAIN and "outcome" in said):
        guard = "unanswered"
        bound = {"the_outcome": said.get("outcome"), "the_task": said.get("task_id")}
    else:
        guard = "sent" if said.get("outcome") in _NO_ANSWER else "any"
    return transition.Answer(columns, guard, bound)


def _carry_out(connection: Connection, job: Job, move: Move, now: datetime) -> None:
    """What a move makes beside: its outputs' rows, and its effects."""
    if move.outputs:
        rows = [{**output, "job_id": job.id, "project_id": job.project_id} for output in move.outputs]
        connection.execute(_OUTPUT, rows)
    for effect in move.effects:
        effect.carry_out(connection, job, now)


def _is_paid(move: Move) -> bool:
    """Whether the move says that the job's call was billed."""
    said = move.attempt or {}
    return bool(said.get("closed_at")) and said.get("billed") == "yes"


def _book(connection: Connection, job: Job, move: Move, attempt: Row[Any], settles: bool, now: datetime) -> None:
    """Books the verdict of an answer, and the tokens that it took; told a second time, it makes no difference.

    `settles`: the call is paid, and what was reserved for it is given back too.
    """
    said = move.attempt or {}
    used = said.get("tokens")
    if used is not None and attempt.booked is not None and attempt.booked != used and job.lane_id:
        throttle.settle_tokens(connection, job.lane_id, used - attempt.booked, attempt.was_sent_at, now)
    known = {name: move.columns.get(name, getattr(job, name)) for name in ("cost", "usage")}
    bill = money.Bill(said.get("billed", "no"), **known)
    if settles:
        money.pay(connection, job, job.attempt_id, bill, now)
    elif said.get("closed_at"):
        money.book(connection, job, job.attempt_id, bill, now)


def _lost(connection: Connection, job: Job, move: Move, now: datetime) -> Exception:
    """Why a job could not be moved; what the move says of a call is told to whoever has the job now."""
    found = reread(connection, job)
    if found.claim == job.claim and found.state == move.to and found.sequence == job.sequence + 1:
        return AlreadyRecorded(found)
    _tell_late(connection, job, move, now)
    _free(connection, job, move, now)
    return ClaimLost(f"job {job.id} is {found.state} under claim {found.claim}")


def _columns(job: Job, move: Move, now: datetime) -> dict[str, Any]:
    left = State(job.state)
    columns = {**move.columns, **transition.entered({left}, move.to, now)}
    if columns["run_at"] is not None:
        columns["run_at"] = None if move.rests else move.run_at or now
    if move.to is State.HELD:
        columns |= {"held_from": left, "held_for": move.columns.get("held_for", HeldFor.UNCERTAIN)}
    return columns


def _release(connection: Connection, job: Job, left: State, move: Move, now: datetime) -> None:
    """Gives back what was reserved, once the job's call is paid for, or it is done and no verdict is missing."""
    if job.parent_id is not None:
        return
    # what is copied was paid for, and its reservation given back, before
    has_ended = move.to in TERMINAL and (left is not State.COPYING or bool(move.attempt))
    is_over = move.to in DONE and job.mode == Mode.PARENT
    is_free = left is State.ADMITTED and move.to is State.COPYING  # the result cache's answer
    if _is_paid(move) or is_over or is_free or (has_ended and not _is_open(connection, job)):
        money.release(connection, job, now)


def _is_open(connection: Connection, job: Job) -> bool:
    """Whether the verdict on the job's last call is missing."""
    if job.billed != "unknown":
        return False
    closed_at = select(Attempt.closed_at).where(Attempt.id == job.attempt_id)
    return connection.execute(closed_at).scalar_one_or_none() is None


def _tell_late(connection: Connection, job: Job, move: Move, now: datetime) -> None:
    """The job's row says what a verdict said that came after the claim was lost, if it is of its last call still."""
    said = move.attempt or {}
    if not said.get("closed_at") or said.get("billed") not in ("yes", "no"):
        return
    cost = move.columns.get("cost", job.cost) if said["billed"] == "yes" else None
    told = update(Job).where(Job.id == job.id, Job.attempt_id == job.attempt_id, Job.billed != said["billed"])
    row = connection.execute(told.values(billed=said["billed"], cost=cost).returning(Job.finished_at)).one_or_none()
    if job.parent_id is not None or (row and row.finished_at):
        close(connection, job, now)


def _free(connection: Connection, job: Job, move: Move, now: datetime) -> None:
    """Lets a job go on that is held since nobody knew of its call: the answer is on the attempt's row now."""
    if (move.attempt or {}).get("outcome") not in _ANSWERS:
        return
    found = reread(connection, job)
    if found.held_for == HeldFor.UNCERTAIN and found.attempt_id == job.attempt_id:
        record(connection, found, Move(State.UNCERTAIN, "its call's own answer has come", now), now)


def close(connection: Connection, job: Job, now: datetime) -> None:
    """Closes the books of a job that has ended: gives back what was reserved, or tells its parent, once that ended."""
    if job.parent_id is None:
        money.release(connection, job, now)
    else:
        children.tell_paid(connection, job.parent_id)


def _send(
    connection: Connection, job: Job, event_type: str, event_id: int | None, listens: bool, now: datetime
) -> None:
    """Writes the deliveries of an event: to the job's receiver where it wants it, and to endpoints where one `listens`.

    Of a part of a job nobody is told.
    """
    is_wanted = bool(job.webhook_url) and webhooks.wanted(event_type, job.webhook_events)
    listens = listens and job.parent_id is None and event_type in endpoints.EVENTS
    if event_id is None or not (is_wanted or listens):
        return
    about = {"the_project": job.project_id, "the_job": job.id, "the_attempt": job.attempt_id}
    rows = connection.execute(_ABOUT, about).all()
    stored = [Output.of(row._mapping) for row in rows if row.n is not None]  # noqa: SLF001
    made_of = document.parts(connection, [job]).get(job.id)
    shown = document.shown(rows[0].project, job, stored, rows[0].request_id, None, made_of)
    body = making.body(event_type, job, shown, now)
    if is_wanted:
        webhooks.enqueue(connection, job.project_id, job.id, event_id, job.webhook_url or "", body)
    if listens:
        endpoints.enqueue_all(connection, job.project_id, event_type, [(job.id, event_id, body)])


def _look(job: Job, move: Move, now: datetime) -> tuple[Any, ...]:
    status = move.columns.get("task_status", job.task_status)
    return (job.id, job.claim, move.run_at or now, status, move.columns.get("unknown_since"), job.cancel_requested)


# Statements are built once for each set of columns: to build one costs more than to run it.

_KEY_USED = select(
    exists().where(
        IdempotencyKey.project_id == bindparam("the_project", type_=Uuid),
        IdempotencyKey.key == bindparam("the_key", type_=Text),
    )
)
_LOOKS = claims.unnested(
    "looks",
    ids=Uuid(),
    numbers=BigInteger(),
    run_ats=DateTime(timezone=True),
    statuses=Text(),
    unknown_since=DateTime(timezone=True),
    asked=Boolean(),
)
# asked for since the look began: as in `_HURRY`, now or never
_ASKED = and_(Job.cancel_requested, ~_LOOKS.c.asked)
# puts waits of running jobs on record
_WAITED = (
    update(Job)
    .where(Job.id == _LOOKS.c.ids, Job.claim == _LOOKS.c.numbers, Job.state == State.RUNNING)
    .values(
        run_at=case((_ASKED, NOW), else_=_LOOKS.c.run_ats),
        claimed=None,
        crashes=0,
        polls=Job.polls + 1,
        task_status=_LOOKS.c.statuses,
        unknown_since=_LOOKS.c.unknown_since,
    )
)
_EVENT = insert(Event)
_OUTPUT = upsert(Output).on_conflict_do_nothing()
_HURRY = update(Job).where(Job.id == bindparam("the_id"), Job.claimed.is_(None)).values(run_at=bindparam("now"))
_REREAD = select(*Job.__table__.c).where(Job.id == bindparam("the_id"))
# what a receiver is told beside the job's row: its project's name, its last call's request id, and each output
_REQUEST_ID = select(Attempt.request_id).where(Attempt.id == bindparam("the_attempt", type_=Uuid)).scalar_subquery()
_ABOUT = (
    select(Project.name.label("project"), _REQUEST_ID.label("request_id"), *Output.__table__.c)
    .outerjoin(Output, Output.job_id == bindparam("the_job", type_=Uuid))
    .where(Project.id == bindparam("the_project", type_=Uuid))
    .order_by(Output.n)
)


def is_overdue(now: Now) -> ColumnElement[bool]:
    """Whether nothing of the job was sent by its `not_after`, and nobody is about to send it.

    A parent counts as sent once it gathers.
    """
    waits = or_(work.in_states(State.QUEUED, State.ADMITTED), Job.held_from.in_((State.QUEUED, State.ADMITTED)))
    # the index's own condition, in its words
    listed = and_(Job.not_after.is_not(None), work.in_states(State.QUEUED, State.HELD, State.ADMITTED))
    return and_(listed, Job.not_after < now, waits, Job.claimed.is_distinct_from(claims.TAKEN))


@cache
def _making(columns: tuple[str, ...], once: bool, free: bool) -> Select[Any]:
    """Makes a job with its event and its reservation; `once`: unless its project has a job under that key already.

    `free`: unless its project has a budget, so that those without one need no other statement.

    What is written is looked at by no foreign key before the statement has ended, so the order is free.
    """
    table, moment = Job.__table__, func.coalesce(bindparam("now", type_=DateTime(timezone=True)), NOW)
    born = select(func.uuidv7().label("id"), moment.label("at")).cte("born")
    asked = {name: bindparam(f"to_{name}", type_=table.c[name].type) for name in columns}
    written = making.columns(born, asked)
    given = select(*written.values())
    if free and not once:
        given = given.where(budgets.is_free(asked["project_id"]))
    if once:
        key = select(asked["project_id"], bindparam("key", type_=Text), bindparam("hash", type_=LargeBinary), *born.c)
        key = key.where(budgets.is_free(asked["project_id"])) if free else key
        names = ("project_id", "key", "request_hash", "job_id", "created_at")
        kept = upsert(IdempotencyKey).from_select(names, key).on_conflict_do_nothing().returning(IdempotencyKey.key)
        given = given.where(exists(select(kept.cte("kept"))))
    made = making.inserted(written, given)
    told = making.told(made)
    listens = endpoints.listens(made.c.project_id, literal("job.").concat(made.c.state)).label("listens")
    whole = select(made, told.c.id.label("event_id"), listens).join(told, told.c.job_id == made.c.id)
    return whole.add_cte(making.reserved(made))
