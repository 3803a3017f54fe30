"""The hourly look for tasks that no attempt knows: what the provider made, and bills, and nobody waits for.

They were made by somebody else with our key, or by a call that we took for lost. The account's list of the last day is
held against the attempts; what is old enough to be settled, and nobody's, is kept with what it cost, for `noria
doctor` and whoever reads the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import delete, exists, func, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import log, money
from worker.catalog import UnknownModel
from worker.claims import NOW
from worker.context import Clock, Context
from worker.dashscope.responses import Listed, TaskSeen
from worker.errors import CallFailed, NotTold
from worker.kinds import KINDS, CallKind
from worker.settings import Account
from worker.steps import find, task_list
from worker.steps.task_list import Asked
from worker.tables import Attempt, Owner, Unowned

_EVERY, _AGAIN = timedelta(hours=1), timedelta(minutes=5)  # between two looks; after one that failed
_KEPT = timedelta(days=7)
_PATIENCE = timedelta(minutes=1)  # for a place in the query budget
_PRICED = 20  # finished tasks of one look whose price is asked for; that of the others is estimated
_UNBILLED = frozenset({"FAILED", "CANCELED"})

_log = log.get(__name__)


@dataclass(frozen=True)
class Found:
    """What one look found: tasks that nobody owns and were not known to be so, and what they cost, micro-CNY."""

    tasks: int
    micros: int


def sweep(ctx: Context) -> Found:
    """Looks through every account whose hour has come; one that does not tell is looked through again soon."""
    found = [_swept(ctx, account, clock) for account, clock in _due(ctx)]
    return Found(sum(one.tasks for one in found), sum(one.micros for one in found))


def _due(ctx: Context) -> list[tuple[Account, Clock]]:
    """The accounts to be looked through now, one of each owner and region; nobody else looks before the next hour."""
    taken = update(Owner).where(Owner.sweep_at <= NOW).values(sweep_at=NOW + _EVERY).returning(Owner.name, NOW)
    with ctx.engine.begin() as connection:
        due = {name: Clock(now) for name, now in connection.execute(taken)}
    places = {(account.owner, account.region): account for account in reversed(ctx.settings.all_accounts)}
    return [(account, due[owner]) for (owner, _), account in places.items() if owner in due]


def _swept(ctx: Context, account: Account, clock: Clock) -> Found:
    try:
        rows = _nobodys(ctx, account, clock)
        priced = [_row(ctx, account, row, n < _PRICED, clock) for n, row in enumerate(rows)]
    except NotTold as error:
        _log.warning("the account could not be looked through for unowned tasks", owner=account.owner, why=str(error))
        _put_off(ctx, account.owner)
        return Found(0, 0)
    found = _kept(ctx, account, priced)
    if found.tasks:
        spent = money.shown(found.micros)
        _log.warning("tasks that no job owns", owner=account.owner, region=account.region, tasks=found.tasks, cny=spent)
    return found


def _nobodys(ctx: Context, account: Account, clock: Clock) -> list[Listed]:
    """The listed tasks of the last day, old enough to be settled, that no attempt has."""
    settled = clock() - timedelta(seconds=ctx.settings.settle_seconds) - find.SKEW
    asked = Asked(account.name, clock() - task_list.REACH + timedelta(minutes=1), settled)
    rows = [row for page in task_list.pages(ctx, asked, _PATIENCE) for row in page.rows]
    with ctx.engine.connect() as connection:
        owned = find.bound(connection, account.owner, [row.task_id for row in rows])
    return [row for row in rows if row.task_id not in owned]


def _row(ctx: Context, account: Account, row: Listed, is_asked: bool, clock: Clock) -> dict[str, Any]:
    return {
        "owner": account.owner,
        "task_id": row.task_id,
        "region": account.region,
        "model": row.model,
        "status": row.status,
        "created_at": row.created_at,
        "micros": _price(ctx, account, row, is_asked, clock().date()),
    }


def _price(ctx: Context, account: Account, row: Listed, is_asked: bool, on: date) -> int | None:
    """What the task cost, by its own answer, or as the model's default would; None when no price is known."""
    if row.status in _UNBILLED:  # Alibaba docs, 'Model pricing'
        return 0
    try:
        model = ctx.catalog.model(row.model)
    except UnknownModel:
        return None
    kind = next(kind for name in model.kinds if isinstance(kind := KINDS[name], CallKind))
    wanted = kind.input.model_construct(**model.default)
    answer = _answer(ctx, account, row) if is_asked and row.status == "SUCCEEDED" else {}
    return model.price(kind.usage(model, wanted, answer), account.region, on)


def _answer(ctx: Context, account: Account, row: Listed) -> dict[str, Any]:
    """The task's own answer, which says what is billed; nothing when it does not come."""
    ctx.spend_query(account.owner)
    try:
        seen = ctx.clients[account.name].task(row.task_id)
    except CallFailed:
        return {}
    return seen.body if isinstance(seen, TaskSeen) else {}


def _kept(ctx: Context, account: Account, rows: Iterable[dict[str, Any]]) -> Found:
    """Keeps what was found, forgets what has an owner by now or is long past; what of it was not known."""
    owned = exists().where(Attempt.owner == Unowned.owner, Attempt.task_id == Unowned.task_id)
    fresh = upsert(Unowned)  # found now, by the transaction's clock
    kept = fresh.on_conflict_do_update(
        index_elements=[Unowned.owner, Unowned.task_id],
        set_={"status": fresh.excluded.status, "micros": func.coalesce(fresh.excluded.micros, Unowned.micros)},
    ).returning(Unowned.micros, (Unowned.found_at == func.now()).label("is_new"))
    with ctx.engine.begin() as connection:
        connection.execute(delete(Unowned).where(Unowned.owner == account.owner, owned))
        connection.execute(delete(Unowned).where(Unowned.found_at < NOW - _KEPT))
        told = [connection.execute(kept, row).one() for row in rows]
    new = [row.micros or 0 for row in told if row.is_new]
    return Found(len(new), sum(new))


def _put_off(ctx: Context, owner: str) -> None:
    with ctx.engine.begin() as connection:
        connection.execute(update(Owner).where(Owner.name == owner).values(sweep_at=NOW + _AGAIN))
