"""The commands that make jobs: `submit` and `estimate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import Client
from ops.cli import campaign, files, following, show, tables
from ops.cli.campaign import Row
from ops.cli.files import Uploads
from ops.cli.reach import Api, command, pairs, read_object
from ops.cli.show import Job
from worker.kinds import OFFERED
from worker.kinds.reading import decoding

app = typer.Typer()

Model = Annotated[
    str | None,
    typer.Option(help="The provider's model or an alias; `noria models` lists them. Some kinds have a default."),
]
Kind = Annotated[
    str | None,
    typer.Argument(metavar="[KIND]", help=f"{', '.join(OFFERED)}."),
]


@dataclass(frozen=True)
class Input:
    """Options that make a job's input."""

    prompt: Annotated[str | None, typer.Option(help="What to show, in any language.")] = None
    size: Annotated[str | None, typer.Option(help="Width and height, like 1280*720.")] = None
    resolution: Annotated[str | None, typer.Option(help="For models that take no size, like 720P.")] = None
    ratio: Annotated[str | None, typer.Option(help="With --resolution, like 16:9.")] = None
    duration: Annotated[int | None, typer.Option(help="Seconds.")] = None
    image: Annotated[str | None, typer.Option(metavar="FILE|LINK", help="The picture that the clip begins with.")] = (
        None
    )
    text_file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The text to speak; the Markdown of an .md file is left out."),
    ] = None
    given: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=VALUE", help="Any other field of the input: text, true, false or JSON."),
    ] = None
    input_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file with the input.")
    ] = None

    def fields(self) -> dict[str, Any]:
        """The input: the fields of --input-file, then those of --input, then the other options."""
        made = read_object(self.input_file, "--input-file") if self.input_file else {}
        made |= {name: _value(value) for name, value in pairs(self.given, "--input").items()}
        named = {"img_url": self.image, "prompt": self.prompt, "size": self.size, "duration": self.duration}
        named |= {"resolution": self.resolution, "ratio": self.ratio}
        made |= {name: value for name, value in named.items() if value is not None}
        return made | _spoken(self.text_file, made)


@dataclass(frozen=True)
class Labels:
    """Options that say of a job how it is found, when its turn comes, and who is told."""

    custom_id: Annotated[str | None, typer.Option(help="Your own id for the job.")] = None
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label to find the job by; may be repeated.")
    ] = None
    priority: Annotated[str | None, typer.Option(help="high, normal or low.")] = None
    webhook_url: Annotated[str | None, typer.Option(help="Where the job's end is reported.")] = None

    def fields(self) -> dict[str, Any]:
        """The fields that were given."""
        given = {
            "custom_id": self.custom_id,
            "metadata": pairs(self.metadata, "--metadata") or None,
            "priority": self.priority,
            "webhook_url": self.webhook_url,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Afterwards:
    """Options that say what `submit` does once the jobs are submitted, or instead of it."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and price, submit nothing; local files are uploaded.")
    ] = False
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all have ended; exit code 1 if one did not succeed.")
    ] = False
    download: Annotated[
        Path | None, typer.Option(file_okay=False, help="Wait, and download the outputs into this folder.")
    ] = None


@command(app)
def submit(
    *,
    kind: Kind = None,
    model: Model = None,
    wanted: Input,
    documents: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", exists=True, help="Documents to summarise: a file, or a folder with files."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Submit many jobs: one for each row.")
    ] = None,
    labels: Labels,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes a repetition safe; the rows of a CSV have one of their own.")
    ] = None,
    afterwards: Afterwards,
    api: Api,
) -> None:
    """Submit a job, or with --csv many.

    A CSV is checked whole before anything is submitted, and its price is shown. Its columns are fields of the input, or
    kind, model, custom_id, priority, webhook_url and metadata.NAME. Submitting the same file again within 7 days makes
    nothing twice; after an edit only the edited rows are new. To make everything again, give an --idempotency-key.

    A field that takes a link (img_url, last_frame_url, audio_url) may name a local file, in a CSV relative to the CSV.
    """
    named = {name: value for name, value in {"kind": kind, "model": model}.items() if value is not None}
    body = {**named, "input": wanted.fields(), **labels.fields()}
    if not csv and kind is None:
        raise typer.BadParameter("a job needs a KIND; many jobs come from a file: --csv")
    rows = campaign.read(csv, body) if csv else [Row(1, body)]
    with api.client() as client:
        rows = _uploaded(client, rows, csv, documents)
        if afterwards.dry_run:
            _price(client, rows, api)
        else:
            keys = campaign.keys(rows, idempotency_key) if csv else [idempotency_key]
            _submit(client, rows, keys, csv is not None, afterwards, api)


@command(app)
def estimate(
    *,
    kind: Annotated[str, typer.Argument(help="What to make.")],
    model: Annotated[str, typer.Option(help="The provider's model or an alias.")],
    wanted: Input,
    api: Api,
) -> None:
    """Show what a job would cost; nothing is made.

    A local file that the input names is uploaded, as `noria submit --dry-run` does.
    """
    with api.client() as client:
        [row] = files.placed(
            Uploads(client), [Row(1, {"kind": kind, "model": model, "input": wanted.fields()})], Path()
        )
        priced = client.dry_run(row.body)
    api.answer(priced, show.price([campaign.price(priced)]))
    if not api.as_json:
        show.warnings(campaign.warnings([priced]))


def _value(text: str) -> Any:
    """A shell can only write text: true, false, a list and an object are read as what they are."""
    if text in ("true", "false") or text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _spoken(path: Path | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The file's text, decoded as documents are; of an .md file also that it is Markdown, unless `markup` is given."""
    if path is None:
        return {}
    text = decoding.decoded(path.read_bytes())
    if text is None or "\ufffd" in text:
        raise typer.BadParameter(f"{path} is no text, is damaged, or has an unknown encoding", param_hint="--text-file")
    is_markdown = path.suffix.lower() in (".md", ".markdown") and "markup" not in wanted
    return {"text": text, **({"markup": "markdown"} if is_markdown else {})}


def _uploaded(client: Client, rows: list[Row], csv: Path | None, documents: list[Path] | None) -> list[Row]:
    """The rows with keys in place of the local files that they name."""
    uploads = Uploads(client)
    if documents:
        found = {"documents": files.documents(uploads, documents)}
        files.say_left_out(uploads)
        rows = [Row(row.line, {**row.body, "input": row.body["input"] | found}) for row in rows]
    return files.placed(uploads, rows, csv.parent if csv else Path())


def _price(client: Client, rows: Sequence[Row], api: Api) -> None:
    quote = campaign.quote(client, rows)
    cost = {"currency": "CNY", "estimated": str(quote.total)}
    api.answer({"jobs": len(rows), "cost": cost, "warnings": quote.warnings}, show.price(quote.prices))
    if not api.as_json:
        show.warnings(quote.warnings)


def _submit(
    client: Client, rows: Sequence[Row], keys: Sequence[str | None], is_many: bool, afterwards: Afterwards, api: Api
) -> None:
    if is_many:
        show.ERR.print(show.price(campaign.quote(client, rows).prices))
    jobs: Sequence[Job] = [client.submit(row.body, key) for row, key in zip(rows, keys, strict=True)]
    show.warnings(campaign.warnings(jobs))
    waits = afterwards.wait or afterwards.download is not None
    if waits:
        rounds = following.follow(client, [job["id"] for job in jobs])
        jobs = following.told(rounds, lambda _: None) if api.as_json else following.watched(rounds, show.ERR)
    if afterwards.download:
        _download(client, jobs, afterwards.download)
    api.answer(jobs if is_many else jobs[0], tables.jobs(jobs) if is_many else jobs[0]["id"])
    if waits and not following.succeeded(jobs):
        raise typer.Exit(1)


def _download(client: Client, jobs: Sequence[Job], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        for path in following.fetch(client, job, folder):
            show.ERR.print(str(path), markup=False, soft_wrap=True)
