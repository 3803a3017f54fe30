"""Sends the deliveries of a message, and what waits behind them, for a turn's time.

A message gives a thread one of the places that `receivers` counts. The thread tries its deliveries one after the other,
over a connection that is kept, and puts on record what became of them a handful at a time, or after a second. The same
transaction takes the next ones: of its receiver, or where that has none left, of another of the project's. So
deliveries that wait flow without a tick between them, and a receiver that does not answer holds two threads.

What is sent and not yet on record when its worker dies is sent again, once its lease lapses: at least once.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Integer,
    Row,
    Text,
    Uuid,
    bindparam,
    case,
    update,
)

from worker import claims, database, egress, log, timeouts, tracing, webhooks
from worker.claims import Numbers
from worker.settings import Settings
from worker.tables import Delivery
from worker.webhooks import alerts, endpoints, receivers

_OFF = webhooks.Tried("exhausted", None, "its endpoint is disabled, or deleted", None)  # which is not asked
_ON_RECORD = 1.0  # seconds after which what was tried is written, however little it is
_AWAY = timedelta(seconds=15)  # how long a message waits for the database

_log = log.get(__name__)


@dataclass(frozen=True)
class _Taken:
    """A delivery that is ours, what signs it, whether its receiver did not answer before; or its endpoint is off."""

    delivery: Delivery
    secret: str | None
    was_silent: bool
    is_off: bool


class _Handful:
    """Deliveries of one project to one receiver that were taken together."""

    def __init__(self, rows: Sequence[Row[Any]]) -> None:
        taken = [_Taken(Delivery.of(row._mapping), row.secret, row.was_silent, row.is_off) for row in rows]  # noqa: SLF001
        self.first = taken[0].delivery
        self.is_full = len(taken) >= receivers.ROWS
        self.left = deque(taken)  # what has not been tried
        self.gone: set[uuid.UUID] = set()  # endpoints that said meanwhile that they want no more


_Tries = Sequence[tuple[_Taken, webhooks.Tried]]


@dataclass(frozen=True)
class Courier:
    """What deliveries are sent with; `patience`: with a database that is away, `turn`: how long a message goes on."""

    engine: Engine
    transport: egress.Transport
    settings: Settings
    patience: timedelta
    turn: timedelta = timeouts.TURN

    def deliver(self, numbers: Numbers) -> bool:
        """Tries the deliveries of a message, then others of their project; whether some may wait for a tick."""
        ends = time.monotonic() + self.turn.total_seconds()
        rows = database.until_it_holds(lambda: self._take(numbers), "claims", _AWAY)
        clock, handful, is_over = _clock(rows[0].now) if rows else None, _handful(rows), False
        while handful and clock:
            tries = self._try(handful, clock, ends)
            # a delivery on which a worker died goes alone
            is_over = _is_silent(tries) or time.monotonic() > ends or handful.first.crashes > 0
            handful = self._go_on(handful, tries, clock(), is_over)
        return is_over

    def _take(self, numbers: Numbers) -> Sequence[Row[Any]]:
        with self.engine.begin() as connection:
            return receivers.take(connection, numbers)

    def _try(self, handful: _Handful, clock: Callable[[], datetime], ends: float) -> _Tries:
        """Tries one after the other, until it is time to write, or the receiver does not answer."""
        until = min(ends, time.monotonic() + _ON_RECORD)
        tries: list[tuple[_Taken, webhooks.Tried]] = []
        while handful.left and time.monotonic() <= until and not _is_silent(tries):
            taken = handful.left.popleft()
            try:
                is_off = taken.is_off or taken.delivery.endpoint_id in handful.gone
                tried = _OFF if is_off else self._try_one(taken.delivery, taken.secret, clock())
                if tried.status == webhooks.GONE and taken.delivery.endpoint_id is not None:
                    handful.gone.add(taken.delivery.endpoint_id)
                tries.append((taken, tried))
            except Exception:  # noqa: BLE001 - what was sent before it is put on record all the same
                _log.exception("a delivery failed by a mistake of ours; it is left to its lease")
        return tries

    def _try_one(self, delivery: Delivery, secret: str | None, now: datetime) -> webhooks.Tried:
        if delivery.job_id is not None:
            with tracing.step(delivery.job_id, None, "webhook"):
                tried = webhooks.deliver(self.transport, delivery, secret, now)
        elif delivery.project_id is not None:
            tried = webhooks.deliver(self.transport, delivery, secret, now)
        else:
            tried = alerts.deliver(self.transport, delivery, alerts.robot(self.settings, delivery.url), now)
            if tried.state != "delivered":  # the address is a secret, but for its host
                _log.error("an alarm was not delivered", host=urlsplit(delivery.url).hostname, why=tried.error)
        outcome = "delivered" if tried.state == "delivered" else "not delivered"
        _log.info(outcome, delivery=str(delivery.id), status=tried.status)
        return tried

    def _go_on(self, handful: _Handful, tries: _Tries, now: datetime, is_over: bool) -> _Handful | None:
        """Puts the tries on record, and gives what to try next; where the turn is over, the rest is due again."""

        def change(connection: Connection) -> _Handful | None:
            _record(connection, tries, now)
            if handful.left and not is_over:
                return handful
            if is_over:
                rest = [(taken.delivery.id, taken.delivery.claim) for taken in handful.left]
                claims.give_back(connection, Delivery, rest, timedelta(0))
                return None
            return _next(connection, handful)

        return database.write(self.engine, change, f"{len(tries)} deliveries", self.patience)


def _is_silent(tries: _Tries) -> bool:
    """Whether the receiver did not answer the last of them."""
    return bool(tries) and tries[-1][1].status is None and tries[-1][1] is not _OFF


def _handful(rows: Sequence[Row[Any]]) -> _Handful | None:
    return _Handful(rows) if rows else None


def _next(connection: Connection, done: _Handful) -> _Handful | None:
    """The next deliveries: of the same receiver where it had many, else of the project's next one."""
    project_id, receiver = done.first.project_id, done.first.receiver
    if done.is_full and (rows := receivers.take_more(connection, project_id, receiver)):
        return _Handful(rows)
    found = receivers.next_receiver(connection, project_id, receiver)
    return None if found is None else _handful(receivers.take_more(connection, project_id, found))


def _record(connection: Connection, tries: _Tries, now: datetime) -> None:
    """Writes what became of tries; rows whose claims are lost are left alone."""
    if not tries:
        return
    rows = [(taken.delivery, tried) for taken, tried in tries]
    said = {
        "ids": [delivery.id for delivery, _ in rows],
        "numbers": [delivery.claim for delivery, _ in rows],
        "states": [tried.state for _, tried in rows],
        "counts": [delivery.tries + 1 for delivery, _ in rows],
        "statuses": [tried.status for _, tried in rows],
        "errors": [tried.error for _, tried in rows],
        "times": [tried.again_at for _, tried in rows],
        "spent": [tried.milliseconds for _, tried in rows],
        "answers": [tried.answer if delivery.endpoint_id is not None else None for delivery, tried in rows],
    }
    connection.execute(_WRITE, said | {"now": now})
    endpoints.note(connection, [(delivery, tried) for delivery, tried in rows if tried is not _OFF], now)
    if any(taken.was_silent and tried.status is not None for taken, tried in tries):
        receivers.resume(connection, rows[-1][0])
    if _is_silent(tries):
        receivers.pause(connection, rows[-1][0], now)


def _clock(now: datetime) -> Callable[[], datetime]:
    """Postgres's time, from one look at it on."""
    looked = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - looked)


# Statements are built once: to build one costs more than to run it.

_TRIED = claims.unnested(
    "tried",
    ids=Uuid(),
    numbers=BigInteger(),
    states=Text(),
    counts=Integer(),
    statuses=Integer(),
    errors=Text(),
    times=DateTime(timezone=True),
    spent=Integer(),
    answers=Text(),
)
# What became of tries, under each one's claim.
_WRITE = (
    update(Delivery)
    .where(Delivery.id == _TRIED.c.ids, Delivery.claim == _TRIED.c.numbers)
    .values(
        state=_TRIED.c.states,
        tries=_TRIED.c.counts,
        last_status=_TRIED.c.statuses,
        last_error=_TRIED.c.errors,
        last_ms=_TRIED.c.spent,
        last_answer=_TRIED.c.answers,
        run_at=_TRIED.c.times,
        finished_at=case((_TRIED.c.times.is_(None), bindparam("now", type_=DateTime(timezone=True)))),
        claimed=None,
        crashes=0,
    )
)
