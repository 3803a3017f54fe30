"""What Prometheus reads: every figure from Postgres, at that moment."""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.context import Here, moment
from api.problems import problem
from worker.jobs import metrics

router = APIRouter(include_in_schema=False)
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/metrics")
def read(request: Request, here: Here) -> Response:
    """The figures, for who has the token; a 503 while the database is away: no zero that nobody has counted."""
    token, said = here.settings.metrics_token, request.headers.get("authorization", "")
    if token is None:
        raise problem(404, "not_found", "metrics have no token here: NORIA_METRICS_TOKEN")
    if not hmac.compare_digest(said.encode(), f"Bearer {token.get_secret_value()}".encode()):
        raise problem(401, "unauthorized", "the token of the metrics is needed: Authorization: Bearer …")
    with here.beside.connect() as connection:
        return Response(metrics.written(connection, moment(connection)), media_type=_TYPE)
