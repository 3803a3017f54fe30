"""Files and answers that others wrote, parsed in a process of its own.

The process is bounded in time, in memory and in the length of its answer. Its stderr is not read: a broken PDF has
megabytes of complaints.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import BoundedSemaphore, Timer
from typing import Any

from worker.errors import NoriaError

_ANSWER = 32 << 20  # bytes
_PARSERS = BoundedSemaphore(8)  # at once: none takes long, so the next one waits
_PROGRAM = str(Path(__file__).resolve().with_name("extract.py"))


class Exhausted(NoriaError):
    """The parser took more time or memory than it is given, or its answer was too long."""

    code = "too_slow"


def run(form: str, data: bytes, most: int, seconds: float) -> dict[str, Any]:
    """What the program `extract` answers about the bytes, with nothing of our environment; raises Exhausted."""
    command = [sys.executable, "-I", _PROGRAM, form, str(most)]
    with _PARSERS, Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}) as child:
        timer = Timer(seconds, child.kill)
        timer.start()
        try:
            return _answer(child, data)
        finally:
            timer.cancel()
            child.kill()


def _answer(child: Popen[bytes], data: bytes) -> dict[str, Any]:
    assert child.stdin is not None, "its stdin is a pipe"
    assert child.stdout is not None, "its stdout is a pipe"
    with suppress(BrokenPipeError):  # it died, and its status says so
        child.stdin.write(data)
        child.stdin.flush()
    with suppress(BrokenPipeError):
        child.stdin.close()
    written = child.stdout.read(_ANSWER + 1)
    if len(written) > _ANSWER or child.wait() != 0:
        raise Exhausted("takes more time or memory to read than it is given")
    answer: dict[str, Any] = json.loads(written)
    return answer
