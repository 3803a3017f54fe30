"""The `noria` command: `noria --help`.

Results go to stdout, everything else to stderr; with `--json` stdout is one JSON document (`watch`: one a line) and
nothing more. The exit codes are those of `Code`. The sandbox and the demo are part of a source checkout, not of the
wheel or the image, so they are imported only by the commands that need them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from api.client import ApiError
from ops.cli import (
    admin,
    batches,
    budgets,
    costs,
    doctor,
    files,
    jobs,
    reach,
    retention,
    review,
    schedules,
    show,
    submit,
    webhooks,
)
from ops.cli.reach import HOME, Door, Home, Json
from ops.local import servers
from ops.local import up as local
from ops.local.supervise import LocalError
from worker import keys, log, settings
from worker.catalog import CatalogError
from worker.errors import InvalidInput, KeyExpired, NoriaError, NotFound
from worker.keys import Scope

DEMO_PROJECT = "demo"
_KEY = "NORIA_DEMO_KEY"
_SERVER_FAILED = 500
_RUN, _MAKE, _OPERATE = "Run Noria on this machine", "Make media", "Operate Noria"
_ADVICE = {
    401: "Give a key of the project: --key or NORIA_KEY. `noria keys create PROJECT` makes one.",
    402: "`noria budgets list` shows what is used; `noria budgets set` raises a budget.",
    "wrong_scope": "`noria keys create PROJECT --scope SCOPE` makes one.",
    404: "`noria list` shows the project's jobs, `noria batches` its batches.",
    "idempotency_key_reused": "This key was used for another job: choose another --idempotency-key.",
    429: "Too many requests, or too many jobs wait: try again later.",
}


class Code(IntEnum):
    """The exit codes."""

    DONE = 0
    UNSUCCESSFUL = 1
    USAGE = 2
    RUNNING = 3
    AWAY = 4
    REFUSED = 5
    INTERRUPTED = 130


CODES = {
    Code.DONE: "done",
    Code.UNSUCCESSFUL: "a job did not succeed, a check failed, or nothing could be started",
    Code.USAGE: "the command line or a setting is wrong",
    Code.RUNNING: "`up` or `demo` already runs in that folder",
    Code.AWAY: "the API or the database does not answer",
    Code.REFUSED: "the API refused the input, the key or the action",
    Code.INTERRUPTED: "interrupted",
}

app = typer.Typer(
    name="noria",
    help="Noria, a self-hosted job queue for generated media on DashScope.",
    epilog="Exit codes: " + "; ".join(f"{code} {words}" for code, words in CODES.items()) + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry of `noria`."""
    log.configure("ERROR")  # a user of the command does not need what libraries log
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line; the exit code. Known errors become a sentence on stderr."""
    reach.spare_loopback_the_proxy()
    try:
        app(list(arguments), prog_name="noria")
    except SystemExit as end:
        return int(end.code or 0)
    except (LocalError, ApiError, NoriaError, ValidationError) as error:
        code, words = explained(error)
        show.ERR.print(words, style="red", markup=False, soft_wrap=True)
        return code
    except UnicodeEncodeError:  # an argument that is a file's name may be any bytes, and no other may
        show.ERR.print("An argument is not text in UTF-8.", style="red")
        return Code.USAGE
    return Code.DONE


def explained(error: LocalError | ApiError | NoriaError | ValidationError) -> tuple[int, str]:
    """The exit code, and what a person is told: what is wrong and what to do."""
    match error:
        case LocalError():
            return error.exit_code, str(error)
        case ApiError():
            words = [*error.faults, *filter(None, [_ADVICE.get(error.code, _ADVICE.get(error.status))])]
            return (Code.AWAY if error.status >= _SERVER_FAILED else Code.REFUSED), "\n".join(words)
        case InvalidInput():
            return Code.REFUSED, "\n".join(f"{fault.pointer.strip('/')} {fault.message}." for fault in error.faults)
        case NotFound():
            return Code.REFUSED, f"{error}: `noria projects list` and `noria keys list` show what there is."
        case CatalogError():
            return Code.USAGE, f"{error}."
        case NoriaError():
            return Code.REFUSED, f"{error}."
        case ValidationError():
            return Code.USAGE, "\n".join(["These settings are wrong:", *_wrong_settings(error)])


@app.command(rich_help_panel=_RUN)
def up(
    *,
    real: Annotated[
        bool, typer.Option("--real", help="Use DashScope itself, with the key in the environment: jobs cost money.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="The API's port. Default: the one this folder had before.")] = None,
    time_scale: Annotated[
        float, typer.Option(min=0, help="How long the sandbox's tasks take, as a part of the provider's times.")
    ] = local.NEWCOMERS,
    true_times: Annotated[
        bool, typer.Option("--true-times", help="Let the sandbox's tasks take as long as the provider's: minutes.")
    ] = False,
    as_json: Json = False,
    home: Home = HOME,
) -> None:
    """Run everything on this machine, until Ctrl-C.

    PostgreSQL, Valkey, an object store, the API, workers, the clock and Flower; and in place of DashScope a sandbox,
    which costs nothing and needs a source checkout. With --real, DashScope itself makes the media.
    """
    check_can_run(real)
    options = local.UpOptions(home, port, real, 1.0 if true_times else time_scale)

    def prepare(environment: Mapping[str, str]) -> Mapping[str, str]:
        return {_KEY: demo_key(home, environment)}

    try:
        with local.interruptible(), local.stack(options, prepare, show.sayer(show.ERR)) as running:
            door = Door(running.addresses["API"].removesuffix("/docs"), running.prepared[_KEY])
            reach.keep(home, door)
            _welcome(options, running, door, as_json)
            threading.Event().wait()
    except KeyboardInterrupt:
        show.ERR.print("Stopped; nothing is left running.")


@app.command(rich_help_panel=_RUN)
def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running afterwards, until Ctrl-C.")] = False,
    real: Annotated[
        bool, typer.Option("--real", help="Use DashScope itself, for two clips; shows the whole price and asks.")
    ] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="How many of the campaign's jobs, the cheapest.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --real: do not ask.")] = False,
    as_json: Json = False,
    home: Annotated[
        Path, typer.Option(help="The folder to work in; an earlier demo in it is removed.", rich_help_panel=reach.PANEL)
    ] = HOME / "demo",
) -> None:
    """Make clips, a narration and summaries in the sandbox, and stop.

    It takes less than a minute: it starts everything, submits a CSV, a script and a schedule of summaries, checks every
    file, webhook and price, and leaves nothing running. It needs a source checkout.
    """
    check_can_run(real)
    _need_checkout("ops.demo")
    from ops.demo import demo as story  # the wheel and the image are without it

    raise typer.Exit(story.run(story.Options(home, keep, real, rows, yes, as_json)))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    rich_help_panel=_RUN,
)
def sandbox(context: typer.Context) -> None:
    """Run only the sandbox, a DashScope that costs nothing.

    `noria sandbox --help` lists its options. It needs a source checkout.
    """
    _need_checkout("ops.sandbox")
    os.execv(sys.executable, [sys.executable, "-m", "ops.sandbox", *context.args])  # noqa: S606, no shell is meant


for part, panel in (
    (submit.app, _MAKE),
    (batches.app, _MAKE),
    (jobs.app, _MAKE),
    (costs.app, _MAKE),
    (webhooks.events, _MAKE),
    (doctor.app, _OPERATE),
    (admin.app, _OPERATE),
    (retention.app, _OPERATE),
):
    for each in part.registered_commands:
        each.rich_help_panel = panel
    app.add_typer(part)
app.add_typer(batches.batches, name="batches", rich_help_panel=_MAKE)
app.add_typer(review.review, name="review", rich_help_panel=_MAKE)
app.add_typer(files.files, name="files", rich_help_panel=_MAKE)
app.add_typer(schedules.schedules, name="schedules", rich_help_panel=_MAKE)
app.add_typer(budgets.budgets, name="budgets", rich_help_panel=_MAKE)
app.add_typer(webhooks.webhooks, name="webhooks", rich_help_panel=_MAKE)
app.add_typer(admin.keys, name="keys", rich_help_panel=_OPERATE)
app.add_typer(admin.projects, name="projects", rich_help_panel=_OPERATE)
app.add_typer(retention.holds, name="holds", rich_help_panel=_OPERATE)
app.add_typer(admin.lanes, name="lanes", rich_help_panel=_OPERATE)


def check_can_run(real: bool) -> None:
    """Raise before anything is started: for what is not installed, for a missing key, and for wrong settings."""
    if real:
        if not any(os.environ.get(name) for name in local.KEYS):
            words = f"needs one of {', '.join(local.KEYS)} in the environment, since it spends real money"
            raise typer.BadParameter(words, param_hint="--real")
        settings.Settings(database_url="", broker_url="")  # these two are the stack's
    else:
        _need_checkout("ops.sandbox")


def demo_key(home: Path, environment: Mapping[str, str]) -> str:
    """The key that an earlier run left in this home, if the API still accepts it; else a new one."""
    kept = reach.kept(home)
    with reach.database(home, environment["NORIA_DATABASE_URL"]) as connection:
        with suppress(KeyExpired):
            if kept and keys.authenticate(connection, keys.digest(kept.key)):
                return kept.key
        return keys.new_key(connection, admin.project_made(connection, DEMO_PROJECT), "noria up", Scope.ADMIN)[1]


def _welcome(options: local.UpOptions, running: local.Stack, door: Door, as_json: bool) -> None:
    home = options.home
    with reach.api(door) as client:
        console = client.console_link()
    flower = {"user": "noria", "password": servers.kept_secrets(home.resolve())["flower"]}
    if as_json:
        show.document(
            {
                "addresses": dict(running.addresses),
                "url": door.url,
                "key": door.key,
                "flower": flower,
                "console": console,
            }
        )
        return
    pages = {
        "console": f"{console}  (signs in once; `noria console` makes another)",
        "API": f"{door.url}/v1",
        "docs": f"{door.url}/docs",
        "Flower": f"{running.addresses['Flower']}  ({flower['user']} / {flower['password']})",
        "S3": running.addresses["S3"],
        "key": f"{door.key}  (project {DEMO_PROJECT})",
        "files": str(home.resolve()),
    }
    provider = "DashScope itself, with your key: jobs cost money"
    if not options.real:
        provider = "the sandbox: nothing is paid"
        pages["sandbox"] = f"{running.addresses['sandbox']}/_sandbox/"
        if options.time_scale != 1:
            pages["times"] = f"its tasks take {options.time_scale:g} of the provider's times; --true-times: all of it"
    show.OUT.print(f"Noria runs on {provider}.")
    for word, place in pages.items():
        show.OUT.print(f"  [bold]{word:8}[/]{escape(place)}", soft_wrap=True)
    show.OUT.print("Other terminals find it by themselves: `noria submit`, `noria list`. Ctrl-C stops it.")


def _need_checkout(package: str) -> None:
    """Raise where this package is not installed, or what it draws with."""
    if importlib.util.find_spec(package) is None:
        raise LocalError(
            "The sandbox and the demo are in Noria's source code, not in this installation: run this command in a"
            " source checkout. `noria up --real` needs neither."
        )
    if any(importlib.util.find_spec(module) is None for module in ("av", "PIL")):
        raise LocalError("The sandbox needs packages to draw clips: pip install -e '.[sandbox]'")


def _wrong_settings(error: ValidationError) -> list[str]:
    lines = []
    for slip in error.errors(include_url=False, include_input=False):
        first, *rest = (str(step) for step in slip["loc"])
        variable = first if first.isupper() else f"NORIA_{first.upper()}"
        lines.append(f"  {'.'.join([variable, *rest])}: {slip['msg']}")
    return lines
