"""Every lease, timeout and deadline, in one table.

A lease is longer than the longest call that its step makes. So a step whose lease has lapsed has no call out: its
process is dead or stopped, and what it writes when it wakes is refused by its claim's number.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta

CONNECT = timedelta(seconds=5)

LATE_ANSWER = timedelta(seconds=15)  # until a lost call is judged; longer than between two tries to write an answer

SEND = timedelta(seconds=3)  # after the instant that a create is booked for; a create that is later is not sent

# deadlines of calls, wall clock, from the first byte sent to the last byte read
CREATE = timedelta(seconds=40)
HANDOVER = timedelta(seconds=40)  # all of a job's inputs together, where they are uploaded
UPLOAD = timedelta(minutes=10)  # a batch's file, 500 MB at the most
CALL = timedelta(seconds=310)  # a synchronous generation; the provider's own budget is 298 s
QUERY = timedelta(seconds=20)  # one look at a task, a page of the list, a cancel
DELIVERY = timedelta(seconds=15)  # one webhook
COPY = timedelta(minutes=3), timedelta(minutes=30)  # one output: at the first try, and at the longest

GATHER = timedelta(minutes=2)  # of a parent's step; then it makes the children that it has, and comes back
DOCUMENT = timedelta(seconds=60)  # one document by a user's link

TURN = timedelta(seconds=5)  # of a message's deliveries; then its thread is for others

# How long a request to the bucket that is under way when a copy's deadline passes may go on: two tries of each.
BUCKET_OVERRUN = timedelta(minutes=4)

WORKING = timedelta(seconds=30)  # of a message, after which no further row of it is begun; the rest is given back

# leases, each longer than the calls under it
SENT = timedelta(seconds=60)  # a claim on its way to a worker: a message that is lost is sent again after this
LEASES = {
    # each: WORKING, the inputs on their way, a second's wait for the lane's rate, SEND, and the call
    "submit": timedelta(seconds=160),  # HANDOVER, CREATE, and as long for a bucket that is slow to give the inputs
    "call": timedelta(seconds=400),  # HANDOVER, CALL
    "batch": timedelta(minutes=12),  # UPLOAD, CREATE
    "reconcile": timedelta(seconds=180),
    "gather": timedelta(minutes=10),  # GATHER, and the document that was being read when it passed
    "poll": timedelta(seconds=120),  # a message's looks, spread over the account's query rate
    "deliver": timedelta(seconds=60),  # TURN, and a delivery that began as it ended
}

COMPLETE = timedelta(minutes=15), timedelta(hours=6)  # a batch's end; and of one on which CRASHES workers died
MANIFEST_AGAIN = timedelta(seconds=30)  # until the end of a batch is tried again whose manifest the bucket did not take

# deadlines of phases; there is none while a job is queued or held
RUNNING = timedelta(hours=3, minutes=30)  # the provider ends a task at 3 h; until then it lives and is billed
RELINK = timedelta(hours=1)  # after a link's death, for asking for it again
LINKS = timedelta(hours=24)  # how long a finished task's links and its record live, when nothing says otherwise

UNSERVED = timedelta(days=7)  # a 403 for a way of calling is remembered for so long (`lanes.unserved_at`)
MISSED = timedelta(minutes=5)  # after its fire time, when a run counts as missed: no clock ran
ASSEMBLED = timedelta(days=3)  # a parent's outputs put together, once its parts are there
PROBE = timedelta(minutes=5)  # between two tries of a stopped account
UNKNOWN_BELIEVED = timedelta(minutes=10)  # looks that say UNKNOWN before a task is given up
CRASHES = 3  # workers that may die on one row before a person looks at it


def copying(tried: timedelta) -> timedelta:
    """How long one output may take, by how long its job has been tried: it grows, for large files over slow lines.

    Short at first, so that what a dead worker held is soon taken by another.
    """
    return min(max(COPY[0], 2 * tried), COPY[1])


def backoff(tried: timedelta) -> timedelta:
    """How long to wait after trying for so long: half of that time, from 2 s to 5 minutes, and spread."""
    return spread(min(max(tried / 2, timedelta(seconds=2)), timedelta(minutes=5)))


def create_again(attempts: int, now: datetime) -> datetime:
    """When a call may be made again: 2 s after the first, twice as long after each further one, 5 minutes at most."""
    return now + spread(min(timedelta(seconds=2 ** min(attempts, 9)), timedelta(minutes=5)))


def spread(span: timedelta) -> timedelta:
    """The span, a tenth more or less: so that what failed together does not come back together."""
    return span * random.uniform(0.9, 1.1)  # noqa: S311 - not a secret
