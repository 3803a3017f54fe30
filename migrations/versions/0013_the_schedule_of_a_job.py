"""Which schedule submitted a job: known at its reservation, and kept when the schedule is deleted.

Jobs from before, and what processes of the version before submit meanwhile, are of no schedule here: the runs know them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("schedule_id", sa.Uuid()), if_not_exists=True)
    with op.get_context().autocommit_block():
        online.index("ix_jobs_schedule", "jobs (schedule_id, id)", "schedule_id is not null")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("drop index concurrently if exists ix_jobs_schedule")
    op.drop_column("jobs", "schedule_id")
