"""What Prometheus reads: every figure from Postgres, at that moment."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from api.context import Here, moment
from api.problems import problem
from worker.jobs import metrics
from worker.jobs.metrics import Gauge

router = APIRouter(include_in_schema=False)
_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SCHEME = "Bearer "


class _Found:
    """A collector of what was read."""

    def __init__(self, gauges: list[Gauge]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, as Prometheus's client has them."""
        for gauge in self._gauges:
            family = GaugeMetricFamily(gauge.name, gauge.about, labels=gauge.labels)
            for labels, value in gauge.samples:
                family.add_metric(labels, value)
            yield family


@router.get("/metrics")
def read(request: Request, here: Here) -> Response:
    """The figures, for who has the token; a 503 while the database is away: no zero that nobody has counted."""
    token, said = here.settings.metrics_token, request.headers.get("authorization", "")
    if token is None:
        raise problem(404, "not_found", "metrics have no token here: NORIA_METRICS_TOKEN")
    if not hmac.compare_digest(said.encode(), (_SCHEME + token.get_secret_value()).encode()):
        raise problem(401, "unauthorized", "the token of the metrics is needed: Authorization: Bearer …")
    with here.beside.connect() as connection:
        gauges = list(metrics.read(connection, moment(connection)))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Found(gauges))
    return Response(generate_latest(registry), media_type=_TYPE)
