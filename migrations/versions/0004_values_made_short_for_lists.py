"""A function that makes a JSON value short, so that lists never leave Postgres with whole inputs."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# `room` is what the value may still have, in characters. An empty value costs too, or a list of them would have no end.
_WITHIN = """
create function shortened_within(value jsonb, depth int, inout room int, out short jsonb)
language plpgsql immutable parallel safe as $$
declare
    whole text;
    part record;
    keys text[] := '{}';
    kept jsonb[] := '{}';
    item jsonb;
    total int := 0;
begin
    room := room - 1;
    case jsonb_typeof(value)
    when 'string' then
        whole := value #>> '{}';
        total := greatest(0, least(1000, room));
        room := room - least(length(whole), total);
        short := case when length(whole) <= total then value else to_jsonb(left(whole, total) || '…') end;
    when 'array', 'object' then
        for part in
            select null as key, each.value from jsonb_array_elements(
                case jsonb_typeof(shortened_within.value) when 'array' then shortened_within.value else '[]' end) as each
            union all
            select each.key, each.value from jsonb_each(
                case jsonb_typeof(shortened_within.value) when 'object' then shortened_within.value else '{}' end) as each
        loop
            total := total + 1;
            continue when room <= 0 or depth <= 0;
            keys := keys || left(part.key, 1000);
            room := room - coalesce(length(keys[total]), 0);
            select within.room, within.short into room, item from shortened_within(part.value, depth - 1, room) as within;
            kept := kept || item;
        end loop;
        if total > cardinality(kept) then
            item := to_jsonb(format('%s more …', total - cardinality(kept)));
            keys := keys || '…'::text;
            kept := kept || item;
        end if;
        if jsonb_typeof(value) = 'array' then
            short := to_jsonb(kept);
        else
            select coalesce(jsonb_object_agg(one.key, one.value), '{}') into short
              from unnest(keys, kept) as one (key, value);
        end if;
    else
        room := room - length(value::text);
        short := value;
    end case;
end
$$
"""

# What has 1,000 characters in all has nothing to be cut; what takes more bytes than that is not written out to see it.
# The path `$` gives the value unpacked: each look into a packed one would unpack it anew.
_SHORTENED = """
create function shortened(value jsonb) returns jsonb
language sql immutable parallel safe
return case when pg_column_size(value) <= 1000 and length(value::text) <= 1000 then value
            else (shortened_within(jsonb_path_query_first(value, '$'), 32, 4000)).short end
"""


def upgrade() -> None:
    op.execute(_WITHIN)
    op.execute(_SHORTENED)


def downgrade() -> None:
    op.execute("drop function shortened(jsonb)")
    op.execute("drop function shortened_within(jsonb, int, int)")
