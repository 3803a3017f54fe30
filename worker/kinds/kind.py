"""What a kind is, and the values that it is asked with and answers with.

There are two shapes. A `CallKind` is one create call at the provider. A `ParentKind` calls nobody: its children do the
work, in rounds, and it puts together what they made. What both have stands in `Kind`. All functions of a kind are pure,
but for the `Store` that a parent's are handed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from pydantic import BaseModel

from worker.catalog import Catalog, Model, Surface, Usage
from worker.errors import Failure, NoriaError
from worker.settings import Settings


@dataclass(frozen=True)
class Request:
    """A create call: the path under its surface, extra headers, and the body.

    `streams`: the answer comes as server-sent events, which the client joins into one answer. `reasoning`: the user
    wants the model's reasoning too; otherwise the client drops it, so that it is stored nowhere. `instead`: names of
    fields of the body, each with the one to send in its place where the provider refuses it by name.
    """

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    surface: Surface = Surface.NATIVE
    streams: bool = False
    reasoning: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One thing that the provider made: an expiring link and its role ("video", "image")."""

    url: str
    role: str
    extension: str  # what its name will end in if the bytes do not say otherwise: mp4, png, wav


@dataclass(frozen=True)
class Child:
    """A child to be made: its kind (internal or offered), its model, its complete input.

    `note` belongs to the parent's kind: it says what the child is for.
    """

    kind: str
    model: str
    input: dict[str, Any]
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """An output of a child: its object in our bucket, its length in bytes, and in seconds where it plays."""

    role: str
    key: str
    bytes: int
    duration: float | None


@dataclass(frozen=True)
class Ended:
    """A child that has ended: its round and place in it, how it ended, and what it made.

    `state` is succeeded, failed, canceled or expired; `result` is the answer that is kept in the row, `outputs` are the
    objects in the bucket, `error` is a Failure as JSON.
    """

    id: uuid.UUID
    round: int
    place: int
    kind: str
    model: str
    note: dict[str, Any]
    state: str
    result: dict[str, Any] | None
    outputs: tuple[Stored, ...]
    usage: dict[str, Any] | None
    cost: int | None  # micro-CNY
    error: dict[str, Any] | None


@dataclass(frozen=True)
class Parent:
    """A job of a `ParentKind`, as its kind sees it: the complete input, the kind's own note, the children so far.

    `ended` are the children of all earlier rounds, in the order of (round, place): a round is begun only when all of
    them have ended. `prefixes` are where the project's keys begin: an object elsewhere does not exist for it.
    """

    model: str
    input: Any  # as the kind's own model
    note: dict[str, Any]
    round: int
    made: int  # children of the open round so far
    ended: Sequence[Ended]
    prefixes: tuple[str, ...]
    settings: Settings
    catalog: Catalog


@dataclass(frozen=True)
class Expansion:
    """What a parent does next.

    `children` are added to the open round, and `note` is stored with them. `more`: the round is not complete, and the
    kind is asked again at once (so that no step takes long), or after `again_after`. A round that ends without any
    child was the last: `assemble` comes next. `failure` ends the job instead; `unfit` are children that succeeded and
    are of no use, which a retry makes again.
    """

    children: tuple[Child, ...] = ()
    note: dict[str, Any] | None = None  # None: unchanged
    more: bool = False
    failure: Failure | None = None
    unfit: tuple[uuid.UUID, ...] = ()
    again_after: timedelta | None = None
    why: str = ""  # a few words for the job's history


@dataclass(frozen=True)
class Outline:
    """What a parent's first round would be, before anything is paid: some of its children, and how many there are."""

    children: tuple[dict[str, Any], ...]
    total: int


@dataclass(frozen=True)
class Piece:
    """One output of a parent: its bytes as they come, and what they are."""

    role: str
    extension: str
    content_type: str
    chunks: Iterable[bytes]
    duration: float | None = None  # seconds


class Unfit(NoriaError):
    """The children's outputs cannot be joined, now or later: the job fails with this message."""

    code = "parts_unfit"


@dataclass(frozen=True)
class Found:
    """An object in a listing."""

    key: str
    bytes: int
    modified_at: datetime


class Store(Protocol):
    """What a parent's kind may read and write. All raise NoriaErrors; StorageTrouble and CallFailed pass with time."""

    def read(self, key: str, limit: int) -> bytes:
        """An object's bytes; raises NotFound where there is none or it is not the project's, TooLarge over `limit`."""
        ...

    def chunks(self, key: str) -> Iterator[bytes]:
        """An object's bytes, a piece at a time; for objects that the engine itself stored."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """A user's object, a piece at a time; raises NotFound where there is none or it is not the project's."""
        ...

    def listing(self, prefix: str) -> Iterator[Found]:
        """The objects under a prefix, by key; NotFound where it is not the project's."""
        ...

    def fetch(self, url: str, limit: int) -> tuple[bytes, str]:
        """The body behind a user's link, and its content type; the address is guarded. Raises CallFailed, TooLarge."""
        ...

    def put(self, name: str, chunks: Iterable[bytes], content_type: str) -> Stored:
        """Store working material of the job under this name; the same name may be stored again."""
        ...

    def unserved(self, model: str) -> str | None:
        """Why the provider refused the account that model within the last week; None: it may be tried."""
        ...

    def is_late(self) -> bool:
        """Whether the step has used its time: return what there is, with `more`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What every kind has. Its functions take the input as their own model, which is `Any` here.

    `input`     what users send: a model that refuses fields it does not know; a stored input is read back with it
    `check`     (catalog, model, raw input, region or None for any) → the input, complete; raises InvalidInput with
                every fault
    `estimate`  (model, input) → what will be billed if all goes well
    `words`     the input in a few words without any prompt: "1280*720 5 s"
    `keyed`     fields of the input that are lists of objects, whose `key` may name a file
    `models`    fields of the input that name further models
    `variant`   the input → the variant of its model that it insists on; None: the model itself will do
    `internal`  made only as a child
    `cached`    its calls may be answered by the result cache
    """

    name: str
    input: type[BaseModel]
    check: Callable[[Catalog, Model, Any, str | None], BaseModel]
    estimate: Callable[[Model, Any], Usage]
    words: Callable[[Any], str]
    keyed: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    variant: Callable[[Any], str | None] = lambda _input: None
    internal: bool = False
    cached: bool = False


@dataclass(frozen=True, kw_only=True)
class CallKind(Kind):
    """A kind of one create call. What a kind leaves out its answers do not have.

    `request`   (model, region, input) → the create call, complete, with the ids of that region
    `outputs`   the `output` of a finished task or call → what was made, in the provider's order
    `failures`  the same `output` → `{"code", "message"}` of each part that failed
    `usage`     (model, input, the finished answer) → what is billed, from the answer and, where it lacks it, the input
    `echoes`    (model, input) → what of it the provider repeats in its answer: orig_prompt, duration, tier, size, n
    `echoed`    (model, a finished answer) → the same names with the provider's values, as far as it repeats them
    `result`    (input, the `output` of a finished call) → the answer to keep in the job's row; None: it has links only
    `accepts`   such an answer → whether an equal call may be answered with it
    `is_bulky`  that answer is too long for a row: it is kept in the bucket alone, of a child too
    """

    request: Callable[[Model, str, Any], Request]
    outputs: Callable[[Mapping[str, Any]], tuple[Source, ...]] = lambda _output: ()
    failures: Callable[[Mapping[str, Any]], tuple[dict[str, Any], ...]] = lambda _output: ()
    usage: Callable[[Model, Any, Mapping[str, Any]], Usage] = lambda _model, _input, _answer: Usage()
    echoes: Callable[[Model, Any], dict[str, Any]] = lambda _model, _input: {}
    echoed: Callable[[Model, Mapping[str, Any]], dict[str, Any]] = lambda _model, _answer: {}
    result: Callable[[Any, Mapping[str, Any]], dict[str, Any] | None] = lambda _input, _output: None
    accepts: Callable[[Mapping[str, Any]], bool] = lambda _answer: True
    is_bulky: bool = False


@dataclass(frozen=True, kw_only=True)
class ParentKind(Kind):
    """A kind whose jobs have children that do the work.

    `expand`       (parent, store) → the next children, or nothing more
    `assemble`     (parent, store) → the outputs, each streamed into the bucket before the next is asked for; Unfit ends
                   the job, another NoriaError is tried again
    `usage`        (parent) → the units to show for the whole
    `outline`      (model, input, settings) → what the first round would be; None: that is known only when the job runs
    `all_or_none`  a failed child fails the parent, and its waiting siblings are canceled; otherwise the kind reports it
    """

    expand: Callable[[Parent, Store], Expansion]
    assemble: Callable[[Parent, Store], Iterator[Piece]]
    usage: Callable[[Parent], dict[str, Any]]
    outline: Callable[[Model, Any, Settings], Outline] | None = None
    all_or_none: bool
