"""The Celery app, and the one thread per process that talks to Redis for everybody else.

A message only says that rows are due. So messages are never retried, delayed or stored, and a request or a step never
waits for Redis: it leaves a hint or a Flower event with the thread and goes on. Hints are coalesced to two a second;
events are dropped when too many wait. Only the tick publishes by itself, and stops at the first failure: rows whose
message was not sent are due again.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.events import EventDispatcher
from celery.schedules import schedule
from celery.signals import task_received
from celery.worker import state
from kombu.entity import Exchange, Queue
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from worker import log
from worker.settings import Settings, addresses

QUEUES = ("tick", "provider", "calls", "transfer", "webhook")
TICK = "noria.tick"
_TICK_SECONDS = 1.0
_HINT_SPACING = 0.5  # seconds; the first is sent at once
_EVENTS_KEPT = 10_000
_SOCKET_SECONDS = 3.0
_RETRY_SECONDS = 2.0  # before the thread tries a broker again that failed
# Flower shows whichever of our own states it heard last, and another process may not have sent the one before yet. It
# sends it within a pause and a socket's time, or drops it: a state that rests until a person acts is told after that.
_LATE_SECONDS = _HINT_SPACING + _SOCKET_SECONDS + 0.5
_LATE = frozenset({"task-awaiting_review", "task-rejected_in_review"})
_FREE_SECONDS = 0.02  # between two looks of a worker whose threads are all busy

_CLUSTER = (
    "it is a Redis Cluster, in which one message would need keys of several nodes: give a Redis or Valkey that is not "
    "in cluster mode, alone or with replicas and Sentinel"
)

_log = log.get(__name__)


class _Silent:
    """An event dispatcher that does nothing: without it every publish tells Flower of a `task-sent`."""

    enabled = False

    def publish(self, *_: Any, **__: Any) -> None:
        """Nothing."""


def _silent(queue: str) -> dict[str, Any]:
    """The options of a message that Flower does not hear of."""
    # No `expires`: an instant by the sender's clock, which is held against the receiver's (ADR 61).
    return {"queue": queue, "event_dispatcher": _Silent(), "ignore_result": True}


def _steady() -> datetime:
    """A time that nobody sets. Beat by the host's own clock is silent for an hour once that is set back by one."""
    return datetime.fromtimestamp(time.monotonic(), UTC)


# What differs from Celery's defaults, with the reasons.
_TRANSPORT = {
    "visibility_timeout": 900,
    "global_keyprefix": "noria:",
    "priority_steps": [0],  # priorities are decided in SQL, and each step is a key more to wait on
    "queue_order_strategy": "round_robin",
    "socket_timeout": _SOCKET_SECONDS,  # above the 1 s that a consumer blocks, below what a tick may wait
    "socket_connect_timeout": _SOCKET_SECONDS,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "retry_on_timeout": False,
}
_CONF: dict[str, Any] = {
    "result_backend": None,  # results live in Postgres
    "task_ignore_result": True,
    "broker_transport_options": _TRANSPORT,
    "visibility_timeout": 900,
    "broker_connection_timeout": _SOCKET_SECONDS,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,  # a worker outlives any outage of the broker
    "broker_channel_error_retry": True,
    "broker_pool_limit": 16,  # Flower asks each worker for many things at once
    "broker_pool_acquire_timeout": 2,
    "task_publish_retry": False,
    "task_serializer": "json",
    "accept_content": ["json"],
    "event_serializer": "json",
    "task_default_queue": "tick",
    "task_create_missing_queues": False,  # a typo would make a queue that nobody reads
    # The row is the truth, and a message that died with its worker is made again: so no message is acknowledged, which
    # takes two calls to Redis each. A worker takes one off the queue when it has a thread for it, and not before.
    "task_queues": tuple(Queue(name, Exchange(name), routing_key=name, no_ack=True) for name in QUEUES),
    "task_acks_late": False,
    "worker_disable_prefetch": True,
    "worker_disable_rate_limits": True,
    "worker_eta_task_limit": 1,  # nothing here has an ETA
    "worker_cancel_long_running_tasks_on_connection_loss": False,  # it would make lost answers of creates
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_send_task_events": False,
    "task_send_sent_event": False,
    "task_repr_maxlevels": 1,
    "enable_utc": True,
    "timezone": "UTC",
    "beat_schedule": {
        "tick": {"task": TICK, "schedule": schedule(_TICK_SECONDS, nowfun=_steady), "options": _silent("tick")}
    },
    "beat_scheduler": "celery.beat:Scheduler",  # by itself it keeps in a file when it last ticked, by another clock
    "result_expires": None,  # else beat has results cleaned up, of which there are none
    "beat_max_loop_interval": 1,
    "beat_cron_starting_deadline": 600,
}


def celery_app(settings: Settings) -> Celery:
    """The app, on the broker of the settings."""
    app = Celery("noria", set_as_current=True)
    url = settings.broker_url.get_secret_value()
    # kombu verifies nothing of TLS unless it is told to
    app.conf.update(_CONF, broker_url=url.partition("?")[0], broker_use_ssl=addresses.tls(url))
    if asked := addresses.sentinels(url):  # kombu wants an address of each
        waits = {"socket_timeout": _SOCKET_SECONDS, "socket_connect_timeout": _SOCKET_SECONDS}
        known = {"master_name": asked.master, "sentinel_kwargs": waits | asked.own}
        hosts = ((f"[{host}]" if ":" in host else host, port) for host, port in asked.hosts)
        each = (f"sentinel://{asked.user}@{host}:{port}/{asked.database}" for host, port in hosts)
        app.conf.update(broker_url=";".join(each), broker_transport_options=_TRANSPORT | known)
    return app


def client(settings: Settings, seconds: float) -> Redis:
    """A client of the broker's Redis, of the master where there are sentinels. It waits so long, and asks once."""
    url = settings.broker_url.get_secret_value()
    once: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    asked = addresses.sentinels(url)
    if asked is None:
        return Redis.from_url(url, **once)
    known = Sentinel(asked.hosts, sentinel_kwargs=once | asked.own)
    master: Redis = known.master_for(asked.master, db=asked.database, **once, **asked.redis)
    return master


def why_unfit(settings: Settings) -> str | None:
    """Why the broker cannot be used; None where it can, or where it does not answer, which may pass."""
    try:
        with client(settings, _SOCKET_SECONDS) as asked:
            said = asked.execute_command("HELLO")  # INFO may be forbidden; before Redis 6 there is none
    except RedisError:
        return None
    pairs = said.items() if isinstance(said, dict) else zip(said[::2], said[1::2], strict=False)
    return _CLUSTER if (b"mode", b"cluster") in pairs else None


def publish(app: Celery, task: str, queue: str, args: list[Any]) -> None:
    """Sends a message at once; raises what the broker raised, after three seconds at the most."""
    app.send_task(task, args=args, **_silent(queue))


def forget_ticks(app: Celery) -> None:
    """Empties the queue of ticks, which piled up if no worker ran: one does what all of them would have done."""
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge("tick")


def consumers(app: Celery, seconds: float) -> dict[str, list[str]]:
    """Queue → the workers at it, of those that answer within that time; raises what the broker raised."""
    answered = app.control.inspect(timeout=seconds).active_queues() or {}
    at: dict[str, list[str]] = {}
    for worker, queues in answered.items():
        for queue in queues:
            at.setdefault(queue["name"], []).append(worker)
    return at


def look_for_free_threads(consumer: Any) -> None:
    """Lets a worker whose threads are all busy see within 20 ms that one is free, and take the next message.

    By itself Celery's loop looks when something comes on a socket, and else each second: the end of a task does not
    wake it. So a worker that takes no message ahead would do one a thread each second, however short they are.
    """
    hub, busy, is_looking = consumer.hub, state.reserved_requests, False

    def look() -> None:
        nonlocal is_looking
        if is_looking := len(busy) >= consumer.pool.num_processes:
            hub.call_later(_FREE_SECONDS, look)

    def received(**_: Any) -> None:
        nonlocal is_looking
        if not is_looking and len(busy) + 1 >= consumer.pool.num_processes:  # this one is not among them yet
            is_looking = True
            hub.call_later(_FREE_SECONDS, look)

    task_received.connect(received, weak=False)


class Sender:
    """The thread that sends: `hint` and `tell` return at once, whatever state Redis is in."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._hinted = False
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._later: deque[tuple[float, dict[str, Any]]] = deque(maxlen=_EVENTS_KEPT)  # from when, by `monotonic`
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def hint(self) -> None:
        """Asks for a tick soon."""
        self._leave(hinted=True)

    def tell(self, event: dict[str, Any]) -> None:
        """Leaves an event for Flower: `type`, `uuid` and Celery's other fields."""
        self._leave(event=event)

    def stop(self, seconds: float) -> None:
        """Sends what is left, for that long at the most."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread:
            self._thread.join(seconds)

    def _leave(self, hinted: bool = False, event: dict[str, Any] | None = None) -> None:
        with self._wake:
            self._hinted = self._hinted or hinted
            if event and event["type"] in _LATE:
                self._later.append((time.monotonic() + _LATE_SECONDS, event))
            elif event:
                self._events.append(event)
            if self._thread is None:  # at the first use, so that it lives in the process that uses it
                self._thread = threading.Thread(target=self._run, name="noria-sender", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _run(self) -> None:
        while not (self._stopping and not self._events and not self._later and not self._hinted):
            with self._wake:
                while not (self._due() or self._hinted or self._events or self._stopping):
                    self._wake.wait(self._later[0][0] - time.monotonic() if self._later else None)
                while self._due():
                    self._events.append(self._later.popleft()[1])
                hinted, self._hinted = self._hinted, False
                events = list(self._events)
                self._events.clear()
            try:
                self._send(hinted, events)
            except Exception as error:  # noqa: BLE001 - whatever Redis does, this thread goes on
                _log.warning("broker does not take messages", cause=type(error).__name__, dropped=len(events))
                time.sleep(0 if self._stopping else _RETRY_SECONDS)
            time.sleep(_HINT_SPACING)

    def _due(self) -> bool:
        return bool(self._later) and (self._stopping or self._later[0][0] <= time.monotonic())

    def _send(self, hinted: bool, events: list[dict[str, Any]]) -> None:
        if hinted:
            publish(self._app, TICK, "tick", [])
        if not events:
            return
        with self._app.pool.acquire(block=True, timeout=_SOCKET_SECONDS) as connection:
            hostname = f"noria@{socket.gethostname()}"
            # those of one group, which all of ours are, go in one message
            with EventDispatcher(connection, hostname=hostname, app=self._app, buffer_group={"task"}) as dispatcher:
                for event in events:
                    dispatcher.send(**event)
                dispatcher.flush()
