"""What buttons do: each sends the API's own request, and goes back to the page."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response

from api import bodies
from api.console import pages
from api.console.inside import Refused
from api.console.visit import HOME, Page, Visiting
from api.problems import problem
from worker.errors import NotFound

router = APIRouter(prefix="/console", route_class=Page)
# What is done by a POST to the API's address of the same name; the page that follows is that one's own, or the list.
_PLAIN = {
    "batches": {"pause", "resume", "cancel", "retry-failed"},
    "jobs": {"cancel", "retry"},
    "schedules": {"run", "pause", "resume"},
}
_LISTS = {"schedules"}


@router.post("/upload")
async def upload(here: Visiting) -> Response:
    """Checks and prices a file; its draft's page has the report, and the button that spends."""
    here.check_origin()
    caller = await here.caller()  # nobody's file is read
    async with (
        here.context.gates.console.place(caller.project.id if caller.project else None),
        bodies.form(here.request, bodies.ROWS_LIMIT, fields=8) as form,
    ):
        here.check_token(str(form.get("csrf", "")))
        file = bodies.only(form, bodies.ROWS_LIMIT)
        said = {name: str(form.get(name, "")).strip() for name in ("name", "kind", "model", "repeat", "review")}
        defaults = {name: said[name] for name in ("kind", "model") if said[name]}
        defaults |= {"review": "required"} if said["review"] else {}
        options: dict[str, Any] = {"defaults": defaults}
        options |= {name: said[name] for name in ("name", "repeat") if said[name]}
        try:
            draft = await here.api.send("/v1/batches", file, options)
        except Refused as error:
            if error.status == 401:
                raise
            typed = {"kinds": await pages.kinds(here.api), "said": said, "why": str(error)}
            return await here.page("upload.html", error.status, **typed)
    return here.to(f"/console/batches/{draft['id']}")


@router.post("/batches/{batch_id}/commit")
async def commit(here: Visiting, batch_id: UUID) -> Response:
    """Makes the draft's jobs."""
    said = await here.fields()
    await here.api.post(f"/v1/batches/{batch_id}/commit", skip_bad=bool(said.get("skip_bad")))
    return here.to(f"/console/batches/{batch_id}", done="commit")


@router.post("/batches/{batch_id}/discard")
async def discard(here: Visiting, batch_id: UUID) -> Response:
    """Forgets a draft."""
    await here.fields()
    await here.api.call("DELETE", f"/v1/batches/{batch_id}")
    return here.to(HOME, done="discard")


@router.post("/jobs/{job_id}/again")
async def again(here: Visiting, job_id: UUID) -> Response:
    """Submits a job like this one, changed as its text says."""
    said = await here.fields()
    typed = said.get("body", "")
    try:
        body = json.loads(typed)
        made = await here.api.post("/v1/jobs", body, once=said.get("once", ""))
    except (ValueError, RecursionError) as error:
        return await pages.job_page(here, job_id, 422, body=typed, why=str(error))
    except Refused as error:
        if error.status == 401:
            raise
        return await pages.job_page(here, job_id, error.status, body=typed, why=str(error))
    return here.to(f"/console/jobs/{made['id']}", done="again")


@router.post("/review/{job_id}/{what}")
async def decide(here: Visiting, job_id: UUID, what: str) -> Response:
    """Keeps outputs, rejects them with a note, or has them made again with another prompt; then the next one."""
    said = await here.fields()
    path, comment = f"/v1/jobs/{job_id}", said.get("comment", "").strip()
    note = comment or here.word("not as it should be")
    if what == "approve":
        await here.api.post(f"{path}/approve", {"comment": comment} if comment else None)
    elif what == "reject":
        await here.api.post(f"{path}/reject", {"comment": note})
    elif what == "reroll":
        prompt = said.get("prompt", "").strip()
        changed = {"prompt": prompt} if prompt and prompt != said.get("before", "") else {}
        await here.api.post(f"{path}/reject", {"comment": note, "reroll": changed})
    else:
        raise _nothing()
    again = {name: said[name] for name in ("batch", "after") if said.get(name)}
    return here.to("/console/review", done=what, **again)


@router.post("/webhooks/{endpoint_id}/{what}")
async def on_endpoint(here: Visiting, endpoint_id: UUID, what: str) -> Response:
    """Sends deliveries again, tries an endpoint, or lets it go on after it was disabled."""
    said, path = await here.fields(), f"/v1/webhook-endpoints/{endpoint_id}"
    if what == "resend":
        await here.api.post(f"{path}/redeliver", {"ids": [said["id"]]} if said.get("id") else {"status": "exhausted"})
    elif what == "test":
        tried = await here.api.post(f"{path}/test")
        what = "test" if tried["delivered"] else "test_failed"
    elif what == "enable":
        await here.api.call("PATCH", path, json={"disabled": False})
    else:
        raise _nothing()
    return here.to("/console/webhooks", endpoint=str(endpoint_id), done=what)


@router.post("/{of}/{which}/{what}")
async def plain(here: Visiting, of: str, which: UUID, what: str) -> Response:
    """Pauses, resumes, cancels, retries or runs a batch, a job or a schedule."""
    said = await here.fields()
    if what not in _PLAIN.get(of, ()):
        raise _nothing()
    await here.api.post(f"/v1/{of}/{which}/{what}", once=said.get("once", ""))
    return here.to(f"/console/{of}" if of in _LISTS else f"/console/{of}/{which}", done=what)


def _nothing() -> Exception:
    return problem(404, NotFound.code, "there is no such thing to do")
