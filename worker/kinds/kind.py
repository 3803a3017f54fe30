"""The words of a kind: what a request, a source and a kind itself are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from worker.catalog import Model, Usage


@dataclass(frozen=True)
class Request:
    """A create call: the path under `/api/v1`, extra headers, and the body."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One thing that the provider made: an expiring link and its role ("video", "image")."""

    url: str
    role: str
    extension: str  # what its name will end in if the bytes do not say otherwise: mp4, png, wav


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
