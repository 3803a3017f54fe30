"""A sandbox for the length of a test, on a thread of the test's own process.

with running(Options(run_seconds=0.1)) as sandbox:
    sandbox.fault(where="create", what="lost_answer", times=1)
    ...
    assert sandbox.ledger()["totals"]["tasks"] == 1
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from ops.sandbox.app import create_app
from ops.sandbox.options import Options
from ops.sandbox.serving import PromptServer, bind, configuration


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox, driven over its own interface."""

    url: str  # the host, as in http://127.0.0.1:9000

    @property
    def api(self) -> str:
        """The base of the native interface, as the official SDK wants it."""
        return f"{self.url}/api/v1"

    def ledger(self) -> dict[str, Any]:
        """Return everything that was received, made and billed."""
        ledger: dict[str, Any] = self._call("GET", "ledger")
        return ledger

    def totals(self) -> dict[str, Any]:
        """Return the counts, the bill and what was asked, without a line for each task."""
        totals: dict[str, Any] = self._call("GET", "totals")
        return totals

    def task(self, task_id: str) -> dict[str, Any]:
        """Return the ledger's line of one task, or raise StopIteration."""
        return next(task for task in self.ledger()["tasks"] if task["task_id"] == task_id)

    def fault(self, **rule: Any) -> None:
        """Add one fault, by the fields of `Rule`."""
        self._call("POST", "faults", [rule])

    def clear_faults(self) -> None:
        """Behave again."""
        self._call("DELETE", "faults")

    def set(self, **changes: Any) -> None:
        """Change switches of `Options`."""
        self._call("POST", "options", changes)

    def reset(self) -> None:
        """Forget everything, and set the switches back."""
        self._call("POST", "reset")

    def _call(self, method: str, path: str, body: object = None) -> Any:
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        data = None if body is None else json.dumps(body)
        connection.request(method, f"/_sandbox/{path}", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status >= 400:
            raise ValueError(content.decode())
        return json.loads(content or b"null")


@contextmanager
def running(options: Options | None = None, *, state: Path | None = None, port: int = 0) -> Iterator[Sandbox]:
    """Yield a sandbox that serves on a free port, or on `port`; it stops with the block."""
    listener = bind("127.0.0.1", port)
    server = PromptServer(configuration(create_app(options, state)))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield Sandbox(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
