"""What production is made of: docker-compose.yml, its image, its settings; and its commands, run as processes here.

There is no container engine in the tests. So the files are held to their rules, and what they say is carried out
without a container: the commands and health checks of the very file, on the tests' own servers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml
from dotenv import dotenv_values
from image import Image

from ops.local import servers, up
from worker import broker, settings, timeouts

PROJECT = Path(__file__).resolve().parents[1]
TEMPLATE = PROJECT / "ops" / "env.example"
DOCKERFILE = PROJECT / "ops" / "docker" / "Dockerfile"
COMPOSE = (PROJECT / "docker-compose.yml").read_text()
SECRETS = re.compile("PASSWORD|SECRET|KEY")
REFERENCE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?P<how>:[?-])(?P<text>[^}]*)\}")
PATIENCE = 120.0  # seconds for four processes to start beside the other tests

# What the table of `noria up` calls the services; every worker is its worker, for other queues.
ROWS = {"api": "api", "clock": "clock", "flower": "flower"}
ELSEWHERE = {"--host", "--port", "--address", "-Q", "-n"}  # options that say where and for which queues
ONLY_THERE = {"--enable-remote-control"}  # the clock's health check asks it

Service = dict[str, Any]


def filled_in() -> dict[str, str]:
    """The settings template as somebody would fill it in."""
    lines = TEMPLATE.read_text().splitlines()
    answered = [line + "s3cr3t" if re.fullmatch(r"\w+=", line) else line for line in lines]
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO("\n".join(answered))).items()}


def interpolated(variables: Mapping[str, str]) -> str:
    """docker-compose.yml with its variables put in; KeyError for one that must be set."""

    def value(found: re.Match[str]) -> str:
        if found["name"] is None:
            return "$"
        if variables.get(found["name"]):
            return variables[found["name"]]
        if found["how"] == ":?":
            raise KeyError(found["name"])
        return found["text"]

    return REFERENCE.sub(value, COMPOSE)


DOCUMENT: dict[str, Any] = yaml.safe_load(interpolated(filled_in()))
SERVICES: dict[str, Service] = DOCUMENT["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "noria"}
WORKERS = {name: service for name, service in OURS.items() if name.startswith("worker-")}
ONCE = {name for name, service in SERVICES.items() if service["restart"] == "no"}

named = pytest.mark.parametrize("name", SERVICES)


def test_the_compose_file_keeps_to_the_compose_specification(tmp_path: Path) -> None:
    file = tmp_path / "docker-compose.json"
    file.write_text(json.dumps(DOCUMENT))

    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_no_password_has_a_default() -> None:
    references = [found for found in REFERENCE.finditer(COMPOSE) if found["name"]]

    assert {found["name"] for found in references if found["how"] == ":-" and SECRETS.search(found["name"])} == set()
    assert {name for name, value in dotenv_values(TEMPLATE).items() if SECRETS.search(name) and value} == set()


@pytest.mark.parametrize(
    "name", sorted({found["name"] for found in REFERENCE.finditer(COMPOSE) if found["how"] == ":?"})
)
def test_what_must_be_set_is_asked_for(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        interpolated({**filled_in(), name: ""})


@named
def test_a_service_may_do_little_and_use_so_much(name: str) -> None:
    service = SERVICES[name]

    assert service["user"].split(":")[0] not in {"", "0", "root"}
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"]
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])


@named
def test_a_service_is_waited_for_in_the_way_it_shows_that_it_is_there(name: str) -> None:
    awaited = {s["depends_on"][name]["condition"] for s in SERVICES.values() if name in s.get("depends_on", {})}

    if name in ONCE:
        assert awaited == {"service_completed_successfully"}
    else:
        assert awaited <= {"service_healthy"}
        assert "test" in SERVICES[name]["healthcheck"]
        assert "stop_grace_period" in SERVICES[name]


@named
def test_nothing_is_reached_from_other_machines_unless_told(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_database_and_broker_are_reached_by_their_network_alone(name: str) -> None:
    assert SERVICES[name]["networks"] == ["backend"]
    assert DOCUMENT["networks"]["backend"]["internal"]
    assert "ports" not in SERVICES[name]


def test_flower_changes_nothing_and_knows_no_key() -> None:
    flower = SERVICES["flower"]

    assert flower["environment"]["FLOWER_READ_ONLY"] == "true"
    # as measured: 150 MB, and 7 kB a job that it keeps
    assert (
        150e6 + 7e3 * int(flower["environment"]["FLOWER_MAX_TASKS"])
        < int(flower["mem_limit"].removesuffix("m")) * 2**20
    )
    assert flower["environment"]["FLOWER_BASIC_AUTH"] == "noria:s3cr3t"
    assert flower["env_file"] == []


def test_services_run_the_commands_of_noria_up() -> None:
    assert SERVICES["migrate"]["command"] == f"python -m {up.SCHEMA}"
    for name in [*ROWS, *WORKERS]:
        words, options = _parsed(SERVICES[name]["command"])
        row_words, row_options = _parsed(f"python -m {up.PROCESSES[ROWS.get(name, 'worker-control')].command}")
        assert words == row_words
        assert _what_it_does(options) == _what_it_does(row_options)


def test_each_queue_is_read_by_one_service() -> None:
    read = [queue for worker in WORKERS.values() for queue in _parsed(worker["command"])[1]["-Q"].split(",")]

    assert sorted(read) == sorted(broker.QUEUES)


@pytest.mark.parametrize(
    ("name", "call"),
    [("worker-control", timeouts.CREATE), ("worker-calls", timeouts.CALL), ("worker-webhook", timeouts.DELIVERY)],
)
def test_a_stopped_worker_is_given_time_for_the_call_that_it_makes(name: str, call: timedelta) -> None:
    assert _span(SERVICES[name]["stop_grace_period"]) > call


def test_env_example_lists_exactly_the_settings() -> None:
    listed = [name for name, _ in _described() if name.startswith("NORIA_")]

    assert listed == list(_by_variable())


def test_env_example_says_of_each_setting_what_the_code_says() -> None:
    said = {name: text for name, text in _described() if name.startswith("NORIA_")}

    assert said == {name: field.description for name, field in _by_variable().items()}


def test_the_readme_names_settings_that_exist() -> None:
    named = set(re.findall(r"\bNORIA_[A-Z0-9_]+\b", (PROJECT / "README.md").read_text()))

    assert named
    assert named <= set(_by_variable())


def test_what_env_example_comments_out_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORIA_DATABASE_URL", "postgresql+psycopg://noria@localhost/noria")
    monkeypatch.setenv("NORIA_BROKER_URL", "redis://localhost")
    defaults = settings.load()
    lines = [line.removeprefix("# ") for line in TEMPLATE.read_text().splitlines() if line.startswith("# NORIA_")]

    for name, value in dotenv_values(stream=io.StringIO("\n".join(lines))).items():
        if value:
            monkeypatch.setenv(name, value)

    assert settings.load() == defaults


def test_env_example_filled_in_makes_settings_that_lead_to_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in filled_in().items():
        monkeypatch.setenv(name, value)

    loaded = settings.load()

    assert loaded.database_url.get_secret_value() == "postgresql+psycopg://noria:s3cr3t@postgres:5432/noria"
    assert loaded.broker_url.get_secret_value() == "redis://:s3cr3t@valkey:6379/0"
    assert loaded.s3_endpoint_url == "http://s3:8333"


def test_env_example_has_a_place_for_every_variable_of_the_compose_file() -> None:
    used = {found["name"] for found in REFERENCE.finditer(COMPOSE) if found["name"]}

    assert used <= {name for name, _ in _described()}


def test_the_dockerfile_has_no_fault_that_a_linter_knows() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint is not among the tools of this machine")

    done = subprocess.run([str(linter), str(DOCKERFILE)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_a_stack_here_bounds_memory_as_production_does(tmp_path: Path) -> None:
    servers.kept_ports(servers.make_home(tmp_path))
    here = up.settings(servers.described(tmp_path), servers.kept_ports(tmp_path), {}, real=False)
    in_image = dict(re.findall(r"(MALLOC_\w+)=(\S+)", DOCKERFILE.read_text()))

    assert in_image == {"MALLOC_ARENA_MAX": here["MALLOC_ARENA_MAX"]}
    flower = SERVICES["flower"]["environment"]
    assert {name: here[name] for name in flower if name in ("FLOWER_READ_ONLY", "FLOWER_MAX_TASKS")} == {
        name: flower[name] for name in ("FLOWER_READ_ONLY", "FLOWER_MAX_TASKS")
    }


def test_an_audit_without_its_database_is_no_clean_bill() -> None:
    [line] = [line for line in (PROJECT / "Makefile").read_text().splitlines() if "pip-audit --" in line]

    assert "--strict" in line, "else it ends with 0 where it looked at nothing"


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = re.findall(r"^USER (\d+):\d+$", DOCKERFILE.read_text(), re.MULTILINE)

    assert users[-1:] == ["10001"]
    assert {service["user"].split(":")[0] for service in OURS.values()} == set(users)


def test_the_image_takes_in_every_package_and_no_secret() -> None:
    taken = set(re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE))
    sources = {source for line in taken for source in line.split()}
    packages = _pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    allowed = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    assert set(packages) | {"pyproject.toml"} <= sources
    assert {source.split("/")[0] for source in sources} == set(allowed)
    assert "*" in (PROJECT / ".dockerignore").read_text().splitlines()


def test_the_image_is_locked_to_versions_that_the_tests_run_on() -> None:
    image, tests = (_pins(PROJECT / name) for name in ("ops/docker/requirements.lock", "requirements.lock"))
    wanted = {_name(requirement) for requirement in _pyproject()["project"]["dependencies"]}

    assert image.items() <= tests.items()
    assert wanted <= set(image)


def test_the_brokers_command_starts_a_valkey_that_asks_for_its_password(tmp_path: Path) -> None:
    service, port = SERVICES["valkey"], _free_port()
    shell, option, script = service["command"]
    (tmp_path / "valkey-server").symlink_to(servers.find_binaries()["valkey"])
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "VALKEY_PASSWORD": "s3cr3t"}
    command = [shell, option, script.replace("appendonly", f"port {port}\nappendonly")]

    with _running(partial(subprocess.Popen, command, env=environment, cwd=tmp_path), tmp_path) as process:
        with redis.Redis(port=port, password="s3cr3t") as known, redis.Redis(port=port) as stranger:
            _eventually(lambda: _pings(known), process)
            kept = known.config_get("appendonly", "maxmemory-policy")
            with pytest.raises(redis.AuthenticationError):
                stranger.ping()
        process.terminate()
        code = _ended(process, service)

    assert kept == {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    assert code == 0


def test_the_services_start_are_found_healthy_and_stop_in_time(
    environment: dict[str, str], image: Image, tmp_path: Path
) -> None:
    here = _Here(image, environment, tmp_path)
    assert image.run(here.command("migrate"), environment).returncode == 0

    with contextlib.ExitStack() as held:
        running = {name: held.enter_context(here.running(name)) for name in OURS if name not in ONCE}
        for name, process in running.items():
            _eventually(partial(here.is_healthy, name), process)
        for process in running.values():
            process.terminate()
        codes = {name: _ended(process, SERVICES[name]) for name, process in running.items()}
        healthy_when_gone = here.is_healthy("worker-calls")

    assert not healthy_when_gone
    # uvicorn takes its leave by the signal that it was sent; so may the clock, which has nothing to lose
    assert codes.pop("clock") in (0, -signal.SIGTERM)
    assert codes == {"api": -signal.SIGTERM, "flower": 0, **dict.fromkeys(WORKERS, 0)}


def test_flower_is_served_and_found_healthy_below_a_prefix(
    environment: dict[str, str], image: Image, tmp_path: Path
) -> None:
    services = yaml.safe_load(interpolated({**filled_in(), "FLOWER_URL_PREFIX": "/flower/"}))["services"]
    here = _Here(image, environment, tmp_path, services)

    with here.running("flower") as process:
        _eventually(lambda: here.is_healthy("flower"), process)
        below = f"{here.address('5555')}/flower"
        statuses = {path: httpx.get(below + path, timeout=PATIENCE).status_code for path in ("/", "/metrics")}

    assert statuses == {"/": 401, "/metrics": 200}  # the second is why the files warn of it


@pytest.mark.parametrize("file", ["docker-compose.yml", "ops/env.example", "README.md"])
def test_a_file_that_publishes_flower_says_what_it_leaves_open(file: str) -> None:
    assert re.search(r"/metrics`? and `?/healthcheck", (PROJECT / file).read_text())


class _Here:
    """The services' commands and checks as the image runs them, without containers: other ports, another folder."""

    def __init__(
        self, image: Image, settings: Mapping[str, str], folder: Path, services: Mapping[str, Service] = SERVICES
    ) -> None:
        self._image, self._settings, self._folder, self._services = image, settings, folder, services
        self._changed = {
            "0.0.0.0": servers.HOST,
            "8080": str(_free_port()),
            "5555": str(_free_port()),
        }

    def command(self, name: str) -> list[str]:
        return [self._changed_in(word) for word in shlex.split(self._services[name]["command"])]

    def running(self, name: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        return _running(partial(self._image.popen, self.command(name), self._settings_of(name)), self._folder)

    def _settings_of(self, name: str) -> Mapping[str, str]:
        """All of them, or what a service without the .env file is given, with the broker that there is here."""
        service = self._services[name]
        if service["env_file"]:
            return self._settings
        given = {variable: value or "" for variable, value in service["environment"].items()}
        return given | {variable: self._settings[variable] for variable in ("NORIA_BROKER_URL",)}

    def address(self, port: str) -> str:
        return f"http://{servers.HOST}:{self._changed[port]}"

    def is_healthy(self, name: str) -> bool:
        how, *check = self._services[name]["healthcheck"]["test"]
        assert how == "CMD"
        return self._image.run([self._changed_in(word) for word in check], self._settings).returncode == 0

    def _changed_in(self, word: str) -> str:
        for there, here in self._changed.items():
            word = re.sub(rf"(?<![\w.]){re.escape(there)}\b", here, word)
        return word


@contextlib.contextmanager
def _running(start: Callable[..., subprocess.Popen[bytes]], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process for the length of the block; killed if it is not gone by then."""
    with (folder / f"{time.monotonic_ns()}.log").open("wb") as log:
        process = start(stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ended(process: subprocess.Popen[bytes], service: Service) -> int:
    """The exit code, within the grace that the service gets."""
    return process.wait(_span(service["stop_grace_period"]).total_seconds())


def _eventually(look: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args!r} was not healthy within {PATIENCE} s"
        time.sleep(0.05)


def _pings(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def _free_port() -> int:
    with socket.create_server((servers.HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _parsed(command: str) -> tuple[list[str], dict[str, str]]:
    """A command's words, and its options with their values."""
    words: list[str] = []
    options: dict[str, str] = {}
    parts = iter(command.replace("=", " ").split())
    for part in parts:
        if not part.startswith("-") or part == "-m":
            words.append(part)
        else:
            options[part] = "" if part in ONLY_THERE else next(parts)
    return words, options


def _what_it_does(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name not in ELSEWHERE | ONLY_THERE}


def _span(text: str) -> timedelta:
    return timedelta(seconds=int(text.removesuffix("s")))


def _described() -> list[tuple[str, str]]:
    """The variables of the settings template, in order, each with the comment above it."""
    found, comment = [], ""
    for line in TEMPLATE.read_text().splitlines():
        if assignment := re.match(r"(?:# )?([A-Z0-9_]+)=", line):
            found.append((assignment[1], comment))
        else:
            comment = line.removeprefix("# ")
    return found


def _by_variable() -> dict[str, Any]:
    return {f"NORIA_{name.upper()}": field for name, field in settings.Settings.model_fields.items()}


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def _pins(lock: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", lock.read_text(), re.MULTILINE)
    return {_name(name): version for name, version in found}


def _name(requirement: str) -> str:
    name = re.split(r"[\[<>=;! ]", requirement)[0]
    return re.sub("[-_.]+", "-", name).lower()


@pytest.mark.parametrize(("said", "source"), [({}, "/dev/null"), ({"NORIA_CATALOG": "./own.yaml"}, "./own.yaml")])
def test_every_process_reads_the_operators_catalog_from_a_mount_it_cannot_change(
    said: dict[str, str], source: str
) -> None:
    services = yaml.safe_load(interpolated(filled_in() | said))["services"]

    for name in OURS.keys() - {"flower"}:  # which reads none
        [mount] = services[name]["volumes"]
        assert (mount["source"], mount["read_only"]) == (source, True), name
        assert services[name]["environment"]["NORIA_CATALOG"] == mount["target"], name
