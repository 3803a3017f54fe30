"""The commands that say what to make: `submit` and `estimate`. They talk to the API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import Client
from ops.cli import campaign, following, show, uploads, watch
from ops.cli.campaign import Row
from ops.cli.following import Job
from ops.cli.options import Home, Json, Key, Url, pairs
from ops.cli.uploads import Uploads
from ops.doctor import reach
from worker.kinds import OFFERED
from worker.kinds.reading import decoding

Model = Annotated[
    str | None,
    typer.Option(help="The provider's model or an alias; `noria models` lists them. Some kinds choose one themselves."),
]
Kind = Annotated[
    str | None,
    typer.Argument(help=f"{', '.join(OFFERED)}."),
]
Prompt = Annotated[str | None, typer.Option(help="What happens in it, in any language.")]
Size = Annotated[str | None, typer.Option(help="Width and height: 1280*720.")]
Resolution = Annotated[str | None, typer.Option(help="Of models that take no size: 720P.")]
Ratio = Annotated[str | None, typer.Option(help="With --resolution: 16:9.")]
Duration = Annotated[int | None, typer.Option(help="Seconds.")]
Image = Annotated[str | None, typer.Option(metavar="FILE|LINK", help="The picture that a clip begins with.")]
TextFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="What is to be spoken; of .md without its Markdown.")
]
Documents = Annotated[
    list[Path] | None, typer.Option(exists=True, help="What is to be summarised: a file, or all of a folder's.")
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME=VALUE", help="Any other field of the input: text, true, false, or JSON."),
]
InputFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file with the input.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands under `noria`."""
    app.command()(submit)
    app.command()(estimate)


def submit(
    kind: Kind = None,
    model: Model = None,
    prompt: Prompt = None,
    size: Size = None,
    resolution: Resolution = None,
    ratio: Ratio = None,
    duration: Duration = None,
    image: Image = None,
    text_file: TextFile = None,
    documents: Documents = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and price only; local files are uploaded.")] = False,
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

    Where a field takes a link (img_url, last_frame_url, audio_url) it may name a file here, in a CSV relative to the
    CSV. Each file is uploaded once.
    """
    wanted = _input(input_file, given, prompt=prompt, size=size, resolution=resolution, ratio=ratio, duration=duration)
    wanted |= _texts(img_url=image) | _spoken(text_file, wanted)
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
    with reach.api(reach.door(home, url, key)) as client:
        rows = _uploaded(client, rows, csv, documents, idempotency_key)
        if dry_run:
            _print_price(client, rows, as_json)
            return
        if csv:
            show.ERR.print(show.price(campaign.quote(client, rows).prices))
        jobs: Sequence[Job] = [client.submit(row.body, row.key or None) for row in rows]
        show.warnings(campaign.warnings(jobs))
        if wait or download:
            jobs = _ended(client, jobs, quiet=as_json)
        if download:
            _fetch(client, jobs, download)
    _print_submitted(jobs, many=csv is not None, as_json=as_json)
    if (wait or download) and not following.succeeded(jobs):
        raise typer.Exit(1)


def estimate(
    kind: Annotated[str, typer.Argument(help="What to make.")],
    model: Annotated[str, typer.Option(help="The provider's model or an alias.")],
    prompt: Prompt = None,
    size: Size = None,
    resolution: Resolution = None,
    ratio: Ratio = None,
    duration: Duration = None,
    text_file: TextFile = None,
    given: Input = None,
    input_file: InputFile = None,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Say what a job would cost; nothing is made."""
    wanted = _input(input_file, given, prompt=prompt, size=size, resolution=resolution, ratio=ratio, duration=duration)
    wanted |= _spoken(text_file, wanted)
    with reach.api(reach.door(home, url, key)) as client:
        priced = client.estimate(kind, model, wanted)
    if as_json:
        show.document(priced)
    else:
        show.OUT.print(show.price([campaign.price(priced)]))
        show.warnings(campaign.warnings([priced]))


def _input(path: Path | None, given: list[str] | None, **named: Any) -> dict[str, Any]:
    """The file's fields, then --input's, then the options' own."""
    said = {name: _value(value) for name, value in pairs(given, "--input").items()}
    return {**(_read_input(path) if path else {}), **said, **_texts(**named)}


def _value(text: str) -> Any:
    """What a shell can only write as text: true, false, a list or an object are taken for what they are."""
    if text in ("true", "false") or text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _texts(**named: Any) -> dict[str, Any]:
    return {name: value for name, value in named.items() if value is not None}


def _read_input(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint="--input-file") from None
    if not isinstance(read, dict):
        raise typer.BadParameter(f"{path} is to hold an object", param_hint="--input-file")
    return read


def _spoken(path: Path | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The file's text, read as documents are; that it is Markdown, if its name says so and nobody else anything."""
    if path is None:
        return {}
    text = decoding.decoded(path.read_bytes())
    if text is None or "\ufffd" in text:
        raise typer.BadParameter(
            f"{path} is no text, or damaged, or in no encoding that can be told", param_hint="--text-file"
        )
    is_markdown = path.suffix.lower() in (".md", ".markdown") and "markup" not in wanted
    return {"text": text, **({"markup": "markdown"} if is_markdown else {})}


def _rows(csv: Path | None, body: dict[str, Any], key: str | None) -> list[Row]:
    if csv:
        return campaign.read(csv, body, key)
    if "kind" not in body:
        raise typer.BadParameter("a job has a KIND; many jobs come from a file: --csv")
    return [Row(1, body, key or "")]


def _uploaded(
    client: Client, rows: list[Row], csv: Path | None, documents: list[Path] | None, key: str | None
) -> list[Row]:
    """The rows with keys in place of the files that they name."""
    given = Uploads(client)
    if documents:
        found = {"documents": uploads.documents(given, documents)}
        show.left_out(given.left_out)
        rows = [replace(row, body={**row.body, "input": row.body["input"] | found}) for row in rows]
    bodies = uploads.placed(given, rows, csv.parent if csv else Path())
    if csv:
        return campaign.keyed(bodies, key)
    return [Row(line, body, key or "") for line, body in bodies]


def _print_price(client: Client, rows: Sequence[Row], as_json: bool) -> None:
    quote = campaign.quote(client, rows)
    if as_json:
        cost = {"currency": "CNY", "estimated": str(quote.total)}
        show.document({"jobs": len(rows), "cost": cost, "warnings": quote.warnings})
    else:
        show.OUT.print(show.price(quote.prices))
        show.warnings(quote.warnings)


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
