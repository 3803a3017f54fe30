"""How long a clip or sound of a user plays."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("seconds", sa.Numeric(), nullable=True))


def downgrade() -> None:
    op.drop_column("files", "seconds")
