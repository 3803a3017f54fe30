"""(a) What a job costs: CPU, commits and messages a job of Noria, and the CPU of those who do the same otherwise.

Clips of 200 kB whose tasks run for five seconds; each is told to a receiver. A system is measured from its first
submission until the last webhook came, servers beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from celery import Celery
from sqlalchemy import create_engine, insert

from ops.local import up
from ops.local.servers import HOST
from ops.local.supervise import Program, Run, has_logged
from tests.bench import usage
from tests.bench.asking import ask_all, clips
from tests.bench.figures import Figure
from tests.bench.peers import parts
from tests.bench.receivers import Receivers, receiving
from tests.bench.rig import SERVERS, SIZES, STEADY, WORKERS, Rig

NAME = "cost of a job"
RUN_SECONDS, BYTES = 5.0, 200_000
_PATIENCE = 150.0  # seconds
_WARMING, _PEERS_WARMING, _COUNTED = 8, 16, 20  # jobs
_DATABASE = "peers"
_TOP = 14  # statements that are named


@dataclass(frozen=True)
class _Peer:
    """A system beside Noria: its programs, what starts the clips, and the share of the jobs that it gets."""

    name: str
    programs: Callable[[Rig], list[Program]]
    start: Callable[[Rig, range], None]
    share: float = 1.0


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """Of Noria first, then of each peer."""
    jobs = 60 if quick else 300
    rig.sandbox.set(run_seconds=RUN_SECONDS, output_bytes=BYTES)
    _warm(rig)
    figures = [*_noria(rig, jobs), *_statements(rig)]
    rig.servers.create_database(_DATABASE)
    for n, peer in enumerate(_peers(), start=1):
        rig.say(f"{peer.name} …")
        figures += _measured(rig, peer, range(n * 100_000, n * 100_000 + _PEERS_WARMING + round(jobs * peer.share)))
    return figures


def _noria(rig: Rig, jobs: int) -> list[Figure]:
    with receiving() as mail:
        since = rig.sql("select clock_timestamp()")[0][0]
        began = time.monotonic()
        cpu, database, broker = rig.cpu(), _database(rig), _broker(rig)
        ask_all(rig.door, clips(jobs, STEADY, SIZES[STEADY], webhook_url=mail.urls[0]))
        told = mail.wait_for(jobs, _PATIENCE)
        ended = time.monotonic()
        used = usage.difference(cpu, rig.cpu())
        commits, commands = usage.difference(database, _database(rig)), usage.difference(broker, _broker(rig))
    (stored,) = rig.sql(_STORED, since=since)
    assert told, f"{len(mail.came)} of {jobs} jobs were told in {_PATIENCE:.0f} s"
    assert stored.count == jobs, f"{stored.count} of {jobs} jobs are stored"
    figure = partial(_figure, jobs=jobs)
    ours = sum(used[name] for name in WORKERS)
    return [
        figure("Noria: workers and clock", "ms CPU a job", ours * 1000),
        *(figure(f"Noria: of these {name}", "ms CPU a job", used[name] * 1000) for name in WORKERS),
        figure("Noria: Flower", "ms CPU a job", used["flower"] * 1000),
        figure("Noria: API", "ms CPU a job", used["api"] * 1000),
        *(figure(f"Noria: {name}", "ms CPU a job", used[name] * 1000) for name in SERVERS),
        figure("Noria: commits", "a job", commits["commits"]),
        figure("Noria: transactions that wrote", "a job", commits["writes"]),
        figure("Noria: messages", "a job", commands.get("lpush", 0)),
        figure("Noria: events for Flower", "a job", commands.get("publish", 0)),
        Figure(NAME, "Noria: last stored after", "s", float(stored.seconds)),
        Figure(NAME, "Noria: last told after", "s", ended - began),
    ]


def _statements(rig: Rig) -> list[Figure]:
    """What Postgres is asked a job, counted on a few more jobs by its log."""
    log = rig.home / "logs" / "postgres.log"
    start = log.stat().st_size
    url = rig.environment["NORIA_DATABASE_URL"]
    with receiving() as mail:
        usage.log_statements(url, True)
        ask_all(rig.door, clips(_COUNTED, STEADY, SIZES[STEADY], webhook_url=mail.urls[0]))
        mail.wait_for(_COUNTED, _PATIENCE)
        usage.log_statements(url, False)
    with log.open("rb") as file:
        file.seek(start)
        counted = usage.statements(file.read().decode(errors="replace"))
    figure = partial(_figure, jobs=_COUNTED)
    ends = {words for words in counted if words.upper() in ("BEGIN", "COMMIT", "ROLLBACK")}
    whole = sum(count for words, count in counted.items() if words not in ends)
    named = [(words, count) for words, count in counted.most_common() if words not in ends][:_TOP]
    return [
        figure("Noria: statements, API and ticks included", "a job", whole),
        figure("Noria: begin, commit and rollback", "a job", sum(counted[words] for words in ends)),
        *(figure(f"Noria: `{words[:90].replace('|', ' ')}`", "a job", count) for words, count in named),
    ]


def _measured(rig: Rig, peer: _Peer, ids: range) -> list[Figure]:
    """What a peer used, once each of its processes has done a clip: clients are made at their first use."""
    warming, ids = ids[:_PEERS_WARMING], ids[_PEERS_WARMING:]
    with receiving() as mail, rig.beside(peer.programs(rig)) as pids:
        _enter(rig, mail, warming)
        peer.start(rig, warming)
        mail.wait_for(len(warming), _PATIENCE)
        _enter(rig, mail, ids)
        began, cpu = time.monotonic(), rig.cpu(**pids)
        peer.start(rig, ids)
        is_told = mail.wait_for(len(warming) + len(ids), _PATIENCE)
        ended = time.monotonic()
        used = usage.difference(cpu, rig.cpu(**pids))
    told = len(mail.came) - len(warming)
    if not is_told:
        rig.say(f"{peer.name}: {told} of {len(ids)} were told in {_PATIENCE:.0f} s")
    figure = partial(_figure, jobs=max(1, told))
    return [
        figure(f"{peer.name}: all its processes", "ms CPU a job", sum(used[name] for name in pids) * 1000),
        *(figure(f"{peer.name}: of these {name}", "ms CPU a job", used[name] * 1000) for name in pids if len(pids) > 1),
        *(figure(f"{peer.name}: {name}", "ms CPU a job", used[name] * 1000) for name in SERVERS),
        Figure(NAME, f"{peer.name}: last told after", "s", ended - began if is_told else None),
    ]


def _peers() -> list[_Peer]:
    peers = [
        _Peer("Celery chain", lambda rig: [_celery(rig, "chain", 8)], partial(_send, "chain")),
        _Peer("SDK in a Celery task", lambda rig: [_celery(rig, "sdk", 16)], partial(_send, "sdk"), share=0.2),
    ]
    if importlib.util.find_spec("temporalio") is not None:
        peers.append(_Peer("Temporal and its server", _temporal, _start_workflows))
    return peers


def _celery(rig: Rig, name: str, processes: int) -> Program:
    command = f"celery -A tests.bench.peers.{name} worker -P prefork -c {processes} -n {name}@%h --loglevel INFO"
    return rig.program(name, command, has_logged(" ready."), _environment(rig))


def _send(name: str, rig: Rig, ids: range) -> None:
    app = Celery(broker=_environment(rig)["BENCH_BROKER_URL"])
    with app.pool.acquire(block=True) as connection:
        for clip_id in ids:
            app.send_task(f"{name}.start", (clip_id,), connection=connection, ignore_result=True)
    app.close()


def _accepts_connections(port: int) -> Callable[[Run], bool]:
    """Ready when something listens on a loopback port."""

    def probe(_: Run) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return True
        return False

    return probe


def _temporal(rig: Rig) -> list[Program]:
    port = _temporal_port(rig)
    binary = Path(sysconfig.get_path("scripts")) / "temporal"
    serve = f"{binary} server start-dev --headless --ip {HOST} --port {port} --log-level error --db-filename"
    server = rig.program("temporal", f"{serve} {rig.home}/temporal.db", _accepts_connections(port), {})
    work = rig.program(
        "temporal-worker",
        "tests.bench.peers.temporal",
        has_logged("worker ready"),
        _environment(rig),
        after=frozenset({"temporal"}),
    )
    return [server, work]


def _start_workflows(rig: Rig, ids: range) -> None:
    from tests.bench.peers import temporal

    temporal.start(f"{HOST}:{_temporal_port(rig)}", ids)


def _temporal_port(rig: Rig) -> int:
    return int(rig.door.url.rpartition(":")[2]) + 1000


def _environment(rig: Rig) -> dict[str, str]:
    return {
        "BENCH_DATABASE_URL": rig.servers.url_of(_DATABASE),
        "BENCH_BROKER_URL": rig.environment["NORIA_BROKER_URL"].rpartition("/")[0] + "/1",
        "BENCH_MODEL": STEADY,
        "BENCH_SIZE": SIZES[STEADY],
        "BENCH_TEMPORAL": f"{HOST}:{_temporal_port(rig)}",
        "PYTHONPATH": str(up.PROJECT),
    }


def _enter(rig: Rig, mail: Receivers, ids: range) -> None:
    """The peers' rows: what an API of theirs would have written."""
    engine = create_engine(rig.servers.url_of(_DATABASE))
    with engine.begin() as connection:
        parts.Base.metadata.create_all(connection)
        rows = [{"id": n, "prompt": f"a heron, {n}", "webhook_url": mail.urls[0], "state": "queued"} for n in ids]
        connection.execute(insert(parts.Clip), rows)
    engine.dispose()


def _warm(rig: Rig) -> None:
    """A few jobs, and their run times learned."""
    with receiving() as mail:
        ask_all(rig.door, clips(_WARMING, STEADY, SIZES[STEADY], webhook_url=mail.urls[0]))
        mail.wait_for(_WARMING, _PATIENCE)
    rig.sql("update duties set due_at = now() where name = 'learn'")
    time.sleep(2.5)


def _database(rig: Rig) -> dict[str, float]:
    return usage.postgres(rig.environment["NORIA_DATABASE_URL"])


def _broker(rig: Rig) -> Mapping[str, float]:
    return usage.broker(rig.environment["NORIA_BROKER_URL"])


def _figure(name: str, unit: str, whole: float, jobs: int) -> Figure:
    return Figure(NAME, name, unit, whole / jobs)


_STORED = """
    select count(*) as count, extract(epoch from max(finished_at) - min(created_at)) as seconds
      from jobs where created_at > :since and state = 'succeeded'
"""
