"""What a picture's header says of it: width, height, alpha."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("width", sa.Integer(), nullable=True))
    op.add_column("files", sa.Column("height", sa.Integer(), nullable=True))
    op.add_column("files", sa.Column("has_alpha", sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column("files", "has_alpha")
    op.drop_column("files", "height")
    op.drop_column("files", "width")
