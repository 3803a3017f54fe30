"""The fair queue: free slots given to waiting jobs, project by project in turn.

Each lane has a virtual time, and a project's job costs it 1/weight of that. The tick serves the project that stands
lowest, so that projects of equal weight alternate however many jobs each has, and of one with weight 3 three jobs go
to one of another. A project that comes back from an idle time starts where the lane stands now: what it did not use
is not saved up. This is start-time fair queueing, which needs one number a project (`turns`) and one a lane.

A job's account is chosen here too: its project's, where that is bound to one, and then no other; else those of the
lane in turn, first the one with the fewest jobs in flight. A lane is the provider's count, which is by owner, so
several accounts (workspaces) of one owner share its slots and its rate.

A job of a paused batch is held. One that comes back to the line meanwhile (throttled, or made again) is passed by.

Within a project the line is kept by `rank_at`: the time of submission, ten minutes earlier for each class of priority.
So a class is worth ten minutes of waiting, none starves, and nothing has to be sorted or aged: an index holds the line.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Double,
    Row,
    Select,
    Text,
    Uuid,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.lanes import account_stops, slots, throttle
from worker.moves import transition
from worker.states import State
from worker.tables import Job, Lane, Owner, Turn

# Whether a job came back to the line while its batch is paused; it costs a job of no batch nothing.
PASSED_BY = """jobs.batch_id is not null
                  and exists (select from batches where batches.id = jobs.batch_id and batches.state = 'paused')"""
_CLASS = timedelta(minutes=10)  # how long a job of the next lower priority waits to be its equal
_AT_ONCE = 300  # jobs that one tick admits to a lane at the most; the next tick goes on


def rank(created_at: ColumnElement[datetime], priority: ColumnElement[int]) -> ColumnElement[datetime]:
    """A job's place in its project's line: the earlier, the sooner."""
    return created_at - priority * _CLASS


def admit(connection: Connection, now: datetime) -> int:
    """Gives each lane's free slots to its waiting jobs, in turn; returns how many it gave."""
    return sum(len(_serve(connection, lane, now)) for lane in connection.execute(_WITH_ROOM, {"now": now}).all())


def _serve(connection: Connection, lane: Row[Any], now: datetime) -> Collection[uuid.UUID]:
    """The jobs that were admitted: one at the most where the account is stopped and may be tried."""
    if lane.is_proven:
        account_stops.start(connection, lane.owner)
    elif lane.stopped_at is not None:
        return _try(connection, lane, now)
    return _fill(connection, lane, min(lane.free, _AT_ONCE), now)


def _try(connection: Connection, lane: Row[Any], now: datetime) -> Collection[uuid.UUID]:
    if not account_stops.may_probe(connection, lane.owner, now):
        return ()
    tried = _fill(connection, lane, 1, now)
    for job_id in tried:  # a lane of which nothing can be admitted leaves the try to the next one
        account_stops.probe(connection, lane.owner, job_id, now)
    return tried


def _fill(connection: Connection, lane: Row[Any], free: int, now: datetime) -> Collection[uuid.UUID]:
    whose = {"lane": lane.id, "the_accounts": lane.accounts, "the_region": lane.region, "the_model": lane.model}
    return connection.execute(_FILL, whose | {"free": free, "the_left": lane.left, "now": now}).scalars().all()


def _with_room(now: ColumnElement[datetime]) -> Select[Any]:
    """The lanes that have a free slot and a waiting job, and may create now or try to."""
    free = (throttle.concurrency(now) - slots.used()).label("free")
    # One look into the index for each lane, which the order asks for: `exists` becomes a join over all that wait.
    waits = (
        select(Job.id)
        .where(text("jobs.state = 'queued' and jobs.mode <> 'parent'"), Job.model == Lane.model, Job.run_at <= now)
        .order_by(Job.project_id, Job.rank_at, Job.id)
        .limit(1)
    )
    is_proven = account_stops.is_proven()
    inner = (
        select(
            Lane.id,
            account_stops.able(slots.accounts(), now).label("accounts"),
            Lane.owner,
            Lane.region,
            Lane.model,
            free,
            throttle.day_left(now).label("left"),
        )
        .add_columns(Owner.stopped_at, is_proven.label("is_proven"))
        .join(Owner, Owner.name == Lane.owner)
        .where(
            waits.scalar_subquery().is_not(None),
            throttle.is_open(now),
            slots.is_near(now),
            Owner.paused_at.is_(None),
            or_(Owner.stopped_at.is_(None), Owner.stopped_until <= now, is_proven),
        )
        .subquery()
    )
    return select(inner).where(inner.c.free > 0, func.cardinality(inner.c.accounts) > 0).order_by(inner.c.id)


# Built once: to build a statement costs more than to run it.
_WITH_ROOM = _with_room(transition.BOUND_NOW)

# The jobs at the heads of the projects' lines, `free` of them at the most, each with where its turn starts and ends.
_NEXT = (
    text(
        f"""
    with recursive waiting (project_id) as (
        -- one look into the index for each project that waits, however many jobs it has
        (select project_id from jobs where state = 'queued' and mode <> 'parent' and model = :the_model
          order by project_id limit 1)
        union all
        select (select project_id from jobs
                 where state = 'queued' and mode <> 'parent' and model = :the_model and project_id > waiting.project_id
                 order by project_id limit 1)
          from waiting where waiting.project_id is not null
    ), served as (
        select projects.id, projects.account, 1 / projects.weight::float8 as cost,
               greatest(turns.at, lanes.turn) as entry,
               case when projects.max_in_flight is null then :free
                    else projects.max_in_flight - (select count(*) from jobs where jobs.project_id = projects.id
                         and (jobs.state in ('admitted', 'submitting', 'uncertain', 'running')
                              or jobs.state = 'held' and jobs.held_from = 'uncertain')) end as room
          from waiting
          join projects on projects.id = waiting.project_id and projects.paused_at is null
               and coalesce(projects.account = any(cast(:the_accounts as text[])), true)
          join lanes on lanes.id = :lane
          left join turns on turns.lane_id = :lane and turns.project_id = projects.id
    ), line as (
        select head.id, head.rank_at, served.account, served.cost, served.entry
               + (row_number() over (partition by served.id order by head.rank_at, head.id) - 1) * served.cost as start
          from served cross join lateral (
               select id, rank_at from jobs
                where state = 'queued' and mode <> 'parent' and model = :the_model and project_id = served.id
                  and run_at <= :now
                  -- what wants more than the day has left waits in its place, and lets smaller calls pass
                  and (tokens is null or (tokens <= cast(:the_left as bigint)) is not false)
                  and (not_after is null or not_after >= :now)  -- else it is ended soon, and takes no slot until then
                  and not ({PASSED_BY})
                order by rank_at, id limit least(:free, greatest(served.room, 0))) as head
    ), next as materialized (
        select id, account, start, cost,
               row_number() over (partition by account is null order by start, rank_at, id) - 1 as nth
          from line order by start, rank_at, id limit :free
    ), accounts as (
        select given.name, row_number() over (order by case when cardinality(cast(:the_accounts as text[])) > 1 then
                   (select count(*) from jobs where lane_id = :lane and jobs.account = given.name
                       and (jobs.state in ('admitted', 'submitting', 'uncertain', 'running')
                            or jobs.state = 'held' and jobs.held_from = 'uncertain')) end, given.n) - 1 as nth
          from unnest(cast(:the_accounts as text[])) with ordinality as given (name, n)
    )
    select jobs.id, next.start, next.start + next.cost as stop,
           coalesce(next.account,
                    (select name from accounts where nth = next.nth % (select count(*) from accounts))) as account
      from jobs join next on next.id = jobs.id
     where jobs.state = 'queued' for update of jobs skip locked
    """  # noqa: S608 - words of ours
    )
    .bindparams(bindparam("the_accounts", type_=ARRAY(Text)))
    .columns(id=Uuid, start=Double, stop=Double, account=Text)
)


def _filling() -> transition.Telling:
    """Picks the next jobs, moves them, and charges their projects and the lane for the turns, in one statement."""
    lane: BindParameter[int] = bindparam("lane", type_=BigInteger)
    picked = _NEXT.cte("picked")
    moved = transition.moving(
        {State.QUEUED},
        State.ADMITTED,
        literal_column("'queued'", Text),
        Job.id == picked.c.id,
        lane_id=lane,
        account=picked.c.account,
        region=bindparam("the_region"),
        tokens=None,
    )
    turns = select(moved.c.project_id, picked.c.start, picked.c.stop).join(picked, picked.c.id == moved.c.id).subquery()
    ends = select(lane, turns.c.project_id, func.max(turns.c.stop)).group_by(turns.c.project_id)
    charged = upsert(Turn).from_select(["lane_id", "project_id", "at"], ends)
    charged = charged.on_conflict_do_update(index_elements=["lane_id", "project_id"], set_={"at": charged.excluded.at})
    latest = select(func.max(turns.c.start).label("start")).subquery()
    advanced = update(Lane).where(Lane.id == lane, latest.c.start > Lane.turn).values(turn=latest.c.start)
    return transition.events(moved, State.ADMITTED).add_cte(charged.cte("charged"), advanced.cte("advanced"))


_FILL = _filling()
