"""What jobs leave behind when their rows go: the ledger and its attempts are no longer bound to them.

A foreign key to what is deleted needs an index on its own side, else each delete reads the whole table: those that had
none get one, and that of deliveries to events goes, since both lie with their job. Processes of the version before go
on meanwhile.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_FREED = {"ledger.job_id": "jobs", "ledger.attempt_id": "attempts", "deliveries.event_id": "events"}
_INDEXES = {
    "ix_idempotency_keys_job_id": ("idempotency_keys (job_id)", ""),
    "ix_runs_job_id": ("runs (job_id)", "job_id is not null"),
    "ix_schedules_job_id": ("schedules (job_id)", "job_id is not null"),
}


def upgrade() -> None:
    for where in _FREED:
        table, _, column = where.partition(".")
        op.execute(f"alter table {table} drop constraint if exists fk_{table}_{column}")
    done_at = sa.Column("done_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    op.add_column("duties", done_at, if_not_exists=True)
    with op.get_context().autocommit_block():
        for name, (definition, condition) in _INDEXES.items():
            online.index(name, definition, condition)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in _INDEXES:
            op.execute(f"drop index concurrently if exists {name}")
    op.drop_column("duties", "done_at")
    for where, referred in _FREED.items():
        table, _, column = where.partition(".")
        name = f"fk_{table}_{column}"
        op.execute(f"alter table {table} add constraint {name} foreign key ({column}) references {referred} not valid")
        # where rows have gone it stays not valid: it holds of what is written from now on
        op.execute(
            f"do $$ begin alter table {table} validate constraint {name};"
            " exception when foreign_key_violation then null; end $$"
        )
