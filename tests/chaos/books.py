"""What the sandbox's own books say against the rows: what was paid for, for whom, and how fast it was asked for.

A call that has no task cannot be looked up, so one whose answer is lost is made again, and each may be paid for: such
calls bound the difference between the two bills, one for each attempt that is billed `unknown`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, text

from ops.audit import Finding
from ops.sandbox import orders
from worker.kinds import text as chats
from worker.lanes import throttle

_TWICE = "compare its attempts with the provider's bill"
_LOST = "it was made twice, or given up too soon"
_ROUNDED = 2  # micro-CNY between two bills of one batch, whose tiers of prices are each rounded
_MADE_AGAIN = """
    select e.job_id::text from events e join jobs j on j.id = e.job_id where e.entered = 'queued'
      and (e."left" in ('failed', 'canceled', 'expired') or j.mode = 'call' and e."left" in ('submitting', 'uncertain'))
"""

Books = Mapping[str, Any]


def said(connection: Connection, books: Books, queries: int) -> Iterator[Finding]:
    """Everything; `queries` a second are allowed."""
    yield from _tasks(connection, books)
    yield from _calls(connection, books)
    yield from _batches(connection, books)
    yield from _made_for(connection, books)
    yield from _peaks(connection, books, queries)


def _tasks(connection: Connection, books: Books) -> Iterator[Finding]:
    """I2 and M: one paid task a job, none that no job knows, and what each cost."""
    bound = {row.task_id: row for row in _attempts(connection, "a.task_id is not null")}
    searched = Counter(map(_asked, _attempts(connection, "a.closed_at is null and a.task_id is null")))
    paid: Counter[str] = Counter()
    for task in _paid(books, is_async=True):
        row = bound.get(task["task_id"])
        if row is not None:
            paid[row.job] += 1
            yield from _dearer(row, task["billed_micros"], 0)
        elif searched[task["prompt"]] > 0:  # its job is still looking for it
            searched[task["prompt"]] -= 1
        else:
            what = f"task {task['task_id']} of {task['model']} is paid for, and no job has it"
            yield Finding("I2", what, _asked_by(connection, task), _LOST)
    yield from _twice(connection, paid, "tasks")


def _calls(connection: Connection, books: Books) -> Iterator[Finding]:
    """The same of calls that answer at once: an answered one a job, and one for each whose answer was lost."""
    answered = {row.request_id: row for row in _attempts(connection, "a.outcome = 'accepted' and a.task_id is null")}
    lost = Counter(map(_asked, _attempts(connection, "a.outcome in ('sent', 'unknown') and a.billed <> 'no'")))
    paid: Counter[str] = Counter()
    for call in _paid(books, is_async=False):
        row = answered.get(call["request_id"])
        if row is not None:
            paid[row.job] += 1
            yield from _dearer(row, call["billed_micros"], 0)
        elif lost[call["prompt"]] > 0:
            lost[call["prompt"]] -= 1
        else:
            what = f"call {call['request_id']} of {call['model']} is paid for, and no attempt may be it"
            yield Finding("I2", what, _asked_by(connection, call), _LOST)
    yield from _twice(connection, paid, "answered calls")


def _batches(connection: Connection, books: Books) -> Iterator[Finding]:
    """The same of batches, which have their attempt's id for a name."""
    rows = {str(row.attempt): row for row in _attempts(connection, "j.mode = 'batch'")}
    paid: Counter[str] = Counter()
    for batch in books["batches"]:
        row = rows.get(batch["ds_name"])
        is_open = row is not None and row.task_id is None and row.closed_at is None
        if row is not None and row.task_id == batch["batch_id"]:
            paid[row.job] += bool(batch["billed_micros"])
            yield from _dearer(row, batch["billed_micros"], _ROUNDED)
        elif batch["billed_micros"] and not is_open:
            job = row.job if row is not None else None
            yield Finding("I2", f"batch {batch['batch_id']} is paid for, and no job has it", job, _LOST)
    yield from _twice(connection, paid, "batches")


def _made_for(connection: Connection, books: Books) -> Iterator[Finding]:
    """I3 and I13: what was made was made of what its job asked for."""
    by_task = {row.task_id: row for row in _attempts(connection, "a.task_id is not null")}
    by_request = {row.request_id: row for row in _attempts(connection, "a.outcome = 'accepted' and a.task_id is null")}
    for task in books["tasks"]:
        row = by_task.get(task["task_id"]) or by_request.get(task["request_id"])
        if row is not None and task["prompt"] and not _asked(row).startswith(task["prompt"]):
            what = f"task {task['task_id']} was made of another prompt than the job's"
            yield Finding("I3", what, row.job, "its outputs are another's: withdraw them")
    unsent = connection.execute(
        text(
            "select j.id::text as id, j.input->>'prompt' as prompt from jobs j where j.state = 'canceled'"
            " and not exists (select from events e where e.job_id = j.id and e.entered = 'submitting')"
        )
    ).all()
    others = set(connection.execute(text("select input->>'prompt' from jobs where attempts > 0")).scalars())
    received = {create["prompt"] for create in books["creates"]}
    for row in unsent:
        if row.prompt in received - others:
            what = "it was canceled before anything was sent, and the provider got its call"
            yield Finding("I13", what, row.id, "report it with the job's history")


def _peaks(connection: Connection, books: Books, queries: int) -> Iterator[Finding]:
    """I8 and I11: the most tasks that a lane ever had in flight; queries a second, calls and tokens a minute."""
    per_minute = f"max(60e6 / nullif(interval_us, 0) / {throttle.SHARE})"
    lanes = text(f"select model, sum(concurrency) as slots, {per_minute} as rpm, sum(tpm) as tpm from lanes group by 1")
    allowed = {row.model: row for row in connection.execute(lanes)}
    for by_model in books["peaks"]["in_flight"].values():
        for model, peak in by_model.items():
            if model in allowed and peak > allowed[model].slots:
                what = f"{model} had {peak} tasks in flight, of {allowed[model].slots} that it may"
                yield Finding("I8", what, None, "unless its limit was lowered meanwhile: report it")
    for by_interface in books["peaks"]["per_second"].values():
        if (peak := by_interface.get("queries", 0)) > queries:
            what = f"{peak} task queries came in one second, of {queries} that may"
            yield Finding("I11", what, None, "lower NORIA_POLL_QPS")
    for by_name in books["peaks"]["per_minute"].values():
        for name, peak in by_name.items():
            counted, _, model = name.partition(" ")
            most = getattr(allowed.get(model), {"requests": "rpm", "tokens": "tpm"}[counted], None)
            if most is not None and peak > most:
                what = f"{model} had {peak} {counted} in one minute, of {float(most):.0f} that it may"
                yield Finding("I11", what, None, "unless its limit was lowered meanwhile: report it")


def _attempts(connection: Connection, which: str) -> list[Any]:
    """The attempts with their jobs; `is_last`: what the job says of its cost is this one's."""
    statement = f"""
        select a.id as attempt, a.task_id, a.request_id, a.closed_at, j.id::text as job, j.kind, j.input, j.cost,
               j.billed, j.finished_at, j.attempt_id = a.id as is_last
        from attempts a join jobs j on j.id = a.job_id where {which}
        """
    return list(connection.execute(text(statement)))


def _paid(books: Books, *, is_async: bool) -> Iterator[dict[str, Any]]:
    """What is paid for, with the prompt as it came: of an answer in words the books repeat only its beginning."""
    whole = {create.get("task_id"): create["prompt"] for create in books["creates"]}
    for task in books["tasks"]:
        if task["billed_micros"] and task["is_async"] is is_async:
            yield {**task, "prompt": whole.get(task["task_id"], task["prompt"])}


def _asked(row: Any) -> str:
    """The words of a job, as the sandbox reads them from its call."""
    if row.kind == chats.NAME:
        return orders.prompt_of({"input": {"messages": chats.messages(chats.Conversation.model_validate(row.input))}})
    return str(row.input.get("prompt") or row.input.get("text") or "")


def _dearer(row: Any, micros: int, leeway: int) -> Iterator[Finding]:
    if row.is_last and row.finished_at and row.billed == "yes" and abs((row.cost or 0) - micros) > leeway:
        what = f"it cost {row.cost} micro-CNY here, and {micros} at the provider"
        yield Finding("M", what, row.job, "correct its price in the catalog")


def _twice(connection: Connection, paid: Counter[str], what: str) -> Iterator[Finding]:
    lives = Counter(connection.execute(text(_MADE_AGAIN)).scalars())
    for job, count in paid.items():
        if count > 1 + lives[job]:
            yield Finding("I2", f"{count} of its {what} are paid for", job, _TWICE)


def _asked_by(connection: Connection, task: Mapping[str, Any]) -> str | None:
    """A job that asked for what the task is made of."""
    statement = text(
        "select id::text from jobs where model = :model and :prompt in (input->>'prompt', input->>'text') limit 1"
    )
    found = connection.execute(statement, {"model": task["model"], "prompt": task["prompt"]}).scalar()
    return str(found) if found else None
