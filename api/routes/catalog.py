"""The models of the catalog, and the health of this process."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from api import answers
from api.answers import Page
from api.context import Anyone, Here
from api.probes import NEEDED
from api.problems import refusals
from worker.document import Answer
from worker.errors import InvalidInput, NotFound
from worker.kinds.fields import Text

router = APIRouter()

Status = Literal["ready", "degraded", "unready"]
_REFUSALS = refusals(401, 404, 422, 429, 503)


class ModelDocument(BaseModel):
    """A model of the catalog: what it makes and takes, its defaults, and its limits and prices by region."""

    object: Literal["model"]
    id: str
    family: str
    kinds: list[str]
    aliases: list[str]
    fields: list[str] = Field(description="the input fields that it takes")
    requires: list[str]
    sizes: Any
    resolutions: list[str]
    ratios: list[str]
    durations: list[int] = Field(description="seconds")
    default: dict[str, Any] = Field(description="what is sent where the input leaves it out")
    regions: dict[str, dict[str, Any]]
    currency: Literal["CNY"]
    retired: date | None = Field(description="when the provider ended it")
    retired_by: Literal["notice", "reports"] | None = Field(
        description="notice: jobs are refused; reports: taken, warned"
    )
    successor: str | None = Field(description="what to take instead of a retired one")


class ModelList(Page[ModelDocument]):
    """The models."""


class Check(Answer):
    """Whether a service answers, and why it does not."""

    ok: bool
    why: str | None


class Readiness(Answer):
    """`degraded`: a service is away that is not needed at once."""

    status: Status
    checks: dict[str, Check]


@router.get("/v1/models", tags=["models"], response_model=ModelList, responses=_REFUSALS)
def models(
    here: Here, who: Anyone, kind: Annotated[Text | None, Query(description="models that make this")] = None
) -> Response:
    """The models: what each makes and takes, its limits and prices by region."""
    data = [model.as_json() for model in here.catalog.models(kind)]
    return JSONResponse({"object": "list", "data": data, "has_more": False, "next_cursor": None})


@router.get("/v1/models/{name}", tags=["models"], response_model=ModelDocument, responses=_REFUSALS)
def model(here: Here, who: Anyone, name: Annotated[Text, Path(description="a model's id or alias")]) -> Response:
    """One model."""
    try:
        return JSONResponse(here.catalog.offered(name).as_json())
    except InvalidInput as error:
        raise NotFound(error.faults[0].message) from None


@router.get("/healthz", tags=["health"])
async def alive(here: Here) -> dict[str, str]:
    """The process lives; nothing is asked of anything else. `catalog`: the same in processes that go by the same."""
    return {"status": "ok", "catalog": here.catalog.digest}


@router.get("/readyz", tags=["health"], response_model=Readiness, responses={503: {"model": Readiness}})
async def ready(here: Here) -> Response:
    """Whether jobs can be taken. Without the broker or the bucket they can: the rows wait until those are back."""
    wrong = await here.probes.found()
    missing = {name for name, why in wrong.items() if why is not None}
    status: Status = "unready" if missing & NEEDED else "degraded" if missing else "ready"
    checks = {name: Check(ok=why is None, why=why) for name, why in wrong.items()}
    return answers.answer(Readiness(status=status, checks=checks), 503 if status == "unready" else 200)
