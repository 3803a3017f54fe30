"""What /openapi.json says beyond what FastAPI finds by itself: bodies that we read, problems, the kinds' inputs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api import answers, schemas
from api.problems import MEDIA_TYPE
from worker import catalog
from worker.kinds import OFFERED

TITLE = "Noria"
ABOUT = """\
A job queue for generated media on DashScope: submit a job, and find its output in your own bucket.

- A key goes with every request: `Authorization: Bearer noria_…`. An operator's key names a project in `Noria-Project`.
- Refusals and failures are `application/problem+json` (RFC 9457); `code` is stable, `errors` names every wrong field.
- Times are RFC 3339 in UTC, money is a decimal string, ids are UUIDv7.
- With an `Idempotency-Key` a submission may be repeated: the first job is answered, with `Idempotency-Replayed: true`.
"""
_REF = "#/components/schemas/"


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The statuses with which a route refuses, for its `responses`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF + answers.Problem.__name__}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def body(form: type[schemas.EstimateCreate]) -> dict[str, Any]:
    """The request body of a route that reads it itself, with an example for each kind."""
    examples = {kind: {"summary": kind, "value": example(kind)} for kind in OFFERED}
    content = {"application/json": {"schema": {"$ref": _REF + form.__name__}, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def plain_body(form: str) -> dict[str, Any]:
    """The request body of a route that reads it itself, by the name of its form."""
    content = {"application/json": {"schema": {"$ref": _REF + form}}}
    return {"requestBody": {"required": True, "content": content}}


def upload() -> dict[str, Any]:
    """The request body of the route that takes a file."""
    file = {"type": "string", "format": "binary", "description": "the file, with its name"}
    form = {"type": "object", "properties": {"file": file}, "required": ["file"], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def example(kind: str) -> dict[str, Any]:
    """A body that can be sent as it is: the kind's first model, and what that needs; or its first field, if nothing."""
    model = next(model for model in catalog.load().models(kind) if not model.retired)
    fields = {name: field for name, field in OFFERED[kind].input.model_fields.items() if field.examples}
    needed = [name for name, field in fields.items() if field.is_required() or name in model.requires]
    wanted = {name: (fields[name].examples or [None])[0] for name in needed or list(fields)[:1]}
    return {"kind": kind, "model": model.id, "input": wanted}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of the app, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=TITLE, version=app.version, description=ABOUT, routes=app.routes)
        components = made.setdefault("components", {}).setdefault("schemas", {})
        inputs = [kind.input for kind in OFFERED.values()]
        bodies: list[type[BaseModel]] = [schemas.EstimateCreate, schemas.JobCreate, schemas.ResolveCreate]
        bodies += [schemas.ScheduleCreate, schemas.ScheduleUpdate]
        forms: list[type[BaseModel]] = [*bodies, answers.Problem, *inputs]
        for form in forms:
            components |= _schemas(form)
        of_kinds = [{"$ref": _REF + form.__name__} for form in inputs]
        for form in (schemas.EstimateCreate, schemas.JobCreate):
            components[form.__name__]["properties"]["input"]["anyOf"] = of_kinds
        app.openapi_schema = made
    return app.openapi_schema


def _schemas(form: type[BaseModel]) -> dict[str, Any]:
    """A model's schema and those that it refers to, by name."""
    own = form.model_json_schema(ref_template=_REF + "{model}")
    return {**own.pop("$defs", {}), form.__name__: own}
