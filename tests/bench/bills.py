"""Whether the ledger is the provider's bill: thousands of jobs that end in every way, and then both books.

    python -m tests.bench bills

All of `noria up` runs in a folder of its own. Jobs are refused, fail, are throttled, lose their answers, are canceled
and made again, and wait for a budget that is raised step by step. In the end each call that the sandbox was paid for
is looked for among the attempts, and its bill is compared with its line of the ledger. A call that is in no task list
and whose answer is lost is charged at its estimate: these are counted apart.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, text

from api.client import Client
from ops.cli import reach, show
from ops.cli.admin import project_made
from ops.local import up
from ops.sandbox.testing import Sandbox
from worker import keys
from worker.money import MICROS

_FILE = 500  # rows of one batch
_SETTLE = 5  # seconds
_RAISED = 10  # times that the budget is raised
_PATIENCE = 1500.0  # seconds
_LOOK = 2.0
_RATE, _AT_ONCE, _QUERIES = 200.0, 400, 200
_TASKS: dict[
    str, tuple[str, dict[str, Any]]
] = {  # models that repeat the prompt, so that a lost task is found, and what is asked of each
    "wan2.2-t2i-flash": ("text-to-image", {"size": "1024*1024", "n": 2}),
    "wanx2.1-t2i-turbo": ("text-to-image", {"size": "768*768"}),
    "wan2.5-t2v-preview": ("text-to-video", {"size": "832*480", "duration": 5}),
    "wan2.2-t2v-plus": ("text-to-video", {"size": "832*480"}),
    "wanx2.1-t2v-turbo": ("text-to-video", {"size": "1280*720"}),
}
_READ, _SPOKEN = "qwen-flash", "qwen3-tts-flash"
_FAULTS: tuple[dict[str, Any], ...] = (
    {"where": "create", "what": "lost_answer", "probability": 0.004},
    {"where": "create", "what": "truncated", "probability": 0.004},
    {"where": "create", "what": "reset", "probability": 0.004},
    {"where": "create", "what": "error", "probability": 0.04, "code": "DataInspectionFailed"},
    {"where": "create", "what": "error", "probability": 0.005, "code": "Throttling.RateQuota"},
    {"where": "create", "what": "task_fails", "probability": 0.04, "code": "InternalError.Algo"},
    {"where": "create", "what": "task_fails", "probability": 0.04, "code": "DataInspectionFailed"},
    {"where": "get", "what": "error", "probability": 0.01, "code": "SystemError"},
    {"where": "link", "what": "truncated", "probability": 0.02},
    {"where": "line", "what": "error", "probability": 0.02, "code": "InternalError"},
)


@dataclass(frozen=True)
class _Stack:
    client: Client
    engine: Engine
    sandbox: Sandbox

    def one(self, statement: str) -> int:
        """The number that a statement gives."""
        with self.engine.connect() as connection:
            return int(connection.execute(text(statement)).scalar() or 0)

    def rows(self, statement: str) -> list[Any]:
        """Its rows."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement)).all())


def measure(jobs: int) -> dict[str, Any]:
    """Both books after so many jobs; AssertionError where they differ."""
    began = time.monotonic()
    with _running() as stack:
        files = [list(itertools.islice(_bodies(n), _FILE)) for n in range(jobs // _FILE)]
        drafts = [stack.client.make_items(items, {"name": f"file {n}"}) for n, items in enumerate(files)]
        micros = sum(_micros(draft.report.cost if draft.report and draft.report.cost else "0") for draft in drafts)
        budget = stack.client.make_budget({"period": "total", "limit": _amount(micros // _RAISED), "over": "hold"})
        for fault in _FAULTS:
            stack.sandbox.fault(**fault)
        for draft in drafts:
            stack.client.commit_batch(draft.id)
        for draft in drafts[::4]:
            _cancel_some(stack.client, str(draft.id))
        for share in range(2, _RAISED + 1):
            _rest(stack)
            stack.client.change_budget(budget.id, {"limit": _amount(micros // _RAISED * share)})
        stack.client.change_budget(budget.id, {"limit": _amount(2 * micros)})
        for draft in drafts[1::2]:  # what failed costs once more, perhaps
            stack.client.retry_failed(draft.id)
        _rest(stack)
        stack.sandbox.clear_faults()
        _rest(stack)
        return {**_compared(stack), "seconds": round(time.monotonic() - began)}


def _bodies(file: int) -> Iterator[dict[str, Any]]:
    """Of twenty rows fifteen are tasks, three words, one a narration and one a summary."""
    models = itertools.cycle(_TASKS.items())
    for n in range(_FILE):
        words = f"row {n} of file {file}: a heron over the reeds"
        match n % 20:
            case 3 | 9 | 15:
                wanted = {"kind": "text", "model": _READ, "input": {"prompt": words, "max_tokens": 50}}
            case 6:
                wanted = {"kind": "speech", "model": _SPOKEN, "input": {"text": f"{words}. " * 20}}
            case 12:
                documents = [{"id": f"d{d}", "text": f"{words}, page {d}."} for d in range(3)]
                mode = "batch" if n % 40 == 12 else "calls"
                wanted = {"kind": "summary", "model": _READ, "input": {"documents": documents, "mode": mode}}
            case _:
                model, (kind, more) = next(models)
                wanted = {"kind": kind, "model": model, "input": {"prompt": words, **more}}
        yield {**wanted, "custom_id": f"bill-{file}-{n}"}


def _cancel_some(client: Client, batch: str) -> None:
    """Cancels one row in ten, wherever it is by now."""
    for item in itertools.islice(client.batch_items(batch), 0, None, 10):
        if item.job:
            client.cancel(item.job.id)


def _rest(stack: _Stack) -> None:
    """Waits until nothing is at work but what is held."""
    deadline = time.monotonic() + _PATIENCE
    while stack.one(_AT_WORK) or stack.one(_COULD_GO):
        assert time.monotonic() < deadline, f"{stack.one(_AT_WORK)} jobs are at work still"
        time.sleep(_LOOK)


def _compared(stack: _Stack) -> dict[str, Any]:
    books = stack.sandbox.ledger()
    lines = {str(row.attempt): row for row in stack.rows(_LINES)}
    by_task = {row.task_id: row for row in lines.values() if row.task_id}
    by_request = {row.request_id: row for row in lines.values() if row.outcome == "accepted"}
    paid = [task for task in books["tasks"] if task["billed_micros"]]
    found = [(task, by_task.get(task["task_id"]) or by_request.get(task["request_id"])) for task in paid]
    batches = [(batch, lines.get(batch["ds_name"])) for batch in books["batches"] if batch["billed_micros"]]
    known = [(made["billed_micros"], row) for made, row in found + batches if row is not None and row.billed == "yes"]
    lost = [made["billed_micros"] for made, row in found + batches if row is None or row.billed != "yes"]
    charged = [row for row in lines.values() if row.billed == "unknown"]
    bill, ledger = sum(micros for micros, _ in known), sum(row.micros or 0 for _, row in known)
    unbilled = sum(row.micros or 0 for row in lines.values() if row.billed == "no")
    wrong = [(micros, row) for micros, row in known if micros != row.micros]
    whole = stack.one("select sum(micros) from ledger")
    kept = stack.one("select sum(micros) from ledger_sums")
    (budget,) = stack.client.budgets()
    result = {
        **{f"jobs {row.state}": row.count for row in stack.rows(_STATES)},
        "calls paid, by the sandbox": len(paid) + len(batches),
        "of these known here": len(known),
        "their bill, micro-CNY": bill,
        "the ledger of these, micro-CNY": ledger,
        "lines that differ": len(wrong),
        "charged though free, micro-CNY": unbilled,
        "calls paid whose answer was lost": len(lost),
        "their bill by the sandbox, micro-CNY": sum(lost),
        "calls charged at their estimate": len(charged),
        **{f"of these, {row.why}": row.count for row in stack.rows(_CHARGED)},
        "their charge, micro-CNY": sum(row.micros or 0 for row in charged),
        "still reserved, micro-CNY": stack.one(_RESERVED),
        "the whole ledger, micro-CNY": whole,
        "its sums, micro-CNY": kept,
        "the roll-up of usage, micro-CNY": stack.one(_ROLLED_UP),
        "used of the budget, micro-CNY": _micros(budget.used),
    }
    assert not wrong, (result, wrong[:3])
    assert (bill, unbilled) == (ledger, 0), result
    assert len(lost) <= len(charged), (result, "paid for, and no call may be it")
    assert whole == kept == result["the roll-up of usage, micro-CNY"] == _micros(budget.used), result
    assert whole == ledger + result["their charge, micro-CNY"] + result["still reserved, micro-CNY"], result
    return result


def _micros(amount: str) -> int:
    whole, _, part = amount.partition(".")
    return int(whole) * MICROS + int(part.ljust(6, "0"))


def _amount(micros: int) -> str:
    return f"{micros // MICROS}.{micros % MICROS:06d}"


@contextmanager
def _running() -> Iterator[_Stack]:
    limit = {"concurrency": _AT_ONCE, "rps": _RATE}

    def prepare(settings: Mapping[str, str]) -> dict[str, str]:
        with reach.database(home, settings["NORIA_DATABASE_URL"]) as connection:
            key = keys.new_key(connection, project_made(connection, "bench"), "bench", keys.Scope.ADMIN)[1]
        return {
            "BENCH_KEY": key,
            "NORIA_SETTLE_SECONDS": str(_SETTLE),
            "NORIA_LIMITS": json.dumps(dict.fromkeys([*_TASKS, _READ, _SPOKEN], limit)),
            "NORIA_POLL_QPS": str(_QUERIES * 3 // 4),
            "NORIA_API_RATE": "1000",
        }

    with tempfile.TemporaryDirectory(prefix="noria-bench-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        home = Path(folder) / "home"
        with up.stack(up.UpOptions(home), prepare, show.sayer(show.ERR)) as made:
            sandbox = Sandbox(made.addresses["sandbox"])
            sandbox.set(
                limits={"*": {"concurrency": _AT_ONCE, "rps": 2 * _RATE, "rpm": round(120 * _RATE)}},
                queries_per_second=_QUERIES,
                **dict.fromkeys(("run_seconds", "queue_seconds", "call_seconds", "batch_run_seconds"), 0.2),
            )
            engine = create_engine(made.environment["NORIA_DATABASE_URL"], poolclass=NullPool)
            door = reach.Door(made.addresses["API"].removesuffix("/docs"), made.prepared["BENCH_KEY"])
            with reach.api(door) as client:
                yield _Stack(client, engine, sandbox)


_AT_WORK = "select count(*) from jobs where finished_at is null and state <> 'held'"
# Held for the budget though it has room: within seconds it goes.
_COULD_GO = """
    select count(*) from (select estimate from jobs where held_for = 'budget' order by id limit 1) as first, budgets
     where first.estimate <= budgets.micros - (select coalesce(sum(micros), 0) from ledger)
"""
_LINES = """
    select attempts.id as attempt, attempts.task_id, attempts.request_id, attempts.outcome, attempts.billed,
           ledger.micros
      from attempts left join ledger on ledger.attempt_id = attempts.id and entry = 'settle'
"""
_CHARGED = """
    select kind || ', ' || outcome || ': ' || coalesce(left(message, 60), code, '') as why, count(*) as count
      from attempts join jobs on jobs.id = attempts.job_id where attempts.billed = 'unknown' group by 1 order by 1
"""
_STATES = "select state, count(*) as count from jobs group by 1 order by 1"
_ROLLED_UP = "select sum(settled + unknown + reserved) from usage_sums"
_RESERVED = "select coalesce(sum(micros), 0) from ledger where entry in ('reserve', 'release')"
