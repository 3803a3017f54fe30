"""The pages. Each asks the API for what it shows."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query
from fastapi.responses import Response

from api.console.inside import Api
from api.console.visit import Page, Visiting
from worker.states import State

router = APIRouter(prefix="/console", route_class=Page)
_SCHEDULES = 6  # each is a request more for its runs, of those that a key may make in a second
_POSTERS = 500  # on one page of the gallery at most
_MEDIA = ("text-to-video", "image-to-video", "reference-to-video", "video-edit", "text-to-image", "image-edit")
_CHART_DAYS = {7, 30, 90}

Cursor = Annotated[str, Query(max_length=64)]


@router.get("/batches")
async def batches(here: Visiting, cursor: Cursor = "") -> Response:
    """Every batch, the newest first."""
    return await here.page("batches.html", found=await here.api.get("/v1/batches", limit=20, cursor=cursor))


@router.get("/upload")
async def upload(here: Visiting) -> Response:
    """The form for a file of rows."""
    return await here.page("upload.html", kinds=await kinds(here.api), said={}, why="")


@router.get("/batches/{batch_id}")
async def batch(
    here: Visiting, batch_id: UUID, state: str = "", outcome: str = "", cursor: Annotated[int, Query(ge=0)] = 0
) -> Response:
    """A batch and its rows; of a draft its report, and what it would cost."""
    path = f"/v1/batches/{batch_id}"
    found, items = await asyncio.gather(
        here.api.get(path),
        here.api.get(f"{path}/items", limit=50, state=state, outcome=outcome, cursor=cursor or None),
    )
    name = "draft.html" if found["state"] == "draft" else "batch.html"
    return await here.page(name, batch=found, items=items, state=state, outcome=outcome)


@router.get("/gallery")
async def gallery(
    here: Visiting,
    state: str = "succeeded",
    model: str = "",
    kind: str = "",
    q: str = "",
    label: str = "",
    batch: str = "",
    cursor: Cursor = "",
    most: Annotated[int, Query(ge=1, le=_POSTERS)] = 100,
) -> Response:
    """Clips and pictures that were made, narrowed by state, model, metadata (`key=value`) and text."""
    key, _, value = label.partition("=")
    asked = {"state": state, "model": model, "kind": kind, "q": q, "batch": batch}
    found, after = await _jobs(here.api, most, cursor, asked | ({f"metadata.{key}": value} if key else {}))
    jobs = [job for job in found if job["kind"] in _MEDIA]
    chosen = {**asked, "label": label, "most": most}
    return await here.page(
        "gallery.html", jobs=jobs, after=after, chosen=chosen, kinds=_MEDIA, states=[str(state) for state in State]
    )


@router.get("/review")
async def review(here: Visiting, batch: str = "", after: Cursor = "") -> Response:
    """The next job that a person is to look at, beside its other takes."""
    found = await here.api.get("/v1/jobs", state="awaiting_review", batch=batch, cursor=after, limit=2)
    job = found["data"][0] if found["data"] else None
    takes = (await here.api.get(f"/v1/jobs/{job['id']}/takes"))["data"] if job else []
    counts = (await here.api.get(f"/v1/batches/{batch}"))["review"] if batch else None
    return await here.page("review.html", job=job, takes=takes, batch=batch, counts=counts, after=after)


@router.get("/jobs/{job_id}")
async def job(here: Visiting, job_id: UUID) -> Response:
    """One job: its outputs, its history, what was sent to the provider, and what it waits for."""
    return await job_page(here, job_id)


@router.get("/schedules")
async def schedules(here: Visiting, cursor: Cursor = "") -> Response:
    """Every schedule, with its last runs."""
    found = await here.api.get("/v1/schedules", limit=_SCHEDULES, cursor=cursor)
    runs = await asyncio.gather(*(here.api.get(f"/v1/schedules/{each['id']}/runs", limit=5) for each in found["data"]))
    last = {each["id"]: run["data"] for each, run in zip(found["data"], runs, strict=True)}
    return await here.page("schedules.html", found=found, runs=last)


@router.get("/webhooks")
async def webhooks(here: Visiting, endpoint: str = "", state: str = "", cursor: Cursor = "") -> Response:
    """Every endpoint, and the deliveries of one."""
    found = (await here.api.get("/v1/webhook-endpoints"))["data"]
    chosen = next((each for each in found if each["id"] == endpoint), found[0] if found else None)
    path = f"/v1/webhook-endpoints/{chosen['id']}/deliveries" if chosen else ""
    sent = await here.api.get(path, state=state, cursor=cursor, limit=50) if chosen else None
    return await here.page("webhooks.html", found=found, chosen=chosen, sent=sent, state=state)


@router.get("/money")
async def money(here: Visiting, days: int = 30) -> Response:
    """What was spent, by day, model and batch, and what the budgets leave."""
    days = days if days in _CHART_DAYS else 30
    caller = await here.caller()
    today = caller.now.astimezone(ZoneInfo(caller.project.time_zone if caller.project else "UTC")).date()
    dates = [(today - timedelta(days=ago)).isoformat() for ago in reversed(range(days))]
    since = dates[0]
    by_day, by_model, by_kind, budgets = await asyncio.gather(
        here.api.get("/v1/usage", group_by="day", since=since),
        here.api.get("/v1/usage", group_by="model", since=since),
        here.api.get("/v1/usage", group_by="kind", since=since),
        here.api.get("/v1/budgets"),
    )
    spent = {line["begins_on"]: line for line in by_day["data"]}
    by_day["data"] = [spent.get(day, {"begins_on": day, "settled": 0, "unknown": 0}) for day in dates]
    session = here.session
    by_project = None  # which an operator's key is told, where it acts for none
    if session and session.project:
        every = Api(here.request.app, here.context.sessions.made(session.key, None))
        by_project = await every.get("/v1/usage", group_by="project", since=since)
    shown = {
        "by_project": by_project,
        "by_day": by_day,
        "by_model": by_model,
        "by_kind": by_kind,
        "budgets": budgets["data"],
    }
    return await here.page("money.html", days=days, choices=sorted(_CHART_DAYS), **shown)


@router.get("/lanes")
async def lanes(here: Visiting, every: str = "") -> Response:
    """Each model's limits, what is in use, and what holds it up; at first those where something happens."""
    found = (await here.api.get("/v1/limits"))["data"]
    busy = [lane for lane in found if lane["in_use"] or lane["queued"] or lane["waiting_on"]]
    return await here.page("lanes.html", lanes=found if every or not busy else busy, total=len(found))


async def job_page(here: Visiting, job_id: UUID, status: int = 200, **typed: Any) -> Response:
    """A job's page; `typed` is what was to be run again, where that was refused."""
    path = f"/v1/jobs/{job_id}"
    found, events, attempts = await asyncio.gather(
        here.api.get(path), here.api.get(f"{path}/events", limit=100), here.api.get(f"{path}/attempts")
    )
    children = await here.api.get(f"{path}/children", limit=50) if found["children"] else None
    asked = {"kind": found["kind"], "model": found["model"], "input": found["input"], "metadata": found["metadata"]}
    again = {"body": json.dumps(asked, ensure_ascii=False, indent=2), "why": "", **typed}
    data = {"job": found, "events": events["data"], "attempts": attempts["data"], "children": children}
    return await here.page("job.html", status, api_url=here.context.settings.public_url, again=again, **data)


async def kinds(api: Api) -> dict[str, list[str]]:
    """The kinds that a file may ask for, each with the models that are not retired."""
    found: dict[str, list[str]] = {}
    for model in (await api.get("/v1/models"))["data"]:
        for kind in model["kinds"]:
            if model["retired"] is None and kind != "speech-segment":
                found.setdefault(kind, []).append(model["id"])
    return found


async def _jobs(api: Api, most: int, cursor: str, asked: dict[str, Any]) -> tuple[list[Any], str | None]:
    """So many jobs at the most, and where the next page begins."""
    found: list[Any] = []
    after: str | None = cursor or None
    while len(found) < most:
        page = await api.get("/v1/jobs", **asked, cursor=after, limit=min(100, most - len(found)))
        found += page["data"]
        after = page["next_cursor"]
        if after is None:
            break
    return found, after
