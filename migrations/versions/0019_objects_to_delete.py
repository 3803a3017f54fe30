"""Objects of the bucket that are to be deleted: written with the rows that let go of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deletions",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("is_prefix", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_deletions")),
    )


def downgrade() -> None:
    op.drop_table("deletions")
