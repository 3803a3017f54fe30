"""What the provider's limits allow now, what of that is in use, and what stops the rest."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from api import answers, describe
from api.auth import Anyone
from api.context import Here
from worker.jobs import reading
from worker.lanes import slots

router = APIRouter(prefix="/v1/limits", tags=["limits"], responses=describe.refusals(401, 404, 422, 429, 503))


@router.get("", response_model=answers.LaneList)
def limits(here: Here, who: Anyone) -> Response:
    """The lanes. An operator sees all that is in use and waits, a project what is its own."""
    with here.engine.connect() as connection:
        found = slots.listed(connection, who.now, who.project.id if who.project else None)
    return answers.listed([reading.lane_shown(lane, who.project is None) for lane in found])
