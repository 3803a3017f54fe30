"""A lane's tokens: so many a minute, so many a day, spent like its rate and settled by what answers say.

The provider keeps a sixtieth of the minute's tokens in each second (Alibaba docs, 'Rate limits'), so a call moves
`tokens_at`, the instant at which all that is booked is worked off, on by as long as its tokens take at 90 % of that
rate; the next one leaves after it. The day's are counted. Both are booked as many as the call may take; when its answer
says how many it took, the difference is given back, or charged. A lane without such limits keeps no count.
"""

from __future__ import annotations

import random
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Interval,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    update,
)

from worker.lanes import limits
from worker.tables import Lane

_SHANGHAI = ZoneInfo("Asia/Shanghai")
_AFTER_MIDNIGHT = 1, 5  # minutes


def day(now: datetime) -> date:
    """The day whose quota is being used: Shanghai's, where the provider renews daily quotas at midnight."""
    return now.astimezone(_SHANGHAI).date()


def renewal(now: datetime) -> datetime:
    """When daily quotas are renewed next, and a few minutes, so that not all come at once."""
    midnight = datetime.combine(day(now) + timedelta(days=1), time(), _SHANGHAI)
    return midnight + timedelta(minutes=random.uniform(*_AFTER_MIDNIGHT))  # noqa: S311


def settle(connection: Connection, lane_id: int, tokens: int, booked_at: datetime, now: datetime) -> None:
    """Charges the lane so many tokens more than a call had booked at that time; gives them back, where negative."""
    said = {"lane": lane_id, "tokens": tokens, "on_day": day(booked_at), "now": now}
    connection.execute(_SETTLE, said)


def ahead(now: ColumnElement[datetime]) -> ColumnElement[int]:
    """The tokens that are booked and not worked off yet; null where the minute's are not limited."""
    seconds = func.greatest(0, func.extract("epoch", Lane.tokens_at - now))
    return func.round(seconds * Lane.tpm * limits.SHARE / 60)


def today(now: datetime) -> ColumnElement[int]:
    """The day's tokens so far."""
    return _today(literal(day(now)))


def left(now: ColumnElement[datetime]) -> ColumnElement[int]:
    """What is left of the day's tokens; null where anything goes: they are not limited, or none is used yet."""
    used = _today(cast(func.timezone(_SHANGHAI.key, now), Date))
    return case((used > 0, Lane.tpd - used))


def _today(on: ColumnElement[date]) -> ColumnElement[int]:
    return case((Lane.day == on, Lane.day_tokens), else_=0)


# Parts of the statements that book a call, which bind `tokens`, `on_day` and `now`.

_TOKENS, _DAY = bindparam("tokens", type_=BigInteger), bindparam("on_day", type_=Date)
_NOW = bindparam("now", type_=DateTime(timezone=True))
_WORKED_OFF = _TOKENS * 60_000_000 / (Lane.tpm * limits.SHARE) * literal_column("interval '1 microsecond'", Interval)

IS_COUNTED = or_(Lane.tpm.is_not(None), Lane.tpd.is_not(None))
# greatest(t, null) is t: the minute's tokens are not limited
FREE_AT = func.greatest(Lane.next_at, case((Lane.tpm.is_not(None), Lane.tokens_at)))
LEFT = Lane.tpd - _today(_DAY)  # of the day's
# A call that takes more than a whole day's goes first thing in a day: the provider says what is wrong with it.
IS_SPENT = func.coalesce(and_(_today(_DAY) > 0, _today(_DAY) + _TOKENS > Lane.tpd), False)
BOOKED = {
    "tokens_at": func.coalesce(func.greatest(FREE_AT, _NOW) + _WORKED_OFF, Lane.tokens_at),
    "day": case((IS_COUNTED, _DAY), else_=Lane.day),
    "day_tokens": case((IS_COUNTED, _today(_DAY) + _TOKENS), else_=Lane.day_tokens),
}

_SETTLE = (
    update(Lane)
    .where(Lane.id == bindparam("lane"))
    .values(
        # from now on, where what was booked is worked off already
        tokens_at=func.coalesce(func.greatest(Lane.tokens_at, _NOW) + _WORKED_OFF, Lane.tokens_at),
        day_tokens=case((Lane.day == _DAY, func.greatest(0, Lane.day_tokens + _TOKENS)), else_=Lane.day_tokens),
    )
)
