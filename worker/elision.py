"""Values made short for lists: a page of jobs must not be megabytes because their inputs are.

What was cut ends in "…"; whoever wants all of it asks for the one thing.
"""

from __future__ import annotations

from typing import Any

TEXT = 1000  # characters of one text
WHOLE = 4000  # characters of a value in all


def elided(value: Any) -> Any:
    """The JSON value with what is long cut short: texts, and the ends of long lists and objects."""
    return _Cut(WHOLE).of(value)


class _Cut:
    """A value on its way through, and how many characters it may still have."""

    def __init__(self, left: int) -> None:
        self._left = left

    def of(self, value: Any) -> Any:
        self._left -= 1  # an empty value costs too, or a list of them would have no end
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            return self._list(value)
        if isinstance(value, dict):
            return self._object(value)
        self._left -= len(str(value))
        return value

    def _text(self, text: str) -> str:
        room = max(0, min(TEXT, self._left))
        self._left -= min(len(text), room)
        return text if len(text) <= room else text[:room] + "…"

    def _list(self, items: list[Any]) -> list[Any]:
        kept: list[Any] = []
        for n, item in enumerate(items):
            if self._left <= 0:
                return [*kept, f"{len(items) - n} more …"]
            kept.append(self.of(item))
        return kept

    def _object(self, items: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for n, (name, item) in enumerate(items.items()):
            if self._left <= 0:
                return {**kept, "…": f"{len(items) - n} more …"}
            name = self._text(name)
            kept[name] = self.of(item)
        return kept
