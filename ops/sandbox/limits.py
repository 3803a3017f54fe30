"""Rates, counted as the provider counts them: calls, or their tokens, in a sliding window.

A limit a minute is kept by the second as well (Alibaba docs, "Rate limits"). Windows run on the monotonic clock, so
that moving the sandbox's clock does not open them.
"""

import time
from collections import defaultdict, deque
from math import ceil

BURST = 1.25  # of a second's share of a minute's limit may come in a second


class Window:
    """The calls of the last `seconds`, each by its weight."""

    def __init__(self, seconds: float) -> None:
        self.peak = 0  # the most it ever held
        self.total = 0  # all it ever counted
        self._seconds = seconds
        self._calls: deque[tuple[float, int]] = deque()
        self._held = 0

    def has_room(self, limit: int) -> bool:
        """Whether a call more may come: what is held is below `limit`, however much the call weighs."""
        self._slide()
        return self._held < limit

    def add(self, weight: int = 1) -> None:
        """Count a call."""
        self._slide()
        self._calls.append((time.monotonic(), weight))
        self._held += weight
        self.total += weight
        self.peak = max(self.peak, self._held)

    def _slide(self) -> None:
        start = time.monotonic() - self._seconds
        while self._calls and self._calls[0][0] <= start:
            self._held -= self._calls.popleft()[1]


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


class Quota:
    """A limit a minute of calls or of tokens, with the second's share of it."""

    def __init__(self) -> None:
        self._second, self._minute = Window(1.0), Window(60.0)

    def has_room(self, a_minute: int | None) -> bool:
        """Whether a call more may come; None is no limit."""
        if a_minute is None:
            return True
        return self._minute.has_room(a_minute) and self._second.has_room(ceil(a_minute / 60 * BURST))

    def add(self, weight: int) -> None:
        """Count a call that came."""
        self._second.add(weight)
        self._minute.add(weight)


class Peaks:
    """The most in any window of so many seconds, by owner and by what was called."""

    def __init__(self, seconds: float) -> None:
        self._windows: defaultdict[str, defaultdict[str, Window]] = defaultdict(lambda: defaultdict(self._window))
        self._seconds = seconds

    def add(self, owner: str, *names: str, weight: int = 1) -> None:
        """Count one call under each of the names."""
        for name in names:
            self._windows[owner][name].add(weight)

    def table(self) -> dict[str, dict[str, int]]:
        """Return owner → name → peak."""
        return {owner: {name: each.peak for name, each in by.items()} for owner, by in self._windows.items()}

    def totals(self) -> dict[str, dict[str, int]]:
        """Return owner → name → all that was counted."""
        return {owner: {name: each.total for name, each in by.items()} for owner, by in self._windows.items()}

    def _window(self) -> Window:
        return Window(self._seconds)
