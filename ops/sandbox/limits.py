"""Rates, counted as the provider counts them: calls in a sliding window of a few seconds.

Windows run on the monotonic clock, so that moving the sandbox's clock does not open them.
"""

import time
from collections import defaultdict, deque


class Window:
    """The calls of the last `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.peak = 0  # the most calls it ever held
        self.total = 0  # calls it ever counted
        self._seconds = seconds
        self._calls: deque[float] = deque()

    def has_room(self, limit: int) -> bool:
        """Whether one call more stays within `limit`."""
        self._slide()
        return len(self._calls) < limit

    def add(self) -> None:
        """Count a call."""
        self._slide()
        self._calls.append(time.monotonic())
        self.total += 1
        self.peak = max(self.peak, len(self._calls))

    def _slide(self) -> None:
        start = time.monotonic() - self._seconds
        while self._calls and self._calls[0] <= start:
            self._calls.popleft()


class Rates:
    """Windows by key, made as they are asked for."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], Window] = {}

    def spend(self, key: tuple[str, str], limit: int, seconds: float) -> bool:
        """Count a call of `key` and return True, or return False where it would be over the limit."""
        window = self._windows.setdefault(key, Window(seconds))
        if not window.has_room(limit):
            return False
        window.add()
        return True


class Peaks:
    """The most calls in any one second, refused ones included, by owner and by what was called."""

    def __init__(self) -> None:
        self._windows: defaultdict[str, defaultdict[str, Window]] = defaultdict(lambda: defaultdict(_second))

    def add(self, owner: str, *names: str) -> None:
        """Count one call under each of the names."""
        for name in names:
            self._windows[owner][name].add()

    def table(self) -> dict[str, dict[str, int]]:
        """Return owner → name → peak."""
        return {owner: {name: each.peak for name, each in by.items()} for owner, by in self._windows.items()}

    def totals(self) -> dict[str, dict[str, int]]:
        """Return owner → name → calls in all, refused ones included."""
        return {owner: {name: each.total for name, each in by.items()} for owner, by in self._windows.items()}


def _second() -> Window:
    return Window(1.0)
