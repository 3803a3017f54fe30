"""The sandbox's own interface under `/_sandbox`: its bill, its faults, its switches, and a page for people."""

from html import escape
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse

from ops.sandbox import clock
from ops.sandbox.faults import Rule
from ops.sandbox.provider import Provider
from ops.sandbox.tasks import Status, Task

LATEST = 50
MICROS = 1_000_000
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sandbox DashScope</title>
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5"><style>
body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.25rem .8rem .25rem 0}}
th{{border-bottom:1px solid}}td{{border-bottom:1px solid #8884}}
</style></head><body><h1>Sandbox DashScope</h1>
<p>{creates} creates received, {refused} refused, {tasks} tasks made, {downloads} downloads.
Billed: <b>¥{bill:.2f}</b>. {statuses}</p>
<table><thead><tr><th>submitted</th><th>task</th><th>model</th><th>status</th><th>billed</th><th>prompt</th><th>outputs</th></tr></thead>
<tbody>{rows}</tbody></table></body></html>"""


def router(provider: Provider) -> APIRouter:
    """Return the sandbox's own routes."""
    routes = APIRouter(prefix="/_sandbox")

    @routes.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return _page(provider)

    @routes.get("/ledger")
    async def ledger() -> JSONResponse:
        return JSONResponse(provider.statement())

    @routes.get("/totals")
    async def totals() -> dict[str, Any]:
        return provider.totals() | provider.ledger.queries()

    @routes.get("/faults")
    async def faults() -> list[Rule]:
        return provider.faults.rules

    @routes.post("/faults")
    async def add_faults(rules: list[Rule]) -> list[Rule]:
        provider.faults.rules.extend(rules)
        return provider.faults.rules

    @routes.delete("/faults", status_code=204)
    async def clear_faults() -> None:
        provider.faults.rules.clear()

    @routes.get("/options")
    async def options() -> dict[str, Any]:
        return provider.options.model_dump(mode="json")

    @routes.post("/options")
    async def change_options(changes: dict[str, Any]) -> dict[str, Any]:
        provider.configure(changes)
        return provider.options.model_dump(mode="json")

    @routes.post("/reset", status_code=204)
    async def reset() -> None:
        provider.reset()

    return routes


def _page(provider: Provider) -> str:
    now = provider.now()
    totals = provider.totals()
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(totals["by_status"].items()))
    latest = list(provider.tasks.by_id.values())[-LATEST:][::-1]
    rows = "".join(_row(provider, task, now) for task in latest)
    return PAGE.format(**totals, bill=totals["billed_micros"] / MICROS, statuses=statuses, rows=rows)


def _row(provider: Provider, task: Task, now: float) -> str:
    status = task.status(now)
    outputs = provider.links(task, "") if status is Status.SUCCEEDED else []
    cells = [
        clock.stamp(task.submitted_at)[11:19],
        task.id[:8],
        escape(task.order.model),
        status.value,
        f"¥{task.billed_micros(now) / MICROS:.2f}",
        escape(task.order.prompt[:80]),
        " ".join(f'<a href="{escape(link)}">{number}</a>' for number, link in enumerate(outputs, 1)),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
