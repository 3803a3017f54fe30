"""How long things take, and how a fault bends it."""

import random

from ops.sandbox.faults import Rule, What
from ops.sandbox.models import Model
from ops.sandbox.options import Options
from ops.sandbox.tasks import Task

LONGEST_RUN_SECONDS = 10_800.0  # a task gives a result within 3 h or fails (Alibaba docs, "Error messages")
QUEUE_SECONDS = (0.03, 10.5)  # from submission to start, as seen in samples of the documentation
RUN_SPREAD = (0.7, 1.3)  # about a model's median
TOKENS_A_SECOND = 60  # of text
TIMEOUT = ("InternalError.Timeout", "An internal timeout error has occured during execution.")


def plan(task: Task, model: Model, options: Options, drawn: random.Random) -> None:
    """Give a task the times it waits and runs, in true seconds."""
    wait = drawn.uniform(*QUEUE_SECONDS) * options.time_scale
    task.queue_seconds = wait if options.queue_seconds is None else options.queue_seconds
    run = _median(task, model) * drawn.uniform(*RUN_SPREAD) * options.time_scale
    fixed = _fixed(model, options)
    task.run_seconds = run if fixed is None else fixed


def bend(task: Task, rule: Rule) -> None:
    """Make a task fail, run or begin as a fault says."""
    if rule.what is What.TASK_FAILS:
        _, code, message = rule.error
        task.failure = (code, message)
    elif rule.what is What.TASK_PARTIAL and task.order.pictures > 1:
        task.failed_pictures = 1
    elif rule.what is What.TASK_RUNS:
        task.run_seconds = rule.after_ms / 1000
    elif rule.what is What.EXECUTED_LATE:
        task.submitted_at += rule.after_ms / 1000


def end(task: Task) -> None:
    """Let a run that would take too long fail."""
    if task.run_seconds > LONGEST_RUN_SECONDS:
        task.run_seconds, task.failure = LONGEST_RUN_SECONDS, TIMEOUT


def _median(task: Task, model: Model) -> float:
    if task.answer is not None:
        return model.run_seconds + task.answer.output_tokens / TOKENS_A_SECOND
    return model.run_seconds * (task.order.seconds / 5 if task.order.seconds else 1.0)


def _fixed(model: Model, options: Options) -> float | None:
    is_call = model.makes in ("speech", "text", "embedding")
    return options.call_seconds if is_call and options.call_seconds is not None else options.run_seconds
