"""Usage: what each line of the ledger is for, and a roll-up of it by day, which is written as it is booked.

Processes of the version before go on meanwhile: what they book is rolled up too, without its tokens and seconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_QUARTER = "date_bin('15 minutes', reserved_at, timestamptz '2000-01-01 00:00:00+00')"
_SUMS = "insert into ledger_sums (project_id, quarter, micros) select project_id, {quarter}, {sign}sum(micros)"
_LAST = "9223372036854775807"
_AMOUNTS = ("jobs", "calls", "settled", "unknown", "reserved")
_COUNTED = ("input_tokens", "cached_tokens", "output_tokens", "seconds", "characters", "images")
_USAGE = """
    insert into usage_sums (project_id, day, kind, model, batch_id, schedule_id, labels, jobs, calls, settled, unknown,
                            reserved, {names})
    select l.project_id, (l.reserved_at at time zone p.time_zone)::date, coalesce(j.kind, ''), coalesce(j.model, ''),
           j.batch_id, j.schedule_id,
           case when p.usage_keys = '{{}}' then '{{}}'::jsonb
                else coalesce((select jsonb_object_agg(key, j.labels -> key) from unnest(p.usage_keys) as key
                                where j.labels ? key), '{{}}') end,
           {sign}count(*) filter (where l.entry = 'reserve'),
           {sign}count(*) filter (where l.entry = 'settle' and (l.micros <> 0 or l.usage is not null)),
           {sign}coalesce(sum(l.micros) filter (where l.entry = 'settle' and l.known), 0),
           {sign}coalesce(sum(l.micros) filter (where l.entry = 'settle' and not l.known), 0),
           {sign}coalesce(sum(l.micros) filter (where l.entry <> 'settle'), 0),
           {amounts}
      from {lines} l
      join projects p on p.id = l.project_id
      -- with a limit, so that it is one look into the index for each line, however few jobs there are
      left join lateral (select kind, model, batch_id, schedule_id, labels from jobs where id = l.job_id limit 1) j on true
     where l.id > {after} and l.id <= {until}
     group by 1, 2, 3, 4, 5, 6, 7;
"""
_FUNCTION = """
create or replace function ledger_summed() returns trigger language plpgsql as $$
begin
    if tg_op <> 'DELETE' then
        {sums_added} from added group by 1, 2 having sum(micros) <> 0;
        {usage_added}
    end if;
    if tg_op <> 'INSERT' then
        {sums_removed} from removed group by 1, 2 having sum(micros) <> 0;
        {usage_removed}
    end if;
    return null;
end $$
"""

# Rolls up what was booked before, from the last line to the first, in portions, each in a transaction of its own: who
# books waits for a moment. The trigger knows how far that has come, so a line that is corrected meanwhile counts once.
_ROLL_UP = """
do $do$
declare
    first bigint;
    last bigint;
begin
    lock table ledger in share row exclusive mode;
    select coalesce(max(id), 0) into last from ledger;
    loop
        execute replace($function${function}$function$, '{{after}}', last::text);
        commit;
        exit when last = 0;
        first := greatest(0, last - 100000);
        lock table ledger in share row exclusive mode;
        {portion}
        last := first;
    end loop;
end $do$
"""


def upgrade() -> None:
    for table, column in (
        ("projects", sa.Column("usage_keys", sa.ARRAY(sa.Text()), server_default="{}", nullable=False)),
        ("ledger", sa.Column("usage", postgresql.JSONB())),
        ("ledger", sa.Column("known", sa.Boolean(), server_default=sa.text("true"), nullable=False)),
    ):
        op.add_column(table, column, if_not_exists=True)
    # a roll-up that was broken off begins anew: what it counted goes
    op.execute(_function(None))
    op.execute("drop table if exists usage_sums")
    _make_sums()
    with op.get_context().autocommit_block():
        op.execute(_ROLL_UP.format(function=_function("{after}"), portion=_usage("", "ledger", "first", "last")))


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(_function(None))  # known to all before its table goes, so that no booking fails
    for table, column in (("ledger", "known"), ("ledger", "usage"), ("projects", "usage_keys")):
        op.drop_column(table, column)
    op.drop_table("usage_sums", if_exists=True)


def _make_sums() -> None:
    op.create_table(
        "usage_sums",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Uuid()),
        sa.Column("schedule_id", sa.Uuid()),
        sa.Column("labels", postgresql.JSONB(), server_default="{}", nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in _AMOUNTS),
        *(sa.Column(name, sa.Numeric(), server_default="0", nullable=False) for name in _COUNTED),
        sa.Column("is_whole", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_sums")),
    )
    op.execute("create index ix_usage_sums_day on usage_sums (project_id, day)")
    op.execute("create index ix_usage_sums_parts on usage_sums (id) where not is_whole")
    op.execute(
        "create unique index uq_usage_sums_whole on usage_sums"
        " (project_id, day, kind, model, batch_id, schedule_id, labels) nulls not distinct where is_whole"
    )


def _function(after: str | None) -> str:
    """What the trigger does; the lines after that one are rolled up, None: none."""
    return _FUNCTION.format(
        sums_added=_SUMS.format(quarter=_QUARTER, sign=""),
        sums_removed=_SUMS.format(quarter=_QUARTER, sign="-"),
        usage_added="" if after is None else _usage("", "added", after),
        usage_removed="" if after is None else _usage("-", "removed", after),
    )


def _usage(sign: str, lines: str, after: str, until: str = _LAST) -> str:
    amounts = ", ".join(f"{sign}coalesce(sum((l.usage ->> '{name}')::numeric), 0)" for name in _COUNTED)
    return _USAGE.format(sign=sign, lines=lines, names=", ".join(_COUNTED), amounts=amounts, after=after, until=until)
