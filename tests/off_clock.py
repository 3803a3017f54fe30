"""Runs a module as `python -m` does, on a host whose clock is off.

    python tests/off_clock.py SECONDS MODULE [ARGUMENT …]

Wall time is moved; the monotonic clock is not, as on a real machine.
"""

from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine


def main(seconds: str, module: str, *arguments: str) -> None:
    off = datetime.now(UTC) + timedelta(seconds=float(seconds))
    time_machine.travel(off, tick=True).start()
    sys.path[0] = str(Path.cwd())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
