"""Whether the services that the API needs answer. A check never holds a request for longer than a second.

A server that hangs may hold a look for minutes. So each thing is looked at by one thread of its own, and whoever asks
meanwhile waits for that look's end with the rest, and is told after a second that there was no answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from sqlalchemy import Engine, text

import migrations
from worker import broker, database
from worker.settings import Settings
from worker.storage import Bucket

PATIENCE = 1.0  # seconds
NEEDED = frozenset({"database", "migrations"})  # nothing works without these; the others may be away for a while

Look = Callable[[], None]
# What a look raised is its result: asyncio logs an exception that nobody fetches, and after a second nobody does.
Outcome = Future[Exception | None]


class NotThere(Exception):
    """A service is missing; the message holds no secret."""


class Probes:
    """The checks, by the name of the service."""

    def __init__(self, looks: Mapping[str, Look]) -> None:
        self._looks = looks
        self._under_way: dict[str, Outcome] = {}
        self._lock = threading.Lock()

    async def found(self) -> dict[str, str | None]:
        """What is wrong with each service; None: nothing."""
        looks = {name: self._begin(name) for name in self._looks}
        # shielded, or a client that goes away would end the check for all
        await asyncio.wait([asyncio.shield(asyncio.wrap_future(look)) for look in looks.values()], timeout=PATIENCE)
        return {name: _outcome(look) for name, look in looks.items()}

    def _begin(self, name: str) -> Outcome:
        with self._lock:
            look = self._under_way.get(name)
            if look is None or look.done():
                look = self._under_way[name] = Future()
                thread = threading.Thread(target=_carry_out, args=(self._looks[name], look), name=f"look-{name}")
                thread.daemon = True
                thread.start()
            return look


def probes(settings: Settings, engine: Engine, bucket: Bucket) -> Probes:
    """Checks of the database, this host's clock, the migrations, the broker and the bucket."""
    return Probes(
        {
            "database": lambda: _answers(engine),
            "clock": lambda: _agrees(engine),
            "migrations": lambda: _has_schema(engine),
            "broker": lambda: _pings(settings),
            "bucket": bucket.check,
        }
    )


def _answers(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("select 1"))


def _agrees(engine: Engine) -> None:
    if why := database.why_off(engine):
        raise NotThere(why)


def _has_schema(engine: Engine) -> None:
    with engine.connect() as connection:
        found = migrations.standing(connection)
    if found.is_behind:
        at, head = found.at or "nothing", found.head
        raise NotThere(f"the database is at {at}, this release at {head}: alembic upgrade head")


def _pings(settings: Settings) -> None:
    with broker.client(settings, 3) as client:
        client.ping()


def _carry_out(look: Look, told: Outcome) -> None:
    try:
        look()
    except Exception as error:  # noqa: BLE001 - any error is the answer
        told.set_result(error)
    else:
        told.set_result(None)


def _outcome(look: Outcome) -> str | None:
    if not look.done():
        return f"no answer within {PATIENCE:g} s"
    error = look.result()
    if error is None:
        return None
    # another error's text may hold an address or a password; its name does not
    return str(error) if isinstance(error, NotThere) else type(error).__name__
