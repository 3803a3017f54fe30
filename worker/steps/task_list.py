"""The provider's list of tasks, page by page, paid for from the account's query budget.

The documents name no largest page (Alibaba docs, "Manage asynchronous tasks"), so a large one is asked for, and what
comes back tells: a first page that is shorter than asked, though there are more tasks, has the size that is accepted.
It is kept for the owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.context import Clock, Context
from worker.dashscope.responses import Page, Refused
from worker.errors import CallFailed, NotTold
from worker.lanes import query_budget

REACH = timedelta(hours=24)  # how far back the list goes, and how long a window may be

_SIZES = (100, 50, 20, 10)  # rows, tried in this order where the provider refuses; 10 is its own default
_PAGES = 50  # at most; what needs more is not complete


@dataclass(frozen=True)
class Asked:
    """Which tasks: an account's, created from `start` to `end` (at most 24 h apart), of a model as spelled there."""

    account: str
    start: datetime
    end: datetime
    model: str | None = None
    status: str | None = None


def pages(ctx: Context, asked: Asked, patience: timedelta) -> Iterator[Page]:
    """Every page, as far as the caller reads on; raises NotTold, also when the budget is spent beyond `patience`."""
    page, size = _first(ctx, asked, patience)
    yield page
    for number in range(2, _PAGES + 1):
        if (number - 1) * size >= page.total:
            return
        page = _told(_page(ctx, asked, number, size, patience))
        yield page


def _first(ctx: Context, asked: Asked, patience: timedelta) -> tuple[Page, int]:
    """The first page, and the size of all."""
    owner = ctx.owners[asked.account]
    known = ctx.queries.page_size(owner)
    for size in [known] if known else _SIZES:
        answer = _page(ctx, asked, 1, size, patience)
        if isinstance(answer, Refused) and answer.http_status == 400:  # perhaps for its size
            continue
        page = _told(answer)
        cut = len(page.rows) if 0 < len(page.rows) < min(size, page.total) else size
        if cut != (known or _SIZES[0]):
            ctx.queries.cut_pages(owner, cut)
        return page, cut
    return _told(answer), size


def _page(ctx: Context, asked: Asked, number: int, size: int, patience: timedelta) -> Page | Refused:
    owner = ctx.owners[asked.account]
    _wait(ctx, owner, patience)
    try:
        answer = ctx.clients[asked.account].tasks(asked.start, asked.end, number, size, asked.model, asked.status)
    except CallFailed as error:
        ctx.queries.slow(owner)
        raise NotTold(f"the task list did not come: {error}") from error
    if isinstance(answer, Refused) and query_budget.is_trouble(answer.http_status):
        ctx.queries.slow(owner)
    return answer


def _wait(ctx: Context, owner: str, patience: timedelta) -> None:
    """Waits for a place among the owner's queries; raises NotTold when there is none."""
    while booked := ctx.queries.book(owner, 1, patience):
        clock = Clock(booked.now)
        clock.wait_until(booked.at)
        if clock() < booked.at + query_budget.LATE:
            return
    raise NotTold("the account's query budget is spent")


def _told(answer: Page | Refused) -> Page:
    if isinstance(answer, Refused):
        raise NotTold(f"the task list was refused: HTTP {answer.http_status} {answer.code}")
    return answer
