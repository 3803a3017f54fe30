"""The hourly look at what the provider tells each account: its models' ends and its own limits.

An account that may not ask (403), or a host that has no such address (404), leaves what is known as it is.
"""

from __future__ import annotations

from worker import log
from worker.context import Context
from worker.dashscope.responses import Refused
from worker.errors import CallFailed
from worker.lanes import quotas
from worker.settings import Account

_log = log.get(__name__)


def carry_out(ctx: Context) -> None:
    """Asks for each owner and region once, by the first account that is in both."""
    places = {(account.owner, account.region): account for account in reversed(ctx.settings.all_accounts)}
    for place, account in places.items():
        try:
            _import(ctx, place, account)
        except CallFailed as error:
            _log.warning("the provider did not tell an account's limits", owner=account.owner, why=str(error))


def _import(ctx: Context, place: tuple[str, str], account: Account) -> None:
    offers, told = ctx.clients[account.name].offers.models(), ctx.clients[account.name].offers.quotas()
    known = (ctx.catalog, ctx.settings)
    kept = (None if isinstance(offers, Refused) else offers, None if isinstance(told, Refused) else told)
    changed = ctx.write(lambda connection: quotas.keep(connection, known, place, *kept), "limits that were told")
    if changed:
        _log.info("limits of lanes changed as the provider told them", owner=place[0], region=place[1], lanes=changed)
