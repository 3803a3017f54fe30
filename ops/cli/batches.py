"""`noria batch FILE`: a file of jobs, checked, priced, agreed to and followed; `noria batches`: those that there are.

The server reads the file. This side reads it too, for the names of local files, which are uploaded first. Interrupted,
a batch goes on at the server; the same file again makes nothing twice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from api.client import Client, fault_in_words
from ops.cli import files, following, show
from ops.cli.files import Uploads
from ops.cli.reach import Api, command, spread
from ops.cli.submit import Labels, Model, NotAfter, given_input
from ops.local.supervise import LocalError
from worker.batches import files as batch_files

_PAUSE = 1.0  # seconds between two looks at a batch
_FAULTS = 20  # that are shown; --json has a hundred, `noria batches export ID errors.jsonl` all
_EXPORTS = ("report.csv", "results.jsonl", "errors.jsonl")
_BAR = 40  # columns

Batch = Mapping[str, Any]  # as the API shows it

app = typer.Typer()
batches = typer.Typer(invoke_without_command=True)

Which = Annotated[str, typer.Argument(metavar="BATCH", help="Its id.")]


class NotSubmitted(LocalError):
    """Nobody agreed, or the file has faults: nothing was made."""

    exit_code = 5


@dataclass(frozen=True)
class Terms:
    """Options that say what is agreed to, and what is done then."""

    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows with faults; the rest is made.")] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and price, make nothing; local files are uploaded.")
    ] = False
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait until it is complete.")] = False
    download: Annotated[
        Path | None, typer.Option(file_okay=False, help="Download the outputs into this folder at the end.")
    ] = None


@command(app)
def batch(
    *,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A CSV, JSONL or JSON file.")],
    kind: Annotated[str | None, typer.Option(help="Of the rows that name none.")] = None,
    model: Model = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="For rows that leave this field out.")
    ] = None,
    labels: Labels,
    not_after: NotAfter = None,
    name: Annotated[str | None, typer.Option(help="Of the batch. Default: the file's.")] = None,
    webhook: Annotated[str | None, typer.Option(help="Where the batch's completion is reported.")] = None,
    repeat: Annotated[
        str | None, typer.Option(metavar="WORD", help="Make equal rows once more: another word for each time.")
    ] = None,
    terms: Terms,
    api: Api,
) -> None:
    """Submit many jobs, one for each row of a file.

    The file is checked whole and priced before anything is made; then it asks, submits, and shows how it goes. Columns
    are fields of the input, or kind, model, custom_id, priority, webhook_url, review, not_after and metadata.NAME. The
    same file again makes nothing twice, and after an edit only the edited rows are new.

    A field that takes a link (img_url, last_frame_url, audio_url) may name a local file, relative to FILE.
    """
    defaults = {"kind": kind, "model": model, "not_after": not_after, "input": given_input(given)} | labels.fields()
    said = {"name": name, "repeat": repeat, "webhook_url": webhook, "defaults": _told(defaults)}
    with api.client() as client:
        draft = _draft(client, file, _told(said))
        if not api.as_json:
            show.ERR.print(report(draft))
        made = _agreed(client, draft, terms, api)
        if made is not None and not terms.detach:
            made = _followed(client, made["id"], api)
        if made is not None and terms.download:
            done = client.jobs(batch=made["id"], state="succeeded", limit=100)
            following.download(client, done, terms.download)
    _end(made or draft, terms, api)


@spread
def list_batches(
    *,
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 20,
    api: Api,
) -> None:
    """List batches, look at one, pause, resume or cancel it, make again what failed.

    Without a command: list them, the newest first.
    """
    if context.invoked_subcommand is None:
        with api.client() as client:
            found = show.plain_all(islice(client.batches(), limit))
        api.answer(found, _listed(found), "No batches.")


batches.callback()(list_batches)


@command(batches, "show")
def show_batch(*, which: Which, api: Api) -> None:
    """Show a batch: its counts, what it cost, when it ends, and what was wrong with its rows."""
    with api.client() as client:
        found = client.batch(which).as_json()
    api.answer(found, Group(progress(found, show.OUT), "", report(found)))


@command(batches)
def watch(*, which: Which, api: Api) -> None:
    """Follow a batch until it is complete; exit code 1 if a job did not succeed."""
    with api.client() as client:
        found = _followed(client, which, api)
    _end(found, Terms(), api)


@command(batches)
def pause(*, which: Which, api: Api) -> None:
    """Let no further job of a batch be sent; what is at the provider goes on."""
    _change(which, "pause", api)


@command(batches)
def resume(*, which: Which, api: Api) -> None:
    """Let a paused batch go on."""
    _change(which, "resume", api)


@command(batches)
def cancel(*, which: Which, api: Api) -> None:
    """Cancel a batch: what has not been sent ends unpaid, what is at the provider is billed."""
    _change(which, "cancel", api)


@command(batches)
def retry(
    *,
    which: Which,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many and what it costs; make nothing.")] = False,
    api: Api,
) -> None:
    """Make again what failed, expired or was canceled."""
    with api.client() as client:
        plan = client.retry_failed(which, dry_run=True).as_json()
        if not api.as_json:
            show.ERR.print(_retried(plan), markup=False)
        if plan["outcomes"].get("retried") and not dry_run:
            if why := _declined("Make them again?", yes):
                raise NotSubmitted(why)
            plan = client.retry_failed(which).as_json()
    api.answer(plan, "")


@command(batches)
def export(
    *,
    which: Which,
    what: Annotated[str, typer.Argument(help="report.csv, results.jsonl or errors.jsonl.")] = "report.csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: a file of that name here.")] = None,
    api: Api,
) -> None:
    """Write what became of each row into a file."""
    if what not in _EXPORTS:
        raise typer.BadParameter(f"is one of {', '.join(_EXPORTS)}", param_hint="WHAT")
    path = output or Path(what)
    draft = path.with_name(f"{path.name}.part")
    try:
        with api.client() as client, draft.open("wb") as file:
            client.export(which, what, file)
        draft.replace(path)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        draft.unlink(missing_ok=True)
    api.answer({"file": str(path)}, str(path))


def report(found: Batch) -> RenderableType:
    """What was found before anything was spent: faults, rows by kind and model, price and time."""
    said, rows = found["report"], found["rows"]
    parts: list[RenderableType] = []
    faults = [fault_in_words(fault) for fault in said["faults"][:_FAULTS]]
    if more := said["faults_total"] - len(faults):
        by_code = ", ".join(f"{count:,} {code}" for code, count in said["faults_by_code"].items())
        faults.append(f"… and {more:,} more. In all: {by_code}")
    parts += [Text(line, style="red") for line in faults]
    parts += [Text(f"Warning: {warning['message']}", style="yellow") for warning in said["warnings"]]
    table = show.table("rows", "kind", "model", "CNY", "time", right=["rows", "CNY", "time"], wide=["model"])
    for group in said["groups"]:
        show.row(table, f"{group['rows']:,}", group["kind"], group["model"], _price(group), _span(group["seconds"]))
    if said["groups"]:
        parts.append(table)
    counts = (("bad", "with faults"), ("existing", "there already"), ("skipped", "left out"))
    rest = [f"{rows[word]:,} {meaning}" for word, meaning in counts if rows[word]]
    if not rows["existing"] and said["existing"]:
        rest.append(f"{said['existing']:,} there already")
    about = f"{found['name']}: {show.count(rows['total'], 'row')}{''.join(f', {each}' for each in rest)}"
    new = f"{_sum(said)}, about {_span(said['seconds']) or 'an unknown time'}" if said["groups"] else "nothing to make"
    parts.append(Text(f"{about}; {new}"))
    return Group(*parts)


def progress(found: Batch, console: Console) -> RenderableType:
    """A bar, the counts by state, the money, and when it ends; lines that fit the console."""
    jobs, cost = found["jobs"], found["cost"]
    if jobs is None:
        return Text(f"{found['name']}: a draft, forgotten at {found['expires_at']}")
    ended = jobs["total"] - jobs["unfinished"] + (found["review"]["waiting"] if found["review"] else 0)
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(jobs["total"], 1), completed=ended, width=min(_BAR, console.width // 2))
    line.add_row(bar, f"{ended:,} of {jobs['total']:,}", _when(found))
    states = "  ".join(f"{show.state(state)} {count:,}" for state, count in jobs["by_state"].items())
    money = f"{show.money(Decimal(cost['actual']))} so far, {show.money(Decimal(cost['to_come']))} to come"
    return Group(line, Text.from_markup(states or "no jobs"), Text(f"{money}{_reviewed(found)}", style="dim"))


def _draft(client: Client, path: Path, said: dict[str, Any]) -> dict[str, Any]:
    """The draft of the file, with the local files that its rows name."""
    with path.open("rb") as file:
        _, rows = batch_files.read(file, path.name, "")
        bodies = ((row.line, row.body) for row in rows if row.body)
        if keys := files.keys_of(Uploads(client), bodies, path.parent):
            said = {**said, "files": keys}
        return client.make_batch(path.name, file, said).as_json()


def _agreed(client: Client, draft: Batch, terms: Terms, api: Api) -> dict[str, Any] | None:
    """The batch, committed; None where it was only to be checked. Raises NotSubmitted where it is not to be made."""
    why = _refusal(draft, terms)
    if terms.dry_run or why:
        client.delete_batch(draft["id"])
    if why:
        if api.as_json:
            show.document(draft)
        raise NotSubmitted(why)
    return None if terms.dry_run else client.commit_batch(draft["id"], terms.skip_bad).as_json()


def _refusal(draft: Batch, terms: Terms) -> str:
    """Why the draft is not committed; nothing where it is."""
    if draft["rows"]["bad"] and not terms.skip_bad:
        return "Nothing was made: mend these rows, or leave them out with --skip-bad."
    costs_nothing = terms.dry_run or not draft["report"]["groups"]
    return "" if costs_nothing else _declined("Make them?", terms.yes)


def _declined(question: str, yes: bool) -> str:
    """Why a person did not agree; nothing where one did."""
    if yes:
        return ""
    if not sys.stdin.isatty():
        return "Nothing was made: it asks first, and there is nobody to ask: give --yes."
    try:
        return "" if typer.confirm(question, err=True) else "Nothing was made."
    except typer.Abort:  # Ctrl-C or Ctrl-D
        show.ERR.print()
        return "Nothing was made."


def _followed(client: Client, batch_id: str, api: Api) -> dict[str, Any]:
    """The batch once it is complete, or waits for people alone; shown on the way."""
    rounds, last = _looks(client, batch_id), {}
    try:
        if api.as_json or not show.ERR.is_terminal:
            tell = (lambda _: None) if api.as_json else _teller()
            for last in rounds:
                tell(last)
            return last
        with Live(console=show.ERR, auto_refresh=False) as live:
            for last in rounds:
                live.update(progress(last, show.ERR), refresh=True)
    except KeyboardInterrupt:
        show.ERR.print(f"It goes on without you: noria batches watch {batch_id}", soft_wrap=True)
        raise
    return last


def _looks(client: Client, batch_id: str) -> Iterator[dict[str, Any]]:
    while True:
        found = client.batch(batch_id).as_json()
        yield found
        if found["state"] in ("completed", "draft") or _waits_for_people(found):
            return
        time.sleep(_PAUSE)


def _waits_for_people(found: Batch) -> bool:
    """Whether nothing but reviews is left to be done."""
    waiting = found["review"]["waiting"] if found["review"] else 0
    return bool(0 < waiting == found["jobs"]["unfinished"])


def _teller() -> Callable[[Batch], None]:
    """Says a line for each change of the counts."""
    said: list[str] = []

    def tell(found: Batch) -> None:
        states = ", ".join(f"{count:,} {state}" for state, count in found["jobs"]["by_state"].items()) or "no jobs"
        if said[-1:] != [states]:
            said.append(states)
            show.ERR.print(f"{states}; {show.money(Decimal(found['cost']['actual']))} so far", markup=False)

    return tell


def _end(found: Batch, terms: Terms, api: Api) -> None:
    """The answer of a command, and its exit code."""
    api.answer(found, "" if terms.dry_run else found["id"])
    if found["rows"]["existing"] and not found["rows"]["made"]:
        words = "Each row has a job already, so none was made; with --repeat WORD all are made once more."
        show.ERR.print(words, soft_wrap=True)
    if found["jobs"] is None or terms.detach:
        return
    if _waits_for_people(found):
        waiting = found["review"]["waiting"]
        words = f"{show.count(waiting, 'job')} to be looked at: noria review --batch {found['id']}"
        show.ERR.print(words, soft_wrap=True)
        return
    missed = {state: n for state, n in found["jobs"]["by_state"].items() if state not in ("succeeded", "rejected")}
    if missed:
        raise typer.Exit(1)


def _change(which: str, action: Any, api: Api) -> None:
    with api.client() as client:
        found = client.change_batch(which, action).as_json()
    api.answer(found, progress(found, show.OUT))


def _listed(found: Sequence[Batch]) -> RenderableType:
    rows = (
        (each["id"], escape(each["name"]), each["state"], _counted(each), show.plain(each["created_at"]))
        for each in found
    )
    return show.filled(rows, "id", "name", "state", "ended", "made (UTC)", right=["ended"], wide=["name"])


def _counted(found: Batch) -> str:
    jobs = found["jobs"]
    return "" if jobs is None else f"{jobs['total'] - jobs['unfinished']:,}/{jobs['total']:,}"


def _when(found: Batch) -> str:
    if found["state"] != "running":
        return str(found["state"])
    if _waits_for_people(found):
        return "waits for reviews"
    if found["finish_at"] is None:
        return "end not known"
    left = (show.at(found["finish_at"]) - show.now()).total_seconds()
    return f"about {show.seconds(left)} left" if left >= 1 else "the last ends any moment"


def _reviewed(found: Batch) -> str:
    review = found["review"]
    if review is None:
        return ""
    kept = f", ¥{review['cost_per_approved']} each" if review["cost_per_approved"] else ""
    return f"; {review['waiting']:,} to review, {review['approved']:,} kept{kept}, {review['rejected']:,} rejected"


def _retried(plan: Mapping[str, Any]) -> str:
    outcomes = dict(plan["outcomes"])
    again = outcomes.pop("retried", 0)
    rest = "".join(f", {count:,} left out ({why})" for why, count in outcomes.items())
    return f"{show.count(again, 'job')}, ¥{plan['cost']['estimated']}{rest}"


def _price(group: Mapping[str, Any]) -> str:
    known = group["cost"] or "?"
    return f"{known} + {group['unpriced']} unknown" if group["unpriced"] and group["cost"] else known


def _sum(said: Mapping[str, Any]) -> str:
    known = show.money(Decimal(said["cost"])) if said["cost"] is not None else "no known price"
    return f"{known} and {said['unpriced']:,} without a known price" if said["unpriced"] and said["cost"] else known


def _span(seconds: float | None) -> str:
    return "" if seconds is None else show.seconds(seconds)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, {}, [])}
