"""What a job can make. A kind is pure: a user's input in, a provider's request out; a task in, sources and usage out.

Each kind is one file here and one row in `KINDS`. It does no I/O and reads no clock, so its test is a table. What kinds
share stands beside them: `fields` (whether an input fits its model), `visual` (pictures and clips), `answers` (what the
provider answers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.catalog import Catalog, Usage
from worker.errors import Fault
from worker.kinds import (
    embedding,
    image_edit,
    image_to_video,
    reference_to_video,
    speech,
    summary,
    text,
    text_batch,
    text_to_image,
    text_to_video,
    understand,
    video_edit,
)
from worker.kinds.embedding import embedding_call
from worker.kinds.kind import CallKind, Kind, ParentKind, Request, Source
from worker.kinds.speech import speech_segment

__all__ = ["KINDS", "OFFERED", "CallKind", "Kind", "ParentKind", "Request", "Source", "Usage"]

_ALL: tuple[Kind, ...] = (
    text_to_video.KIND,
    image_to_video.KIND,
    reference_to_video.KIND,
    video_edit.KIND,
    text_to_image.KIND,
    image_edit.KIND,
    speech.KIND,
    speech_segment.KIND,
    summary.KIND,
    text.KIND,
    text_batch.KIND,
    understand.KIND,
    embedding.KIND,
    embedding_call.KIND,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}

# What users may ask for; the others are made only as children.
OFFERED: dict[str, Kind] = {name: kind for name, kind in KINDS.items() if not kind.internal}


def call(name: str) -> CallKind:
    """The kind of a job that is one create call."""
    kind = KINDS[name]
    assert isinstance(kind, CallKind), f"{name} makes no call of its own"
    return kind


def parent(name: str) -> ParentKind:
    """The kind of a job whose children do the work."""
    kind = KINDS[name]
    assert isinstance(kind, ParentKind), f"{name} has no children"
    return kind


def warnings(catalog: Catalog, kind: str, model: str | None, wanted: Mapping[str, Any]) -> list[Fault]:
    """What is accepted though it may have ended: models of a submission that others report as retired."""
    further = KINDS[kind].models if kind in KINDS else ()
    named = {"/model": model or catalog.default(kind), **{f"/input/{name}": wanted.get(name) for name in further}}
    ends = {pointer: catalog.end(str(name)) for pointer, name in named.items() if name is not None}
    return [Fault(pointer, "retired_model", end) for pointer, end in ends.items() if end]
