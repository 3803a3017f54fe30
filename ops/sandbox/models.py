"""The sandbox's table of models, read from `models.yaml`.

A row says only where it differs from the model it is `like`; the table is flat once read. Ids are those of one
region: what Beijing calls `wanx2.1-…`, other regions call `wan2.1-…`, and each answers only to its own name.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
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


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model as one region offers it. A field that has a default is a column of the table under its own name."""

    id: str
    makes: str  # video, image, speech, text or embedding
    calls: tuple[Call, ...]
    sizes: dict[str, str]  # "1280*720" → tier
    seconds: tuple[int, ...]
    limit: tuple[int, float] | None  # creates, in so many seconds
    prices: dict[str, int]  # tier → micro-CNY a second, or "each" → micro-CNY a picture
    silent_prices: dict[str, int]
    run_seconds: float  # median
    rpm: int | None  # requests a minute
    tpm: int | None  # tokens a minute
    thinking: Thinking
    vision_price: int  # micro-CNY a million tokens of what it sees; 0: as those of words
    audio_price: int
    token_prices: tuple[Tier, ...]  # by input tokens, ascending
    search_price: int  # micro-CNY a search; 0: it does not search
    batch: bool  # offered by the Batch API
    batch_chat: bool  # offered by Batch Chat, which is Beijing's
    voices: tuple[str, ...]

    needs: tuple[str, ...] = ()  # keys of `input` that must be there
    shape: str = ""  # size | resolution | ratio | free: how a request says how large
    tiers: tuple[str, ...] = ()
    default_size: str = ""
    default_tier: str = ""
    renders: str = ""  # the tier it renders whatever was asked; empty: as asked
    ratios: tuple[str, ...] = ()
    sides: tuple[int, ...] = ()  # shortest and longest side of a free size
    area: tuple[int, ...] = ()  # least and most pixels of a free size; empty: any
    area_of_words: tuple[int, ...] = ()  # of what is made of words alone, where that may be larger
    decides_seconds: int = 0  # how long a clip of duration -1 is; 0: it must be told
    media: Mapping[str, int] = field(default_factory=dict)  # types of `input.media`, how many of each; empty: any
    references: int = 0  # among them, and among reference_urls; 0: any number
    edits: bool = False  # makes a clip as long as the one that it is given
    shows: tuple[int, ...] = ()  # how few and how many pictures a picture is made from; empty: none
    sequence: int = 0  # pictures that belong together, at most; 0: none do
    pictures: int = 1
    default_pictures: int = 1
    prompt_limit: int = 0
    tells_prompt: bool = True  # orig_prompt is in the result
    tells_rewrite: bool = False  # actual_prompt is, when prompt_extend was true
    tells_metric: bool = False  # a call's answer counts what succeeded and failed
    typed_parts: bool = False  # an answer's parts say what they are, and each picture that stands alone is a choice
    usage: str = ""
    concurrency: int | None = None
    keeps_days: int = 1  # for which a link of the synchronous path lives
    context: int = 0  # tokens, of input and output together
    max_output: int = 0  # tokens
    thinks: bool = False  # unless the call says otherwise
    thinks_unstreamed: bool = False  # may think in a call that is not streamed
    is_incremental: bool = False  # streams differences unless told otherwise
    is_message: bool = False  # answers with a message unless told otherwise
    sees: bool = False  # pictures and clips among the parts of a message
    hears: bool = False  # sound among them
    streams_only: bool = False
    token_pixels: int = 1024  # of a picture, one token
    caches: bool = False  # bills what it has seen before at a discount
    batch_input: int | None = None  # tokens of input, of a batch's line at most
    takes_instructions: bool = False
    texts: int = 0  # to be embedded in one call, at most
    text_tokens: int = 0  # of one of them
    dimensions: tuple[int, ...] = ()

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

    def here(name: str, otherwise: Any, abroad: str = "") -> Any:
        return row.get(name if is_home else abroad or f"{name}_abroad", otherwise)

    limit = here("limit", row.get("limit"))
    return Model(
        id=model_id if is_home else row.get("abroad_id", model_id),
        makes=row["makes"],
        calls=tuple(Call(name, **table["paths"][name]) for name in row["calls"]),
        sizes=_sizes(row, table["tiers"]),
        seconds=_seconds(row.get("seconds", [])),
        limit=tuple(limit) if limit else None,
        prices=_micros(here("price", {}, "abroad")),
        silent_prices=_micros(here("silent", {})),
        run_seconds=row["run_seconds"],
        rpm=here("rpm", row.get("rpm")),
        tpm=here("tpm", row.get("tpm")),
        thinking=Thinking(row.get("thinking", "none")),
        vision_price=_micro(here("vision", 0)),
        audio_price=_micro(here("audio", 0)),
        token_prices=_tiers(here("tokens", [])),
        search_price=_micro(here("search", 0)),
        batch=here("batch", False),
        batch_chat=here("batch_chat", False),
        voices=tuple(table["voices"][row["voices"]]) if "voices" in row else (),
        **{name: _fixed(row[name]) for name in _COLUMNS & row.keys()},
    )


def _flat(model_id: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = rows[model_id]
    if "like" not in row:
        return row
    inherited = _flat(row["like"], rows)
    # Where a model is offered and what it is called abroad belong to it alone; a limit of its own holds everywhere.
    alone = {"abroad_id", "regions"} | ({"limit_abroad"} if "limit" in row else set())
    return {key: inherited[key] for key in inherited.keys() - alone} | row


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
    return {tier: _micro(price) for tier, price in prices.items()}


def _micro(price: float) -> int:
    return round(price * 1_000_000)


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_COLUMNS = {each.name for each in fields(Model) if each.default is not MISSING or each.default_factory is not MISSING}
