"""Chat completions in the words of the compatible interface: a body read, an answer as one document or as chunks.

Source: Alibaba docs, "OpenAI-compatible Chat"; recorded answers where these differ.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ops.sandbox import asking
from ops.sandbox.asking import Messages
from ops.sandbox.models import Model
from ops.sandbox.refusals import Refusal, invalid
from ops.sandbox.text import Answer

APART = ("model", "messages", "stream_options")  # all other keys of a body are parameters
SEED_LIMIT = 2**31 - 1
PIECES = 40  # of an answer that is streamed, at most
PIECE_CHARACTERS = 8  # at least


@dataclass(frozen=True)
class Ask:
    """What a body asks."""

    model: str
    messages: Messages
    parameters: dict[str, Any]  # under their native names
    is_streamed: bool
    tells_usage: bool  # at the end of a stream

    @property
    def words(self) -> str:
        """All that the messages say, for the ledger and the faults."""
        return "\n".join(asking.words(message) for message in self.messages if isinstance(message, dict))


def parsed(body: bytes) -> Any:
    """Return a body as JSON, or raise the Refusal of one that is not."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "BadRequest.IllegalInput", "The request body is not valid JSON.") from None
    # JSON can carry halves of surrogate pairs; no answer and no file could.
    is_plain = b"\\u" not in body
    return document if is_plain else json.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))


def read(body: Any) -> Ask:
    """Return what a body asks; raise the Refusal of one that asks nothing."""
    if not isinstance(body, dict):
        raise Refusal(400, "BadRequest.IllegalInput", "The request body is not valid JSON.")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Refusal(400, "BadRequest.EmptyModel", "you must provide a model parameter")
    is_streamed, options = body.get("stream") is True, body.get("stream_options")
    if options and not is_streamed:
        raise invalid("<400> InternalError.Algo.InvalidParameter: stream_options may be set only with stream: true.")
    seed = body.get("seed")
    if isinstance(seed, int) and seed > SEED_LIMIT:
        raise invalid(f"<400> InternalError.Algo.InvalidParameter: Range of seed should be [0, {SEED_LIMIT}]")
    messages = body.get("messages")
    return Ask(
        model=body["model"],
        messages=messages if isinstance(messages, list) else [],
        parameters={key: value for key, value in body.items() if key not in APART} | {"stream": is_streamed},
        is_streamed=is_streamed,
        tells_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def find(models: Mapping[str, Model], named: str, makes: str = "text") -> Model:
    """Return the model that is asked, which makes text or embeddings, or raise the Refusal of one that is not there."""
    model = models.get(named)
    if model is None or model.makes != makes:
        message = f"The model `{named}` does not exist or you do not have access to it."
        raise Refusal(404, "ModelNotFound", message)
    return model


def completion(answer: Answer, model: str, request_id: str, created: float) -> dict[str, Any]:
    """Return an answer as one document."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    choice = {"finish_reason": answer.finish_reason, "index": 0, "logprobs": answer.logprobs, "message": message}
    return _frame("chat.completion", model, request_id, created) | {"choices": [choice], "usage": usage(answer)}


def chunks(answer: Answer, ask: Ask, request_id: str, created: float) -> Iterator[dict[str, Any]]:
    """Yield an answer as the chunks of a stream; the usage comes last, and only if it was asked for."""
    frame = _frame("chat.completion.chunk", ask.model, request_id, created) | {"usage": None}
    yield frame | {"choices": [_choice({"role": "assistant", "content": ""})]}
    for delta in _deltas(answer):
        yield frame | {"choices": [_choice(delta)]}
    yield frame | {"choices": [_choice({"content": ""}, answer.finish_reason)]}
    if ask.tells_usage:
        yield frame | {"choices": [], "usage": usage(answer)}


def usage(answer: Answer) -> dict[str, Any]:
    """Return what an answer is paid for."""
    told: dict[str, Any] = {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens} | details(answer),
    }
    if answer.reasoning_tokens:
        told["completion_tokens_details"] = {"reasoning_tokens": answer.reasoning_tokens}
    return told | ({"plugins": {"search": {"count": answer.searches, "strategy": "agent"}}} if answer.searches else {})


def details(answer: Answer) -> dict[str, int]:
    """Return the tokens of the input by what they are of, where a message showed something."""
    if not answer.shown_tokens:
        return {}
    words = answer.input_tokens - sum(answer.shown_tokens.values())
    return {"text_tokens": words, **{f"{sort}_tokens": count for sort, count in answer.shown_tokens.items()}}


def _frame(kind: str, model: str, request_id: str, created: float) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request_id}",
        "object": kind,
        "created": int(created),
        "model": model,
        "system_fingerprint": None,
    }


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"delta": delta, "finish_reason": finish_reason, "index": 0, "logprobs": None}


def _deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    for piece in _pieces(answer.reasoning):
        yield {"content": None, "reasoning_content": piece}
    for piece in _pieces(answer.content):
        yield {"content": piece}
    for call in answer.tool_calls:
        function, index = call["function"], call["index"]
        opened = {"name": function["name"], "arguments": ""}
        yield {"content": None, "tool_calls": [call | {"function": opened}]}
        for piece in _pieces(function["arguments"]):
            more = {"function": {"arguments": piece}, "id": "", "index": index, "type": "function"}
            yield {"content": None, "tool_calls": [more]}


def _pieces(whole: str) -> Iterator[str]:
    size = max(PIECE_CHARACTERS, -(-len(whole) // PIECES))
    return (whole[start : start + size] for start in range(0, len(whole), size))
