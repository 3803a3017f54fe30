"""Two API processes and Flower behind nginx, by the very `ops/nginx.conf`: they are one, and one of them is enough."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import httpx_sse
import psutil
import pytest
import yaml
from serving import CLIP, PATIENCE, eventually, settings_of

from ops.local import servers
from ops.local.supervise import Program, Run, spawn
from worker import database, keys
from worker.keys import Scope

PROJECT = Path(__file__).resolve().parents[1]
SERVICES = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
RATE = 40  # requests a second, of one key
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0"  # of 256 pixels each way
# What a file of sites-enabled lies in; who answered is in the log.
AROUND = """
daemon off; worker_processes 2; pid {home}/nginx.pid; error_log stderr notice; {user}
events {{}}
http {{
    log_format answered '$upstream_addr $status';
    access_log {home}/access.log answered;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
    include {home}/noria.conf;
}}
"""

pytestmark = pytest.mark.skipif(not Path(NGINX).exists(), reason="there is no nginx here")

Start = Callable[[str, str, Mapping[str, str]], Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service of docker-compose.yml on a port of loopback; gone at the end of the test."""
    runs: list[Run] = []

    def run(name: str, port: str, environment: Mapping[str, str]) -> Run:
        words = SERVICES[name]["command"].replace("0.0.0.0", servers.HOST)
        command = (sys.executable, *shlex.split(re.sub(r"\b(8080|5555)\b", port, words))[1:])
        runs.append(_spawned(command, tmp_path / f"{name}-{port}.log", {**os.environ, **environment}))
        return runs[-1]

    yield run
    _end(runs)


@contextlib.contextmanager
def nginx(home: Path, ports: Mapping[str, str]) -> Iterator[str]:
    """nginx by our file, on these ports in the place of its own: its address."""
    here = home / "nginx"
    here.mkdir()
    text = (PROJECT / "ops" / "nginx.conf").read_text()
    for there, port in ports.items():
        text, times = re.subn(rf"\b{there}\b", port, text)
        assert times == 1, there
    (here / "noria.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (here / "nginx.conf").write_text(AROUND.format(home=here, user=user))
    run = _spawned((NGINX, "-p", str(here), "-c", str(here / "nginx.conf")), here / "log", {})
    try:
        eventually(lambda: _listens(ports["80"]))
        yield f"http://{servers.HOST}:{ports['80']}"
    finally:
        run.process.terminate()
        run.process.wait()


def answered(home: Path) -> Counter[str]:
    """How often each port behind nginx answered."""
    lines = (home / "nginx" / "access.log").read_text().splitlines()
    return Counter(line.split()[0].rpartition(":")[2] for line in lines)


def test_two_api_processes_behind_nginx_are_one_and_one_of_them_is_enough(
    environment: dict[str, str], tmp_path: Path, start: Start
) -> None:
    first, second, public = _free_ports(3)
    said = {"NORIA_API_RATE": str(RATE), "NORIA_MAX_INPUT_BYTES": str(3 << 20)}
    processes = {port: start("api", port, {**environment, **said}) for port in (first, second)}
    key, other = _keys(environment)
    eventually(lambda: all(_listens(port) for port in processes))

    with (
        nginx(tmp_path, {"8080": first, "8081": second, "80": public}) as url,
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE) as http,
    ):
        _takes_uploads(url, key, http)
        _keeps_who_is_signed_in(url, key)
        _counts_rates_once(url, other)
        assert {first, second} <= answered(tmp_path).keys()
        _goes_on_without_one(http, processes)


def _takes_uploads(url: str, key: str, http: httpx.Client) -> None:
    """Files larger than the megabyte that nginx takes by itself; what is too large the API says, in its own words."""
    fits, too_large = (PICTURE + bytes(size << 20) for size in (2, 4))

    taken, refused = (http.post("/v1/files", files={"file": ("cat.png", each)}) for each in (fits, too_large))

    assert (taken.status_code, taken.json()["bytes"]) == (201, len(fits)), taken.text
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")


def _keeps_who_is_signed_in(url: str, key: str) -> None:
    with httpx.Client(base_url=url, headers={"origin": url}, timeout=PATIENCE) as browser:
        entered = browser.post("/console/sign-in", data={"key": key})
        seen = [browser.get("/console/batches").status_code for _ in range(6)]
        began = time.monotonic()
        with httpx_sse.connect_sse(browser, "GET", "/console/batches/live") as live:
            assert next(live.iter_sse()).event == "part"
        took = time.monotonic() - began

    assert (entered.status_code, entered.headers["location"]) == (303, "/console/batches")
    assert seen == [200] * 6
    assert took < 5


def _counts_rates_once(url: str, key: str) -> None:
    """A key has its rate over both: twice a second's is allowed at once."""
    with (
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE) as http,
        ThreadPoolExecutor(4) as pool,
    ):
        began = time.monotonic()
        statuses = Counter(pool.map(lambda _: http.get("/v1/jobs?limit=1").status_code, range(8 * RATE)))
        took = time.monotonic() - began

    assert statuses.keys() == {200, 429}
    assert statuses[200] <= RATE * (2 + took) * 1.1


def _goes_on_without_one(http: httpx.Client, processes: Mapping[str, Run]) -> None:
    """A stream whose process is killed is taken up at the other, without an event lost; nothing else fails."""
    seen = []
    with httpx_sse.connect_sse(http, "GET", "/v1/events") as stream, contextlib.suppress(httpx.TransportError):
        made = [http.post("/v1/jobs", json=CLIP).json()["id"] for _ in range(2)]
        began = time.monotonic()
        for event in (event for event in stream.iter_sse() if event.data):
            seen.append(event)
            if len(seen) == len(made):
                took = time.monotonic() - began
                processes[_holder(processes)].process.send_signal(signal.SIGKILL)
    answers = [http.post("/v1/jobs", json=CLIP) for _ in range(8)]
    answers += [http.get("/v1/jobs") for _ in range(8)]
    made += [answer.json()["id"] for answer in answers[:8]]
    with httpx_sse.connect_sse(http, "GET", "/v1/events", headers={"last-event-id": seen[-1].id}) as stream:
        later = (event for event in stream.iter_sse() if event.data)
        seen += [next(later) for _ in range(8)]

    assert took < 5
    assert [answer.status_code for answer in answers] == [201] * 8 + [200] * 8
    assert [event.json()["data"]["id"] for event in seen] == made


def test_flower_is_seen_below_a_path_and_what_asks_for_no_password_is_not(
    environment: dict[str, str], tmp_path: Path, start: Start
) -> None:
    port, public = _free_ports(2)
    login = ("noria", "s3cr3t")
    said = {"FLOWER_BASIC_AUTH": ":".join(login), "FLOWER_READ_ONLY": "true", "FLOWER_URL_PREFIX": "/flower"}
    start("flower", port, {**environment, **said})
    eventually(lambda: _listens(port))
    assert httpx.get(f"http://{servers.HOST}:{port}/flower/metrics", trust_env=False).status_code == 200

    with nginx(tmp_path, {"5555": port, "80": public}) as url, httpx.Client(base_url=url, trust_env=False) as http:
        page = http.get("/flower", auth=login, follow_redirects=True)
        assets = set(re.findall(r'(?:href|src)="([^"]+\.(?:css|js)[^"]*)"', page.text))
        links = set(re.findall(r'href="(/[^"]*)"', page.text))
        found = {path: http.get(path, auth=login).status_code for path in [*assets, "/flower/api/tasks"]}
        asked = {http.get(path).status_code for path in ("/flower/", "/flower/tasks", "/flower/api/workers")}
        hidden = [f"/flower/{name}" for name in ("metrics", "/metrics", "%6detrics", "x/../metrics", "healthcheck")]
        closed = {http.get(path, auth=login).status_code for path in hidden}

    assert page.status_code == 200
    assert assets
    assert {*found.values()} == {200}
    assert all(link.startswith("/flower/") for link in links)
    assert asked == {401}
    assert closed == {404}


def test_nginx_takes_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "noria.conf").write_text((PROJECT / "ops" / "nginx.conf").read_text())
    (tmp_path / "nginx.conf").write_text(AROUND.format(home=tmp_path, user=""))

    command = [NGINX, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert "syntax is ok" in done.stderr
    assert "warn" not in done.stderr


def _keys(environment: dict[str, str]) -> list[str]:
    """Two keys of a project."""
    engine = database.engine(settings_of(environment), threads=1)
    with engine.begin() as connection:
        project = keys.create_project(connection, "spring")
        made = [keys.new_key(connection, project, scope=Scope.ADMIN)[1] for _ in range(2)]
    engine.dispose()
    return made


def _holder(processes: Mapping[str, Run]) -> str:
    """The port of the process that holds a connection while nothing is asked: the stream's."""

    def held() -> list[str]:
        return [
            port
            for port, run in processes.items()
            for line in psutil.Process(run.pid).net_connections("tcp4")
            if line.status == psutil.CONN_ESTABLISHED and line.laddr.port == int(port)
        ]

    return str(eventually(lambda: found[0] if len(found := held()) == 1 else None))


def _spawned(command: tuple[str, ...], log: Path, environment: Mapping[str, str]) -> Run:
    program = Program(log.stem, command, environment, log, is_ready=lambda _: True, cwd=PROJECT)
    return spawn(program, log.parent)


def _end(runs: list[Run]) -> None:
    for run in runs:
        run.process.kill()
        run.process.wait()


def _listens(port: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((servers.HOST, int(port)), timeout=1):
        return True
    return False


def _free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server((servers.HOST, 0))) for _ in range(count)]
        return [str(probe.getsockname()[1]) for probe in probes]
