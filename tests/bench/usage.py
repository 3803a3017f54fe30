"""What processes and servers used: CPU from /proc, commits from Postgres's statistics, messages from Valkey's.

A process is counted with all its descendants: Celery's prefork children and Postgres's backends are the work of the
process that was started. What a child used is its parent's once it has ended and was waited for.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import psycopg
import redis

_TICKS = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CSTIME = 1, 11, 15  # places in /proc/PID/stat after the name: see proc_pid_stat(5)
_LOGGED = re.compile(r"LOG:  (?:statement|execute [^:]*): (.*?)(?=\n\d{4}-\d\d-\d\d |\Z)", re.DOTALL)


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """User and system seconds by name of each process and its descendants, ended ones included."""
    stats = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(path))}
    return {name: _ticks(pid, stats) / _TICKS for name, pid in pids.items()}


def peak(pid: int) -> float:
    """The most memory that a process held since its start or since `forget_peak`, in MB.

    Not ru_maxrss, which begins with the peak of the process that started it.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def forget_peak(pid: int) -> None:
    """Has `peak` begin anew at what the process holds now (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was added under each name that both have."""
    return {name: after[name] - before[name] for name in after if name in before}


def postgres(url: str) -> dict[str, float]:
    """Commits and rollbacks of all databases since the server's start, and transactions that wrote (had an id)."""
    with psycopg.connect(_plain(url), autocommit=True) as connection:
        counted = connection.execute(
            "select sum(xact_commit), sum(xact_rollback), pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
            " from pg_stat_database where datname is not null"
        ).fetchone()
    assert counted is not None, "an aggregate has a row"
    return {name: float(n) for name, n in zip(("commits", "rollbacks", "writes"), counted, strict=True)}


def broker(url: str) -> dict[str, float]:
    """Commands by name that Valkey has carried out; kombu's Redis transport sends a message with LPUSH."""
    with redis.Redis.from_url(url) as client:
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): float(stat["calls"]) for name, stat in stats.items()}


def log_statements(url: str, logged: bool) -> None:
    """Has Postgres write every statement into its log, or no longer, in all its sessions."""
    with psycopg.connect(_plain(url), autocommit=True) as connection:
        connection.execute(f"alter system set log_statement = '{'all' if logged else 'none'}'")
        connection.execute("select pg_reload_conf()")


def statements(log: str) -> Counter[str]:
    """How often each statement stands in a log, by the first words of it; values are left out."""
    return Counter(_words(statement) for statement in _LOGGED.findall(log))


def _words(statement: str) -> str:
    return re.sub(r"\$\d+|'[^']*'|\b\d+\b", "?", " ".join(statement.split()))


def _plain(url: str) -> str:
    return url.replace("+psycopg", "")


def _stat(process: Path) -> list[str] | None:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return None


def _ticks(root: int, stats: Mapping[int, list[str]]) -> int:
    return sum(sum(map(int, stats[pid][_UTIME:_CSTIME])) for pid in _family(root, stats))


def _family(root: int, stats: Mapping[int, list[str]]) -> Iterable[int]:
    family, found = set(), {root} & stats.keys()
    while found:
        family |= found
        found = {pid for pid, stat in stats.items() if int(stat[_PPID]) in found} - family
    return family
