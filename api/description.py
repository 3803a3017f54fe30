"""What FastAPI cannot tell in OpenAPI: the headers of answers, and an example of each body and answer.

Examples are made from the schemas, whose fields have examples of their own, so that none can be out of date.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_METHODS = frozenset({"get", "post", "put", "patch", "delete"})


def _header(about: str, schema: Schema | None = None, required: bool = False) -> dict[str, Any]:
    return {"description": about, "required": required, "schema": dict(schema or {"type": "string"})}


_HEADERS = {
    "RequestId": _header("finds the request in the log: the one that was sent, or a new one", required=True),
    "RetryAfter": _header("seconds until it may be asked again", {"type": "integer", "minimum": 1}),
    "Challenge": _header("how to ask: with a key as bearer", required=True),
    "Made": _header("the address of what was made", required=True),
    "Link": _header("a link to the object, good for five minutes", required=True),
    "Replayed": _header("true: this key was sent before, and this is what was made then", {"const": "true"}),
    "FileName": _header("a name for the file", required=True),
}
_OUTPUT = "/v1/jobs/{job_id}/outputs/{n}"
_POSTER = f"{_OUTPUT}/poster"
_RUN = "/v1/schedules/{schedule_id}/run"
_REPLAYED = ("/v1/jobs", "/v1/batches", _RUN)
_FOUND = ("/v1/files", "/v1/schedules")  # a POST may find what was made before
_MADE = ("/v1/jobs", "/v1/batches", "/v1/webhook-endpoints", "/v1/budgets", *_FOUND)
_REFUSED = {
    "401": {"WWW-Authenticate": "Challenge"},
    "429": {"Retry-After": "RetryAfter"},
    "503": {"Retry-After": "RetryAfter"},
}

# What a string of a name is like, where its field has no example.
_SAMPLES = {
    "account": "default",
    "content_type": "video/mp4",
    "custom_id": "row-17",
    "detail": "an example",
    "key": "0198c0de-0000-7000-8000-000000000000/0-video.mp4",
    "model": "wan2.5-t2v-preview",
    "name": "spring",
    "project": "spring",
    "region": "cn-beijing",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "time_zone": "Asia/Shanghai",
    "url": "https://example.com/hooks/noria",
}
_OF_FORMATS = {
    "uuid": "0198c0de-0000-7000-8000-000000000000",
    "date-time": "2026-12-01T06:00:00.000Z",
    "date": "2026-12-01",
    "binary": "…",
}
# The commonest code of each status; `code` in an answer may be another.
_CODES = {
    "400": "bad_request",
    "401": "unauthorized",
    "402": "budget_exhausted",
    "403": "wrong_scope",
    "404": "not_found",
    "408": "too_slow",
    "409": "conflict",
    "410": "pruned",
    "413": "body_too_large",
    "415": "not_json",
    "422": "invalid_input",
    "429": "too_many_requests",
    "503": "database_away",
}


def complete(described: dict[str, Any]) -> None:
    """Adds the headers and the examples to a description; what many operations share stands once, in its components."""
    parts = described["components"]
    parts |= {"headers": _HEADERS, "examples": {}, "responses": {}}
    for path, _, operation in operations(described):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            _exemplify(content, parts)
        for status, response in operation["responses"].items():
            names = headers(operation, path, status)
            response["headers"] = {name: {"$ref": f"#/components/headers/{part}"} for name, part in names.items()}
            for media_type, content in response.get("content", {}).items():
                if media_type == "application/json":
                    _exemplify(content, parts)
            if "application/problem+json" in response.get("content", {}):
                operation["responses"][status] = _refusal(status, response, parts)


def operations(described: Schema) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of each."""
    for path, methods in described["paths"].items():
        yield from ((path, method, operation) for method, operation in methods.items() if method in _METHODS)


def headers(operation: Schema, path: str, status: str) -> dict[str, str]:
    """The headers of the operation's answers of that status, each with its name among the components."""
    found = {"X-Request-Id": "RequestId"} | (_REFUSED.get(status, {}) if path.startswith("/v1/") else {})
    if "requestBody" in operation and path in {"201": _MADE, "200": _FOUND}.get(status, ()):
        found["Location"] = "Made"
    if status == "200" and path in _REPLAYED and ("requestBody" in operation or path == _RUN):
        found["Idempotency-Replayed"] = "Replayed"
    if path in (_OUTPUT, _POSTER) and status == "302":
        found["Location"] = "Link"
    if status == "200" and path.endswith((".csv", ".jsonl")):
        found["Content-Disposition"] = "FileName"
    return found


def example(schema: Schema, components: Schema, name: str = "") -> Any:
    """A value that the schema takes; `name` is that of the field it is for."""
    if "$ref" in schema:
        return example(components[schema["$ref"].rpartition("/")[2]], components, name)
    for word in ("examples", "enum"):
        if schema.get(word):
            return schema[word][0]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        has_none = {"type": "null"} in branches and not any(branch.get("examples") for branch in branches)
        return None if has_none else example(branches[0], components, name)
    return _of_type(schema, components, name)


def _of_type(schema: Schema, components: Schema, name: str) -> Any:
    match schema.get("type"):
        case "object":
            return _fields(schema, components)
        case "array":
            return [example(schema["items"], components, name)]
        case "string":
            return _OF_FORMATS.get(schema.get("format", "")) or _SAMPLES.get(name, "…")
        case "boolean":
            return False
        case "integer" | "number":
            return max(1, schema.get("minimum", 1))
    return {}


def _fields(schema: Schema, components: Schema) -> dict[str, Any]:
    """What is required, and what has an example of its own."""
    required = schema.get("required", ())
    given = {
        name: field
        for name, field in schema.get("properties", {}).items()
        if name in required or (field.get("examples") and "default" not in field)
    }
    return {name: example(field, components, name) for name, field in given.items()}


def _exemplify(content: dict[str, Any], parts: dict[str, Any]) -> None:
    """Gives a body its example, unless it has some: by its schema's name, where that has one."""
    if content.keys() & {"example", "examples"}:
        return
    made = example(content["schema"], parts["schemas"])
    name = content["schema"].get("$ref", "").rpartition("/")[2]
    if not name:
        content["example"] = made
        return
    parts["examples"][name] = {"value": made}
    content["examples"] = {name: {"$ref": f"#/components/examples/{name}"}}


def _refusal(status: str, response: dict[str, Any], parts: dict[str, Any]) -> dict[str, str]:
    """A refusal, which is the same of every operation."""
    name, code = f"Refused{status}", _CODES[status]
    said = {"type": f"urn:noria:problem:{code}", "title": response["description"], "status": int(status)}
    said |= {"code": code, "request_id": "5f0c2a1e9b7d4c3f8e6a1b2c3d4e5f60"}
    response["content"]["application/problem+json"]["example"] = said
    assert parts["responses"].setdefault(name, response) == response, f"{status} is refused in two ways"
    return {"$ref": f"#/components/responses/{name}"}
