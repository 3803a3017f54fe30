"""The sandbox's table of models, read from `models.yaml`.

A row says only where it differs from the model it is `like`; the table is flat once read. Ids are those of one
region: what Beijing calls `wanx2.1-…`, other regions call `wan2.1-…`, and each answers only to its own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import yaml

BEIJING = "cn-beijing"
TABLE = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True)
class Call:
    """One way to create: the path under `/api/v1/services/`, and whether it makes a task or answers at once."""

    name: str
    path: str
    is_async: bool


class Thinking(StrEnum):
    """Whether a text model thinks before it answers."""

    NONE = "none"
    HYBRID = "hybrid"  # as the call says
    ALWAYS = "always"


@dataclass(frozen=True)
class Tier:
    """What tokens cost in calls of up to so many input tokens; micro-CNY per million."""

    up_to: int
    input: int
    output: int
    thinking: int  # of all output, in a call that thinks


@dataclass(frozen=True)
class Model:
    """One model as one region offers it."""

    id: str
    makes: str  # video, image, speech, text or embedding
    calls: tuple[Call, ...]
    needs: tuple[str, ...]  # keys of `input` that must be there
    shape: str  # size | resolution | ratio | free: how a request says how large
    sizes: dict[str, str]  # "1280*720" → tier
    tiers: tuple[str, ...]
    default_size: str
    default_tier: str
    renders: str  # the tier it renders whatever was asked; empty: as asked
    ratios: tuple[str, ...]
    sides: tuple[int, ...]  # shortest and longest side of a free size
    area: tuple[int, ...]  # least and most pixels of a free size; empty: any
    area_of_words: tuple[int, ...]  # of what is made of words alone, where that may be larger
    seconds: tuple[int, ...]
    decides_seconds: int  # how long a clip of duration -1 is; 0: it must be told
    media: Mapping[str, int]  # types of `input.media`, and how many of each at most; empty: any
    references: int  # among them, and among reference_urls; 0: any number
    edits: bool  # makes a clip as long as the one that it is given
    shows: tuple[int, ...]  # how few and how many pictures a picture is made from; empty: none
    sequence: int  # pictures that belong together, at most; 0: none do
    pictures: int
    default_pictures: int
    prompt_limit: int
    tells_prompt: bool  # orig_prompt is in the result
    tells_rewrite: bool  # actual_prompt is, when prompt_extend was true
    tells_metric: bool  # a call's answer counts what succeeded and failed
    typed_parts: bool  # the parts of an answer say what they are, and each picture that stands alone is a choice
    usage: str
    limit: tuple[int, float] | None  # creates, in so many seconds
    concurrency: int | None
    prices: dict[str, int]  # tier → micro-CNY a second, or "each" → micro-CNY a picture
    silent_prices: dict[str, int]
    keeps_days: int  # for which a link of the synchronous path lives
    run_seconds: float  # median
    rpm: int | None  # requests a minute
    tpm: int | None  # tokens a minute
    context: int  # tokens, of input and output together
    max_output: int  # tokens
    thinking: Thinking
    thinks: bool  # unless the call says otherwise
    thinks_unstreamed: bool  # may think in a call that is not streamed
    is_incremental: bool  # streams differences unless told otherwise
    is_message: bool  # answers with a message unless told otherwise
    sees: bool  # pictures and clips among the parts of a message
    hears: bool  # sound among them
    streams_only: bool
    token_pixels: int  # of a picture, one token
    vision_price: int  # micro-CNY a million tokens of what it sees; 0: as those of words
    audio_price: int
    token_prices: tuple[Tier, ...]  # by input tokens, ascending
    search_price: int  # micro-CNY a search; 0: it does not search
    caches: bool  # bills what it has seen before at a discount
    batch: bool  # offered by the Batch API
    batch_chat: bool  # offered by Batch Chat, which is Beijing's
    batch_input: int | None  # tokens of input, of a batch's line at most
    voices: tuple[str, ...]
    takes_instructions: bool
    texts: int  # to be embedded in one call, at most
    text_tokens: int  # of one of them
    dimensions: tuple[int, ...]

    def call(self, path: str) -> Call | None:
        """Return the way to create that `path` is for this model, None where it is none."""
        return next((call for call in self.calls if call.path == path), None)


@cache
def read(region: str) -> Mapping[str, Model]:
    """Return the models that a region offers, by the id it gives them."""
    table = yaml.safe_load(TABLE.read_text())
    models = (_model(model_id, table, region) for model_id in table["models"])
    return {model.id: model for model in models if model is not None}


def _model(model_id: str, table: dict[str, Any], region: str) -> Model | None:
    row = _flat(model_id, table["models"])
    if region not in row.get("regions", [region]):
        return None
    is_home = region == BEIJING
    return Model(
        id=model_id if is_home else row.get("abroad_id", model_id),
        makes=row["makes"],
        calls=tuple(Call(name, **table["paths"][name]) for name in row["calls"]),
        needs=tuple(row.get("needs", ())),
        shape=row.get("shape", ""),
        sizes=_sizes(row, table["tiers"]),
        tiers=tuple(row.get("tiers", ())),
        default_size=row.get("default_size", ""),
        default_tier=row.get("default_tier", ""),
        renders=row.get("renders", ""),
        ratios=tuple(row.get("ratios", ())),
        sides=tuple(row.get("sides", ())),
        area=tuple(row.get("area", ())),
        area_of_words=tuple(row.get("area_of_words", ())),
        seconds=_seconds(row.get("seconds", [])),
        decides_seconds=row.get("decides_seconds", 0),
        media=row.get("media", {}),
        references=row.get("references", 0),
        edits=row.get("edits", False),
        shows=tuple(row.get("shows", ())),
        sequence=row.get("sequence", 0),
        pictures=row.get("pictures", 1),
        default_pictures=row.get("default_pictures", 1),
        prompt_limit=row.get("prompt_limit", 0),
        tells_prompt=row.get("tells_prompt", True),
        tells_rewrite=row.get("tells_rewrite", False),
        tells_metric=row.get("tells_metric", False),
        typed_parts=row.get("typed_parts", False),
        usage=row.get("usage", ""),
        limit=tuple(row["limit"]) if "limit" in row else None,
        concurrency=row.get("concurrency"),
        prices=_micros(row.get("price" if is_home else "abroad", {})),
        silent_prices=_micros(row.get("silent" if is_home else "silent_abroad", {})),
        keeps_days=row.get("keeps_days", 1),
        run_seconds=row["run_seconds"],
        rpm=row.get("rpm" if is_home else "rpm_abroad", row.get("rpm")),
        tpm=row.get("tpm" if is_home else "tpm_abroad", row.get("tpm")),
        context=row.get("context", 0),
        max_output=row.get("max_output", 0),
        thinking=Thinking(row.get("thinking", "none")),
        thinks=row.get("thinks", False),
        thinks_unstreamed=row.get("thinks_unstreamed", False),
        is_incremental=row.get("is_incremental", False),
        is_message=row.get("is_message", False),
        sees=row.get("sees", False),
        hears=row.get("hears", False),
        streams_only=row.get("streams_only", False),
        token_pixels=row.get("token_pixels", 1024),
        vision_price=round(row.get("vision" if is_home else "vision_abroad", 0) * 1_000_000),
        audio_price=round(row.get("audio" if is_home else "audio_abroad", 0) * 1_000_000),
        token_prices=_tiers(row.get("tokens" if is_home else "tokens_abroad", [])),
        search_price=round(row.get("search" if is_home else "search_abroad", 0) * 1_000_000),
        caches=row.get("caches", False),
        batch=row.get("batch" if is_home else "batch_abroad", False),
        batch_chat=row.get("batch_chat" if is_home else "batch_chat_abroad", False),
        batch_input=row.get("batch_input"),
        voices=tuple(table["voices"][row["voices"]]) if "voices" in row else (),
        takes_instructions=row.get("takes_instructions", False),
        texts=row.get("texts", 0),
        text_tokens=row.get("text_tokens", 0),
        dimensions=tuple(row.get("dimensions", ())),
    )


def _flat(model_id: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = rows[model_id]
    if "like" not in row:
        return row
    inherited = _flat(row["like"], rows)
    # Where a model is offered and what it is called abroad belong to it alone.
    return {key: inherited[key] for key in inherited if key not in ("abroad_id", "regions")} | row


def _sizes(row: dict[str, Any], tiers: dict[str, list[str]]) -> dict[str, str]:
    if row["makes"] != "video":
        return dict.fromkeys(row.get("sizes", ()), "each")
    return {size: tier for tier in row["tiers"] for size in tiers[tier]}


def _seconds(allowed: list[int] | dict[str, int]) -> tuple[int, ...]:
    if isinstance(allowed, dict):
        return tuple(range(allowed["from"], allowed["to"] + 1))
    return tuple(allowed)


def _tiers(rows: list[dict[str, float]]) -> tuple[Tier, ...]:
    return tuple(
        Tier(
            up_to=int(row["up_to"]),
            **_micros({"input": row["input"], "output": row["output"], "thinking": row.get("thinking", row["output"])}),
        )
        for row in rows
    )


def _micros(prices: dict[str, float]) -> dict[str, int]:
    return {tier: round(price * 1_000_000) for tier, price in prices.items()}
