"""Noria on several hosts: one is cut off in the middle of its work and comes back, and two have clocks an hour off."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hosts import Door, Network, network
from sqlalchemy.exc import OperationalError
from stage import Stage, stage

from ops.demo.receiver import Mail, receiving
from ops.local.supervise import Program, Supervisor
from ops.sandbox.options import Options
from ops.sandbox.testing import running
from tests.chaos import lines, witnesses
from tests.chaos.witnesses import Witnesses
from worker import broker
from worker.storage import Bucket

PATIENCE = 60.0  # seconds, on a busy machine
HOUR = 3600.0
CANARY = "heron-"  # begins every prompt
ALL = ",".join(broker.QUEUES)
WORKER, CLOCK = "worker-control", "clock"
CLIPS, SLOW_CLIPS, PICTURES, ANSWERS = "wan2.5-t2v-preview", "wan2.2-t2v-plus", "wan2.2-t2i-flash", "qwen-flash"
VOICES = "qwen3-tts-flash"
LIMITS = {model: {"concurrency": 30, "rps": 40} for model in (CLIPS, SLOW_CLIPS, PICTURES, ANSWERS, VOICES)}
SETTLE_SECONDS = 5
UNFINISHED = """
    select state, model, claimed, run_at - now() as due, crashes, held_for, error from jobs where finished_at is null
    union all
    select state, url, claimed, run_at - now(), tries, last_error, null from deliveries where state = 'waiting'
"""

pytestmark = pytest.mark.xdist_group("stack")  # not beside another that runs all of it


class Theatre:
    """A stage whose messages real workers carry out, on hosts that the test starts, cuts off and connects."""

    def __init__(self, play: Stage, net: Network, mail: Mail, supervisor: Supervisor, folder: Path) -> None:
        self.play, self.net, self.mail, self.supervisor, self.folder = play, net, mail, supervisor, folder
        self.accepted: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.logs: list[Path] = []

    def start(self, *programs: Program) -> None:
        self.logs += [program.log for program in programs]
        self.supervisor.start(programs)
        self.supervisor.wait_ready()

    def submit(self, kind: str, model: str, count: int, **more: Any) -> None:
        """So many jobs, each with its webhook; `{n}` in a prompt or a text is a number of its own."""
        for _ in range(count):
            n = str(len(self.accepted))
            words = {name: value.replace("{n}", n) for name, value in more.items()}
            hook = self.net.named(self.mail.url)
            job = self.play.submit(kind, model, input=words, custom_id=n, webhook_url=hook)
            self.accepted[n] = str(job.id)

    def submit_some(self) -> None:
        """Jobs of every mode but provider batches."""
        self.submit("text-to-video", CLIPS, 8, prompt=CANARY + "{n} over the reeds")
        self.submit("text-to-image", PICTURES, 4, prompt=CANARY + "{n} in the reeds")
        self.submit("text", ANSWERS, 4, prompt=CANARY + "{n}: what does it eat?")
        self.submit("speech", VOICES, 1, text=CANARY + "{n}. " + "水车日夜不停地转动，把河水一桶一桶地提上来。" * 12)

    def count(self, where: str) -> int:
        return int(self.play.sql(f"select count(*) as n from jobs where {where}")[0]["n"])

    def lapse(self) -> None:
        """Lets every lease lapse: while nobody works but hosts that are cut off, as the end of their minutes would."""
        for table in ("jobs", "deliveries", "batches"):
            until(lambda table=table: self._lapsed(table))

    def _lapsed(self, table: str) -> bool:
        """Whether nobody holds a row's lock: the server ends a transaction that a cut has left open after 5 s."""
        with contextlib.suppress(OperationalError):
            self.play.sql(f"update {table} set run_at = now() where claimed is not null")
            return True
        return False

    def rest(self) -> None:
        """Until all jobs have ended, and all webhooks are delivered; nobody waits for a poll's interval."""

        def left() -> Any:
            self.play.hurry()
            return self.play.sql(UNFINISHED)

        until(left, enough=lambda rows: not rows, pause=0.5)


@pytest.fixture
def theatre(environment: dict[str, str], tmp_path: Path) -> Iterator[Theatre]:
    options = Options(run_seconds=0.3, queue_seconds=0.1, call_seconds=0.3, queries_per_second=60)
    with contextlib.ExitStack() as held:
        net = held.enter_context(network())
        sandbox = held.enter_context(running(options))
        here = {**environment, "NORIA_EGRESS_ALLOW": f"127.0.0.0/8,{net.address}/32"}
        play = held.enter_context(stage(here, sandbox, limits=LIMITS, settle_seconds=SETTLE_SECONDS))
        mail = held.enter_context(receiving(play.project.webhook_secret))
        (tmp_path / "logs").mkdir()
        settings = {
            **here,
            "NORIA_DASHSCOPE_URL": sandbox.url,
            "NORIA_LIMITS": json.dumps(LIMITS),
            "NORIA_SETTLE_SECONDS": str(SETTLE_SECONDS),
            "NORIA_POLL_QPS": "45",
            "NORIA_POSTERS": "false",
        }
        urls = ("NORIA_DATABASE_URL", "NORIA_BROKER_URL", "NORIA_S3_ENDPOINT_URL", "NORIA_DASHSCOPE_URL")
        ports = {urlsplit(settings[name]).port for name in urls} | {urlsplit(mail.url).port}
        held.enter_context(lines.running(*(Door(net, port) for port in ports if port)))
        supervisor = held.enter_context(Supervisor(tmp_path, lambda line: print(line)))
        made = Theatre(play, net, mail, supervisor, tmp_path / "logs")
        made.environment = {name: net.named(value) for name, value in settings.items()}
        yield made


def until(look: Callable[[], Any], enough: Callable[[Any], bool] = bool, pause: float = 0.05) -> None:
    deadline = time.monotonic() + PATIENCE
    while not enough(found := look()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s: {found}"
        time.sleep(pause)


def test_a_host_that_is_cut_off_and_clocks_an_hour_off_lose_nothing_and_pay_nothing_twice(theatre: Theatre) -> None:
    play, sandbox, net = theatre.play, theatre.play.sandbox, theatre.net
    cut, ahead, behind = net.host("cut"), net.host("ahead", off=HOUR), net.host("behind", off=-HOUR - 60)
    worker, clock = (
        cut.program(WORKER, theatre.environment, theatre.folder, ALL),
        behind.program(CLOCK, theatre.environment, theatre.folder),
    )
    others = (
        ahead.program(WORKER, theatre.environment, theatre.folder, ALL),
        behind.program(WORKER, theatre.environment, theatre.folder, ALL),
    )

    # in the middle of everything: creates whose answers are on their way, calls, looks, and copies
    sandbox.fault(where="create", what="delay", after_ms=6000, model=SLOW_CLIPS, times=2)
    sandbox.fault(where="create", what="delay", after_ms=6000, prompt_contains="slow answer", times=2)
    sandbox.fault(where="link", what="slow_drip", prompt_contains="slow copy", times=2)
    theatre.submit("text-to-video", CLIPS, 2, prompt=CANARY + "{n} is a slow copy")
    theatre.start(worker, clock)
    until(lambda: theatre.count("state = 'copying' and claimed = 'taken'") == 2)
    theatre.submit("text-to-video", SLOW_CLIPS, 2, prompt=CANARY + "{n} is answered late")
    theatre.submit("text", ANSWERS, 2, prompt=CANARY + "{n} is a slow answer")
    theatre.submit_some()
    until(lambda: theatre.count("state = 'submitting' and claimed = 'taken'") >= 4)
    cut.cut()
    theatre.lapse()

    theatre.start(*others)
    theatre.rest()
    cut.connect()
    theatre.submit_some()
    theatre.rest()
    until(lambda: "the claim is lost; nothing was written" in worker.log.read_text())

    said = witnesses.audit(
        play.ctx.engine,
        Witnesses(
            ledger=sandbox.ledger(),
            queries=60,
            bucket=Bucket(play.ctx.settings),
            reads_bytes=True,
            receiver=theatre.mail,
            accepted=theatre.accepted,
            logs=theatre.logs,
            canaries=(CANARY, "Signature=", play.project.webhook_secret),
            is_at_rest=True,
        ),
    )
    assert said == []
    assert theatre.count("state <> 'succeeded'") == 0
    told = [program.name for program in (worker, *others) if "the clock is off" in program.log.read_text()]
    assert told == [program.name for program in others]
    assert set(theatre.mail.told) == {*theatre.accepted.values()}
    paid = [task for task in sandbox.ledger()["tasks"] if task["billed_micros"] and task["is_async"]]
    assert len(paid) == theatre.count("mode = 'task'")
