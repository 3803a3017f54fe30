"""The outputs: a line for each document in summaries.jsonl, and the digest in digest.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from worker.kinds import answers
from worker.kinds.kind import Parent, Piece, Store
from worker.kinds.summary import rounds, trees
from worker.kinds.summary.endings import Done
from worker.kinds.summary.portion import Portion
from worker.kinds.summary.trees import COUNTED, DIGEST, Slip

_LISTED = 100  # documents without a summary that the digest names


def assemble(parent: Parent, store: Store) -> Iterator[Piece]:
    """summaries.jsonl, and digest.md where it was asked for."""
    wanted = rounds.read(parent)
    portion = Portion(parent, store, wanted, rounds.documents(parent, store), dict(parent.note))
    ends = portion.outcomes()
    yield Piece("summaries", "jsonl", "application/jsonl", _lines(portion, ends))
    if wanted.digest is not None:
        yield Piece("digest", "md", "text/markdown; charset=utf-8", [_digest(portion, ends).encode()])


def usage(parent: Parent) -> dict[str, Any]:
    """Documents, those that failed, calls that were answered, and tokens; a job without a summary has no counts."""
    if "counts" in parent.note:
        return dict(parent.note["counts"])
    count = parent.note.get("documents", 0)
    told = [child.usage or {} for child in parent.ended]
    tokens = {name: sum(int(answers.number(usage.get(name)) or 0) for usage in told) for name in COUNTED}
    return {"documents": count, "failed": count, "calls": len(list(filter(None, told))), **tokens}


def _lines(portion: Portion, ends: list[Done | Slip]) -> Iterator[bytes]:
    for document, (item, end) in enumerate(zip(portion.items, ends, strict=True)):
        tree = portion.trees.get(document)
        warned = portion.warned(document)
        part = {"warnings": [warned]} if warned else {}
        line = {"id": item.id, **_told(end), **part, "usage": trees.spent({document: tree}) if tree else None}
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _told(end: Done | Slip) -> dict[str, Any]:
    if isinstance(end, Slip):
        return {"summary": None, "error": end.as_json()}
    # a summary that ended for want of tokens is told apart from one that says all it wanted
    return {"summary": end.value, "error": None, **({"is_cut": True} if end.is_cut else {})}


def _digest(portion: Portion, ends: list[Done | Slip]) -> str:
    missing = [(item, end) for item, end in zip(portion.items, ends, strict=True) if isinstance(end, Slip)]
    lines = [f"- {item.id}: {slip.message}" for item, slip in missing[:_LISTED]]
    more = [f"- and {len(missing) - _LISTED:,} more"] if len(missing) > _LISTED else []
    listed = ["", "## Not summarized", "", *lines, *more] if lines else []
    return "\n".join([_body(portion), *listed, *_in_part(portion), ""])


def _in_part(portion: Portion) -> list[str]:
    warned = [(item.id, portion.warned(document)) for document, item in enumerate(portion.items)]
    lines = [f"- {name}: {warning}" for name, warning in warned if warning][:_LISTED]
    return ["", "## Read in part", "", *lines] if lines else []


def _body(portion: Portion) -> str:
    tree = portion.trees[DIGEST]
    if tree.final and tree.final.content:
        return tree.final.content
    slip = portion.slipped(DIGEST) or tree.slip
    return f"No digest could be made: {slip.message if slip else 'there is no summary'}."
