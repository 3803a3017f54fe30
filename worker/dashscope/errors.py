"""What the provider's errors mean, and what is to be done about each.

First the meanings, then one table for three places: an answer that is not 200, a 200 with a code at its top, and a task
(or a part of one) that failed. The code decides, since statuses differ between editions of the documents; the message
only splits a code that has two meanings; the status decides where there is no code that we know.

The rows follow Alibaba docs, 'Error messages' (2026), with older and OpenAI-compatible spellings. Refused calls and
failed tasks are not billed ('Model pricing').
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain

from worker import text
from worker.dashscope.responses import WRONG_ADDRESS
from worker.errors import ErrorClass, Failure

MESSAGE_LIMIT = 1000  # characters kept of what the provider says


class Verdict(StrEnum):
    """What is to be done."""

    RETRY = "retry"  # the same again after a while; `tries` bounds it
    WAIT = "wait"  # for quota or capacity: the job keeps its place, its lane slows down
    FAIL = "fail"  # the job: this input will not pass
    STOP_ACCOUNT = "stop_account"  # nothing passes with this credential until a person acts
    MISCONFIGURED = "misconfigured"  # the job fails by a route, region, model id or parameter of ours, not by its input
    EXPECTED = "expected"  # no error: a task that has begun cannot be canceled


class Scope(StrEnum):
    """Which limit a wait is for, or what an account lacks."""

    RATE = "rate"  # calls a minute; clears within one
    BURST = "burst"  # calls came faster than before: ramp slowly
    ALLOCATION = "allocation"  # tokens a minute; clears within one, whatever its words say of billing
    CAPACITY = "capacity"  # the provider's own
    DAILY = "daily"  # clears at midnight in Shanghai
    FREE_QUOTA = "free_quota"
    MODEL = "model"  # one that the account's key may not call
    MONEY = "money"
    KEY = "key"
    PERMISSION = "permission"


# A model's lane stops until a person acts; the account's other models go on.
OF_A_MODEL = frozenset({Scope.FREE_QUOTA, Scope.MODEL})
# Those that another key or workspace of the same owner need not meet.
OF_A_KEY = frozenset({Scope.KEY, Scope.PERMISSION})


@dataclass(frozen=True)
class Meaning:
    """What an error means; `code` is ours and stable.

    `tries` is how often at most to try again (None: until the phase's deadline); `is_worth_again` whether a person may
    well send a failed job again.
    """

    code: str
    verdict: Verdict
    cls: ErrorClass
    scope: Scope | None = None
    tries: int | None = None
    is_worth_again: bool = False
    hint: str | None = None


@dataclass(frozen=True)
class Row:
    """Answers of one meaning: by the provider's `codes`, with all that is dotted below them; empty: any code.

    `statuses` and `message` (a pattern) narrow the row where they are set.
    """

    meaning: Meaning
    codes: str = ""
    message: str = ""
    statuses: frozenset[int] = frozenset()

    def fits(self, status: int, code: str, message: str) -> bool:
        """Whether the row has such an answer; `code` as `_plain` leaves it."""
        return (
            (not self.statuses or status in self.statuses)
            and (not self.codes or f"{code}.".startswith(self._known))
            and re.search(self.message, message, re.IGNORECASE) is not None
        )

    @cached_property
    def _known(self) -> tuple[str, ...]:
        return tuple(f"{_plain(code)}." for code in self.codes.split())


def _stop(code: str, scope: Scope, hint: str) -> Meaning:
    return Meaning(code, Verdict.STOP_ACCOUNT, ErrorClass.CREDENTIALS, scope, hint=hint)


_E, _S = ErrorClass, Scope
_RETRY, _WAIT, _FAIL, _OURS = Verdict.RETRY, Verdict.WAIT, Verdict.FAIL, Verdict.MISCONFIGURED

# What the job's input is to blame for.
_INVALID_PARAMETER = Meaning("invalid_parameter", _FAIL, _E.VALIDATION)
_BAD_REQUEST = Meaning("bad_request", _FAIL, _E.VALIDATION)
_TOO_LARGE = Meaning("too_large", _FAIL, _E.VALIDATION, hint="give the picture as a link, or smaller")
_UNSUPPORTED_FILE = Meaning(
    "unsupported_file", _FAIL, _E.VALIDATION, hint="the model's page names the formats, sizes and lengths that it takes"
)
_INPUT_UNREADABLE = Meaning(
    "input_unreadable",
    _RETRY,
    _E.VALIDATION,
    tries=3,
    hint="the provider must be able to fetch the link without a login; long-lived, public or oss:// links work",
)
_INPUT_REFUSED = Meaning(
    "input_refused", _FAIL, _E.CONTENT, hint="the provider's inspection refuses this prompt or media; change it"
)
_OUTPUT_REFUSED = Meaning(
    "output_refused",
    _FAIL,
    _E.CONTENT,
    is_worth_again=True,
    hint="what was made did not pass the provider's inspection; another seed may",
)

# What a route, a region, a model id or a parameter of ours is to blame for.
_MALFORMED_REQUEST = Meaning("malformed_request", _OURS, _E.INTERNAL)
_WRONG_ROUTE = Meaning(
    "wrong_route",
    _OURS,
    _E.INTERNAL,
    hint="the model is not served on this path; the catalog's entry needs another protocol",
)
_WRONG_MODE = Meaning(
    "wrong_mode", _OURS, _E.INTERNAL, hint="the catalog's entry for this model needs another path, or `sync` changed"
)
_THINKING_REFUSED = Meaning(
    "thinking_refused",
    _OURS,
    _E.INTERNAL,
    hint="enable_thinking does not fit: the model cannot think, cannot stop thinking, or thinks only in a stream",
)
_SEE_MODELS = "compare the account's region and host with the model's regions and ids in GET /v1/models"
_MODEL_NOT_SERVED = Meaning("model_not_served", _OURS, _E.PROVIDER, hint=_SEE_MODELS)
_NOT_FOUND = Meaning("not_found", _OURS, _E.PROVIDER, hint=_SEE_MODELS)
_STORE_FULL = Meaning(
    "store_full", _OURS, _E.QUOTA, hint="the account holds as many objects (voices, files) as it may: delete some"
)

# What stops an account, or a model of it.
_BUDGET_SPENT = _stop(
    "budget_spent",
    _S.MONEY,
    "the month's budget in the console's Budget Management is spent: raise it, then resume the account",
)
_ARREARS = _stop(
    "arrears", _S.MONEY, "the account is in arrears: top it up in Alibaba Cloud's console, then resume the account"
)
_NOT_PURCHASED = _stop(
    "not_purchased", _S.PERMISSION, "activate Model Studio for the main account, in the region of this key"
)
_MODEL_NOT_PURCHASED = _stop(
    "not_purchased", _S.MODEL, "activate the model, or Model Studio, for the main account in the region of this key"
)
_FREE_QUOTA_SPENT = Meaning(
    "free_quota_spent",
    Verdict.STOP_ACCOUNT,
    _E.QUOTA,
    _S.FREE_QUOTA,
    hint="the free quota is used up: turn off 'use free tier only' for the model in the console, or take another model",
)
_BAD_KEY = _stop(
    "bad_key", _S.KEY, "the key is wrong or of another region: key, host and workspace must be of one region"
)
_WORKSPACE_UNKNOWN = _stop(
    "workspace_unknown", _S.KEY, "the workspace id is not of this account or region: see NORIA_DASHSCOPE_WORKSPACE"
)
_WORKSPACE_FORBIDDEN = _stop(
    "workspace_forbidden",
    _S.PERMISSION,
    "the key may not use this workspace: see NORIA_DASHSCOPE_WORKSPACE, and the key's rights in the console",
)
_MODEL_FORBIDDEN = _stop(
    "model_forbidden",
    _S.MODEL,
    "the key's workspace may not call this model: authorize the model for the workspace in the console",
)
_PERMISSION_MISSING = _stop(
    "permission_missing",
    _S.PERMISSION,
    "the RAM user of this key lacks a permission: grant it AliyunBailianFullAccess, or the workspace's own",
)
_ACCESS_DENIED = _stop(
    "access_denied",
    _S.PERMISSION,
    "the key may not do this: check its RAM permissions, its workspace and its IP allow list",
)
NOT_DASHSCOPE = _stop(
    "wrong_address",
    _S.KEY,
    "DashScope does not answer there: set NORIA_DASHSCOPE_URL (or the account's url) to the host alone, like"
    " https://dashscope.aliyuncs.com",
)

# What passes.
_DAILY_QUOTA_SPENT = Meaning(
    "daily_quota_spent", _WAIT, _E.QUOTA, _S.DAILY, hint="the day's quota is spent; it is renewed at 00:00 in Shanghai"
)
_NO_CAPACITY = Meaning("no_capacity", _WAIT, _E.PROVIDER, _S.CAPACITY)
_ALLOCATION_EXCEEDED = Meaning("allocation_exceeded", _WAIT, _E.QUOTA, _S.ALLOCATION)
_BURST_EXCEEDED = Meaning("burst_exceeded", _WAIT, _E.QUOTA, _S.BURST)
_RATE_EXCEEDED = Meaning("rate_exceeded", _WAIT, _E.QUOTA, _S.RATE)
_PROVIDER_UNAVAILABLE = Meaning("provider_unavailable", _RETRY, _E.PROVIDER)
_PROVIDER_ERROR = Meaning("provider_error", _RETRY, _E.PROVIDER)
_CONNECTION_LOST = Meaning("connection_lost", _RETRY, _E.NETWORK)
_UPLOAD_POLICY_EXPIRED = Meaning("upload_policy_expired", _RETRY, _E.PROVIDER, tries=3)
_TASK_TIMED_OUT = Meaning("task_timed_out", _RETRY, _E.PROVIDER, tries=1, hint="it ran for over 3 hours")
_TASK_FAILED = Meaning("task_failed", _FAIL, _E.PROVIDER, is_worth_again=True)
_TOO_LATE_TO_CANCEL = Meaning("too_late_to_cancel", Verdict.EXPECTED, _E.PROVIDER)

# An inspection's codes: of the gateway, of a model's service, and codes that it is wrapped in.
_INSPECTED = "DataInspectionFailed InternalError.DataInspection InternalError.Algo.DataInspectionFailed"
_INFRINGES = f"{_INSPECTED} IPInfringementSuspect"
_INAPPROPRIATE = r"inappropriate content"  # with codes that name no inspection
_OF_OUTPUT = r"(?<!input or )\boutput\b"  # anywhere: "<400> InternalError.Algo.DataInspectionFailed: Output data may …"
_PARAMETER = "InvalidParameter invalid_parameter_error"
# Alibaba docs, 'Budget management' (2026-09-25), in either language, and at the beginning, so that an echo of an input
# is not taken for it. The page gives HTTP 429 and no code.
_BUDGET = r"^\W*(<\d+>\s*[\w.]+:\s*)?(the budget\b.{0,80}\bexhausted|您在.?预算管理.{0,20}用尽)"
_NOT_DOWNLOADED = r"\bdownload (\w+ )*(failed|error|timed out|timeout)|(failed|unable) to download"
_400 = frozenset({400})

# The first row that fits is the meaning, so a narrower one stands before a wider one.
TABLE: tuple[Row, ...] = (
    Row(_BUDGET_SPENT, message=_BUDGET),
    Row(_WRONG_ROUTE, "InvalidParameter", r"url error"),
    Row(_MODEL_NOT_SERVED, f"{_PARAMETER} AccessDenied NotFound", r"^\W*(the )?model (\S+ )?(does )?not (exist|found)"),
    Row(_UNSUPPORTED_FILE, "InvalidURL", r"(longer|larger) than|not supported"),
    Row(
        _INPUT_UNREADABLE,
        "InvalidParameter.DataInspection InvalidParameter.FileDownload BadRequest.InputDownloadFailed"
        " InvalidFile.DownloadFailed InvalidURL",
    ),
    Row(_INPUT_UNREADABLE, f"{_PARAMETER} InternalError.Algo.InvalidParameter", _NOT_DOWNLOADED),
    Row(_THINKING_REFUSED, "InvalidParameter.NotSupportEnableThinking"),
    Row(_THINKING_REFUSED, _PARAMETER, r"enable_thinking"),
    Row(_OUTPUT_REFUSED, f"InternalError {_PARAMETER}", rf"{_OF_OUTPUT}.*{_INAPPROPRIATE}"),
    Row(_INPUT_REFUSED, f"InternalError {_PARAMETER}", _INAPPROPRIATE),
    Row(_INVALID_PARAMETER, f"{_PARAMETER} invalid_value"),
    Row(
        _MALFORMED_REQUEST,
        "BadRequest.EmptyInput BadRequest.EmptyParameters BadRequest.EmptyModel BadRequest.IllegalInput",
    ),
    Row(_UNSUPPORTED_FILE, "BadRequest.UnsupportedFileFormat"),
    Row(_TOO_LARGE, "BadRequest.TooLarge"),
    Row(_BAD_REQUEST, "BadRequest"),
    Row(
        _UNSUPPORTED_FILE,
        "InvalidFile InvalidImage InvalidImageResolution InvalidImageFormat"
        " InvalidPerson InvalidGarment InvalidInputLength",
    ),
    Row(_OUTPUT_REFUSED, _INFRINGES, _OF_OUTPUT),
    Row(_INPUT_REFUSED, f"{_INFRINGES} FaqRuleBlocked CustomRoleBlocked"),
    Row(_ARREARS, "Arrearage PrepaidBillOverdue PostpaidBillOverdue"),
    Row(_ARREARS, "AccessDenied", r"good standing|overdue"),
    Row(_NOT_PURCHASED, "CommodityNotPurchased"),
    Row(_MODEL_NOT_PURCHASED, "AccessDenied.Unpurchased"),
    Row(_TOO_LATE_TO_CANCEL, "UnsupportedOperation"),
    Row(_FREE_QUOTA_SPENT, "Throttling.AllocationQuota insufficient_quota", r"free (allocated|tier|quota)"),
    Row(_FREE_QUOTA_SPENT, "AllocationQuota.FreeTierOnly"),
    Row(_STORE_FULL, "Throttling.AllocationQuota", statuses=_400),
    Row(_DAILY_QUOTA_SPENT, "Throttling LimitRequests insufficient_quota", r"\b(daily|per day|today)\b"),
    Row(_NO_CAPACITY, "Throttling insufficient_quota", r"system capacity"),
    Row(_ALLOCATION_EXCEEDED, "Throttling.AllocationQuota insufficient_quota"),
    Row(_BURST_EXCEEDED, "Throttling.BurstRate limit_burst_rate"),
    Row(_RATE_EXCEEDED, "Throttling LimitRequests"),
    Row(_MALFORMED_REQUEST, "ServiceUnavailableError", statuses=_400),
    Row(_PROVIDER_UNAVAILABLE, "ServiceUnavailableError"),
    Row(_CONNECTION_LOST, "ClientDisconnect APIConnectionError"),
    Row(_BAD_KEY, "InvalidApiKey NotAuthorized"),
    Row(_WRONG_MODE, "AccessDenied", r"does not support a?synchronous calls"),
    Row(_UPLOAD_POLICY_EXPIRED, "AccessDenied", r"policy expired"),
    Row(_MODEL_FORBIDDEN, "Model.AccessDenied"),
    Row(_WORKSPACE_FORBIDDEN, "App.AccessDenied Workspace.AccessDenied"),
    Row(_PERMISSION_MISSING, "Forbidden"),
    Row(_ACCESS_DENIED, "AccessDenied"),
    Row(_MODEL_NOT_SERVED, "ModelNotFound Model.NotExist model_not_supported UnsupportedModel"),
    Row(_WORKSPACE_UNKNOWN, "WorkSpaceNotFound"),
    Row(_NOT_FOUND, "NotFound"),
    Row(_TASK_TIMED_OUT, "InternalError.Timeout"),
    Row(_INVALID_PARAMETER, "InternalError.Algo.InvalidParameter"),
    Row(_INVALID_PARAMETER, "InternalError.Algo", r"parameter|range of input|must be|should be"),
    Row(_NO_CAPACITY, "ModelServingError ModelUnavailable ServiceOverloaded ResourceExhausted"),
    Row(
        _PROVIDER_ERROR,
        "InternalError SystemError ModelServiceFailed RewriteFailed RequestTimeOut ResponseTimeout"
        " InvokePluginFailed AppProcessFailed RetrievalFailed RetrivalFailed",
    ),
)

# For answers without a code that we know; of a task (200) we then only know that it failed.
BY_STATUS: tuple[Row, ...] = (
    Row(_BAD_KEY, statuses=frozenset({401})),
    Row(_ARREARS, statuses=frozenset({402})),
    Row(_ACCESS_DENIED, statuses=frozenset({403})),
    Row(_NOT_FOUND, statuses=frozenset({404, 405})),
    Row(_CONNECTION_LOST, statuses=frozenset({408, 499})),
    Row(_RATE_EXCEEDED, statuses=frozenset({429})),
    Row(_BAD_REQUEST, statuses=frozenset(range(400, 500))),
    Row(_PROVIDER_ERROR, statuses=frozenset(range(500, 600))),
    Row(_TASK_FAILED),
)

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(\b[a-z]{2,10}://)[^\s/@]*@", re.IGNORECASE), r"\1"),
    (re.compile(r"(\b[a-z]{2,10}://[^\s?#\"'<>]*)[?#][^\s\"'<>]*", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(signature|ossaccesskeyid|security-token|expires)=[^&\s]+", re.IGNORECASE), r"\1=…"),
    (re.compile(r"\bbearer\s+\S+", re.IGNORECASE), "Bearer …"),
    (re.compile(r"\b(sk|st)-[\w.*-]{4,}"), r"\1-…"),
    (re.compile(r"\bLTAI\w{4,}"), "LTAI…"),
)


def classify(status: int, code: str | None, message: str | None) -> Meaning:
    """What an error means: an answer's, with its status, or a task's, with 200; `code` and `message` as it has them.

    Of the statuses of a wrong address, the provider's own 404 has a code.
    """
    if not code and status in WRONG_ADDRESS:
        return NOT_DASHSCOPE
    return _row(status, code or "", message or "").meaning


def failure(meaning: Meaning, code: str | None, message: str | None, request_id: str | None) -> Failure:
    """The failure that the job keeps and shows: the provider's words without keys or signed links, and what to do."""
    words = scrubbed(message or "")
    return Failure(
        code=meaning.code,
        cls=meaning.cls,
        message=words or f"the provider answered {code or 'without a code or a message'}",
        retryable=meaning.is_worth_again or meaning.verdict in (Verdict.RETRY, Verdict.WAIT),
        billed="no",
        hint=meaning.hint,
        provider={"code": code, "message": words or None, "request_id": request_id},
    )


def scrubbed(message: str) -> str:
    """The text without keys and queries of links, storable, and of bounded length."""
    # Cut before the patterns look, which would take minutes over a page of 100 kB.
    kept = text.storable(message[: 4 * MESSAGE_LIMIT])
    for pattern, instead in _SECRETS:
        kept = pattern.sub(instead, kept)
    return kept[:MESSAGE_LIMIT]


def _row(status: int, code: str, message: str) -> Row:
    plain = _plain(code)
    return next(row for row in chain(TABLE, BY_STATUS) if row.fits(status, plain, message))


def _plain(code: str) -> str:
    """`DataInspectionFailed`, `data_inspection_failed` and `NOT AUTHORIZED` without case, underscores and spaces."""
    return re.sub(r"[\s_-]", "", code).lower()
