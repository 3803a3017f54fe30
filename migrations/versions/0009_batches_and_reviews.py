"""Batches, reviews, and `not_after`: the tables of batches, and what a job and an event say of them.

Processes of the version before go on meanwhile. They make no batches and ask for no reviews; but a job of which a
review is asked may come to a worker of theirs. It cannot end it (`jobs.reviewed`), and leaves it to one of this version.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import online

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_STATES = (
    "queued", "held", "admitted", "submitting", "uncertain", "running", "gathering", "copying",
    "awaiting_review", "succeeded", "rejected", "failed", "canceled", "expired",
)  # fmt: skip
_ENDS = ("succeeded", "rejected", "failed", "canceled", "expired")
_NEW = frozenset({"awaiting_review", "rejected"})
_ALARM = "(project_id is null) = (event_id is null) and (event_id is not null or job_id is null)"
_NOW = sa.text("now()")
# The jobs of batches in groups, by the index alone. Its settings are the reason that it is a function: in the minute
# after many jobs were made or moved, until the next vacuum, the planner would read the table, which takes twice as long.
_GROUPS = """
create function batch_groups(ids uuid[]) returns table (
    batch_id uuid, kind text, model text, state text,
    jobs bigint, reviewed bigint, approved bigint, estimate numeric, cost numeric, unbilled numeric
) language sql stable
set enable_seqscan = off set enable_bitmapscan = off set max_parallel_workers_per_gather = 0 as $$
select batch_id, kind, model, state,
       count(*), count(review), count(*) filter (where review = 'approved'),
       sum(estimate), sum(cost), sum(estimate) filter (where billed <> 'yes')
  from jobs where batch_id = any (ids) group by batch_id, kind, model, state
$$
"""
_TIMES = ("committed_at", "paused_at", "canceled_at", "completed_at", "run_at")


def upgrade() -> None:
    _make_batches()
    _make_rows()
    for name in ("not_after", "reviewed_at"):
        op.add_column("jobs", sa.Column(name, sa.DateTime(timezone=True)))
    for name in ("batch_id", "first_take"):
        op.add_column("jobs", sa.Column(name, sa.Uuid()))
    for name in ("review", "review_note"):
        op.add_column("jobs", sa.Column(name, sa.Text()))
    op.add_column("jobs", sa.Column("batch_row", sa.Integer()))
    op.add_column("jobs", sa.Column("take", sa.SmallInteger(), server_default="1", nullable=False))
    op.add_column("events", sa.Column("batch_id", sa.Uuid()))
    op.alter_column("events", "job_id", nullable=True)
    checks = _checks(_STATES, _ENDS) | {"jobs.review": "review in ('required', 'approved', 'rejected')"}
    checks |= {"jobs.reviewed": "state <> 'succeeded' or review is distinct from 'required'"}
    checks |= {"events.subject": "num_nonnulls(job_id, batch_id) = 1", "deliveries.alarm": _ALARM}
    online.hold(checks, {"jobs.batch_id": "batches", "jobs.first_take": "jobs", "events.batch_id": "batches"})
    with op.get_context().autocommit_block():
        online.index(
            "ix_jobs_batch",
            "jobs (batch_id, kind, model, state, id) include (review, estimate, cost, billed)",
            "batch_id is not null",
        )
        online.index("ix_jobs_batch_unfinished", "jobs (batch_id)", "batch_id is not null and finished_at is null")
        online.index("ix_jobs_not_after", "jobs (not_after)", f"not_after is not null and {_UNSENT}")
        online.index("uq_jobs_take", "jobs (first_take, take)", "first_take is not null", "unique index")
        online.index("uq_events_batch", "events (batch_id, sequence)", "batch_id is not null", "unique index")
    op.execute(_GROUPS)


def downgrade() -> None:
    op.execute("drop function batch_groups(uuid[])")
    op.execute("delete from deliveries using events where events.id = event_id and events.batch_id is not null")
    op.execute("delete from events where batch_id is not null")
    old = _checks([state for state in _STATES if state not in _NEW], [state for state in _ENDS if state not in _NEW])
    for name in ("ck_jobs_review", "ck_jobs_reviewed", "fk_jobs_batch_id", "fk_jobs_first_take"):
        op.execute(f"alter table jobs drop constraint {name}")
    for name in ("ck_events_subject", "fk_events_batch_id"):
        op.execute(f"alter table events drop constraint {name}")
    with op.get_context().autocommit_block():
        for name in (
            "uq_events_batch",
            "uq_jobs_take",
            "ix_jobs_not_after",
            "ix_jobs_batch_unfinished",
            "ix_jobs_batch",
        ):
            op.execute(f"drop index concurrently if exists {name}")
    online.hold(old | {"deliveries.alarm": "num_nulls(project_id, job_id, event_id) in (0, 3)"})
    op.alter_column("events", "job_id", nullable=False)
    op.drop_column("events", "batch_id")
    for name in ("not_after", "batch_id", "batch_row", "review", "review_note", "reviewed_at", "first_take", "take"):
        op.drop_column("jobs", name)
    op.drop_table("batch_rows")
    op.drop_table("batches")


_UNSENT = "state in ('queued', 'held', 'admitted')"


def _make_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key", sa.Text()),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("repeat", sa.Text(), server_default="", nullable=False),
        sa.Column("source", postgresql.JSONB(), nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Integer(), server_default="0", nullable=False) for name in ("bad", "made", "existing")),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("state", sa.Text(), server_default="draft", nullable=False),
        sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("manifest", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in _TIMES),
        sa.Column("claim", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("claimed", sa.Text()),
        sa.Column("crashes", sa.SmallInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("state in ('draft', 'running', 'paused', 'completed')", name=op.f("ck_batches_state")),
        sa.CheckConstraint("claimed in ('sent', 'taken')", name=op.f("ck_batches_claimed")),
        sa.CheckConstraint("(state = 'paused') = (paused_at is not null)", name=op.f("ck_batches_paused")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_batches_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    for definition in (
        "unique index uq_batches_key on batches (project_id, key) where key is not null",
        "index ix_batches_listing on batches (project_id, id desc)",
        "index ix_batches_open on batches (id) where state in ('running', 'paused')",
        "index ix_batches_due on batches (run_at) where run_at is not null",
        "index ix_batches_drafts on batches (created_at) where state = 'draft'",
    ):
        op.execute(f"create {definition}")


def _make_rows() -> None:
    op.create_table(
        "batch_rows",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("custom_id", sa.Text()),
        sa.Column("faults", postgresql.JSONB()),
        sa.Column("job_id", sa.Uuid()),
        sa.Column("hash", sa.LargeBinary()),
        sa.Column("copy", sa.Integer(), server_default="1", nullable=False),
        *(sa.Column(name, sa.Text()) for name in ("kind", "model", "mode")),
        *(sa.Column(name, postgresql.JSONB()) for name in ("input", "labels")),
        sa.Column("priority", sa.SmallInteger()),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("webhook_events", postgresql.ARRAY(sa.Text())),
        sa.Column("not_after", sa.DateTime(timezone=True)),
        sa.Column("review", sa.Text()),
        sa.Column("estimate", sa.BigInteger()),
        sa.CheckConstraint(
            "outcome in ('good', 'bad', 'made', 'existing', 'skipped')", name=op.f("ck_batch_rows_outcome")
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_batch_rows_batch_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_batch_rows_job_id")),
        sa.PrimaryKeyConstraint("batch_id", "n", name=op.f("pk_batch_rows")),
    )
    op.execute("create index ix_batch_rows_job_id on batch_rows (job_id)")


def _checks(states: list[str] | tuple[str, ...], ends: list[str] | tuple[str, ...]) -> dict[str, str]:
    """The checks on a job's state where these are all that there are."""
    listed, ended = (", ".join(f"'{state}'" for state in some) for some in (states, ends))
    return {
        "jobs.state": f"state in ({listed})",
        "jobs.finished": f"(state in ({ended})) = (finished_at is not null)",
    }
