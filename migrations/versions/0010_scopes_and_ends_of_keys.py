"""Keys of projects: what each may do, when it expires, and which key replaces it.

Keys from before may do what they could: all of it. Processes of the version before know neither scopes nor expiry.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("scope", sa.Text(), server_default="admin", nullable=False))
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True)))
    op.add_column("api_keys", sa.Column("replaced_by", sa.Uuid()))
    op.create_check_constraint(op.f("ck_api_keys_scope"), "api_keys", "scope in ('read', 'submit', 'admin')")
    op.create_foreign_key(op.f("fk_api_keys_replaced_by"), "api_keys", "api_keys", ["replaced_by"], ["id"])


def downgrade() -> None:
    # to the version before every key is one that submits, and ends when it is revoked
    op.execute(
        "update api_keys set revoked_at = least(revoked_at, case scope when 'read' then now() else expires_at end)"
    )
    for name in ("replaced_by", "expires_at", "scope"):
        op.drop_column("api_keys", name)
