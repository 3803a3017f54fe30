"""What people read: the two consoles, plain tables that fit 80 columns, and the words and numbers in them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from api.document import Document

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
_TIME = re.compile(r"\d{4}-\d\d-\d\dT")
_COLOURS = {
    "succeeded": "green",
    "awaiting_review": "magenta",
    "rejected": "yellow",
    "failed": "red",
    "expired": "red",
    "canceled": "yellow",
    "held": "yellow",
    "uncertain": "yellow",
    "running": "cyan",
    "copying": "blue",
}
_SEGMENTS, _VOICE, _BEGINNING = 10, 20, 65  # of a narration: segments shown, columns of a voice, and with a text's

Job = Mapping[str, Any]  # as the API shows it


def plain_all(found: Iterable[Document]) -> list[dict[str, Any]]:
    """The answers as JSON has them."""
    return [each.as_json() for each in found]


def answer(as_json: bool, value: object, shown: RenderableType, nothing: str = "") -> None:
    """What a command found, on stdout: a JSON document, or what is shown; of nothing only a sentence on stderr."""
    if as_json:
        document(value)
    elif nothing and not value:
        ERR.print(nothing)
    elif isinstance(shown, str):
        if shown:
            OUT.print(shown, markup=False, soft_wrap=True)
    else:
        OUT.print(shown)


def document(value: object) -> None:
    """One JSON document on stdout."""
    print(_json(value, indent=2), flush=True)  # `noria up` stays after it: whoever reads a pipe must get it


def line(value: object) -> None:
    """One line of JSON on stdout, at once."""
    print(_json(value, indent=None), flush=True)


def sayer(console: Console) -> Callable[[str], None]:
    """Says lines as they are: what a process wrote may have brackets in it."""
    return partial(console.print, markup=False, soft_wrap=True)


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


def filled(
    rows: Iterable[Sequence[str | None]], *columns: str, right: Iterable[str] = (), wide: Iterable[str] = ()
) -> Table:
    """A table with its rows."""
    made = table(*columns, right=right, wide=wide)
    for cells in rows:
        row(made, *cells)
    return made


def grid(facts: Mapping[str, object]) -> Table:
    """A name and its value a line; those without a value are left out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            made.add_row(name, escape(str(value)))
    return made


def short_row(rows: Table, *cells: str) -> None:
    """One line of a table, cut with an ellipsis where it must be, never broken into several."""
    shown = [Text.from_markup(cell, overflow="ellipsis") for cell in cells]
    for text in shown:
        text.no_wrap = True
    rows.add_row(*shown)


def warnings(found: Iterable[Mapping[str, Any]]) -> None:
    """Say on stderr what the API warns of."""
    for warning in found:
        ERR.print(f"Warning: {warning['message']}", markup=False, soft_wrap=True)


def name(job: Job) -> str:
    """What its owner calls it, or the part of its id that tells it from its neighbours."""
    return str(job["custom_id"] or f"…{job['id'][-8:]}")


def state(word: str) -> str:
    """A state, in its colour."""
    return f"[{_COLOURS.get(word, 'default')}]{word}[/]"


def count(number: int, noun: str) -> str:
    """`1 job`, `12 jobs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


def estimated(document: Mapping[str, Any]) -> Decimal | None:
    """The estimate of a job or of a dry run, CNY; None: no price is known."""
    amount = document["cost"]["estimated"]
    return None if amount is None else Decimal(amount)


def price(prices: Sequence[Decimal | None]) -> str:
    """`12 jobs, ¥27.40`, and how many have no known price."""
    known = [amount for amount in prices if amount is not None]
    unknown = len(prices) - len(known)
    return f"{count(len(prices), 'job')}, {money(sum(known, Decimal(0)))}" + (
        f" and {unknown} without a known price" if unknown else ""
    )


def segments(cut: Mapping[str, Any] | None) -> str:
    """How a narration would be cut: ` in 334 segments`, and the first ones, a line each; nothing of another job."""
    if cut is None:
        return ""
    first = cut["first"][:_SEGMENTS]
    width = min(max((cell_len(each["voice"]) for each in first), default=0), _VOICE)
    lines = [
        f"{n:4}  {each['characters']:>5,}  {set_cell_size(_short(each['voice'], width), width)}  "
        + _short(each["text"], _BEGINNING - width)
        for n, each in enumerate(first, 1)
    ]
    left = cut["total"] - len(lines)
    return "\n".join([f", in {count(cut['total'], 'segment')}", *lines, *([f"and {left:,} more"] if left else [])])


def _short(text: str, columns: int) -> str:
    """The text in one line, cut with an ellipsis where it is wider."""
    line = " ".join(text.split())
    return line if cell_len(line) <= columns else set_cell_size(line, columns - 1) + "…"


def at(moment: str) -> datetime:
    """A time of the API's."""
    return datetime.fromisoformat(moment)


def now() -> datetime:
    """The time here."""
    return datetime.now(UTC)


def timed(events: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float | None]]:
    """Each event, and how many seconds the job stayed in its state; None for the last."""
    times = [at(event["at"]) for event in events]
    stays = [(after - before).total_seconds() for before, after in itertools.pairwise(times)]
    return list(zip(events, [*stays, None], strict=True))


def plain(value: object) -> str:
    """A value in a cell: nothing for None, a time to the minute."""
    text = "" if value is None else str(value)
    return escape(text[:16].replace("T", " ") if _TIME.match(text) else text)


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


def _json(value: object, indent: int | None) -> str:
    """JSON whose characters are themselves, but for those that a terminal obeys."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
