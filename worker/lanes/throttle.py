"""How fast a lane may create: what a throttling answer does to it and how that wears off, and its tokens.

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

Tokens are limited by the minute and by the day. The provider gives a sixtieth of the minute's tokens each second
(Alibaba docs, 'Rate limits'), so a call moves `tokens_at`, the instant at which all that is booked is worked off, on
by as long as its tokens take at 90 % of that rate, and the next call leaves after it. The day's are counted. Both are
booked as many as the call may take; its answer says how many it took, and the difference is given back, or charged. A
lane without such limits keeps no count.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Double,
    Interval,
    Row,
    Select,
    SQLColumnExpression,
    and_,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    update,
)

from worker import log, timeouts, work
from worker.dashscope.errors import OF_A_MODEL, Scope
from worker.errors import NotFound
from worker.states import SLOTTED, Mode, State
from worker.tables import Job, Lane

SHARE = 0.9  # of a published rate: the provider counts in windows that we cannot see

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
_SHANGHAI = ZoneInfo("Asia/Shanghai")
_AFTER_MIDNIGHT = 1, 5  # minutes

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
    running = select(func.count()).where(Job.lane_id == Lane.id, work.in_states(State.RUNNING)).scalar_subquery()
    taken = 2 * (running - Lane.ceiling) + 1
    more = case((rested >= 0, func.greatest(untried, taken)), else_=0)
    return case((Lane.ceiling.is_(None), Lane.concurrency), else_=func.least(Lane.concurrency, Lane.ceiling + more))


def is_open(now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether nobody paused the lane, and no quota parks it."""
    return and_(Lane.paused_at.is_(None), ~is_parked(now))


def is_parked(now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether the lane creates nothing for a while: it was throttled, or a quota is used up."""
    return func.coalesce(Lane.parked_until > now, False)


def paused_by_person() -> ColumnElement[bool]:
    """Whether a person paused the lane, and not an answer that a person has to see to."""
    return and_(Lane.paused_at.is_not(None), Lane.paused_why.is_(None))


def in_flight() -> ColumnElement[bool]:
    """Whether the provider may have a task of a job's now: by its state, or held with a call whose end nobody knows."""
    lost = and_(work.in_states(State.HELD), Job.held_from == State.UNCERTAIN)
    return or_(work.in_states(*sorted(SLOTTED - {State.ADMITTED})), lost)


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

    Call it before the statement that counts the lane's jobs: one that waits for the row itself has counted before it
    waited, without what the row's last holder did.
    """
    connection.execute(_LOCK, {"lane": lane_id})


def park(connection: Connection, lane_id: int, until: datetime, why: str) -> None:
    """Admits nothing to the lane before `until`; a later time that is already set stays."""
    connection.execute(_PARK, {"lane": lane_id, "until": until, "why": why})


def forget(connection: Connection, model: str | None) -> int:
    """Forgets what refusals did to a model's lanes, or to all: how many lanes. What a person paused stays so."""
    forgotten = _FORGET if model is None else _FORGET.where(Lane.model == model)
    count: int = connection.execute(forgotten).rowcount
    if not count:
        raise NotFound(f"no lane {model or ''}")
    return count


def unserved(connection: Connection, model: str) -> str | None:
    """Why no lane of the model may be tried, as the provider said of the last of them; None: one may be."""
    row = connection.execute(_UNSERVED, {"model": model}).one_or_none()
    return None if row is None or row.may_be_tried else row.unserved_why


def day(now: datetime) -> date:
    """The day whose quota is being used: Shanghai's, where the provider renews daily quotas at midnight."""
    return now.astimezone(_SHANGHAI).date()


def renewal(now: datetime) -> datetime:
    """When daily quotas are renewed next, and a few minutes, so that not all come at once."""
    midnight = datetime.combine(day(now) + timedelta(days=1), time(), _SHANGHAI)
    return midnight + timedelta(minutes=random.uniform(*_AFTER_MIDNIGHT))  # noqa: S311


def settle_tokens(connection: Connection, lane_id: int, tokens: int, booked_at: datetime, now: datetime) -> None:
    """Charges the lane so many tokens more than a call had booked at that time; gives them back, where negative."""
    said = {"lane": lane_id, "the_tokens": tokens, "on_day": day(booked_at), "now": now}
    connection.execute(_SETTLE, said)


def tokens_ahead(now: ColumnElement[datetime]) -> ColumnElement[int]:
    """The tokens that are booked and not worked off yet; null where the minute's are not limited."""
    seconds = func.greatest(0, func.extract("epoch", Lane.tokens_at - now))
    return func.round(seconds * Lane.tpm * SHARE / 60)


def tokens_today(now: datetime) -> ColumnElement[int]:
    """The day's tokens so far."""
    return _today(literal(day(now)))


def day_left(now: ColumnElement[datetime]) -> ColumnElement[int]:
    """What is left of the day's tokens; null where anything goes: they are not limited, or none is used yet."""
    used = _today(cast(func.timezone(_SHANGHAI.key, now), Date))
    return case((used > 0, Lane.tpd - used))


def _lane(connection: Connection, job: Job, now: datetime) -> Row[Any]:
    """The job's lane, locked, with its pace now, how many of its tasks are in flight, and when the last one left."""
    lock(connection, job.lane_id or 0)
    return connection.execute(_LANE, {"lane": job.lane_id, "now": now}).one()


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
    """Slows the lane, unless the create left before it was slowed last: then its answer is about the old rate."""
    factor = _SLOWER.get(Scope(scope))
    is_news = lane.paced_at is None or job.submitted_at is None or job.submitted_at > lane.paced_at
    if factor is not None and is_news:
        is_regaining = lane.pace < lane.pace_now < 1
        kept = max(factor, _BACK) if is_regaining else factor
        _set(connection, lane.id, pace=max(_SLOWEST, lane.pace_now * kept), paced_at=now)


def _set(connection: Connection, lane_id: int, **columns: Any) -> None:
    connection.execute(update(Lane).where(Lane.id == lane_id).values(**columns))


def _since(at: SQLColumnExpression[datetime | None], now: ColumnElement[datetime]) -> ColumnElement[float]:
    return cast(extract("epoch", now - at), Double)


def _today(on: ColumnElement[date]) -> ColumnElement[int]:
    return case((Lane.day == on, Lane.day_tokens), else_=0)


# Statements are built once: to build one costs more than to run it.

_NOW = bindparam("now", type_=DateTime(timezone=True))
# no key of it changes, so jobs that come to the lane do not wait
_LOCK = select(Lane.id).where(Lane.id == bindparam("lane")).with_for_update(key_share=True)
_FLYING = (
    select(func.count().label("others"), func.max(Job.submitted_at).label("last_at"))
    .where(Job.lane_id == Lane.id, in_flight())
    .correlate(Lane)
    .lateral("others")
)
# a lane with its pace now, and its tasks in flight
_LANE: Select[Any] = (
    select(*Lane.__table__.c, pace(_NOW).label("pace_now"), _FLYING.c.others, _FLYING.c.last_at)
    .join(_FLYING, true())
    .where(Lane.id == bindparam("lane"))
)
# parks a lane, unless it is parked for longer
_PARK = (
    update(Lane)
    .where(Lane.id == bindparam("lane"))
    .where(func.coalesce(Lane.parked_until < bindparam("until", type_=DateTime(timezone=True)), True))
    .values(parked_until=bindparam("until", type_=DateTime(timezone=True)), parked_why=bindparam("why"))
)
# undoes what refusals did to every lane
_FORGET = update(Lane).values(
    parked_until=None,
    parked_why=None,
    next_at=func.least(Lane.next_at, func.now()),  # booked at the pace that is forgotten
    paused_at=case((paused_by_person(), Lane.paused_at)),
    paused_why=None,
    pace=1.0,
    paced_at=None,
    ceiling=None,
    ceiling_at=None,
    probes=0,
    passed=0,
)

_MAY_BE_TRIED = func.coalesce(Lane.unserved_at < func.now() - timeouts.UNSERVED, True)
# one of a model's lanes, first those that may be tried: the provider never refused, or long ago
_UNSERVED = (
    select(_MAY_BE_TRIED.label("may_be_tried"), Lane.unserved_why)
    .where(Lane.model == bindparam("model"))
    .order_by(_MAY_BE_TRIED.desc(), Lane.unserved_at.desc())
    .limit(1)
)

# Parts of the statements that book a call, which bind `the_tokens`, `on_day` and `now`.

_TOKENS, _DAY = bindparam("the_tokens", type_=BigInteger), bindparam("on_day", type_=Date)
_WORKED_OFF = _TOKENS * 60_000_000 / (Lane.tpm * SHARE) * literal_column("interval '1 microsecond'", Interval)

COUNTS_TOKENS = or_(Lane.tpm.is_not(None), Lane.tpd.is_not(None))
# greatest(t, null) is t: the minute's tokens are not limited
FREE_AT = func.greatest(Lane.next_at, case((Lane.tpm.is_not(None), Lane.tokens_at)))
LEFT = Lane.tpd - _today(_DAY)  # of the day's
# A call that takes more than a whole day's goes first thing in a day: the provider says what is wrong with it.
IS_SPENT = func.coalesce(and_(_today(_DAY) > 0, _today(_DAY) + _TOKENS > Lane.tpd), False)
BOOKED = {
    "tokens_at": func.coalesce(func.greatest(FREE_AT, _NOW) + _WORKED_OFF, Lane.tokens_at),
    "day": case((COUNTS_TOKENS, _DAY), else_=Lane.day),
    "day_tokens": case((COUNTS_TOKENS, _today(_DAY) + _TOKENS), else_=Lane.day_tokens),
}

# charges a lane's tokens, or gives them back
_SETTLE = (
    update(Lane)
    .where(Lane.id == bindparam("lane"))
    .values(
        # from now on, where what was booked is worked off already
        tokens_at=func.coalesce(func.greatest(Lane.tokens_at, _NOW) + _WORKED_OFF, Lane.tokens_at),
        day_tokens=case((Lane.day == _DAY, func.greatest(0, Lane.day_tokens + _TOKENS)), else_=Lane.day_tokens),
    )
)
