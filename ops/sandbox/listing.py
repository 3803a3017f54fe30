"""What a task list shows: a window of at most 24 hours, narrowed by the query, less what a fault hides."""

from ops.sandbox import clock
from ops.sandbox.faults import Rule, What
from ops.sandbox.refusals import Refusal, invalid
from ops.sandbox.tasks import Task, Tasks


def select(tasks: Tasks, owner: str, query: dict[str, str], rule: Rule | None, now: float) -> list[Task]:
    """Return an owner's tasks that a query asks for, newest first, or raise the Refusal it earns.

    Parameters and their defaults: Alibaba docs, "Manage asynchronous tasks".
    """
    start, end = _window(query, now)
    found = tasks.between(owner, start, min(end, now))
    return [task for task in found if _fits(task, query, now) and not _hides(rule, task, now)]


def page(query: dict[str, str], longest: int) -> tuple[int, int]:
    """Return the number and the size of the page asked for; a size over `longest` is cut to it."""
    return _whole(query, "page_no", 1), min(_whole(query, "page_size", 10), longest)


def _window(query: dict[str, str], now: float) -> tuple[float, float]:
    try:
        end = clock.from_compact(query["end_time"]) if query.get("end_time") else now
        start = clock.from_compact(query["start_time"]) if query.get("start_time") else end - clock.DAY
    except ValueError:
        raise invalid("start_time and end_time must be YYYYMMDDhhmmss.") from None
    if end < start or end - start > clock.DAY:
        raise invalid("The interval between start_time and end_time must be within 24 hours.")
    return start, end


def _fits(task: Task, query: dict[str, str], now: float) -> bool:
    model, task_id, status = query.get("model_name"), query.get("task_id"), query.get("status")
    if model and task.order.model != model:
        return False
    if task_id and task.id != task_id:
        return False
    return not status or task.status(now) == status


def _hides(rule: Rule | None, task: Task, now: float) -> bool:
    if rule is None or not rule.fits(task.order.model, task.order.prompt):
        return False
    is_young = task.submitted_at > now - rule.after_ms / 1000
    return rule.what is What.MISSES or (rule.what is What.LAG and is_young)


def _whole(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise Refusal(400, "InvalidParameter", f"{name} must be a positive integer.")
    return int(text)
