"""Moves: a fresh start keeps nothing of an end, and no statement is built for a way that `MOVES` does not know."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, bindparam, select, update

from worker import catalog, keys, moves, settings
from worker.jobs import submission
from worker.lanes import slots
from worker.moves import children, transition
from worker.states import TERMINAL, Mode, State, may
from worker.tables import Job

BEFORE = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW = BEFORE + timedelta(hours=1)
CLIP = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "mode": Mode.TASK, "input": {}}

# What a job is, which no retry changes; a parent's rounds and the calls' numbers go on.
KEPT = {
    *("id", "project_id", "parent_id", "kind", "model", "mode", "input", "labels", "custom_id", "priority", "rank_at"),
    *("round", "round_open", "place", "note", "webhook_url", "webhook_events", "created_at", "estimate", "attempts"),
    *("batch_id", "batch_row", "schedule_id", "review", "review_note", "reviewed_at", "first_take", "take"),
}
# What the retry itself writes.
MOVED = {"state", "state_at", "run_at", "claim", "sequence"}
COLUMNS = {column.name: column for column in Job.__table__.c if column.name not in KEPT | MOVED}


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        known = settings.Settings.model_validate({"database_url": "", "broker_url": ""})
        slots.sync(connection, catalog.load(), known)
        yield connection


@pytest.fixture
def project(connection: Connection) -> uuid.UUID:
    return keys.create_project(connection, "spring").id


def ended(connection: Connection, job: Job, state: State) -> None:
    """Ends a job with something in every column that is not kept."""
    columns = {name: _something(name, column) for name, column in COLUMNS.items()}
    columns |= {"state": state, "run_at": None, "held_for": None}
    connection.execute(update(Job).where(Job.id == job.id).values(columns))


def _something(name: str, column: Any) -> Any:
    words = {"lane_id": 1, "claimed": "sent", "billed": "yes", "held_from": "queued", "attempt_id": uuid.uuid4()}
    values = {bool: True, int: 7, float: 7.0, str: "x", datetime: BEFORE, object: {"x": 1}}
    values |= {uuid.UUID: uuid.UUID(int=7)}
    return words[name] if name in words else values[column.type.python_type]


def shown(connection: Connection, job: Job) -> dict[str, Any]:
    row = moves.reread(connection, job)
    return {name: getattr(row, name) for name in COLUMNS}


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELED, State.EXPIRED])
def test_a_retried_job_keeps_nothing_of_how_it_ended(connection: Connection, project: uuid.UUID, state: State) -> None:
    job = moves.make(connection, {**CLIP, "project_id": project}, BEFORE)
    new = shown(connection, job)
    ended(connection, job, state)

    again = submission.retry(connection, project, job.id, NOW)

    assert shown(connection, job) == new
    assert (again.state, again.state_at, again.run_at, again.claim, again.sequence) == ("queued", NOW, NOW, 1, 2)


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELED, State.EXPIRED])
def test_a_retried_child_keeps_nothing_of_how_it_ended(
    connection: Connection, project: uuid.UUID, state: State
) -> None:
    parent = moves.make(connection, {**CLIP, "project_id": project, "mode": Mode.PARENT, "round": 1}, BEFORE)
    children.Make([{**CLIP, "round": 1, "place": place} for place in (0, 1)]).carry_out(connection, parent, BEFORE)
    child, other = (Job.of(row) for row in connection.execute(_CHILDREN, {"parent": parent.id}).mappings())
    new = shown(connection, child)
    ended(connection, child, state)
    ended(connection, other, State.SUCCEEDED)
    ended(connection, parent, State.FAILED)

    submission.retry(connection, project, parent.id, NOW)

    assert shown(connection, child) == new
    again, of_parent, untouched = (moves.reread(connection, job) for job in (child, parent, other))
    assert (again.state, again.state_at, again.run_at, again.claim, again.sequence) == ("queued", NOW, NOW, 1, 2)
    assert (of_parent.state, of_parent.finished_at, of_parent.usage) == ("gathering", None, None)
    assert (untouched.state, untouched.usage, untouched.claim) == ("succeeded", {"x": 1}, 0)


def test_a_part_that_is_failed_after_its_end_keeps_the_time_of_that(connection: Connection, project: uuid.UUID) -> None:
    parent = moves.make(connection, {**CLIP, "project_id": project, "mode": Mode.PARENT, "round": 1}, BEFORE)
    children.Make([{**CLIP, "round": 1, "place": 0}]).carry_out(connection, parent, BEFORE)
    (child,) = (Job.of(row) for row in connection.execute(_CHILDREN, {"parent": parent.id}).mappings())
    ended(connection, child, State.SUCCEEDED)

    children.Fail([child.id], "its sound is broken").carry_out(connection, parent, NOW)

    failed = moves.reread(connection, child)
    assert (failed.state, failed.state_at, failed.finished_at, failed.claim) == ("failed", NOW, BEFORE, 1)
    assert (failed.error or {})["message"] == "its sound is broken"


@pytest.mark.parametrize(
    ("columns", "is_ended"),
    [
        ({"state": State.QUEUED}, True),
        ({"state": State.ADMITTED, "claimed": "sent"}, True),
        ({"state": State.ADMITTED, "claimed": "taken"}, False),  # its worker may be about to make the call
        ({"state": State.HELD, "held_for": "crashes", "held_from": "admitted"}, True),
        ({"state": State.HELD, "held_for": "uncertain", "held_from": "uncertain"}, False),  # it may have a task
        ({"state": State.SUBMITTING}, False),
        ({"state": State.RUNNING}, False),
    ],
)
def test_a_parent_ends_the_children_that_nobody_works_on_and_asks_the_others(
    connection: Connection, project: uuid.UUID, columns: dict[str, Any], is_ended: bool
) -> None:
    parent = moves.make(connection, {**CLIP, "project_id": project, "mode": Mode.PARENT, "round": 1}, BEFORE)
    children.Make([{**CLIP, "round": 1, "place": 0}]).carry_out(connection, parent, BEFORE)
    (child,) = (Job.of(row) for row in connection.execute(_CHILDREN, {"parent": parent.id}).mappings())
    connection.execute(update(Job).where(Job.id == child.id).values(columns))

    children.Cancel("its job was canceled").carry_out(connection, parent, NOW)

    found = moves.reread(connection, child)
    assert found.cancel_requested
    assert (found.state == State.CANCELED, found.claim) == (is_ended, int(is_ended))


@pytest.mark.parametrize(
    ("left", "to"), [(left, to) for left in State for to in State if not may(left, to)], ids=lambda state: str(state)
)
def test_no_statement_moves_a_job_where_it_may_not_go(left: State, to: State) -> None:
    with pytest.raises(AssertionError, match="may become"):
        transition.many({left}, to)


@pytest.mark.parametrize(
    ("left", "to"),
    [(left, to) for left in sorted(TERMINAL) for to in State if may(left, to)],
    ids=lambda state: str(state),
)
def test_what_leaves_an_end_for_work_starts_afresh(left: State, to: State) -> None:
    columns = transition.entered({left}, to, NOW)

    assert (transition.FRESH.items() <= columns.items()) == (to not in TERMINAL)


_CHILDREN = select(*Job.__table__.c).where(Job.parent_id == bindparam("parent")).order_by(Job.place)
