"""JSON that has the form asked for: a JSON Schema is filled with the sentences of documents.

The form comes from `response_format`, else from the first JSON object in the instructions, a schema or an example
such as `{"summary": "...", "bullets": [...]}`; else it is `{"summary": "…"}`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ops.sandbox.extracts import Document

MOST_TRIES = 50  # braces looked at for an object
DEFAULT = {"type": "object", "properties": {"summary": {"type": "string"}}}
TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "string"}
Fill = Callable[[dict[str, Any], "Matter", str], Any]
IDS = ("id", "document_id", "doc_id")


@dataclass(frozen=True)
class Matter:
    """What a form is filled with."""

    documents: list[Document]

    @property
    def sentences(self) -> list[str]:
        """The sentences of all documents."""
        return [sentence for document in self.documents for sentence in document.sentences()]


def wanted(instructions: str, response_format: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that an answer shall have."""
    given = response_format.get("json_schema")
    if isinstance(given, dict) and isinstance(given.get("schema"), dict):
        return dict(given["schema"])
    example = _first_object(instructions)
    return DEFAULT if example is None else _schema(example)


def filled(schema: Any, matter: Matter, name: str = "") -> Any:
    """Return a value that the schema allows, made of what the documents say; `name` is the value's key.

    Of JSON Schema it knows the types, properties, items, enumerations and sizes; what else there is it takes for text.
    """
    if not isinstance(schema, dict):
        return _string({}, matter, name)
    if "const" in schema:
        return schema["const"]
    for choices in ("enum", "anyOf", "oneOf"):
        if schema.get(choices):
            first = schema[choices][0]
            return first if choices == "enum" else filled(first, matter, name)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    fill: Fill = FILLED.get(kind if isinstance(kind, str) else kind[0], _string)
    return fill(schema, matter, name)


def _object(schema: dict[str, Any], matter: Matter, _name: str) -> dict[str, Any]:
    return {key: filled(inner, matter, key) for key, inner in (schema.get("properties") or {}).items()}


def _array(schema: dict[str, Any], matter: Matter, name: str) -> list[Any]:
    given = schema.get("items")
    items = given if isinstance(given, dict) else {"type": "string"}
    parts = [Matter([document]) for document in matter.documents]
    if items.get("type", "string") == "string" and name not in ("ids", "documents"):
        parts = [Matter([Document("", sentence)]) for sentence in matter.sentences]
    parts += [Matter([])] * (schema.get("minItems", 0) - len(parts))
    return [filled(items, part) for part in parts[: schema.get("maxItems", len(parts))]]


def _string(schema: dict[str, Any], matter: Matter, name: str) -> str:
    if name in IDS and matter.documents:
        return matter.documents[0].id
    return " ".join(matter.sentences)[: schema.get("maxLength")]


def _number(schema: dict[str, Any], matter: Matter, _name: str) -> int:
    return int(max(schema.get("minimum", 0), min(len(matter.sentences), schema.get("maximum", len(matter.sentences)))))


FILLED: dict[str, Fill] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _number,
    "number": _number,
    "boolean": lambda _schema, _matter, _name: True,
    "null": lambda _schema, _matter, _name: None,
}


def _first_object(text: str) -> dict[str, Any] | None:
    plain = re.sub(r"\[\s*(?:\.\.\.|…)\s*\]", "[]", text)
    plain = re.sub(r"([:\[,]\s*)(?:\.\.\.|…)", r'\1""', plain)
    decoder = json.JSONDecoder()
    for brace in list(re.finditer(r"\{", plain))[:MOST_TRIES]:
        try:
            found, _ = decoder.raw_decode(plain, brace.start())
        except (ValueError, RecursionError):
            continue
        if found:
            return dict(found)
    return None


def _schema(example: Any) -> dict[str, Any]:
    if isinstance(example, dict):
        if isinstance(example.get("properties"), dict):
            return example
        return {"type": "object", "properties": {key: _schema(value) for key, value in example.items()}}
    if isinstance(example, list):
        return {"type": "array", "items": _schema(example[0]) if example else {"type": "string"}}
    return {"type": TYPES[type(example)]}
