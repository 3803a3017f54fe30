"""Retention: how many days a project keeps what, which outputs are gone, and what a person holds.

Processes of the version before go on meanwhile: they prune nothing, and a pruned output's link leads them to a 404.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations import online

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kept = sa.Column("retention", JSONB(), server_default="{}", nullable=False)
    op.add_column("projects", kept, if_not_exists=True)
    op.add_column("outputs", sa.Column("pruned_at", sa.DateTime(timezone=True)), if_not_exists=True)
    op.create_table(
        "holds",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid()),
        sa.Column("batch_id", sa.Uuid()),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("job_id is null or batch_id is null", name=op.f("ck_holds_one")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_holds_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        if_not_exists=True,
    )
    op.execute("create index if not exists ix_holds_project_id on holds (project_id) where released_at is null")
    with op.get_context().autocommit_block():
        online.index("ix_outputs_kept", "outputs (project_id, created_at)", "pruned_at is null")
        online.index("ix_deliveries_ended", "deliveries (project_id, finished_at)", "finished_at is not null")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in ("ix_deliveries_ended", "ix_outputs_kept"):
            op.execute(f"drop index concurrently if exists {name}")
    op.drop_table("holds")
    op.drop_column("outputs", "pruned_at")
    op.drop_column("projects", "retention")
