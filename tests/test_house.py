"""The house's own rules, which no linter knows: who may write a job's state, and what the engine may not name."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from worker.kinds import KINDS

ROOT = Path(__file__).resolve().parents[1]
OURS = {str(path.relative_to(ROOT)): path for room in ("worker", "api", "ops") for path in (ROOT / room).rglob("*.py")}
# the catalog says what each kind's models are
KNOW_KINDS = ("api/", "ops/", "worker/catalog/", "worker/kinds/")

_SQL = re.compile(r"\b(?:update\s+jobs\b(?:(?!\bwhere\b).)*?(?:set|,)\s*state\s*=|insert\s+into\s+jobs\b)", re.I | re.S)
_TABLES = {"Job", "table"}  # a statement on `table` may be one on jobs


def writes_state(source: str) -> set[int]:
    """The lines at which a module writes `jobs.state`, or may: it makes jobs, or hides what it changes."""
    tree = ast.parse(source)
    return {*_in_sql(tree), *_in_core(tree)}


def names_a_kind(source: str) -> set[int]:
    """The lines at which a module asks which kind a job is, or names one."""
    return {node.lineno for node in ast.walk(ast.parse(source)) if _names_a_kind(node)}


def _in_sql(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SQL.search(node.value):
            yield node.lineno


def _in_core(tree: ast.AST) -> Iterator[int]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    updates = [call for call in calls if _is_on_jobs(call, {"update"})]
    yield from (call.lineno for call in calls if _is_on_jobs(call, {"insert", "upsert"}, {"Job"}))
    for call in calls:
        if updates and isinstance(call.func, ast.Attribute) and call.func.attr == "values" and _sets_state(call):
            yield call.lineno


def _is_on_jobs(call: ast.Call, verbs: set[str], tables: set[str] = _TABLES) -> bool:
    said = isinstance(call.func, ast.Name) and call.func.id in verbs and call.args
    return bool(said) and ast.unparse(call.args[0]) in tables


def _sets_state(call: ast.Call) -> bool:
    """Whether `.values(…)` names the state, or hides what it names behind `**` or a variable."""
    named = {keyword.arg for keyword in call.keywords}
    if named & {"state", None}:
        return True
    for given in call.args:
        if not isinstance(given, ast.Dict):
            return True
        keys = {key.value if isinstance(key, ast.Constant) else ast.unparse(key) if key else None for key in given.keys}
        if keys & {"state", "Job.state", None}:
            return True
    return False


def _names_a_kind(node: ast.AST) -> TypeGuard[ast.expr]:
    if isinstance(node, ast.Compare):
        return any(_is_kind(side) for side in (node.left, *node.comparators))
    if isinstance(node, ast.Match):
        return _is_kind(node.subject)
    return isinstance(node, ast.Constant) and node.value in _UNMISTAKABLE


# the others are words of their own
_UNMISTAKABLE = frozenset(name for name in KINDS if "-" in name)


def _is_kind(node: ast.expr) -> bool:
    """`job.kind`, `kind.name`; not a column of a query, `Job.kind`."""
    return isinstance(node, ast.Attribute) and ast.unparse(node) in {"job.kind", "kind.name", "child.kind", "self.kind"}


def found(rule: Callable[[str], set[int]], allowed: tuple[str, ...]) -> dict[str, set[int]]:
    """Where ours break a rule."""
    broken = {path: rule(file.read_text()) for path, file in OURS.items() if not path.startswith(allowed)}
    return {path: lines for path, lines in broken.items() if lines}


def test_moves_alone_writes_a_jobs_state() -> None:
    assert found(writes_state, ("worker/moves/",)) == {}


def test_the_engine_names_no_kind() -> None:
    assert found(names_a_kind, KNOW_KINDS) == {}


def test_the_top_of_the_engine_can_be_read_at_a_glance() -> None:
    assert len(list((ROOT / "worker").glob("*.py"))) <= 16


@pytest.mark.parametrize(
    "source",
    [
        "update(Job).where(Job.id == x).values(state='failed')",
        "again = update(Job).where(Job.id == x)\nagain.values({'state': 'queued'})",
        "again = update(Job).where(Job.id == x)\nagain.values(**columns)",
        "update(Job).values(columns)",
        "update(Job).values({Job.state: 'failed'})",
        "update(table).values(run_at=None, state='failed')",
        "insert(Job)",
        "text('update jobs set run_at = null, state = :state where id = :id')",
        "text('UPDATE jobs\\n  SET state = null')",
        "text('with a as (update jobs as j set state = null) select')",
        "text('insert into jobs (id) values (1)')",
    ],
)
def test_a_module_that_writes_a_jobs_state_is_found(source: str) -> None:
    assert writes_state(source) != set()


@pytest.mark.parametrize(
    "source",
    [
        "update(Job).where(Job.state == x).values(run_at=now)",
        "update(Delivery).values(state='exhausted')",
        "text(\"update jobs set run_at = now() where state = 'queued'\")",
        "text('update jobs set state_at = now()')",
    ],
)
def test_a_module_that_writes_something_else_is_left_alone(source: str) -> None:
    assert writes_state(source) == set()


@pytest.mark.parametrize(
    "source",
    ["job.kind == 'text'", "job.kind in (A, B)", "kind.name != NAME", "'text-batch'", "match job.kind:\n case _: pass"],
)
def test_a_module_that_names_a_kind_is_found(source: str) -> None:
    assert names_a_kind(source) != set()
