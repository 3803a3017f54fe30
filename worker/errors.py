"""Errors, by who has to act on them.

    NoriaError
    ├── InvalidInput       the request is wrong: a list of faults, each with a pointer to the field
    ├── NotFound           no such thing in this project
    ├── Conflict           it exists in another form (an Idempotency-Key with another body, a job that has ended)
    ├── KeyExpired         the API key is right, and its time is over
    ├── ClaimLost          another worker holds the row now: stop, and write nothing
    └── CallFailed         an outbound call failed
        ├── NotSent        provably nothing left this machine
        └── Ambiguous      it may have been received: timeouts, resets, unreadable answers

A job that fails keeps a `Failure`: the API, webhooks and Flower show the same words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

MOST_FAULTS = 100  # in one answer: a body of 1 MB may have 100,000, and nobody corrects more than a few


class ErrorClass(StrEnum):
    """Whose fault a failure is, in the words of the API."""

    VALIDATION = "validation"
    CONTENT = "content"
    QUOTA = "quota"
    CREDENTIALS = "credentials"
    PROVIDER = "provider"
    NETWORK = "network"
    STORAGE = "storage"
    DEADLINE = "deadline"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Fault:
    """One wrong field: a JSON pointer into the body, a stable code, and a sentence for a person."""

    pointer: Annotated[
        str, Field(description="a JSON pointer into the body, or /query/… or /header/…", examples=["/input/size"])
    ]
    code: Annotated[str, Field(description="stable, for programs", examples=["not_allowed"])]
    message: Annotated[str, Field(description="for people")]


@dataclass(frozen=True)
class Failure:
    """Why a job or an attempt ended without an output.

    `billed`: "yes", "no" or "unknown". `hint`: what to do. `provider`: its `code`, `message` and `request_id`.
    """

    code: str
    cls: ErrorClass
    message: str
    retryable: bool = False
    billed: str = "no"
    hint: str | None = None
    provider: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The failure as the API shows it and as the job's row keeps it."""
        shown = asdict(self)
        shown["class"] = str(shown.pop("cls"))
        return shown


class NoriaError(Exception):
    """The root; `code` is stable, the text is for a person."""

    code = "error"


class InvalidInput(NoriaError):
    """The request is wrong; `faults` names every wrong field, the first MOST_FAULTS of them."""

    code = "invalid_input"

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults[:MOST_FAULTS]
        super().__init__("; ".join(f"{f.pointer}: {f.message}" for f in self.faults))


class NotFound(NoriaError):
    """No such thing in this project."""

    code = "not_found"


class Conflict(NoriaError):
    """The thing exists, but its present form does not allow the request."""

    code = "conflict"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class KeyExpired(NoriaError):
    """The API key is right, and its time is over."""

    code = "unauthorized"


class ClaimLost(NoriaError):
    """Another worker holds the row now: write nothing."""

    code = "claim_lost"


class CallFailed(NoriaError):
    """An outbound call failed; the message has host and cause, never a query or a key."""

    code = "call_failed"


class NotSent(CallFailed):
    """Provably nothing left this machine: the call may be made again."""

    code = "not_sent"


class Ambiguous(CallFailed):
    """The call may have been received. `request_id` is the answer's header, if headers came."""

    code = "ambiguous"

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class NotTold(Exception):  # not an error: the caller asks again
    """The provider gave no answer now: ask again later."""
