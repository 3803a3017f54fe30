"""Refusals: what the provider answers to a call that it does not carry out."""


class Refusal(Exception):
    """An answer in the native error envelope: an HTTP status, a code, a message for a person."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message


def invalid(message: str) -> Refusal:
    """Return the Refusal of a bad parameter."""
    return Refusal(400, "InvalidParameter", message)
