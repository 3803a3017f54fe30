"""The lines of a batch's input file: whether they may run at all, and what becomes of each.

A flaw of one line fails the whole batch before anything runs; a call that is refused fails its line alone.
Source: Alibaba docs, "OpenAI-compatible Batch"; recorded answers where these differ.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ops.sandbox import asking, chat, embedding, envelope, text
from ops.sandbox.faults import Rule
from ops.sandbox.models import Model
from ops.sandbox.refusals import Refusal, invalid
from ops.sandbox.text import Answer

CHAT, TEST, EMBEDDINGS = "/v1/chat/completions", "/v1/chat/ds-test", "/v1/embeddings"
ENDPOINTS = (CHAT, TEST, EMBEDDINGS)
TEST_MODEL = "batch-test-model"  # answers without thinking about it, and for nothing
TEST_LINES, TEST_BYTES = 100, 1_000_000
LINE_BYTES = 6_000_000
FLAWS_TOLD = 100
Pick = Callable[[str, str], Rule | None]  # the fault that a line meets, by its model and its words

TESTED = Answer("This is a test result.", "", [], "stop", 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Line:
    """One call of a batch."""

    custom_id: str
    body: dict[str, Any]
    url: str = CHAT


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with an input file, as `errors.data` has it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None  # from 1

    def document(self) -> dict[str, Any]:
        """Return the flaw as a client is told it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one line."""

    row: dict[str, Any]  # of the output or the error file
    answer: Answer | None  # None: it was refused, and costs nothing


def check(content: bytes, endpoint: str, models: Mapping[str, Model], most: int) -> tuple[list[Line], list[Flaw]]:
    """Return the lines of an input file, or the flaws that forbid to run it."""
    rows = content.splitlines()
    before = _Before(endpoint, models)
    flaws = list(_of_file(rows, most)) or list(_of_lines(rows, before))
    return ([], flaws[:FLAWS_TOLD]) if flaws else (list(before.lines.values()), [])


def run(line: Line, batch_id: str, models: Mapping[str, Model], pick: Pick, seed: int, now: float) -> Outcome:
    """Return what a line's call is answered; the same line of a batch always gets the same answer, faults apart."""
    request_id = _request_id(line, batch_id)
    try:
        if line.url == EMBEDDINGS:
            return _embedded(line, request_id, models, pick)
        ask = chat.read(line.body)
        answer = _answer(ask, models, pick(ask.model, ask.words), seed)
    except Refusal as refusal:
        return _outcome(line, request_id, refusal.status, {"error": envelope.error(refusal)}, None)
    return _outcome(line, request_id, 200, chat.completion(answer, ask.model, request_id, now), answer)


def skipped(line: Line, batch_id: str, code: str, message: str) -> dict[str, Any]:
    """Return the error file's row of a line that was not run."""
    return _row(line, _request_id(line, batch_id), None) | {"error": {"code": code, "message": message}}


def dumped(row: dict[str, Any]) -> str:
    """Return a row as the files have it."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _answer(ask: chat.Ask, models: Mapping[str, Model], rule: Rule | None, seed: int) -> Answer:
    if rule is not None:
        raise Refusal(*rule.error)
    if ask.model == TEST_MODEL:
        return TESTED
    model = chat.find(models, ask.model)
    if model.batch_input and asking.input_tokens(ask.messages, ask.parameters) > model.batch_input:
        raise invalid(f"Range of input length should be [1, {model.batch_input}]")
    # Nothing is streamed in a batch, and yet its calls may think; its input is never found in a cache.
    text.check(model, ask.messages, ask.parameters | {"stream": True})
    return text.answer(model, ask.messages, ask.parameters, seed)


def _embedded(line: Line, request_id: str, models: Mapping[str, Model], pick: Pick) -> Outcome:
    document = embedding.native(line.body)
    order = embedding.check(document, chat.find(models, document["model"], "embedding"))
    if (rule := pick(order.model, order.prompt)) is not None:
        raise Refusal(*rule.error)
    bill = Answer("", "", [], "stop", embedding.used(order), 0, 0, 0)
    return _outcome(line, request_id, 200, embedding.completion(order, request_id), bill)


def _outcome(line: Line, request_id: str, status: int, body: dict[str, Any], answer: Answer | None) -> Outcome:
    return Outcome(_row(line, request_id, {"status_code": status, "request_id": request_id, "body": body}), answer)


def _request_id(line: Line, batch_id: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{batch_id} {line.custom_id}"))


def _row(line: Line, request_id: str, response: dict[str, Any] | None) -> dict[str, Any]:
    return {"id": request_id, "custom_id": line.custom_id, "response": response, "error": None}


@dataclass
class _Before:
    """What a line is held against: the endpoint, and the lines before it."""

    endpoint: str
    models: Mapping[str, Model]
    lines: dict[str, Line] = field(default_factory=dict)  # by custom_id
    model: str | None = None
    thinks: bool | None = None


def _of_file(rows: list[bytes], most: int) -> Iterator[Flaw]:
    if not rows:
        yield Flaw("empty_file", "The input file is empty.")
    if len(rows) > most:
        yield Flaw("too_many_tasks", f"The input file has more than {most} lines.")


def _of_lines(rows: list[bytes], before: _Before) -> Iterator[Flaw]:
    for number, row in enumerate(rows, 1):
        flaw = _of_line(row, before)
        if flaw is not None:
            yield replace(flaw, line=number)
    if before.model == TEST_MODEL and (len(rows) > TEST_LINES or sum(map(len, rows)) > TEST_BYTES):
        yield Flaw("too_many_tasks", f"A test file has {TEST_LINES} lines and 1 MB at most.")


def _of_line(row: bytes, before: _Before) -> Flaw | None:
    document = _parsed(row)
    if document is None:
        return Flaw("invalid_json_line", "This line is not parseable as valid JSON.")
    flaw = next(filter(None, (check(document, before) for check in CHECKS)), None)
    if flaw is None:
        line = Line(document["custom_id"], document["body"], document["url"])
        before.lines[line.custom_id] = line
        before.model = before.model or line.body["model"]
        before.thinks = line.body.get("enable_thinking")
    return flaw


def _parsed(row: bytes) -> dict[str, Any] | None:
    try:
        document = chat.parsed(row) if len(row) <= LINE_BYTES else None
    except Refusal:
        return None
    return document if isinstance(document, dict) else None


def _shape(document: dict[str, Any], _before: _Before) -> Flaw | None:
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if not isinstance(document.get(name), kind) or not document[name]:
            return Flaw("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    if not isinstance(document["body"].get("model"), str):
        return Flaw("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model")
    if document["method"] != "POST":
        return Flaw("invalid_method", "The method must be POST.", "method")
    return None


def _url(document: dict[str, Any], before: _Before) -> Flaw | None:
    url, model = document["url"], document["body"]["model"]
    if url not in ENDPOINTS:
        return Flaw("url_not_found", f"The provided url '{url}' is not supported by the Batch API.", "url")
    if (url == TEST) != (model == TEST_MODEL):
        return Flaw("mismatched_test_url", f"The provided URL '{url}' does not match the test model '{model}'.", "url")
    found = before.models.get(model)
    if found is not None and (url == EMBEDDINGS) != (found.makes == "embedding"):
        message = f"The provided url '{url}' is not one of the model '{model}'."
        return Flaw("mismatched_url", message, "url")
    if url != before.endpoint:
        return Flaw("mismatched_url", f"The provided url '{url}' does not match the batch's endpoint.", "url")
    return None


def _model(document: dict[str, Any], before: _Before) -> Flaw | None:
    named = document["body"]["model"]
    model = before.models.get(named)
    if named != TEST_MODEL and (model is None or not model.batch):
        return Flaw("model_not_found", f"The provided model '{named}' is not supported by the Batch API.", "body.model")
    if before.model not in (None, named):
        message = f"The model '{named}' of this line does not match the rest of the batch: one model per file."
        return Flaw("mismatched_model", message, "body.model")
    return None


def _thinking(document: dict[str, Any], before: _Before) -> Flaw | None:
    """The flaw of a second thinking mode: documented as forbidden, the code is ours."""
    asked = document["body"].get("enable_thinking")
    if not before.lines or asked == before.thinks:
        return None
    message = "The thinking mode of this line does not match the rest of the batch: one mode per file."
    return Flaw("mismatched_thinking_mode", message, "body.enable_thinking")


def _custom_id(document: dict[str, Any], before: _Before) -> Flaw | None:
    if document["custom_id"] not in before.lines:
        return None
    message = f"The custom_id '{document['custom_id']}' of this line is that of another: it must be unique in a file."
    return Flaw("duplicate_custom_id", message, "custom_id")


CHECKS: tuple[Callable[[dict[str, Any], _Before], Flaw | None], ...] = (_shape, _url, _model, _thinking, _custom_id)
