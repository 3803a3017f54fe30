"""The states of a job, and the moves between them.

A job moves only along `MOVES`, and every move is recorded in the same statement that names the state it leaves,
so two processes can never both move one job. A wait is a move to the same state with a new `run_at`.
Whoever reads a job at any instant can tell from its state alone what may be done with it:

    queued ──► admitted ──► submitting ──► running ──► copying ──► succeeded
                                 └──► uncertain ──► …        └──► expired
    admitted ──► copying or succeeded (an answer of the result cache: nothing is sent)
    queued ──► gathering (its children are at work) ──► copying (assembled) ──► succeeded
    copying ──► awaiting_review (where a person is to look first) ──► succeeded or rejected
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from sqlalchemy import Connection


class State(StrEnum):
    """Where a job is; the comment says who moves it on."""

    QUEUED = "queued"  # accepted, waiting for its lane; the tick admits it
    HELD = "held"  # waits for a person or a budget: `held_for` says which, `held_from` where it goes back to
    ADMITTED = "admitted"  # has a slot, nothing sent; step `create`
    SUBMITTING = "submitting"  # the create call is out and its answer not on record
    UNCERTAIN = "uncertain"  # the call may have made a task; step `find`
    RUNNING = "running"  # the provider has a task; step `poll`
    GATHERING = "gathering"  # its children are at work; the last child's end
    COPYING = "copying"  # its outputs are on their way into the bucket; step `copy`
    AWAITING_REVIEW = "awaiting_review"  # the outputs are in the bucket; a person approves or rejects them
    SUCCEEDED = "succeeded"  # the outputs are in the bucket, and checked; approved, where a review was asked for
    REJECTED = "rejected"  # by a person, who looked at the outputs
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"  # the provider made it, and its link died before it could be copied


class Mode(StrEnum):
    """How a job is carried out; with its state it says which step is next (`worker/steps`)."""

    TASK = "task"  # one create call makes a task at the provider, which is looked at until it ends
    CALL = "call"  # one create call answers with the result itself
    BATCH = "batch"  # one create call makes a provider batch: a file of many calls
    PARENT = "parent"  # its children do the work


class HeldFor(StrEnum):
    """What a held job waits for."""

    UNCERTAIN = "uncertain"  # nobody can prove whether the provider made a task
    CRASHES = "crashes"  # three workers died on it
    BUDGET = "budget"  # its project's has no room for it
    BATCH = "batch"


S = State

TERMINAL = frozenset({S.SUCCEEDED, S.REJECTED, S.FAILED, S.CANCELED, S.EXPIRED})

# States of a job that has made all it will make: nothing more is paid for it, and what it cost is known.
DONE = TERMINAL | {S.AWAITING_REVIEW}

# States in which no row is due: they end by a person's word, or never.
AT_REST = TERMINAL | {S.HELD, S.AWAITING_REVIEW}

# States that use one of the lane's concurrent tasks. An uncertain job may have a task, so it keeps its slot.
SLOTTED = frozenset({S.ADMITTED, S.SUBMITTING, S.UNCERTAIN, S.RUNNING})

MOVES: dict[State, frozenset[State]] = {
    # uncertain: by the rows of a backup it waits, and may have been sent since
    S.QUEUED: frozenset({S.ADMITTED, S.GATHERING, S.HELD, S.UNCERTAIN, S.CANCELED, S.FAILED}),
    S.HELD: frozenset({S.QUEUED, S.UNCERTAIN, S.COPYING, S.GATHERING, S.RUNNING, S.ADMITTED, S.CANCELED, S.FAILED}),
    # copying, or succeeded where it is a child: the result cache has the answer, and no call is made
    S.ADMITTED: frozenset(
        {S.ADMITTED, S.SUBMITTING, S.COPYING, S.SUCCEEDED, S.QUEUED, S.HELD, S.UNCERTAIN, S.CANCELED, S.FAILED}
    ),
    # never back to queued when the call may have left: only a call that provably did not, or was refused, or one that
    # is cheap and cannot be looked up. Succeeded at once: a child whose answer is words, which its row keeps
    S.SUBMITTING: frozenset({S.RUNNING, S.COPYING, S.SUCCEEDED, S.QUEUED, S.UNCERTAIN, S.FAILED}),
    # canceled: proved absent, and nobody wants it any more
    S.UNCERTAIN: frozenset({S.UNCERTAIN, S.RUNNING, S.COPYING, S.SUCCEEDED, S.QUEUED, S.FAILED, S.HELD, S.CANCELED}),
    # never held: a task that lives is billed, and its link would die unwatched. Uncertain: it was adopted by a
    # person, and is another's
    S.RUNNING: frozenset({S.RUNNING, S.COPYING, S.SUCCEEDED, S.QUEUED, S.UNCERTAIN, S.FAILED, S.CANCELED, S.EXPIRED}),
    S.GATHERING: frozenset({S.GATHERING, S.COPYING, S.HELD, S.FAILED, S.CANCELED}),
    S.COPYING: frozenset({S.COPYING, S.AWAITING_REVIEW, S.SUCCEEDED, S.EXPIRED, S.FAILED, S.HELD}),
    S.AWAITING_REVIEW: frozenset({S.SUCCEEDED, S.REJECTED}),
    S.SUCCEEDED: frozenset({S.FAILED}),  # a part that its parent cannot use, so that a retry makes it again
    S.REJECTED: frozenset(),  # paid for and looked at: another take is a job of its own
    # made again; held: for its project's budget
    S.FAILED: frozenset({S.QUEUED, S.GATHERING, S.HELD}),
    S.CANCELED: frozenset({S.QUEUED, S.GATHERING, S.HELD}),
    S.EXPIRED: frozenset({S.QUEUED, S.GATHERING, S.HELD}),
}


class Effect(Protocol):
    """What only some moves do beside: to the job's lane, its account, its children. Their modules define it."""

    def carry_out(self, connection: Connection, job: Any, now: datetime) -> None:
        """Writes it in the move's transaction; `job` is the row (`tables.Job`) as it was before the move."""


@dataclass(frozen=True)
class Move:
    """A change of state to put on record.

    `to` the state that is entered, or the same one for a wait; `run_at` when the row wants attention again (None:
    at once; ignored where the state is terminal or held); `why` a few words for the job's history. In the same commit:
    `columns` what else changes on the job's row; `attempt` what changes on the open attempt's row; `outputs` rows of
    stored outputs; `effects` what changes elsewhere. `rests`: nothing but the end of its children makes the row due
    again.
    """

    to: State
    why: str = ""
    run_at: datetime | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    attempt: dict[str, Any] | None = None
    outputs: tuple[dict[str, Any], ...] = ()
    effects: tuple[Effect, ...] = ()
    rests: bool = False


def may(left: State, entered: State) -> bool:
    """Whether a job may go from the one state to the other."""
    return entered in MOVES[left]
