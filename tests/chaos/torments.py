"""What chaos does to a running stack, one torment at a time; each says in a few words what it did.

Leases are minutes long, and a run has no minutes to wait. So claims are made to lapse by SQL, and only while whoever
holds them is truly dead or stopped: that is what a lapsed lease means.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from ops.demo.receiver import Mail
from ops.local.supervise import Supervisor
from tests.chaos import provider
from tests.chaos.lines import Line
from worker import database, tick
from worker.settings import Settings

if TYPE_CHECKING:  # production has no sandbox, and reads this for its commands
    from ops.sandbox.testing import Sandbox

WORKERS = ("worker-control", "worker-rest", "worker-all")
CLOCKS = ("clock", "clock-two")
KILL = signal.SIGKILL
_AWAY_SECONDS = 20.0  # for which the database may be away before chaos gives up on it
_STOPPED_SECONDS = 4.0
_HUNG_SECONDS = 6.0
_DOWN_SECONDS = 5.0
_FOUND_SECONDS = 12.0  # in which the calls whose answer is lost must be found for the lists to be trifled with


@dataclass
class Scene:
    """A running stack, and how to get at each part of it past the lines that break."""

    supervisor: Supervisor
    settings: Settings  # its database and its bucket are the true ones
    sandbox: Sandbox
    mail: Mail
    storage: Line
    dice: random.Random
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        url = self.settings.database_url.get_secret_value()
        self.engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 3})

    def signal(self, names: Collection[str], number: signal.Signals) -> None:
        """Send a signal to processes; one that is down just now is left alone."""
        pids = self.supervisor.pids()
        for name in names:
            if name in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[name], number)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A transaction on the database, waited for while it restarts."""
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                connection = self.engine.connect()
                break
            except DBAPIError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        with connection, connection.begin():
            yield connection

    def redis(self) -> redis.Redis:
        """A client of the broker."""
        return redis.Redis.from_url(self.settings.broker_url.get_secret_value(), socket_timeout=3)


def lapse(scene: Scene) -> int:
    """Lets every claim lapse; how many. Whoever took them is dead or stopped, and so may be who had their messages."""
    with scene.connection() as connection:
        return sum(
            connection.execute(statement).rowcount
            for statement in (
                text("update jobs set run_at = now() where claimed is not null and run_at > now()"),
                text("update deliveries set run_at = now() where claimed is not null and run_at > now()"),
                text("update batches set run_at = now() where claimed is not null and run_at > now()"),
            )
        )


def kill_worker(scene: Scene) -> str:
    """One worker dies; its claims wait for their leases, or for the next time that all die."""
    name = scene.dice.choice(WORKERS)
    scene.signal([name], KILL)
    return f"killed {name}"


def kill_workers(scene: Scene) -> str:
    """All workers die at once, and their leases lapse."""
    scene.signal(WORKERS, KILL)
    return f"killed all workers; {lapse(scene)} leases lapsed"


def kill_clock(scene: Scene) -> str:
    """One of the two clocks dies."""
    name = scene.dice.choice(CLOCKS)
    scene.signal([name], KILL)
    return f"killed {name}"


def stop_workers(scene: Scene) -> str:
    """All workers are stopped beyond their leases; the others wake when the first has gone on with their work."""
    scene.signal(WORKERS, signal.SIGSTOP)
    try:
        lapsed = lapse(scene)
        first = scene.dice.choice(WORKERS)
        scene.signal([first], signal.SIGCONT)
        time.sleep(_STOPPED_SECONDS)
    finally:
        scene.signal(WORKERS, signal.SIGCONT)
    return f"stopped all workers; {lapsed} leases lapsed; {first} woke first"


def hold_tick(scene: Scene) -> str:
    """A process stops while it holds the tick's lock; the session's own time limit must free it."""
    engine = database.engine(scene.settings, threads=1)
    started = time.monotonic()
    try:
        with engine.connect() as connection:
            connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": tick.LOCK})
            time.sleep(_HUNG_SECONDS)
            connection.execute(text("select 1"))
    except DBAPIError:
        return f"held the tick's lock; lost it within {time.monotonic() - started:.0f} s"
    finally:
        engine.dispose()
    return "held the tick's lock, and nobody took it away"


def flush_redis(scene: Scene) -> str:
    """Every message is gone."""
    with scene.redis() as client:
        client.flushall()
    return "flushed Redis"


def restart_redis_empty(scene: Scene) -> str:
    """Redis dies, and comes back without a message."""
    with scene.redis() as client:
        client.flushall()
    scene.signal(["valkey"], KILL)
    return "killed Redis; it comes back empty"


def hang_redis(scene: Scene) -> str:
    """Redis takes connections and says nothing."""
    scene.signal(["valkey"], signal.SIGSTOP)
    try:
        time.sleep(_HUNG_SECONDS)
    finally:
        scene.signal(["valkey"], signal.SIGCONT)
    return f"hung Redis for {_HUNG_SECONDS:.0f} s"


def restart_postgres(scene: Scene) -> str:
    """A fast shutdown: sessions are ended in the middle of what they do."""
    scene.signal(["postgres"], signal.SIGINT)
    return "restarted Postgres, fast"


def crash_postgres(scene: Scene) -> str:
    """An immediate shutdown: it comes back by recovery."""
    scene.signal(["postgres"], signal.SIGQUIT)
    return "restarted Postgres, immediately"


def cut_storage(scene: Scene) -> str:
    """The bucket is away."""
    scene.storage.is_down = True
    try:
        time.sleep(_DOWN_SECONDS)
    finally:
        scene.storage.is_down = False
    return f"cut the bucket off for {_DOWN_SECONDS:.0f} s"


def silence_receiver(scene: Scene) -> str:
    """The receiver of webhooks is down."""
    scene.mail.is_down = True
    try:
        time.sleep(_DOWN_SECONDS)
    finally:
        scene.mail.is_down = False
    return f"silenced the receiver for {_DOWN_SECONDS:.0f} s"


def hide_tasks(scene: Scene) -> str:
    """The provider's lists are empty, and do not say so: what runs is looked at singly.

    Nobody can be protected from that while a call's answer is lost: absence would be proved, and the call made again.
    So creates are paused, and it is done only when every task has its job.
    """
    searched = "select count(*) from jobs where state in ('submitting', 'uncertain')"
    _pause(scene, "now()")
    try:
        deadline = time.monotonic() + _FOUND_SECONDS
        while (count := _counted(scene, searched)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if count:
            return f"paused all creates; the lists were spared, since {count} calls were looked for"
        with provider.forgetting(scene.sandbox):
            time.sleep(_STOPPED_SECONDS)
    finally:
        _pause(scene, "null")
    return f"paused all creates, and emptied the provider's lists for {_STOPPED_SECONDS:.0f} s"


TORMENTS: dict[str, Callable[[Scene], str]] = {
    "kill-worker": kill_worker,
    "kill-workers": kill_workers,
    "kill-clock": kill_clock,
    "stop-workers": stop_workers,
    "hold-tick": hold_tick,
    "flush-redis": flush_redis,
    "empty-redis": restart_redis_empty,
    "hang-redis": hang_redis,
    "restart-postgres": restart_postgres,
    "crash-postgres": crash_postgres,
    "cut-storage": cut_storage,
    "silence-receiver": silence_receiver,
    "hide-tasks": hide_tasks,
}


def _pause(scene: Scene, since: str) -> None:
    with scene.connection() as connection:
        connection.execute(text(f"update owners set paused_at = {since}"))


def _counted(scene: Scene, statement: str) -> int:
    with scene.connection() as connection:
        return int(connection.execute(text(statement)).scalar_one())
