"""The tables and pages of the commands: each fits 80 columns, and never cuts an id or a price."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from ops.cli import show
from ops.cli.show import Job, at
from worker.kinds import OFFERED

_SHOWN = 600  # characters of an input or a result
_UNITS = {"seconds": "s", "images": "image", "input_tokens": "in", "characters": "chars"}

Record = Mapping[str, Any]  # as the API shows it


def jobs(found: Sequence[Job]) -> RenderableType:
    """A list of jobs, one a line, with the id that the other commands take."""
    rows = (
        (job["id"], escape(job["custom_id"] or ""), job["model"], show.state(job["state"]), show.cost(job))
        for job in found
    )
    return show.filled(rows, "id", "custom", "model", "state", "CNY", right=["CNY"], wide=["custom", "model"])


def children(found: Sequence[Job]) -> RenderableType:
    """A job's parts, one a line, in their order."""
    rows = ((_part(job), job["id"], job["kind"], show.state(job["state"]), show.cost(job)) for job in found)
    return show.filled(rows, "part", "id", "makes", "state", "CNY", right=["part", "CNY"], wide=["makes"])


def files(found: Sequence[Record]) -> RenderableType:
    """A list of files, one a line, with the id that the other commands take."""
    rows = ((file["id"], escape(file["name"]), file["content_type"], show.size(file["bytes"])) for file in found)
    return show.filled(rows, "id", "name", "type", "size", right=["size"], wide=["name", "type"])


def models(found: Sequence[Record]) -> RenderableType:
    """The catalog in short; prices are those of a model's first region."""
    rows = (
        (
            f"{model['id']}\n(ended: {model['successor']})" if model["retired"] else model["id"],
            "\n".join(kind for kind in model["kinds"] if kind in OFFERED),
            _span([seconds for seconds in model["durations"] if seconds > 0]),
            _prices(model),
        )
        for model in found
    )
    return show.filled(rows, "model", "makes", "s", "CNY")


def _span(seconds: Sequence[int]) -> str:
    """ "2-15", "5", or nothing."""
    return "-".join(map(str, sorted({*seconds[:1], *seconds[-1:]})))


def progress(found: Sequence[Job], height: int) -> RenderableType:
    """Jobs on their way, at most `height` of them: those at work first."""
    rows = show.table("job", "model", "state", "for", "waits for", right=["for"], wide=["job", "model", "waits for"])
    shown = found
    if len(found) > height:
        shown = sorted(found, key=lambda job: (job["is_terminal"], job["state"] == "queued"))[:height]
    for job in shown:
        end = at(job["finished_at"]) if job["finished_at"] else datetime.now(UTC)
        lasted = show.seconds((end - at(job["created_at"])).total_seconds())
        name, state = escape(show.name(job)), show.state(job["state"])
        show.short_row(rows, name, job["model"], state, lasted, escape(show.waits_for(job)))
    return Group(rows, Text(counts(found), style="dim"))


def change(job: Job) -> str:
    """A job's new state in one line."""
    words = (escape(show.name(job)), job["model"], show.state(job["state"]), escape(show.waits_for(job)))
    return f"{datetime.now(UTC):%H:%M:%S}  {'  '.join(words)}".rstrip()


def counts(found: Sequence[Job]) -> str:
    """`12 jobs: 3 queued, 9 succeeded`."""
    states = [str(job["state"]) for job in found]
    each = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    return f"{show.count(len(found), 'job')}: {each}"


def job(found: Job, events: Sequence[Record], attempts: Sequence[Record], missed: Sequence[Job]) -> RenderableType:
    """One job: its facts, its history, its create calls, its error, and the first of its parts that failed."""
    parts = [_facts(found), "", _history(events)]
    if attempts:
        parts += ["", _attempts(attempts)]
    if error := found["error"]:
        parts += ["", f"[red]{escape(error['class'])} {escape(error['code'])}[/]: {escape(error['message'])}"]
        parts += [f"What to do: {escape(error['hint'])}"] if error.get("hint") else []
    if missed:
        rows = ((_part(job), job["id"], escape(show.waits_for(job))) for job in missed)
        parts += ["", show.filled(rows, "failed part", "id", "why", right=["failed part"], wide=["why"])]
    return Group(*parts)


def budgets(found: Sequence[Record]) -> RenderableType:
    """Budgets, one a line, with what is used of the period that they are in."""
    rows = ((one["id"], one["period"], one["used"], one["limit"], one["over"], str(one["held"] or "")) for one in found)
    return show.filled(rows, "id", "period", "used", "CNY", "over", "held", right=["used", "CNY", "held"])


def endpoints(found: Sequence[Record]) -> RenderableType:
    """Endpoints, one a line, with the id that the other commands take."""
    rows = (
        (
            one["id"],
            escape(one["url"]),
            f"[red]off: {escape(one['disabled_why'])}[/]"
            if one["disabled_at"]
            else "[yellow]fails[/]"
            if one["failing_since"]
            else "on",
        )
        for one in found
    )
    return show.filled(rows, "id", "url", "is", wide=["url", "is"])


def deliveries(found: Sequence[Record]) -> RenderableType:
    """Deliveries, one a line, the newest first, with what the receiver said the last time."""
    rows = (
        (one["id"], one["type"], one["state"], str(one["tries"]), escape(str(one["error"] or one["status"] or "")))
        for one in found
    )
    return show.filled(rows, "id", "event", "state", "tries", "said", right=["tries"], wide=["event", "said"])


def event(found: Record) -> str:
    """One event of the feed, in a line: when, what, of what, and why."""
    about = found["data"]
    named = escape(about["custom_id"] or about["id"])
    return f"{show.plain(found['timestamp'])}  {found['type']:15} {named}  {escape(about['why'])}".rstrip()


def schedules(found: Sequence[Record]) -> RenderableType:
    """Schedules, one a line, with the next fire time."""
    rows = (
        (
            escape(one["name"]),
            escape(one["explained"]),
            one["time_zone"],
            "[yellow]paused[/]" if one["paused_at"] else soonest(one),
        )
        for one in found
    )
    return show.filled(rows, "name", "fires", "zone", "next", wide=["name", "fires", "zone"])


def schedule(found: Record, last: Sequence[Record]) -> RenderableType:
    """One schedule: when it fires, what it submits, and its last runs."""
    template = found["template"]
    facts = show.grid(
        {
            "id": found["id"],
            "name": found["name"],
            "fires": f"{found['explained']} ({found['cron']}), {found['time_zone']}",
            "paused": found["paused_at"] and _local(found, found["paused_at"]),
            "next": "\n".join(_local(found, moment) for moment in found["next"]),
            "overlap": f"{found['overlap']}; missed: {found['missed']}",
            "makes": " · ".join(filter(None, [template["kind"], template.get("model")])),
            "input": json.dumps(template["input"], ensure_ascii=False),
            "warnings": "\n".join(warning["message"] for warning in found["warnings"]),
            "since": found["since"] and _local(found, found["since"]),
        }
    )
    return Group(facts, *([runs(found, last)] if last else []))


def runs(schedule: Record, found: Sequence[Record]) -> RenderableType:
    """Runs, one a line, each with the state of its job, or why there is none."""
    rows = (
        (
            _local(schedule, run["fire_at"]),
            run["trigger"],
            show.state(run["job_state"] or run["outcome"]),
            "\n".join(filter(None, [run["job_id"], escape(run["why"])])),
        )
        for run in found
    )
    return show.filled(rows, "fire time", "by", "became", "job, and why", wide=["job, and why"])


def soonest(schedule: Record) -> str:
    """The next fire time in the schedule's zone; `never` for none."""
    return _local(schedule, schedule["next"][0]) if schedule["next"] else "never"


def lanes(found: Sequence[Record]) -> RenderableType:
    """Lanes, one a line, with a column of tokens where any are limited."""
    tokens = ["tokens"] if any(lane["tokens"] for lane in found) else []
    names = ["model", "region", "in use", "queued", "pace", *tokens, "stopped"]
    cells = (_lane(lane) for lane in found)
    rows = ([escape(lane[name]) for name in names] for lane in cells)
    return show.filled(rows, *names, right=["in use", "queued", "pace", *tokens], wide=["stopped"])


def candidates(found: Record) -> RenderableType:
    """The provider's tasks that may be an uncertain job's, and what is at stake."""
    stake = found["at_stake"]
    rows = [
        [escape(cell) for cell in (task["task_id"], task["status"], _minute(task["created_at"]), _fits(task))]
        for task in found["data"]
    ]
    nothing = [["no task that may be the job's is listed", "", "", ""]]
    table = show.filled(rows or nothing, "task", "status", "made at", "fits", wide=["made at", "fits"])
    table.title = f"at stake: CNY {stake['estimated'] or 'unknown'}, billed: {stake['billed']}"
    table.title_justify = "left"
    return table


def _facts(found: Job) -> RenderableType:
    provider = {name: found["provider"][key] for name, key in _PROVIDER.items() if found["provider"][key]}
    result = found["result"] or {}
    facts = {
        "id": found["id"],
        "custom id": found["custom_id"],
        "makes": f"{found['kind']} · {found['model']}",
        "input": _shortened(_pairs(found["input"], "=")),
        "metadata": _pairs(found["metadata"], "="),
        "state": found["state"],
        "part of": found["parent_id"],
        "parts": _counted(found["children"]) if found["children"] else None,
        "waits for": show.waits_for(found) if found["waiting_on"] else None,
        "cost": f"{show.cost(found)} CNY (billed: {found['cost']['billed']})",
        "answer of": found.get("cached_from"),  # an API of the version before has none
        "provider": _pairs(provider, " "),
        "result": _shortened(str(result.get("content") or _text(result))) if result else None,
    }
    return show.grid(facts | {f"output {one['n']}": _output(one) for one in found["outputs"]})


_PROVIDER = {"task": "task_id", "request": "request_id", "in": "region"}


def _history(events: Sequence[Record]) -> RenderableType:
    rows = (
        (
            f"{at(event['at']):%m-%d %H:%M:%S}",
            event["to"],
            "" if stayed is None else show.seconds(stayed),
            escape(event["why"]),
        )
        for event, stayed in show.timed(events)
    )
    return show.filled(rows, "at (UTC)", "state", "for", "why", right=["for"], wide=["why"])


def _attempts(attempts: Sequence[Record]) -> RenderableType:
    rows = (
        (
            str(attempt["number"]),
            attempt["outcome"],
            attempt["billed"],
            escape(attempt["request_id"] or ""),
            escape(" ".join(filter(None, [attempt["code"], attempt["message"]]))),
        )
        for attempt in attempts
    )
    return show.filled(rows, "create call", "outcome", "billed", "request id", "answer", wide=["answer"])


def _output(output: Record) -> str:
    length = "" if output["duration"] is None else f", {output['duration']:g} s"
    return f"{output['content_type']}, {show.size(output['bytes'])}{length}\n{output['key']}"


def _counted(parts: Mapping[str, int]) -> str:
    """`120: 100 succeeded, 20 unfinished`."""
    each = (f"{count} {word}" for word, count in parts.items() if count and word != "total")
    return f"{parts['total']}: {', '.join(each)}" if parts["total"] else "none yet"


def _part(job: Job) -> str:
    return f"{job['round']}.{job['place'] + 1}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters; --json has all)"


def _pairs(values: Mapping[str, object], between: str) -> str:
    return ", ".join(f"{name}{between}{_text(value)}" for name, value in values.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _local(schedule: Record, moment: str) -> str:
    """A time in the schedule's zone: `2026-11-21 02:30`."""
    return f"{at(moment).astimezone(ZoneInfo(schedule['time_zone'])):%Y-%m-%d %H:%M}"


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _lane(lane: Record) -> dict[str, str]:
    fewer = f" of {lane['concurrency']}" if lane["allowed"] != lane["concurrency"] else ""
    why = lane["waiting_on"]
    until = f" until {_minute(why['until'])}" if why and why["until"] else ""
    return {
        "model": lane["model"],
        "region": lane["region"],
        "in use": f"{lane['in_use']}/{lane['allowed']}{fewer}",
        "queued": str(lane["queued"]),
        "pace": f"{lane['pace']:.0%}",
        "tokens": _tokens(lane["tokens"]),
        "stopped": f"{why['code']}{until}" if why else "",
    }


def _tokens(used: Record | None) -> str:
    """The tokens used today, or booked ahead, as a share of the limit."""
    if used is None:
        return ""
    if used["per_day"] is not None:
        return f"{used['today'] / used['per_day']:.0%} a day"
    return f"{used['ahead'] / used['per_minute']:.0%} a min"


def _fits(task: Record) -> str:
    if task["differs"] is None:
        return "not known"
    return f"no: {', '.join(task['differs'])} differ" if task["differs"] else "yes"


def _prices(model: Record) -> str:
    """The first price row, a tier a line, and for how many of what: `480P 0.30 /s`, `0.80 /1M in` (input tokens)."""
    prices = next(iter(model["regions"].values()))["prices"]
    if not prices:
        return "?"
    first = prices[0]
    tiers = first["cny"] if isinstance(first["cny"], Mapping) else {"": first["cny"]}
    lines = [f"{tier} {Decimal(price):.2f}".strip() for tier, price in tiers.items()]
    unit = _per(first["per"]) + _UNITS.get(first["unit"], first["unit"])
    return "\n".join([f"{lines[0]} /{unit}", *lines[1:]])


def _per(count: int) -> str:
    """`1M `, `10k `; nothing for one."""
    if count >= 1_000_000:
        return f"{count // 1_000_000}M "
    return f"{count // 1000}k " if count >= 1000 else ""
