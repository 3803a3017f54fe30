"""The commands about jobs: `watch`, `show`, `list`, `children`, `cancel`, `retry`, `models`. They talk to the API."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from api.client import Client
from ops.cli import following, show, show_job, watch
from ops.cli.options import Home, Json, Key, Url, pairs
from ops.doctor import reach

_UNFINISHED = ("queued", "held", "admitted", "submitting", "uncertain", "running", "gathering", "copying")
_FAILED_SHOWN = 5  # children of a parent


def add_to(app: typer.Typer) -> None:
    """Put the commands under `noria`."""
    for command, name in _COMMANDS.items():
        app.command(name)(command)


def watch_jobs(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="None: all that have not ended.")] = None,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Follow jobs until all have ended; exit code 1 if one did not succeed. With --json: a line for each change."""
    with _api(home, url, key) as client:
        wanted = ids or [job["id"] for job in client.jobs(state=",".join(_UNFINISHED), limit=100)]
        if not wanted:
            show.ERR.print("No job is on its way.")
            return
        rounds = following.follow(client, wanted)
        jobs = watch.told(rounds, show.line) if as_json else watch.watched(rounds, show.OUT)
    if not following.succeeded(jobs):
        raise typer.Exit(1)


def show_one(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Show a job: where it is, what it waits for, what it made and cost, and how long each step took."""
    with _api(home, url, key) as client:
        job, events, attempts = client.job(job_id), list(client.events(job_id)), client.attempts(job_id)
        missed = list(islice(client.children(job_id, "failed,expired"), _FAILED_SHOWN)) if job["children"] else []
    if as_json:
        show.document({"job": job, "events": events, "attempts": attempts})
        return
    show.OUT.print(show_job.page(job, events, attempts))
    if missed:
        show.OUT.print(show_job.missed(missed))


def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="One or several.")] = None,
    kind: Annotated[str | None, typer.Option(help="What they make.")] = None,
    model: Annotated[str | None, typer.Option(help="The provider's model or an alias.")] = None,
    custom_id: Annotated[str | None, typer.Option(help="Your own id.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What they were marked with.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="A part of the prompt or of your own id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at the most, the newest first.")] = 20,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    with _api(home, url, key) as client:
        found = client.jobs(
            state=",".join(state) if state else None,
            kind=kind,
            model=model,
            custom_id=custom_id,
            metadata=pairs(metadata, "--metadata"),
            q=text,
            limit=min(limit, 100),
        )
        jobs = list(islice(found, limit))
    if as_json:
        show.document(jobs)
    elif jobs:
        show.OUT.print(show.jobs(jobs))
    else:
        show.ERR.print("No such jobs.")


def children(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    state: Annotated[list[str] | None, typer.Option(help="One or several.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at the most.")] = 100,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """List the parts that a job is made in, in their order."""
    with _api(home, url, key) as client:
        found = list(islice(client.children(job_id, ",".join(state) if state else None), limit))
    if as_json:
        show.document(found)
    elif found:
        show.OUT.print(show.children(found))
    else:
        show.ERR.print("No such parts.")


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Ask jobs to stop. The provider drops only what has not started: what became of each wish is printed."""
    with _api(home, url, key) as client:
        outcomes = {job_id: client.cancel(job_id) for job_id in ids}
    if as_json:
        show.document(list(outcomes.values()))
        return
    for job_id, answer in outcomes.items():
        show.OUT.print(f"{job_id}  {answer['outcome']}: {show.OUTCOMES.get(answer['outcome'], '')}", soft_wrap=True)


def retry(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Make jobs again that failed, expired or were canceled; of one made in parts, only those that did not succeed."""
    with _api(home, url, key) as client:
        jobs = [client.retry(job_id) for job_id in ids]
    if as_json:
        show.document(jobs)
        return
    for job in jobs:
        show.OUT.print(f"{job['id']}  {job['state']}, {show.cost(job)} CNY", soft_wrap=True)


def models(
    kind: Annotated[str | None, typer.Argument(help="Only those that make this.")] = None,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """List the models with their prices; --json has all that is known of them."""
    with _api(home, url, key) as client:
        found = client.models(kind)
    if as_json:
        show.document(found)
    else:
        show.OUT.print(show.models(found))


_COMMANDS: dict[Callable[..., None], str] = {
    watch_jobs: "watch",
    show_one: "show",
    list_jobs: "list",
    children: "children",
    cancel: "cancel",
    retry: "retry",
    models: "models",
}


def _api(home: Path, url: str | None, key: str | None) -> AbstractContextManager[Client]:
    return reach.api(reach.door(home, url, key))
