"""What the provider tells an account of its models: which there are, when they end, how much of each it may ask for.

Alibaba docs, 'List models' and 'List model quotas' (2026-09-28). The page in English has the quotas at one address, the
one in Chinese and the official CLI at another, so both are tried. When a model ends is told in three spellings by those
who have seen it (third parties, 2026); all three are read. Fields that do not come leave what is known as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from worker.catalog import Surface
from worker.dashscope import BEIJING, Session
from worker.dashscope.responses import Refused, field, listed, number, read, refused, word

_PAGE, _PAGES = 100, 50  # one account was told 505 models; a provider that cuts pages to 20 needs 26
_QUOTAS = ("/quotas", "/models/limits")


@dataclass(frozen=True)
class Offer:
    """A model that the account is offered, by its id in the account's region; `ends_at`: when the provider ends it."""

    model: str
    ends_at: datetime | None


@dataclass(frozen=True)
class Quota:
    """What an account may ask of a model: creates a second, tasks in process, tokens a minute; None: not told."""

    model: str
    rps: float | None = None
    concurrency: int | None = None
    tpm: int | None = None


class Offers:
    """One account's models and quotas. Calls may be repeated; they raise CallFailed when there was no answer."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def models(self) -> tuple[Offer, ...] | Refused:
        """Every model that the account is offered."""
        rows = self._every("/models", "models")
        return rows if isinstance(rows, Refused) else tuple(_offer(row) for row in rows)

    def quotas(self) -> tuple[Quota, ...] | Refused:
        """The account's quotas; the last refusal where neither address has them."""
        first = self._every(_QUOTAS[0], "quotas")
        rows = self._every(_QUOTAS[1], "quotas") if isinstance(first, Refused) else first
        return rows if isinstance(rows, Refused) else tuple(_quota(row) for row in rows)

    def _every(self, path: str, name: str) -> list[dict[str, Any]] | Refused:
        rows: list[dict[str, Any]] = []
        for page in range(1, _PAGES + 1):
            query = urlencode({"page_no": page, "page_size": _PAGE})
            answer = self._session.query("GET", Surface.NATIVE, f"{path}?{query}")
            body = read(answer.body)
            output = field(body, "output")
            if answer.status != 200 or not isinstance(output.get(name), list):
                return refused(answer, body)
            found = [row for row in listed(output, name) if word(row, "model")]
            rows += found
            if not found or len(rows) >= number(output, "total"):
                break
        return rows


def _offer(row: Mapping[str, Any]) -> Offer:
    told = field(row, "inference_offline_info")
    for where in (told, *(field(told, name) for name in told)):
        if ends := word(where, "offline_time") or word(where, "offlineTime"):
            return Offer(word(row, "model"), _moment(ends))
    return Offer(word(row, "model"), None)


def _quota(row: Mapping[str, Any]) -> Quota:
    """The lower of the account's limits and the workspace's."""
    limits = [field(row, "model_limit"), field(row, "workspace_limit")]
    concurrency = _lowest(limits, lambda limit: number(limit, "async_user_concurrency_limit"))
    tokens = _lowest(limits, _tokens)
    return Quota(
        word(row, "model"),
        rps=_lowest(limits, lambda limit: number(limit, "request_limit") / _period(limit, "request")),
        concurrency=int(concurrency) if concurrency else None,
        tpm=int(tokens) if tokens else None,
    )


def _lowest(limits: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float | None:
    return min((told for told in map(value, limits) if told > 0), default=None)


def _tokens(limit: dict[str, Any]) -> float:
    """Tokens a minute; 0 where the limit is of something else."""
    is_tokens = "token" in (word(limit, "usage_limit_field") or "tokens")
    return number(limit, "usage_limit") * 60 / _period(limit, "usage") if is_tokens else 0


def _period(limit: dict[str, Any], what: str) -> int:
    return number(limit, f"{what}_limit_period") or 60  # seconds


def _moment(words: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(words)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=BEIJING)
