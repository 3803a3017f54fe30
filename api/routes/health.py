"""Whether this process lives, and whether it can do its work; asked without a thread or a connection of requests."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api import answers
from api.context import Here
from api.probes import NEEDED

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> dict[str, str]:
    """The process lives; nothing is asked of anything else."""
    return {"status": "ok"}


@router.get("/readyz", response_model=answers.Readiness, responses={503: {"model": answers.Readiness}})
async def ready(here: Here) -> Response:
    """Whether jobs can be taken. Without the broker or the bucket they can: the rows wait until those are back."""
    wrong = await here.probes.found()
    missing = {name for name, why in wrong.items() if why is not None}
    status = "unready" if missing & NEEDED else "degraded" if missing else "ready"
    checks = {name: {"ok": why is None, "why": why} for name, why in wrong.items()}
    return JSONResponse({"status": status, "checks": checks}, 503 if status == "unready" else 200)
