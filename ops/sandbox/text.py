"""The text models' answers: no model, and yet honest work.

A prompt is answered with a summary of the documents in it, as prose, bullets, a headline, or JSON of the form asked
for; a tool is called when the call says so. The same call always gets the same answer.
"""

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ops.sandbox import asking, extracts, forms, parts, tokens
from ops.sandbox.asking import Messages, check
from ops.sandbox.extracts import Document
from ops.sandbox.forms import Matter
from ops.sandbox.models import Model
from ops.sandbox.parts import Shown

__all__ = ["Answer", "Cache", "Messages", "answer", "check"]

CACHED_FROM = 1024  # tokens of a system prompt
CACHED_PROMPTS = 1000
BULLETS = ("bullet", "要点")
HEADLINE = ("headline", "标题")


@dataclass(frozen=True)
class Answer:
    """What a model says, and what it is paid for."""

    content: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str  # stop, length or tool_calls
    input_tokens: int
    output_tokens: int  # reasoning included
    reasoning_tokens: int
    cached_tokens: int  # of the input, seen before
    shown_tokens: Mapping[str, int] = field(default_factory=dict)  # of the input: image, video, audio, where shown
    searches: int = 0
    logprobs: dict[str, Any] | None = None  # None: not asked for


class Cache:
    """The implicit cache of one account: system prompts of 1,024 tokens and more, by model."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str, bytes], None] = OrderedDict()

    def hit(self, owner: str, model: Model, messages: Messages) -> int:
        """Return how many of the input's tokens were seen before, and remember them."""
        system = asking.words(messages[0]) if messages[0]["role"] == "system" else ""
        size = tokens.count(system) if model.caches else 0
        if size < CACHED_FROM:
            return 0
        key = (owner, model.id, hashlib.sha256(system.encode("utf-8", "replace")).digest())
        was_seen = key in self._seen
        self._seen[key] = None
        if len(self._seen) > CACHED_PROMPTS:
            self._seen.popitem(last=False)
        return size if was_seen else 0


def answer(model: Model, messages: Messages, asked: dict[str, Any], seed: int, cached_tokens: int = 0) -> Answer:
    """Return the answer to a call that `check` lets pass; `cached_tokens` is what a Cache says of it."""
    instructions, documents = _matter(messages)
    shown = parts.shown(model, messages)
    if shown:  # no model looks at them: the answer says what came
        documents = [Document("", " ".join([_saw(shown), *(document.text for document in documents)]))]
    shown_tokens: Counter[str] = Counter()
    for each in shown:
        shown_tokens[each.sort] += each.tokens
    called = _called(messages, asked, documents, seed)
    said = "" if called else _stopped(_said(instructions, documents, asked), asked.get("stop") or [])
    content = tokens.cut(said, asking.most_tokens(model, asked))
    reasoning = _reasoning(documents, asked) if asking.thinks(model, asked) else ""
    spoken = content + "".join(call["function"]["arguments"] for call in called)
    reasoning_tokens = tokens.count(reasoning)
    return Answer(
        content=content,
        reasoning=reasoning,
        tool_calls=called,
        finish_reason=_finish_reason(called, asked, is_cut=len(content) < len(said)),
        input_tokens=asking.input_tokens(messages, asked) + shown_tokens.total(),
        shown_tokens=shown_tokens,
        output_tokens=tokens.count(spoken) + reasoning_tokens,
        reasoning_tokens=reasoning_tokens,
        cached_tokens=cached_tokens,
        searches=1 if asked.get("enable_search") and model.search_price else 0,
        logprobs=_logprobs(content, asked.get("top_logprobs") or 0) if asked.get("logprobs") else None,
    )


def _saw(shown: list[Shown]) -> str:
    """Return what was shown, in its order, so that a client can tell that it arrived: "image a.png, audio b.wav."."""
    names = (f"{each.sort} {_name(each.link)}" for each in shown)
    return f"I was shown {', '.join(names)}."


def _name(link: str) -> str:
    """Return the file's name that a link ends with; of what stands in the link itself, its digest."""
    if link.startswith("data:"):
        return f"inline {hashlib.sha256(link.encode()).hexdigest()[:12]}"
    return PurePosixPath(urlsplit(link).path).name[:80]


def _logprobs(content: str, alternatives: int) -> dict[str, Any]:
    """Return the likelihood of each word: all are equally likely here."""
    words = [{"token": word, "logprob": -0.5, "bytes": list(word.encode())} for word in content.split()]
    return {"content": [word | {"top_logprobs": [dict(word)] * min(alternatives, 1)} for word in words]}


def _matter(messages: Messages) -> tuple[str, list[Document]]:
    """Return what a call instructs and the documents it is about: those of its last message, or the message."""
    before = "\n\n".join(asking.words(message) for message in messages[:-1])
    instructions, documents = extracts.split(asking.words(messages[-1]))
    return f"{before}\n\n{instructions}", documents or [Document("", instructions)]


def _said(instructions: str, documents: list[Document], asked: dict[str, Any]) -> str:
    if asking.wants_json(asked):
        schema = forms.wanted(instructions, asked["response_format"])
        return json.dumps(forms.filled(schema, Matter(documents)), ensure_ascii=False)
    parts = [_prose(document, instructions.lower()) for document in documents]
    return "\n\n".join(part for part in parts if part)


def _stopped(text: str, stops: str | list[str]) -> str:
    """Return a text up to the first of the words that shall end it."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, 1)[0]
    return text


def _prose(document: Document, instructions: str) -> str:
    sentences = document.sentences()
    if any(word in instructions for word in BULLETS):
        text = "\n".join(f"- {sentence}" for sentence in sentences)
        return f"{document.id}:\n{text}" if document.id else text
    if any(word in instructions for word in HEADLINE):
        sentences = [sentence.rstrip(".。") for sentence in sentences[:1]]
    text = " ".join(sentences)
    return f"{document.id}: {text}" if document.id else text


def _reasoning(documents: list[Document], asked: dict[str, Any]) -> str:
    first = documents[0].sentences()
    thought = (
        f"I am given {len(documents)} text(s). The first begins: {first[0] if first else 'with nothing'} "
        "Each paragraph opens with what matters, so I take the first sentence of each."
    )
    budget = asked.get("thinking_budget")
    return tokens.cut(thought, int(budget)) if budget else thought


def _called(messages: Messages, asked: dict[str, Any], documents: list[Document], seed: int) -> list[dict[str, Any]]:
    chosen = _chosen(messages, asked)
    if chosen is None:
        return []
    function = chosen["function"]
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    arguments = json.dumps(forms.filled(schema, Matter(documents)), ensure_ascii=False)
    digest = hashlib.sha256(f"{seed} {function['name']} {arguments}".encode("utf-8", "replace")).hexdigest()
    called = {"name": function["name"], "arguments": arguments}
    return [{"function": called, "id": f"call_{digest[:24]}", "index": 0, "type": "function"}]


def _chosen(messages: Messages, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the tool to call: the one that the call names, or that the last words of the user name."""
    tools: list[dict[str, Any]] = asked.get("tools") or []
    choice = asked.get("tool_choice") or "auto"
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
        return next((tool for tool in tools if tool["function"]["name"] == name), None)
    if choice == "none" or messages[-1]["role"] != "user":
        return None
    said = asking.words(messages[-1])
    return next((tool for tool in tools if tool["function"]["name"] in said), None)


def _finish_reason(called: list[dict[str, Any]], asked: dict[str, Any], *, is_cut: bool) -> str:
    if called:
        # As recorded: a tool that the call names ends with `stop`.
        return "stop" if isinstance(asked.get("tool_choice"), dict) else "tool_calls"
    return "length" if is_cut else "stop"
