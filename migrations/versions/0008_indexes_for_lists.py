"""Indexes for lists: the newest jobs of each kind, model and state, and of each custom id; labels where there are any.

Processes of the version before go on meanwhile: all that they look for is found by the new indexes too, but for labels,
which they then find by reading a project's jobs.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_LABELS = "using gin (labels jsonb_path_ops)"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        _index("ix_jobs_groups", "(project_id, kind, model, state, id desc) where parent_id is null")
        _replace("ix_jobs_custom_id", "(project_id, custom_id, id desc) where custom_id is not null")
        _replace("ix_jobs_labels", f"{_LABELS} where labels <> '{{}}'")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        _replace("ix_jobs_labels", _LABELS)
        _replace("ix_jobs_custom_id", "(project_id, custom_id) where custom_id is not null")
        op.execute("drop index concurrently if exists ix_jobs_groups")


def _index(name: str, definition: str) -> None:
    """Makes an index; one whose making was broken off, by a transaction that outlasts the wait, goes first."""
    op.execute(f"drop index concurrently if exists {name}")
    op.execute(f"create index concurrently {name} on jobs {definition}")


def _replace(name: str, definition: str) -> None:
    """Queries find an index all the while: the new one is there before the old one goes."""
    _index(f"{name}_new", definition)
    op.execute(f"drop index concurrently if exists {name}")
    op.execute(f"alter index {name}_new rename to {name}")
