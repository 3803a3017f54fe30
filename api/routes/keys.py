"""A project, and its API keys: made, rotated and revoked with an admin's key of the project, or by an operator.

No key works for longer than the one that made it: who steals a key cannot prolong what was stolen. The plain key is in
one answer and nowhere else, so a repeated POST cannot give it again: it makes another key, or none (rotate).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import Field

from api import answers, forms, submissions
from api.answers import Page
from api.bodies import JsonBody, MayBeJson
from api.context import Here, Mine, Tenant
from api.problems import refusals
from worker import keys
from worker.errors import Fault, InvalidInput
from worker.keys import KeyDocument, ProjectDocument, Scope
from worker.tables import ApiKey
from worker.text import moment

_MOST = timedelta(days=3650)  # that a key may last which expires: who says more means that it does not

router = APIRouter(prefix="/v1", tags=["keys"], responses=refusals(400, 401, 403, 404, 422, 429, 503))


class NewKey(KeyDocument):
    """A key that was just made, and its plain text, which is not shown again."""

    key: str = Field(description="keep it: only its hash is kept here", examples=["noria_…"])


class KeyList(Page[KeyDocument]):
    """A page of keys, the newest first, ended ones too."""


KeyId = Annotated[UUID, Path(description="the key's id")]


@router.get("/project", response_model=ProjectDocument)
def project(mine: Mine) -> Response:
    """Your project, and what is set up for all of its jobs. An operator changes it: `noria projects set`."""
    return answers.answer(ProjectDocument.model_validate(mine.project))


@router.get("/keys", response_model=KeyList)
def listed(
    here: Here,
    mine: Mine,
    cursor: Annotated[UUID | None, Query(description="the next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="keys on a page")] = 20,
) -> Response:
    """List the project's keys, the newest first: what each may do, when it was last used, and when it ends."""
    with here.reading() as connection:
        found = keys.page(connection, mine.project.id, cursor, limit + 1)
    page = [KeyDocument.model_validate(key) for key in found[:limit]]
    return answers.page(KeyList, page, page[-1].id if len(found) > limit else None)


@router.post(
    "/keys", status_code=201, response_model=NewKey, responses=refusals(413, 415), openapi_extra=forms.body("KeyCreate")
)
def make(here: Here, mine: Mine, body: JsonBody) -> Response:
    """Make a key of the project. The answer alone has its plain text.

    A key whose answer was lost is in the list as never used: delete it.
    """
    said = submissions.decision(here, forms.KeyCreate, body)
    expires_at = _expiry(mine, said.expires_at)
    with here.engine.begin() as connection:
        made, plain = keys.new_key(connection, mine.project, said.name, Scope(said.scope), expires_at)
    return _shown(made, plain)


@router.post(
    "/keys/{key_id}/rotate",
    status_code=201,
    response_model=NewKey,
    responses=refusals(409, 413, 415),
    openapi_extra=forms.body("KeyRotate", required=False),
)
def rotate(here: Here, mine: Mine, key_id: KeyId, body: MayBeJson) -> Response:
    """Replace a key by a new one of the same name and scope, which works for as long as the old one was made for.

    The old key works beside it for `keep_hours`, and is rotated once: a second time is refused (409). Where the answer
    was lost, rotate the new one, with `keep_hours` 0.
    """
    said = submissions.decision(here, forms.KeyRotate, body)
    with here.engine.begin() as connection:
        old = keys.one(connection, mine.project.id, key_id)
        made, plain = keys.rotate(connection, old.id, timedelta(hours=said.keep_hours), mine.ends_at)
    return _shown(made, plain)


@router.delete("/keys/{key_id}", status_code=204)
def revoke(here: Here, mine: Mine, key_id: KeyId) -> Response:
    """Revoke a key, within a second. It stays in the list."""
    with here.engine.begin() as connection:
        keys.revoke(connection, str(keys.one(connection, mine.project.id, key_id).id))
    return Response(status_code=204)


def _expiry(mine: Tenant, wanted: datetime | None) -> datetime | None:
    """When a new key expires; raises InvalidInput for what has passed, or is after the end of the key that makes it."""
    if wanted is None:
        return mine.ends_at
    latest = mine.ends_at or mine.now + _MOST
    if mine.now < wanted <= latest:
        return wanted
    why = "when the key that makes it ends" if mine.ends_at else "in ten years; without it the key does not expire"
    message = f"must lie ahead, and not after {moment(latest)}, {why}"
    raise InvalidInput([Fault("/expires_at", "out_of_range", message)])


def _shown(made: ApiKey, plain: str) -> Response:
    return answers.answer(NewKey(**dict(KeyDocument.model_validate(made)), key=plain), 201)
