"""Many documents, each in a few words; and, if wanted, all of them in one digest.

The outputs are summaries.jsonl, a line for each document, and digest.md. A document that has no summary is reported in
both; the job fails only if none has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from worker.catalog import Catalog, Model, Usage
from worker.errors import Fault, InvalidInput
from worker.kinds import answers, fields, text
from worker.kinds.kind import Parent, ParentKind, Piece, Store
from worker.kinds.summary import prompts, results, rounds
from worker.kinds.summary.input import OTHER_WAYS, Summary
from worker.kinds.summary.page import Page
from worker.kinds.summary.results import COUNTED, DIGEST, Done, NoSummary

NAME = "summary"

_POINTERS = {"/input/response_format": "/input/style"}  # of a call's fields, where ours have another name
_RULES_TOKENS = 300  # of a call's instructions beside its document
_LISTED = 100  # documents that the digest names as not summarized, or read in part


def check(catalog: Catalog, model: Model, raw: Any, region: str | None) -> Summary:
    """The input, complete; raises InvalidInput with every fault."""
    # The model's defaults are those of a chat: here max_tokens follows from the summary's length.
    wanted = fields.check(NAME, Summary, catalog, model.model_copy(update={"default": {}}), raw, region)
    joining = _joining(catalog, model, wanted, region)
    wanted = wanted.model_copy(update={"reduce_model": joining.id})
    for each in {model.id: model, joining.id: joining}.values():
        _try(catalog, each, wanted)
    return wanted


def estimate(model: Model, wanted: Summary) -> Usage:
    """The documents read and summarized, if all their texts are in the input; nothing if some are to be fetched."""
    texts = [document.text for document in wanted.documents if document.text is not None]
    if len(texts) < len(wanted.documents):
        return Usage()
    read = sum(map(text.tokens, texts)) + _RULES_TOKENS * len(texts)
    most = prompts.whole(wanted, "").max_tokens
    units = {"input_tokens": read, "output_tokens": most * len(texts), "thinking": bool(wanted.enable_thinking)}
    return Usage({**units, "tier": model.token_tier(min(read / len(texts), prompts.FULL))})  # of one call


def words(wanted: Summary) -> str:
    """ "40 documents, bullets", "a prefix, json"."""
    style = wanted.style if isinstance(wanted.style, str) else "json"
    prefixes = sum(document.prefix is not None for document in wanted.documents)
    counts = ((len(wanted.documents) - prefixes, "document", ""), (prefixes, "prefix", "e"))
    return ", ".join([*_counted(counts), style, *(["digest"] if wanted.digest else [])])


def variant(wanted: Summary) -> str | None:
    """The other way to have its model that the input insists on; None where calls will do too."""
    mode = wanted.mode
    return str(mode) if mode in OTHER_WAYS else None


def assemble(parent: Parent, store: Store) -> Iterator[Piece]:
    """summaries.jsonl, and digest.md where it was asked for."""
    page = rounds.reopened(parent, store)
    ends = page.outcomes()
    yield Piece("summaries", "jsonl", "application/jsonl", _lines(page, ends))
    if page.wanted.digest is not None:
        yield Piece("digest", "md", "text/markdown; charset=utf-8", [_digest(page, ends).encode()])


def usage(parent: Parent) -> dict[str, Any]:
    """Documents, those that failed, calls that were answered, and tokens; a job without a summary has no counts."""
    if "counts" in parent.note:
        return dict(parent.note["counts"])
    count = parent.note.get("documents", 0)
    used = [child.usage or {} for child in parent.ended]
    tokens = {name: sum(int(answers.number(usage.get(name)) or 0) for usage in used) for name in COUNTED}
    return {"documents": count, "failed": count, "calls": len(list(filter(None, used))), **tokens}


def _counted(counts: Iterable[tuple[int, str, str]]) -> list[str]:
    return [f"{count:,} {name}{f'{plural}s' if count > 1 else ''}" for count, name, plural in counts if count]


def _joining(catalog: Catalog, model: Model, wanted: Summary, region: str | None) -> Model:
    """The model that joins what was read: the one that is named, else the catalog's default."""
    try:
        found = catalog.offered(wanted.reduce_model or catalog.default("reduce") or model.id)
    except InvalidInput as error:
        raise _fault("reduce_model", error.faults[0].code, error.faults[0].message) from None
    if found.end and found.retired_by == "notice":
        raise _fault("reduce_model", "retired_model", found.end)
    if NAME not in found.kinds or (region is not None and found.region(region) is None):
        raise _fault("reduce_model", "wrong_model", f"{found.id} makes no summaries here")
    return found


def _try(catalog: Catalog, model: Model, wanted: Summary) -> None:
    """Raises InvalidInput where a call to the model, with what is wanted of it, would be refused."""
    if wanted.max_tokens and model.max_output and wanted.max_tokens > model.max_output:
        raise _fault("max_tokens", "too_many", f"{model.id} writes at most {model.max_output:,} tokens")
    try:
        prompts.asked(catalog, model, prompts.whole(wanted, "a document"), wanted)
    except InvalidInput as error:
        faults = [Fault(_POINTERS.get(each.pointer, each.pointer), each.code, each.message) for each in error.faults]
        raise InvalidInput(faults) from None


def _fault(name: str, code: str, message: str) -> InvalidInput:
    return InvalidInput([Fault(f"/input/{name}", code, message)])


def _lines(page: Page, ends: list[Done | NoSummary]) -> Iterator[bytes]:
    for document, (item, end) in enumerate(zip(page.items, ends, strict=True)):
        tree = page.trees.get(document)
        warning = page.warned(document)
        warnings = {"warnings": [warning]} if warning else {}
        usage = results.spent({document: tree}) if tree else None
        line = {"id": item.id, **_line(end), **warnings, "usage": usage}
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _line(end: Done | NoSummary) -> dict[str, Any]:
    if isinstance(end, NoSummary):
        return {"summary": None, "error": end.as_json()}
    # `is_cut` marks a summary that reached its longest, so that it is not taken for a complete one
    return {"summary": end.value, "error": None, **({"is_cut": True} if end.is_cut else {})}


def _digest(page: Page, ends: list[Done | NoSummary]) -> str:
    missing = [(item, end) for item, end in zip(page.items, ends, strict=True) if isinstance(end, NoSummary)]
    unsummarized = [f"- {item.id}: {end.message}" for item, end in missing[:_LISTED]]
    if len(missing) > _LISTED:
        unsummarized.append(f"- and {len(missing) - _LISTED:,} more")
    warned = [(item.id, page.warned(document)) for document, item in enumerate(page.items)]
    in_part = [f"- {name}: {warning}" for name, warning in warned if warning][:_LISTED]
    sections = [*_section("Not summarized", unsummarized), *_section("Read in part", in_part)]
    return "\n".join([_digest_text(page), *sections, ""])


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _digest_text(page: Page) -> str:
    tree = page.trees[DIGEST]
    if tree.final and tree.final.content:
        return tree.final.content
    failure = page.failed(DIGEST) or tree.failure
    return f"No digest could be made: {failure.message if failure else 'there is no summary'}."


KIND = ParentKind(
    name=NAME,
    input=Summary,
    check=check,
    estimate=estimate,
    words=words,
    keyed=("documents",),
    models=("reduce_model",),
    variant=variant,
    expand=rounds.expand,
    assemble=assemble,
    usage=usage,
    all_or_none=False,
    cached=True,
)
