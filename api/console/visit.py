"""One request of a browser: who is signed in, in which language; what is refused is a page too, and nothing is lost.

Every change says the session's own token (CSRF), and comes from a page of ours as far as the browser tells.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from fastapi_problem.error import Problem
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect

from api import bodies, callers, problems
from api.console import shown
from api.console.inside import Api, Refused
from api.context import Context
from api.problems import problem
from api.sessions import COOKIE, SECONDS, Session
from worker import storage
from worker.errors import KeyExpired, NotFound
from worker.keys import Caller, Scope

HOME = "/console/batches"
SIGN_IN = "/console/sign-in"
_LANGUAGE = "noria_language"
_LINK = timedelta(minutes=10)  # how long a page's pictures and clips can be loaded


@dataclass
class Visit:
    """A request, and what its page needs."""

    request: Request
    session: Session | None

    @property
    def context(self) -> Context:
        """The API's."""
        context: Context = self.request.app.state.context
        return context

    @cached_property
    def api(self) -> Api:
        """The API, as who is signed in may use it."""
        return Api(self.request.app, self.session)

    @cached_property
    def language(self) -> str:
        """The one that was chosen, or the browser's."""
        headers = self.request.headers
        return shown.language(self.request.cookies.get(_LANGUAGE), headers.get("accept-language", ""))

    def word(self, text: str) -> str:
        """The text in the page's language."""
        return shown.translations(self.language).ugettext(text)

    @property
    def here_again(self) -> str:
        """The address of this page, to come back to; where it answers a form, the first page's."""
        url = self.request.url
        return url.path + (f"?{url.query}" if url.query else "") if self.request.method == "GET" else HOME

    async def caller(self) -> Caller:
        """Who is signed in, with the project and Postgres's time; raises a problem, 401, where nobody is any more."""
        if self.session:
            with suppress(KeyExpired, NotFound):
                found = await self.context.callers.find(self.session.key, self.session.project, callers.REMEMBERED)
                if found and found.project:
                    return found
        raise problem(401, "unauthorized", "nobody is signed in")

    async def page(self, name: str, status: int = 200, **data: Any) -> Response:
        """A page, or a part of one, by its template."""
        return HTMLResponse(await self.written(name, **data), status, headers=self._headers())

    async def written(self, name: str, *, is_framed: bool = True, **data: Any) -> str:
        """The text of a template; without a frame it is nobody's, and needs no database."""
        caller = await self.caller() if is_framed else None
        project = caller.project if caller else None
        frame = {
            "project": project,
            "may": lambda needed: caller is not None and caller.scope.includes(Scope(needed)),
            "path": self.request.url.path,
            "back": self.here_again,
            "query": dict(self.request.query_params),
            "csrf": self.context.sessions.csrf(self.session) if self.session else "",
            "done": self.request.query_params.get("done"),
            "link": self.link,
            "still": lambda key: self.link(storage.poster(key)),
            **(shown.clock(project.time_zone, self.language, caller.now) if caller and project else {}),
        }
        template = shown.environment(self.language).get_template(name)
        return await run_in_threadpool(template.render, frame | data)

    def link(self, key: str) -> str:
        """A short link to an object that the API has named to this session."""
        return self.context.bucket.presign(key, _LINK, None)

    def to(self, path: str, **query: str) -> Response:
        """Goes on at a page of ours."""
        return RedirectResponse(path + (f"?{urlencode(query)}" if query else ""), 303)

    def signed_in(self, session: Session, path: str = HOME) -> Response:
        """Goes on as that session."""
        answer = self.to(path)
        answer.set_cookie(COOKIE, session.token, SECONDS, httponly=True, samesite="lax", secure=self._is_secure)
        return answer

    def spoken(self, language: str, path: str) -> Response:
        """Goes on in another language."""
        answer = self.to(path)
        answer.set_cookie(_LANGUAGE, language, 365 * 86400, samesite="lax", secure=self._is_secure)
        return answer

    async def fields(self) -> dict[str, str]:
        """The form that was sent; raises a problem where it is not from a page of this session."""
        self.check_origin()
        said = await bodies.fields(self.request)
        self.check_token(said.pop("csrf", ""))
        return said

    def check_origin(self) -> None:
        """Raises a problem for what another site sent. Over plain HTTP browsers say Origin alone."""
        headers = self.request.headers
        ours = {None, headers.get("host"), _netloc(self.context.settings.public_url)}
        if site := headers.get("sec-fetch-site"):
            is_ours = site in ("same-origin", "none")
        else:
            is_ours = (_netloc(headers["origin"]) if "origin" in headers else None) in ours
        if not is_ours:
            raise problem(403, "other_site", "this was sent from another site")

    def check_token(self, csrf: str) -> None:
        """Raises a problem for a form that is not of this session."""
        if self.session and not hmac.compare_digest(csrf.encode(), self.context.sessions.csrf(self.session).encode()):
            raise problem(403, "other_session", "the page is of another session: load it again")

    @property
    def _is_secure(self) -> bool:
        return self.context.settings.public_url.startswith("https://")

    def _headers(self) -> dict[str, str]:
        """What a page may load: ours, and the bucket's pictures and clips."""
        link = urlsplit(self.link("x"))
        media = f"'self' {link.scheme}://{link.netloc}"
        rules = {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": f"{media} data:",
            "media-src": media,
            "form-action": "'self'",
            "frame-ancestors": "'none'",
            "base-uri": "'none'",
        }
        policy = "; ".join(f"{name} {value}" for name, value in rules.items())
        return {"content-security-policy": policy, "cache-control": "no-store", "x-frame-options": "DENY"}


def visit(request: Request) -> Visit:
    """The request as the console sees it; a session that has ended is none."""
    return Visit(request, request.app.state.context.sessions.read(request.cookies.get(COOKIE, "")))


Visiting = Annotated[Visit, Depends(visit)]


class Page(APIRoute):
    """A route whose refusals are pages, in plain words."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the pages of what it may raise."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientDisconnect:
                raise
            except Refused as error:
                refused = error
            except Exception as error:  # noqa: BLE001 - what the API would answer, and log, is what the page says
                said = problems.answer(request, error)
                refused = Refused(said.status_code, json.loads(bytes(said.body)))
            return await _refused(visit(request), refused)

        return handled


async def _refused(here: Visit, error: Refused) -> Response:
    if error.status == 401:  # the session, or its key, has ended, or nobody was signed in
        answer = here.to(SIGN_IN, back=here.here_again) if COOKIE in here.request.cookies else here.to(SIGN_IN)
        answer.delete_cookie(COOKIE)
        return answer
    said = {"why": here.word(str(error)), "problem": error.problem, "was_sent": here.request.method == "POST"}
    try:
        return await here.page("refused.html", error.status, **said)
    except (Problem, SQLAlchemyError):  # nobody is signed in, or the database is away
        return await here.page("refused.html", error.status, is_framed=False, **said)


def _netloc(url: str) -> str:
    """Host and port of a URL; empty for what is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
