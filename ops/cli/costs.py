"""`noria costs`: what was used and what it cost, as a table with bars."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.bar import Bar
from rich.console import RenderableType

from ops.cli import show
from ops.cli.reach import Api, command

app = typer.Typer()

_DAYS = re.compile(r"([1-9]\d{0,3})d")
_BAR = 10  # characters of the longest
_NAMES = {"day": "begins_on", "week": "begins_on", "month": "begins_on"} | {
    "batch": "batch_id",
    "schedule": "schedule_id",
    "run": "fire_at",
}
_COUNTS = {
    "input_tokens": "tokens in",
    "cached_tokens": "cached",
    "output_tokens": "out",
    "seconds": "video s",
    "characters": "spoken",
    "images": "pictures",
}


@command(app)
def costs(
    *,
    by: Annotated[
        str, typer.Option(help="day, week, month, kind, model, batch, schedule, run, metadata.KEY; with commas.")
    ] = "day",
    since: Annotated[str | None, typer.Option(help="The first day: 2026-11-01, or 30d before today (default).")] = None,
    until: Annotated[str | None, typer.Option(help="The last day; default: today.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Only this schedule's id; with --by run its runs.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only this batch's id.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the groups as CSV.")] = None,
    api: Api,
) -> None:
    """Show what was used and what it cost, in groups."""
    asked = {"group_by": by, "since": _day(since), "until": _day(until), "schedule": schedule, "batch": batch}
    with api.client() as client:
        if csv is not None:
            csv.write_bytes(client.usage_csv(**asked))
        found = client.usage(**asked).as_json()
    api.answer(found, _table(found) if found["data"] else "Nothing was used in these days.")
    if csv is not None:
        show.ERR.print(f"The groups are in {csv}.", style="dim")
    if found["has_more"] and not api.as_json:
        show.ERR.print("There are more groups: narrow it.", style="dim")


def _day(said: str | None) -> str | None:
    """`30d` as the day with which thirty days begin."""
    if said is None:
        return None
    if found := _DAYS.fullmatch(said):
        return (date.today() - timedelta(days=int(found[1]) - 1)).isoformat()  # noqa: DTZ011 - a day as the user has it
    try:
        return date.fromisoformat(said).isoformat()
    except ValueError:
        raise typer.BadParameter(f"{said}: a day is written 2026-11-01, or 30d") from None


def _table(found: dict[str, Any]) -> RenderableType:
    """The groups with a bar for what each cost, known or not, and all of it; what nothing was used of is left out."""
    lines, total, groups = found["data"], found["total"], found["group_by"]
    counted = [name for name in _COUNTS if total[name]]
    has_unknown = float(total["unknown"]) > 0
    figures = ["CNY", *(["unknown"] if has_unknown else []), *(_COUNTS[name] for name in counted)]
    rows = show.table(
        *groups, "jobs", "", *figures, right=["jobs", *figures], wide=set(groups) - {"day", "week", "month", "run"}
    )
    dearest = max(_cost(line) for line in lines) or 1.0
    for line in [*lines, total]:
        is_total = line is total
        if is_total:
            rows.add_section()
        named = ["all", *[""] * (len(groups) - 1)] if is_total else [_name(line, group) for group in groups]
        bar = "" if is_total else Bar(dearest, 0, _cost(line), width=_BAR)
        amounts = [_shown(line["settled"]), *([_shown(line["unknown"])] if has_unknown else [])]
        rows.add_row(
            *named,
            f"{line['jobs']:,}",
            bar,
            *amounts,
            *(f"{line[name]:,.0f}" if line[name] else "" for name in counted),
        )
    return rows


def _cost(line: dict[str, Any]) -> float:
    return float(line["settled"]) + float(line["unknown"])


def _shown(amount: str) -> str:
    """To the fen, for people; `--json` and the CSV have it whole."""
    number = float(amount)
    return "<0.01" if 0 < number < 0.01 else f"{number:,.2f}"


def _name(line: dict[str, Any], group: str) -> str:
    if group.startswith("metadata."):
        return show.plain(line["metadata"][group.removeprefix("metadata.")])
    name = show.plain(line[_NAMES.get(group, group)])
    return f"{name} ×{line['grew']}" if line["grew"] else name
