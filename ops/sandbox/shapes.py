"""How large: a request says so by size, by resolution, by resolution and ratio, or freely, as its model wants."""

import re
from collections.abc import Callable
from typing import Any

from ops.sandbox.models import Model
from ops.sandbox.refusals import invalid

ADAPTIVE = "adaptive"
NAMED_SIZES = {"1K": "1024*1024", "2K": "2048*2048", "4K": "4096*4096"}  # of the models that allow such sides


def read(asked: dict[str, Any], model: Model) -> tuple[str, str, str]:
    """Return size, tier and ratio that the parameters ask for, or raise the Refusal of what the model lacks."""
    return SHAPES[model.shape](asked, model)


def _by_size(asked: dict[str, Any], model: Model) -> tuple[str, str, str]:
    size = str(asked.get("size") or model.default_size)
    if size not in model.sizes:
        raise invalid(f"size must be in {list(model.sizes)}.")
    return size, model.sizes[size], _ratio_of(size)


def _by_resolution(asked: dict[str, Any], model: Model) -> tuple[str, str, str]:
    tier = _tier(asked, model)
    size = next(size for size, its_tier in model.sizes.items() if its_tier == tier)
    return size, tier, "16:9"


def _by_ratio(asked: dict[str, Any], model: Model) -> tuple[str, str, str]:
    tier = model.renders or _tier(asked, model)
    ratio = asked.get("ratio") or (ADAPTIVE if ADAPTIVE in model.ratios else "16:9")
    if ratio not in model.ratios:
        raise invalid(f"ratio must be in {list(model.ratios)}.")
    shape = "16:9" if ratio == ADAPTIVE else ratio  # as the media that is given, which the sandbox does not look at
    return _size_of(shape, int(tier.removesuffix("P"))), tier, shape


def _by_sides(asked: dict[str, Any], model: Model) -> tuple[str, str, str]:
    size = str(asked.get("size") or model.default_size)
    size = NAMED_SIZES.get(size, size)
    match = re.fullmatch(r"(\d{2,5})\*(\d{2,5})", size)
    shortest, longest = model.sides
    if match is None or not all(shortest <= int(side) <= longest for side in match.groups()):
        raise invalid(f"size must be W*H with sides in [{shortest}, {longest}].")
    return size, "each", _ratio_of(size)


def _tier(asked: dict[str, Any], model: Model) -> str:
    tier = asked.get("resolution") or model.default_tier
    if tier not in model.tiers:
        raise invalid(f"resolution must be in {list(model.tiers)}.")
    return str(tier)


def _ratio_of(size: str) -> str:
    width, height = (int(side) for side in size.split("*"))
    known = ("16:9", "9:16", "1:1", "4:3", "3:4")
    return min(known, key=lambda ratio: abs(_quotient(ratio, ":") - width / height))


def _size_of(ratio: str, short_side: int) -> str:
    quotient = _quotient(ratio, ":")
    long_side = round(short_side * max(quotient, 1 / quotient) / 2) * 2
    return f"{long_side}*{short_side}" if quotient >= 1 else f"{short_side}*{long_side}"


def _quotient(text: str, sign: str) -> float:
    left, right = text.split(sign)
    return int(left) / int(right)


SHAPES: dict[str, Callable[[dict[str, Any], Model], tuple[str, str, str]]] = {
    "size": _by_size,
    "resolution": _by_resolution,
    "ratio": _by_ratio,
    "free": _by_sides,
}
