"""The catalog, and prices without a job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from api import answers, describe, submissions
from api.auth import Anyone
from api.context import Here
from api.routes.jobs import estimate
from api.schemas import EstimateCreate
from api.submissions import JsonBody
from worker.errors import InvalidInput, NotFound
from worker.kinds.fields import Text

router = APIRouter(prefix="/v1", tags=["models"], responses=describe.refusals(401, 404, 422, 429, 503))


@router.get("/models", response_model=answers.ModelList)
def models(
    here: Here, who: Anyone, kind: Annotated[Text | None, Query(description="models that make this")] = None
) -> Response:
    """The models: what each makes and takes, its limits and prices by region."""
    return answers.listed([model.as_json() for model in here.catalog.models(kind)])


@router.get("/models/{name}", response_model=answers.Model)
def model(here: Here, who: Anyone, name: Annotated[Text, Path(description="a model's id or alias")]) -> Response:
    """One model."""
    try:
        return JSONResponse(here.catalog.offered(name).as_json())
    except InvalidInput as error:
        raise NotFound(error.faults[0].message) from None


@router.post(
    "/estimates",
    response_model=answers.Estimate,
    responses=describe.refusals(400, 413, 415),
    openapi_extra=describe.body(EstimateCreate),
)
def price(here: Here, who: Anyone, body: JsonBody) -> Response:
    """What a job would cost; nothing is made. The estimate is null where no price is known."""
    return JSONResponse(estimate(submissions.estimate(here, body, who.now)))
