"""What a job may cost before it is made, wherever it will be made."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from pydantic import BaseModel

from worker.catalog import Catalog, Model, Usage
from worker.errors import Fault, InvalidInput
from worker.kinds import KINDS
from worker.settings import Settings


def of_kind(catalog: Catalog, settings: Settings, kind: str, model: str, wanted: BaseModel, on: date) -> int | None:
    """What such a job may cost, micro-CNY, wherever it will be made; None when that is not known."""
    found = catalog.model(model)
    return dearest(found, KINDS[kind].estimate(found, wanted), regions(settings, found), on)


def regions(settings: Settings, model: Model) -> list[str]:
    """The regions of the accounts that offer the model; raises InvalidInput with a hint when none does."""
    have = dict.fromkeys(account.region for account in settings.all_accounts)
    if served := [region for region in have if model.region(region)]:
        return served
    offered = ", ".join(model.regions)
    name, _, way = model.id.partition("@")
    what = f"{name} by {way}" if way else name
    message = f"{what} is offered in {offered}; the configured accounts are in {', '.join(sorted(have))}"
    raise InvalidInput([Fault("/model", "model_not_in_region", message)])


def dearest(model: Model, usage: Usage, regions: Iterable[str], on: date) -> int | None:
    """What the usage may cost in the dearest of the regions; None when that is not known of every one."""
    prices = [model.price(usage, region, on) for region in regions]
    known = [price for price in prices if price is not None]
    return max(known) if len(known) == len(prices) else None
