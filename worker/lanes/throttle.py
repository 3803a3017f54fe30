"""What a throttling answer does to a lane, and how that wears off.

No timer undoes anything. A row keeps what was learned and when; each statement computes from that what is allowed now:

- `pace`: a lane that was too fast goes on at half its rate; after a minute without another such answer it gains a tenth
  of the rate every five seconds. When that is too fast again, it goes back by a fifth.
- `ceiling`: a lane that was refused while n of its tasks were in flight has n at once, whatever is configured. After
  110 seconds one more is tried, and each time that those are taken, twice as many beyond n: 3, 7, 15. So a limit that
  is restored is in use again within two minutes. A lane that is refused time and again, and makes so few creates that
  this is more than one in a hundred, tries ever less often.

The provider says the same, `Throttling.RateQuota`, of a rate and of too many tasks at once (Alibaba docs, 'Error
messages'). A create that left more than a second after the one before it cannot have broken a rate by the second, and
one that is refused over as many tasks as another before it has most likely met a ceiling. Otherwise it may be either:
the lane is slowed, and has a ceiling for ten seconds only. If that was right, the next try tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    Row,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    and_,
    bindparam,
    case,
    cast,
    extract,
    func,
    or_,
    select,
    text,
    true,
    update,
)

from worker import log
from worker.claims import moment
from worker.dashscope.errors import OF_A_MODEL, Scope
from worker.errors import NotFound
from worker.states import SLOTTED, Mode, State
from worker.tables import Job, Lane

_SLOWER = {Scope.RATE: 0.5, Scope.BURST: 0.25, Scope.CAPACITY: 0.5}  # the share of its pace that a lane keeps
_SLOWEST = 1 / 16
_BACK = 0.8  # the share that a lane keeps which regained too much: a little less had held
_PACE_RESTS, _PACE_EVERY, _PACE_GAINS = 60, 5, 0.1  # seconds, seconds, share of the rate
_CEILING_RESTS, _SUSPECTED_RESTS = 110, 10  # seconds
_SUSPECTED = -1  # `probes` of a ceiling that only one refusal speaks for, which may have been for its rate
_CEILING_FADES, _MOST_DOUBLINGS = 10, 12  # seconds in which it doubles untried; beyond 4,095 more there is no lane
_PATIENT_FROM, _PATIENT_DOUBLINGS = 3, 4  # refusals in a row, from which each doubles the rest, and how often at most
_MANY = 100  # creates between two refusals: then trying is cheap
_SECOND = timedelta(seconds=1)

_log = log.get(__name__)


def pace(now: ColumnElement[datetime]) -> ColumnElement[float]:
    """The share of its rate that a lane may use now."""
    rested = _since(Lane.paced_at, now) - _PACE_RESTS
    gained = _PACE_GAINS * func.greatest(0, func.floor(rested / _PACE_EVERY) + 1)
    # greatest(0, null) is 0: a lane that was never slowed
    return func.least(1.0, Lane.pace + gained)


def concurrency(now: ColumnElement[datetime]) -> ColumnElement[int]:
    """The tasks that a lane may have at once now: what is configured, or what the provider was seen to take."""
    doublings = func.greatest(0, func.least(Lane.probes - _PATIENT_FROM, _PATIENT_DOUBLINGS))
    rest = case((Lane.probes == _SUSPECTED, _SUSPECTED_RESTS), else_=_CEILING_RESTS * func.power(2, doublings))
    rested = _since(Lane.ceiling_at, now) - rest
    untried = cast(func.power(2, func.least(func.floor(rested / _CEILING_FADES), _MOST_DOUBLINGS)), BigInteger)
    taken = 2 * (_running() - Lane.ceiling) + 1
    more = case((rested >= 0, func.greatest(untried, taken)), else_=0)
    return case((Lane.ceiling.is_(None), Lane.concurrency), else_=func.least(Lane.concurrency, Lane.ceiling + more))


def is_open(now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether nobody paused the lane, and no quota parks it."""
    return and_(Lane.paused_at.is_(None), or_(Lane.parked_until.is_(None), Lane.parked_until <= now))


def in_flight() -> ColumnElement[bool]:
    """The jobs of a lane for which the provider may have a task now."""
    sent = SLOTTED - {State.ADMITTED}
    return or_(Job.state.in_(sent), and_(Job.state == State.HELD, Job.held_from == State.UNCERTAIN))


def _running() -> ScalarSelect[int]:
    """The lane's tasks that the provider has taken."""
    # a literal, so that the planner can match the partial index
    return select(func.count()).where(Job.lane_id == Lane.id, text("jobs.state = 'running'")).scalar_subquery()


def slow(connection: Connection, job: Job, scope: str, until: datetime, why: str, now: datetime) -> None:
    """Does to the job's lane what a throttling answer asks for; `until` is how long it creates nothing at all."""
    lane = _lane(connection, job, now)
    if scope in OF_A_MODEL:
        _set(connection, lane.id, paused_at=now, paused_why=why)
        _log.error("the lane waits for a person", model=job.model, why=why)
    elif scope == Scope.RATE and _is_full(job, lane):
        _lower(connection, lane, now)
    else:
        park(connection, lane.id, until, why)
        _slow(connection, job, lane, scope, now)
        if scope == Scope.RATE and lane.others and job.mode != Mode.CALL:
            _set(connection, lane.id, ceiling=lane.others, ceiling_at=now, probes=_SUSPECTED, passed=0)


@dataclass(frozen=True)
class Slow:
    """An effect of a throttling answer: `slow` for the job's lane."""

    scope: str
    until: datetime
    why: str

    def carry_out(self, connection: Connection, job: Job, now: datetime) -> None:
        """Does that, where the job has a lane."""
        if job.lane_id:
            slow(connection, job, self.scope, self.until, self.why, now)


def lock(connection: Connection, lane_id: int) -> None:
    """Waits for the lane's row, and keeps it until the commit.

    To be called before what is counted beside it: a statement that waits for the row itself has counted before it
    waited, and what the row's last holder did is not among it.
    """
    connection.execute(_LOCK, {"lane": lane_id})


def park(connection: Connection, lane_id: int, until: datetime, why: str) -> None:
    """Admits nothing to the lane before `until`; a later time that is already set stays."""
    parked = (
        update(Lane)
        .where(Lane.id == lane_id, or_(Lane.parked_until.is_(None), Lane.parked_until < until))
        .values(parked_until=until, parked_why=why)
    )
    connection.execute(parked)


def forget(connection: Connection, model: str | None) -> int:
    """Forgets what refusals did to a model's lanes, or to all: how many lanes. What a person paused stays so."""
    by_person = and_(Lane.paused_at.is_not(None), Lane.paused_why.is_(None))
    forgotten = update(Lane).values(
        parked_until=None,
        parked_why=None,
        next_at=func.least(Lane.next_at, func.now()),  # booked at the pace that is forgotten
        paused_at=case((by_person, Lane.paused_at)),
        paused_why=None,
        pace=1.0,
        paced_at=None,
        ceiling=None,
        ceiling_at=None,
        probes=0,
        passed=0,
    )
    if model is not None:
        forgotten = forgotten.where(Lane.model == model)
    count: int = connection.execute(forgotten).rowcount
    if not count:
        raise NotFound(f"no lane {model or ''}")
    return count


def _lane(connection: Connection, job: Job, now: datetime) -> Row[Any]:
    """The job's lane, locked, with its pace now, how many of its tasks are in flight, and when the last one left."""
    lock(connection, job.lane_id or 0)
    flying = select(func.count().label("others"), func.max(Job.submitted_at).label("last_at")).where(
        Job.lane_id == Lane.id, in_flight()
    )
    others = flying.correlate(Lane).lateral("others")
    statement: Select[Any] = (
        select(*Lane.__table__.c, pace(moment(now)).label("pace_now"), others.c.others, others.c.last_at)
        .join(others, true())
        .where(Lane.id == job.lane_id)
    )
    return connection.execute(statement).one()


def _is_full(job: Job, lane: Row[Any]) -> bool:
    """Whether a refusal is about tasks at once: by the ceiling again, or long after the create before it."""
    if job.mode == Mode.CALL or not lane.others or job.submitted_at is None or lane.last_at is None:
        return False
    apart = max(_SECOND, 2 * timedelta(microseconds=lane.interval_us))
    is_again = lane.ceiling is not None and lane.ceiling <= lane.others <= lane.ceiling + 1
    return bool(is_again or job.submitted_at - lane.last_at >= apart)


def _lower(connection: Connection, lane: Row[Any], now: datetime) -> None:
    """As many at once as are in flight; a try that was refused, and was not one of many creates, rests the next."""
    again = lane.others == lane.ceiling and lane.passed < _MANY and lane.probes != _SUSPECTED
    probes = min(lane.probes + 1, _PATIENT_FROM + _PATIENT_DOUBLINGS) if again else 0
    _set(connection, lane.id, ceiling=lane.others, ceiling_at=now, probes=probes, passed=0)


def _slow(connection: Connection, job: Job, lane: Row[Any], scope: str, now: datetime) -> None:
    """Slows the lane, unless the create left before it was slowed last: then its answer says nothing new."""
    factor = _SLOWER.get(Scope(scope))
    is_news = lane.paced_at is None or job.submitted_at is None or job.submitted_at > lane.paced_at
    if factor is not None and is_news:
        is_regaining = lane.pace < lane.pace_now < 1
        kept = max(factor, _BACK) if is_regaining else factor
        _set(connection, lane.id, pace=max(_SLOWEST, lane.pace_now * kept), paced_at=now)


def _set(connection: Connection, lane_id: int, **columns: Any) -> None:
    connection.execute(update(Lane).where(Lane.id == lane_id).values(**columns))


# no key of it changes, so jobs that come to the lane do not wait
_LOCK = select(Lane.id).where(Lane.id == bindparam("lane")).with_for_update(key_share=True)


def _since(at: SQLColumnExpression[datetime | None], now: ColumnElement[datetime]) -> ColumnElement[float]:
    return cast(extract("epoch", now - at), Double)
