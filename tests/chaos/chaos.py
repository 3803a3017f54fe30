"""`make chaos`: real processes, a load of jobs, and everything that can go wrong going wrong; then the audit.

Three things go wrong all the time: the provider (`tests.chaos.provider`), the lines to Postgres and to the bucket, and
messages, which come three times more. Beside them one torment after another (`tests.chaos.torments`) strikes the
processes. Then all of it stops, the jobs run to their ends, and whoever can tell is asked whether every promise held.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from ops.audit import Finding
from ops.cli import show
from tests.chaos import echo, provider, witnesses
from tests.chaos import load as chaos_load
from tests.chaos import stack as chaos_stack
from tests.chaos import torments as chaos_torments
from tests.chaos.load import CANARY, Load
from tests.chaos.stack import Stack
from tests.chaos.torments import TORMENTS, Scene
from tests.chaos.witnesses import Witnesses
from worker.storage import Bucket

_SUBMITTERS = 8
BATCHES = 4
_HURRY_SECONDS = 1.0
_SENT_SECONDS = 90.0  # in which the last creates must have been sent
_REST_SECONDS = 150.0  # in which all must have ended once the faults have stopped


@dataclass(frozen=True)
class Options:
    """How long things go wrong, with which dice, over how many jobs, by which torments, and where."""

    seconds: float
    seed: int
    jobs: int
    torments: tuple[str, ...]
    home: Path


@dataclass(frozen=True)
class Report:
    """What came of a run: numbers by their names, and what the audit found."""

    numbers: Mapping[str, Any]
    findings: Sequence[Finding]


def run(options: Options, say: Callable[[str], None]) -> Report:
    """One run, bounded: `seconds` of faults, and what the jobs need to end after that. Leaves nothing running."""
    with chaos_stack.running(options.home, options.seed, say) as stack:
        load = chaos_load.load(options.jobs, stack.scene.mail.url)
        started = time.monotonic()
        torments, echoes = _go_wrong(options, stack, load, say)
        ended = time.monotonic()
        say("Nothing goes wrong any more.")
        chaos_load.stop_clock(stack.door, load)
        _rest(stack.scene)
        say("All is at rest.")
        numbers = {
            "seconds with faults": round(ended - started),
            "seconds from then on until all was at rest": round(time.monotonic() - ended),
            **_numbers(stack, load),
            **{f"torment: {what}": count for what, count in torments.items()},
            "messages published again": echoes,
            "commits whose answer was cut": stack.database.broken,
            "connections to the bucket that broke": stack.storage.broken,
        }
        return Report(numbers, witnesses.audit(stack.scene.engine, witnesses_of(stack, load)))


def shown(report: Report) -> Any:
    """The report as a table for people."""
    rows = show.table("what", "how many", right=["how many"], wide=["what"])
    for name, number in report.numbers.items():
        show.row(rows, name, str(number))
    show.row(rows, "broken promises", str(len(report.findings)), style="red" if report.findings else "green")
    return rows


def _go_wrong(options: Options, stack: Stack, load: Load, say: Callable[[str], None]) -> tuple[Counter[str], int]:
    """The jobs are submitted while everything goes wrong: how often each torment struck, and messages sent again."""
    struck: Counter[str] = Counter()
    ends_at = time.monotonic() + options.seconds
    with ThreadPoolExecutor(_SUBMITTERS) as pool:
        pause = options.seconds / 3 * _SUBMITTERS / max(1, len(load.bodies))
        promises = [pool.submit(chaos_load.set_clock, stack.door, load)]
        promises += [pool.submit(chaos_load.send_batch, stack.door, load, n) for n in range(BATCHES)]
        promises += [pool.submit(_submit, stack, load, n, pause) for n in range(len(load.bodies))]
        with provider.failing(stack.sandbox), stack.broken_lines(), echo.echoing(stack.scene) as echoes:
            for name in _torments(options, stack.scene):
                if time.monotonic() >= ends_at:
                    break
                say(f"{ends_at - time.monotonic():4.0f} s left: {TORMENTS[name](stack.scene)}")
                struck[name] += 1
                time.sleep(min(stack.scene.dice.uniform(1, 5), max(0.0, ends_at - time.monotonic())))
            for promise in promises:
                promise.result()
            say("All are submitted; the last calls are made while the provider fails.")
            _until(stack.scene, _UNSENT, _SENT_SECONDS)
    return struck, echoes[0]


def _torments(options: Options, scene: Scene) -> Iterator[str]:
    """Each of them, in a new order each time round, without an end."""
    while options.torments:
        yield from scene.dice.sample(options.torments, len(options.torments))


def _submit(stack: Stack, load: Load, n: int, pause: float) -> None:
    chaos_load.submit(stack.door, load, n)
    time.sleep(pause)


def _rest(scene: Scene) -> None:
    """Until all jobs have ended and all deliveries too, or for a while; waits are cut short, since they are tested."""
    scene.signal(chaos_torments.WORKERS, chaos_torments.KILL)
    chaos_torments.lapse(scene)  # of those that died earlier, too
    until_at_rest(scene, _REST_SECONDS)


def until_at_rest(scene: Scene, seconds: float) -> None:
    """Until all jobs have ended and all deliveries too, or for so long."""
    _until(scene, _UNFINISHED, seconds)


def _until(scene: Scene, count: str, seconds: float) -> None:
    """Until the statement counts nothing, or for so long; waits are cut short, since they are tested elsewhere."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with scene.connection() as connection:
            for statement in _HURRY:
                connection.execute(text(statement))
            if not connection.execute(text(count)).scalar_one():
                return
        time.sleep(_HURRY_SECONDS)


# What a dead worker had in hand waits for its lease, which only the end cuts short.
_UNSENT = "select count(*) from jobs where state = 'queued' or state = 'admitted' and claimed is null"
_LOST_CALLS = (
    "select count(*) from attempts a join jobs j on j.id = a.job_id where j.mode = 'call' and a.outcome = 'unknown'"
)
_HELD_OF_MUTE = "select count(*) from jobs where held_for = 'uncertain' and model = any(:mute)"
_UNFINISHED = """
    select (select count(*) from jobs where finished_at is null and state not in ('held', 'awaiting_review'))
         + (select count(*) from runs where outcome = 'waiting')
         + (select count(*) from batches b where state = 'running'
              and not exists (select from jobs where batch_id = b.id and state = 'held'))
         + (select count(*) from deliveries where state = 'waiting')
"""
# Never rows that somebody has claimed; and who is uncertain waits for the settle time, which is the point of it.
_HURRY = (
    "update jobs set run_at = now() where claimed is null and run_at > now() + interval '1 s'"
    " and state in ('queued', 'gathering', 'running', 'copying')",
    "update duties set due_at = now() where name = 'gather'",
    "update deliveries set run_at = now() where claimed is null and run_at > now() + interval '1 s'",
    "update batches set run_at = now() where claimed is null and run_at > now() + interval '1 s'",
    "update dead_receivers set resume_at = now() where resume_at > now() + interval '1 s'",
)


def _numbers(stack: Stack, load: Load) -> dict[str, Any]:
    """The run by the provider's books and by ours."""
    ledger = stack.sandbox.ledger()
    with stack.scene.connection() as connection:
        states = Counter(connection.execute(text("select state from jobs where parent_id is null")).scalars())
        parts = Counter(connection.execute(text("select state from jobs where parent_id is not null")).scalars())
        runs = Counter(connection.execute(text("select outcome from runs")).scalars())
        batches = Counter(connection.execute(text("select state from batches")).scalars())
        lost = connection.execute(text(_LOST_CALLS)).scalar_one()
        outcomes = Counter(connection.execute(text("select outcome from attempts")).scalars())
        entered = Counter(connection.execute(text('select entered from events where "left" <> entered')).scalars())
        held = Counter(connection.execute(text("select held_for from jobs where state = 'held'")).scalars())
        mute = connection.execute(text(_HELD_OF_MUTE), {"mute": chaos_stack.mute()}).scalar()
        redone = connection.execute(text("select count(*) from jobs where state = 'failed' and retries > 0")).scalar()
        delivered = connection.execute(text("select count(*) from deliveries where state = 'delivered'")).scalar()
        tasks = set(connection.execute(text("select task_id from attempts where billed = 'yes'")).scalars())
    made = [task for task in ledger["tasks"] if task["billed_micros"]]
    paid = [task for task in made if task["is_async"]]
    return {
        "jobs accepted": len(load.accepted),
        **{f"jobs {state}": count for state, count in sorted(states.items())},
        **{f"parts {state}": count for state, count in sorted(parts.items())},
        **{f"runs of the schedule {outcome}": count for outcome, count in sorted(runs.items())},
        **{f"files of rows {state}": count for state, count in sorted(batches.items())},
        "of the failed, made twice and failed twice, unbilled": redone,
        **{f"held for {why}": count for why, count in sorted(held.items())},
        "of these, of models that do not repeat the prompt": mute,
        "tasks paid, by the provider's books": len(paid),
        "tasks paid that no job has": sum(task["task_id"] not in tasks for task in paid),
        "calls paid that answer at once": len(made) - len(paid),
        "calls of these models whose answer was lost": lost,
        "batches paid": sum(bool(batch["billed_micros"]) for batch in ledger["batches"]),
        **{f"create calls {outcome}": count for outcome, count in sorted(outcomes.items())},
        "times uncertain": entered["uncertain"],
        "webhooks delivered": delivered,
        **{f"fault: {what}": count for what, count in sorted(ledger["faults"].items())},
    }


def witnesses_of(stack: Stack, load: Load) -> Witnesses:
    """Everybody who can tell whether the promises were kept, once all is at rest."""
    return Witnesses(
        ledger=stack.sandbox.ledger(),
        queries=chaos_stack.QUERIES,
        bucket=Bucket(stack.scene.settings),
        reads_bytes=True,
        receiver=stack.scene.mail,
        accepted=load.accepted,
        logs=stack.logs,
        canaries=(*stack.secrets, CANARY, "Signature=", "sk-sandbox"),
        unpaused=[load.schedule],
        is_at_rest=True,
    )
