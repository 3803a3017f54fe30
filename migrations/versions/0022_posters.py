"""Posters: whether a small still of an output is wanted, made, or not to be had. What is there already has none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outputs", sa.Column("poster", sa.Text(), nullable=True), if_not_exists=True)
    online.hold({"outputs.poster": "poster in ('wanted', 'made', 'none')"})
    with op.get_context().autocommit_block():
        online.index("ix_outputs_poster", "outputs (created_at)", "poster = 'wanted'")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("drop index concurrently if exists ix_outputs_poster")
    op.drop_column("outputs", "poster")
