"""Many documents, each in a few words; and, if wanted, all of them in one digest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from worker import catalog
from worker.catalog import Model, Usage
from worker.errors import Fault, InvalidInput
from worker.kinds import answers, checks, text
from worker.kinds.kind import FanOut, Kind, Request
from worker.kinds.summary import chunks, prompts, results, rounds
from worker.kinds.summary.form import NAME, Summary

_POINTERS = {"/input/response_format": "/input/style"}  # of a call's fields, where ours are called otherwise
_RULES_TOKENS = 300  # of what a call says beside its document


def check(model: Model, raw: Any, region: str | None) -> Summary:
    """The input, complete; raises InvalidInput with every fault."""
    # The model's defaults are those of a chat: here max_tokens follows from the summary's length.
    wanted = checks.check(NAME, Summary, model.model_copy(update={"default": {}}), raw, region)
    reducing = _reducing(model, wanted, region)
    wanted = wanted.model_copy(update={"reduce_model": reducing.id})
    for each in {model.id: model, reducing.id: reducing}.values():
        _try(each, wanted)
    return wanted


def request(_model: Model, _region: str, _wanted: BaseModel) -> Request:
    """There is none: its parts are what is asked for."""
    raise AssertionError("a summary makes no call of its own")


def estimate(model: Model, wanted: BaseModel) -> Usage:
    """The documents read and summarized, where they stand in the input; nothing where they are still to be fetched."""
    said = _read(wanted)
    texts = [document.text for document in said.documents if document.text is not None]
    if len(texts) < len(said.documents):
        return Usage()
    read = sum(map(text.tokens, texts)) + _RULES_TOKENS * len(texts)
    most = prompts.whole(said, "").max_tokens
    units = {"input_tokens": read, "output_tokens": most * len(texts), "thinking": bool(said.enable_thinking)}
    return Usage({**units, "tier": model.token_tier(min(read / len(texts), chunks.FULL))})  # of one call


def words(wanted: BaseModel) -> str:
    """ "40 documents, bullets", "a prefix, json"."""
    said = _read(wanted)
    style = said.style if isinstance(said.style, str) else "json"
    prefixes = sum(document.prefix is not None for document in said.documents)
    counts = ((len(said.documents) - prefixes, "document", ""), (prefixes, "prefix", "e"))
    return ", ".join([*_counted(counts), style, *(["digest"] if said.digest else [])])


def echoes(_: Any) -> dict[str, Any]:
    """Nothing: it is not looked for."""
    return {}


def _read(wanted: BaseModel) -> Summary:
    assert isinstance(wanted, Summary)
    return wanted


def _counted(counts: Iterable[tuple[int, str, str]]) -> list[str]:
    return [f"{count:,} {name}{f'{plural}s' if count > 1 else ''}" for count, name, plural in counts if count]


def _reducing(model: Model, wanted: Summary, region: str | None) -> Model:
    """The model that reduces: the one that was named, else the catalog's advice."""
    try:
        found = catalog.load().offered(wanted.reduce_model or catalog.load().default("reduce") or model.id)
    except InvalidInput as error:
        raise _fault("reduce_model", error.faults[0].code, error.faults[0].message) from None
    if found.end and found.retired_by == "notice":
        raise _fault("reduce_model", "retired_model", found.end)
    if NAME not in found.kinds or (region is not None and found.region(region) is None):
        raise _fault("reduce_model", "wrong_model", f"{found.id} makes no summaries here")
    return found


def _try(model: Model, wanted: Summary) -> None:
    """Raises InvalidInput where a call to the model, with what is wanted of it, would be refused."""
    if wanted.max_tokens and model.max_output and wanted.max_tokens > model.max_output:
        raise _fault("max_tokens", "too_many", f"{model.id} writes at most {model.max_output:,} tokens")
    try:
        prompts.asked(model, prompts.whole(wanted, "a document"), wanted)
    except InvalidInput as error:
        faults = [Fault(_POINTERS.get(slip.pointer, slip.pointer), slip.code, slip.message) for slip in error.faults]
        raise InvalidInput(faults) from None


def _fault(name: str, code: str, message: str) -> InvalidInput:
    return InvalidInput([Fault(f"/input/{name}", code, message)])


KIND = Kind(
    name=NAME,
    input=Summary,
    check=check,
    request=request,
    outputs=text.outputs,
    failures=answers.failures,
    usage=text.usage,
    estimate=estimate,
    words=words,
    echoes=echoes,
    echoed=echoes,
    fan_out=FanOut(rounds.expand, results.assemble, results.usage, all_or_none=False),
)
