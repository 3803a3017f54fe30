"""The embedded stack: servers and processes that start, survive, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from ops.local import servers as embedded
from ops.local import up
from ops.local.supervise import (
    MARK,
    LocalError,
    Program,
    Run,
    StartFailed,
    Supervisor,
    end_leftovers,
    explain,
    has_logged,
)

PROJECT = Path(__file__).resolve().parents[1]

HOLD = """
import sys, threading
from pathlib import Path
from ops.local.up import interruptible
from ops.local.servers import servers

try:
    with interruptible(), servers(Path(sys.argv[1]), durable=False):
        print("ready", flush=True)
        threading.Event().wait()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""  # a process that runs the servers until it is told to stop

SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from ops.local import postgres, servers
from ops.local.supervise import LocalError

home = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(home)], check=True)
binaries = servers.find_binaries()["postgres"].parent
cluster = postgres.Cluster(home, binaries, "password", False, {})
for act in (
    lambda: servers.make_home(home),
    lambda: postgres.make_cluster(cluster, postgres.find_identity(binaries / "postgres")),
):
    try:
        act()
    except LocalError as error:
        print(str(error).splitlines()[0])
"""  # in a mount namespace of its own


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded.make_home(tmp_path_factory.mktemp("home") / "with a space")


@pytest.fixture
def said() -> list[str]:
    return []


def test_servers_keep_data_ports_and_passwords_over_a_restart(home: Path) -> None:
    with embedded.servers(home, durable=True) as first:
        first.create_database("kept")
        first.create_bucket("kept")
        with redis.Redis.from_url(first.broker_url) as broker:
            broker.set("kept", "yes")
    assert _at_work_in(home) == []

    with embedded.servers(home, durable=True) as second:
        with psycopg.connect(second.url_of("kept").replace("+psycopg", "")) as connection:
            answer = connection.execute("SHOW fsync").fetchone()
        with redis.Redis.from_url(second.broker_url) as broker:
            kept = broker.get("kept")
        made_again = embedded.ask(second.filer_port, "POST", "/buckets/kept/")

    assert second == first
    assert answer == ("on",)
    assert kept == b"yes"
    assert made_again == 409


def test_a_killed_run_takes_its_servers_with_it_and_the_next_one_starts(home: Path) -> None:
    with _holding([sys.executable], home) as holder:
        assert _at_work_in(home)

        holder.kill()
        holder.wait()

        _eventually(lambda: _at_work_in(home) == [])
    with embedded.servers(home, durable=False) as again, again.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_second_start_names_the_first_and_what_runs_where(home: Path, said: list[str]) -> None:
    second = up.stack(up.UpOptions(home), prepare=lambda _: {}, say=said.append)
    with embedded.hold(home):
        embedded.announce(home, {"API": "http://127.0.0.1:1234/docs"})

        with pytest.raises(LocalError) as refused:
            second.__enter__()

    assert refused.value.exit_code == 3
    assert f"already runs in {home} (pid {os.getpid()})" in str(refused.value)
    assert "http://127.0.0.1:1234/docs" in str(refused.value)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux to become somebody else")
def test_an_ordinary_user_runs_the_servers_and_sigterm_stops_them_all(home: Path) -> None:
    as_nobody = ["unshare", "--user", "--map-user=65534", "--map-group=65534", sys.executable]
    with _holding(as_nobody, home) as holder:
        names = {psutil.Process(pid).name() for pid in _at_work_in(home)}
        assert {"postgres", "weed"} <= names

        holder.terminate()
        out, _ = holder.communicate(timeout=30)

    assert out == "stopped\n"
    assert _at_work_in(home) == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux to mount a small disk")
def test_a_full_disk_is_called_a_full_disk(home: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", SMALL_DISK, str(home)]

    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    before, during = done.stdout.splitlines()
    assert f"The disk of {home} is full" in before
    assert during == "PostgreSQL's data could not be made: the disk is full."


def test_passwords_are_for_their_owner_alone(home: Path) -> None:
    embedded.kept_secrets(home)
    embedded.kept_ports(home)

    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir() if path.is_file()}

    assert modes == {"secrets.json": 0o600, "ports.json": 0o600}


def test_a_home_is_not_started_by_somebody_else(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(home, 65534, 65534)

    with pytest.raises(LocalError, match="belongs to user 65534"):
        embedded.make_home(home)


def test_a_kept_port_that_is_taken_is_exchanged_and_its_owner_named(home: Path, said: list[str]) -> None:
    port = embedded.kept_ports(home)["valkey"]
    with _listening(port):
        renewed = embedded.renew_ports(home, said.append)

    assert renewed["valkey"] != port
    assert renewed == embedded.kept_ports(home)
    assert len(said) == 1
    assert f"Port {port} (valkey) is taken by" in said[0]
    assert f"(pid {os.getpid()})" in said[0]


def test_a_port_that_was_asked_for_and_is_taken_is_refused(home: Path) -> None:
    port = embedded.kept_ports(home)["api"]

    with _listening(port), pytest.raises(embedded.PortTaken, match=f"Port {port} is taken by .*pid {os.getpid()}"):
        up.asked_port(up.UpOptions(home, port=port))


def test_leftovers_are_found_by_mark_or_by_folder_and_ended(home: Path, said: list[str]) -> None:
    sleep = Path(shutil.which("sleep") or "").resolve()
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: str(home)})
    inside = subprocess.Popen(["sleep", "60"], cwd=home / "valkey")
    strange = subprocess.Popen(["sleep", "60"], cwd=home.parent)
    try:
        end_leftovers(home, [sleep], said.append)

        assert not psutil.pid_exists(marked.pid)
        assert not psutil.pid_exists(inside.pid)
        assert strange.poll() is None
    finally:
        strange.kill()
        strange.wait()
    assert sorted(said) == sorted(
        f"Ending a leftover of an earlier run: sleep (pid {process.pid})." for process in (marked, inside)
    )


def test_a_process_that_crashes_is_restarted_after_longer_and_longer_pauses(home: Path, said: list[str]) -> None:
    starts = home / "starts"
    crashing = f"import time; open({str(starts)!r}, 'a').write(f'{{time.time()}}\\n'); print('up'); raise SystemExit(3)"
    lives_briefly = _program(home, "brief", crashing.replace("raise", "time.sleep(.1); raise"))

    with Supervisor(home, said.append) as supervisor:
        supervisor.start([lives_briefly])
        supervisor.wait_ready()
        _eventually(lambda: len(starts.read_text().split()) >= 3)

    first, second, third = [float(line) for line in starts.read_text().split()][:3]
    assert second - first >= 0.5
    assert third - second >= 1.0
    assert said[0].startswith("brief ended with exit code 3. Starting it again in 0.5 s")
    assert "brief is back." in said


def test_a_process_that_never_starts_is_shown_with_its_last_lines_and_its_log(home: Path) -> None:
    failing = _program(home, "failing", "raise SystemExit('OSError: No space left on device')")

    with Supervisor(home, print) as supervisor:
        supervisor.start([failing])
        with pytest.raises(StartFailed) as failed:
            supervisor.wait_ready()

    message = str(failed.value)
    assert message.startswith("failing ended with exit code 1: the disk is full.")
    assert "    OSError: No space left on device" in message
    assert str(home / "logs" / "failing.log") in message


def test_a_process_starts_after_what_it_needs_and_stops_before_it(home: Path) -> None:
    order = home / "order"
    say = f"""
import signal, sys
def write(word): open({str(order)!r}, 'a').write(word + ' ')
def end(*_): write('stop-NAME'); sys.exit()
signal.signal(signal.SIGTERM, end); write('start-NAME'); print('up', flush=True)
while True: signal.pause()
"""
    server = _program(home, "server", say.replace("NAME", "server"))
    client = _program(home, "client", say.replace("NAME", "client"), after=frozenset({"server"}))

    with Supervisor(home, print) as supervisor:
        supervisor.start([client, server])
        supervisor.wait_ready()

    assert order.read_text().split() == ["start-server", "start-client", "stop-client", "stop-server"]


def test_a_process_that_ignores_sigterm_is_killed_when_its_grace_is_over(home: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"

    with Supervisor(home, print) as supervisor:
        supervisor.start([_program(home, "deaf", deaf, grace_seconds=0.2)])
        supervisor.wait_ready()
        pid = supervisor.pids()["deaf"]

    assert not psutil.pid_exists(pid)


def test_a_supervisor_at_rest_costs_next_to_nothing(home: Path) -> None:
    quiet = [_program(home, f"quiet{n}", "import time; print('up', flush=True); time.sleep(60)") for n in range(9)]
    with Supervisor(home, print) as supervisor:
        supervisor.start(quiet)
        supervisor.wait_ready()

        before = time.process_time()
        time.sleep(2)  # the length of the measurement, not a wait
        used = time.process_time() - before

    assert used < 0.02


def test_without_real_no_key_and_no_setting_of_the_caller_is_seen() -> None:
    caller = {"PATH": "/bin", "DASHSCOPE_API_KEY": "sk-1", "NORIA_ACCOUNTS": "[]", "NO_PROXY": "example.org"}

    seen = up.outer_environment(caller, real=False)

    assert seen == {
        "PATH": "/bin",
        "NO_PROXY": "example.org,127.0.0.1,localhost",
        "no_proxy": "example.org,127.0.0.1,localhost",
    }


def test_real_money_needs_a_key() -> None:
    with pytest.raises(LocalError, match="--real spends real money, and needs one of"):
        up.outer_environment({"PATH": "/bin"}, real=True)

    assert up.outer_environment({"DASHSCOPE_API_KEY": "sk-1"}, real=True)["DASHSCOPE_API_KEY"] == "sk-1"


@pytest.mark.parametrize("real", [False, True])
def test_no_command_line_shows_a_password_and_the_sandbox_is_never_for_real(home: Path, real: bool) -> None:
    ports, passwords = embedded.kept_ports(home), embedded.kept_secrets(home).values()

    table = up.programs(home, ports, up.UpOptions(home, real=real), {})

    words = [word for program in table for word in program.command]
    assert not [word for word in words for password in passwords if password in word]
    assert ("sandbox" in {program.name for program in table}) is not real


def test_settings_lead_to_the_sandbox_unless_it_is_for_real(home: Path) -> None:
    stored, ports = embedded.described(home), embedded.kept_ports(home)

    play = up.settings(stored, ports, {}, real=False)
    real = up.settings(stored, ports, {"NORIA_PUBLIC_URL": "https://noria.example"}, real=True)

    assert play["NORIA_DASHSCOPE_URL"] == f"http://127.0.0.1:{ports['sandbox']}"
    assert play["NORIA_EGRESS_ALLOW"] == "127.0.0.0/8"
    assert {"NORIA_DASHSCOPE_URL", "NORIA_DASHSCOPE_API_KEY", "NORIA_EGRESS_ALLOW"}.isdisjoint(real)
    assert real["NORIA_PUBLIC_URL"] == "https://noria.example"


def test_ports_are_taken_from_those_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORIA_LOCAL_PORTS", "29900-29990")

    ports = embedded.kept_ports(embedded.make_home(tmp_path / "home"))

    assert all(29900 <= port < 29990 for port in ports.values())


def test_a_database_and_a_bucket_of_ones_own_are_there(environment: dict[str, str], store: embedded.Servers) -> None:
    plain = environment["NORIA_DATABASE_URL"].replace("+psycopg", "")

    with psycopg.connect(plain) as connection:
        migrated = connection.execute("SELECT count(*) FROM alembic_version").fetchone()
    bucket = embedded.ask(store.filer_port, "GET", f"/buckets/{environment['NORIA_S3_BUCKET']}/")

    assert migrated == (1,)
    assert bucket == 200


def test_unknown_words_are_not_explained() -> None:
    assert explain("something else went wrong") is None
    assert explain("bind: Address already in use") == "its port was taken by another process"


def _program(
    home: Path, name: str, code: str, after: frozenset[str] = frozenset(), grace_seconds: float = 5.0
) -> Program:
    """A small Python process that is ready once it has printed `up`."""
    ready: Callable[[Run], bool] = has_logged("up")
    return Program(
        name=name,
        command=(sys.executable, "-u", "-c", code),
        environment=os.environ,
        log=home / "logs" / f"{name}.log",
        is_ready=ready,
        after=after,
        grace_seconds=grace_seconds,
    )


@contextlib.contextmanager
def _holding(python: Sequence[str], home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the servers, once they are ready; killed at the end if it still runs."""
    command = [*python, "-c", HOLD, str(home)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield holder
        finally:
            holder.kill()


@contextlib.contextmanager
def _listening(port: int) -> Iterator[None]:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((embedded.HOST, port))
        taken.listen()
        yield


def _at_work_in(home: Path) -> list[int]:
    """Ids of the processes that carry the home's mark, or have it in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words, marked = process.cmdline(), process.environ().get(MARK) == str(home)
            if marked or (any(str(home) in word for word in words) and HOLD not in words):
                found.append(process.pid)
    return found


def _eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.02)
