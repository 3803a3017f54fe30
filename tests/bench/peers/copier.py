"""Copies alone, Noria's or their boto3 twin's: makes tasks, and copies their outputs; what it took, as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.bench import usage
from tests.bench.peers import parts
from worker import settings, storage
from worker.egress import transports

_DEADLINE = 180.0  # seconds of one copy


def main() -> None:
    """The arguments: who copies, noria or twin; how many outputs; how many at once."""
    copy = {"noria": _noria, "twin": _twin}[sys.argv.pop(1)]()
    links = [_made(parts.ask(f"a heron, {n}")) for n in range(int(sys.argv[1]))]
    keys = [f"twin/{n}-{time.time_ns()}" for n in range(len(links))]
    began, before = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(int(sys.argv[2])) as pool:
        list(pool.map(copy, links, keys))
    used = time.process_time() - before
    seconds = time.monotonic() - began
    json.dump({"seconds": seconds, "cpu": used, "memory": usage.peak(os.getpid())}, sys.stdout)


def _twin() -> Callable[[str, str], object]:
    parts.s3()
    return parts.copy


def _noria() -> Callable[[str, str], object]:
    known = settings.load()
    bucket, sources = storage.Bucket(known), transports.sources(known)
    return lambda link, stem: storage.copy(sources, bucket, link, stem, known, _DEADLINE)


def _made(task_id: str) -> str:
    while (link := parts.look(task_id)) is None:
        time.sleep(0.05)
    return link


if __name__ == "__main__":
    main()
