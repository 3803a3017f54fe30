"""Children of jobs, tokens on lanes, schedules and their runs, files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_files_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("key", name=op.f("uq_files_key")),
        sa.UniqueConstraint("project_id", "sha256", "name", name=op.f("uq_files_project_id_sha256_name")),
    )
    op.create_index("ix_files_listing", "files", ["project_id", sa.literal_column("id desc")], unique=False)
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("template", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("overlap", sa.Text(), server_default="skip", nullable=False),
        sa.Column("missed", sa.Text(), server_default="run_once", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("missed in ('run_once', 'skip')", name=op.f("ck_schedules_missed")),
        sa.CheckConstraint("overlap in ('skip', 'queue', 'cancel')", name=op.f("ck_schedules_overlap")),
        sa.CheckConstraint("paused_at is null or next_at is null", name=op.f("ck_schedules_paused")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_schedules_job_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_schedules_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_schedules_project_id_name")),
    )
    op.create_index(
        "ix_schedules_next_at", "schedules", ["next_at"], unique=False, postgresql_where=sa.text("next_at is not null")
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("fire_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), server_default="", nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("outcome in ('waiting', 'submitted', 'skipped', 'refused')", name=op.f("ck_runs_outcome")),
        sa.CheckConstraint("trigger in ('clock', 'late', 'person')", name=op.f("ck_runs_trigger")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_runs_job_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_runs_project_id")),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("fk_runs_schedule_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("schedule_id", "fire_at", name=op.f("uq_runs_schedule_id_fire_at")),
        sa.UniqueConstraint("schedule_id", "key", name=op.f("uq_runs_schedule_id_key")),
    )
    op.create_index(
        "ix_runs_waiting", "runs", ["schedule_id"], unique=False, postgresql_where=sa.text("outcome = 'waiting'")
    )
    op.add_column("attempts", sa.Column("tokens", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("fans_out", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("jobs", sa.Column("round", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("round_open", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("jobs", sa.Column("place", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("note", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("jobs", sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.drop_index("ix_jobs_parent_id", table_name="jobs", postgresql_where=sa.text("parent_id is not null"))
    op.create_index(
        "ix_jobs_at_work",
        "jobs",
        ["parent_id"],
        unique=False,
        postgresql_where=sa.text("parent_id is not null and finished_at is null"),
    )
    op.create_index(
        "ix_jobs_failed_parts",
        "jobs",
        ["parent_id"],
        postgresql_where=sa.text("parent_id is not null and state in ('failed', 'expired')"),
    )
    op.create_index("ix_jobs_gathering", "jobs", ["id"], postgresql_where=sa.text("state = 'gathering'"))
    op.create_index(
        "ix_jobs_fans_out", "jobs", ["run_at"], unique=False, postgresql_where=sa.text("state = 'queued' and fans_out")
    )
    op.create_index(
        "uq_jobs_place",
        "jobs",
        ["parent_id", "round", "place"],
        unique=True,
        postgresql_where=sa.text("parent_id is not null"),
    )
    op.drop_index("ix_jobs_queued", table_name="jobs")
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["model", "project_id", "rank_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' and not fans_out"),
    )
    op.create_check_constraint("place", "jobs", "(parent_id is null) = (place is null)")
    op.create_check_constraint("one_generation", "jobs", "parent_id is null or not fans_out")
    op.add_column("lanes", sa.Column("tpm", sa.BigInteger(), nullable=True))
    op.add_column("lanes", sa.Column("tpd", sa.BigInteger(), nullable=True))
    op.add_column(
        "lanes", sa.Column("tokens_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    )
    op.add_column("lanes", sa.Column("day", sa.Date(), nullable=True))
    op.add_column("lanes", sa.Column("day_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("lanes", sa.Column("unserved_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("lanes", sa.Column("unserved_why", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("lanes", "unserved_why")
    op.drop_column("lanes", "unserved_at")
    op.drop_column("lanes", "day_tokens")
    op.drop_column("lanes", "day")
    op.drop_column("lanes", "tokens_at")
    op.drop_column("lanes", "tpd")
    op.drop_column("lanes", "tpm")
    op.drop_constraint("one_generation", "jobs", type_="check")
    op.drop_constraint("place", "jobs", type_="check")
    op.drop_index("ix_jobs_queued", table_name="jobs")
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["model", "project_id", "rank_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_index("uq_jobs_place", table_name="jobs", postgresql_where=sa.text("parent_id is not null"))
    op.drop_index(
        "ix_jobs_failed_parts",
        table_name="jobs",
        postgresql_where=sa.text("parent_id is not null and state in ('failed', 'expired')"),
    )
    op.drop_index("ix_jobs_gathering", table_name="jobs", postgresql_where=sa.text("state = 'gathering'"))
    op.drop_index("ix_jobs_fans_out", table_name="jobs", postgresql_where=sa.text("state = 'queued' and fans_out"))
    op.drop_index(
        "ix_jobs_at_work", table_name="jobs", postgresql_where=sa.text("parent_id is not null and finished_at is null")
    )
    op.create_index(
        "ix_jobs_parent_id", "jobs", ["parent_id"], unique=False, postgresql_where=sa.text("parent_id is not null")
    )
    op.drop_column("jobs", "result")
    op.drop_column("jobs", "note")
    op.drop_column("jobs", "round_open")
    op.drop_column("jobs", "place")
    op.drop_column("jobs", "round")
    op.drop_column("jobs", "fans_out")
    op.drop_column("attempts", "tokens")
    op.drop_index("ix_runs_waiting", table_name="runs", postgresql_where=sa.text("outcome = 'waiting'"))
    op.drop_table("runs")
    op.drop_index("ix_schedules_next_at", table_name="schedules", postgresql_where=sa.text("next_at is not null"))
    op.drop_table("schedules")
    op.drop_index("ix_files_listing", table_name="files")
    op.drop_table("files")
