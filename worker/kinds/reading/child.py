"""Parsers of what others wrote, run in a process of their own: bounded in time, memory and in what they may answer.

What they complain of is not read: a broken PDF has megabytes of it.
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
from worker.kinds.reading import extract

_ANSWER = 32 << 20  # bytes
_PLACES = BoundedSemaphore(8)  # of parsers at once: whoever finds none free waits, since none takes long
_PROGRAM = str(Path(extract.__file__).resolve())


class Exhausted(NoriaError):
    """It took more time or memory than it is given, or said too much."""

    code = "too_slow"


def run(form: str, data: bytes, most: int, seconds: float) -> dict[str, Any]:
    """What `extract` answers of the bytes, with nothing of our environment; raises Exhausted."""
    command = [sys.executable, "-I", _PROGRAM, form, str(most)]
    with _PLACES, Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}) as child:
        timer = Timer(seconds, child.kill)
        timer.start()
        try:
            return _answer(child, data)
        finally:
            timer.cancel()
            child.kill()


def _answer(child: Popen[bytes], data: bytes) -> dict[str, Any]:
    assert child.stdin is not None, "it has a pipe to read from"
    assert child.stdout is not None, "it has a pipe to write to"
    with suppress(BrokenPipeError):  # it died, and its status says so
        child.stdin.write(data)
        child.stdin.flush()
    with suppress(BrokenPipeError):
        child.stdin.close()
    said = child.stdout.read(_ANSWER + 1)
    if len(said) > _ANSWER or child.wait() != 0:
        raise Exhausted("takes more time or memory to read than it is given")
    answer: dict[str, Any] = json.loads(said)
    return answer
