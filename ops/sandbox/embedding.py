"""Embeddings: texts in, a vector for each out, in the words of either interface.

No model, and yet honest work: the same text always gets the same vector, which is of length one; a shorter vector is
the beginning of a longer one, brought to length one. Source: Alibaba docs, "Text embedding, synchronous API".
"""

import hashlib
import json
import math
import zlib
from array import array
from collections import Counter
from typing import Any

from ops.sandbox import tokens
from ops.sandbox.models import Model
from ops.sandbox.orders import Order
from ops.sandbox.refusals import Refusal, invalid

PATH = "embeddings/text-embedding/text-embedding"
TYPES = ("document", "query")
OUTPUTS = ("dense", "sparse", "dense&sparse")
DEFAULT_DIMENSION = 1024
VOCABULARY = 250_000
HALF = 32_767.5


def check(document: dict[str, Any], model: Model) -> Order:
    """Return the order that a body places, or raise the Refusal for what is wrong in it."""
    texts, asked = document["input"].get("texts"), document["parameters"]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _algo("Value error, contents is neither str nor list of str.: input.contents")
    if len(texts) > model.texts:
        raise _algo(f"Value error, batch size is invalid, it should not be larger than {model.texts}.: input.contents")
    if not all(text and tokens.count(text) <= model.text_tokens for text in texts):
        raise _algo(f"Range of input length should be [1, {model.text_tokens}]")
    purpose = _one_of("text_type", asked.get("text_type"), (*TYPES, None)) or TYPES[0]
    return Order(
        model.id,
        "embedding",
        "\n".join(texts).encode("utf-8", "replace").decode(),
        pictures=0,
        texts=tuple(texts),
        dimension=_one_of("dimension", asked.get("dimension"), (*model.dimensions, None)) or DEFAULT_DIMENSION,
        form=_one_of("output_type", asked.get("output_type"), (*OUTPUTS, None)) or OUTPUTS[0],
        purpose=f"{purpose} {asked.get('instruct') or ''}",
    )


def used(order: Order) -> int:
    """Return the tokens that an order is billed for."""
    return sum(map(tokens.count, order.texts))


def finished(order: Order, request_id: str) -> dict[str, Any]:
    """Return the answer of the native interface."""
    made = [_both(order, text) | {"text_index": place} for place, text in enumerate(order.texts)]
    return {"output": {"embeddings": made}, "usage": {"total_tokens": used(order)}, "request_id": request_id}


def native(body: Any) -> dict[str, Any]:
    """Return a body of the compatible interface in the native form, or raise the Refusal of one that asks nothing."""
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        raise Refusal(400, "BadRequest.EmptyModel", "you must provide a model parameter")
    if body.get("encoding_format", "float") not in ("float", "base64"):  # SDKs ask for base64, and are given numbers
        raise _algo("encoding_format should be float")
    given = {"dimension": body.get("dimensions")}
    return {"model": body["model"], "input": {"texts": body.get("input")}, "parameters": given}


def completion(order: Order, request_id: str) -> dict[str, Any]:
    """Return the answer of the compatible interface."""
    made = [
        {"embedding": _dense(order, text), "index": place, "object": "embedding"}
        for place, text in enumerate(order.texts)
    ]
    usage = {"prompt_tokens": used(order), "total_tokens": used(order)}
    return {"data": made, "model": order.model, "object": "list", "usage": usage, "id": request_id}


def _both(order: Order, text: str) -> dict[str, Any]:
    sparse = {"sparse_embedding": _sparse(text)} if "sparse" in order.form else {}
    return sparse | ({"embedding": _dense(order, text)} if "dense" in order.form else {})


def _dense(order: Order, text: str) -> list[float]:
    seed = f"{order.model} {order.purpose} {text}".encode("utf-8", "replace")
    drawn = array("H", hashlib.shake_128(seed).digest(2 * order.dimension))
    values = [number / HALF - 1 for number in drawn]
    length = math.sqrt(sum(value * value for value in values))
    return array("f", [value / length for value in values]).tolist()


def _sparse(text: str) -> list[dict[str, Any]]:
    counts = Counter(text.split() if " " in text else text)
    return [
        {
            "index": zlib.crc32(word.encode("utf-8", "replace")) % VOCABULARY,
            "value": round(count / len(counts), 4),
            "token": word,
        }
        for word, count in counts.items()
    ]


def _one_of(name: str, given: Any, allowed: tuple[Any, ...]) -> Any:
    if given not in allowed:
        listed = json.dumps([each for each in allowed if each is not None])
        raise _algo(f"Value error, {name} should be one of {listed}")
    return given


def _algo(message: str) -> Refusal:
    return invalid(f"<400> InternalError.Algo.InvalidParameter: {message}")
