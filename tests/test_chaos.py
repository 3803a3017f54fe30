"""The short form of `make chaos`, and the tools that it breaks things with."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from ops.local import up
from ops.sandbox.testing import Sandbox, running
from tests.chaos import chaos, load, provider, soak, stack
from tests.chaos.__main__ import app
from tests.chaos.lines import COMMITTED, Chance, Line, breaks_off, loses_commits
from tests.chaos.lines import running as lines
from worker import catalog, kinds
from worker.dashscope.client import Client
from worker.dashscope.responses import Accepted
from worker.egress import transports
from worker.kinds import KINDS
from worker.settings import Account

SHORT = ("kill-workers", "crash-postgres", "stop-workers", "empty-redis", "kill-clock")


@pytest.mark.timeout(300)
def test_every_promise_holds_when_processes_servers_lines_and_the_provider_fail_together(tmp_path: Path) -> None:
    said: list[str] = []

    report = chaos.run(chaos.Options(12, 1, 40, SHORT, tmp_path / "chaos"), said.append)

    assert report.findings == [], "\n".join([*map(str, report.findings), *said])
    sent = 40 + chaos.BATCHES * load.ROWS
    assert report.numbers["jobs accepted"] == sent + report.numbers["runs of the schedule submitted"]
    assert report.numbers["parts succeeded"] > 10
    assert report.numbers["batches paid"] == 1
    assert report.numbers["messages published again"] > 0
    assert sum(count for name, count in report.numbers.items() if name.startswith("fault: create")) > 0
    assert sum(count for name, count in report.numbers.items() if name.startswith("torment: ")) >= 2


def test_chaos_refuses_a_torment_that_it_does_not_know() -> None:
    said = CliRunner().invoke(app, ["--faults", "kill-worker,earthquake"])

    assert said.exit_code == 2
    assert "no earthquake" in said.stderr


@pytest.mark.parametrize("program", ["tests.chaos", "tests.chaos.soak", "tests.bench"])
def test_a_program_starts_by_its_own_line(program: str) -> None:
    subprocess.run([sys.executable, "-m", program, "--help"], cwd=up.PROJECT, check=True, capture_output=True)


def test_the_load_has_narrations_and_summaries_among_its_clips_and_each_is_what_the_api_takes() -> None:
    known = catalog.load()
    bodies = load.load(60, "https://example.com/hook").bodies

    for body in bodies:
        kind, model = KINDS[body["kind"]], known.model(body["model"])
        kind.check(known, model, body["input"], stack.REGION)
    assert {body["kind"] for body in bodies} == {"text-to-video", "text-to-image", "speech", "summary"}
    assert {body["input"].get("mode") for body in bodies if body["kind"] == "summary"} == {"calls", "batch"}


def test_lists_that_forget_are_the_only_fault_while_they_do() -> None:
    with running() as sandbox, provider.failing(sandbox):
        before = rules(sandbox)
        with provider.forgetting(sandbox):
            assert {(rule["where"], rule["what"]) for rule in rules(sandbox)} == {
                ("list", "misses"),
                ("batch_list", "misses"),
            }
        assert rules(sandbox) == before


def test_every_model_of_the_load_takes_words_alone() -> None:
    known = catalog.load()
    with running() as sandbox:
        client = Client(Account(url=sandbox.url, key=SecretStr("sk-test")), transports.keeping(), transports.single())
        for name, kind_name in stack.models().items():
            kind, model = kinds.call(kind_name), known.model(name)
            wanted = kind.check(known, model, {"prompt": "a heron"}, stack.REGION)
            assert isinstance(client.create(kind.request(model, stack.REGION, wanted), 10), Accepted), name


def test_a_line_passes_bytes_on_both_ways_until_it_is_down() -> None:
    with echo() as port:
        line = Line(port, lambda _data, _from_server: False)
        with lines(line):
            with socket.create_connection(("127.0.0.1", line.port), timeout=5) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"

                line.is_down = True
                client.sendall(b"still there?")
                assert gone(client)
            with socket.create_connection(("127.0.0.1", line.port), timeout=5) as client:
                assert gone(client)


def test_a_line_drops_the_answer_to_a_commit_and_nothing_else() -> None:
    with echo() as port:
        chance = Chance(1.0, seed=0)
        line = Line(port, loses_commits(chance))
        with lines(line), socket.create_connection(("127.0.0.1", line.port), timeout=5) as client:
            client.sendall(b"C\x00\x00\x00\x0dSELECT 1\x00")
            assert client.recv(100).startswith(b"C")

            client.sendall(COMMITTED)

            assert gone(client)
            assert line.broken == 1


def test_a_line_that_breaks_off_does_so_as_often_as_it_is_told() -> None:
    never, always = Chance(0.0, seed=0), Chance(1.0, seed=0)

    assert not breaks_off(never)(b"part", False)
    assert breaks_off(always)(b"part", False)


@contextmanager
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def converse(conn: socket.socket) -> None:
        with conn:
            while data := conn.recv(100):
                conn.sendall(data)

    def accept() -> None:
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=(conn,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def rules(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The faults that the sandbox has just now."""
    answer = urllib.request.urlopen(f"{sandbox.url}/_sandbox/faults", timeout=5)
    found: list[dict[str, Any]] = json.loads(answer.read())
    return found


def gone(client: socket.socket) -> bool:
    """Whether the other side has hung up."""
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True


def test_a_soak_tells_what_grew_from_what_is_full() -> None:
    flat, leaks, gone = ("memory of x", soak.MEMORY), ("memory of y", soak.MEMORY), ("memory of z", soak.MEMORY)
    samples = [{flat: 5.0 * n if n < 10 else 50.0 + n % 3, leaks: 100.0 + 2 * n} for n in range(40)]

    rows = soak.rows_of([{**sample, gone: 1.0} if n < 20 else sample for n, sample in enumerate(samples)])

    assert {row.name: row.ended > row.most for row in rows} == {"memory of x": False, "memory of y": True}
