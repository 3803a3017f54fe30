"""What a person sees: tables that fit 80 columns, and one place for the words in them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ops.cli.following import Job, at
from worker.kinds import OFFERED

# What a terminal may obey, or cannot be written: control characters but line ends, marks that turn the reading
# direction, and halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Plain(Console):
    """A console on which no text moves the cursor, whoever wrote it: jobs, receivers and the provider among them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is about to be written, with a mark in place of each character that a terminal would obey."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_OBEYED.sub("\ufffd", segment.text), segment.style)


OUT = _Plain(highlight=False)
ERR = _Plain(stderr=True, highlight=False)
_UNITS = {"seconds": "s", "images": "image", "input_tokens": "in", "characters": "chars"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT")
_COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "expired": "red",
    "canceled": "yellow",
    "held": "yellow",
    "uncertain": "yellow",
    "running": "cyan",
    "copying": "blue",
}

_LISTED = 20  # files that are left out

OUTCOMES = {
    "canceled": "nothing was sent, nothing is billed",
    "requested": "it is being seen to: what has not started is dropped, what runs is billed",
    "too_late": "it runs on and is billed; it ends as if nothing had been asked",
    "already_finished": "it had ended before",
}


def document(value: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(_json(value, indent=2) + "\n")


def line(value: object) -> None:
    """One line of JSON on stdout, at once."""
    print(_json(value, indent=None), flush=True)


def sayer(console: Console) -> Callable[[str], None]:
    """Says lines as they are: what a process wrote may have brackets in it."""
    return partial(console.print, markup=False, soft_wrap=True)


def left_out(files: Sequence[str]) -> None:
    """Says which files of a folder are no part of the job, and why."""
    more = [f"and {len(files) - _LISTED:,} more"] if len(files) > _LISTED else []
    for each in [*files[:_LISTED], *more]:
        ERR.print(f"left out: {each}", markup=False, soft_wrap=True)


def table(*columns: str, right: Iterable[str] = (), wide: Iterable[str] = ()) -> Table:
    """A plain table; `right` are numbers, and only those in `wide` give way where the terminal is narrow."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="bold")
    for name in columns:
        justify: JustifyMethod = "right" if name in right else "left"
        made.add_column(name, justify=justify, no_wrap=name not in wide, overflow="fold")
    return made


def row(rows: Table, *cells: str | None, style: str | None = None) -> None:
    """A row of a table: whole, in several lines where it must be; nothing for None."""
    rows.add_row(*(Text.from_markup(cell or "") for cell in cells), style=style)


def short_row(rows: Table, *cells: str) -> None:
    """One line of a table, cut with an ellipsis where it must be, never broken into several."""
    shown = [Text.from_markup(cell, overflow="ellipsis") for cell in cells]
    for text in shown:
        text.no_wrap = True
    rows.add_row(*shown)


def jobs(found: Sequence[Job]) -> RenderableType:
    """A list of jobs, one a line, with the id that the other commands take."""
    rows = table("id", "custom", "model", "state", "CNY", right=["CNY"], wide=["custom", "model"])
    for job in found:
        row(rows, job["id"], escape(job["custom_id"] or ""), job["model"], state(job), cost(job))
    return rows


def children(found: Sequence[Job]) -> RenderableType:
    """A job's parts, one a line, in their order."""
    rows = table("part", "id", "makes", "state", "CNY", right=["part", "CNY"], wide=["makes"])
    for job in found:
        row(rows, f"{job['round']}.{job['place'] + 1}", job["id"], job["kind"], state(job), cost(job))
    return rows


def files(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A list of files, one a line, with the id that the other commands take."""
    rows = table("id", "name", "type", "size", right=["size"], wide=["name", "type"])
    for file in found:
        row(rows, file["id"], escape(file["name"]), file["content_type"], size(file["bytes"]))
    return rows


def progress(found: Sequence[Job], now: datetime, height: int) -> RenderableType:
    """Jobs on their way; those at work first where the terminal is too low for all."""
    rows = table("job", "model", "state", "for", "waits for", right=["for"], wide=["job", "model", "waits for"])
    shown = found
    if len(found) > height:
        shown = sorted(found, key=lambda job: (job["is_terminal"], job["state"] == "queued"))[:height]
    for job in shown:
        end = at(job["finished_at"]) if job["finished_at"] else now
        lasted = seconds((end - at(job["created_at"])).total_seconds())
        short_row(rows, escape(name(job)), job["model"], state(job), lasted, escape(waits_for(job)))
    return Group(rows, Text(counts(found), style="dim"))


def change(job: Job) -> str:
    """A job's new state in one line."""
    return f"{now():%H:%M:%S}  {escape(name(job))}  {job['model']}  {state(job)}  {escape(waits_for(job))}".rstrip()


def counts(found: Sequence[Job]) -> str:
    """`12 jobs: 3 queued, 9 succeeded`."""
    states = [str(job["state"]) for job in found]
    each = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    return f"{len(found)} {'job' if len(found) == 1 else 'jobs'}: {each}"


def models(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The catalog in short; prices are those of a model's first region."""
    rows = table("model", "makes", "seconds", "CNY", "per", wide=["per"])
    for model in found:
        lengths = sorted({*model["durations"][:1], *model["durations"][-1:]})
        row(
            rows,
            f"{model['id']}\n(ended: {model['successor']})" if model["retired"] else model["id"],
            "\n".join(kind for kind in model["kinds"] if kind in OFFERED),
            "-".join(map(str, lengths)),
            *_prices(model),
        )
    return rows


def warnings(found: Iterable[Mapping[str, Any]]) -> None:
    """Say on stderr what the API warns of."""
    for warning in found:
        ERR.print(f"Warning: {warning['message']}", markup=False, soft_wrap=True)


def name(job: Job) -> str:
    """What its owner calls it, or the part of its id that tells it from its neighbours."""
    return str(job["custom_id"] or f"…{job['id'][-8:]}")


def state(job: Job) -> str:
    """The state, in its colour."""
    colour = _COLOURS.get(job["state"], "default")
    return f"[{colour}]{job['state']}[/]"


def waits_for(job: Job) -> str:
    """Why nothing happens, or how it ended."""
    if job["error"]:
        return str(job["error"]["message"])
    if job["waiting_on"] is None:
        return ""
    position = job["waiting_on"]["position"]
    detail = str(job["waiting_on"]["detail"])
    return f"number {position}: {detail}" if position else detail


def cost(job: Job) -> str:
    """What it cost, or with a `~` what it will; `?` where no price is known."""
    if job["cost"]["actual"] is not None:
        return str(job["cost"]["actual"])
    if job["is_terminal"] and job["cost"]["billed"] == "no":
        return "0.00"
    return f"~{job['cost']['estimated']}" if job["cost"]["estimated"] is not None else "?"


def price(prices: Sequence[Decimal | None]) -> str:
    """`12 jobs, ¥27.40`, and how many have no known price."""
    known = [amount for amount in prices if amount is not None]
    unknown = len(prices) - len(known)
    jobs = f"{len(prices)} {'job' if len(prices) == 1 else 'jobs'}"
    return f"{jobs}, {money(sum(known, Decimal(0)))}" + (f" and {unknown} without a known price" if unknown else "")


def plain(value: object) -> str:
    """A value in a cell: nothing for None, a time to the minute."""
    text = "" if value is None else str(value)
    return escape(text[:16].replace("T", " ") if _TIME.match(text) else text)


def welcome(provider: str, pages: Mapping[str, str]) -> None:
    """What runs, where to look, and how to stop it."""
    OUT.print(f"Noria runs on {provider}.")
    for word, place in pages.items():
        OUT.print(f"  [bold]{word:8}[/]{escape(place)}", soft_wrap=True)
    OUT.print("Other terminals find it by themselves: `noria submit`, `noria list`. Ctrl-C stops it.")


def money(amount: Decimal) -> str:
    """¥ with at least two decimals."""
    return f"¥{amount:.2f}" if amount == round(amount, 2) else f"¥{amount.normalize():f}"


def seconds(span: float) -> str:
    """`0.4 s`, `12 s`, `3 m 20 s`, `2 h 05 m`."""
    if span < 10:
        return f"{span:.1f} s"
    whole = round(span)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def size(count: int) -> str:
    """Bytes as `834 B`, `12 kB`, `1.8 MB`."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def now() -> datetime:
    """This machine's time; for people only."""
    return datetime.now(UTC)


def _json(value: object, indent: int | None) -> str:
    """JSON whose characters are themselves, but for those that a terminal obeys."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _prices(model: Mapping[str, Any]) -> tuple[str, str]:
    """The first price row, a tier a line, `480P 0.30`; and per how many of what, `s`, `1M in` (tokens of the input)."""
    prices = next(iter(model["regions"].values()))["prices"]
    if not prices:
        return "?", ""
    first = prices[0]
    tiers = first["cny"] if isinstance(first["cny"], Mapping) else {"": first["cny"]}
    unit = _UNITS.get(first["unit"], first["unit"])
    return "\n".join(f"{tier} {Decimal(price):.2f}".strip() for tier, price in tiers.items()), _per(first["per"]) + unit


def _per(count: int) -> str:
    """`1M `, `10k `; nothing for one."""
    if count >= 1_000_000:
        return f"{count // 1_000_000}M "
    return f"{count // 1000}k " if count >= 1000 else ""
