"""The mode of a job: how it is carried out.

`mode` takes the place of `sync` and `fans_out`. A system at work goes on while this runs, and so do processes of the
version before, for a while: what they insert gets its mode from a trigger, and what is inserted now gets the old
columns, which the next migration drops together with the trigger.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BATCH = 5000  # rows in one transaction: whoever waits for one of them waits for a moment
_OLD = "case when {0}fans_out then 'parent' when {0}kind = 'text-batch' then 'batch' else 'call' end"
_IS_OLD = "({0}sync or {0}fans_out or {0}kind = 'text-batch')"
_BACKFILL = f"""
do $$
declare
    last uuid := '00000000-0000-0000-0000-000000000000';
    next uuid;
begin
    loop
        select id into next from (select id from jobs where id > last order by id limit {_BATCH}) as few
         order by id desc limit 1;
        exit when next is null;
        update jobs set mode = {_OLD.format("")}
         where id > last and id <= next and mode = 'task' and {_IS_OLD.format("")};
        commit;
        last := next;
    end loop;
end $$
"""  # noqa: S608 - words of ours
_TRIGGER = f"""
create function jobs_mode() returns trigger language plpgsql as $$
begin
    if new.mode = 'task' and {_IS_OLD.format("new.")} then
        new.mode := {_OLD.format("new.")};
    end if;
    new.sync := new.mode = 'call';
    new.fans_out := new.mode = 'parent';
    return new;
end $$
"""
_QUEUED = "(model, project_id, rank_at, id) where state = 'queued' and {}"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("mode", sa.Text(), server_default="task", nullable=False))
    op.execute(_TRIGGER)
    op.execute("create trigger jobs_mode before insert on jobs for each row execute function jobs_mode()")
    _check("mode", "mode in ('task', 'call', 'batch', 'parent')")
    op.execute("alter table jobs drop constraint ck_jobs_one_generation")
    _check("one_generation", "parent_id is null or mode <> 'parent'")
    with op.get_context().autocommit_block():
        op.execute(_BACKFILL)
        op.execute("alter table jobs validate constraint ck_jobs_mode")
        op.execute("alter table jobs validate constraint ck_jobs_one_generation")
        _replace("ix_jobs_queued", _QUEUED.format("mode <> 'parent'"))
        _index("ix_jobs_parents", "(run_at) where state = 'queued' and mode = 'parent'")
        op.execute("drop index concurrently ix_jobs_fans_out")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        _replace("ix_jobs_queued", _QUEUED.format("not fans_out"))
        _index("ix_jobs_fans_out", "(run_at) where state = 'queued' and fans_out")
        op.execute("drop index concurrently ix_jobs_parents")
    op.execute("alter table jobs drop constraint ck_jobs_one_generation")
    _check("one_generation", "parent_id is null or not fans_out")
    op.execute("drop trigger jobs_mode on jobs")
    op.execute("drop function jobs_mode()")
    op.drop_column("jobs", "mode")
    with op.get_context().autocommit_block():
        op.execute("alter table jobs validate constraint ck_jobs_one_generation")


def _check(name: str, condition: str) -> None:
    """Holds from now on; that it holds of what is there is looked at later, without keeping writers out."""
    op.execute(f"alter table jobs add constraint ck_jobs_{name} check ({condition}) not valid")


def _index(name: str, definition: str) -> None:
    op.execute(f"create index concurrently {name} on jobs {definition}")


def _replace(name: str, definition: str) -> None:
    """Queries find an index all the while: the new one is there before the old one goes."""
    _index(f"{name}_new", definition)
    op.execute(f"drop index concurrently {name}")
    op.execute(f"alter index {name}_new rename to {name}")
