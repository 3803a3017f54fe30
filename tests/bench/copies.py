"""(e) Copying: how fast outputs get into the bucket and what that costs, beside boto3 doing the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ops.local import up
from tests.bench import usage
from tests.bench.asking import ask_all, clips, until
from tests.bench.figures import Figure
from tests.bench.rig import LARGE, SIZES, Rig

NAME = "copying"
_MEGABYTE = 1_000_000
_PATIENCE = 200.0  # seconds
_THREADS = 8  # of the twin


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """One large output and many small ones: Noria's copies, then the twin's of as many."""
    sizes = ((1, 100), (40, 2)) if quick else ((1, 300), (200, 2))
    rig.sandbox.set(run_seconds=0.05)
    return [figure for count, megabytes in sizes for figure in _copied(rig, count, megabytes)]


def _copied(rig: Rig, count: int, megabytes: int) -> list[Figure]:
    rig.sandbox.set(output_bytes=megabytes * _MEGABYTE)
    rig.quiet()
    ids = [answer.body["id"] for answer in ask_all(rig.door, clips(count, LARGE, SIZES[LARGE]))]
    cpu = rig.cpu()
    assert until(lambda: not rig.count(f"finished_at is null and model = '{LARGE}'"), _PATIENCE), "copies take too long"
    used = usage.difference(cpu, rig.cpu())
    (span,) = rig.sql(_SPAN, ids=ids)
    assert span.count == count, f"{span.count} of {count} outputs are stored"
    twin = _twin(rig, count)
    name, whole = f"{count} × {megabytes} MB", count * megabytes
    return [
        Figure(NAME, f"{name}: Noria", "MB a second", whole / float(span.seconds)),
        Figure(NAME, f"{name}: boto3 twin", "MB a second", whole / twin["seconds"]),
        Figure(NAME, f"{name}: Noria's worker", "ms CPU a MB", used["worker-rest"] / whole * 1000),
        Figure(NAME, f"{name}: boto3 twin", "ms CPU a MB", twin["cpu"] / whole * 1000),
        Figure(NAME, f"{name}: Noria's worker, memory", "MB", _memory(rig.stack.processes["worker-rest"])),
        Figure(NAME, f"{name}: boto3 twin, memory", "MB", twin["memory"]),
    ]


def _twin(rig: Rig, count: int) -> dict[str, Any]:
    """As many outputs of that size copied by `upload_fileobj` on threads, in a process of its own."""
    done = subprocess.run(
        (sys.executable, "-m", "tests.bench.peers.copier", str(count), str(_THREADS)),
        env={**rig.environment, "BENCH_MODEL": LARGE, "BENCH_SIZE": SIZES[LARGE]},
        cwd=up.PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_PATIENCE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _memory(pid: int) -> float:
    """The most that a process held so far, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


_SPAN = """
    select count(*) as count, extract(epoch from max(finished_at) - min(began)) as seconds
      from jobs join (select job_id, min(at) as began from events where entered = 'copying' group by job_id) as copying
        on copying.job_id = jobs.id
     where jobs.id = any(cast(:ids as uuid[])) and state = 'succeeded'
"""
