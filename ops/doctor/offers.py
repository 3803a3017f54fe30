"""What the provider tells each account of its models, held against the catalog: what ends, what is missing, the limits.

The account that may not ask (403), or a host without such an address (404), is told so, and the catalog holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from ops.doctor import Check, Exam, Found, Verdict, warning, well
from worker import egress
from worker.catalog import Model
from worker.dashscope.client import Client
from worker.dashscope.offers import Offer, Quota
from worker.dashscope.responses import Refused
from worker.egress import Bounds, transports
from worker.errors import NoriaError
from worker.lanes import slots
from worker.settings import Account

_NEAR = timedelta(days=30)  # as long as the notice that a dated version gets ('Model depreciation')
_SHOWN = 5  # names in one finding
_BOUNDS = Bounds(5.0, cap=1 << 16)  # seconds, bytes
_SAME = "give every process the same NORIA_CATALOG and release, and start again those that were not"
_FEW = 200  # uses that are read


@dataclass(frozen=True)
class _Use:
    """What would submit jobs of a model: `nightly (spring)` is a schedule or a draft batch of a project."""

    model: str
    what: str


def catalog(exam: Exam) -> Iterator[Found]:
    """Which catalog this process goes by, and whether the API goes by the same."""
    own = exam.settings.catalog
    here = f"{exam.catalog.digest}, the release's" + (f" under {own}" if own else "")
    told = None
    with suppress(NoriaError, ValueError, KeyError, TypeError):  # it is away, or is another's
        address = f"{exam.settings.public_url.rstrip('/')}/healthz"
        told = json.loads(egress.call(transports.keeping(), "GET", address, _BOUNDS, {}).body)["catalog"]
    if told not in (None, exam.catalog.digest):
        yield warning(f"the API's catalog is {told}, and here it is {here}", _SAME)
    else:
        yield well(here + (", as the API's" if told else "; the API's is not known"))


def models(exam: Exam) -> Iterator[Found]:
    """No account's model ends within thirty days, and each has the models and the limits that the catalog says."""
    ends = {model.id: f"ended on {model.retired}" for model in exam.catalog.models() if model.retired}
    for account in exam.settings.all_accounts:
        client = Client(account, transports.keeping(), transports.single())
        here = {there.id: model for model in exam.catalog.models() if (there := model.region(account.region))}
        offers = client.offers.models()
        if isinstance(offers, Refused):
            yield _refused(account, "list of models", offers)
        else:
            yield from _offered(account, here, offers)
            ends |= _missing(account, here, offers) | _ending(here, offers)
        quotas = client.offers.quotas()
        yield _refused(account, "quotas", quotas) if isinstance(quotas, Refused) else _told(exam, account, here, quotas)
    yield from _used(exam, ends)


def _offered(account: Account, here: Mapping[str, Model], offers: Iterable[Offer]) -> Iterator[Found]:
    told = {offer.model for offer in offers}
    yield well(f"{account.name}: it is offered {len(told)} models, {len(here.keys() & told)} of them the catalog's")
    if missing := _missing(account, here, offers):
        what = f"{account.name}: it is not offered {_named(list(missing))}"
        yield warning(what, "they may have ended, or the key's workspace may not call them: see the console")


def _missing(account: Account, here: Mapping[str, Model], offers: Iterable[Offer]) -> dict[str, str]:
    """The catalog's models that the account is not offered, but those of which the catalog knows the end."""
    told = {offer.model for offer in offers}
    lacking = (model for name, model in here.items() if name not in told and not model.retired)
    return {model.id: f"is not offered to {account.name}" for model in lacking}


def _ending(here: Mapping[str, Model], offers: Iterable[Offer]) -> dict[str, str]:
    """The models that end soon or have ended, and when."""
    soon = datetime.now(UTC) + _NEAR
    return {
        here[offer.model].id: f"ends on {offer.ends_at:%Y-%m-%d}"
        for offer in offers
        if offer.model in here and offer.ends_at and offer.ends_at < soon
    }


def _told(exam: Exam, account: Account, here: Mapping[str, Model], quotas: Iterable[Quota]) -> Found:
    """How many limits differ; those of the account are what its lanes go by, unless the settings say otherwise."""
    other = [
        quota.model
        for quota in quotas
        if (model := here.get(quota.model))
        and slots.limits(exam.settings, model, account.region, quota)
        != slots.limits(exam.settings, model, account.region, None)
    ]
    differ = f"; others than the catalog's for {_named(other)}" if other else ""
    return well(f"{account.name}: its own limits are told, and imported each hour{differ}")


def _used(exam: Exam, ends: Mapping[str, str]) -> Iterator[Found]:
    """A warning for each model that ends soon, and for each that is gone and still used."""
    uses = list(_uses(exam, ends))
    for name, what in ends.items():
        users = [use.what for use in uses if use.model == name]
        if users or what.startswith("ends"):
            by = f"; it is used by {_named(users)}" if users else ""
            yield warning(f"{name} {what}{by}", f"take {exam.catalog.model(name).successor or 'another model'} instead")


def _uses(exam: Exam, ends: Mapping[str, str]) -> Iterator[_Use]:
    names = {name.lower(): model for model in map(exam.catalog.model, ends) for name in model.names}
    defaults = [kind for kind in ("speech", "text", "summary") if exam.catalog.default(kind) in ends]
    with exam.engine.connect() as connection:
        for row in connection.execute(text(_USES), {"names": list(names), "kinds": defaults, "few": _FEW}):
            name = row.model or exam.catalog.default(row.kind) or ""
            yield _Use(names[name.lower()].id, f"the {row.what} {row.name} ({row.project})")


def _refused(account: Account, what: str, refused: Refused) -> Found:
    why = f"HTTP {refused.http_status} {refused.code}".rstrip()
    return Found(Verdict.SKIPPED, f"{account.name}: its {what} cannot be had ({why}): the catalog's holds")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# Schedules that fire, and drafts that may be committed, of models by their names or of kinds without one.
_USES = """
    select 'schedule' as what, schedules.name, projects.name as project, template ->> 'kind' as kind,
           case when lower(template -> 'input' ->> 'reduce_model') = any(:names)
                then template -> 'input' ->> 'reduce_model' else template ->> 'model' end as model
    from schedules join projects on projects.id = schedules.project_id
    where schedules.paused_at is null
      and (lower(template ->> 'model') = any(:names) or lower(template -> 'input' ->> 'reduce_model') = any(:names)
           or (template ->> 'model' is null and template ->> 'kind' = any(:kinds)))
    union
    select 'draft', batches.name, projects.name, null, batch_rows.model
    from batches join projects on projects.id = batches.project_id
    join batch_rows on batch_rows.batch_id = batches.id
    where batches.state = 'draft' and lower(batch_rows.model) = any(:names)
    order by 1 desc, 2, 3 limit :few
"""

CHECKS = (
    Check("catalog", catalog, "report it"),
    Check("models", models, "may this machine reach the provider? See `provider`", needs="database"),
)
