"""Budgets, their ledger, and usage. Every query carries the caller's project: others' ids are 404."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from api import answers, forms, submissions
from api.answers import Page
from api.bodies import JsonBody
from api.context import Anyone, Here, Mine, Tenant, moment
from api.problems import refusals
from api.routes.jobs import model_id
from worker.jobs import spending, usage
from worker.jobs.spending import BudgetDocument, LedgerLine, Wanted
from worker.jobs.usage import Question, Usage
from worker.tables import Budget

router = APIRouter(prefix="/v1", tags=["money"], responses=refusals(400, 401, 404, 422, 429, 503))


class BudgetList(Page[BudgetDocument]):
    """All of a project's budgets, the first made first."""


class LedgerList(Page[LedgerLine]):
    """A page of the ledger's lines, the newest first."""


BudgetId = Annotated[UUID, Path(description="the budget's id")]


@router.post(
    "/budgets",
    status_code=201,
    response_model=BudgetDocument,
    responses=refusals(409, 413, 415),
    openapi_extra=forms.body("BudgetCreate"),
)
def make(here: Here, mine: Mine, body: JsonBody) -> Response:
    """Cap what the project spends. What its ledger has of this period already counts."""
    said = submissions.decision(here, forms.BudgetCreate, body)
    wanted = Wanted(said.period, said.limit, said.over, said.time_zone)
    with here.engine.begin() as connection:
        made = _shown(connection, mine, spending.make(connection, mine.project, wanted))
    return answers.answer(made, 201, {"location": f"/v1/budgets/{made.id}"})


@router.get("/budgets", response_model=BudgetList)
def search(here: Here, mine: Mine) -> Response:
    """List the project's budgets, with what is used of each in the period that it is in."""
    with here.reading() as connection:
        found = spending.every(connection, mine.project.id)
        return answers.page(BudgetList, spending.documents(connection, mine.project.id, found, mine.now))


@router.patch(
    "/budgets/{budget_id}",
    response_model=BudgetDocument,
    responses=refusals(413, 415),
    openapi_extra=forms.body("BudgetUpdate"),
)
def change(here: Here, mine: Mine, budget_id: BudgetId, body: JsonBody) -> Response:
    """Change a budget; what is left out stays. Where it is raised, what waits for it goes on, the oldest first."""
    said = submissions.decision(here, forms.BudgetUpdate, body).model_dump(exclude_none=True)
    columns = {{"limit": "micros"}.get(name, name): value for name, value in said.items()}
    with here.engine.begin() as connection:
        found = spending.change(connection, mine.project.id, budget_id, columns, moment(connection))
        shown = _shown(connection, mine, found)
    here.sender.hint()
    return answers.answer(shown)


@router.delete("/budgets/{budget_id}", status_code=204)
def remove(here: Here, mine: Mine, budget_id: BudgetId) -> Response:
    """Delete a budget. What was held for it alone goes on."""
    with here.engine.begin() as connection:
        spending.remove(connection, mine.project.id, budget_id, moment(connection))
    here.sender.hint()
    return Response(status_code=204)


@router.get("/ledger", response_model=LedgerList)
def ledger(here: Here, mine: Mine, wanted: Annotated[forms.LedgerQuery, Query()]) -> Response:
    """What was reserved, billed and given back, line by line."""
    with here.reading() as connection:
        asked = (wanted.job, wanted.since, wanted.until, wanted.cursor, wanted.limit + 1)
        found = spending.lines(connection, mine.project.id, *asked)
    page = found[: wanted.limit]
    return answers.page(LedgerList, page, page[-1].id if len(found) > len(page) else None)


@router.get("/usage", response_model=Usage, responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}})
def used(request: Request, here: Here, who: Anyone, wanted: Annotated[forms.UsageQuery, Query()]) -> Response:
    """What was used and what it cost, by day or week, model, kind, batch, schedule and chosen metadata.

    With `schedule=ID&group_by=run` it is a line for each run; one that took twice the tokens of those before is marked.
    An operator's key without a project asks about all of them. With `Accept: text/csv` the groups come as CSV.
    """
    # of all projects: the latest day that any of their zones is in
    zone = ZoneInfo(who.project.time_zone if who.project else "Pacific/Kiritimati")
    since, until = usage.days(wanted.since, wanted.until, who.now.astimezone(zone).date())
    said: dict[str, Any] = wanted.model_dump(include={"group_by", "limit", "kind", "batch", "schedule"})
    said |= {"model": model_id(here, wanted.model), "metadata": wanted.by_metadata}
    with here.reading() as connection:
        found = usage.report(connection, who.project, Question(since, until, **said))
    if "text/csv" in request.headers.get("accept", ""):
        return Response(usage.csv(found), media_type="text/csv; charset=utf-8")
    return answers.answer(found)


def _shown(connection: Connection, mine: Tenant, budget: Budget) -> BudgetDocument:
    (shown,) = spending.documents(connection, mine.project.id, [budget], mine.now)
    return shown
