"""One chat call: messages in, an answer or calls of tools out, kept in the job's row.

A call is spelled for the surface that the catalog names for its model. What moves the bill is always sent:
`max_tokens`, and `enable_thinking`, whose default differs from model to model. A model that thinks must stream its
answer (Alibaba docs, 'Deep thinking'); its reasoning is stored only where the user asks for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from worker.catalog import Model, Surface, Thinking, Usage, Variant
from worker.kinds import answers, fields
from worker.kinds.answers import Unfitting
from worker.kinds.fields import SEED_LIMIT, Filled, Input, Rule, Text, no
from worker.kinds.kind import CallKind, Request
from worker.states import Mode

NAME = "text"

_IDEOGRAPH = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_SURELY = 2  # our count of tokens is at most twice the true one, so half of it is certain
_OURS = frozenset(
    {"prompt", "system", "messages", "response_format", "include_reasoning", "asynchronous"}
)  # spelled another way

# A search that a call may make is reserved for as so many, and so many tokens that each adds to the input: the model
# decides how often it searches. One recorded search added 2,900 tokens to a short question.
_SEARCHES, _FOUND_TOKENS = 3, 4_000

# OpenAI's two names for the same limit: one that the compatible surface refuses by name is sent as the other.
OTHER_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class Message(BaseModel):
    """A turn of the conversation, as OpenAI's chat has it; words only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | None = None
    name: Text | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = Field(None, description="that the assistant asked for")
    tool_call_id: Text | None = Field(None, description="of the call that a tool's answer is for")


def _our_format(value: Any) -> Any:
    """OpenAI's `{"type": "json_object"}` and its like in our own form."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "json_schema" and isinstance(value.get("json_schema"), Mapping):
        return value["json_schema"].get("schema", {})
    return {"json_object": "json", "text": "text"}.get(kind, value) if isinstance(kind, str) else value


def _messages_fit(_model: Model, value: tuple[Message, ...] | None, given: Mapping[str, Any]) -> None:
    has_prompt = given.get("prompt") is not None
    if value is None and not has_prompt and "prompt" in given:
        raise no("required", "is required, unless there is a prompt")
    if value is None:
        return
    if has_prompt:
        raise no("contradiction", "is given beside a prompt: leave one of them out")
    if not any(message.role == "user" for message in value):
        raise no("no_question", "needs a message of the user")
    if given.get("system") and value[0].role == "system":
        raise no("contradiction", "begins with a system message, and system is given too: leave one of them out")
    called: set[str] = set()
    for place, message in enumerate(value):
        _message_fits(place, message)
        if message.role == "tool" and message.tool_call_id not in called:
            raise no("orphan", f"the message {place} answers {message.tool_call_id}, which no message before it calls")
        called |= {str(call.get("id")) for call in message.tool_calls or ()}


def _message_fits(place: int, message: Message) -> None:
    if message.role == "system" and place > 0:
        raise no("misplaced", f"the message {place} is a system message, which can only be the first")
    if message.role == "tool" and not message.tool_call_id:
        raise no("required", f"the message {place} is of a tool and needs the tool_call_id that it answers")
    if not (message.content or "").strip() and not message.tool_calls:
        raise no("blank", f"the message {place} must not be empty")


def _max_tokens_fit(model: Model, value: int | None, given: Mapping[str, Any]) -> None:
    if value is None:
        return
    if model.max_output and value > model.max_output:
        raise no("too_many", f"{model.id} writes at most {model.max_output:,} tokens")
    asked = Conversation.model_construct(**{name: given.get(name) for name in ("system", "prompt", "messages")})
    surely = _input_tokens(asked) // _SURELY
    if model.context and surely + value > model.context:
        window = f"{model.id} has a window of {model.context:,} tokens"
        raise no("too_long", f"{window}: at least {surely:,} of the input and {value:,} of the answer do not fit")


def _thinking_fits(model: Model, value: bool | None, _given: Mapping[str, Any]) -> None:
    if value is False and model.thinking is Thinking.ALWAYS:
        raise no("not_allowed", f"{model.id} always thinks")


def _is_thought_about(_model: Model, value: Any, given: Mapping[str, Any]) -> None:
    if value and not given.get("enable_thinking"):
        raise no("needs_thinking", "is of use only with enable_thinking")


def _budget_fits(model: Model, value: int | None, given: Mapping[str, Any]) -> None:
    _is_thought_about(model, value, given)
    if value is not None and value > model.max_thinking:
        raise no("too_many", f"{model.id} thinks at most {model.max_thinking:,} tokens")


def _format_fits(model: Model, value: Any, given: Mapping[str, Any]) -> None:
    if value in (None, "text"):
        return
    if given.get("enable_thinking") or model.thinking is Thinking.ALWAYS:
        raise no("contradiction", "JSON is not given while the model thinks: leave out one of them")
    if isinstance(value, dict) and (fault := answers.schema_fault(value)):
        raise no("bad_schema", fault)


def _is_about_tools(_model: Model, value: Any, given: Mapping[str, Any]) -> None:
    if value is not None and not given.get("tools"):
        raise no("needs_tools", "is about tools, and there are none")


def _is_about_a_search(_model: Model, value: Any, given: Mapping[str, Any]) -> None:
    if value is not None and not given.get("enable_search"):
        raise no("needs_search", "is of use only with enable_search")


def _logprobs_fit(model: Model, value: Any, given: Mapping[str, Any]) -> None:
    if value and (given.get("enable_thinking") or model.thinking is Thinking.ALWAYS):
        raise no("contradiction", "is not given of a streamed answer, and a model that thinks streams: leave out one")


def _top_logprobs_fit(_model: Model, value: Any, given: Mapping[str, Any]) -> None:
    if value is not None and not given.get("logprobs"):
        raise no("needs_logprobs", "is of use only with logprobs")


WRITING_RULES: dict[str, Rule] = {  # of every kind whose answer is words
    "max_tokens": _max_tokens_fit,
    "enable_thinking": _thinking_fits,
    "thinking_budget": _budget_fits,
    "include_reasoning": _is_thought_about,
    "response_format": _format_fits,
}
_RULES: dict[str, Rule] = {
    **WRITING_RULES,
    "messages": _messages_fit,
    "tool_choice": _is_about_tools,
    "parallel_tool_calls": _is_about_tools,
    "search_options": _is_about_a_search,
    "logprobs": _logprobs_fit,
    "top_logprobs": _top_logprobs_fit,
}


Format = Annotated[Literal["text", "json"] | dict[str, Any] | None, BeforeValidator(_our_format)]


class Search(BaseModel):
    """How a call searches the web; of the strategies only the ones with a published price are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    search_strategy: Literal["agent", "agent_max"] = Field("agent", description="agent_max reads the pages too")
    forced_search: bool | None = Field(None, description="search whatever the question is")


class Conversation(Input):
    """`prompt` and `system`, or `messages`. The answer stands in the job's `result`."""

    rules: ClassVar[Mapping[str, Rule]] = _RULES

    system: Text | None = Field(None, description="what the model is told before all else")
    prompt: Filled | None = Field(None, description="a single question", examples=["Name three colours."])
    messages: tuple[Message, ...] | None = Field(None, description="the conversation so far, instead of prompt")
    max_tokens: int | None = Field(None, ge=1, description="of the answer, each of them paid for", examples=[800])
    enable_thinking: bool | None = Field(None, description="let the model reason first: slower, dearer, often better")
    thinking_budget: int | None = Field(None, ge=1, description="tokens that it may think")
    include_reasoning: bool | None = Field(None, description="give what it thought beside the answer")
    response_format: Format = Field(None, description="text, json, or a JSON schema that the answer should fit")
    tools: tuple[dict[str, Any], ...] | None = Field(None, description="functions that the model may call, as OpenAI's")
    tool_choice: Literal["auto", "none"] | dict[str, Any] | None = Field(None, description="auto, none, or a function")
    parallel_tool_calls: bool | None = Field(None, description="let the model call several of them at once")
    enable_search: bool | None = Field(None, description="let the model search the web first: each search is paid")
    search_options: Search | None = Field(None, description="how it searches")
    temperature: float | None = Field(None, ge=0, lt=2, description="how freely it chooses its words")
    top_p: float | None = Field(None, gt=0, le=1, description="the share of likely words that it chooses from")
    top_k: int | None = Field(None, ge=0, description="the number of likely words that it chooses from")
    repetition_penalty: float | None = Field(None, gt=0, description="above 1 it repeats itself less")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="above 0 it takes up new words")
    logprobs: bool | None = Field(None, description="give the logarithm of each token's probability")
    top_logprobs: int | None = Field(None, ge=0, le=5, description="of so many likely tokens at each place")
    seed: int | None = Field(None, ge=0, le=SEED_LIMIT, description="equal seeds give similar answers")
    stop: Text | tuple[Text, ...] | None = Field(None, description="what the answer ends before")
    asynchronous: bool | None = Field(None, description="as a task, which most accounts are refused")

    @field_validator("asynchronous")
    @classmethod
    def _is_served(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if not info.context or not value:
            return value
        model = info.context["model"]
        if info.context["catalog"].variant(model.id, Variant.TASKS) is None:
            raise no("not_offered", f"{model.id} is asked over an interface that makes no tasks: leave it out")
        if info.data.get("enable_thinking") or model.thinking is Thinking.ALWAYS:
            raise no("contradiction", "a model that thinks streams its answer, and a task does not: leave out one")
        return value


def variant(wanted: Conversation) -> str | None:
    """The other way to have its model that the input insists on."""
    return str(Variant.TASKS) if wanted.asynchronous else None


def messages(wanted: Conversation) -> list[dict[str, Any]]:
    """The messages as they are sent: the system's first, with the instruction that JSON needs."""
    turns = [message.model_dump(exclude_none=True) for message in wanted.messages or ()]
    if wanted.prompt is not None:
        turns = [{"role": "user", "content": wanted.prompt}]
    told = [wanted.system] if wanted.system else []
    if turns and turns[0]["role"] == "system":
        told = [turns.pop(0)["content"]]
    if rule := answers.instruction(wanted.response_format, "".join(str(turn.get("content", "")) for turn in turns)):
        told.append(rule)
    return [{"role": "system", "content": "\n\n".join(told)}, *turns] if told else turns


def body(model: Model, region: str, wanted: Conversation, surface: Surface, *, streams: bool) -> dict[str, Any]:
    """The body of the call, as that surface has it: the compatible one's is also a line of a batch."""
    asked = {name: value for name, value in wanted.model_dump(exclude_none=True).items() if name not in _OURS}
    if wanted.enable_search:
        asked["search_options"] = (wanted.search_options or Search()).model_dump(exclude_none=True)
    asked |= steering(model, wanted.enable_thinking, wanted.response_format)
    return spelled(model, region, messages(wanted), asked, surface, streams=streams)


def steering(model: Model, thinks: bool | None, form: Any) -> dict[str, Any]:
    """The parameters that say whether a model thinks, and that it is to answer with JSON."""
    thinking = {"enable_thinking": thinks or False} if model.thinking is Thinking.HYBRID else {}
    return thinking | ({"response_format": {"type": "json_object"}} if form not in (None, "text") else {})


def spelled(
    model: Model, region: str, turns: list[dict[str, Any]], asked: dict[str, Any], surface: Surface, *, streams: bool
) -> dict[str, Any]:
    """A body of these messages and parameters, as that surface has it."""
    here = model.region(region)
    assert here is not None, "a job goes only to a region that serves its model"
    if surface is not Surface.NATIVE:
        if "max_tokens" in asked:
            asked[model.answer_limit] = asked.pop("max_tokens")
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
        return {"model": here.id, "messages": turns, **asked, **streaming}
    asked |= {"result_format": "message"} | ({"incremental_output": True} if streams else {})
    return {"model": here.id, "input": {"messages": turns}, "parameters": asked}


def request(model: Model, region: str, wanted: Conversation) -> Request:
    """The create call; it streams where the model thinks."""
    streams = model.mode is Mode.CALL and will_think(model, wanted.enable_thinking)
    return Request(
        model.path,
        {} if model.mode is Mode.CALL else {"X-DashScope-Async": "enable"},
        body(model, region, wanted, model.surface, streams=streams),
        surface=model.surface,
        streams=streams,
        reasoning=bool(wanted.include_reasoning),
        instead={} if model.surface is Surface.NATIVE else OTHER_LIMIT,
    )


def result(output: Mapping[str, Any]) -> dict[str, Any]:
    """The answer: `content`, `finish_reason`, and what there is of tool_calls, reasoning, logprobs."""
    choice = answers.choice(output)
    message = answers.mapping(choice.get("message"))
    rest = {
        "tool_calls": message.get("tool_calls"),
        "reasoning": message.get("reasoning_content"),
        "logprobs": choice.get("logprobs"),
    }
    return {
        "content": _content(message.get("content")) or output.get("text") or "",
        "finish_reason": choice.get("finish_reason") or output.get("finish_reason"),
        **{name: value for name, value in rest.items() if value},
    }


def _content(content: Any) -> Any:
    """The text of a message; the multimodal path has it in parts."""
    if not isinstance(content, list):
        return content
    return "".join(str(answers.mapping(part).get("text") or "") for part in content)


def answered(wanted: Conversation, output: Mapping[str, Any]) -> dict[str, Any]:
    """The answer as a job keeps it: with `json`, the value that was asked for, or `json_error`, why it holds none."""
    return kept(wanted.response_format, output)


def kept(form: Any, output: Mapping[str, Any]) -> dict[str, Any]:
    """The answer as a job keeps it whose answer is to have that form."""
    answer: dict[str, Any] = answers.storable(result(output))
    if form in (None, "text") or answer.get("tool_calls"):
        return answer
    try:
        schema = form if isinstance(form, Mapping) else None
        return {**answer, "json": answers.parsed_json(str(answer.get("content") or ""), schema)}
    except Unfitting as error:
        return {**answer, "json_error": str(error)}


def usage(_model: Model, wanted: Conversation, answer: Mapping[str, Any]) -> Usage:
    """Tokens in and out, those of them from the cache or for reasoning; counted by us where the answer lacks them."""
    output = answers.mapping(answer.get("output")) or answer
    told = answers.mapping(answer.get("usage"))
    reported = {**answers.tokens(told), **(_searches(told) if wanted.enable_search else {})}
    ours = {"input_tokens": _input_tokens(wanted), "output_tokens": tokens(str(result(output)["content"]))}
    return Usage({**ours, **reported, "thinking": bool(wanted.enable_thinking)})


def estimate(model: Model, wanted: Conversation) -> Usage:
    """The messages by a count that is rather too high, and the longest answer that is allowed."""
    units = {"input_tokens": _input_tokens(wanted), **most_written(model, wanted)}
    if wanted.enable_search:
        found = _SEARCHES * _FOUND_TOKENS
        units |= {"searching": True, "searches": _SEARCHES, "input_tokens": units["input_tokens"] + found}
    return Usage(units)


def words(wanted: Conversation) -> str:
    """ "3 messages, 1,200 tokens"."""
    count = len(messages(wanted))
    return f"{count} message{'s' if count > 1 else ''}, {_input_tokens(wanted):,} tokens"


def tokens(text: str) -> int:
    """How many tokens a text is at most: one for each Han, Kana or Hangul character, one for three bytes of others."""
    rest, wide = _IDEOGRAPH.subn("", text)
    return wide + math.ceil(len(rest.encode("utf-8", "replace")) / 3)


def _searches(told: Mapping[str, Any]) -> dict[str, Any]:
    """The searches that a call made, as its usage tells them: `plugins.search.count`, as recorded."""
    search = answers.mapping(answers.mapping(told.get("plugins")).get("search"))
    return {"searching": True, "searches": answers.number(search.get("count")) or 0}


def will_think(model: Model, asked: bool | None) -> bool:
    """Whether the model thinks before it answers, where it is asked to or not."""
    return model.thinking is Thinking.ALWAYS or (model.thinking is Thinking.HYBRID and bool(asked))


def most_written(model: Model, wanted: Any) -> dict[str, Any]:
    """The most tokens of an answer, with those of its thinking, and whether there is any: for an estimate."""
    thinks = will_think(model, wanted.enable_thinking)
    thought = (wanted.thinking_budget or model.max_output or 0) if thinks else 0
    return {"output_tokens": (wanted.max_tokens or model.max_output or 0) + thought, "thinking": thinks}


def _input_tokens(wanted: Conversation) -> int:
    return tokens(_spelled(messages(wanted))) + (tokens(_spelled(wanted.tools)) if wanted.tools else 0)


def _spelled(values: Iterable[Mapping[str, Any]]) -> str:
    return json.dumps(list(values), ensure_ascii=False)


KIND = CallKind(
    name=NAME,
    input=Conversation,
    check=partial(fields.check, NAME, Conversation),
    request=request,
    usage=usage,
    estimate=estimate,
    words=words,
    variant=variant,
    result=answered,
    accepts=lambda answer: "json_error" not in answer,
    cached=True,
)
