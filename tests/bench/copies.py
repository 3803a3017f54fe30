"""(e) Copying: how fast outputs get into the bucket and what that costs, beside boto3 doing the same."""

from __future__ import annotations

import json
import subprocess
import sys

from ops.local import up
from tests.bench import usage
from tests.bench.asking import ask_all, clips, until
from tests.bench.figures import Figure
from tests.bench.rig import LARGE, SIZES, Rig

NAME = "copying"
_MEGABYTE = 1_000_000
_PATIENCE = 200.0  # seconds
_THREADS = 8  # of a process that only copies


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """One large output and many small ones: by Noria's worker, then as many by its copy alone, and by the twin."""
    sizes = ((1, 100), (40, 2), (40, 0.2)) if quick else ((1, 1000), (500, 2), (200, 0.2))
    rig.sandbox.set(run_seconds=0.05)
    return [figure for count, megabytes in sizes for figure in _copied(rig, count, megabytes)]


def _copied(rig: Rig, count: int, megabytes: float) -> list[Figure]:
    rig.sandbox.set(output_bytes=int(megabytes * _MEGABYTE))
    rig.quiet()
    worker = rig.stack.processes["worker-rest"]
    usage.forget_peak(worker)
    ids = [answer.body["id"] for answer in ask_all(rig.door, clips(count, LARGE, SIZES[LARGE]))]
    cpu = rig.cpu()
    assert until(lambda: not rig.count(f"finished_at is null and model = '{LARGE}'"), _PATIENCE), "copies take too long"
    used = usage.difference(cpu, rig.cpu())
    (span,) = rig.sql(_SPAN, ids=ids)
    assert span.count == count, f"{span.count} of {count} outputs are stored"
    took = {
        "Noria's worker": {"seconds": float(span.seconds), "cpu": used["worker-rest"], "memory": usage.peak(worker)},
        "Noria's copy alone": _alone(rig, "noria", count),
        "boto3 twin": _alone(rig, "twin", count),
    }
    name, whole = f"{count} × {megabytes} MB", count * megabytes
    return [
        figure
        for who, found in took.items()
        for figure in (
            Figure(NAME, f"{name}: {who}", "MB a second", whole / found["seconds"]),
            Figure(NAME, f"{name}: {who}", "ms CPU a MB", found["cpu"] / whole * 1000),
            Figure(NAME, f"{name}: {who}, memory", "MB", found["memory"]),
        )
    ]


def _alone(rig: Rig, who: str, count: int) -> dict[str, float]:
    """As many outputs of that size copied on threads by a process of its own, which keeps no rows."""
    done = subprocess.run(
        (sys.executable, "-m", "tests.bench.peers.copier", who, str(count), str(_THREADS)),
        env={**rig.environment, "BENCH_MODEL": LARGE, "BENCH_SIZE": SIZES[LARGE]},
        cwd=up.PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_PATIENCE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


_SPAN = """
    select count(*) as count, extract(epoch from max(finished_at) - min(began)) as seconds
      from jobs join (select job_id, min(at) as began from events where entered = 'copying' group by job_id) as copying
        on copying.job_id = jobs.id
     where jobs.id = any(cast(:ids as uuid[])) and state = 'succeeded'
"""
