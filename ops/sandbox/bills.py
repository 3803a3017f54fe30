"""What is billed: how much was made, and what it costs in micro-CNY.

Source: Alibaba docs, "Model pricing". Amounts are multiplied first and divided once, and rounded half up.
"""

from collections.abc import Iterable

from ops.sandbox import embedding, sound, tokens
from ops.sandbox.models import Model, Tier
from ops.sandbox.orders import Order
from ops.sandbox.tasks import Task
from ops.sandbox.text import Answer

MILLION = 1_000_000
CACHED_PERCENT = 20  # of the input's price, for tokens of it that were seen before
AUDIO_TOKENS = 50  # a second


def usage(model: Model, task: Task) -> dict[str, int]:
    """Return what a task is paid for, by unit."""
    order = task.order
    if task.answer is not None:
        return _tokens(task.answer)
    if model.makes == "embedding":
        return {"input_tokens": embedding.used(order)}
    if model.usage == "characters":
        # A Han character counts twice: the sample of "Qwen-TTS API reference" has 92, 11 others, and 195 in its usage.
        return {"characters": len(order.prompt) + len(tokens.HAN.findall(order.prompt))}
    if model.makes == "speech":
        return speech_tokens(order.prompt)
    if model.makes == "image":
        return {"pictures": order.pictures - task.failed_pictures}
    return {"seconds": order.seconds + order.input_seconds}


def tokens_of(model: Model, order: Order, answer: Answer | None) -> int:
    """Return the tokens that a call counts for against a limit a minute."""
    if answer is not None:
        return answer.input_tokens + answer.output_tokens
    if model.makes == "embedding":
        return embedding.used(order)
    return sum(speech_tokens(order.prompt).values()) if model.usage != "characters" else 0


def price(model: Model, task: Task) -> int:
    """Return what a task costs if it succeeds."""
    units = usage(model, task)
    if task.answer is not None:
        is_half = task.order.call == "batch_chat"
        return price_of_batch(model, [task.answer]) if is_half else price_of(model, task.answer)
    if model.usage == "characters":
        return units["characters"] * model.prices["character"]
    if model.makes == "embedding":
        return _rounded(units["input_tokens"] * model.token_prices[0].input)
    if model.makes == "speech":
        tier = model.token_prices[0]
        return _rounded(units["input_tokens"] * tier.input + units["output_tokens"] * tier.output)
    if model.makes == "image":
        return model.prices["each"] * units["pictures"]
    prices = model.prices if task.order.has_audio or not model.silent_prices else model.silent_prices
    return prices.get(task.order.tier, 0) * units["seconds"]


def price_of(model: Model, answer: Answer) -> int:
    """Return what an answer costs."""
    return _rounded(_millionths(model, answer))


def price_of_batch(model: Model, answers: Iterable[Answer]) -> int:
    """Return what answers cost in a batch: half the price, rounded once."""
    return _rounded(sum(_millionths(model, answer) for answer in answers) // 2)


def _millionths(model: Model, answer: Answer) -> int:
    tier = _tier(model, answer.input_tokens)
    shown = answer.shown_tokens
    seen = shown.get("image", 0) + shown.get("video", 0) if model.vision_price else 0
    heard = shown.get("audio", 0) if model.audio_price else 0
    fresh = answer.input_tokens - answer.cached_tokens - seen - heard
    shown_micros = seen * model.vision_price + heard * model.audio_price
    input_micros = fresh * tier.input + answer.cached_tokens * tier.input * CACHED_PERCENT // 100
    output_micros = answer.output_tokens * (tier.thinking if answer.reasoning else tier.output)
    return input_micros + shown_micros + output_micros + answer.searches * model.search_price * MILLION


def speech_tokens(text: str) -> dict[str, int]:
    """Return the tokens of a spoken text, for models that bill by them."""
    return {"input_tokens": tokens.count(text), "output_tokens": -(-sound.length(text) * AUDIO_TOKENS // sound.RATE)}


def _tokens(answer: Answer) -> dict[str, int]:
    return {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "reasoning_tokens": answer.reasoning_tokens,
        "cached_tokens": answer.cached_tokens,
    }


def _tier(model: Model, input_tokens: int) -> Tier:
    """Return the tier of a call; beyond the last, the last."""
    return next((tier for tier in model.token_prices if input_tokens <= tier.up_to), model.token_prices[-1])


def _rounded(millionths: int) -> int:
    return (millionths + MILLION // 2) // MILLION
