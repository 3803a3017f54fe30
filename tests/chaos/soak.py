"""`make soak`: a mixed load for an hour, with nothing going wrong, and what must not grow meanwhile.

    python -m tests.chaos.soak --minutes 60 --rate 4

The stack, the load and the audit are those of chaos. Every few seconds it is noted what processes and servers hold. A
figure is flat when its median in the last quarter is not above its median in the second, but for a share of that and a
little: what fills by and by has filled after the first quarter. Tables must grow with jobs: theirs are bytes a job.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from sqlalchemy import text

from ops.audit import Finding
from ops.cli import reach, show
from ops.cli.doctor import tell
from ops.local import up
from tests.chaos import chaos, witnesses
from tests.chaos import load as chaos_load
from tests.chaos import stack as chaos_stack
from tests.chaos.stack import Stack

app = typer.Typer(add_completion=False)

_SUBMITTERS = 8
_SAMPLES = 240  # at the most, of a run
_BATCH_SECONDS = 60.0  # between two files of rows
_LOOK_SECONDS = 1.0  # between two looks of somebody who watches
_REST_SECONDS = 180.0
MB = 1_000_000


@dataclass(frozen=True)
class Bound:
    """By what share, and by how much more, the end may be above the beginning."""

    unit: str
    share: float
    more: float


MEMORY, COUNT, WORK, GROWTH, DEAD = (
    Bound("MB", 0.10, 10),
    Bound("", 0.25, 5),  # threads and their connections come with the busiest moment so far, and stay
    Bound("MB", 0.25, 1),
    Bound("bytes a job", 0.15, 200),
    Bound("%", 0.50, 5),
)

# What holds unfinished work alone, and so may not grow with what is done.
_OF_WORK = """
    select indexrelname, pg_relation_size(indexrelid) / 1e6 from pg_stat_user_indexes
     where indexrelname in ('ix_jobs_due', 'ix_jobs_sent', 'ix_jobs_queued', 'ix_jobs_slots', 'ix_jobs_unfinished',
                            'ix_jobs_at_work', 'ix_deliveries_due', 'ix_deliveries_turns', 'ix_deliveries_claimed',
                            'ix_attempts_open', 'ix_outputs_poster')
"""
_OF_TABLES = (
    "select relname, pg_table_size(relid), pg_indexes_size(relid), n_live_tup, n_dead_tup from pg_stat_user_tables"
)
_CONNECTIONS = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
_ENDED = "select count(*) from jobs where finished_at is not null"
_LARGE = ("jobs", "attempts", "events", "outputs", "deliveries", "ledger")

Sample = Mapping[tuple[str, Bound], float]


@dataclass(frozen=True)
class Row:
    """A figure at the beginning and at the end, and what it may be at the most."""

    name: str
    bound: Bound
    began: float
    ended: float

    @property
    def most(self) -> float:
        return self.began * (1 + self.bound.share) + self.bound.more


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=1, max=24 * 60, help="How long.")] = 60.0,
    rate: Annotated[float, typer.Option(min=0.1, max=20, help="Jobs a second, beside a file a minute.")] = 4.0,
    home: Annotated[Path, typer.Option(help="Where it works; what an earlier run left there is removed.")] = Path(
        ".noria/soak"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Where all that was noted goes.")] = None,
) -> None:
    """Run a whole stack under load, and say what grew. Exit code 1 where something did, or where a promise broke."""
    with up.interruptible():
        samples, findings = run(minutes * 60, rate, home, show.sayer(show.ERR))
    if json_file:
        noted = [{name: value for (name, _), value in sample.items()} for sample in samples]
        json_file.write_text(json.dumps(noted, indent=1) + "\n")
    rows = rows_of(samples)
    show.OUT.print(shown(rows))
    tell(findings, False)
    raise typer.Exit(1 if findings or any(row.ended > row.most for row in rows) else 0)


def run(seconds: float, rate: float, home: Path, say: Callable[[str], None]) -> tuple[list[Sample], list[Finding]]:
    """What was noted each time, and which promises broke. Leaves nothing running."""
    with chaos_stack.running(home, 0, say) as stack:
        load = chaos_load.load(round(seconds * rate), stack.scene.mail.url)
        samples = _loaded(stack, load, seconds, rate, say)
        chaos_load.stop_clock(stack.door, load)
        chaos.until_at_rest(stack.scene, _REST_SECONDS)
        say(f"{len(load.accepted):,} jobs are at rest.")
        return samples, witnesses.audit(stack.scene.engine, chaos.witnesses_of(stack, load))


def rows_of(samples: Sequence[Sample]) -> list[Row]:
    """Each figure that all samples have, at its medians in the second and in the last quarter of them."""
    quarter = len(samples) // 4
    began, ended = samples[quarter : 2 * quarter], samples[-quarter:]
    names = [name for name in samples[-1] if all(name in sample for sample in samples[quarter:])]
    return [
        Row(name[0], name[1], *(statistics.median(sample[name] for sample in part) for part in (began, ended)))
        for name in names
    ]


def shown(rows: Sequence[Row]) -> Any:
    """A table for people: what grew is red."""
    numbers = ("second quarter", "last quarter", "at most")
    table = show.table("what", *numbers, "unit", right=numbers, wide=["what"])
    for row in rows:
        figures = (f"{value:,.1f}" for value in (row.began, row.ended, row.most))
        show.row(table, row.name, *figures, row.bound.unit, style="red" if row.ended > row.most else "")
    return table


def _loaded(
    stack: Stack, load: chaos_load.Load, seconds: float, rate: float, say: Callable[[str], None]
) -> list[Sample]:
    """The samples, a fixed time apart, while jobs are submitted at the rate and somebody watches."""
    began, samples = time.monotonic(), []
    pause = max(seconds / _SAMPLES, 1.0)
    with ThreadPoolExecutor(_SUBMITTERS + 2) as pool:
        promises = [pool.submit(chaos_load.set_clock, stack.door, load), pool.submit(_watch, stack, began + seconds)]
        promises.append(pool.submit(_files, stack, load, began, seconds))
        promises += [pool.submit(_at, began + n / rate, stack, load, n) for n in range(len(load.bodies))]
        while time.monotonic() < began + seconds:
            time.sleep(pause)
            samples.append(_sample(stack))
            if len(samples) % 20 == 0:
                say(f"{began + seconds - time.monotonic():5.0f} s left: {len(load.accepted):,} jobs accepted")
        for promise in promises:
            promise.result()
    return samples


def _at(when: float, stack: Stack, load: chaos_load.Load, n: int) -> None:
    time.sleep(max(0.0, when - time.monotonic()))
    chaos_load.submit(stack.door, load, n)


def _files(stack: Stack, load: chaos_load.Load, began: float, seconds: float) -> None:
    for n in range(round(seconds / _BATCH_SECONDS)):
        time.sleep(max(0.0, began + n * _BATCH_SECONDS - time.monotonic()))
        chaos_load.send_batch(stack.door, load, n)


def _watch(stack: Stack, until: float) -> None:
    """Somebody who looks at a list and a job, as a script does: by a new connection each time."""
    while time.monotonic() < until:
        with reach.api(stack.door) as client:
            for job in islice(client.jobs(limit=20), 1):
                client.job(job.id)
        time.sleep(_LOOK_SECONDS)


def _sample(stack: Stack) -> Sample:
    found: dict[tuple[str, Bound], float] = {}
    pids = stack.scene.supervisor.pids()
    for name in pids.keys() & set(chaos_stack.OURS):
        family = [psutil.Process(pids[name]), *psutil.Process(pids[name]).children(recursive=True)]
        found[f"memory of {name}", MEMORY] = sum(each.memory_info().rss for each in family) / MB
        found[f"files and sockets of {name}", COUNT] = sum(each.num_fds() for each in family)
        found[f"threads of {name}", COUNT] = sum(each.num_threads() for each in family)
    return found | dict(_of_postgres(stack)) | dict(_of_valkey(stack))


def _of_postgres(stack: Stack) -> Iterator[tuple[tuple[str, Bound], float]]:
    with stack.scene.connection() as connection:
        yield ("connections of Postgres", COUNT), connection.execute(text(_CONNECTIONS)).scalar_one()
        ended = max(1, connection.execute(text(_ENDED)).scalar_one())
        for index, size in connection.execute(text(_OF_WORK)):
            yield (f"index {index}", WORK), float(size)
        for table, size, indexes, alive, dead in connection.execute(text(_OF_TABLES)):
            if table in _LARGE:
                yield (f"table {table}", GROWTH), size / ended
                yield (f"indexes of {table}", GROWTH), indexes / ended
                yield (f"dead rows of {table}", DEAD), 100 * dead / max(1, alive + dead)


def _of_valkey(stack: Stack) -> Iterator[tuple[tuple[str, Bound], float]]:
    with stack.scene.redis() as client:
        said = client.info()
        yield ("memory of Valkey", MEMORY), said["used_memory"] / MB
        yield ("clients of Valkey", COUNT), said["connected_clients"]
        yield ("keys of Valkey", COUNT), client.dbsize()


if __name__ == "__main__":
    app()
