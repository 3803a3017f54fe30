"""What each error of the provider's means."""

from __future__ import annotations

import pytest

from worker.dashscope import errors
from worker.dashscope.errors import BY_STATUS, TABLE, Scope, Verdict
from worker.errors import ErrorClass

RETRY, WAIT, FAIL = Verdict.RETRY, Verdict.WAIT, Verdict.FAIL
STOP, OURS, EXPECTED = Verdict.STOP_ACCOUNT, Verdict.MISCONFIGURED, Verdict.EXPECTED

# Of a spent budget the documents give the message alone.
BUDGET_CODES = ("", "BudgetExhausted", "Throttling", "Throttling.RateQuota", "insufficient_quota", "AccessDenied")

# The documents' catalogue: status, code, message, what is to be done.
DOCUMENTED: list[tuple[int, str, str, Verdict]] = [
    (400, "InvalidParameter", "size must be one of 832*480", FAIL),
    (400, "InvalidParameter", "url error, please check url!", OURS),
    (400, "InvalidParameter", "Model not exist.", OURS),
    (400, "invalid_parameter_error", "Model not exist.", OURS),
    (403, "AccessDenied", "Model not exist.", OURS),
    (404, "NotFound", "The model qwen-x does not exist.", OURS),
    (400, "InvalidParameter.DataInspection", "Unable to download the media resource during the data inspection", RETRY),
    (400, "InvalidParameter.NotSupportEnableThinking", "", OURS),
    (400, "invalid_parameter_error", "parameter.enable_thinking must be set to false for non-streaming calls", OURS),
    (400, "BadRequest.EmptyInput", "", OURS),
    (400, "BadRequest.EmptyParameters", "", OURS),
    (400, "BadRequest.EmptyModel", "", OURS),
    (400, "BadRequest.IllegalInput", "", OURS),
    (400, "BadRequest.InputDownloadFailed", "", RETRY),
    (415, "BadRequest.InputDownloadFailed", "", RETRY),
    (400, "BadRequest.UnsupportedFileFormat", "", FAIL),
    (413, "BadRequest.TooLarge", "Payload Too Large", FAIL),
    (400, "InvalidURL", "", RETRY),
    (400, "InvalidURL.ConnectionRefused", "", RETRY),
    (400, "InvalidURL", "File size is larger than 15MB.", FAIL),
    (400, "InvalidURL", "File type is not supported. Allowed types are: .wav, .mp3.", FAIL),
    (403, "AccessDenied", "Access denied, please make sure your account is in good standing.", STOP),
    (400, "InvalidURL.Timeout", "", RETRY),
    (400, "InvalidFile.DownloadFailed", "The audio file cannot be downloaded.", RETRY),
    (400, "InvalidParameter.FileDownload", "download for input video error", RETRY),
    (400, "InvalidParameter", "Failed to download multimodal content.", RETRY),
    (400, "InvalidParameter", "<400> InternalError.Algo.InvalidParameter: Download multimodal file timed out", RETRY),
    (400, "invalid_parameter_error", "download image failed", RETRY),
    (400, "InvalidParameter", "oss download error.", RETRY),
    *((400, f"InvalidFile.{what}", "", FAIL) for what in ("Format", "Size", "Resolution", "Duration")),
    (400, "InvalidImage.FileFormat", "", FAIL),
    (400, "InvalidImageResolution", "", FAIL),
    (400, "InvalidImageFormat", "", FAIL),
    (400, "InvalidPerson", "", FAIL),
    (400, "InvalidGarment", "", FAIL),
    (400, "InvalidInputLength", "", FAIL),
    (400, "DataInspectionFailed", "Input data may contain inappropriate content.", FAIL),
    (400, "data_inspection_failed", "Output data may contain inappropriate content.", FAIL),
    (400, "InternalError.DataInspection", "Input data may contain inappropriate content.", FAIL),
    (400, "InternalError.Algo.DataInspectionFailed", "Output data may contain inappropriate content.", FAIL),
    (500, "InternalError.Algo", "<400> InternalError.Algo: Output data may contain inappropriate content.", FAIL),
    (500, "InternalError.Algo", "Input text data may contain inappropriate content.", FAIL),
    (400, "IPInfringementSuspect", "", FAIL),
    (400, "FaqRuleBlocked", "", FAIL),
    (400, "CustomRoleBlocked", "", FAIL),
    (400, "Arrearage", "Access denied, please make sure your account is in good standing.", STOP),
    (400, "UnsupportedOperation", "Failed to cancel the task", EXPECTED),
    (400, "Throttling.AllocationQuota", "Free allocated quota exceeded.", STOP),
    (400, "Throttling.AllocationQuota", "voice storage is full", OURS),
    (400, "ServiceUnavailableError", "Role must be user or assistant", OURS),
    (400, "ClientDisconnect", "", RETRY),
    (400, "APIConnectionError", "", RETRY),
    (401, "InvalidApiKey", "Invalid API-key provided.", STOP),
    (401, "invalid_api_key", "Incorrect API key provided.", STOP),
    (401, "NOT AUTHORIZED", "", STOP),
    (403, "AccessDenied", "current user api does not support synchronous calls.", OURS),
    (403, "AccessDenied", "current user api does not support asynchronous calls.", OURS),
    (403, "AccessDenied", "Invalid according to Policy: Policy expired.", RETRY),
    (403, "access_denied", "Access denied.", STOP),
    (403, "AccessDenied.Unpurchased", "Access to model denied", STOP),
    (403, "Model.AccessDenied", "Model access denied.", STOP),
    (403, "App.AccessDenied", "", STOP),
    (403, "Workspace.AccessDenied", "", STOP),
    (403, "Forbidden.RAM", "", STOP),
    (403, "AllocationQuota.FreeTierOnly", "The free tier of the model has been exhausted.", STOP),
    (404, "ModelNotFound", "", OURS),
    (404, "model_not_found", "", OURS),
    (404, "model_not_supported", "", OURS),
    (404, "UnsupportedModel", "", OURS),
    (404, "WorkSpaceNotFound", "", STOP),
    (404, "NotFound", "", OURS),
    (408, "RequestTimeOut", "", RETRY),
    (429, "Throttling", "Requests throttling triggered.", WAIT),
    (429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later.", WAIT),
    (429, "LimitRequests", "You exceeded your current requests list.", WAIT),
    (429, "limit_requests", "You exceeded your current requests list.", WAIT),
    (429, "Throttling.BurstRate", "Request rate increased too quickly", WAIT),
    (429, "limit_burst_rate", "Request rate increased too quickly", WAIT),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded, please increase your quota limit.", WAIT),
    (429, "insufficient_quota", "You exceeded your current quota, please check your plan and billing details.", WAIT),
    (429, "Throttling.AllocationQuota", "Free allocated quota exceeded.", STOP),
    *((429, code, "The budget configured in Budget Management has been exhausted.", STOP) for code in BUDGET_CODES),
    (429, "CommodityNotPurchased", "", STOP),
    (429, "PrepaidBillOverdue", "", STOP),
    (429, "PostpaidBillOverdue", "", STOP),
    *(
        (500, code, "", RETRY)
        for code in (
            "InternalError",
            "internal_error",
            "InternalError.Algo",
            "InternalError.Upload",
            "InternalError.FileUpload",
            "SystemError",
            "ModelServiceFailed",
            "RewriteFailed",
            "RequestTimeOut",
            "ResponseTimeout",
            "InvokePluginFailed",
            "AppProcessFailed",
            "RetrievalFailed",
            "RetrivalFailed",  # as the page spells it
        )
    ),
    (500, "InternalError.Algo", "Range of input length should be [0, 600]", FAIL),
    (500, "InternalError.Timeout", "", RETRY),
    (500, "ModelServingError", "Too many requests. Your requests are being throttled", WAIT),
    (503, "ModelServingError", "Too many requests", WAIT),
    (503, "ModelUnavailable", "", WAIT),
    (503, "ServiceOverloaded", "", WAIT),
    (429, "ResourceExhausted", "", WAIT),
]


@pytest.mark.parametrize(("status", "code", "message", "verdict"), DOCUMENTED)
def test_each_documented_error_has_its_verdict(status: int, code: str, message: str, verdict: Verdict) -> None:
    assert errors.classify(status, code, message).verdict is verdict


@pytest.mark.parametrize(
    ("status", "code", "message", "verdict"), [row for row in DOCUMENTED if row[1] != "ServiceUnavailableError"]
)
def test_a_failed_task_is_judged_by_the_same_codes(status: int, code: str, message: str, verdict: Verdict) -> None:
    in_task = errors.classify(200, code, message)

    expected = WAIT if message == "voice storage is full" else verdict  # only its status tells that one
    assert in_task.verdict is expected


def test_no_row_is_hidden_by_one_before_it() -> None:
    undocumented = [
        (400, "BadRequest", "", FAIL),
        (400, "invalid_value", "The requested voice 'xxx' is not supported.", FAIL),
        (429, "Throttling.AllocationQuota", "The daily quota of the model is exceeded.", WAIT),
        (429, "Throttling.AllocationQuota", "Batch requests are throttled due to system capacity limits.", WAIT),
        (500, "InternalError.Algo.InvalidParameter", "", FAIL),
        (503, "ServiceUnavailableError", "", RETRY),
    ]
    met = {id(errors._row(status, code, said)) for status, code, said, _ in [*DOCUMENTED, *undocumented]}

    assert [row for row in TABLE if id(row) not in met] == []


@pytest.mark.parametrize("code", ["DATAINSPECTIONFAILED", "DataInspectionFailed.Sub", "data_inspection_failed"])
def test_case_spelling_and_dotted_tails_do_not_matter(code: str) -> None:
    assert errors.classify(400, code, "Input data …").code == "input_refused"


def test_a_code_that_only_begins_like_a_known_one_is_not_it() -> None:
    assert errors.classify(500, "NotFoundation", "").code == "provider_error"


@pytest.mark.parametrize(
    ("code", "message", "scope"),
    [
        ("Throttling.RateQuota", "", Scope.RATE),
        ("Throttling.BurstRate", "", Scope.BURST),
        ("insufficient_quota", "", Scope.ALLOCATION),
        ("Throttling.AllocationQuota", "Free allocated quota exceeded.", Scope.FREE_QUOTA),
        ("Throttling.AllocationQuota", "Your daily quota is exceeded", Scope.DAILY),
        ("Arrearage", "", Scope.MONEY),
        ("Throttling", "The budget configured in Budget Management has been exhausted.", Scope.MONEY),
        ("ServiceOverloaded", "", Scope.CAPACITY),
        (
            "Throttling.AllocationQuota",
            "Too many requests. Batch requests are being throttled due to system capacity limits.",
            Scope.CAPACITY,
        ),
        ("AccessDenied", "Access denied, please make sure your account is in good standing.", Scope.MONEY),
        ("InvalidApiKey", "", Scope.KEY),
        ("Model.AccessDenied", "", Scope.MODEL),
        ("ModelServingError", "", Scope.CAPACITY),
    ],
)
def test_a_row_says_which_limit_or_lack_it_is(code: str, message: str, scope: Scope) -> None:
    assert errors.classify(429, code, message).scope is scope


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *((status, STOP) for status in (401, 402, 403)),
        *((status, FAIL) for status in (400, 413, 418, 422)),
        *((status, RETRY) for status in (408, 499, 500, 502, 503, 504)),
        (429, WAIT),
    ],
)
@pytest.mark.parametrize("code", [None, "", "NeverHeardOf"])
def test_without_a_known_code_the_status_decides(status: int, verdict: Verdict, code: str | None) -> None:
    assert errors.classify(status, code, None).verdict is verdict


def test_a_404_is_of_the_model_by_a_code_and_of_the_address_without_one() -> None:
    assert errors.classify(404, "NeverHeardOf", None).verdict is OURS
    assert errors.classify(404, "", None).code == "wrong_address"


def test_a_task_that_failed_without_a_known_code_fails_and_may_be_sent_again() -> None:
    row = errors.classify(200, None, None)

    assert row.verdict is FAIL
    assert errors.failure(row, None, None, None).retryable


def test_some_retries_are_few() -> None:
    assert errors.classify(200, "InternalError.Timeout", "").tries == 1
    assert errors.classify(200, "InvalidURL.Timeout", "").tries == 3
    assert errors.classify(500, "InternalError", "").tries is None


def test_what_stops_an_account_says_what_to_do() -> None:
    stops = [row.meaning for row in TABLE if row.meaning.verdict is STOP]

    assert stops
    assert all(meaning.hint and meaning.scope for meaning in stops)


def test_refused_output_may_be_sent_again_and_refused_input_may_not() -> None:
    made = errors.classify(200, "DataInspectionFailed", "Output data may contain inappropriate content.")
    asked = errors.classify(200, "DataInspectionFailed", "Input data may contain inappropriate content.")

    assert errors.failure(made, "DataInspectionFailed", "Output …", "r").retryable
    assert not errors.failure(asked, "DataInspectionFailed", "Input …", "r").retryable
    assert made.cls is asked.cls is ErrorClass.CONTENT


@pytest.mark.parametrize(
    ("code", "message", "refused"),
    [
        (
            "data_inspection_failed",
            "<400> InternalError.Algo.DataInspectionFailed: Output data may contain inappropriate content.",
            "output_refused",
        ),
        (
            "data_inspection_failed",
            "<400> InternalError.Algo.DataInspectionFailed: Input text data may contain inappropriate content.",
            "input_refused",
        ),
        ("DataInspectionFailed", "The output data may contain inappropriate content.", "output_refused"),
        ("DataInspectionFailed", "Input or output data may contain inappropriate content.", "input_refused"),
        ("DataInspectionFailed", "Input xxx data may contain inappropriate content.", "input_refused"),
        (
            "InternalError.Algo",
            "<400> InternalError.Algo: Output data may contain inappropriate content.",
            "output_refused",
        ),
        ("InternalError.DataInspection", "Output data may contain inappropriate content.", "output_refused"),
        ("InternalError.Algo.DataInspectionFailed", "", "input_refused"),
        ("IPInfringementSuspect", "Output data is suspected of being involved in IP infringement.", "output_refused"),
    ],
)
def test_whether_the_input_or_the_output_was_refused_is_read_anywhere_in_the_message(
    code: str, message: str, refused: str
) -> None:
    assert errors.classify(400, code, message).code == refused


@pytest.mark.parametrize(
    ("message", "stops"),
    [
        (
            "The budget configured in Budget Management has been exhausted. You will be unable to make further API "
            "calls until the budget limit is increased or reset.",
            True,
        ),
        ("您在「预算管理」中设置的预算额度已用尽。在提高或重置预算额度前，您将无法继续调用 API。", True),
        ("<429> Throttling: The budget configured in Budget Management has been exhausted.", True),
        ("input.text: 'The budget configured in Budget Management has been exhausted' is no text", False),
        ("Requests throttling triggered.", False),
    ],
)
def test_a_spent_budget_is_money_whatever_its_code(message: str, stops: bool) -> None:
    row = errors.classify(429, "Throttling", message)

    assert (row.code, row.scope) == (("budget_spent", Scope.MONEY) if stops else ("rate_exceeded", Scope.RATE))


def test_a_failure_keeps_the_providers_words_and_its_request_id() -> None:
    row = errors.classify(400, "Arrearage", "Access denied.")

    failure = errors.failure(row, "Arrearage", "Access denied.", "7c8beccf")

    assert failure.as_json() == {
        "code": "arrears",
        "class": "credentials",
        "message": "Access denied.",
        "retryable": False,
        "billed": "no",
        "hint": "the account is in arrears: top it up in Alibaba Cloud's console, then resume the account",
        "provider": {"code": "Arrearage", "message": "Access denied.", "request_id": "7c8beccf"},
    }


def test_a_failure_without_a_message_still_says_something() -> None:
    failure = errors.failure(errors.classify(502, None, None), None, None, None)

    assert failure.message == "the provider answered without a code or a message"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("bad key sk-0123456789abcdef.x", "bad key sk-…"),
        ("get https://a.oss.com/x.mp4?Expires=1&Signature=abc%3D failed", "get https://a.oss.com/x.mp4 failed"),
        ("get https://user:pass@a.com/x", "get https://a.com/x"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer …"),
        ("id LTAI5tABCDEFGH", "id LTAI…"),
        ("nul \0 and half \ud800", "nul \ufffd and half \ufffd"),
        ("Model not exist.", "Model not exist."),
    ],
)
def test_keys_and_signed_queries_are_taken_out_of_messages(said: str, kept: str) -> None:
    assert errors.scrubbed(said) == kept


def test_an_endless_message_is_cut() -> None:
    assert len(errors.scrubbed("x" * 100_000)) == errors.MESSAGE_LIMIT


def test_every_status_has_a_meaning() -> None:
    known = {errors.NOT_DASHSCOPE, *(row.meaning for row in BY_STATUS)}

    assert all(errors.classify(status, None, None) in known for status in range(100, 1000))
