"""The words of a kind: what a request, a source, a piece and a kind itself are."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from pydantic import BaseModel

from worker.catalog import Model, Surface, Usage
from worker.errors import Failure, NoriaError
from worker.settings import Settings


@dataclass(frozen=True)
class Request:
    """A create call: the path under its surface, extra headers, and the body.

    `streams`: the answer comes as server-sent events, which the client puts together into one answer. `reasoning`:
    what a model thought aloud is wanted too; else the client drops it, so that it is kept nowhere.
    """

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    surface: Surface = Surface.NATIVE
    streams: bool = False
    reasoning: bool = False


@dataclass(frozen=True)
class Source:
    """One thing that the provider made: an expiring link and its role ("video", "image")."""

    url: str
    role: str
    extension: str  # what its name will end in if the bytes do not say otherwise: mp4, png, wav


@dataclass(frozen=True)
class Child:
    """A piece of a parent's work, to be made: an internal or an ordinary kind, its model, its complete input.

    `note` is the parent kind's own: what the child is to it. `estimate` in units, as `Kind.estimate` gives them.
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
    """A child that has ended: where it stands, how it ended, and what it made.

    `state` is succeeded, failed, canceled or expired; `result` what its call answered in words, `outputs` what is in
    the bucket; `error` a Failure as JSON.
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
    """A job whose children do the work, as its kind sees it: complete input, its own notes, the children so far.

    `ended` are the children of all rounds that were made, in the order of (round, place): when a round is asked for,
    all of them have ended. `prefixes` are the keys that its project may read: an object elsewhere is not there.
    """

    id: uuid.UUID
    model: str
    input: BaseModel
    note: dict[str, Any]
    round: int
    made: int  # children of the open round that were made already
    ended: Sequence[Ended]
    created_at: datetime
    deadline_at: datetime | None
    prefixes: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class Expansion:
    """What a parent does next.

    `children` are made with it, in the round that is open, which `note` is kept with. `more`: the round is not
    complete, and the kind is asked again at once (so that no step takes long). No children and no more of them, in
    a round that is empty: nothing is left to make, and `assemble` comes next. `failure` ends the job instead, and
    `unfit` are children that succeeded and are of no use: a retry makes them again. `again_after`: with `more`, the
    kind is asked again no sooner than that.
    """

    children: tuple[Child, ...] = ()
    note: dict[str, Any] | None = None  # None: as it was
    more: bool = False
    failure: Failure | None = None
    unfit: tuple[uuid.UUID, ...] = ()
    again_after: timedelta | None = None
    why: str = ""  # a few words for the job's history


@dataclass(frozen=True)
class Piece:
    """One output that is put together from the children: its bytes as they come, and what they are."""

    role: str
    extension: str
    content_type: str
    chunks: Iterable[bytes]
    duration: float | None = None  # seconds


class Unfit(NoriaError):
    """The parts do not go together, and will not later: the job fails, and its message says why."""

    code = "parts_unfit"


@dataclass(frozen=True)
class Found:
    """An object that a listing found."""

    key: str
    bytes: int
    modified_at: datetime


class Store(Protocol):
    """What a fan-out kind may do with the world. All raise NoriaErrors; StorageTrouble and CallFailed pass."""

    def read(self, key: str, limit: int) -> bytes:
        """An object's bytes; raises NotFound where there is none or it is not the project's, TooLarge over `limit`."""
        ...

    def chunks(self, key: str) -> Iterator[bytes]:
        """An object's bytes, a piece at a time; for objects that the engine itself stored."""
        ...

    def listing(self, prefix: str) -> Iterator[Found]:
        """The objects under a prefix, by key; NotFound where it is not the project's."""
        ...

    def fetch(self, url: str, limit: int) -> tuple[bytes, str]:
        """What a user's https link gives, and its content type; the address is guarded. Raises CallFailed, TooLarge."""
        ...

    def put(self, name: str, chunks: Iterable[bytes], content_type: str) -> Stored:
        """Store working material of the job under a name of its own; it may be stored again."""
        ...

    def unserved(self, model: str) -> str | None:
        """Why the provider will not serve the account with that model, as it lately said; None: it may be tried."""
        ...

    def is_late(self) -> bool:
        """Whether the step has taken its time: return what there is, with `more`."""
        ...


@dataclass(frozen=True)
class FanOut:
    """How a kind divides its work among children.

    `expand`    (parent, store) → the next children, or nothing more
    `assemble`  (parent, store) → the outputs, each streamed into the bucket before the next is asked for; Unfit ends
                the job, another NoriaError is tried again
    `usage`     (parent) → the units to show for the whole
    `all_or_none`  a failed child fails the parent: its waiting siblings are canceled; else the kind reports it
    """

    expand: Callable[[Parent, Store], Expansion]
    assemble: Callable[[Parent, Store], Iterator[Piece]]
    usage: Callable[[Parent], dict[str, Any]]
    all_or_none: bool


def nothing_inline(_wanted: BaseModel, _output: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of kinds whose answers are links."""
    return None


@dataclass(frozen=True)
class Kind:
    """One kind of job, as functions that do no I/O and read no clock.

    `input`     what users send: a model that refuses fields it does not know; a stored input is read back with it
    `check`     (model, raw input, region or None for any) → the input, complete; raises InvalidInput with every fault
    `request`   (model, region, input) → the create call, complete, spelled as that region does
    `outputs`   the `output` of a finished task or call → what was made, in the provider's order
    `failures`  the same `output` → `{"code", "message"}` of each part that failed
    `usage`     (input, the finished answer) → what is billed, from the answer and, where it is silent, the request
    `estimate`  (model, input) → what will be billed if all goes well
    `words`     the input in a few words that hold no prompt: "1280*720 5 s"
    `echoes`    what of the input the provider repeats: orig_prompt, seconds, tier, size, images
    `echoed`    a finished answer → the same words as the provider gave them, those that it gave
    `result`    (input, the `output` of a finished call) → what it says in words, kept in the row; None: nothing
    `fan_out`   how its children do the work; None: it is one create call
    `internal`  made only as a child
    """

    name: str
    input: type[BaseModel]
    check: Callable[[Model, Any, str | None], BaseModel]
    request: Callable[[Model, str, BaseModel], Request]
    outputs: Callable[[Mapping[str, Any]], tuple[Source, ...]]
    failures: Callable[[Mapping[str, Any]], tuple[dict[str, Any], ...]]
    usage: Callable[[BaseModel, Mapping[str, Any]], Usage]
    estimate: Callable[[Model, BaseModel], Usage]
    words: Callable[[BaseModel], str]
    echoes: Callable[[BaseModel], dict[str, Any]]
    echoed: Callable[[Mapping[str, Any]], dict[str, Any]]
    result: Callable[[BaseModel, Mapping[str, Any]], dict[str, Any] | None] = nothing_inline
    fan_out: FanOut | None = None
    internal: bool = False
