"""Whether the services that the API needs answer. A check never holds a request for longer than a second.

A server that hangs may hold a look for minutes. So each thing is looked at by one thread of its own, and whoever asks
meanwhile waits for that look's end with the rest, and is told after a second that there was no answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib import resources

import redis
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from worker import database
from worker.settings import Settings
from worker.storage import Bucket

PATIENCE = 1.0  # seconds
NEEDED = frozenset({"database", "migrations"})  # nothing works without these; the others may be away for a while

Look = Callable[[], None]


class NotThere(Exception):
    """A service is missing; the message holds no secret."""


class Probes:
    """The checks, by the name of the service."""

    def __init__(self, looks: Mapping[str, Look]) -> None:
        self._looks = looks
        self._under_way: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    async def found(self) -> dict[str, str | None]:
        """What is wrong with each service; None: nothing."""
        looks = {name: self._begin(name) for name in self._looks}
        # shielded, or a client that goes away would end the check for all
        await asyncio.wait([asyncio.shield(asyncio.wrap_future(look)) for look in looks.values()], timeout=PATIENCE)
        return {name: _outcome(look) for name, look in looks.items()}

    def _begin(self, name: str) -> Future[None]:
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
            "migrations": lambda: _at_head(engine),
            "broker": lambda: _pings(settings.broker_url.get_secret_value()),
            "bucket": bucket.check,
        }
    )


def _answers(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("select 1"))


def _agrees(engine: Engine) -> None:
    if why := database.why_off(engine):
        raise NotThere(why)


def _at_head(engine: Engine) -> None:
    head = ScriptDirectory(str(resources.files("migrations"))).get_current_head()
    with engine.connect() as connection:
        if connection.execute(text("select to_regclass('alembic_version')")).scalar_one() is None:
            raise NotThere("no migration has run: alembic upgrade head")
        at = connection.execute(text("select version_num from alembic_version")).scalars().all()
    if at != [head]:
        raise NotThere(f"the database is at {', '.join(at) or 'nothing'}, this release at {head}: alembic upgrade head")


def _pings(url: str) -> None:
    with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
        client.ping()


def _carry_out(look: Look, told: Future[None]) -> None:
    try:
        look()
    except Exception as error:  # noqa: BLE001 - any error is the answer
        told.set_exception(error)
    else:
        told.set_result(None)


def _outcome(look: Future[None]) -> str | None:
    if not look.done():
        return f"no answer within {PATIENCE:g} s"
    error = look.exception()
    if error is None:
        return None
    # another error's text may hold an address or a password; its name does not
    return str(error) if isinstance(error, NotThere) else type(error).__name__
