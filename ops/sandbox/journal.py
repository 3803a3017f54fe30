"""The sandbox's memory on disk: one line of JSON for each task, file, batch or upload made, and each undone.

A provider does not forget when we restart. Replaying the lines through the same planner gives each task its old
times; a torn last line, from a kill in mid-write, is left out.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ops.sandbox.orders import Order
from ops.sandbox.tasks import NEVER, Task, Tasks
from ops.sandbox.text import Answer


class Journal:
    """An append-only file of what happened; a journal without a path remembers nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path:
            _mend(path)
        self._file = path.open("a", encoding="utf-8") if path else None

    def made(self, task: Task, concurrency: int | None) -> None:
        """Note that a task was made, in a lane of that concurrency."""
        self._write({"made": asdict(task), "concurrency": concurrency})

    def canceled(self, task: Task, concurrency: int | None) -> None:
        """Note that a task was cancelled."""
        self._write({"canceled": task.id, "at": task.canceled_at, "concurrency": concurrency})

    def note(self, kind: str, row: dict[str, Any]) -> None:
        """Note something else: a file, a batch, an upload."""
        self._write({"note": kind, "row": row})

    def notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what else was noted, kind and row, as it happened."""
        return ((line["note"], line["row"]) for line in self._lines() if "note" in line)

    def replay(self) -> Tasks:
        """Return the tasks as the journal knows them."""
        tasks = Tasks()
        for line in self._lines():
            if "made" in line:
                tasks.add(_task(line["made"]), line["concurrency"])
            elif "canceled" in line:
                tasks.cancel(tasks.by_id[line["canceled"]], line["concurrency"], line["at"])
        return tasks

    def forget(self) -> None:
        """Empty the file."""
        if self._file:
            self._file.truncate(0)

    def close(self) -> None:
        """Let the file go; nothing may be noted after."""
        if self._file:
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self._path is None:
            return
        # Not splitlines: a prompt may hold line separators that JSON leaves as they are.
        for line in self._path.read_text(encoding="utf-8").split("\n")[:-1]:
            yield json.loads(line)


def _mend(path: Path) -> None:
    whole = path.read_bytes() if path.exists() else b""
    if not whole.endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])


def _task(row: dict[str, Any]) -> Task:
    failure = tuple(row["failure"]) if row["failure"] else None
    planned = {"started_at": NEVER, "ended_at": NEVER}
    answer = Answer(**row["answer"]) if row.get("answer") else None
    return Task(**(row | planned | {"order": Order(**row["order"]), "failure": failure, "answer": answer}))
