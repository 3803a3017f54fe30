"""The commands about jobs: `submit`, `watch`, `show`, `list`, `cancel`, `estimate`, `models`. They talk to the API."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import Client
from ops import campaign, following, reach, show, watch
from ops.campaign import Row
from ops.cli_options import Home, Json, Key, Url, pairs
from ops.following import Job

_UNFINISHED = ("queued", "held", "admitted", "submitting", "uncertain", "running", "gathering", "copying")

Model = Annotated[str | None, typer.Option(help="The provider's model or an alias; `noria models` lists them.")]
Kind = Annotated[str | None, typer.Argument(help="What to make: text-to-video, image-to-video, text-to-image.")]
Prompt = Annotated[str | None, typer.Option(help="What happens in it, in any language.")]
Size = Annotated[str | None, typer.Option(help="Width and height: 1280*720.")]
Resolution = Annotated[str | None, typer.Option(help="Of models that take no size: 720P.")]
Ratio = Annotated[str | None, typer.Option(help="With --resolution: 16:9.")]
Duration = Annotated[int | None, typer.Option(help="Seconds.")]
Input = Annotated[list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="Any other field of the input.")]
InputFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file with the input.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands under `noria`."""
    for command, name in _COMMANDS.items():
        app.command(name)(command)


def submit(
    kind: Kind = None,
    model: Model = None,
    prompt: Prompt = None,
    size: Size = None,
    resolution: Resolution = None,
    ratio: Ratio = None,
    duration: Duration = None,
    given: Input = None,
    input_file: InputFile = None,
    csv: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Many jobs: each row is one, columns are fields.")
    ] = None,
    custom_id: Annotated[str | None, typer.Option(help="Your own id.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="To find it by.")] = None,
    priority: Annotated[str | None, typer.Option(help="high, normal or low.")] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Is told how it ends.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes it safe to repeat; for a CSV it comes from the file unless given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and price only.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until all have ended; exit code 1 if one did not succeed.")
    ] = False,
    download: Annotated[Path | None, typer.Option(file_okay=False, help="Wait, and put the outputs here.")] = None,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Submit a job, or with --csv many.

    A CSV is checked whole before anything is submitted, and its price is shown. Each row's Idempotency-Key comes from
    what the row says, so a second run of the same file submits nothing twice (for 7 days), and after an edit only the
    edited rows are new; to make it all once more, give another --idempotency-key.
    """
    wanted = _input(input_file, given, prompt=prompt, size=size, resolution=resolution, ratio=ratio, duration=duration)
    fields = {
        "kind": kind,
        "model": model,
        "input": wanted,
        "metadata": pairs(metadata, "--metadata"),
        "custom_id": custom_id,
        "priority": priority,
        "webhook_url": webhook_url,
    }
    rows = _rows(csv, {name: value for name, value in fields.items() if value is not None}, idempotency_key)
    with _api(home, url, key) as client:
        if dry_run:
            _print_price(client, rows, as_json)
            return
        if csv:
            show.ERR.print(show.price(campaign.quote(client, rows).prices))
        jobs: Sequence[Job] = [client.submit(row.body, row.key or None) for row in rows]
        if wait or download:
            jobs = _ended(client, jobs, quiet=as_json)
        if download:
            _fetch(client, jobs, download)
    _print_submitted(jobs, many=csv is not None, as_json=as_json)
    if (wait or download) and not following.succeeded(jobs):
        raise typer.Exit(1)


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


def show_job(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Show a job: where it is, what it waits for, what it made and cost, and how long each step took."""
    with _api(home, url, key) as client:
        job, events, attempts = client.job(job_id), list(client.events(job_id)), client.attempts(job_id)
    if as_json:
        show.document({"job": job, "events": events, "attempts": attempts})
    else:
        show.OUT.print(show.job(job, events, attempts))


def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="One or several.")] = None,
    kind: Annotated[str | None, typer.Option(help="What they make.")] = None,
    model: Model = None,
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
        jobs = [job for job, _ in zip(found, range(limit), strict=False)]
    if as_json:
        show.document(jobs)
    elif jobs:
        show.OUT.print(show.jobs(jobs))
    else:
        show.ERR.print("No such jobs.")


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


def estimate(
    kind: Annotated[str, typer.Argument(help="What to make.")],
    model: Annotated[str, typer.Option(help="The provider's model or an alias.")],
    prompt: Prompt = None,
    size: Size = None,
    resolution: Resolution = None,
    ratio: Ratio = None,
    duration: Duration = None,
    given: Input = None,
    input_file: InputFile = None,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Say what a job would cost; nothing is made."""
    wanted = _input(input_file, given, prompt=prompt, size=size, resolution=resolution, ratio=ratio, duration=duration)
    with _api(home, url, key) as client:
        priced = client.estimate(kind, model, wanted)
    if as_json:
        show.document(priced)
    else:
        show.OUT.print(show.price([campaign.price(priced)]))


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
    submit: "submit",
    watch_jobs: "watch",
    show_job: "show",
    list_jobs: "list",
    cancel: "cancel",
    estimate: "estimate",
    models: "models",
}


def _api(home: Path, url: str | None, key: str | None) -> AbstractContextManager[Client]:
    return reach.api(reach.door(home, url, key))


def _input(path: Path | None, given: list[str] | None, **named: Any) -> dict[str, Any]:
    """The file's fields, then --input's, then the options' own."""
    return {
        **(_read_input(path) if path else {}),
        **pairs(given, "--input"),
        **{name: value for name, value in named.items() if value is not None},
    }


def _read_input(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint="--input-file") from None
    if not isinstance(read, dict):
        raise typer.BadParameter(f"{path} is to hold an object", param_hint="--input-file")
    return read


def _rows(csv: Path | None, body: dict[str, Any], key: str | None) -> list[Row]:
    if csv:
        return campaign.read(csv, body, key)
    if not {"kind", "model"} <= body.keys():
        raise typer.BadParameter("a job has a KIND and a --model; many jobs come from a file: --csv")
    return [Row(1, body, key or "")]


def _print_price(client: Client, rows: Sequence[Row], as_json: bool) -> None:
    quote = campaign.quote(client, rows)
    if as_json:
        show.document({"jobs": len(rows), "cost": {"currency": "CNY", "estimated": str(quote.total)}})
    else:
        show.OUT.print(show.price(quote.prices))


def _ended(client: Client, jobs: Sequence[Job], quiet: bool) -> Sequence[Job]:
    """The jobs, once all have ended; watched on stderr until then, unless that is unwanted."""
    rounds = following.follow(client, [job["id"] for job in jobs])
    return watch.told(rounds, lambda _: None) if quiet else watch.watched(rounds, show.ERR)


def _fetch(client: Client, jobs: Sequence[Job], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        for path in following.fetch(client, job, folder):
            show.ERR.print(str(path), markup=False, soft_wrap=True)


def _print_submitted(jobs: Sequence[Job], many: bool, as_json: bool) -> None:
    if as_json:
        show.document(list(jobs) if many else jobs[0])
    elif many:
        show.OUT.print(show.jobs(jobs))
    else:
        show.OUT.print(jobs[0]["id"])
