"""Faults on request: rules that say where, for whom and how often the sandbox misbehaves.

A call meets the first rule that fits it. What a fault does to the task and what it does to the answer are two
facts, stood side by side in `FAULTS`: a lost answer makes the task and cuts the line, a reset only cuts it.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ops.sandbox.catalogue import CATALOGUE


class Where(StrEnum):
    """An interface of the provider's; `any` is all of them but links and a batch's lines."""

    CREATE = "create"
    GET = "get"
    LIST = "list"
    CANCEL = "cancel"
    LINK = "link"
    FILE = "file"  # a file of the compatible interface: its upload, its document, the list, its deletion
    CONTENT = "content"  # of such a file
    BATCH_CREATE = "batch_create"
    BATCH_GET = "batch_get"
    BATCH_LIST = "batch_list"
    BATCH_CANCEL = "batch_cancel"
    LINE = "line"  # one call of a batch
    MODELS = "models"  # the list of models, and the quotas
    POLICY = "policy"  # of a temporary upload
    UPLOAD = "upload"  # the upload itself, to the object store
    ANY = "any"


class What(StrEnum):
    """What goes wrong."""

    # The line
    RESET = "reset"  # cut before anything is done
    LOST_ANSWER = "lost_answer"  # done, then cut before any byte of the answer
    LOST_BODY = "lost_body"  # done, the headers sent, then cut
    HANG = "hang"  # nothing is ever said
    DELAY = "delay"  # the right answer, `after_ms` late
    SLOW_DRIP = "slow_drip"  # the right answer, `bytes` (1) a second
    TRUNCATED = "truncated"  # the right headers, half of the body, then cut
    # The answer
    HTML = "html"  # a gateway's page, `status` (502)
    ERROR = "error"  # `status`, `code` and `message` in the native envelope
    ERROR_IN_200 = "error_in_200"  # a top-level code under HTTP 200
    # A streamed answer: of others these change nothing
    STREAM_ERROR = "stream_error"  # half of its frames, then one with `code` and `message`
    STREAM_ENDS = "stream_ends"  # half of its frames, then an end in good order
    # The task
    EXECUTED_LATE = "executed_late"  # cut, and the task is made `after_ms` later
    TASK_FAILS = "task_fails"  # with `code` and `message`
    TASK_PARTIAL = "task_partial"  # one of its pictures fails
    TASK_RUNS = "task_runs"  # for `after_ms`
    # What is seen of it
    UNKNOWN = "unknown"
    SUSPENDED = "suspended"
    LAG = "lag"  # the list leaves out what is younger than `after_ms`
    MISSES = "misses"  # the list leaves it out
    # The link
    EXPIRED = "expired"
    PURGED = "purged"
    CORRUPT = "corrupt"  # one byte is wrong under the right checksums
    REDIRECT = "redirect"  # to `location`
    WRONG_TYPE = "wrong_type"  # a page of HTML under HTTP 200
    OVERSIZED = "oversized"  # `bytes` long, with a true checksum


@dataclass(frozen=True)
class Fault:
    """Where a fault may be asked for, and whether the call is carried out; None leaves that to the rule."""

    where: frozenset[Where]
    is_done: bool | None


EVERYWHERE = frozenset(Where) - {Where.LINE}
NATIVE = EVERYWHERE - {Where.LINK, Where.UPLOAD}
CREATE, GET, LINK = (frozenset({where}) for where in (Where.CREATE, Where.GET, Where.LINK))
CREATES = CREATE | {Where.BATCH_CREATE}
LISTS = frozenset({Where.LIST, Where.BATCH_LIST})

FAULTS = {
    What.RESET: Fault(EVERYWHERE, is_done=False),
    What.LOST_ANSWER: Fault(EVERYWHERE, is_done=True),
    What.LOST_BODY: Fault(EVERYWHERE, is_done=True),
    What.HANG: Fault(EVERYWHERE, is_done=None),
    What.DELAY: Fault(EVERYWHERE, is_done=True),
    What.SLOW_DRIP: Fault(EVERYWHERE, is_done=True),
    What.TRUNCATED: Fault(EVERYWHERE, is_done=True),
    What.HTML: Fault(EVERYWHERE, is_done=None),
    What.ERROR: Fault(EVERYWHERE | {Where.LINE}, is_done=None),
    What.ERROR_IN_200: Fault(NATIVE, is_done=None),
    What.STREAM_ERROR: Fault(CREATE, is_done=True),
    What.STREAM_ENDS: Fault(CREATE, is_done=True),
    What.EXECUTED_LATE: Fault(CREATES, is_done=True),
    What.TASK_FAILS: Fault(CREATES, is_done=True),
    What.TASK_PARTIAL: Fault(CREATE, is_done=True),
    What.TASK_RUNS: Fault(CREATES, is_done=True),
    What.UNKNOWN: Fault(GET, is_done=True),
    What.SUSPENDED: Fault(GET, is_done=True),
    What.LAG: Fault(LISTS, is_done=True),
    What.MISSES: Fault(LISTS, is_done=True),
    What.EXPIRED: Fault(LINK, is_done=True),
    What.PURGED: Fault(LINK, is_done=True),
    What.CORRUPT: Fault(LINK, is_done=True),
    What.REDIRECT: Fault(LINK, is_done=False),
    What.WRONG_TYPE: Fault(LINK, is_done=False),
    What.OVERSIZED: Fault(LINK, is_done=True),
}


class Rule(BaseModel):
    """One fault: where it strikes, whom (all, unless narrowed), how often (always, unless bounded)."""

    model_config = ConfigDict(extra="forbid")

    where: Where
    what: What
    model: str | None = None
    prompt_contains: str | None = None
    times: int | None = Field(default=None, ge=0)  # it strikes so often, then no more
    probability: float = Field(default=1.0, ge=0, le=1)
    after_ms: int = Field(default=0, ge=0)
    status: int | None = None
    code: str = "InternalError"
    message: str | None = None
    location: str = "http://127.0.0.1/"
    bytes: int | None = Field(default=None, ge=1)
    is_done: bool = False  # whether the call is carried out, where `what` leaves that open

    @model_validator(mode="after")
    def _strikes_where_it_can(self) -> Self:
        if self.where not in FAULTS[self.what].where:
            raise ValueError(f"{self.what} cannot happen at {self.where}")
        return self

    @property
    def carries_out(self) -> bool:
        """Whether the call is carried out before its answer is spoiled."""
        fixed = FAULTS[self.what].is_done
        return self.is_done if fixed is None else fixed

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, code and message, from the catalogue where the rule is silent."""
        status, message = CATALOGUE.get(self.code, (400, self.code))
        return self.status or status, self.code, self.message or message

    def fits(self, model: str, prompt: str) -> bool:
        """Whether the rule is meant for a call about this model and prompt."""
        return self.model in (None, model) and (self.prompt_contains or "") in prompt


class Faults:
    """The rules in force."""

    def __init__(self, seed: int) -> None:
        self.rules: list[Rule] = []
        self.struck: Counter[str] = Counter()
        self._random = random.Random(seed)

    def pick(self, where: Where, model: str, prompt: str) -> Rule | None:
        """Return the rule that this call meets, one of its times spent; None is the usual case."""
        fitting = (rule for rule in self.rules if rule.where in (where, _any(where)) and rule.fits(model, prompt))
        return self._first(fitting)

    def pick_for_list(self, where: Where = Where.LIST) -> Rule | None:
        """Return the rule that a list call meets; its model and prompt narrow the rows, not the call."""
        return self._first(rule for rule in self.rules if rule.where in (where, Where.ANY))

    def pick_for_line(self, model: str, words: str) -> Rule | None:
        """Return the rule that a batch's line meets."""
        return self.pick(Where.LINE, model, words)

    def _first(self, fitting: Iterable[Rule]) -> Rule | None:
        struck = next((rule for rule in fitting if self._random.random() < rule.probability), None)
        if struck is not None:
            self._spend(struck)
        return struck

    def _spend(self, rule: Rule) -> None:
        self.struck[f"{rule.where} {rule.what}"] += 1
        if rule.times is None:
            return
        rule.times -= 1
        if rule.times == 0:
            self.rules.remove(rule)


def _any(where: Where) -> Where:
    return where if where in (Where.LINK, Where.LINE) else Where.ANY
