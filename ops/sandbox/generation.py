"""Text calls of the native interface: what they may ask, and what they are told, at once or frame by frame.

Source: Alibaba docs, "Qwen API reference", DashScope; the frames as recorded.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ops.sandbox import asking, orders, text, tokens
from ops.sandbox.models import Call, Model
from ops.sandbox.orders import Order
from ops.sandbox.refusals import invalid
from ops.sandbox.text import Answer

PIECES = 40  # of an answer that is streamed, at most
PIECE_CHARACTERS = 8  # at least
WHOLE_ONLY = "This model only support incremental_output set to True."
MESSAGE_ONLY = "result_format must be message when enable_thinking is true"


def messages(document: dict[str, Any]) -> Any:
    """Return the messages of a body, which may give a prompt alone."""
    given = document["input"]
    if "messages" not in given and isinstance(given.get("prompt"), str):
        return [{"role": "user", "content": given["prompt"]}]
    return given.get("messages")


def asked(document: dict[str, Any], streams: bool) -> dict[str, Any]:
    """Return the parameters of a body as the text engine reads them."""
    parameters: dict[str, Any] = document["parameters"]
    return parameters | {"stream": streams}


def check(document: dict[str, Any], model: Model, call: Call, streams: bool) -> Order:
    """Return the order that a body places, or raise the Refusal for what is wrong in it."""
    parameters = asked(document, streams)
    text.check(model, messages(document), parameters)
    thinks = asking.thinks(model, parameters)
    form = parameters.get("result_format") or ("message" if model.is_message or thinks else "text")
    if call.name == "multimodal":
        form = "parts"
    if form not in ("message", "text", "parts"):
        raise invalid("result_format must be message or text")
    if thinks and form == "text":
        raise invalid(MESSAGE_ONLY)
    is_incremental = parameters.get("incremental_output")
    if streams and thinks and is_incremental is False:
        raise invalid(f"<400> InternalError.Algo.InvalidParameter: {WHOLE_ONLY}")
    if is_incremental is None:
        is_incremental = model.is_incremental or thinks
    prompt = orders.prompt_of(document)
    return Order(model.id, call.name, prompt, pictures=0, form=form, is_incremental=bool(is_incremental))


def output(answer: Answer, form: str) -> dict[str, Any]:
    """Return what stands under `output`."""
    if form == "text":
        return {"finish_reason": answer.finish_reason, "text": answer.content}
    content = [{"text": answer.content}] if form == "parts" else answer.content
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    told = {"logprobs": answer.logprobs} if answer.logprobs else {}
    return {"choices": [{"finish_reason": answer.finish_reason, "message": message} | told]}


def usage(answer: Answer) -> dict[str, Any]:
    """Return what an answer is paid for."""
    told: dict[str, Any] = {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }
    told |= {f"{sort}_tokens": count for sort, count in answer.shown_tokens.items()}
    if answer.reasoning_tokens:
        told["output_tokens_details"] = {"reasoning_tokens": answer.reasoning_tokens}
    return told


def finished(answer: Answer, form: str, request_id: str) -> dict[str, Any]:
    """Return an answer as one document."""
    return {"output": output(answer, form), "usage": usage(answer), "request_id": request_id}


def frames(answer: Answer, order: Order, request_id: str) -> Iterator[dict[str, Any]]:
    """Yield an answer as the documents of a stream: differences, or all that was said so far; usage adds up."""
    reasoning = content = ""
    for thought, said in _parts(answer):
        reasoning, content = reasoning + thought, content + said
        told = (thought, said) if order.is_incremental else (reasoning, content)
        yield finished(_unfinished(answer, told, reasoning, content), order.form, request_id)
    told = ("", "") if order.is_incremental else (reasoning, content)
    yield finished(replace(answer, reasoning=told[0], content=told[1]), order.form, request_id)


def _unfinished(answer: Answer, told: tuple[str, str], reasoning: str, content: str) -> Answer:
    thought = tokens.count(reasoning)
    return replace(
        answer,
        reasoning=told[0],
        content=told[1],
        tool_calls=[],
        finish_reason="null",
        output_tokens=thought + tokens.count(content),
        reasoning_tokens=thought,
    )


def _parts(answer: Answer) -> Iterator[tuple[str, str]]:
    """Yield an answer's pieces, of the reasoning and then of the content."""
    yield from ((piece, "") for piece in _pieces(answer.reasoning))
    yield from (("", piece) for piece in _pieces(answer.content))


def _pieces(whole: str) -> Iterator[str]:
    size = max(PIECE_CHARACTERS, -(-len(whole) // PIECES))
    return (whole[start : start + size] for start in range(0, len(whole), size))
