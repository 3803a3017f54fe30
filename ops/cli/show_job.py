"""All there is to say of one job, on a page that fits 80 columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ops.cli import show
from ops.cli.following import Job, at, timed

_SHOWN = 600  # characters of an input or a result


def page(found: Job, events: Sequence[Mapping[str, Any]], attempts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All there is to say of one job."""
    parts = [_facts(found), _history(events)]
    if attempts:
        parts.append(_attempts(attempts))
    if found["error"]:
        parts.append(_error(found["error"]))
    return Group(*parts)


def missed(found: Sequence[Job]) -> RenderableType:
    """The first of a job's parts that failed, and why."""
    rows = show.table("failed part", "id", "why", right=["failed part"], wide=["why"])
    for job in found:
        show.row(rows, f"{job['round']}.{job['place'] + 1}", job["id"], escape(show.waits_for(job)))
    return Group("", rows)


def _facts(found: Job) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for word, value in {
        "id": found["id"],
        "custom id": found["custom_id"],
        "makes": f"{found['kind']} · {found['model']}",
        "input": _shortened(", ".join(f"{field}={_said(value)}" for field, value in found["input"].items())),
        "metadata": ", ".join(f"{field}={value}" for field, value in found["metadata"].items()),
        "state": found["state"],
        "part of": found["parent_id"],
        "parts": _parts(found["children"]) if found["children"] else None,
        "waits for": show.waits_for(found) if found["waiting_on"] else None,
        "cost": f"{show.cost(found)} CNY (billed: {found['cost']['billed']})",
        "provider": _provider(found["provider"]),
        "result": _shortened(_result(found["result"])) if found["result"] else None,
    }.items():
        if value:
            facts.add_row(word, escape(str(value)))
    for output in found["outputs"]:
        facts.add_row(f"output {output['n']}", escape(f"{_output(output)}\n{output['key']}"))
    return facts


def _parts(counted: Mapping[str, int]) -> str:
    """`120: 100 succeeded, 20 unfinished`."""
    each = (f"{count} {word}" for word, count in counted.items() if count and word != "total")
    return f"{counted['total']}: {', '.join(each)}" if counted["total"] else "none yet"


def _result(result: Mapping[str, Any]) -> str:
    return str(result.get("content") or _said(result))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters; --json has all)"


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _output(output: Mapping[str, Any]) -> str:
    length = "" if output["duration"] is None else f", {output['duration']:g} s"
    return f"{output['content_type']}, {show.size(output['bytes'])}{length}"


def _provider(provider: Mapping[str, Any]) -> str:
    said = {"task": provider["task_id"], "request": provider["request_id"], "in": provider["region"]}
    return ", ".join(f"{word} {value}" for word, value in said.items() if value)


def _history(events: Sequence[Mapping[str, Any]]) -> RenderableType:
    rows = show.table("at (UTC)", "state", "for", "why", right=["for"], wide=["why"])
    for event, stayed in timed(events):
        lasted = "" if stayed is None else show.seconds(stayed)
        show.row(rows, at(event["at"]).strftime("%m-%d %H:%M:%S"), event["to"], lasted, escape(event["why"]))
    return Group("", rows)


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> RenderableType:
    rows = show.table("create call", "outcome", "billed", "request id", "said", wide=["said"])
    for attempt in attempts:
        said = " ".join(filter(None, [attempt["code"], attempt["message"]]))
        request = escape(attempt["request_id"] or "")
        show.row(rows, str(attempt["number"]), attempt["outcome"], attempt["billed"], request, escape(said))
    return Group("", rows)


def _error(error: Mapping[str, Any]) -> RenderableType:
    lines = [f"[red]{escape(str(error['class']))} {escape(str(error['code']))}[/]: {escape(str(error['message']))}"]
    if error.get("hint"):
        lines.append(f"What to do: {escape(str(error['hint']))}")
    return Group("", *lines)
