"""An answer as the client has it: the base of all that `documents` has."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator


class Document(BaseModel):
    """An answer, without the fields that are not known."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    _said: dict[str, Any] = PrivateAttr(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The answer as it came, with all that a newer server says."""
        return self._said

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, said: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        made = read(said)
        made._said = said if isinstance(said, dict) else {}  # noqa: SLF001 - its own
        return made
