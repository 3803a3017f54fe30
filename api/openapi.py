"""`python -m api.openapi`: writes `openapi.json`, and `documents.py`, the answers' types for the client, beside itself.

Both are committed, and a test holds them against the code (ADR 0046). Changes that break clients are named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api import app, description

DESCRIPTION = Path(__file__).with_name("openapi.json")
DOCUMENTS = Path(__file__).with_name("documents.py")

Schema = Mapping[str, Any]

_HEAD = '''"""What the API answers, for the client: made from `openapi.json` by `make openapi`, not by hand (ADR 0046).

A newer server may say more: words of an enum are any text here, and fields that are not known are left out.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from api.document import Document
'''
_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
_FORMATS = {"uuid": "UUID", "date-time": "datetime", "date": "date"}
_LIST = {"object", "data", "has_more", "next_cursor"}


def main(is_check: bool) -> None:
    """Writes both files, or with --check fails where one is not as the code is; says what breaks a client."""
    described = app.described()
    before = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    changes = "".join(f"breaks clients: {change}\n" for change in breaks(before, described))
    made = {DESCRIPTION: written(described), DOCUMENTS: documents(described)}
    if is_check and any(path.read_text(encoding="utf-8") != text for path, text in made.items()):
        sys.exit(f"{changes}api/openapi.json and api/documents.py are not as the code is: make openapi")
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    sys.stdout.write(changes)


def written(described: Schema) -> str:
    """The description as it is committed: sorted, so that a diff shows what has changed and nothing else."""
    return json.dumps(described, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def breaks(before: Schema, after: Schema) -> Iterator[str]:
    """What clients of the description before may miss, or are newly asked for."""
    now = {(path, method): operation for path, method, operation in description.operations(after)}
    old = {(path, method): operation for path, method, operation in description.operations(before)}
    yield from (f"{method.upper()} {path} is gone" for path, method in sorted(old.keys() - now.keys()))
    for path, method in sorted(old.keys() & now.keys()):
        yield from _parameters(f"{method.upper()} {path}", old[path, method], now[path, method])
    taken = _reachable(after, [operation.get("requestBody", {}) for operation in now.values()])
    for name, schema in sorted(before["components"]["schemas"].items()):
        if name in after["components"]["schemas"]:
            yield from _changes(name, schema, after["components"]["schemas"][name], name in taken)


def documents(described: Schema) -> str:
    """The module of the answers' types."""
    answers = [
        response
        for _, _, operation in description.operations(described)
        for status, response in operation["responses"].items()
        if status < "300"
    ]
    components = described["components"]["schemas"]
    found = (name for name in sorted(_reachable(described, answers)) if components[name].get("properties"))
    classes = [_class(name, components) for name in found if components[name]["properties"].keys() - _LIST]
    return "\n\n".join([_HEAD, *classes])


def _parameters(where: str, before: Schema, after: Schema) -> Iterator[str]:
    old, now = ({each["name"]: each for each in said.get("parameters", ())} for said in (before, after))
    yield from (f"{where}: {name} is gone" for name in sorted(old.keys() - now.keys()))
    newly = (name for name, each in sorted(now.items()) if each.get("required") and name not in old)
    yield from (f"{where}: {name} is required" for name in newly)


def _changes(where: str, before: Schema, after: Schema, is_taken: bool) -> Iterator[str]:
    old, now = before.get("properties", {}), after.get("properties", {})
    yield from (f"{where}.{name} is gone" for name in sorted(old.keys() - now.keys()))
    if is_taken:
        newly = set(after.get("required", ())) - set(before.get("required", ()))
        yield from (f"{where}.{name} is required" for name in sorted(newly))
    pairs = [(where, before, after), *((f"{where}.{name}", old[name], now[name]) for name in old.keys() & now.keys())]
    for place, one, other in pairs:
        gone = set(map(str, one.get("enum", ()))) - set(map(str, other.get("enum", ())))
        yield from (f"{place}: {word!r} is gone" for word in sorted(gone))


def _reachable(described: Schema, begin: Any) -> set[str]:
    """The names of all components that are referred to from there."""
    found: set[str] = set()
    waiting = [begin]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            room, _, name = str(value.get("$ref", "")).rpartition("/")
            if room.endswith("schemas") and name not in found:
                found.add(name)
                waiting.append(described["components"]["schemas"][name])
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


def _class(name: str, components: Schema) -> str:
    schema = components[name]
    fields = [_field(field, schema["properties"][field], components) for field in schema["properties"]]
    return f'class {name}(Document):\n    """{schema["description"].splitlines()[0]}"""\n\n' + "".join(fields)


def _field(name: str, schema: Schema, components: Schema) -> str:
    if name == "from":  # a word of Python's
        return f'    from_: {_type(schema, components)} = Field(alias="from")\n'
    return f"    {name}: {_type(schema, components)}\n"


def _type(schema: Schema, components: Schema) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return name if components[name].get("properties") else _type(components[name], components)
    if branches := schema.get("anyOf"):
        return " | ".join(dict.fromkeys(_type(branch, components) for branch in branches))
    match schema.get("type"):
        case "null":
            return "None"
        case "array":
            return f"list[{_type(schema.get('items', {}), components)}]"
        case "object":
            rest = schema.get("additionalProperties")
            return f"dict[str, {_type(rest, components) if isinstance(rest, dict) else 'Any'}]"
    return _FORMATS.get(schema.get("format", "")) or _TYPES.get(schema.get("type", ""), "Any")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
