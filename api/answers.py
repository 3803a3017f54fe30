"""Answers as responses: the models that OpenAPI shows, written as built. FastAPI does not validate them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from fastapi.responses import Response
from pydantic import Field

from worker.document import Answer, JobDocument

T = TypeVar("T")


class Page(Answer, Generic[T]):
    """A page of a list; where there is a `next_cursor`, there are more."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    next_cursor: str | None = Field(description="give it as `cursor` to get the next page")


class JobList(Page[JobDocument]):
    """A page of jobs, the newest first; of children, in the order of their rounds and places."""


def answer(said: Answer, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The answer as a response."""
    return Response(said.model_dump_json(), status, headers, media_type="application/json")


def page(form: type[Page[T]], data: Sequence[T], next_cursor: object = None) -> Response:
    """A page as a response."""
    cursor = None if next_cursor is None else str(next_cursor)
    return answer(form(data=list(data), has_more=cursor is not None, next_cursor=cursor))


def streamed(form: type[Answer]) -> dict[str, Any]:
    """The content, for OpenAPI, of a stream of Server-Sent Events: the schema is that of one of them."""
    of = {"$ref": f"#/components/schemas/{form.__name__}"}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": of}
    about = {"id": {"type": "string", "description": "give it as Last-Event-ID to go on"}, "event": {"type": "string"}}
    one = {"type": "object", "properties": {**about, "data": data}, "required": ["id", "event", "data"]}
    return {"text/event-stream": {"schema": one}}
