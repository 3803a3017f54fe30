"""The result cache, and accounts of projects.

Processes of the version before go on meanwhile: they take nothing from the cache, admit jobs to a lane's first account
whatever their project says, and leave `lanes.accounts` as it is.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_COLUMNS: dict[str, list[sa.Column[Any]]] = {
    "projects": [
        sa.Column("cache_days", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("account", sa.Text()),
    ],
    "jobs": [sa.Column("cache_days", sa.SmallInteger()), sa.Column("cached_from", sa.Uuid())],
    "batch_rows": [sa.Column("cache_days", sa.SmallInteger())],
    "lanes": [sa.Column("accounts", sa.ARRAY(sa.Text()))],
}


def upgrade() -> None:
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.add_column(table, column, if_not_exists=True)
    op.create_table(
        "stopped_accounts",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("stopped_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stopped_why", sa.Text(), nullable=False),
        sa.Column("alarmed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_stopped_accounts")),
        if_not_exists=True,
    )
    op.execute("alter table projects drop constraint if exists ck_projects_cache_days")
    op.create_check_constraint(op.f("ck_projects_cache_days"), "projects", "cache_days between 0 and 366")
    with op.get_context().autocommit_block():
        online.index("ix_attempts_answers", "attempts (project_id, request_hash, answered_at)", "output is not null")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("drop index concurrently if exists ix_attempts_answers")
    op.drop_table("stopped_accounts")
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.drop_column(table, column.name)
