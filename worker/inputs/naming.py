"""Where a job's input names objects of our bucket: by their keys, in the place of links, or as documents.

The kinds' forms say where: a field that is marked as a picture, a clip or sound, in lists and nested objects too, and
the lists of objects of which a `key` may name a document.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, literal_column

from worker.kinds import OFFERED, fields
from worker.kinds.fields import Medium, Path, is_key

_PLACES = {path: medium for kind in OFFERED.values() for path, medium in fields.media(kind.input).items()}
_DOCUMENTS: list[Path] = [(name, "*", "key") for kind in OFFERED.values() for name in kind.keyed]
_NAMED = [*_PLACES, *_DOCUMENTS]
FIELDS = list(dict.fromkeys(path[0] for path in _NAMED))  # the fields that may name a file


def named_by(project_id: uuid.UUID, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of all objects that a complete input names and that must be there."""
    ours = f"{project_id}/files/"  # of other documents the bucket alone knows
    documents = (pair for path in _DOCUMENTS for pair in _texts("/input", wanted, path))
    return {**links(wanted), **{pointer: key for pointer, key in documents if key.startswith(ours)}}


def links(wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of the fields that hold a key where a link may stand."""
    return {pointer: value for pointer, value, _ in values(wanted) if is_key(value)}


def values(wanted: Mapping[str, Any]) -> Iterator[tuple[str, str, Medium]]:
    """Pointer, value and medium of each text in an input where a file's key may stand."""
    for path, medium in _PLACES.items():
        if path[0] in wanted:
            yield from ((pointer, value, medium) for pointer, value in _texts("/input", wanted, path))


def with_keys(wanted: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """A raw input with the keys of files in the place of what its user calls them."""
    renamed = dict(wanted)
    for name, *path in _NAMED:
        if name in renamed:
            renamed[name] = _renamed(renamed[name], path, keys)
    return renamed


def names_files(wanted: SQLColumnExpression[Any]) -> ColumnElement[bool]:
    """Whether a complete input has any field that may name a file."""
    has_any = wanted.bool_op("?|")
    return has_any(literal_column("array[" + ", ".join(f"'{name}'" for name in FIELDS) + "]"))


def examples(key: str) -> list[dict[str, Any]]:
    """The smallest inputs that name the key, one for each place where it may stand; others contain one of them."""
    return [_naming(path, key) for path in _NAMED]


def _texts(pointer: str, value: Any, path: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pointer and value of each text at a path under a value."""
    match path:
        case [] if isinstance(value, str):
            yield pointer, value
        case ["*", *rest] if isinstance(value, str):  # a list of one, written as its only item
            yield from _texts(pointer, value, rest)
        case ["*", *rest] if isinstance(value, list):
            for n, item in enumerate(value):
                yield from _texts(f"{pointer}/{n}", item, rest)
        case [name, *rest] if isinstance(value, Mapping) and name in value:
            yield from _texts(f"{pointer}/{name}", value[name], rest)


def _renamed(value: Any, path: Sequence[str], keys: Mapping[str, str]) -> Any:
    """The value with a file's key in place of each text at the path that names one."""
    match path:
        case [] if isinstance(value, str):
            return keys.get(value, value)
        case ["*", *rest] if isinstance(value, str):
            return _renamed(value, rest, keys)
        case ["*", *rest] if isinstance(value, list):
            return [_renamed(item, rest, keys) for item in value]
        case [name, *rest] if isinstance(value, Mapping) and name in value:
            return {**value, name: _renamed(value[name], rest, keys)}
        case _:
            return value


def _naming(path: Sequence[str], key: str) -> Any:
    """The smallest input that names the key at that path: an input that contains it names it there."""
    if not path:
        return key
    inner = _naming(path[1:], key)
    return [inner] if path[0] == "*" else {path[0]: inner}
