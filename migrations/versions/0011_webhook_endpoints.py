"""Webhook endpoints: receivers of a project's events, their deliveries with what was answered, and the feed's index.

Processes of the version before go on meanwhile: they know of no endpoints, and write deliveries of jobs' own receivers.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import online

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_TIMES = ("previous_until", "failing_since", "disabled_at", "deleted_at")
# By what is left out, so that types that come later are in the feed too.
_LISTED = "type not in ('job.noted', 'job.admitted', 'job.uncertain', 'job.gathering', 'job.copying')"


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("receiver", sa.BigInteger(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text())),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text()),
        sa.Column("disabled_why", sa.Text()),
        sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in _TIMES),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(disabled_at is null) = (disabled_why is null)", name=op.f("ck_webhook_endpoints_disabled")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_webhook_endpoints_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.execute(
        "create unique index uq_webhook_endpoints_url on webhook_endpoints (project_id, url) where deleted_at is null"
    )
    for table in ("events", "deliveries"):
        op.add_column(table, sa.Column("endpoint_id", sa.Uuid()))
    op.add_column("deliveries", sa.Column("last_ms", sa.Integer()))
    op.add_column("deliveries", sa.Column("last_answer", sa.Text()))
    online.hold(
        {"events.subject": "num_nonnulls(job_id, batch_id, endpoint_id) = 1"},
        {f"{table}.endpoint_id": "webhook_endpoints" for table in ("deliveries", "events")},
    )
    with op.get_context().autocommit_block():
        online.index("uq_deliveries_url", "deliveries (event_id, url)", "endpoint_id is null", "unique index")
        online.index(
            "uq_deliveries_endpoint", "deliveries (event_id, endpoint_id)", "endpoint_id is not null", "unique index"
        )
        online.index("ix_deliveries_log", "deliveries (endpoint_id, state, id desc)", "endpoint_id is not null")
        online.index("ix_events_told", "events (project_id, xid, id)", _LISTED)
        op.execute("drop index concurrently if exists ix_events_feed")
    op.drop_constraint("uq_deliveries_event_id_url", "deliveries")


def downgrade() -> None:
    op.execute("delete from deliveries where endpoint_id is not null")
    op.execute("delete from events where endpoint_id is not null")
    with op.get_context().autocommit_block():
        op.execute("drop index concurrently if exists ix_events_feed")
        op.execute("create index concurrently ix_events_feed on events (project_id, id)")
        for name in ("ix_events_told", "ix_deliveries_log", "uq_deliveries_endpoint"):
            op.execute(f"drop index concurrently if exists {name}")
    op.execute("alter table deliveries add constraint uq_deliveries_event_id_url unique (event_id, url)")
    op.execute("drop index uq_deliveries_url")
    for table in ("events", "deliveries"):
        op.drop_constraint(f"fk_{table}_endpoint_id", table)
    online.hold({"events.subject": "num_nonnulls(job_id, batch_id) = 1"})
    for table, name in (
        ("deliveries", "last_answer"),
        ("deliveries", "last_ms"),
        ("deliveries", "endpoint_id"),
        ("events", "endpoint_id"),
    ):
        op.drop_column(table, name)
    op.drop_table("webhook_endpoints")
