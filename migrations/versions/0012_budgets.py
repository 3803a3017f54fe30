"""Budgets: how much a project may spend in a period, and what is booked of it, summed as it is booked.

Processes of the version before go on meanwhile: they look at no budget, and what they book is summed too.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_SUMS = "insert into ledger_sums (project_id, quarter, micros) select project_id, {quarter}, {sign}sum(micros)"
_QUARTER = "date_bin('15 minutes', reserved_at, timestamptz '2000-01-01 00:00:00+00')"
# Adds what a statement books to the sums, as rows of its own: nobody waits for another's row (ADR 0041).
_FUNCTION = f"""
create function ledger_summed() returns trigger language plpgsql as $$
begin
    if tg_op <> 'DELETE' then
        {_SUMS.format(quarter=_QUARTER, sign="")} from added group by 1, 2 having sum(micros) <> 0;
    end if;
    if tg_op <> 'INSERT' then
        {_SUMS.format(quarter=_QUARTER, sign="-")} from removed group by 1, 2 having sum(micros) <> 0;
    end if;
    return null;
end $$
"""
_TRIGGERS = {
    "insert": "new table as added",
    "update": "old table as removed new table as added",
    "delete": "old table as removed",
}


def upgrade() -> None:
    _make_budgets()
    _make_sums()
    op.add_column("events", sa.Column("budget_id", sa.Uuid()))
    online.hold(
        {"events.subject": "num_nonnulls(job_id, batch_id, endpoint_id, budget_id) = 1"},
        {"events.budget_id": "budgets"},
    )
    with op.get_context().autocommit_block():
        online.index("uq_events_budget", "events (budget_id, sequence)", "budget_id is not null", "unique index")
        online.index("ix_jobs_held_for_budget", "jobs (project_id, id)", "held_for = 'budget'")
        online.index("ix_ledger_listing", "ledger (project_id, at, id)")
        online.index("ix_ledger_job", "ledger (job_id, entry)")  # a parent has a line for each call of its parts
        for name in ("ix_ledger_period", "ix_ledger_job_id"):
            op.execute(f"drop index concurrently if exists {name}")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        online.index("ix_ledger_period", "ledger (project_id, reserved_at)")
        online.index("ix_ledger_job_id", "ledger (job_id)")
        for name in ("ix_ledger_job", "ix_ledger_listing", "ix_jobs_held_for_budget", "uq_events_budget"):
            op.execute(f"drop index concurrently if exists {name}")
    op.execute("delete from deliveries using events where events.id = event_id and events.budget_id is not null")
    op.execute("delete from events where budget_id is not null")
    online.hold({"events.subject": "num_nonnulls(job_id, batch_id, endpoint_id) = 1"})
    op.drop_column("events", "budget_id")
    for operation in _TRIGGERS:
        op.execute(f"drop trigger ledger_summed_{operation} on ledger")
    op.execute("drop function ledger_summed()")
    op.drop_table("ledger_sums")
    op.drop_table("budgets")


def _make_budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("micros", sa.BigInteger(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("over", sa.Text(), nullable=False),
        sa.Column("told_of", sa.DateTime(timezone=True)),
        sa.Column("told", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("period in ('day', 'month', 'total')", name=op.f("ck_budgets_period")),
        sa.CheckConstraint("over in ('refuse', 'hold')", name=op.f("ck_budgets_over")),
        sa.CheckConstraint("micros >= 0", name=op.f("ck_budgets_micros")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_budgets_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
    )
    op.execute("create index ix_budgets_project_id on budgets (project_id) where removed_at is null")


def _make_sums() -> None:
    op.create_table(
        "ledger_sums",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("quarter", sa.DateTime(timezone=True), nullable=False),
        sa.Column("micros", sa.BigInteger(), nullable=False),
        sa.Column("is_whole", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_sums")),
    )
    op.execute("create index ix_ledger_sums_quarter on ledger_sums (project_id, quarter) include (micros)")
    op.execute("create index ix_ledger_sums_parts on ledger_sums (project_id, quarter) where not is_whole")
    op.execute(_FUNCTION)
    for operation, tables in _TRIGGERS.items():
        op.execute(
            f"create trigger ledger_summed_{operation} after {operation} on ledger referencing {tables}"
            " for each statement execute function ledger_summed()"
        )
    # in the transaction that made the triggers, which keep others from booking until it ends
    op.execute(f"{_SUMS.format(quarter=_QUARTER, sign='')} from ledger group by 1, 2 having sum(micros) <> 0")
