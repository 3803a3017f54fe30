"""`noria doctor`: whether every part works, tried through the engine's own code, and what to do where one does not.

A check is a function that yields what it found; one that raises has found a failure. A check that needs another one
(mostly the database) is skipped where that one failed. Only `fix` changes anything, and only what cannot do harm:
it ends abandoned uploads, and makes rows due that nobody would ever pick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.catalog import Catalog
from worker.errors import NoriaError
from worker.settings import Settings
from worker.storage import Bucket


class Verdict(StrEnum):
    """How a check ended."""

    WELL = "well"
    FIXED = "fixed"
    WARNING = "warning"  # it works; somebody should know
    FAILURE = "failure"  # it does not work
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Found:
    """What a check found, and what to do about it."""

    verdict: Verdict
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What a check found, under its name."""

    check: str
    found: Found


@dataclass(frozen=True)
class Exam:
    """What is examined.

    `flower` is its address, None if unknown; `fix`: whether to repair what can be repaired; `paid`: whether to ask what
    costs money.
    """

    settings: Settings
    catalog: Catalog
    engine: Engine
    bucket: Bucket
    flower: str | None = None
    fix: bool = False
    paid: bool = False


Look = Callable[[Exam], Iterator[Found]]


@dataclass(frozen=True)
class Check:
    """A check: its name, its function, what to do if that raises, and the check that it needs."""

    name: str
    look: Look
    advice: str
    needs: str | None = None


def well(what: str) -> Found:
    """Nothing to do."""
    return Found(Verdict.WELL, what)


def warning(what: str, advice: str) -> Found:
    """It works; somebody should know."""
    return Found(Verdict.WARNING, what, advice)


def failure(what: str, advice: str) -> Found:
    """It does not work."""
    return Found(Verdict.FAILURE, what, advice)


def examine(exam: Exam, checks: Sequence[Check]) -> Iterator[Diagnosis]:
    """What each check found, one after another; a check is skipped where the one that it needs has failed."""
    failed: set[str] = set()
    for check in checks:
        if check.needs in failed:
            found = [Found(Verdict.SKIPPED, f"needs the {check.needs}")]
            failed.add(check.name)
        else:
            found = _looked(exam, check)
        if any(one.verdict is Verdict.FAILURE for one in found):
            failed.add(check.name)
        yield from (Diagnosis(check.name, one) for one in found)


def is_well(diagnoses: Sequence[Diagnosis]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(diagnosis.found.verdict is not Verdict.FAILURE for diagnosis in diagnoses)


def _looked(exam: Exam, check: Check) -> list[Found]:
    found: list[Found] = []
    try:
        # One by one, so that what was found before a failure is told too.
        for one in check.look(exam):
            found.append(one)  # noqa: PERF402
    except (NoriaError, SQLAlchemyError, RedisError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        found.append(failure(str(cause).strip().splitlines()[0] or type(error).__name__, check.advice))
    return found
