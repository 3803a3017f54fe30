"""Processes kept alive: started in order, restarted with backoff, stopped in reverse, none left behind.

One thread starts every process and lives as long as they do: the kernel ties "end me when my parent dies" to
the thread that forked, not to its process. Each process carries its home in its environment (`MARK`), so that
a later run finds what a killed one left and ends it by id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import psutil

MARK = "NORIA_STACK_HOME"  # nobody sets this by hand: a process that carries it is ours to end

FIRST_PAUSE_SECONDS = 0.5  # before the first restart; doubled each time
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 30.0  # so long in order, and the next restart is a first one again
LOG_BYTES = 10_000_000  # a log longer than this is set aside when its process starts
OUTPUT_BYTES = 100_000  # as much of a log is looked at
TAIL_LINES = 15  # as many are shown
_STARTING_SECONDS = 0.05  # between two looks while something is getting ready
_IDLE_SECONDS = 0.5  # between two looks when all is well: one waitpid per process
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

CAUSES = (
    ("No space left on device", "the disk is full"),
    ("Disk quota exceeded", "the disk quota is used up"),
    ("ddress already in use", "its port was taken by another process"),
    ("Read-only file system", "the folder is on a read-only file system"),
    ("could not create shared memory", "the kernel gives it no shared memory"),
    ("Cannot allocate memory", "there is not enough memory"),
    ("Permission denied", "a file or folder is closed to it"),
)  # what a process's last words mean; the first match counts


class LocalError(Exception):
    """Noria cannot do this here; the message tells a person why. `exit_code` is the command's."""

    exit_code = 1


class StartFailed(LocalError):
    """A process did not become ready; the message has its last lines and its log's path."""


@dataclass(frozen=True)
class Program:
    """A process to keep alive. `is_ready` is asked every 50 ms until it says yes; it may take a second."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    is_ready: Callable[[Run], bool]
    after: frozenset[str] = frozenset()  # starts once these are ready, stops before them
    cwd: Path | None = None
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)  # in turn; SIGKILL always comes last
    death_signal: signal.Signals = signal.SIGKILL  # sent by the kernel when the supervisor dies
    grace_seconds: float = 10.0  # after each signal
    start_seconds: float = 60.0
    before_exec: Callable[[], None] | None = None  # runs in the child, between fork and exec


@dataclass(frozen=True)
class Run:
    """One run of a program; its own lines in the log begin at byte `log_start`."""

    program: Program
    process: subprocess.Popen[bytes]
    log_start: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """What this run has written so far, or the end of it where that is much."""
        with self.program.log.open("rb") as log:
            log.seek(max(self.log_start, log.seek(0, os.SEEK_END) - OUTPUT_BYTES))
            return log.read().decode(errors="replace")


@dataclass
class _Child:
    program: Program
    run: Run | None = None
    start_at: float = 0.0  # by time.monotonic(), like all times here
    started_at: float = 0.0
    ready_at: float | None = None
    was_ready: bool = False
    restarts: int = 0  # since it was last healthy
    failure: str | None = None  # why its first start came to nothing


class Supervisor:
    """Runs programs from a thread of its own, until its `with` block ends; then it has stopped them all.

    `say` gets a line for a person at each crash and each recovery.
    """

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        self._home = home
        self._say = _unbreakable(say)
        self._children: dict[str, _Child] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def start(self, programs: Iterable[Program]) -> None:
        """Begin to start programs, each after those it names; returns at once."""
        with self._changed:
            self._children.update((program.name, _Child(program)) for program in programs)
            self._changed.notify_all()

    def wait_ready(self) -> None:
        """Return when everything started so far has been ready; `StartFailed` if one could not start."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure() or self._all_were_ready())
            if failure := self._failure():
                raise StartFailed(failure)

    def pids(self) -> dict[str, int]:
        """The process ids of what runs at this moment, by program name."""
        with self._changed:
            return {name: child.run.pid for name, child in self._children.items() if child.run}

    def _failure(self) -> str | None:
        return next((child.failure for child in self._children.values() if child.failure), None)

    def _all_were_ready(self) -> bool:
        return all(child.was_ready for child in self._children.values())

    def _run(self) -> None:
        with self._changed:
            try:
                while not self._stopping:
                    for child in self._children.values():
                        self._tend(child, time.monotonic())
                    self._changed.notify_all()
                    self._changed.wait(self._pause())
            finally:
                self._stop_all()

    def _tend(self, child: _Child, now: float) -> None:
        if child.run is None:
            if child.failure is None and now >= child.start_at and self._may_start(child):
                self._start(child, now)
        elif (code := child.run.process.poll()) is not None:
            self._ended(child, _how_it_ended(code), now)
        elif child.ready_at is None:
            self._look_whether_ready(child, child.run, now)
        elif child.restarts and now - child.ready_at > HEALTHY_SECONDS:
            child.restarts = 0

    def _may_start(self, child: _Child) -> bool:
        return all(self._children[name].ready_at is not None for name in child.program.after)

    def _start(self, child: _Child, now: float) -> None:
        child.started_at = now
        try:
            child.run = spawn(child.program, self._home)
        except (OSError, subprocess.SubprocessError) as error:
            self._ended(child, f"could not be run ({error})", now)

    def _look_whether_ready(self, child: _Child, run: Run, now: float) -> None:
        if run.program.is_ready(run):
            child.ready_at = now
            if child.was_ready:
                self._say(f"{run.program.name} is back.")
            child.was_ready = True
        elif now - child.started_at > run.program.start_seconds:
            _kill(run)
            self._ended(child, f"was not ready within {run.program.start_seconds:.0f} s", now)

    def _ended(self, child: _Child, how: str, now: float) -> None:
        headline, details = _account(child, how)
        child.run, child.ready_at = None, None
        if not child.was_ready:
            child.failure = f"{headline}\n{details}"
            return
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**child.restarts)
        child.restarts += 1
        child.start_at = now + pause
        self._say(f"{headline} Starting it again in {pause:g} s; log: {child.program.log}")

    def _pause(self) -> float:
        unready = any(child.ready_at is None and not child.failure for child in self._children.values())
        return _STARTING_SECONDS if unready else _IDLE_SECONDS

    def _stop_all(self) -> None:
        runs = {name: child.run for name, child in self._children.items() if child.run}
        while runs:
            needed = {name for run in runs.values() for name in run.program.after}
            wave = [name for name in runs if name not in needed] or list(runs)
            _end([runs.pop(name) for name in wave])


def spawn(program: Program, home: Path) -> Run:
    """Start a program once, marked with its home, in a session of its own, its output appended to its log.

    `OSError` or `subprocess.SubprocessError` where it cannot be run. It dies with the thread that calls this.
    """
    _set_aside(program.log)
    with program.log.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            program.command,
            # Unbuffered: else the line that says it is ready may stay in its buffer.
            env={**program.environment, "PYTHONUNBUFFERED": "1", MARK: str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=program.cwd,
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, which stops things in order
            preexec_fn=partial(_enter, os.getpid(), program.death_signal, program.before_exec),
        )
    return Run(program, process, log_start)


def end_leftovers(home: Path, executables: Collection[Path], say: Callable[[str], None]) -> None:
    """End what a killed run left: processes with this home's mark, or these executables at work inside it.

    The second rule is for PostgreSQL, which writes its title over its environment.
    """
    found = _leftovers(home, {str(path) for path in executables})
    ids = {process.pid for process in found}
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.ppid() in ids:  # its parent ends it
                continue
            say(f"Ending a leftover of an earlier run: {process.name()} (pid {process.pid}).")
            # PostgreSQL takes SIGTERM for "when all clients have left".
            process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    _, stubborn = psutil.wait_procs(found, timeout=5)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def port_owner(port: int) -> str:
    """Who listens on a TCP port here: `python (pid 12)`, or `another process` where we may not see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def has_logged(text: str) -> Callable[[Run], bool]:
    """Ready when this run has written `text`."""
    return lambda run: text in run.output()


def explain(output: str) -> str | None:
    """What a process's last words mean in plain words; None if they are unknown."""
    return next((cause for words, cause in CAUSES if words in output), None)


def _enter(parent: int, death_signal: int, before_exec: Callable[[], None] | None) -> None:
    """In the child: change the user, then ask to die with the parent (a change of user would undo that)."""
    if before_exec is not None:
        before_exec()
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def _how_it_ended(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _account(child: _Child, how: str) -> tuple[str, str]:
    """A line that says what happened; and the last lines of the log, with its path."""
    output = child.run.output() if child.run else how
    cause = explain(output)
    headline = f"{child.program.name} {how}" + (f": {cause}." if cause else ".")
    tail = "".join(f"    {line}\n" for line in output.splitlines()[-TAIL_LINES:])
    return headline, f"{tail}  Log: {child.program.log}"


def _end(runs: list[Run]) -> None:
    """End processes together, each by its own signals, `grace_seconds` apart, SIGKILL last."""
    signals = {run.pid: list(run.program.stop_signals) for run in runs}
    next_at = dict.fromkeys(signals, 0.0)
    while alive := [run for run in runs if run.process.poll() is None]:
        now = time.monotonic()
        for run in [run for run in alive if now >= next_at[run.pid]]:
            if signals[run.pid]:
                run.process.send_signal(signals[run.pid].pop(0))
                next_at[run.pid] = now + run.program.grace_seconds
            else:
                _kill(run)
        time.sleep(_STARTING_SECONDS)


def _kill(run: Run) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.process.wait()


def _set_aside(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".1.log"))


def _unbreakable(say: Callable[[str], None]) -> Callable[[str], None]:
    """A closed terminal must not end the supervisor's thread."""

    def quietly(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            say(line)

    return quietly


def _leftovers(home: Path, executables: set[str]) -> list[psutil.Process]:
    ourselves = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for process in psutil.process_iter()
        if process.pid not in ourselves and _belongs(process, home, executables)
    ]


def _belongs(process: psutil.Process, home: Path, executables: set[str]) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        if process.environ().get(MARK) == str(home):
            return True
    with contextlib.suppress(psutil.Error, OSError):
        folder = Path(process.cwd())  # a home inside this one, such as the demo's, is another's
        return process.exe() in executables and home in (folder, folder.parent)
    return False
