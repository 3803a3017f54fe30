"""Which version of the schema a database has, and whether this release can work on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Standing:
    """Where the database is (None: no migration has run), and where this release is.

    A schema that this release does not know is a later one's, which takes nothing away that this one uses: so it is
    while an upgrade is under way, and after a rollback.
    """

    at: str | None
    head: str
    is_ahead: bool

    @property
    def is_behind(self) -> bool:
        """Whether this release misses something there."""
        return self.at != self.head and not self.is_ahead


def standing(connection: Connection) -> Standing:
    """How the database of the connection stands to this release."""
    at = MigrationContext.configure(connection).get_current_revision()
    head, known = _known()
    return Standing(at, head, at is not None and at not in known)


@cache
def _known() -> tuple[str, frozenset[str]]:
    scripts = ScriptDirectory(str(FOLDER))
    return scripts.get_current_head() or "", frozenset(each.revision for each in scripts.walk_revisions())
