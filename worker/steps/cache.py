"""The result cache: an answer that the project has paid for before, in the place of an equal call.

It is no store of its own. The answer of a call stands on its attempt's row, with the hash of its request, until the
project's retention deletes it: the cache is a look there, by jobs that ask for it. So it cannot be out of date, and
nothing has to be kept in step. A job that is answered so has no attempt: it goes from `admitted` straight to `copying`
(a child, whose answer is kept in its row, to `succeeded`), takes nothing of its lane's rate or tokens, and costs
nothing. Two equal jobs that run at the same time may both pay.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from worker import kinds
from worker.context import Clock, Context
from worker.moves import attempts
from worker.states import Mode, Move, State
from worker.tables import Job


def answer(ctx: Context, job: Job, request_hash: bytes, clock: Clock) -> Move | None:
    """The move of a job whose answer is known already; None: it has to be asked for."""
    kind = kinds.call(job.kind)
    # a call of its own that may be billed is not to be hidden behind an answer that was free
    if not (job.cache_days and kind.cached) or job.mode != Mode.CALL or job.billed != "no":
        return None
    since = clock() - timedelta(days=job.cache_days)
    look = partial(attempts.answered, job=job, request_hash=request_hash, accounts=_alike(ctx, job), since=since)
    found = ctx.read(look)
    if found is None:
        return None
    result = kind.result(kind.input.model_validate(job.input), found.output["output"])
    if result is None or not kind.accepts(result):
        return None
    columns = {"result": result, "cached_from": found.job_id, "usage": {}, "cost": 0, "error": None}
    to = State.SUCCEEDED if job.parent_id else State.COPYING
    return Move(to, f"the result cache had the answer: job {found.job_id}", columns=columns)


def _alike(ctx: Context, job: Job) -> list[str]:
    """The accounts whose answers are as good as one of the job's own: of its region, and inspected as strictly."""
    mine = ctx.account(job)
    wanted = (mine.region, mine.data_inspection)
    return [each.name for each in ctx.settings.all_accounts if (each.region, each.data_inspection) == wanted]
