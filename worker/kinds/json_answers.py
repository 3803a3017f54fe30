"""Answers in JSON: asked for, mended, and held against a schema that a user gave.

A schema is a small program of its author's, so it is run within bounds: it fetches nothing, takes so many steps and no
more, and its regular expressions are told to the model but not run, since one of them can take for ever. What hangs on
them is not held against an answer either: which properties are additional beside `patternProperties`, and which are
unevaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import referencing
from jsonschema import Draft202012Validator, ValidationError, validators

from worker.errors import NoriaError
from worker.kinds.fields import storable
from worker.kinds.reading import child

SCHEMA_LIMIT = 20_000  # characters
_SECONDS = 10.0  # by the clock, to mend an answer
_FENCED = re.compile(r"\s*```(?:json)?\s([^`]*)```\s*")
_STEPS = 100_000  # keywords held against values in one validation
_SLIPS = 3  # that an answer is told of
_ANY = "Answer with one JSON object and nothing else."

_Check = Callable[[Any, Any, Any, Mapping[str, Any]], Any]


class Unfitting(NoriaError):
    """The answer is no JSON, or not what the schema asks for; the message says what is wrong with it."""

    code = "answer_unfitting"


class _Endless(Exception):
    """A validation took too many steps."""


def slip(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a user's schema; None: nothing."""
    try:
        if len(json.dumps(schema, ensure_ascii=False, allow_nan=False)) > SCHEMA_LIMIT:
            return f"is a schema of more than {SCHEMA_LIMIT:,} characters"
        Draft202012Validator.check_schema(schema)
    except Exception as error:  # noqa: BLE001 - whatever a user's program comes to is said to its author
        return f"is no JSON schema: {_reason(error)}"
    return None


def told(wanted: str | Mapping[str, Any] | None, asked: str) -> str | None:
    """What the model must be told of the form; None: nothing. JSON mode wants the word itself among what is asked.

    (Alibaba docs, 'Structured output'.)
    """
    if isinstance(wanted, Mapping):
        return f"{_ANY} It fits this JSON schema:\n{json.dumps(wanted, ensure_ascii=False)}"
    return _ANY if wanted == "json" and "json" not in asked.lower() else None


def read(content: str, schema: Mapping[str, Any] | None) -> Any:
    """The JSON value in an answer, mended if need be and fit to be stored; raises Unfitting."""
    value = _kept(_value(content))
    if schema is not None and (slips := list(_slips(value, schema))):
        raise Unfitting("; ".join(slips))
    return value


def _value(content: str) -> Any:
    """Strictly first; what has to be mended is so apart, since the time that takes grows with the square."""
    fenced = _FENCED.fullmatch(content)
    try:
        return json.loads(fenced[1] if fenced else content)
    except (ValueError, RecursionError):
        pass
    return json.loads(_mended(content))


@lru_cache(maxsize=256)  # a document's answer is read again in each step of its job
def _mended(content: str) -> str:
    try:
        answer = child.run("json", content.encode(errors="replace"), len(content), _SECONDS)
    except child.Exhausted:
        raise Unfitting("the answer is no JSON, and takes too long to be mended") from None
    if "json" not in answer:
        raise Unfitting("the answer is no JSON")
    return str(answer["json"])


def _kept(value: Any) -> Any:
    """The value as the database takes it; what JSON cannot say, though Python reads it, is refused: NaN, Infinity."""
    try:
        json.dumps(value, allow_nan=False)
        return storable(value)
    except (ValueError, RecursionError) as error:
        raise Unfitting(f"the answer is no JSON: {_reason(error)}") from None


def _slips(value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    try:
        for error, _ in zip(_validator(schema).iter_errors(value), range(_SLIPS), strict=False):
            yield _said(error)
    except Exception as error:  # noqa: BLE001 - a reference to what is no schema can raise anything
        yield f"the schema cannot be followed: {type(error).__name__}"


def _said(error: ValidationError) -> str:
    place = "/".join(map(str, error.absolute_path))
    return f"{place or 'the answer'}: {error.message[:300]}"


def _reason(error: Exception) -> str:
    return "it is too deep" if isinstance(error, RecursionError) else str(getattr(error, "message", error))[:300]


def _validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    steps = iter(range(_STEPS))
    checks: dict[str, _Check] = {**Draft202012Validator.VALIDATORS, **_OURS}
    if "patternProperties" in json.dumps(schema):
        checks["unevaluatedProperties"] = _unchecked
    bounded = {name: _counted(check, steps) for name, check in checks.items()}
    made: type[Draft202012Validator] = validators.extend(Draft202012Validator, bounded)  # type: ignore[no-untyped-call]
    made.evolve = _evolved  # type: ignore[method-assign,assignment]
    return made(schema, registry=referencing.Registry())  # which, unlike the default one, fetches nothing


def _counted(check: _Check, steps: Iterator[int]) -> _Check:
    def counted(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Any:
        if next(steps, None) is None:
            raise _Endless
        return check(validator, wanted, instance, schema)

    return counted


def _evolved(validator: Any, **changes: Any) -> Any:
    """The same bounds for a part of the schema. The library's own way trades them for others where a part says so."""
    kept = {"schema": validator.schema, "_resolver": validator._resolver}  # noqa: SLF001 - as the library's own does
    return type(validator)(**{**kept, **changes})


def _unchecked(*_: Any) -> Iterator[ValidationError]:
    return iter(())


def _additional(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Any:
    check = _unchecked if "patternProperties" in schema else Draft202012Validator.VALIDATORS["additionalProperties"]
    return check(validator, wanted, instance, schema)


def _unique(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    """By their text, since the library compares each with each."""
    items = instance if wanted and isinstance(instance, list) else []
    if len({json.dumps(item, sort_keys=True) for item in items}) < len(items):
        yield ValidationError("has the same item twice")


_OURS: dict[str, _Check] = {
    "pattern": _unchecked,
    "patternProperties": _unchecked,
    "additionalProperties": _additional,
    "uniqueItems": _unique,
}
