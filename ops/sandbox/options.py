"""The sandbox's switches. All may be set at start, and changed while it runs.

Each switch that answers an open question about the provider defaults to the more likely answer.
"""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from ops.sandbox.clock import DAY


class OverConcurrency(StrEnum):
    """What happens to a create over its model's concurrency."""

    QUEUE = "queue"  # it waits as PENDING
    REFUSE = "refuse"  # 429 Throttling.RateQuota


class QueryLimit(StrEnum):
    """What the account's task queries a second are counted over."""

    SHARED = "shared"  # GET, list and cancel together
    PER_INTERFACE = "per-interface"


class SpeechUnit(StrEnum):
    """What the 600 of a speech call's text are."""

    CHARACTERS = "characters"
    BYTES = "bytes"  # of UTF-8
    BILLED = "billed"  # characters as they are billed: a Han character is two


class FailedLines(StrEnum):
    """Where a batch tells of a line whose call was refused."""

    ERROR_FILE = "error-file"  # as documented
    OUTPUT_FILE = "output-file"  # as one report has it: and counted as completed


class QuotasAt(StrEnum):
    """Where an account may ask for its quotas: each of the two is the address of one language's page."""

    BOTH = "both"
    QUOTAS = "quotas"
    LIMITS = "models/limits"
    NOWHERE = "nowhere"


class Limits(BaseModel):
    """A model's limits where they differ from the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int | None = Field(default=None, ge=1)
    rps: float | None = Field(default=None, gt=0)
    rpm: int | None = Field(default=None, ge=1)
    tpm: int | None = Field(default=None, ge=1)


class Options(BaseModel):
    """How the sandbox behaves. Times are seconds of true time unless a field says that it is scaled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str = "cn-beijing"  # which models there are, by what names; not to be changed under existing tasks
    owners: dict[str, str] = {}  # API key → main account; a key not named here is an account of its own
    any_key: bool = True  # whether keys that `owners` does not name are accepted

    time_scale: float = Field(default=1.0, ge=0)  # shortens run times and queueing, nothing else
    run_seconds: float | None = Field(default=None, ge=0)  # one run time for all, not scaled
    call_seconds: float | None = Field(default=None, ge=0)  # one time for speech and text, not scaled
    queue_seconds: float | None = Field(default=None, ge=0)  # one wait before running for all, not scaled
    clock_offset_seconds: float = 0.0  # moves the sandbox's clock, for expiry and retention
    seed: int = 0  # of run times, queueing and faults; ids are always random

    over_concurrency: OverConcurrency = OverConcurrency.QUEUE
    limits: dict[str, Limits] = {}  # by model; "*" for all that are not named
    queries_per_second: float = Field(default=20, gt=0)
    policies_per_second: float = Field(default=100, gt=0)  # for temporary uploads, of an account and model
    query_limit: QueryLimit = QueryLimit.SHARED
    retry_after_seconds: int | None = None  # set: sent with every 429
    max_page_size: int = Field(default=100, ge=1)  # larger pages are cut to this
    late_checks: bool = False  # a bad parameter makes a FAILED task instead of a 400
    speech_unit: SpeechUnit = SpeechUnit.CHARACTERS
    quotas_at: QuotasAt = QuotasAt.BOTH
    ends: dict[str, str] = {}  # model → when it ends, "2026-10-10 00:00:00" on the provider's clock; then it is gone
    async_text: bool = False  # whether text may be asked for as a task
    unknown_parameter: str = ""  # of chat completions: one that is refused by name, such as max_tokens

    batch_chat: bool = True  # whether accounts are let in
    batch_chat_seconds: float = Field(default=0.0, ge=0)  # that a call of it waits in line; not scaled

    batch_validating_seconds: float | None = Field(default=None, ge=0)  # these three not scaled
    batch_run_seconds: float | None = Field(default=None, ge=0)
    batch_finalizing_seconds: float | None = Field(default=None, ge=0)
    batch_lines: int = Field(default=50_000, ge=1)  # of an input file, at most
    batch_bytes: int = Field(default=500_000_000, ge=1)
    failed_lines: FailedLines = FailedLines.ERROR_FILE

    retention_seconds: float = DAY  # of a task, from its end; then it is UNKNOWN
    link_seconds: float = DAY  # of a link, from the upload; a link of seven days is scaled with it
    true_size: bool = False  # draw at the size asked for, not at 256 pixels on the long side
    output_bytes: int = Field(default=0, ge=0)  # outputs smaller than this are padded to it
    gzip: bool = True  # where the client offers it

    def changed(self, changes: dict[str, object]) -> Self:
        """Return these options with some fields set anew; raise pydantic's ValidationError for a bad one."""
        return self.model_validate(self.model_dump() | changes)
