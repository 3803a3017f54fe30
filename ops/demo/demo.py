"""The demo as it goes: bring everything up, submit the work, watch it, fetch and open every file, take it down.

With the sandbox its home is made afresh; for real it is kept, and what an interrupted run submitted is found again.
"""

from __future__ import annotations

import contextlib
import itertools
import posixpath
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape

from api.client import Client
from ops.cli import following, reach, show
from ops.cli.admin import project_made
from ops.cli.following import STEPS
from ops.cli.reach import Door
from ops.cli.show import Job
from ops.demo import judge, receiver, workloads
from ops.demo.judge import Findings, Made
from ops.demo.receiver import Mail
from ops.demo.workloads import Work
from ops.local import servers, supervise
from ops.local import up as local
from ops.local.supervise import LocalError
from ops.sandbox.testing import Sandbox
from worker import keys

PROJECT = "demo"
TIME_SCALE = 0.02  # clips take one to four seconds: short, and long enough to be seen running
REAL_ROWS = 2
_KEY, _SECRET = "NORIA_DEMO_KEY", "NORIA_DEMO_SECRET"
_PATIENCE_SECONDS = 120.0  # with the sandbox; DashScope's tasks end by themselves
_GONE_SECONDS = 5.0
_WHOSE = {True: "by DashScope's prices", False: "in play money"}
_WIDE = 100  # columns, where the kind has room too
_PROCESSES = "PostgreSQL, Valkey, SeaweedFS, the API, two workers, the clock and Flower"


class Refused(LocalError):
    """Nobody agreed to spend money."""

    exit_code = 2


@dataclass(frozen=True)
class Options:
    """What a person may choose; `rows` of the campaign's cheapest, None: all of it, or two where it is for real."""

    home: Path
    keep: bool
    real: bool
    rows: int | None
    yes: bool
    as_json: bool


@dataclass(frozen=True)
class Scene:
    """Where the demo plays: what was chosen, the stack's home, whom it tells, and what it finds."""

    options: Options
    home: Path
    console: Console
    findings: Findings

    @property
    def outputs(self) -> Path:
        """Where the files go."""
        return self.home.with_name("outputs-real" if self.options.real else "outputs")


def run(options: Options) -> int:
    """Run the demo; the exit code is 0 only if everything holds. `LocalError` where it cannot be run."""
    if options.real and not (options.yes or sys.stdin.isatty()):
        raise Refused("--real spends money and asks first, and there is nobody to ask: give --yes.")
    started, findings = time.monotonic(), Findings()
    console = show.ERR if options.as_json else show.OUT
    try:
        with local.interruptible(), _held(options, console) as home:
            made, processes = _made(Scene(options, home, console, findings))
    except KeyboardInterrupt:
        console.print("Interrupted; nothing is left running.")
        return 130
    left = [process.pid for process in psutil.wait_procs(processes, timeout=_GONE_SECONDS)[1]]
    findings.note(not left, f"still running: {left}" if left else "nothing is left running")
    console.print(findings.shown())
    console.print(f"Done in {show.seconds(time.monotonic() - started)}. To stay up: noria demo --keep, or noria up")
    if findings.bad:
        console.print(f"Logs: {home / 'logs'}", soft_wrap=True)
    if options.as_json:
        document = {"ok": not findings.bad, "good": findings.good, "bad": findings.bad}
        show.document({**document, "made": [asdict(one) | {"cost": str(one.cost)} for one in made]})
    return 1 if findings.bad else 0


@contextlib.contextmanager
def _held(options: Options, console: Console) -> Iterator[Path]:
    """The stack's home, held by us: fresh with the sandbox, kept where it cost money. `AlreadyRunning`."""
    root = options.home.resolve()
    root.mkdir(parents=True, exist_ok=True)
    home = root / ("real" if options.real else "stack")
    with servers.hold(root):
        if not options.real and (home / "ports.json").exists():  # so it is one of ours
            supervise.end_leftovers(home, servers.find_binaries().values(), show.sayer(console))
            shutil.rmtree(home)
        yield home


def _made(scene: Scene) -> tuple[list[Made], list[psutil.Process]]:
    """What was made, and the processes that made it, which have been told to stop."""
    up = local.UpOptions(scene.home, real=scene.options.real, time_scale=TIME_SCALE)
    started, say = time.monotonic(), show.sayer(scene.console)
    processes = _PROCESSES if scene.options.real else f"the sandbox, {_PROCESSES}"
    with contextlib.ExitStack() as held:
        with scene.console.status(f"Bringing up {processes} …"):
            running = held.enter_context(local.stack(up, lambda settings: _opened(scene.home, settings), say))
        say(f"Up after {show.seconds(time.monotonic() - started)}: {processes}.")
        made = _played(scene, running)
        scene.console.print(_table(made))
        scene.console.print(_places(made, servers.BUCKET, str(scene.outputs)), soft_wrap=True)
        _show_pages(scene, running)
        if scene.options.keep:
            _stay(scene)
        family = _family(running)
    return made, family


def _opened(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """A key of the demo's project, and what signs its webhooks."""
    with reach.database(home, settings["NORIA_DATABASE_URL"]) as connection:
        project = project_made(connection, PROJECT)
        return {_KEY: keys.new_key(connection, project, "demo")[1], _SECRET: project.webhook_secret}


def _played(scene: Scene, running: local.Stack) -> list[Made]:
    door = Door(_url(running), running.prepared[_KEY])
    reach.keep(scene.home, door)
    with receiver.receiving(running.prepared[_SECRET]) as mail, reach.api(door) as client:
        work = _agreed(scene, client, mail)
        bucket = workloads.bucket(running.environment)
        jobs = _ended(scene, client, workloads.submitted(client, bucket, work))
        scene.outputs.mkdir(exist_ok=True)
        documents = frozenset(path.name for path in workloads.brought())
        made = [judge.fetched(client, job, scene.outputs, documents) for job in jobs]
        judge.files(jobs, made, scene.findings)
        if not scene.options.real:  # a webhook on loopback is only called by a stack that plays
            judge.webhooks(mail, len(jobs), scene.findings)
            judge.bill(Sandbox(running.addresses["sandbox"]), jobs, scene.findings)
    return made


def _url(running: local.Stack) -> str:
    return running.addresses["API"].removesuffix("/docs")


def _agreed(scene: Scene, client: Client, mail: Mail) -> Work:
    """The work to submit, priced, and agreed to where it is for real."""
    options = scene.options
    shared = {} if options.real else {"webhook_url": mail.url}
    work = workloads.offered(client, shared, options.rows or (REAL_ROWS if options.real else None))
    *lines, whole = work.priced()
    for line in lines:
        scene.console.print(line)
    scene.console.print(f"{whole}, {_WHOSE[options.real]}.")
    if options.real and not options.yes and not typer.confirm("Spend it?", err=True):
        raise Refused("Nothing was submitted.")
    return work


def _ended(scene: Scene, client: Client, jobs: Sequence[Job]) -> Sequence[Job]:
    """The jobs once all have ended, or patience has."""
    give_up = time.monotonic() + (float("inf") if scene.options.real else _PATIENCE_SECONDS)
    rounds = following.follow(client, [job["id"] for job in jobs])
    return following.watched(itertools.takewhile(lambda _: time.monotonic() < give_up, rounds), scene.console)


def _show_pages(scene: Scene, running: local.Stack) -> None:
    password = servers.kept_secrets(scene.home)["flower"]
    with reach.api(Door(_url(running), running.prepared[_KEY])) as client:
        scene.console.print(f"Console:  {client.console_link()}", soft_wrap=True)
    scene.console.print(f"API docs: {running.addresses['API']}", soft_wrap=True)
    scene.console.print(f"Flower:   {running.addresses['Flower']}  (noria / {password})", soft_wrap=True)


def _stay(scene: Scene) -> None:
    """Until Ctrl-C, which is then no interruption."""
    scene.console.print(scene.findings.shown())
    scene.console.print(
        f"It stays up until Ctrl-C. From another terminal: noria list --home {scene.home}", soft_wrap=True
    )
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def _family(running: local.Stack) -> list[psutil.Process]:
    """The stack's processes, and theirs."""
    parents = [psutil.Process(pid) for pid in running.processes.values()]
    return [*parents, *(child for parent in parents for child in parent.children(recursive=True))]


def _table(made: Sequence[Made]) -> RenderableType:
    """How long each step of each job took, in seconds, and what it cost."""
    rows = show.table("job", "model", *STEPS, "holds", "CNY", right=[*STEPS, "CNY"], wide=["job", "model"])
    for one in made:
        model = f"{one.kind} · {one.model}" if show.OUT.width >= _WIDE else one.model
        steps = (f"{one.steps[step]:.1f}" for step in STEPS)
        show.row(rows, escape(one.name), model, *steps, escape(one.holds), f"{one.cost:.3f}")
    rows.add_section()
    longest = (f"{max(one.steps[step] for one in made):.1f}" for step in STEPS)
    show.row(rows, "", "longest; in all", *longest, "", f"{sum(one.cost for one in made):.3f}", style="bold")
    return rows


def _places(made: Sequence[Made], bucket: str, folder: str) -> RenderableType:
    """Where each output lies, in the bucket and on this disk."""
    found = [output for one in made for output in one.outputs]
    if not found:
        return ""
    common = posixpath.commonpath([posixpath.dirname(posixpath.dirname(output.key)) for output in found])
    rows = show.table("file", "size", "key", right=["size"], wide=["file", "key"])
    for output in found:
        show.row(rows, escape(output.file), show.size(output.bytes), output.key.removeprefix(common + "/"))
    return Group(f"\nFiles:  {escape(folder)}", f"Bucket: {bucket}, under {common}/", rows)
