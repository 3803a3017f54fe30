"""What the provider answers, read leniently: counts, links and objects, and JSON that a model wrote.

Answers differ by model and by year: a number may be a string, a field may be missing or of another type.

A JSON schema that a user gives is a program of its author's, so validation is bounded: it fetches nothing and ends
after so many steps. Its regular expressions are told to the model but never run, since one of them can take forever.
What depends on them is not checked either: which properties are additional beside `patternProperties`, and which are
unevaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeGuard

import referencing
from jsonschema import Draft202012Validator, ValidationError, validators

from worker import text
from worker.errors import NoriaError
from worker.kinds import reading

SCHEMA_LIMIT = 20_000  # characters

_COUNT_LIMIT = 10**9  # of anything that one call uses: its price, and the sum of a batch's lines, fit into a bigint
_TOKENS = {
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "cached_tokens": ("prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens"),
    "reasoning_tokens": ("output_tokens_details.reasoning_tokens", "completion_tokens_details.reasoning_tokens"),
}

_SECONDS = 10.0  # of the clock, to mend an answer
_FENCED = re.compile(r"\s*```(?:json)?\s([^`]*)```\s*")
_STEPS = 100_000  # keywords applied to values in one validation
_TOLD = 3  # faults that an answer is told of
_ANY = "Answer with one JSON object and nothing else."

_Check = Callable[[Any, Any, Any, Mapping[str, Any]], Any]


class Unfitting(NoriaError):
    """The answer is no JSON, or not what the schema asks for; the message says what is wrong with it."""

    code = "answer_unfitting"


class _Endless(Exception):
    """A validation took too many steps."""


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def is_link(value: Any) -> TypeGuard[str]:
    """Whether it is a link that can be fetched."""
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def tokens(counted: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens by what they were for, in the native interface's words or OpenAI's; only those that were told."""
    return known({name: _first(counted, paths) for name, paths in _TOKENS.items()})


def choice(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first answer of a conversation; empty when there is none."""
    return next(map(mapping, items(output.get("choices"))), {})


def number(value: Any) -> int | float | None:
    """A number above zero, written as one or as a string; None for anything else, and for what is no count at all."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        real = float(value)
    except (ValueError, OverflowError):
        return None
    if not 0 < real < _COUNT_LIMIT:  # False for NaN
        return None
    return int(real) if real.is_integer() else real


def storable(value: Any) -> Any:
    """JSON that others wrote, as Postgres takes it: texts cleaned at any depth, NaN and Infinity as None."""
    match value:
        case str():
            return text.storable(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {storable(name): storable(each) for name, each in value.items()}
        case list() | tuple():
            return [storable(each) for each in value]
        case _:
            return value


def schema_fault(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a user's schema; None: nothing."""
    try:
        if len(json.dumps(schema, ensure_ascii=False, allow_nan=False)) > SCHEMA_LIMIT:
            return f"is a schema of more than {SCHEMA_LIMIT:,} characters"
        Draft202012Validator.check_schema(schema)
    except Exception as error:  # noqa: BLE001 - whatever a user's schema raises is told to its author
        return f"is no JSON schema: {_reason(error)}"
    return None


def instruction(wanted: str | Mapping[str, Any] | None, asked: str) -> str | None:
    """What the model must be told of the answer's form; None: nothing.

    JSON mode requires the word JSON in the messages (Alibaba docs, 'Structured output').
    """
    if isinstance(wanted, Mapping):
        return f"{_ANY} It fits this JSON schema:\n{json.dumps(wanted, ensure_ascii=False)}"
    return _ANY if wanted == "json" and "json" not in asked.lower() else None


def parsed_json(content: str, schema: Mapping[str, Any] | None) -> Any:
    """The JSON value in an answer, repaired if need be and fit to be stored; raises Unfitting."""
    value = _kept(_value(content))
    if schema is not None and (faults := list(_faults(value, schema))):
        raise Unfitting("; ".join(faults))
    return value


def _first(counted: Mapping[str, Any], paths: Iterable[str]) -> int | float | None:
    """The first number above zero at one of the paths, each a name or a name within a named object."""
    return next(filter(None, (number(_at(counted, path)) for path in paths)), None)


def _at(counted: Mapping[str, Any], path: str) -> Any:
    outer, _, inner = path.partition(".")
    return mapping(counted.get(outer)).get(inner) if inner else counted.get(outer)


def _value(content: str) -> Any:
    """Parsed strictly if possible; else repaired in a process of its own, since the time grows with the square."""
    fenced = _FENCED.fullmatch(content)
    try:
        return json.loads(fenced[1] if fenced else content)
    except (ValueError, RecursionError):
        pass
    return json.loads(_mended(content))


@lru_cache(maxsize=256)  # a parent reads its children's answers again in each step
def _mended(content: str) -> str:
    try:
        answer = reading.run("json", content.encode(errors="replace"), len(content), _SECONDS)
    except reading.Exhausted:
        raise Unfitting("the answer is no JSON, and takes too long to be mended") from None
    if "json" not in answer:
        raise Unfitting("the answer is no JSON")
    return str(answer["json"])


def _kept(value: Any) -> Any:
    """The value as the database takes it; NaN and Infinity, which Python reads and JSON lacks, are refused."""
    try:
        json.dumps(value, allow_nan=False)
        return storable(value)
    except (ValueError, RecursionError) as error:
        raise Unfitting(f"the answer is no JSON: {_reason(error)}") from None


def _faults(value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    try:
        for error, _ in zip(_validator(schema).iter_errors(value), range(_TOLD), strict=False):
            yield _worded(error)
    except Exception as error:  # noqa: BLE001 - a reference to what is no schema can raise anything
        yield f"the schema cannot be followed: {type(error).__name__}"


def _worded(error: ValidationError) -> str:
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
    """The validator of a part of the schema, with the same bounds, which the library's own way would drop."""
    kept = {"schema": validator.schema, "_resolver": validator._resolver}  # noqa: SLF001 - as the library's own does
    return type(validator)(**{**kept, **changes})


def _unchecked(*_: Any) -> Iterator[ValidationError]:
    return iter(())


def _additional(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Any:
    check = _unchecked if "patternProperties" in schema else Draft202012Validator.VALIDATORS["additionalProperties"]
    return check(validator, wanted, instance, schema)


def _unique(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    """Items are compared by their text: the library compares each with each, in quadratic time."""
    items = instance if wanted and isinstance(instance, list) else []
    if len({json.dumps(item, sort_keys=True) for item in items}) < len(items):
        yield ValidationError("has the same item twice")


_OURS: dict[str, _Check] = {
    "pattern": _unchecked,
    "patternProperties": _unchecked,
    "additionalProperties": _additional,
    "uniqueItems": _unique,
}
