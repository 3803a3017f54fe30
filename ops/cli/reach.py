"""Which Noria a command talks to, and the options that say so, each written once.

The command line counts first, then `NORIA_URL`, `NORIA_KEY` and `NORIA_DATABASE_URL`, then a `noria up` on this
machine, which leaves its address and a key in its home (`client.json`, 0600).

A command takes `Api` or `Database` as one parameter; `command` gives it an option for each of their fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints
from urllib.parse import urlsplit

import httpx
import sqlalchemy
import typer
from rich.console import RenderableType
from sqlalchemy.exc import OperationalError, ProgrammingError

from api.client import Client, Damaged
from ops.cli import show
from ops.local import servers
from ops.local.supervise import LocalError
from worker.settings import addresses

_KNOCK_SECONDS = 5.0
_LOOPBACK = (servers.HOST, "localhost")
PANEL = "Connection and output"


def _database_url(text: str | None) -> str | None:
    try:
        return text and addresses.database_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.", rich_help_panel=PANEL)]
Home = Annotated[Path, typer.Option(help="The folder of the `noria up` to use.", rich_help_panel=PANEL)]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="NORIA_URL", help="The API's address. Default: the `noria up` on this machine.", rich_help_panel=PANEL
    ),
]
Key = Annotated[
    str | None, typer.Option(envvar="NORIA_KEY", show_envvar=True, help="A project's API key.", rich_help_panel=PANEL)
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="NORIA_DATABASE_URL",
        callback=_database_url,
        help="The database. Default: that of the `noria up` on this machine.",
        rich_help_panel=PANEL,
    ),
]
HOME = Path(".noria")


@dataclass(frozen=True)
class Output:
    """The option that says how an answer is printed."""

    as_json: Json = False

    def answer(self, document: object, shown: RenderableType, nothing: str = "") -> None:
        """Print the document with --json, else what is shown; of an empty document only `nothing`, on stderr."""
        show.answer(self.as_json, document, shown, nothing)


@dataclass(frozen=True)
class Api(Output):
    """Options of a command that talks to the API: where it is, and with which key."""

    url: Url = None
    key: Key = None
    home: Home = HOME

    def client(self) -> AbstractContextManager[Client]:
        """A client of the API; `NotReachable` where nobody answers."""
        return api(door(self.home, self.url, self.key))


@dataclass(frozen=True)
class Database(Output):
    """Options of a command that talks to the database: where it is."""

    home: Home = HOME
    database_url: DatabaseUrl = None

    def connection(self) -> AbstractContextManager[sqlalchemy.Connection]:
        """A transaction; `NotReachable` where the database does not answer or has no schema."""
        return database(self.home, self.database_url)


def command(app: typer.Typer, name: str | None = None, **how: Any) -> Callable[[Callable[..., None]], object]:
    """`app.command(name)` for a function of which some parameters stand for several options: `spread`."""
    return lambda run: app.command(name, **how)(spread(run))


def spread(run: Callable[..., None]) -> Callable[..., None]:
    """The function with one parameter for each field of its parameters that are dataclasses."""
    hints = get_type_hints(run, include_extras=True)
    values = {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}

    @functools.wraps(run)
    def spread_out(**given: Any) -> None:
        for name, value in values.items():
            given[name] = value(**{field.name: given.pop(field.name) for field in dataclasses.fields(value)})
        run(**given)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(run).parameters.items():
        if name not in values:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        types = get_type_hints(values[name], include_extras=True)
        parameters += [
            inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
            for field in dataclasses.fields(values[name])
        ]
    spread_out.__annotations__ = {each.name: each.annotation for each in parameters}
    spread_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread_out


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """`["a=1"]` as a mapping; a usage error where there is no `=`."""
    parted = [item.partition("=") for item in given or []]
    for name, separator, _ in parted:
        if not separator or not name:
            raise typer.BadParameter("is written NAME=VALUE", param_hint=option)
    return {name: value for name, _, value in parted}


def read_object(path: Path, option: str) -> dict[str, Any]:
    """The JSON object in a file; a usage error where it holds none."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint=option) from None
    if not isinstance(read, dict):
        raise typer.BadParameter(f"{path} must hold a JSON object", param_hint=option)
    return read


class NotReachable(LocalError):
    """Nobody answers where the API or the database should be."""

    exit_code = 4


@dataclass(frozen=True)
class Door:
    """Where an API is, and a key that opens it."""

    url: str
    key: str


def keep(home: Path, door: Door) -> None:
    """Leave the door for later commands, for its owner's eyes only."""
    servers.write_private(home / "client.json", json.dumps(asdict(door)))


def kept(home: Path) -> Door | None:
    """The door that a `noria up` left in its home; it may have stopped since."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return Door(**json.loads((home / "client.json").read_text()))
    return None


def door(home: Path, url: str | None, key: str | None) -> Door:
    """What was said, completed by what a `noria up` left here; `NotReachable` says what is missing.

    A key that was left here is never sent anywhere but to the address it was left for.
    """
    here = kept(home)
    url = _root(url) if url else here.url if here else ""
    if not url:
        raise NotReachable("No Noria is known here: start one with `noria up`, or name one: --url or NORIA_URL.")
    if key is None and here is not None and here.url == url:
        key = here.key
    if key is None:
        raise NotReachable(f"{url} wants a key: --key or NORIA_KEY. `noria keys create PROJECT` makes one.")
    return Door(url, key)


@contextlib.contextmanager
def api(found: Door) -> Iterator[Client]:
    """A client of the API; `NotReachable` where nobody answers, now or later on."""
    _knock(found.url)
    try:
        with _client(found) as client:
            yield client
    except httpx.TransportError as error:
        raise NotReachable(f"{found.url} does not answer ({error or type(error).__name__}).") from error
    except Damaged as error:
        raise LocalError(str(error)) from error
    except httpx.HTTPStatusError as error:
        host, status = error.request.url.host, error.response.status_code
        raise NotReachable(f"The bucket ({host}) does not hand the output out: HTTP {status}.") from error


@contextlib.contextmanager
def database(home: Path, url: str | None) -> Iterator[sqlalchemy.Connection]:
    """A transaction on the database; `NotReachable` where it does not answer or has no schema."""
    try:
        engine = sqlalchemy.create_engine(
            url or _local_database(home),
            hide_parameters=True,
            connect_args={"connect_timeout": 5, "prepare_threshold": None},  # there may be a pooler
        )
        with engine.begin() as connection:
            yield connection
        engine.dispose()
    except OperationalError as error:
        why = str(error.orig).strip().splitlines()[0]
        raise NotReachable(
            f"The database does not answer: {why}\nIs `noria up` running, or NORIA_DATABASE_URL right?"
        ) from error
    except ProgrammingError as error:
        raise NotReachable(
            f"The database has not this version's schema: alembic upgrade head\n({error.orig})"
        ) from error


def spare_loopback_the_proxy() -> None:
    """What runs on this machine is never asked for through a proxy."""
    said = (os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "").split(",")
    exceptions = ",".join(dict.fromkeys([*filter(None, said), *_LOOPBACK]))
    os.environ |= {"NO_PROXY": exceptions, "no_proxy": exceptions}


def _client(found: Door) -> Client:
    """A client; `NotReachable` where the key can be none."""
    if not (found.key.isascii() and found.key.isprintable()):
        raise NotReachable("The key holds characters that no key has: --key or NORIA_KEY.")
    return Client(found.url, found.key)


def _root(url: str) -> str:
    """The API's address as people copy it: with /v1 or /docs, as `noria up` shows it, or without a scheme."""
    written = url.strip().rstrip("/").removesuffix("/docs").removesuffix("/v1")
    return written if "://" in written else f"http://{written}"


def _local_database(home: Path) -> str:
    if not (home / "ports.json").exists():
        raise NotReachable("No database is known here: set NORIA_DATABASE_URL, or start one with `noria up`.")
    return servers.described(home.resolve()).url_of(servers.DATABASE)


def _knock(url: str) -> None:
    """Fail at once where nothing listens; the client would ask again for half a minute."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=_KNOCK_SECONDS).close()
    except (OSError, ValueError) as error:
        advice = "Start it with `noria up`, or name another: --url or NORIA_URL."
        raise NotReachable(f"Nothing answers at {url} ({error}). {advice}") from error
