"""Errors as the compatible interface words them.

Refusals and faults name the provider's native codes; here they are spelled as OpenAI's envelope has them.
Source: Alibaba docs, "Error messages".
"""

from dataclasses import dataclass

from ops.sandbox.refusals import Refusal


@dataclass(frozen=True)
class Spelling:
    """A native code as the compatible interface has it; without a message of its own the native one stays."""

    code: str
    type: str
    message: str | None = None


SPELLINGS = {
    "InvalidApiKey": Spelling("invalid_api_key", "invalid_request_error", "Incorrect API key provided."),
    "InvalidParameter": Spelling("invalid_parameter_error", "invalid_request_error"),
    "BadRequest.IllegalInput": Spelling("invalid_parameter_error", "invalid_request_error"),
    "BadRequest.EmptyModel": Spelling("invalid_parameter_error", "invalid_request_error"),
    "ServiceUnavailableError": Spelling("invalid_parameter_error", "invalid_request_error"),
    "ModelNotFound": Spelling("model_not_found", "invalid_request_error"),
    "DataInspectionFailed": Spelling("data_inspection_failed", "data_inspection_failed"),
    "AccessDenied": Spelling("access_denied", "access_denied"),
    "Throttling": Spelling("limit_requests", "limit_requests"),
    "Throttling.RateQuota": Spelling("limit_requests", "limit_requests", "You exceeded your current requests list."),
    "Throttling.BurstRate": Spelling("limit_burst_rate", "limit_burst_rate"),
    "Throttling.AllocationQuota": Spelling(
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "InternalError": Spelling("internal_error", "internal_error"),
    "InternalError.Algo": Spelling("internal_error", "internal_error"),
}


def error(refusal: Refusal) -> dict[str, str | None]:
    """Return what stands under `error` for a refusal."""
    given = SPELLINGS.get(refusal.code, Spelling(refusal.code, refusal.code))
    message = given.message or refusal.message
    return {"code": given.code, "param": None, "message": message, "type": given.type}
