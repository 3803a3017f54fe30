"""Who asks: `Authorization: Bearer noria_…`, looked up by its hash, and the project that the request is about.

A key that is missing, unknown, revoked or not a key at all gets one and the same answer. An operator's key acts for a
project that the header Noria-Project names; a project's own key may name its own there, and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.context import Context, Here
from api.problems import problem
from worker import keys
from worker.errors import NotFound
from worker.keys import Caller
from worker.models import Project

_BEARER = HTTPBearer(
    auto_error=False, scheme_name="key", bearerFormat="noria_…", description="an API key of a project: noria_…"
)
_CHALLENGE = {"www-authenticate": "Bearer"}


@dataclass(frozen=True)
class Tenant:
    """The project that a request is about, and Postgres's time when it was let in."""

    project: Project
    now: datetime


def caller(
    request: Request,
    here: Here,
    said: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    acting: Annotated[
        str | None, Header(alias="Noria-Project", description="the project that an operator's key acts for")
    ] = None,
) -> Caller:
    """Who asks; raises problems: 401, 429 over the key's rate, 404 for a project that is not the caller's."""
    known = _known(here, said.credentials, acting) if said else None
    if known is None:
        refusal = problem(401, "unauthorized", "a valid key is needed: Authorization: Bearer noria_…")
        refusal.headers = _CHALLENGE
        raise refusal
    here.rates.spend(known.key_id)
    request.scope["state"]["project"] = known.project.name if known.project else None
    return known


def tenant(who: Annotated[Caller, Depends(caller)]) -> Tenant:
    """The project that the request is about; raises a problem, 400, when an operator did not name it."""
    if who.project is None:
        raise problem(400, "project_required", "an operator's key names the project in the header Noria-Project")
    return Tenant(who.project, who.now)


Anyone = Annotated[Caller, Depends(caller)]
Mine = Annotated[Tenant, Depends(tenant)]


def _known(here: Context, plain: str, acting: str | None) -> Caller | None:
    # autocommit: one round trip, where a transaction would take three
    with here.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        known = keys.authenticate(connection, plain)
        if known is None or acting is None:
            return known
        if known.project is None:
            return Caller(known.key_id, keys.project(connection, acting), known.now)
    if known.project.name != acting:
        raise NotFound("no such project")
    return known
