"""The commands that make jobs: `submit` and `estimate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import Client
from ops.cli import files, following, show
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
NotAfter = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="What is not sent by then ends unpaid: 2026-12-01T06:00:00+08:00."),
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
        made |= given_input(self.given)
        named = {"img_url": self.image, "prompt": self.prompt, "size": self.size, "duration": self.duration}
        named |= {"resolution": self.resolution, "ratio": self.ratio}
        made |= {name: value for name, value in named.items() if value is not None}
        return made | _spoken(self.text_file, made)


@dataclass(frozen=True)
class Labels:
    """Options that say of a job how it is found, when its turn comes, and who is told."""

    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label to find the job by; may be repeated.")
    ] = None
    priority: Annotated[str | None, typer.Option(help="high, normal or low.")] = None
    webhook_url: Annotated[str | None, typer.Option(help="Where the job's end is reported.")] = None
    review: Annotated[bool, typer.Option("--review", help="The outputs wait until a person has seen them.")] = False

    def fields(self) -> dict[str, Any]:
        """The fields that were given."""
        given = {
            "metadata": pairs(self.metadata, "--metadata") or None,
            "priority": self.priority,
            "webhook_url": self.webhook_url,
            "review": "required" if self.review else None,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class OneLabels(Labels):
    """The same of one job alone, which may have an id of its user's."""

    custom_id: Annotated[str | None, typer.Option(help="Your own id for the job.")] = None

    def fields(self) -> dict[str, Any]:
        """The fields that were given."""
        return super().fields() | ({} if self.custom_id is None else {"custom_id": self.custom_id})


@dataclass(frozen=True)
class Afterwards:
    """Options that say what is done once jobs are submitted, or instead of it."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and price, submit nothing; local files are uploaded.")
    ] = False
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it has ended; exit code 1 if it did not succeed.")
    ] = False
    download: Annotated[
        Path | None, typer.Option(file_okay=False, help="Wait, and download the outputs into this folder.")
    ] = None


@command(app)
def submit(
    *,
    kind: Annotated[str, typer.Argument(help=f"{', '.join(OFFERED)}.")],
    model: Model = None,
    wanted: Input,
    documents: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", exists=True, help="Documents to summarise: a file, or a folder with files."),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", exists=True, dir_okay=False, help="Texts to embed: JSONL, or one on each line."),
    ] = None,
    labels: OneLabels,
    idempotency_key: Annotated[str | None, typer.Option(help="Makes a repetition safe.")] = None,
    not_after: NotAfter = None,
    cache_days: Annotated[
        int | None, typer.Option(min=0, help="Of a text: an equal call's answer of so many days will do; 0: none.")
    ] = None,
    afterwards: Afterwards,
    api: Api,
) -> None:
    """Submit a job; many at once come from a file: `noria batch`.

    A field that takes a link (img_url, last_frame_url, audio_url) may name a local file.
    """
    given = {"model": model, "not_after": not_after, "cache_days": cache_days}
    said = {name: value for name, value in given.items() if value is not None}
    body = {"kind": kind, **said, "input": wanted.fields(), **labels.fields()}
    with api.client() as client:
        whole = _uploaded(client, body, documents, texts)
        if afterwards.dry_run:
            _price(client.dry_run(whole).as_json(), api)
        else:
            _submit(client, whole, idempotency_key, afterwards, api)


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
        body = {"kind": kind, "model": model, "input": wanted.fields()}
        _price(client.dry_run(files.placed(Uploads(client), body)).as_json(), api)


def given_input(given: list[str] | None) -> dict[str, Any]:
    """The fields of --input."""
    return {name: _value(value) for name, value in pairs(given, "--input").items()}


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


def _uploaded(
    client: Client, body: dict[str, Any], documents: list[Path] | None, texts: list[Path] | None
) -> dict[str, Any]:
    """The body with keys in place of the local files that it names."""
    uploads = Uploads(client)
    if texts:
        body = {**body, "input": body["input"] | {"texts": [{"key": uploads.key(path)} for path in texts]}}
    if documents:
        body = {**body, "input": body["input"] | {"documents": files.documents(uploads, documents)}}
        files.say_left_out(uploads)
    return files.placed(uploads, body)


def _price(priced: Mapping[str, Any], api: Api) -> None:
    api.answer(priced, show.price([show.estimated(priced)]) + show.segments(priced["segments"]))
    if not api.as_json:
        show.warnings(priced["warnings"])
        if priced["state"] == "held":
            show.ERR.print("It would be held: a budget has no room for it now.", style="yellow")


def _submit(client: Client, body: Mapping[str, Any], key: str | None, afterwards: Afterwards, api: Api) -> None:
    job: Job = client.submit(body, key).as_json()
    show.warnings(job["warnings"])
    waits = afterwards.wait or afterwards.download is not None
    if waits:
        rounds = following.follow(client, [job["id"]])
        [job] = following.told(rounds, lambda _: None) if api.as_json else following.watched(rounds, show.ERR)
    if afterwards.download:
        following.download(client, [client.job(job["id"])], afterwards.download)
    api.answer(job, job["id"])
    if waits and not following.succeeded([job]):
        raise typer.Exit(1)
