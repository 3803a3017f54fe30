"""The boto3 twin of Noria's copies: makes tasks of its own, and copies their outputs; what it took, as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.bench.peers import parts


def main() -> None:
    """The first argument says how many outputs, the second how many are copied at once."""
    links = [_made(parts.ask(f"a heron, {n}")) for n in range(int(sys.argv[1]))]
    parts.s3()
    keys = [f"twin/{n}-{time.time_ns()}.mp4" for n in range(len(links))]
    began, before = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(int(sys.argv[2])) as pool:
        list(pool.map(parts.copy, links, keys))
    used = time.process_time() - before
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    json.dump({"seconds": time.monotonic() - began, "cpu": used, "memory": memory}, sys.stdout)


def _made(task_id: str) -> str:
    while (link := parts.look(task_id)) is None:
        time.sleep(0.05)
    return link


if __name__ == "__main__":
    main()
