"""Answers in JSON: asked for, mended, and held against a schema that a user gave.

A schema is a small program of its author's, so it is run within bounds: it fetches nothing, follows so many references
and no more, and its regular expressions are told to the model but not run, since one of them can take for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import json_repair
import referencing
from jsonschema import Draft202012Validator, SchemaError, ValidationError, validators
from referencing.exceptions import Unresolvable

from worker.errors import NoriaError

SCHEMA_LIMIT = 20_000  # characters
_FOLLOWED = 5_000  # references in one validation
_SLIPS = 3  # that an answer is told of
_ANY = "Answer with one JSON object and nothing else."


class Unfitting(NoriaError):
    """The answer is no JSON, or not what the schema asks for; the message says what is wrong with it."""

    code = "answer_unfitting"


class _Endless(Exception):
    """A validation followed too many references."""


def slip(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a user's schema; None: nothing."""
    if len(json.dumps(schema, ensure_ascii=False)) > SCHEMA_LIMIT:
        return f"is a schema of more than {SCHEMA_LIMIT:,} characters"
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        return f"is no JSON schema: {getattr(error, 'message', 'it is too deep')[:300]}"
    return None


def told(wanted: str | Mapping[str, Any] | None, asked: str) -> str | None:
    """What the model must be told of the form; None: nothing. JSON mode wants the word itself among what is asked.

    (Alibaba docs, 'Structured output'.)
    """
    if isinstance(wanted, Mapping):
        return f"{_ANY} It fits this JSON schema:\n{json.dumps(wanted, ensure_ascii=False)}"
    return _ANY if wanted == "json" and "json" not in asked.lower() else None


def read(content: str, schema: Mapping[str, Any] | None) -> Any:
    """The JSON value in an answer, mended if need be; raises Unfitting."""
    value = _value(content)
    if schema is not None and (slips := list(_slips(value, schema))):
        raise Unfitting("; ".join(slips))
    return value


def _value(content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    try:
        value = json_repair.loads(content)
    except (ValueError, RecursionError):
        value = ""
    if not isinstance(value, dict | list) or not value:  # prose is mended to nothing
        raise Unfitting("the answer is no JSON")
    return value


def _slips(value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    try:
        for error, _ in zip(_validator(schema).iter_errors(value), range(_SLIPS), strict=False):
            yield _said(error)
    except (_Endless, RecursionError, Unresolvable) as error:
        yield f"the schema cannot be followed: {type(error).__name__}"


def _said(error: ValidationError) -> str:
    place = "/".join(map(str, error.absolute_path))
    return f"{place or 'the answer'}: {error.message[:300]}"


def _validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    followed = iter(range(_FOLLOWED))

    def reference(validator: Any, ref: str, instance: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
        if next(followed, None) is None:
            raise _Endless
        yield from Draft202012Validator.VALIDATORS["$ref"](validator, ref, instance, schema)

    bounded = {"$ref": reference, "$dynamicRef": reference, "pattern": _unchecked, "patternProperties": _unchecked}
    made: type[Draft202012Validator] = validators.extend(Draft202012Validator, bounded)  # type: ignore[no-untyped-call]
    return made(schema, registry=referencing.Registry())  # which, unlike the default one, fetches nothing


def _unchecked(*_: Any) -> Iterator[ValidationError]:
    return iter(())
