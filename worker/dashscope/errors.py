"""What the provider's errors mean, and what is to be done about each.

One table for three places: an answer that is not 200, a 200 with a code at its top, and a task (or a part of one)
that failed. The code decides, since statuses drift between editions of the documents; the message only splits a
code that has two meanings; the status decides where there is no code that we know.

The rows follow Alibaba docs, 'Error messages' (2026), with older and OpenAI-compatible spellings. Refused calls and
failed tasks are not billed ('Model pricing').
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from worker.dashscope.responses import WRONG_ADDRESS
from worker.errors import ErrorClass, Failure

MESSAGE_LIMIT = 1000  # characters kept of what the provider says


class Verdict(StrEnum):
    """What is to be done."""

    RETRY = "retry"  # the same again after a while; the row's `tries` bounds it
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


# What stops a model's lane until a person acts, and not the account's other models.
OF_A_MODEL = frozenset({Scope.FREE_QUOTA, Scope.MODEL})


@dataclass(frozen=True)
class Row:
    """One meaning. `code` is ours and stable; `codes` are the provider's, with all that is dotted below; none: any.

    `statuses` and `message` (a pattern) narrow the row where they are set. `tries` is how often at most to try
    again (None: until the phase's deadline); `is_worth_again` whether a person may well send a failed job again.
    """

    code: str
    verdict: Verdict
    cls: ErrorClass
    codes: str = ""
    statuses: frozenset[int] = frozenset()
    message: str = ""
    scope: Scope | None = None
    tries: int | None = None
    is_worth_again: bool = False
    hint: str | None = None

    def means(self, status: int, code: str, message: str) -> bool:
        """Whether such an answer means this; `code` as `_plain` leaves it."""
        return (
            (not self.statuses or status in self.statuses)
            and (
                not self.codes
                or any(code == known or code.startswith(known + ".") for known in map(_plain, self.codes.split()))
            )
            and re.search(self.message, message, re.IGNORECASE) is not None
        )


_V, _E, _S = Verdict, ErrorClass, Scope

_SEE_MODELS = "compare the account's region and host with the model's regions and ids in GET /v1/models"
_SEE_LINK = "the provider must be able to fetch the link without a login; long-lived, public or oss:// links work"
_TOP_UP = "the account is in arrears: top it up in Alibaba Cloud's console, then resume the account"
_OUTPUT_REFUSED = "what was made did not pass the provider's inspection; another seed may"
_INPUT_REFUSED = "the provider's inspection refuses this prompt or media; change it"

# An inspection's codes: of the gateway, of a model's service, and what these two put it under.
_INSPECTED = "DataInspectionFailed InternalError.DataInspection InternalError.Algo.DataInspectionFailed"
_INAPPROPRIATE = r"inappropriate content"  # in messages of codes that say nothing of it
_OF_OUTPUT = r"(?<!input or )\boutput\b"  # anywhere: "<400> InternalError.Algo.DataInspectionFailed: Output data may …"

# The first row that fits is the meaning, so a narrower one stands before a wider one.
TABLE: tuple[Row, ...] = (
    Row(
        # Alibaba docs, 'Budget management' (2026-09-25), in either language, at the beginning, so that no echo of an
        # input is taken for it. The page gives HTTP 429 and no code.
        "budget_spent",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        message=r"^\W*(<\d+>\s*[\w.]+:\s*)?(the budget\b.{0,80}\bexhausted|您在.?预算管理.{0,20}用尽)",
        scope=_S.MONEY,
        hint="the month's budget in the console's Budget Management is spent: raise it, then resume the account",
    ),
    Row(
        "wrong_route",
        _V.MISCONFIGURED,
        _E.INTERNAL,
        "InvalidParameter",
        message=r"url error",
        hint="the model is not served on this path; the catalog's entry needs another protocol",
    ),
    Row(
        "model_not_served",
        _V.MISCONFIGURED,
        _E.PROVIDER,
        "InvalidParameter",
        message=r"model (does )?not (exist|found)",
        hint=_SEE_MODELS,
    ),
    Row(
        "unsupported_file",
        _V.FAIL,
        _E.VALIDATION,
        "InvalidURL",
        message=r"(longer|larger) than|not supported",
        hint="the model's page names the formats, sizes and lengths that it takes",
    ),
    Row(
        "input_unreadable",
        _V.RETRY,
        _E.VALIDATION,
        "InvalidParameter.DataInspection InvalidParameter.FileDownload BadRequest.InputDownloadFailed"
        " InvalidFile.DownloadFailed InvalidURL",
        tries=3,
        hint=_SEE_LINK,
    ),
    Row(
        "input_unreadable",
        _V.RETRY,
        _E.VALIDATION,
        "InvalidParameter invalid_parameter_error InternalError.Algo.InvalidParameter",
        message=r"\bdownload (\w+ )*(failed|error|timed out|timeout)|(failed|unable) to download",
        tries=3,
        hint=_SEE_LINK,
    ),
    Row(
        "thinking_refused",
        _V.MISCONFIGURED,
        _E.INTERNAL,
        "InvalidParameter.NotSupportEnableThinking",
        hint="the model cannot think, or cannot stop thinking: enable_thinking must be as it wants it",
    ),
    Row(
        "thinking_refused",
        _V.MISCONFIGURED,
        _E.INTERNAL,
        "InvalidParameter invalid_parameter_error",
        message=r"enable_thinking",
        hint="send enable_thinking false with calls that do not stream",
    ),
    Row(
        "output_refused",
        _V.FAIL,
        _E.CONTENT,
        "InternalError InvalidParameter invalid_parameter_error",
        message=rf"{_OF_OUTPUT}.*{_INAPPROPRIATE}",
        is_worth_again=True,
        hint=_OUTPUT_REFUSED,
    ),
    Row(
        "input_refused",
        _V.FAIL,
        _E.CONTENT,
        "InternalError InvalidParameter invalid_parameter_error",
        message=_INAPPROPRIATE,
        hint=_INPUT_REFUSED,
    ),
    Row("invalid_parameter", _V.FAIL, _E.VALIDATION, "InvalidParameter invalid_parameter_error invalid_value"),
    Row(
        "malformed_request",
        _V.MISCONFIGURED,
        _E.INTERNAL,
        "BadRequest.EmptyInput BadRequest.EmptyParameters BadRequest.EmptyModel BadRequest.IllegalInput",
    ),
    Row("unsupported_file", _V.FAIL, _E.VALIDATION, "BadRequest.UnsupportedFileFormat"),
    Row("too_large", _V.FAIL, _E.VALIDATION, "BadRequest.TooLarge", hint="give the picture as a link, or smaller"),
    Row("bad_request", _V.FAIL, _E.VALIDATION, "BadRequest"),
    Row(
        "unsupported_file",
        _V.FAIL,
        _E.VALIDATION,
        "InvalidFile InvalidImage InvalidImageResolution InvalidImageFormat"
        " InvalidPerson InvalidGarment InvalidInputLength",
        hint="the model's page names the formats, sizes and lengths that it takes",
    ),
    Row(
        "output_refused",
        _V.FAIL,
        _E.CONTENT,
        f"{_INSPECTED} IPInfringementSuspect",
        message=_OF_OUTPUT,
        is_worth_again=True,
        hint=_OUTPUT_REFUSED,
    ),
    Row(
        "input_refused",
        _V.FAIL,
        _E.CONTENT,
        f"{_INSPECTED} IPInfringementSuspect FaqRuleBlocked CustomRoleBlocked",
        hint=_INPUT_REFUSED,
    ),
    Row(
        "arrears",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "Arrearage PrepaidBillOverdue PostpaidBillOverdue",
        scope=_S.MONEY,
        hint=_TOP_UP,
    ),
    Row(
        "arrears",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "AccessDenied",
        message=r"good standing|overdue",
        scope=_S.MONEY,
        hint=_TOP_UP,
    ),
    Row(
        "not_purchased",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "CommodityNotPurchased",
        scope=_S.PERMISSION,
        hint="activate Model Studio for the main account, in the region of this key",
    ),
    Row(
        "not_purchased",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "AccessDenied.Unpurchased",
        scope=_S.MODEL,
        hint="activate the model, or Model Studio, for the main account in the region of this key",
    ),
    Row("too_late_to_cancel", _V.EXPECTED, _E.PROVIDER, "UnsupportedOperation"),
    Row(
        "free_quota_spent",
        _V.STOP_ACCOUNT,
        _E.QUOTA,
        "Throttling.AllocationQuota insufficient_quota",
        message=r"free (allocated|tier|quota)",
        scope=_S.FREE_QUOTA,
        hint="the free quota is used up: allow paid use of the model in the console, or take another model",
    ),
    Row(
        "free_quota_spent",
        _V.STOP_ACCOUNT,
        _E.QUOTA,
        "AllocationQuota.FreeTierOnly",
        scope=_S.FREE_QUOTA,
        hint="the free quota is used up: turn off 'use free tier only' in the console, or take another model",
    ),
    Row(
        "store_full",
        _V.MISCONFIGURED,
        _E.QUOTA,
        "Throttling.AllocationQuota",
        frozenset({400}),
        hint="the account holds as many objects (voices, files) as it may: delete some",
    ),
    Row(
        "daily_quota_spent",
        _V.WAIT,
        _E.QUOTA,
        "Throttling LimitRequests insufficient_quota",
        message=r"\b(daily|per day|today)\b",
        scope=_S.DAILY,
        hint="the day's quota is spent; it is renewed at 00:00 in Shanghai",
    ),
    Row(
        "no_capacity",
        _V.WAIT,
        _E.PROVIDER,
        "Throttling insufficient_quota",
        message=r"system capacity",
        scope=_S.CAPACITY,
    ),
    Row("allocation_exceeded", _V.WAIT, _E.QUOTA, "Throttling.AllocationQuota insufficient_quota", scope=_S.ALLOCATION),
    Row("burst_exceeded", _V.WAIT, _E.QUOTA, "Throttling.BurstRate limit_burst_rate", scope=_S.BURST),
    Row("rate_exceeded", _V.WAIT, _E.QUOTA, "Throttling LimitRequests", scope=_S.RATE),
    Row("malformed_request", _V.MISCONFIGURED, _E.INTERNAL, "ServiceUnavailableError", frozenset({400})),
    Row("provider_unavailable", _V.RETRY, _E.PROVIDER, "ServiceUnavailableError"),
    Row("connection_lost", _V.RETRY, _E.NETWORK, "ClientDisconnect APIConnectionError"),
    Row(
        "bad_key",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "InvalidApiKey NotAuthorized",
        scope=_S.KEY,
        hint="the key is wrong or of another region: key, host and workspace must be of one region",
    ),
    Row(
        "wrong_mode",
        _V.MISCONFIGURED,
        _E.INTERNAL,
        "AccessDenied",
        message=r"does not support a?synchronous calls",
        hint="the catalog's entry for this model needs another path, or `sync` changed",
    ),
    Row("upload_policy_expired", _V.RETRY, _E.PROVIDER, "AccessDenied", message=r"policy expired", tries=3),
    Row(
        "model_forbidden",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "Model.AccessDenied",
        scope=_S.MODEL,
        hint="the key's workspace may not call this model: authorize the model for the workspace in the console",
    ),
    Row(
        "workspace_forbidden",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "App.AccessDenied Workspace.AccessDenied",
        scope=_S.PERMISSION,
        hint="the key may not use this workspace: see DASHSCOPE_WORKSPACE, and the key's rights in the console",
    ),
    Row(
        "permission_missing",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "Forbidden",
        scope=_S.PERMISSION,
        hint="the RAM user of this key lacks a permission: grant it AliyunBailianFullAccess, or the workspace's own",
    ),
    Row(
        "access_denied",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "AccessDenied",
        scope=_S.PERMISSION,
        hint="the key may not do this: check its RAM permissions, its workspace and its IP allow list",
    ),
    Row(
        "model_not_served",
        _V.MISCONFIGURED,
        _E.PROVIDER,
        "ModelNotFound Model.NotExist model_not_supported UnsupportedModel",
        hint=_SEE_MODELS,
    ),
    Row(
        "workspace_unknown",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        "WorkSpaceNotFound",
        scope=_S.KEY,
        hint="the workspace id is not of this account or region: see NORIA_DASHSCOPE_WORKSPACE",
    ),
    Row("not_found", _V.MISCONFIGURED, _E.PROVIDER, "NotFound", hint=_SEE_MODELS),
    Row("task_timed_out", _V.RETRY, _E.PROVIDER, "InternalError.Timeout", tries=1, hint="it ran for over 3 hours"),
    Row("invalid_parameter", _V.FAIL, _E.VALIDATION, "InternalError.Algo.InvalidParameter"),
    Row(
        "invalid_parameter",
        _V.FAIL,
        _E.VALIDATION,
        "InternalError.Algo",
        message=r"parameter|range of input|must be|should be",
    ),
    Row(
        "no_capacity",
        _V.WAIT,
        _E.PROVIDER,
        "ModelServingError ModelUnavailable ServiceOverloaded ResourceExhausted",
        scope=_S.CAPACITY,
    ),
    Row(
        "provider_error",
        _V.RETRY,
        _E.PROVIDER,
        "InternalError SystemError ModelServiceFailed RewriteFailed RequestTimeOut ResponseTimeout"
        " InvokePluginFailed AppProcessFailed RetrievalFailed RetrivalFailed",
    ),
)

# For answers without a code that we know; of a task (200) we then only know that it failed.
BY_STATUS: tuple[Row, ...] = (
    Row("bad_key", _V.STOP_ACCOUNT, _E.CREDENTIALS, statuses=frozenset({401}), scope=_S.KEY, hint="check the key"),
    Row(
        "arrears",
        _V.STOP_ACCOUNT,
        _E.CREDENTIALS,
        statuses=frozenset({402}),
        scope=_S.MONEY,
        hint="the account is in arrears: top it up",
    ),
    Row("access_denied", _V.STOP_ACCOUNT, _E.CREDENTIALS, statuses=frozenset({403}), scope=_S.PERMISSION),
    Row("not_found", _V.MISCONFIGURED, _E.PROVIDER, statuses=frozenset({404, 405}), hint=_SEE_MODELS),
    Row("connection_lost", _V.RETRY, _E.NETWORK, statuses=frozenset({408, 499})),
    Row("rate_exceeded", _V.WAIT, _E.QUOTA, statuses=frozenset({429}), scope=_S.RATE),
    Row("bad_request", _V.FAIL, _E.VALIDATION, statuses=frozenset(range(400, 500))),
    Row("provider_error", _V.RETRY, _E.PROVIDER, statuses=frozenset(range(500, 600))),
    Row("task_failed", _V.FAIL, _E.PROVIDER, is_worth_again=True),
)

# By status too, of an answer without any code: the provider's own 404 has one.
NOT_DASHSCOPE = Row(
    "wrong_address",
    _V.STOP_ACCOUNT,
    _E.CREDENTIALS,
    statuses=WRONG_ADDRESS,
    scope=_S.KEY,
    hint="DashScope does not answer there: set NORIA_DASHSCOPE_URL (or the account's url) to the host alone, like"
    " https://dashscope.aliyuncs.com",
)

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(\b[a-z]{2,10}://)[^\s/@]*@", re.IGNORECASE), r"\1"),
    (re.compile(r"(\b[a-z]{2,10}://[^\s?#\"'<>]*)[?#][^\s\"'<>]*", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(signature|ossaccesskeyid|security-token|expires)=[^&\s]+", re.IGNORECASE), r"\1=…"),
    (re.compile(r"\bbearer\s+\S+", re.IGNORECASE), "Bearer …"),
    (re.compile(r"\b(sk|st)-[\w.*-]{4,}"), r"\1-…"),
    (re.compile(r"\bLTAI\w{4,}"), "LTAI…"),
)


def classify(status: int, code: str | None, message: str | None) -> Row:
    """What an error means: of an answer with that status, or with 200 of a task's `code` and `message`."""
    if not code and status in NOT_DASHSCOPE.statuses:
        return NOT_DASHSCOPE
    known = _first(TABLE, status, _plain(code or ""), message or "")
    return known or next(row for row in BY_STATUS if not row.statuses or status in row.statuses)


def failure(row: Row, code: str | None, message: str | None, request_id: str | None) -> Failure:
    """What the job keeps of it and shows: the provider's words without keys or signed links, and what to do."""
    said = scrubbed(message or "")
    return Failure(
        code=row.code,
        cls=row.cls,
        message=said or f"the provider answered {code or 'without a code or a message'}",
        retryable=row.is_worth_again or row.verdict in (Verdict.RETRY, Verdict.WAIT),
        billed="no",
        hint=row.hint,
        provider={"code": code, "message": said or None, "request_id": request_id},
    )


def scrubbed(message: str) -> str:
    """The text without keys and queries of links, storable, and not endless."""
    # Cut before the patterns look, since they would look for minutes at a page of 100 kB.
    text = message[: 4 * MESSAGE_LIMIT].encode("utf-8", "replace").decode().replace("\0", "")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text[:MESSAGE_LIMIT]


def _first(rows: Iterable[Row], status: int, code: str, message: str) -> Row | None:
    return next((row for row in rows if row.means(status, code, message)), None)


def _plain(code: str) -> str:
    """`DataInspectionFailed`, `data_inspection_failed` and `NOT AUTHORIZED` without case, underscores and spaces."""
    return re.sub(r"[\s_-]", "", code).lower()
