"""In and out: by an API key, or by a link that works once; and the language."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from api import bodies
from api.console.shown import LANGUAGES
from api.console.visit import HOME, SIGN_IN, Page, Visit, Visiting
from api.context import ACTING, Mine, credential
from api.problems import problem
from api.sessions import COOKIE
from worker import keys
from worker.errors import KeyExpired, NotFound

router = APIRouter(prefix="/console", route_class=Page)
for_programs = APIRouter(prefix="/console")


@router.get("/sign-in")
async def ask(here: Visiting, back: str = "") -> Response:
    """The form for a key; `back` is where a session ended."""
    why = here.word("Your session has ended: sign in, and go on.") if back else ""
    return await here.page("sign_in.html", is_framed=False, back=_ours(back), why=why, named="")


@router.post("/sign-in")
async def sign_in(here: Visiting) -> Response:
    """Begins a session, if the key is known; an operator's names a project."""
    here.check_origin()  # and no token: it may be anybody's session that goes on here, or nobody's
    said = await bodies.fields(here.request)
    key, named = keys.digest(said.get("key", "").strip()), said.get("project", "").strip()
    back, why = _ours(said.get("back", HOME)), "This key is not known, or has ended."
    with suppress(KeyExpired, NotFound):
        caller = await here.context.callers.find(key, named or None, 0)
        if caller and caller.project:
            return here.signed_in(here.context.sessions.made(key, named or None), back)
        why = "This is an operator's key: name a project too." if caller else why
    return await here.page("sign_in.html", 401, is_framed=False, back=back, why=here.word(why), named=named)


@router.post("/sign-out")
async def sign_out(here: Visiting) -> Response:
    """Ends the session in this browser."""
    await here.fields()
    answer = here.to(SIGN_IN)
    answer.delete_cookie(COOKIE)
    return answer


@for_programs.post("/link")
async def link(request: Request, here: Visiting, who: Mine) -> Response:
    """A link that signs in once, within a day, as the key in the Authorization header."""
    key, project = credential(here.context, request, request.headers.get(ACTING))
    token = here.context.sessions.link(key, project, who.now)
    return JSONResponse({"url": f"{here.context.settings.public_url.rstrip('/')}/console/enter?link={token}"}, 201)


@router.get("/enter")
async def enter(here: Visiting, link: str = "") -> Response:
    """Signs in by a link that was not used yet."""
    found = here.context.sessions.linked(link)
    if found is None or not await run_in_threadpool(_spent, here, found[0], found[2]):
        raise problem(403, "spent", "this link was used before, or is too old: make another, or sign in with a key")
    return here.signed_in(here.context.sessions.made(found[0], found[1]))


@router.post("/language")
async def language(here: Visiting) -> Response:
    """Chooses a language."""
    said = await here.fields()
    chosen = said.get("language", "")
    return here.spoken(chosen if chosen in LANGUAGES else "en", _ours(said.get("back", HOME)))


def _spent(here: Visit, key: bytes, made_at: datetime) -> bool:
    with here.context.engine.begin() as connection:
        return keys.spend_link(connection, key, made_at)


def _ours(back: str) -> str:
    """The address, if it is a page of the console: nobody is sent elsewhere."""
    try:
        said = urlsplit(back)
    except ValueError:
        return HOME
    parts = unquote(said.path).replace("\\", "/").split("/")
    is_ours = not (said.scheme or said.netloc) and parts[:2] == ["", "console"]
    return back if is_ours and not {"", ".", ".."} & {*parts[2:]} else HOME
