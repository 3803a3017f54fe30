"""The `noria` command: `noria --help`.

Results go to stdout, everything else to stderr; with `--json` stdout is one JSON document (`watch`: one a line) and
nothing more. What the exit codes say stands in `Code`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from api.client import ApiError
from ops.cli import campaign, doctor, files, jobs, lanes, projects, resolve, schedules, show, submit
from ops.cli.options import Home, Json
from ops.doctor import reach
from ops.doctor.reach import Door
from ops.local import servers
from ops.local import up as local
from ops.local.supervise import LocalError
from worker import keys, log, settings
from worker.errors import InvalidInput, NoriaError, NotFound

DEMO_PROJECT = "demo"
_KEY = "NORIA_DEMO_KEY"
_SERVER_FAILED = 500
_ADVICE = {
    401: "Give a key of the project: --key or NORIA_KEY. `noria keys create PROJECT` makes one.",
    402: "The project's budget is spent.",
    404: "`noria list` shows the project's jobs.",
    "idempotency_key_reused": "The key was used for something else: choose another --idempotency-key.",
    429: "The server is asked too often, or too many jobs wait: try again later.",
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
    Code.UNSUCCESSFUL: "a job did not succeed, or nothing could be started",
    Code.USAGE: "the command line or a setting is wrong",
    Code.RUNNING: "`up` or `demo` runs in that home already",
    Code.AWAY: "the API or the database does not answer",
    Code.REFUSED: "refused: the input, the key, or the state of the thing",
    Code.INTERRUPTED: "interrupted",
}

app = typer.Typer(
    name="noria",
    help="Noria: a queue for generated media on DashScope.",
    epilog="Exit codes: " + "; ".join(f"{code} {words}" for code, words in CODES.items()) + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry of `noria`."""
    log.configure("ERROR")  # what libraries have to say is not for this command's readers
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
    return Code.DONE


def explained(error: LocalError | ApiError | NoriaError | ValidationError) -> tuple[int, str]:
    """The exit code, and what a person is told: what is wrong and what to do."""
    match error:
        case LocalError():
            return error.exit_code, str(error)
        case ApiError():
            words = [*campaign.faults_of(error), *filter(None, [_ADVICE.get(error.code, _ADVICE.get(error.status))])]
            return (Code.AWAY if error.status >= _SERVER_FAILED else Code.REFUSED), "\n".join(words)
        case InvalidInput():
            return Code.REFUSED, "\n".join(f"{fault.pointer.strip('/')} {fault.message}." for fault in error.faults)
        case NotFound():
            return Code.REFUSED, f"{error}: `noria projects list` and `noria keys list` show what there is."
        case NoriaError():
            return Code.REFUSED, f"{error}."
        case ValidationError():
            return Code.USAGE, "\n".join(["These settings are wrong:", *_wrong_settings(error)])


@app.command()
def up(
    home: Home = Path(".noria"),
    real: Annotated[bool, typer.Option("--real", help="Spend real money, with the key in the environment.")] = False,
    port: Annotated[int | None, typer.Option(help="The API's port; otherwise the one kept in the home.")] = None,
    time_scale: Annotated[
        float, typer.Option(min=0, help="How long the sandbox's tasks run, as a part of the provider's times.")
    ] = local.NEWCOMERS,
    true_times: Annotated[
        bool, typer.Option("--true-times", help="Let the sandbox's tasks run as long as the provider's: minutes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run everything here until Ctrl-C: servers, API, workers, Flower, and the sandbox in DashScope's place."""
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


@app.command()
def demo(
    home: Annotated[Path, typer.Option(help="Where it works; what an earlier demo left there is removed.")] = Path(
        ".noria/demo"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running afterwards, until Ctrl-C.")] = False,
    real: Annotated[
        bool, typer.Option("--real", help="On DashScope itself, with two clips; shows the whole price and asks.")
    ] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the campaign's cheapest jobs, so many of them.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --real: do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Clips from a CSV, a narration and a night's summaries, in the sandbox, under a minute; leaves nothing running."""
    check_can_run(real)
    _need("av", "PIL")
    # It needs the extra `sandbox`, which a machine that only submits jobs does without.
    from ops.demo import demo as story

    raise typer.Exit(story.run(story.Options(home, keep, real, rows, yes, as_json)))


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sandbox(context: typer.Context) -> None:
    """Run only the sandbox, a DashScope that costs nothing; `noria sandbox --help` lists its options."""
    _need("av", "PIL")
    os.execv(sys.executable, [sys.executable, "-m", "ops.sandbox", *context.args])  # noqa: S606, no shell is meant


submit.add_to(app)
jobs.add_to(app)
files.add_to(app)
projects.add_to(app)
lanes.add_to(app)
doctor.add_to(app)
resolve.add_to(app)
schedules.add_to(app)


def check_can_run(real: bool) -> None:
    """Raise before anything is started, for what is not installed, for a missing key, and for wrong settings."""
    if real:
        if not any(os.environ.get(name) for name in local.KEYS):
            words = f"spends real money, and needs one of {', '.join(local.KEYS)} in the environment"
            raise typer.BadParameter(words, param_hint="--real")
        settings.Settings(database_url="", broker_url="")  # these two are the stack's
    else:
        _need("av", "PIL")


def demo_key(home: Path, environment: Mapping[str, str]) -> str:
    """The key that an earlier run left in this home, if it still opens something; else a new one."""
    kept = reach.kept(home)
    with reach.database(home, environment["NORIA_DATABASE_URL"]) as connection:
        if kept and keys.authenticate(connection, kept.key):
            return kept.key
        return keys.new_key(connection, projects.project_made(connection, DEMO_PROJECT), "noria up")[1]


def _welcome(options: local.UpOptions, running: local.Stack, door: Door, as_json: bool) -> None:
    home = options.home
    flower = {"user": "noria", "password": servers.kept_secrets(home.resolve())["flower"]}
    if as_json:
        show.document({"addresses": dict(running.addresses), "url": door.url, "key": door.key, "flower": flower})
        return
    pages = {
        "API": f"{door.url}/v1",
        "docs": f"{door.url}/docs",
        "Flower": f"{running.addresses['Flower']}  ({flower['user']} / {flower['password']})",
        "S3": running.addresses["S3"],
        "key": f"{door.key}  (project {DEMO_PROJECT})",
        "files": str(home.resolve()),
    }
    if options.real:
        show.welcome("DashScope itself, with your key: jobs cost money", pages)
        return
    pages["sandbox"] = f"{running.addresses['sandbox']}/_sandbox/"
    if options.time_scale != 1:
        pages["times"] = f"its tasks run {options.time_scale:g} of the provider's times; --true-times for the whole"
    show.welcome("the sandbox: nothing is paid", pages)


def _need(*modules: str) -> None:
    if any(importlib.util.find_spec(module) is None for module in modules):
        raise LocalError("The sandbox draws its clips itself, and needs: pip install 'noria[sandbox]'")


def _wrong_settings(error: ValidationError) -> list[str]:
    lines = []
    for slip in error.errors(include_url=False, include_input=False):
        first, *rest = (str(step) for step in slip["loc"])
        variable = first if first.isupper() else f"NORIA_{first.upper()}"
        lines.append(f"  {'.'.join([variable, *rest])}: {slip['msg']}")
    return lines
