"""The console: pages for people who do not use a terminal, beside the API and by the API alone."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from api.console import actions, entry, live, pages
from api.console.visit import HOME

static = StaticFiles(directory=Path(__file__).with_name("static"))
router = APIRouter(prefix="/console", include_in_schema=False)
for rooms in (entry, live, pages, actions):
    router.include_router(rooms.router)


@router.get("")
@router.get("/")
async def home() -> Response:
    """The first page."""
    return RedirectResponse(HOME, 303)
