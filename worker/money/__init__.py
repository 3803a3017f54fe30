"""Money, in integer micro-CNY: what a job may cost, what its submission reserves, what its attempts settle or release.

A job reserves its estimate in the transaction that makes it, or that lets it go where it was held for a budget. The
verdict on an attempt books what it cost (`settle`), whatever has become of the job; `release` gives the reservation
back. An attempt whose answer is unknown is charged at the estimate until the answer is known: then its line is
corrected. Other lines are only ever added, and each is unique by (attempt, entry).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from sqlalchemy import CTE, Connection, Insert, insert, literal, select, text

from worker.catalog import Catalog, Model, Usage, Variant
from worker.errors import Fault, InvalidInput
from worker.kinds import KINDS
from worker.settings import Settings
from worker.tables import Entry, Job

MICROS = 1_000_000
_MOST_USED = 10**12  # of anything, by one call
_SHORT_READ, _SHORT_WRITTEN = 4000, 300  # tokens of a call that a lighter model does as well
_WORTH_IT = 0.7  # the share of the price from which on a lighter model is not worth a word
COUNTED = ("input_tokens", "cached_tokens", "output_tokens", "seconds", "characters", "images")  # of what a call used


@dataclass(frozen=True)
class Bill:
    """What a call cost: `billed` as attempts say it, `cost` where the price is known, and what the call used."""

    billed: str
    cost: int | None = None
    usage: Mapping[str, Any] | None = None

    def booked(self, estimate: int | None) -> dict[str, Any]:
        """What the ledger's line says; of a call that is charged without a price, nothing or the estimate."""
        is_known = self.billed == "yes" and self.cost is not None
        counted = {name: value for name in COUNTED if _counts(value := (self.usage or {}).get(name))}
        return {
            "cost": self.cost if is_known else estimate or 0,
            "known": is_known,
            "usage": json.dumps(counted) if counted else None,
        }


def estimate(catalog: Catalog, settings: Settings, kind: str, model: str, wanted: BaseModel, on: date) -> int | None:
    """What such a job may cost, in whichever region it will be made; None when that is not known."""
    found = catalog.model(model)
    return dearest(found, KINDS[kind].estimate(found, wanted), regions(settings, found), on)


def regions(settings: Settings, model: Model) -> list[str]:
    """The regions of the accounts that offer the model; raises InvalidInput with a hint when none does.

    `settings` are those of the job's project: where that is bound to an account, of that one alone.
    """
    if not settings.all_accounts:
        raise InvalidInput([Fault("/model", "account_gone", "the account that the project is bound to is not set up")])
    able = [account for account in settings.all_accounts if model.variant is not Variant.CHAT or account.batch_chat]
    have = dict.fromkeys(account.region for account in able)
    if served := [region for region in have if model.region(region)]:
        return served
    offered = ", ".join(model.regions)
    name, _, way = model.id.partition("@")
    what = f"{name} by {way}" if way else name
    accounts = ", ".join(sorted({f"{account.region} ({account.name})" for account in settings.all_accounts}))
    message = f"{what} is offered in {offered}; the accounts for it are in {accounts}"
    raise InvalidInput([Fault("/model", "model_not_in_region", message)])


def dearest(model: Model, usage: Usage, regions: Iterable[str], on: date) -> int | None:
    """What the usage may cost in the dearest of the regions; None unless every region's price is known."""
    prices = [model.price(usage, region, on) for region in regions]
    known = [price for price in prices if price is not None]
    return max(known) if len(known) == len(prices) else None


def advice(
    catalog: Catalog, settings: Settings, kind: str, model: Model, wanted: BaseModel, price: int | None, on: date
) -> Fault | None:
    """The cheaper model that does as well as one of that price; None where the text is long, or little is saved."""
    if not model.lighter or not price or not _is_short(KINDS[kind].estimate(model, wanted)):
        return None
    lighter = catalog.model(model.lighter)
    served = [account.region for account in settings.all_accounts if lighter.region(account.region)]
    less = dearest(lighter, KINDS[kind].estimate(lighter, wanted), served, on) if served else None
    if less is None or less > _WORTH_IT * price:
        return None
    share = max(1, round(100 * less / price))
    message = f"{lighter.id} does as well for labels and short texts, for about {share} % of the price of {model.id}"
    return Fault("/model", "cheaper_model", message)


def reserve(connection: Connection, jobs: Sequence[uuid.UUID], now: datetime) -> None:
    """Books the estimates of jobs that are made again, or let go, those of them that have a price: as of now."""
    connection.execute(_RESERVE, {"jobs": jobs, "now": now})


def reserving(made: CTE) -> Insert:
    """Books the estimates of the jobs that a statement makes, those that have a price and are not held."""
    of = made.c
    lines = select(of.project_id, of.id, literal("reserve"), of.estimate, of.created_at, of.created_at)
    named = ("project_id", "job_id", "entry", "micros", "at", "reserved_at")
    return insert(Entry).from_select(named, lines.where(of.estimate.is_not(None), of.held_for.is_(None)))


def book(connection: Connection, job: Job, attempt_id: uuid.UUID | None, bill: Bill, now: datetime) -> None:
    """Books the verdict on a job's call; a child's call is booked on its parent.

    Billed "yes": what it cost, or the estimate where the price is not known; "unknown": the estimate; "no": nothing,
    and an earlier charge is taken back.
    """
    booked = {"job": job.parent_id or job.id, "the_attempt": attempt_id, "now": now}
    if bill.billed == "no":
        connection.execute(_UNSETTLE, booked)
    else:
        connection.execute(_SETTLE, booked | bill.booked(job.estimate))


def pay(connection: Connection, job: Job, attempt_id: uuid.UUID | None, bill: Bill, now: datetime) -> None:
    """Books a job's call as billed, and gives back what was reserved for it: `book` and `release` in one statement."""
    if job.estimate is None:  # nothing was reserved
        book(connection, job, attempt_id, bill, now)
    else:
        paid = {"job": job.id, "the_job": job.id, "the_attempt": attempt_id, "now": now}
        connection.execute(_PAY, paid | bill.booked(job.estimate))


def release(connection: Connection, job: Job, now: datetime) -> None:
    """Gives back what was reserved for the job; once, whatever its attempts cost."""
    if job.estimate is not None:
        connection.execute(_RELEASE, {"the_job": job.id, "the_attempt": job.attempt_id, "now": now})


def release_ended(connection: Connection, jobs: Sequence[uuid.UUID], now: datetime) -> None:
    """Gives back what was reserved for jobs that have ended, but where the verdict on a job's last call is missing."""
    connection.execute(_RELEASE_ENDED, {"jobs": jobs, "now": now})


def _is_short(usage: Usage) -> bool:
    read, wrote = (usage.units.get(name) for name in ("input_tokens", "output_tokens"))
    return read is not None and wrote is not None and read <= _SHORT_READ and wrote <= _SHORT_WRITTEN


def _counts(value: Any) -> bool:
    """Whether that can be added up: what a provider says may be anything, and no booking may fail for it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST_USED


def shown(micros: int | None) -> str | None:
    """`"3.00"`: at least two decimals, and as many as the amount has."""
    if micros is None:
        return None
    amount = (Decimal(micros) / MICROS).normalize()
    return f"{amount:.2f}" if -amount.as_tuple().exponent < 2 else f"{amount:f}"  # type: ignore[operator]


# The lines of reservations.
_RESERVE = text(
    "insert into ledger (project_id, job_id, entry, micros, at, reserved_at)"
    " select project_id, id, 'reserve', estimate, :now, :now from jobs"
    " where id = any(cast(:jobs as uuid[])) and estimate is not null order by id"
)
# What an attempt cost, in the period that reserved it last; booked again, it replaces the amount.
_SETTLING = """
    insert into ledger (project_id, job_id, attempt_id, entry, micros, known, usage, at, reserved_at)
    select project_id, id, cast(:the_attempt as uuid), 'settle', :cost, :known, cast(:usage as jsonb), :now,
           coalesce((select max(reserved_at) from ledger where job_id = :job and entry = 'reserve'), created_at)
      from jobs where id = :job
    on conflict (attempt_id, entry) do update
       set micros = excluded.micros, known = excluded.known, usage = excluded.usage, at = excluded.at
     where (ledger.micros, ledger.known, ledger.usage)
           is distinct from (excluded.micros, excluded.known, excluded.usage)
    """
# An attempt that turned out to be free.
_UNSETTLE = text(
    "update ledger set micros = 0, known = true, usage = null, at = :now"
    " where attempt_id = cast(:the_attempt as uuid) and entry = 'settle' and job_id = :job"
    " and (micros <> 0 or not known or usage is not null)"
)
# What the job reserved and has not given back, read and given back in one statement.
_RELEASING = """
    insert into ledger (project_id, job_id, attempt_id, entry, micros, at, reserved_at)
    select project_id, job_id, cast(:the_attempt as uuid), 'release', -sum(micros), :now, max(reserved_at)
    from ledger where job_id = :the_job and entry in ('reserve', 'release')
    group by project_id, job_id having sum(micros) <> 0
    on conflict (attempt_id, entry) do nothing
    """
# `_RELEASING` of many jobs. A parent's own calls are none; a call's verdict is missing until its attempt is closed.
_RELEASE_ENDED = text(
    """
    insert into ledger (project_id, job_id, attempt_id, entry, micros, at, reserved_at)
    select jobs.project_id, jobs.id, jobs.attempt_id, 'release', -sum(micros), :now, max(reserved_at)
    from jobs join ledger on ledger.job_id = jobs.id and entry in ('reserve', 'release')
    where jobs.id = any(cast(:jobs as uuid[])) and jobs.estimate is not null
      and (jobs.mode = 'parent' or jobs.billed <> 'unknown'
           or exists (select from attempts where attempts.id = jobs.attempt_id and closed_at is not null))
    group by jobs.id having sum(micros) <> 0 order by jobs.id
    on conflict (attempt_id, entry) do nothing
    """
)
_SETTLE, _RELEASE = text(_SETTLING), text(_RELEASING)
# the main statement runs first, so that the lines read as they always did
_PAY = text(f"with released as ({_RELEASING}) {_SETTLING}")
