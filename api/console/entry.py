"""In and out: by an API key, or by a link that works once; and the language."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from api import bodies
from api.console.inside import Api, ApiRefused
from api.console.shown import LANGUAGES
from api.console.visit import HOME, SIGN_IN, Page, Refused, Visit, Visiting
from api.sessions import COOKIE
from worker import keys

router = APIRouter(prefix="/console", route_class=Page)
_SCHEME = "bearer "


@router.get("/sign-in")
async def ask(here: Visiting, back: str = "") -> Response:
    """The form for a key; `back` is where a session ended."""
    why = here.word("Your session has ended: sign in, and go on.") if back else ""
    return await here.page("sign_in.html", back=_ours(back), project=None, why=why, named="")


@router.post("/sign-in")
async def sign_in(here: Visiting) -> Response:
    """Begins a session, if the API takes the key; an operator's names a project."""
    here.check_origin()  # and no token: it may be anybody's session that goes on here, or nobody's
    said = await bodies.fields(here.request)
    key, named = said.get("key", "").strip(), said.get("project", "").strip()
    session = here.context.sessions.made(keys.digest(key), named or None)
    try:
        await Api(here.request.app, session).get("/v1/project")
    except ApiRefused as error:
        known = {401: "This key is not known, or has ended.", 400: "This is an operator's key: name a project too."}
        why = here.word(known.get(error.status, "")) or str(error)
        asked = {"back": _ours(said.get("back", HOME)), "project": None, "why": why, "named": named}
        return await here.page("sign_in.html", 401, **asked)
    return here.signed_in(session, _ours(said.get("back", HOME)))


@router.post("/sign-out")
async def sign_out(here: Visiting) -> Response:
    """Ends the session in this browser."""
    await here.fields()
    answer = here.to(SIGN_IN)
    answer.delete_cookie(COOKIE)
    return answer


@router.post("/link")
async def link(request: Request, here: Visiting) -> Response:
    """A link that signs in once, within a day, as the key in the Authorization header; for programs."""
    said = request.headers.get("authorization", "")
    plain = said[len(_SCHEME) :].strip() if said.lower().startswith(_SCHEME) else ""
    session = here.context.sessions.made(keys.digest(plain), request.headers.get("noria-project"))
    try:
        await Api(request.app, session).get("/v1/project")
    except ApiRefused as error:
        raise HTTPException(error.status, str(error)) from None
    token = here.context.sessions.link(session.key, session.project)
    return JSONResponse({"url": f"{here.context.settings.public_url.rstrip('/')}/console/enter?link={token}"}, 201)


@router.get("/enter")
async def enter(here: Visiting, link: str = "") -> Response:
    """Signs in by a link that was not used yet."""
    found = here.context.sessions.linked(link)
    if found is None or not await run_in_threadpool(_spent, here, found[0], found[2]):
        raise Refused(403, "this link was used before, or is too old: make another, or sign in with a key")
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
