"""Jobs followed to their end, and how long each of their steps took."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from api.client import Client
from ops.local.supervise import LocalError

_LOOKS_PER_SECOND = 20  # of the 50 requests that a key may make
_SHORTEST_PAUSE = 0.25  # seconds
_UNSAFE = re.compile(r"[^\w.-]+")  # in a file's name
_NAME_BYTES = 150  # of the 255 that a file's name may have; the rest is for an id

Job = Mapping[str, Any]

# What a person asks of a job's time, and the states that it is spent in.
STEPS: Mapping[str, frozenset[str]] = {
    "waited": frozenset({"queued", "held", "admitted"}),
    "submitted": frozenset({"submitting", "uncertain"}),
    "ran": frozenset({"running", "gathering"}),
    "copied": frozenset({"copying"}),
}


class Damaged(LocalError):
    """What came is not what was stored."""


def follow(client: Client, ids: Sequence[str]) -> Iterator[list[Job]]:
    """The jobs as they are now, again and again until all have ended; those that have are not asked for again."""
    seen: dict[str, Job] = {}
    while True:
        open_ids = [job_id for job_id in ids if not seen.get(job_id, {}).get("is_terminal")]
        seen |= {job_id: client.job(job_id) for job_id in open_ids}
        yield [seen[job_id] for job_id in ids]
        if all(job["is_terminal"] for job in seen.values()):
            return
        time.sleep(max(_SHORTEST_PAUSE, len(open_ids) / _LOOKS_PER_SECOND))


def succeeded(jobs: Sequence[Job]) -> bool:
    """Whether every one of them did."""
    return all(job["state"] == "succeeded" for job in jobs)


def seconds_by_step(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How long a job that has ended spent in each of `STEPS`, by its history."""
    spent = dict.fromkeys(STEPS, 0.0)
    for event, seconds in timed(events):
        for step, states in STEPS.items():
            if event["to"] in states and seconds is not None:
                spent[step] += seconds
    return spent


def timed(events: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float | None]]:
    """Each event, and for how long the job stayed where it led; None for the last."""
    times = [at(event["at"]) for event in events]
    stays = [(after - before).total_seconds() for before, after in itertools.pairwise(times)]
    return list(zip(events, [*stays, None], strict=True))


def at(moment: str) -> datetime:
    """A time of the API's."""
    return datetime.fromisoformat(moment)


def fetch(client: Client, job: Job, folder: Path) -> Iterator[Path]:
    """Put the job's outputs into a folder, each whole or not at all; `Damaged` where one is not what was stored.

    They are named by the job's custom id, or by that and the job's id where a file of that name is another's.
    """
    for output in job["outputs"]:
        ending = f"-{output['n']}{PurePosixPath(output['key']).suffix}"
        draft = folder / f"{job['id']}{ending}.part"
        with draft.open("wb") as file:
            digest = client.download(job["id"], output["n"], file)
        if digest != output["sha256"]:
            raise Damaged(f"{draft} has another SHA-256 than the object that was stored.")
        own = _file_name(job["custom_id"] or job["id"])
        path = folder / f"{own}{ending}"
        if not _is_free(path, digest):
            path = folder / f"{own}-{job['id']}{ending}"
        draft.replace(path)
        yield path


def _file_name(own: str) -> str:
    """The name as a file may have it: no separators, and not over what file systems take."""
    return _UNSAFE.sub("_", own).encode()[:_NAME_BYTES].decode(errors="ignore")


def _is_free(path: Path, digest: str) -> bool:
    """Whether the name is ours: it was nobody's until now, or that file is the output already."""
    try:
        path.open("xb").close()
    except FileExistsError:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    return True
