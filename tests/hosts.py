"""Several hosts on one machine: network namespaces on a bridge, and what is needed to cut one of them off.

The tests' servers listen on loopback, which is another in each namespace. So a relay stands before each at the bridge's
address, on the same port: an address becomes another host's by putting `Network.address` in the place of 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ops.local.servers import HOST
from ops.local.supervise import Program, has_logged
from tests.chaos.lines import Line

PROJECT = Path(__file__).resolve().parents[1]
SERVICES = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
READY = {"worker": " ready.", "beat": "maxinterval"}  # in what they write


@dataclass(frozen=True)
class Host:
    """A machine of its own network; `off`: how many seconds its clock is ahead."""

    name: str
    namespace: str
    cable: str  # the bridge's end of it
    off: float

    def cut(self) -> None:
        """From now on nothing reaches it, and nothing says so."""
        _ip("link", "set", self.cable, "down")

    def connect(self) -> None:
        """From now on it is reached."""
        _ip("link", "set", self.cable, "up")

    def program(self, service: str, environment: Mapping[str, str], folder: Path, queues: str = "") -> Program:
        """The command of a service of docker-compose.yml, on this host; `queues`: others than it says."""
        python, module, *words = shlex.split(SERVICES[service]["command"].replace("%h", self.name))
        assert (python, module) == ("python", "-m")
        if queues:
            words[words.index("-Q") + 1] = queues
        command = [sys.executable, str(PROJECT / "tests" / "off_clock.py"), str(self.off), *words]
        return Program(
            name=f"{service}-{self.name}",
            command=("ip", "netns", "exec", self.namespace, *command),
            environment={**environment, "PATH": os.environ["PATH"]},
            log=folder / f"{service}-{self.name}.log",
            is_ready=has_logged(READY[next(word for word in words if word in READY)]),
            cwd=PROJECT,
            grace_seconds=0.5,  # a copy that a test has slowed down would hold it for minutes
        )


class Network:
    """A bridge with an address, and the hosts on it."""

    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)
        # of the block for tests of networks (RFC 2544), which nobody routes
        self._prefix = f"198.{secrets.choice((18, 19))}.{secrets.randbelow(256)}"
        self.address = f"{self._prefix}.1"
        self.bridge = f"br-{self.tag}"
        self.hosts: list[Host] = []

    def host(self, name: str, off: float = 0) -> Host:
        """A new host, whose clock is so many seconds ahead."""
        made = Host(name, f"noria-{self.tag}-{name}", f"{name}-{self.tag}", off)
        self.hosts.append(made)
        _ip("netns", "add", made.namespace)
        _ip("link", "add", made.cable, "type", "veth", "peer", "name", "eth0", "netns", made.namespace)
        _ip("link", "set", made.cable, "master", self.bridge, "up")
        inside = ("-n", made.namespace)
        _ip(*inside, "addr", "add", f"{self._prefix}.{len(self.hosts) + 1}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip(*inside, "link", "set", device, "up")
        return made

    def named(self, address: str) -> str:
        """The same address as the hosts know it."""
        return address.replace(HOST, self.address)


class Door(Line):
    """A port of the bridge that leads to the same port of loopback."""

    def __init__(self, network: Network, port: int) -> None:
        super().__init__(port, lambda _data, _from_server: False)
        self._address = network.address

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._join, self._address, self._target)


@contextmanager
def network() -> Iterator[Network]:
    """A network that is gone at the end, with its hosts. Skips the test where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root, and `ip` of iproute2")
    made = Network()
    try:
        try:
            _ip("link", "add", made.bridge, "type", "bridge")
            _ip("addr", "add", f"{made.address}/24", "dev", made.bridge)
            _ip("link", "set", made.bridge, "up")
            _ip("netns", "exec", made.host("probe").namespace, "true")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are refused here: {error.stderr.strip()}")
        yield made
    finally:
        for host in made.hosts:
            _ip("netns", "del", host.namespace, check=False)  # its end of the cable goes with it
            _ip("link", "del", host.cable, check=False)
        _ip("link", "del", made.bridge, check=False)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True)
