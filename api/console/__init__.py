"""The console: pages for people who do not use a terminal, beside the API and by the API alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from api.console import actions, entry, live, pages
from api.console.visit import HOME, Page
from api.problems import problem
from worker.errors import NotFound

_last = APIRouter(prefix="/console", route_class=Page)
routers = (entry.router, entry.for_programs, live.router, pages.router, actions.router, _last)  # in this order


class _Static(StaticFiles):
    def file_response(self, *args: Any, **more: Any) -> Response:
        """The file, which a browser asks for again before it uses it: a script and its page are of one release."""
        answer = super().file_response(*args, **more)
        answer.headers["cache-control"] = "no-cache"
        return answer


static = _Static(directory=Path(__file__).with_name("static"))


@_last.get("")
@_last.get("/")
async def home() -> Response:
    """The first page."""
    return RedirectResponse(HOME, 303)


@_last.get("/{rest:path}")
async def nothing(rest: str) -> Response:
    """What is not there, as a page."""
    raise problem(404, NotFound.code, "there is no such page")
