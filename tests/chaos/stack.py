"""The stack that chaos torments: all of `noria up`, a second worker and a second clock, and lines that break.

The processes reach Postgres and the bucket over lines (`tests.chaos.lines`); chaos itself, and the audit, go past them.
The provider's limits are raised, so that a run measures faults and not waiting.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ops.cli import reach
from ops.cli.admin import project_made
from ops.demo.receiver import receiving
from ops.local import servers, supervise, up
from ops.sandbox.testing import Sandbox
from tests.chaos.lines import Chance, Line, breaks_off, loses_commits
from tests.chaos.lines import running as lines_running
from tests.chaos.torments import CLOCKS, WORKERS, Scene
from worker import catalog, keys
from worker.settings import Settings
from worker.states import Mode

PROJECT = "chaos"
SETTLE_SECONDS = 6  # longer than a late create and the list's lag together, as it must be
QUERIES = 60  # a second, of the sandbox's account; the workers take three quarters
CONCURRENCY, RATE = 30, 40.0  # of each model, and creates a second
SPOKEN, READ, REDUCED = "qwen3-tts-flash", "qwen-flash", "qwen-plus"  # what speaks, reads documents, joins them
REGION = "cn-beijing"
_TIME_SCALE = 0.01
_COMMITS_LOST, _STORAGE_BROKEN = 0.005, 0.02

_SECOND = {
    "worker-all": "celery -A worker.tasks worker -P threads -c 16 -n all@%h --loglevel INFO",
    "clock-two": "celery -A worker.tasks beat --loglevel INFO",
}
OURS = ("api", "flower", *WORKERS, *CLOCKS)  # whose logs may hold no secret
_READY = {"worker-all": " ready.", "clock-two": "maxinterval"}


@dataclass(frozen=True)
class Stack:
    """What a run needs of it: the API's door, the sandbox, the scene of the torments, and what no log may hold."""

    door: reach.Door
    sandbox: Sandbox
    scene: Scene
    database: Line
    storage: Line
    chances: tuple[Chance, Chance]
    logs: tuple[Path, ...]
    secrets: tuple[str, ...]

    @contextlib.contextmanager
    def broken_lines(self) -> Iterator[None]:
        """The lines break now and then for as long as the block lasts."""
        for chance, of in zip(self.chances, (_COMMITS_LOST, _STORAGE_BROKEN), strict=True):
            chance.of = of
        try:
            yield
        finally:
            for chance in self.chances:
                chance.of = 0.0


@contextlib.contextmanager
def running(home: Path, seed: int, say: Callable[[str], None]) -> Iterator[Stack]:
    """All of it, in a fresh home, until the block ends. `LocalError` tells a person why it cannot be."""
    home = home.resolve()
    if (home / "ports.json").exists():  # so it is one of ours
        supervise.end_leftovers(home, servers.find_binaries().values(), say)
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    ports = servers.kept_ports(servers.make_home(home))
    chances = Chance(0.0, seed), Chance(0.0, seed + 1)
    database = Line(ports["postgres"], loses_commits(chances[0]))
    storage = Line(ports["s3"], breaks_off(chances[1]))
    options = up.UpOptions(home, time_scale=_TIME_SCALE)
    true: dict[str, str] = {}

    def prepare(settings: Mapping[str, str]) -> dict[str, str]:
        true.update({name: value for name, value in settings.items() if name.startswith("NORIA_")})
        flower = {"FLOWER_MAX_TASKS": "500"}  # so that it is full soon
        return _opened(home, true) | _ours() | _over_lines(true, database, storage) | flower

    with contextlib.ExitStack() as held:
        held.enter_context(lines_running(database, storage))
        made = held.enter_context(up.stack(options, prepare, say))
        mail = held.enter_context(receiving(made.prepared["CHAOS_SECRET"]))
        _start_second(made, home)
        sandbox = Sandbox(made.addresses["sandbox"])
        sandbox.set(
            limits={"*": {"concurrency": CONCURRENCY, "rps": 2 * RATE, "rpm": round(120 * RATE)}},
            queries_per_second=QUERIES,
            queue_seconds=0.1,
            batch_run_seconds=1.0,
        )
        settings = _settings(true | _ours())
        yield Stack(
            door=reach.Door(made.addresses["API"].removesuffix("/docs"), made.prepared["CHAOS_KEY"]),
            sandbox=sandbox,
            scene=Scene(made.supervisor, settings, sandbox, mail, storage, random.Random(seed)),
            database=database,
            storage=storage,
            chances=chances,
            logs=tuple(home / "logs" / f"{name}.log" for name in OURS),
            secrets=tuple(made.prepared[name] for name in ("CHAOS_KEY", "CHAOS_SECRET")),
        )


def models() -> dict[str, str]:
    """The asynchronous models that make something of words alone and have a price, and the kind of each."""
    return {
        model.id: kind
        for model in catalog.load().models()
        for kind in ("text-to-video", "text-to-image")
        if kind in model.kinds and (here := model.region(REGION)) and here.prices and model.mode is Mode.TASK
    }


def mute() -> list[str]:
    """Those of them that do not repeat the prompt, so that nobody can tell whose a task is when an answer is lost."""
    return [name for name in models() if catalog.load().model(name).protocol == "messages"]


def _opened(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """A key of the project, and what signs its webhooks."""
    with reach.database(home, settings["NORIA_DATABASE_URL"]) as connection:
        project = project_made(connection, PROJECT)
        return {
            "CHAOS_KEY": keys.new_key(connection, project, "chaos")[1],
            "CHAOS_SECRET": project.webhook_secret,
        }


def _ours() -> dict[str, str]:
    each = {"concurrency": CONCURRENCY, "rps": RATE}
    return {
        "NORIA_SETTLE_SECONDS": str(SETTLE_SECONDS),
        "NORIA_POLL_QPS": str(QUERIES * 3 // 4),
        "NORIA_LIMITS": json.dumps(dict.fromkeys([*models(), SPOKEN, READ, REDUCED], each)),
        "NORIA_API_RATE": "1000",
    }


def _over_lines(settings: Mapping[str, str], database: Line, storage: Line) -> dict[str, str]:
    lines = {"NORIA_DATABASE_URL": database, "NORIA_S3_ENDPOINT_URL": storage}
    return {
        name: settings[name].replace(f":{urlsplit(settings[name]).port}", f":{line.port}")
        for name, line in lines.items()
    }


def _settings(environment: Mapping[str, str]) -> Settings:
    values = {name.removeprefix("NORIA_").lower(): value for name, value in environment.items()}
    values["limits"] = json.loads(values["limits"])
    return Settings.model_validate(values)


def _start_second(made: up.Stack, home: Path) -> None:
    """The second worker, for every queue, and the second clock."""
    first = up.programs(home, servers.kept_ports(home), up.UpOptions(home), made.environment)
    pattern = next(program for program in first if program.name == "worker-control")
    for name, command in _SECOND.items():
        program = replace(
            pattern,
            name=name,
            command=(sys.executable, "-m", *(word.format(home=home) for word in command.split())),
            log=home / "logs" / f"{name}.log",
            is_ready=supervise.has_logged(_READY[name]),
        )
        made.supervisor.start([program])
    made.supervisor.wait_ready()
