"""What a person sees of schedules: tables that fit 80 columns, with times in each schedule's zone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ops.cli import show
from ops.cli.following import at

Schedule = Mapping[str, Any]


def listed(found: Sequence[Schedule]) -> RenderableType:
    """Schedules, one a line, with the next fire time."""
    rows = show.table("name", "fires", "zone", "next", wide=["name", "fires", "zone"])
    for schedule in found:
        fires = "[yellow]paused[/]" if schedule["paused_at"] else local(schedule, soonest(schedule))
        show.row(rows, escape(schedule["name"]), escape(schedule["explained"]), schedule["time_zone"], fires)
    return rows


def facts(schedule: Schedule) -> RenderableType:
    """One schedule: when it fires, and what it submits."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    template = schedule["template"]
    for word, value in {
        "id": schedule["id"],
        "name": schedule["name"],
        "fires": f"{schedule['explained']} ({schedule['cron']}), {schedule['time_zone']}",
        "paused": local(schedule, schedule["paused_at"]) if schedule["paused_at"] else "",
        "next": "\n".join(local(schedule, fires) for fires in schedule["next"]),
        "overlap": f"{schedule['overlap']}; missed: {schedule['missed']}",
        "makes": " · ".join(filter(None, [template["kind"], template.get("model")])),
        "input": json.dumps(template["input"], ensure_ascii=False),
        "warnings": "\n".join(warning["message"] for warning in schedule["warnings"]),
        "since": local(schedule, schedule["since"]) if schedule["since"] else "",
    }.items():
        if value:
            grid.add_row(word, escape(value))
    return grid


def runs(schedule: Schedule, runs: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Runs, one a line; one that submitted a job is what that is."""
    rows = show.table("fire time", "by", "became", "job, and why", wide=["job, and why"])
    for run in runs:
        became = show.state({"state": run["job_state"] or run["outcome"]})
        what = "\n".join(filter(None, [run["job_id"], escape(run["why"])]))
        show.row(rows, local(schedule, run["fire_at"]), run["trigger"], became, what)
    return rows


def soonest(schedule: Schedule) -> str | None:
    """The next fire time."""
    return next(iter(schedule["next"]), None)


def local(schedule: Schedule, moment: str | None) -> str:
    """A time in the schedule's zone: `2026-11-21 02:30`; `never` for none."""
    return f"{at(moment).astimezone(ZoneInfo(schedule['time_zone'])):%Y-%m-%d %H:%M}" if moment else "never"
