"""Changes to large tables while a system is at work: nobody is kept out for longer than a moment (`env` has the rules).

Migrations that have landed go by what is here as it is, so its statements stay; another way gets another function.
"""

from __future__ import annotations

from collections.abc import Mapping

from alembic import op


def hold(checks: Mapping[str, str], references: Mapping[str, str] | None = None) -> None:
    """Holds these from now on; that they hold of what is there is looked at then, without keeping writers out.

    `checks` are by `table.name`, in the place of those of the same name; `references` by `table.column`, to the id of a
    table.
    """
    names = [_check(where, condition) for where, condition in checks.items()]
    names += [_reference(where, referred) for where, referred in (references or {}).items()]
    with op.get_context().autocommit_block():
        for table, name in names:
            op.execute(f"alter table {table} validate constraint {name}")


def index(name: str, definition: str, condition: str = "", what: str = "index") -> None:
    """Makes an index; one whose making was broken off, by a transaction that outlasts the wait, goes first."""
    where = f" where {condition}" if condition else ""
    op.execute(f"drop index concurrently if exists {name}")
    op.execute(f"create {what} concurrently {name} on {definition}{where}")


def _check(where: str, condition: str) -> tuple[str, str]:
    table, _, name = where.partition(".")
    constraint = f"ck_{table}_{name}"
    op.execute(f"alter table {table} drop constraint if exists {constraint}")
    op.execute(f"alter table {table} add constraint {constraint} check ({condition}) not valid")
    return table, constraint


def _reference(where: str, referred: str) -> tuple[str, str]:
    table, _, column = where.partition(".")
    constraint, to = f"fk_{table}_{column}", f"foreign key ({column}) references {referred} (id)"
    op.execute(f"alter table {table} add constraint {constraint} {to} not valid")
    return table, constraint
