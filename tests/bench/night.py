"""A night's work on a whole stack: how fast it goes beside its limits, and whether the clips of others wait for it.

    python -m tests.bench.night --clips 50 --documents 1000 --characters 100000

The processes of `noria up` run in a folder that goes with them. First the clips are made alone, then beside the summary
of the documents, then the text is spoken; what there are 0 of is left out. While clips run their rows are looked at
many times a second: how long after its time a look was claimed by a tick, and how long after it a worker had looked.
The sandbox's books say the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, text

from api.client import Client
from ops.cli import reach, show
from ops.cli.admin import project_made
from ops.local import up
from ops.sandbox.testing import Sandbox
from tests.bench import lateness
from worker import keys, log
from worker.kinds.speech import script
from worker.kinds.speech.input import Speech
from worker.states import TERMINAL

CLIP, READ, SPOKEN = "wan2.5-t2v-preview", "qwen-flash", "qwen3-tts-flash"
LIMITS = {CLIP: {"concurrency": 50, "rps": 5}, READ: {"rpm": 600, "concurrency": 32}}
RUN_SECONDS, CALL_SECONDS = 40.0, 1.5  # of a clip's task, and of a call
PATIENCE_SECONDS = 1200.0
RATE, WIDTH, HEADER = 24_000, 2, 44  # frames a second, bytes of a frame and of a WAV's header
STORY = (
    "很久以前，河边有一架水车。它日夜不停地转动，把河水一桶一桶地提上来，倒进水渠里。"
    "Once upon a time, Dr. Smith came to see the wheel number {n}. It never stops, he said, and it never will. "
)
PARAGRAPH = 1000  # characters
NEWS = (
    "Report {n}. " + "The wheel lifts the river bucket by bucket, and the fields below it were green all summer. " * 8
)


@dataclass
class Rig:
    """A running stack."""

    client: Client
    engine: Engine
    sandbox: Sandbox
    limits: Mapping[str, Mapping[str, int]]


def main() -> None:
    """Measure, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--characters", type=int, default=100_000)
    parser.add_argument("--tpm", type=int, default=500_000, help="tokens a minute of the model that reads documents")
    said = parser.parse_args()
    limits = {**LIMITS, READ: {**LIMITS[READ], "tpm": said.tpm}}
    log.configure("CRITICAL")
    with up.interruptible(), _rig(limits) as rig:
        measures: tuple[tuple[int, str, Callable[[], dict[str, Any]]], ...] = (
            (said.clips, "clips alone", lambda: _clips(rig, said.clips)),
            (said.documents, "clips beside a summary", lambda: _summary(rig, said.clips, said.documents)),
            (said.characters, "narration", lambda: _narration(rig, said.characters)),
        )
        for name, measure in [(name, measure) for count, name, measure in measures if count]:
            load = os.getloadavg()[0]
            print(
                json.dumps({name: measure(), "load before": round(load, 1)}, indent=2, ensure_ascii=False), flush=True
            )


def _clips(rig: Rig, count: int) -> dict[str, Any]:
    with lateness.watched(rig.engine, "text-to-video") as looks:
        _wait(rig, [_submit(rig, "text-to-video", CLIP, {"prompt": f"wheel {n}"}) for n in range(count)])
    return looks.shown()


def _summary(rig: Rig, clips: int, count: int) -> dict[str, Any]:
    documents = [{"id": f"d{n}", "text": NEWS.format(n=n)} for n in range(count)]
    began = time.monotonic()
    job = _submit(rig, "summary", READ, {"documents": documents, "mode": "calls"})
    found = _clips(rig, clips)
    after = time.monotonic() - began
    (ended,) = _wait(rig, [job])
    books = rig.sandbox.ledger()
    (minute,) = books["peaks"]["per_minute"].values()
    return {
        **found,
        "clips ended after, seconds": round(after, 1),
        "summary": ended["state"],
        "summary took, seconds": round(time.monotonic() - began, 1),
        "calls answered": sum(task["model"] == READ for task in books["tasks"]),
        "most in a minute, by the sandbox's books": minute,
        "limits": rig.limits[READ],
        "refused": books["throttled"],
    }


def _narration(rig: Rig, characters: int) -> dict[str, Any]:
    wanted = {"paragraphs": _story(characters)}
    began = time.monotonic()
    job = _submit(rig, "speech", SPOKEN, wanted)
    (ended,) = _wait(rig, [job])
    took = time.monotonic() - began
    parts = _rows(rig, _PARTS, job=job)
    (spoken,) = _rows(rig, _SPOKEN, job=job)
    books = rig.sandbox.ledger()
    minutes = [peaks.get(f"requests {SPOKEN}", 0) for peaks in books["peaks"]["per_minute"].values()]
    whole = next(output["bytes"] for output in ended["outputs"] if output["role"] == "audio")
    return {
        "state": ended["state"],
        "characters": sum(len(part["text"]) for part in wanted["paragraphs"]),
        "segments": len(parts),
        "took, seconds": round(took, 1),
        "of these calls, seconds": round(float(spoken.seconds), 1),
        "at 90 % of 180 a minute, seconds": round((len(parts) - 1) / 162 * 60, 1),
        "most in a minute, by the sandbox's books": max(minutes),
        "seconds of sound": round((whole - HEADER) / RATE / WIDTH, 1),
        "bytes more than its segments and pauses": whole - _length(wanted, [row.bytes for row in parts]),
    }


def _story(characters: int) -> list[dict[str, str]]:
    """Paragraphs of so many characters in all, in two languages."""
    whole = "".join(STORY.format(n=n) for n in range(characters // len(STORY) + 2))[:characters]
    return [{"text": whole[start : start + PARAGRAPH]} for start in range(0, characters, PARAGRAPH)]


def _length(wanted: Mapping[str, Any], parts: list[int]) -> int:
    """The bytes of the segments' sound and the pauses between them."""
    said = Speech.model_validate({**wanted, "voice": "Cherry", "language": "Auto"})
    segments = script.segments(said.voiced, said.pause, 600, lambda words: len(words.encode()))
    assert len(segments) == len(parts), "the text is cut as it was"
    silence = sum(round(segment.pause * RATE) * WIDTH for segment in segments[:-1])
    return HEADER + sum(part - HEADER for part in parts) + silence


def _submit(rig: Rig, kind: str, model: str, wanted: Mapping[str, Any]) -> str:
    return str(rig.client.submit({"kind": kind, "model": model, "input": wanted}).id)


def _wait(rig: Rig, jobs: list[str]) -> list[dict[str, Any]]:
    """The jobs, when all have ended."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while _rows(rig, _UNFINISHED, jobs=jobs)[0].count:
        assert time.monotonic() < give_up, f"they have not ended in {PATIENCE_SECONDS} s"
        time.sleep(0.5)
    ended = [rig.client.job(job).as_json() for job in jobs]
    assert all(job["state"] in TERMINAL for job in ended)
    return ended


def _rows(rig: Rig, statement: str, **said: Any) -> Any:
    with rig.engine.connect() as connection:
        return connection.execute(text(statement), said).all()


@contextmanager
def _rig(limits: Mapping[str, Mapping[str, int]]) -> Iterator[Rig]:
    """All of `noria up` in a folder of its own, with a key."""

    def prepare(settings: Mapping[str, str]) -> dict[str, str]:
        with reach.database(home, settings["NORIA_DATABASE_URL"]) as connection:
            key = keys.new_key(connection, project_made(connection, "bench"), "bench")[1]
        return {"BENCH_KEY": key, "NORIA_LIMITS": json.dumps(limits)}

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        home = Path(folder) / "home"
        with up.stack(up.UpOptions(home), prepare, show.sayer(show.ERR)) as made:
            sandbox = Sandbox(made.addresses["sandbox"])
            sandbox.set(limits=limits, run_seconds=RUN_SECONDS, queue_seconds=0.5, call_seconds=CALL_SECONDS)
            engine = create_engine(made.environment["NORIA_DATABASE_URL"])
            door = reach.Door(made.addresses["API"].removesuffix("/docs"), made.prepared["BENCH_KEY"])
            with reach.api(door) as client:
                yield Rig(client, engine, sandbox, limits)
            engine.dispose()


_UNFINISHED = "select count(*) as count from jobs where id = any(cast(:jobs as uuid[])) and finished_at is null"
_PARTS = """
    select o.bytes from jobs j join outputs o on o.job_id = j.id where j.parent_id = :job order by j.round, j.place
"""
_SPOKEN = """
    select extract(epoch from max(a.answered_at) - min(a.sent_at)) as seconds
    from attempts a join jobs j on j.id = a.job_id where j.parent_id = :job
"""


if __name__ == "__main__":
    main()
