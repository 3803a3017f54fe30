"""What a text call asks, checked: the messages, the parameters' ranges, and the rules of thinking and JSON.

`asked` are the parameters under their native names, and `stream`, true for a streamed call. Texts of refusals:
Alibaba docs, "Error messages"; recorded answers for thinking.
"""

import json
from collections.abc import Callable
from typing import Any

from ops.sandbox import parts, tokens
from ops.sandbox.models import Model, Thinking
from ops.sandbox.refusals import Refusal, invalid

ROLES = ("system", "assistant", "user", "tool", "function")
NOT_STREAMED = "parameter.enable_thinking must be set to false for non-streaming calls"
JSON_WORD = "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
ORPHAN = 'messages with role "tool" must be a response to a preceeding message with "tool_calls".'
SEED_LIMIT = 2**63 - 1

Messages = list[dict[str, Any]]

# Parameter → whether a number is in its range, and the range in words.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda number: 0 <= number < 2, "Temperature should be in [0.0, 2.0)"),
    "top_p": (lambda number: 0 < number <= 1, "Range of top_p should be (0.0, 1.0]"),
    "top_k": (lambda number: number >= 0, "Parameter top_k be greater than or equal to 0"),
    "repetition_penalty": (lambda number: number > 0, "Repetition_penalty should be greater than 0.0"),
    "presence_penalty": (lambda number: -2 <= number <= 2, "Presence_penalty should be in [-2.0, 2.0]"),
    "n": (lambda number: 1 <= number <= 4, "Range of n should be [1, 4]"),
    "seed": (lambda number: 0 <= number <= SEED_LIMIT, f"Range of seed should be [0, {SEED_LIMIT}]"),
    "top_logprobs": (lambda number: 0 <= number <= 5, "Range of top_logprobs should be [0, 5]"),
    "thinking_budget": (lambda number: number >= 1, "Parameter thinking_budget should be greater than 0"),
}


def check(model: Model, messages: Any, asked: dict[str, Any]) -> None:
    """Raise the Refusal that a call earns; return where the provider would answer it."""
    _messages(messages)
    parts.shown(model, messages)
    if model.streams_only and not asked.get("stream"):
        raise _algo("This model only support stream mode, please enable the stream parameter to access the model. ")
    _ranges(model, asked)
    _stops(asked.get("stop") or [])
    _thinking(model, asked)
    _form(model, messages, asked)
    _tools(asked)
    _length(model, messages, asked)


def thinks(model: Model, asked: dict[str, Any]) -> bool:
    """Return whether a call thinks: as its model always does, as it says, or as its model does by default."""
    if model.thinking is not Thinking.HYBRID:
        return model.thinking is Thinking.ALWAYS
    given = asked.get("enable_thinking")
    return model.thinks if given is None else bool(given)


def most_tokens(model: Model, asked: dict[str, Any]) -> int:
    """Return how many tokens an answer may have, reasoning apart."""
    given = asked.get("max_tokens") or asked.get("max_completion_tokens")
    return int(given or model.max_output)


def wants_json(asked: dict[str, Any]) -> bool:
    """Return whether a call asks for JSON."""
    given = asked.get("response_format")
    return isinstance(given, dict) and given.get("type") in ("json_object", "json_schema")


def words(message: dict[str, Any]) -> str:
    """Return the text of a message, whose content is a text or a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def input_tokens(messages: Messages, asked: dict[str, Any]) -> int:
    """Return the tokens of all messages and of the tools offered."""
    tools = json.dumps(asked["tools"], ensure_ascii=False) if asked.get("tools") else ""
    return sum(tokens.count(words(message)) for message in messages) + tokens.count(tools)


def _messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise invalid("<400> InternalError.Algo.InvalidParameter: [] is too short - 'messages'")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise invalid(f"messages.{number}.role is not one of {list(ROLES)}")
        if not isinstance(message.get("content") or "", str | list):
            raise invalid(f"messages.{number}.content must be a string or a list of parts")
        if message["role"] == "tool" and message.get("tool_call_id") not in _called(messages[:number]):
            raise _algo(ORPHAN)
    # A code that says otherwise: it is the provider's for empty messages.
    if not any(words(message).strip() or parts.links([message]) for message in messages if message["role"] != "system"):
        message = "Role must be user or assistant and Content length must be greater than 0"
        raise Refusal(400, "ServiceUnavailableError", message)


def _called(messages: Messages) -> set[Any]:
    """Return the ids of the calls of tools that messages hold."""
    calls = [call for message in messages for call in message.get("tool_calls") or () if isinstance(call, dict)]
    return {call.get("id") for call in calls}


def _ranges(model: Model, asked: dict[str, Any]) -> None:
    for name, (is_inside, text) in RANGES.items():
        given = asked.get(name)
        if given is not None and not (_is_number(given) and is_inside(given)):
            raise invalid(f"<400> InternalError.Algo.InvalidParameter: {text}")
    for name in ("max_tokens", "max_completion_tokens"):
        given = asked.get(name)
        if given is not None and not (isinstance(given, int) and _is_number(given) and 1 <= given <= model.max_output):
            raise _algo(f"Range of {name} should be [1, {model.max_output}]")


def _stops(given: Any) -> None:
    if isinstance(given, str):
        return
    if not isinstance(given, list) or not all(isinstance(stop, str) and stop for stop in given):
        raise invalid("stop must be a string or a list of strings")


def _thinking(model: Model, asked: dict[str, Any]) -> None:
    given = asked.get("enable_thinking")
    if given and model.thinking is Thinking.NONE:
        message = f"Model {model.id} does not support enable_thinking."
        raise Refusal(400, "InvalidParameter.NotSupportEnableThinking", message)
    if given is False and model.thinking is Thinking.ALWAYS:
        raise invalid("The value of the enable_thinking parameter is restricted to True.")
    if thinks(model, asked) and not asked.get("stream") and not model.thinks_unstreamed:
        raise invalid(NOT_STREAMED)


def _form(model: Model, messages: Messages, asked: dict[str, Any]) -> None:
    given = asked.get("response_format")
    if given is None:
        return
    if not isinstance(given, dict) or given.get("type") not in ("text", "json_object", "json_schema"):
        raise invalid("response_format.type must be text, json_object or json_schema")
    if not wants_json(asked):
        return
    if thinks(model, asked):
        raise _algo("Json mode response is not supported when enable_thinking is true")
    if given["type"] == "json_object" and not any("json" in words(message).lower() for message in messages):
        raise _algo(JSON_WORD)


def _tools(asked: dict[str, Any]) -> None:
    tools = asked.get("tools") or []
    if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
        raise invalid("tools must be a list of functions with names")
    choice = asked.get("tool_choice")
    if choice is not None and choice not in ("auto", "none") and not _is_tool(choice):
        raise _algo("tool_choice is one of the strings that should be ['none', 'auto'] or a function")


def _length(model: Model, messages: Messages, asked: dict[str, Any]) -> None:
    longest = model.context - most_tokens(model, {})
    if input_tokens(messages, asked) + sum(each.tokens for each in parts.shown(model, messages)) > longest:
        raise _algo(f"Range of input length should be [1, {longest}]")


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _algo(message: str) -> Refusal:
    return invalid(f"<400> InternalError.Algo.InvalidParameter: {message}")
