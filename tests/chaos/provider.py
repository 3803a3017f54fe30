"""What goes wrong at the provider while chaos runs, and how often."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # production has no sandbox, and reads this for its commands
    from ops.sandbox.testing import Sandbox


LATE_MS, LAG_MS = 1500, 1000

# Over a tenth of the answers to creates is lost, 5 % of all else fails.
RULES: tuple[dict[str, Any], ...] = (
    {"where": "create", "what": "lost_answer", "probability": 0.06},
    {"where": "create", "what": "lost_body", "probability": 0.03},
    {"where": "create", "what": "truncated", "probability": 0.03},
    {"where": "create", "what": "executed_late", "probability": 0.01, "after_ms": LATE_MS},
    {"where": "create", "what": "hang", "probability": 0.003, "is_done": True},
    {"where": "create", "what": "slow_drip", "probability": 0.007, "bytes": 300},
    {"where": "create", "what": "reset", "probability": 0.01},
    {"where": "create", "what": "html", "probability": 0.01},
    {"where": "create", "what": "error", "probability": 0.01, "code": "InternalError"},
    {"where": "create", "what": "error", "probability": 0.005, "code": "Throttling.RateQuota"},
    {"where": "create", "what": "task_fails", "probability": 0.05, "code": "InternalError.Algo"},
    {"where": "get", "what": "reset", "probability": 0.02},
    {"where": "get", "what": "html", "probability": 0.01},
    {"where": "get", "what": "hang", "probability": 0.003},
    {"where": "get", "what": "slow_drip", "probability": 0.007, "bytes": 300},
    {"where": "get", "what": "error", "probability": 0.01, "code": "SystemError"},
    {"where": "get", "what": "error", "probability": 0.005, "code": "Throttling"},
    {"where": "get", "what": "unknown", "probability": 0.005},
    {"where": "list", "what": "lag", "probability": 0.3, "after_ms": LAG_MS},
    {"where": "list", "what": "reset", "probability": 0.02},
    {"where": "list", "what": "hang", "probability": 0.01},
    {"where": "list", "what": "error", "probability": 0.03, "code": "InternalError"},
    {"where": "link", "what": "reset", "probability": 0.02},
    {"where": "link", "what": "truncated", "probability": 0.02},
    {"where": "link", "what": "corrupt", "probability": 0.01},
    {"where": "link", "what": "hang", "probability": 0.003},
    {"where": "link", "what": "slow_drip", "probability": 0.007, "bytes": 20_000},
    {"where": "file", "what": "reset", "probability": 0.05},
    {"where": "batch_create", "what": "lost_answer", "probability": 0.1},
    {"where": "batch_create", "what": "reset", "probability": 0.05},
    {"where": "batch_get", "what": "error", "probability": 0.05, "code": "InternalError"},
    {"where": "batch_list", "what": "lag", "probability": 0.3, "after_ms": LAG_MS},
    {"where": "batch_list", "what": "reset", "probability": 0.05},
    {"where": "content", "what": "truncated", "probability": 0.1},
    {"where": "line", "what": "error", "probability": 0.02, "code": "InternalError"},
)


@contextlib.contextmanager
def failing(sandbox: Sandbox) -> Iterator[None]:
    """All of it goes wrong for as long as the block lasts."""
    _break(sandbox, RULES)
    try:
        yield
    finally:
        sandbox.clear_faults()


@contextlib.contextmanager
def forgetting(sandbox: Sandbox) -> Iterator[None]:
    """Instead of all that, the lists leave out every task and batch, and do not say so; after the block it is back."""
    sandbox.clear_faults()
    _break(sandbox, [{"where": where, "what": "misses"} for where in ("list", "batch_list")])
    try:
        yield
    finally:
        sandbox.clear_faults()
        _break(sandbox, RULES)


def _break(sandbox: Sandbox, rules: Iterable[dict[str, Any]]) -> None:
    for rule in rules:
        sandbox.fault(**rule)
