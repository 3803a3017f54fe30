"""Narrations and summaries whose workers die: nothing is made twice, nothing is missing, and no parent waits for ever.

What a death may cost is a call whose answer nobody heard: it is made again, and each such call is an attempt that is
billed `unknown`. The audit holds the provider's books against that.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import PATIENCE, Stage, stage

from ops.sandbox import sound
from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from tests.chaos import witnesses
from tests.chaos.witnesses import Witnesses
from worker.context import Clock
from worker.states import TERMINAL, State
from worker.tables import Job

KILLER = Path(__file__).with_name("killer.py")
SPOKEN, READ, REDUCED = "qwen3-tts-flash", "qwen-flash", "qwen-plus"
FAST = {"call_seconds": 0, "batch_validating_seconds": 0, "batch_run_seconds": 0, "batch_finalizing_seconds": 0}
UNBOUND = Limits(rpm=1_000_000, tpm=100_000_000)
DUE = (
    "update jobs set run_at = now() where claimed is null and run_at > now()",
    "update duties set due_at = now() where name = 'gather'",
)
VERSES = [f"第{n}节，水车日夜不停地转动，把河水一桶一桶地提上来。" for n in range(3)]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(**FAST, limits={"*": UNBOUND})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    limits = {name: {"rpm": 1_000_000, "tpm": 100_000_000} for name in (SPOKEN, READ, REDUCED)}
    with stage(environment, sandbox, limits=limits) as made:
        yield made


def narration(play: Stage, verses: list[str] = VERSES) -> Job:
    paragraphs = [{"text": verse, "voice": "Cherry"} for verse in verses]
    return play.submit("speech", SPOKEN, input={"paragraphs": paragraphs})


def summary(play: Stage, count: int, mode: str, **said: Any) -> Job:
    documents = [
        {"id": f"d{n}", "text": f"Document {n} says that sales went up by {n} per cent."} for n in range(count)
    ]
    return play.submit("summary", READ, input={"mode": mode, "documents": documents, **said})


def calls(play: Stage) -> Job:
    return summary(play, 4, "calls", digest=True)


def batch(play: Stage) -> Job:
    return summary(play, 4, "batch", digest=True)


def children(play: Stage, job: Job) -> list[Job]:
    rows = play.sql("select * from jobs where parent_id = :id order by round, place", id=job.id)
    return [Job.of(row) for row in rows]


def hurried(play: Stage) -> None:
    """Cuts all waits short, and lets the tick look at waiting parents now and not once a minute."""
    for statement in DUE:
        play.sql(statement)


def lapse(play: Stage) -> None:
    """Whoever had claims is dead, and so are the messages that a tick of theirs meant to send."""
    play.sql("update jobs set run_at = now() - interval '1 s' where claimed is not null")


def finish(play: Stage, job: Job) -> Job:
    def look() -> Job:
        hurried(play)
        return play.job(job)

    lapse(play)
    return play.drive(look, lambda found: found.state in TERMINAL)  # type: ignore[no-any-return]


def reach(play: Stage, look: Callable[[], Any]) -> None:
    """Drives everything until there is what is looked for, and it is due."""
    play.drive(lambda: bool(look()), bool)
    hurried(play)


def state_of(play: Stage, job: Job, *states: State) -> Callable[[], bool]:
    return lambda: play.job(job).state in states


def kill(play: Stage, environment: dict[str, str], job_id: uuid.UUID, point: str) -> None:
    """A real worker process takes the job and is killed at the point."""
    lapse(play)
    limits = {name: limit.model_dump(exclude_none=True) for name, limit in play.ctx.settings.limits.items()}
    ours = {"NORIA_DASHSCOPE_URL": play.sandbox.url, "NORIA_SETTLE_SECONDS": "1", "NORIA_LIMITS": json.dumps(limits)}
    seen = {**os.environ, **environment, **ours, "PYTHONPATH": str(KILLER.parent.parent)}
    command = [sys.executable, str(KILLER), str(job_id), point]
    done = subprocess.run(command, env=seen, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def findings(play: Stage) -> list[str]:
    everyone = Witnesses(ledger=play.sandbox.ledger(), bucket=play.ctx.bucket, reads_bytes=True, is_at_rest=True)
    return [f"{found.invariant} {found.what}" for found in witnesses.audit(play.ctx.engine, everyone)]


def outputs(play: Stage, job: Job) -> dict[str, bytes]:
    found = play.document(job)["outputs"]
    return {output["role"]: b"".join(play.ctx.bucket.chunks(output["key"])) for output in found}


def samples(content: bytes) -> bytes:
    with wave.open(io.BytesIO(content)) as reader:
        return reader.readframes(reader.getnframes())


def is_spoken(play: Stage, job: Job, verses: list[str]) -> bool:
    """Whether the narration says every verse in order, to the sample, and nothing else between them but silence."""
    whole, at = samples(outputs(play, job)["audio"]), 0
    for child in children(play, job):
        said = samples(sound.wav(child.input["text"], child.input["voice"]))
        at = whole.index(said, at) + len(said)
    text = "".join(child.input["text"] for child in children(play, job))
    return "".join(text.split()) == "".join("".join(verses).split())


def is_read(play: Stage, job: Job, count: int) -> bool:
    lines = [json.loads(line) for line in outputs(play, job)["summaries"].splitlines()]
    told = all(f"Document {n} " in line["summary"] for n, line in enumerate(lines))
    return told and [line["id"] for line in lines] == [f"d{n}" for n in range(count)]


def billed(play: Stage) -> dict[str, int]:
    """What the provider was paid for, by its own books."""
    books = play.sandbox.ledger()
    paid = [task for task in books["tasks"] if task["billed_micros"]]
    return {"calls": len(paid), "batches": len(books["batches"])}


def unheard(play: Stage) -> int:
    (row,) = play.sql("select count(*) as calls from attempts where outcome = 'unknown'")
    return int(row["calls"])


# Every step of every member, abandoned


def abandon(play: Stage, taken: Job, depth: str) -> None:
    """A worker's step, which goes no further than that: the worker is dead."""
    step, clock = play.step(taken)
    move = next(step)
    if depth == "recorded":
        play.ctx.record(taken, move, clock)
    while depth == "answered" and move.to is State.SUBMITTING:
        move = step.send(play.ctx.record(taken, move, clock))  # type: ignore[attr-defined]
    step.close()  # type: ignore[attr-defined]
    play.sql("update jobs set run_at = now() where id = :id and claimed = 'taken'", id=taken.id)


def live(play: Stage, job: Job, depth: str) -> set[tuple[str, str]]:
    """A whole life in which each step of each member is begun by one that dies, and then done by another."""
    died: set[tuple[uuid.UUID, str, int]] = set()
    deadline = time.monotonic() + PATIENCE
    while play.job(job).state not in TERMINAL:
        assert time.monotonic() < deadline, f"it is {play.job(job).state} under {play.job(job).error}"
        hurried(play)
        for message in play.tick():
            for id_, number in message.numbers:
                taken = play.spend(id_, number)
                if (taken.id, taken.state, taken.round) in died:
                    play.runner.carry_out(taken, Clock(play.now()))
                else:
                    died.add((taken.id, taken.state, taken.round))
                    abandon(play, taken, depth)
    kinds = {row["id"]: row["kind"] for row in play.sql("select id, kind from jobs")}
    return {(kinds[id_], state) for id_, state, _ in died}


@pytest.mark.parametrize("depth", ["made", "recorded", "answered"])
@pytest.mark.parametrize("make", [narration, calls, batch])
def test_a_family_whose_every_step_is_begun_by_a_worker_that_dies_ends_well(
    play: Stage, make: Callable[[Stage], Job], depth: str
) -> None:
    job = make(play)

    seen = live(play, job, depth)

    assert play.job(job).state == State.SUCCEEDED
    assert {(job.kind, state) for state in ("queued", "gathering", "copying")} <= seen
    assert is_spoken(play, job, VERSES) if make is narration else is_read(play, job, 4)
    assert findings(play) == []
    made = billed(play)
    least = {"narration": (3, 0), "calls": (5, 0), "batch": (1, 1)}[make.__name__]
    assert (made["calls"] <= least[0] + unheard(play), made["batches"]) == (True, least[1])


# Real processes, really killed


def test_a_parent_killed_between_two_portions_writes_each_document_once(
    play: Stage, environment: dict[str, str]
) -> None:
    job = summary(play, 210, "batch")
    reach(play, state_of(play, job, State.GATHERING))

    kill(play, environment, job.id, "recorded")
    assert (play.job(job).round_open, children(play, job)) == (True, [])
    kill(play, environment, job.id, "made")
    done = finish(play, job)

    assert is_read(play, done, 210)
    assert billed(play) == {"calls": 0, "batches": 1}
    assert play.sandbox.ledger()["batches"][0]["lines"] == 210
    assert findings(play) == []


def test_a_parent_killed_right_after_it_made_its_children_is_woken_by_the_last_of_them(
    play: Stage, environment: dict[str, str]
) -> None:
    job = narration(play)
    reach(play, state_of(play, job, State.GATHERING))

    kill(play, environment, job.id, "ended")
    assert len(children(play, job)) == 3
    done = finish(play, job)

    assert is_spoken(play, done, VERSES)
    assert billed(play)["calls"] == 3
    assert findings(play) == []


def test_a_worker_killed_between_the_last_childs_end_and_the_wake_leaves_the_parent_to_the_tick(
    play: Stage, environment: dict[str, str]
) -> None:
    job = narration(play)
    play.drive(lambda: {child.state for child in children(play, job)}, lambda states: states == {"copying"})
    first, *others = children(play, job)
    play.sql("update jobs set run_at = now() + interval '1 h' where id = :id", id=first.id)
    play.drive(lambda: [play.job(child).state for child in others], lambda states: set(states) == {"succeeded"})
    play.sql("update jobs set run_at = now() where id = :id", id=first.id)

    kill(play, environment, first.id, "ended")
    assert {child.state for child in children(play, job)} == {"succeeded"}
    assert (play.job(job).state, play.job(job).run_at) == (State.GATHERING, None)
    play.sql("update duties set due_at = now() where name = 'gather'")
    done = play.until(job)

    assert is_spoken(play, done, VERSES)
    assert findings(play) == []


def test_a_parent_killed_in_the_middle_of_an_upload_puts_its_parts_together_again(
    play: Stage, environment: dict[str, str]
) -> None:
    verses = ["".join(VERSES * 55)]  # eight minutes, 24 MB: more than one part of an upload
    job = narration(play, verses)
    reach(play, state_of(play, job, State.COPYING))

    kill(play, environment, job.id, "storing")
    assert [upload.key.rpartition("/")[2] for upload in play.ctx.bucket.uploads()] == ["0-audio.wav"]
    done = finish(play, job)

    assert is_spoken(play, done, verses)
    assert billed(play)["calls"] == len(children(play, job))
    assert findings(play) == []


def test_a_batch_whose_worker_was_killed_after_the_upload_is_created_once(
    play: Stage, environment: dict[str, str]
) -> None:
    job = batch(play)
    reach(play, lambda: children(play, job))

    kill(play, environment, children(play, job)[0].id, "made")
    (uploaded,) = play.sandbox.ledger()["calls"].values()
    assert (uploaded["file_upload"], "batch_create" in uploaded) == (1, False)
    done = finish(play, job)

    assert is_read(play, done, 4)
    assert billed(play) == {"calls": 1, "batches": 1}
    assert findings(play) == []


def test_a_batch_whose_worker_was_killed_with_the_answer_in_its_hand_is_found_by_its_name(
    play: Stage, environment: dict[str, str]
) -> None:
    job = batch(play)
    reach(play, lambda: children(play, job))

    kill(play, environment, children(play, job)[0].id, "answered")
    assert billed(play)["batches"] == 1
    assert children(play, job)[0].state == "submitting"
    done = finish(play, job)

    assert is_read(play, done, 4)
    assert billed(play) == {"calls": 1, "batches": 1}
    assert findings(play) == []


def test_a_batch_whose_results_were_being_copied_when_its_worker_was_killed_is_paid_once(
    play: Stage, environment: dict[str, str]
) -> None:
    job = batch(play)
    reach(play, lambda: [child for child in children(play, job) if child.state == "copying"])

    kill(play, environment, children(play, job)[0].id, "storing")
    assert children(play, job)[0].state == "copying"
    done = finish(play, job)

    assert is_read(play, done, 4)
    assert done.cost == play.sandbox.ledger()["totals"]["billed_micros"]
    assert billed(play) == {"calls": 1, "batches": 1}
    assert findings(play) == []
