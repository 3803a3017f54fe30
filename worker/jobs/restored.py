"""After a restore: calls that were made since the backup, of which the rows know nothing.

A job that waits, as the restored rows say, may have been sent since, and its task paid for. So before anything is sent,
the provider's list is held against the jobs that wait. One whose task may be there becomes `uncertain`, as after a lost
answer, with an attempt of that task's time; `steps.find` then gives it its task, or proves that it is another's. Of
equal requests of one project as many are taken as there are tasks: it does not matter which.

What the list cannot tell is counted: tasks that still run repeat nothing yet; calls that answer at once are in no list,
and parts that were made since belong to no job. A schedule that fired since would fire again, so it is named.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, func, or_, select

from worker import claims, moves
from worker.catalog import UnknownModel
from worker.context import Context
from worker.dashscope.responses import Listed
from worker.errors import NotTold
from worker.lanes import account_stops, slots
from worker.settings import Account
from worker.states import Mode, State
from worker.steps import create, find, finish, poll
from worker.steps.poll import Asked
from worker.tables import Attempt, Job, Lane, Project, Schedule

_WHY = "the database was restored, and a task at the provider may be this job's"


@dataclass
class Found:
    """What was found of the time since the backup.

    `suspected` jobs that are looked for before they are sent; `held` jobs that are held, and whose task there may be,
    for a person to decide; `running` tasks that have not ended, so that what they were asked is not known yet;
    `unowned` tasks that no waiting job asked for; `calls` unfinished jobs whose calls, or whose parts' calls, would be
    in no list; `schedules` that fire once more, for a time since the backup; `is_all`: the provider's list reaches back
    to the backup.
    """

    is_all: bool
    suspected: list[uuid.UUID] = field(default_factory=list)
    held: list[uuid.UUID] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    unowned: list[str] = field(default_factory=list)
    schedules: list[str] = field(default_factory=list)
    calls: int = 0


@dataclass(frozen=True)
class _Waiting:
    """A job that waits, as it would be sent by the account, and what its task would repeat of it."""

    job: Job
    attempt: dict[str, Any]
    echoes: dict[str, Any]

    @property
    def request(self) -> tuple[uuid.UUID, bytes]:
        return self.job.project_id, self.attempt["request_hash"]


def look(ctx: Context, since: datetime) -> Found:
    """Pauses all creates, and holds the provider's tasks since then against the jobs that wait; raises NotTold.

    May be repeated, once more tasks have ended: a task counts for one job.
    """
    with ctx.engine.begin() as connection:
        slots.sync(connection, ctx.catalog, ctx.settings)  # an account may be younger than the backup
        account_stops.pause(connection, "all", "", claims.NOW)
        now: datetime = connection.execute(select(claims.NOW)).scalar_one()
    first = now - poll.REACH + 2 * find.SKEW  # of the day that the list goes back; its end is after now
    found, seen = Found(is_all=since >= first), set[str]()
    since = max(since, first)
    for account in ctx.settings.all_accounts:
        by_model: dict[str, list[Listed]] = defaultdict(list)
        for row in _unknown(ctx, account, since, now):
            if row.task_id not in seen:  # accounts of one owner may see each other's
                by_model[row.model].append(row)
        for name, rows in by_model.items():
            _compare(ctx, account, name, rows, since, found)
            seen.update(row.task_id for row in rows)
    with ctx.engine.connect() as connection:
        found.calls = connection.execute(_CALLS).scalar_one()
        found.schedules = list(connection.execute(_MISSED, {"now": now}).scalars())
    return found


def _unknown(ctx: Context, account: Account, since: datetime, now: datetime) -> Iterator[Listed]:
    """The account's tasks since then that may be billed, and that no job has or is looked for as; the oldest first."""
    rows, is_complete = find.listed(ctx, Asked(account.name, since, now + find.SKEW))
    if not is_complete:
        raise NotTold(f"the provider did not list all tasks of the account {account.name}: try again")
    with ctx.engine.connect() as connection:
        known = Counter(connection.execute(_SUSPECTED, {"owner": account.owner}).scalars())
    for row in sorted(find.unbound(ctx, account.owner, rows), key=lambda row: _made_at(row, since)):
        if known[_made_at(row, since)]:
            known[_made_at(row, since)] -= 1
        elif row.status not in finish.UNBILLED:
            yield row


def _compare(ctx: Context, account: Account, name: str, rows: Sequence[Listed], since: datetime, found: Found) -> None:
    """Each of a model's tasks against the jobs that wait for it."""
    waiting = _waiting(ctx, account, name)
    for row in rows:
        if row.status != "SUCCEEDED":
            found.running.append(row.task_id)
            continue
        answer = find.answer(ctx, account, row)
        fit = [each for each in waiting if not poll.differences(each.echoes, poll.repeated(ctx, each.job, answer))]
        if not fit:
            found.unowned.append(row.task_id)
        elif len({each.request for each in fit}) == 1:
            fit = fit[:1]
            waiting.remove(fit[0])
        for each in fit:
            if each.job.id in found.held or each.job.id in found.suspected:
                continue
            if each.job.state == State.HELD:
                found.held.append(each.job.id)
            elif _suspect(ctx, each, _made_at(row, since)):
                found.suspected.append(each.job.id)


def _waiting(ctx: Context, account: Account, name: str) -> list[_Waiting]:
    """The jobs that may have been sent as that model by the account: the first in line first, those held last."""
    try:
        model = ctx.catalog.model(name)
    except UnknownModel:
        return []
    with ctx.engine.connect() as connection:
        lane = select(Lane.id).where(Lane.owner == account.owner, Lane.region == account.region, Lane.model == model.id)
        lane_id = connection.execute(lane).scalar_one_or_none()
        rows = connection.execute(_TASKS, {"model": model.id}).mappings().all()
    jobs = [Job.of(row) for row in rows]
    sent = {"account": account.name, "region": account.region, "lane_id": lane_id}
    return [
        _Waiting(mine, create.attempt(ctx, mine), poll.echoes(ctx, job.kind, job.model, job.input))
        for job in jobs
        if account in ctx.settings_of(job).all_accounts
        for mine in [job.changed(sent)]
    ]


def _suspect(ctx: Context, each: _Waiting, at: datetime) -> bool:
    """Makes the job uncertain, with a call of that time; False: it has moved meanwhile."""
    call = {**each.attempt, "sent_at": at, "outcome": "unknown"}
    with ctx.engine.begin() as connection:
        now: datetime = connection.execute(select(claims.NOW)).scalar_one()
        mine = claims.seize(connection, each.job)
        if mine is not None:
            where = {name: getattr(each.job, name) for name in ("account", "region", "lane_id")}
            moves.suspect(connection, mine.changed(where), call, _WHY, now)
    return mine is not None


def _made_at(row: Listed, since: datetime) -> datetime:
    return row.created_at or since


_OF_NO_CALL = or_(
    Job.state.in_((State.QUEUED, State.ADMITTED)),
    and_(Job.state == State.HELD, Job.held_from.in_((State.QUEUED, State.ADMITTED))),
)
_TASKS = (
    select(*Job.__table__.c)
    .where(Job.finished_at.is_(None), _OF_NO_CALL, Job.mode == Mode.TASK, Job.model == bindparam("model"))
    .order_by(Job.state == State.HELD, Job.rank_at, Job.id)
)
# Of parents also those at work: the backup may not have parts that were made since.
_CALLS = select(func.count()).where(
    Job.finished_at.is_(None),
    or_(
        and_(_OF_NO_CALL, Job.mode.in_((Mode.CALL, Mode.BATCH, Mode.PARENT))),
        and_(Job.mode == Mode.PARENT, or_(Job.state == State.GATHERING, Job.held_from == State.GATHERING)),
    ),
)
_MISSED = (
    select(func.concat(Project.name, ": ", Schedule.name))
    .select_from(Schedule)
    .join(Project, Project.id == Schedule.project_id)
    .where(Schedule.next_at <= bindparam("now"), Schedule.missed == "run_once")
    .order_by(Project.name, Schedule.name)
)
_SUSPECTED = select(Attempt.sent_at).where(
    Attempt.owner == bindparam("owner"), Attempt.closed_at.is_(None), Attempt.task_id.is_(None)
)
