"""Deliveries by their receiver, receivers that do not answer, and what a job that waits for its lane's day wants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_PROJECT = sa.text("coalesce(project_id, '00000000-0000-0000-0000-000000000000'::uuid)")
_WAITS = sa.text("run_at is not null")
# What waits already; as `worker.webhooks.receiver` for all but the odd spelling, which is a receiver of its own.
# PostgreSQL before 18 has no crc32(), and none of them has held a database that was not empty then (ADR 0059).
_RECEIVERS = r"""
do $$
begin
    if exists (select from deliveries) then
        update deliveries set receiver = crc32(convert_to(host || port, 'UTF8'))
          from (select id as this, lower(substring(url from '\://([^/?#]+)')) as host,
                       case when url ~ '\://[^/?#]+\:[0-9]+([/?#]|$)' then ''
                            when url like 'https%' then '\:443' else '\:80' end as port
                  from deliveries where run_at is not null) as spelled
         where id = this and host is not null;
    end if;
end
$$
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("tokens", sa.BigInteger(), nullable=True))
    op.add_column("deliveries", sa.Column("receiver", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "dead_receivers",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("receiver", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.SmallInteger(), nullable=False),
        sa.Column("resume_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_dead_receivers_project_id")),
        sa.PrimaryKeyConstraint("project_id", "receiver", name=op.f("pk_dead_receivers")),
    )
    op.execute(_RECEIVERS)
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_deliveries_turns", "deliveries", [_PROJECT, "receiver", "run_at"],
            postgresql_where=_WAITS, postgresql_concurrently=True,
        )  # fmt: skip
        op.create_index(
            "ix_deliveries_old", "deliveries", ["created_at"],
            postgresql_where=_WAITS, postgresql_concurrently=True,
        )  # fmt: skip


def downgrade() -> None:
    op.drop_index("ix_deliveries_old", table_name="deliveries")
    op.drop_index("ix_deliveries_turns", table_name="deliveries")
    op.drop_table("dead_receivers")
    op.drop_column("deliveries", "receiver")
    op.drop_column("jobs", "tokens")
