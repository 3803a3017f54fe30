"""What the provider tells of an account's models: its limits, and when they end.

Processes of the version before go on meanwhile: they keep to the catalog's limits, and look at neither column.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lanes", sa.Column("quota", postgresql.JSONB()))
    op.add_column("lanes", sa.Column("ends_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("lanes", "ends_at")
    op.drop_column("lanes", "quota")
