"""Questions about pictures, clips and sound: what is checked, how they are sent, what is read, and what they cost."""

from __future__ import annotations

import struct
from base64 import b64encode
from datetime import date
from typing import Any

import httpx
import pytest
from serving import Served
from stage import Stage

from ops.sandbox import sound
from worker import catalog, kinds
from worker.errors import InvalidInput
from worker.kinds import KINDS
from worker.kinds.understand import Understand
from worker.states import State

CATALOG = catalog.load()
KIND = kinds.call("understand")
TODAY = date(2026, 11, 27)
BEIJING = "cn-beijing"
PICTURE, CLIP, SOUND = "https://example.com/a.png", "https://example.com/a.mp4", "https://example.com/a.wav"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24


def inline(width: int, height: int, colour: int = 2) -> str:
    """The header of a picture of these sides; colour type 6 has an alpha channel."""
    head = PNG[:8] + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return f"data:image/png;base64,{b64encode(head).decode()}"


def checked(model: str, **wanted: Any) -> Understand:
    taken = KIND.check(CATALOG, CATALOG.model(model), {"prompt": "What is it?", **wanted}, None)
    assert isinstance(taken, Understand)
    return taken


def faults(model: str, **wanted: Any) -> dict[str, str]:
    """Pointer → code; empty where the input is taken."""
    try:
        checked(model, **wanted)
    except InvalidInput as refused:
        return {fault.pointer: fault.code for fault in refused.faults}
    return {}


def price(model: str, **wanted: Any) -> int | None:
    """What is reserved, in micro-yuan."""
    entry = CATALOG.model(model)
    return entry.price(KIND.estimate(entry, checked(model, **wanted)), BEIJING, TODAY)


# What is asked


@pytest.mark.parametrize(
    ("model", "wanted", "found"),
    [
        ("qwen3-vl-plus", {"pictures": [PICTURE] * 256}, {}),
        ("qwen3-vl-plus", {"pictures": [PICTURE] * 257}, {"/input/pictures": "too_long"}),
        ("qwen3-vl-plus", {"clips": [CLIP] * 65}, {"/input/clips": "too_many"}),
        ("qwen3-vl-plus", {"pictures": [PICTURE] * 200, "clips": [CLIP] * 57}, {"/input/pictures": "too_many"}),
        ("qwen3-vl-plus", {}, {"/input/pictures": "nothing_shown"}),
        ("qwen3-vl-plus", {"pictures": []}, {"/input/pictures": "nothing_shown"}),
        ("qwen3-vl-plus", {"sounds": [SOUND]}, {"/input/sounds": "not_taken", "/input/max_seconds": "not_taken"}),
        ("qwen3-vl-plus", {"pictures": [inline(10, 300)]}, {"/input/pictures": "picture_unfit"}),
        ("qwen3-vl-plus", {"pictures": [inline(11, 2211)]}, {"/input/pictures": "picture_unfit"}),
        ("qwen3-vl-plus", {"pictures": [inline(11, 2200)]}, {}),
        ("qwen3-vl-plus", {"pictures": [inline(800, 600, colour=6)]}, {}),  # a screenshot
        ("qwen3-vl-plus", {"pictures": ["a.png"]}, {"/input/pictures/0": "bad_link"}),
        ("qwen3-vl-plus", {"pictures": PICTURE, "max_pixels": 4095}, {"/input/max_pixels": "not_allowed"}),
        ("qwen3-vl-plus", {"pictures": PICTURE, "max_pixels": 16777216}, {}),
        ("qwen-vl-max", {"pictures": PICTURE, "max_pixels": 16777216}, {"/input/max_pixels": "not_allowed"}),
        ("qwen3-vl-plus", {"pictures": PICTURE, "fps": 2}, {"/input/fps": "needs_clips"}),
        ("qwen3-vl-plus", {"clips": CLIP, "fps": 11}, {"/input/fps": "less_than_equal"}),
        ("qwen-vl-max", {"pictures": PICTURE, "enable_thinking": True}, {"/input/enable_thinking": "not_taken"}),
        (
            "qwen3-vl-plus",
            {"pictures": PICTURE, "enable_thinking": True, "response_format": "json"},
            {"/input/response_format": "contradiction"},
        ),
        ("qwen3.5-omni-plus", {"pictures": PICTURE, "clips": CLIP, "sounds": SOUND}, {}),
        ("qwen3-omni-flash", {"pictures": PICTURE, "sounds": SOUND}, {"/input/pictures": "contradiction"}),
        ("qwen3-omni-flash", {"sounds": [SOUND] * 2}, {"/input/sounds": "too_many"}),
        ("qwen3.5-omni-plus", {"sounds": SOUND, "response_format": "json"}, {"/input/response_format": "not_taken"}),
        ("qwen3.6-plus", {"pictures": PICTURE, "messages": []}, {"/input/messages": "unknown_field"}),
        ("qwen-plus", {"pictures": PICTURE}, {"/model": "wrong_kind"}),
    ],
)
def test_what_a_model_cannot_look_at_is_named_before_it_is_paid(
    model: str, wanted: dict[str, Any], found: dict[str, str]
) -> None:
    if "sounds" in wanted and found.get("/input/sounds") == "not_taken":
        wanted = {**wanted, "max_seconds": 5}

    assert faults(model, **wanted) == found


@pytest.mark.parametrize(
    ("model", "wanted", "tokens"),
    [
        # h*w / (32*32) + 2 ('Visual understanding'), and at most what a picture is scaled to
        ("qwen3-vl-plus", {"pictures": [inline(1024, 768)]}, (770, 0)),
        ("qwen3-vl-plus", {"pictures": [inline(8000, 6000)]}, (2562, 0)),
        ("qwen3-vl-plus", {"pictures": [inline(8000, 6000)], "max_pixels": 16777216}, (16386, 0)),
        ("qwen3-vl-plus", {"pictures": [inline(16, 16)]}, (6, 0)),
        # sides that are no whole tokens are rounded up, also where too small a picture is enlarged
        ("qwen3-vl-plus", {"pictures": [inline(1008, 1008)]}, (1026, 0)),
        ("qwen3-vl-plus", {"pictures": [inline(367, 13)]}, (14, 0)),
        ("qwen3-vl-plus", {"pictures": [inline(300, 11)]}, (13, 0)),
        ("qwen-vl-max", {"pictures": [inline(2790, 98)]}, (402, 0)),
        ("qwen3-vl-plus", {"pictures": [PICTURE, PICTURE]}, (5124, 0)),
        ("qwen-vl-max", {"pictures": PICTURE}, (2562, 0)),
        ("qwen3-vl-plus", {"clips": CLIP}, (131072, 0)),
        ("qwen3-omni-flash", {"sounds": SOUND}, (0, 3750)),
        ("qwen3.5-omni-plus", {"sounds": SOUND, "max_seconds": 60}, (0, 1500)),
        ("qwen3.5-omni-plus", {"clips": CLIP, "max_seconds": 60}, (131072, 1500)),
    ],
)
def test_what_is_shown_is_counted_at_the_most_that_it_may_be(
    model: str, wanted: dict[str, Any], tokens: tuple[int, int]
) -> None:
    units = KIND.estimate(CATALOG.model(model), checked(model, **wanted)).units

    assert (units["vision_tokens"], units["audio_tokens"]) == tokens
    assert units["input_tokens"] == units["text_tokens"] + sum(tokens)


def test_no_estimate_is_more_than_the_window() -> None:
    entry = CATALOG.model("qwen3.5-omni-plus")

    units = KIND.estimate(entry, checked(entry.id, sounds=[SOUND] * 3, pictures=[PICTURE] * 200)).units

    assert units["input_tokens"] == entry.context
    assert min(units[name] for name in ("text_tokens", "vision_tokens", "audio_tokens")) >= 0


@pytest.mark.parametrize("model", ["qwen3-vl-plus", "qwen3-vl-flash", "qwen-vl-max", "qwen3.5-plus", "qwen3.6-plus"])
def test_as_much_as_fits_into_the_window_has_a_price(model: str) -> None:
    assert price(model, pictures=[PICTURE] * 100)
    assert price(model, clips=[CLIP] * 2)
    assert price(model, clips=[CLIP] * 64)


def test_less_to_look_at_is_reserved_cheaper() -> None:
    clip, short = price("qwen3.5-omni-plus", clips=CLIP), price("qwen3.5-omni-plus", clips=CLIP, max_seconds=10)

    assert clip is not None
    assert short is not None
    assert short < clip


# What is sent: 'Qwen-VL, OpenAI-compatible' and 'Qwen-Omni' (May 2026), with our explicit defaults


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]


SEEN = {"type": "image_url", "image_url": {"url": PICTURE}}
PLAYED = {"type": "video_url", "video_url": {"url": CLIP}}
HEARD = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("models", "wanted", "body"),
    [
        (
            ("qwen-vl-plus", "qwen-vl-max"),
            {"pictures": [PICTURE]},
            {"messages": user(SEEN), "max_tokens": 4096},
        ),
        (
            ("qwen3-vl-plus", "qwen3-vl-flash", "qwen3-vl-plus-2025-12-19", "qwen3.5-plus", "qwen3.6-plus"),
            {"pictures": [PICTURE], "clips": [CLIP], "fps": 2, "max_pixels": 1003520},
            {
                "messages": user({**SEEN, "max_pixels": 1003520}, {**PLAYED, "fps": 2}),
                "max_tokens": 4096,
                "enable_thinking": False,
            },
        ),
        (
            ("qwen3-vl-plus", "qwen3.6-flash"),
            {"pictures": [PICTURE], "enable_thinking": True, "thinking_budget": 81920},
            {
                "messages": user(SEEN),
                "enable_thinking": True,
                "thinking_budget": 81920,
                "max_tokens": 4096,
                **STREAMED,
            },
        ),
        (
            ("qwen3.5-omni-plus", "qwen3.5-omni-flash"),
            {"sounds": [SOUND]},
            {"messages": user(HEARD), "modalities": ["text"], "max_tokens": 4096, **STREAMED},
        ),
        (
            ("qwen3-omni-flash",),
            {"clips": [CLIP]},
            {
                "messages": user(PLAYED),
                "modalities": ["text"],
                "enable_thinking": False,
                "max_tokens": 4096,
                **STREAMED,
            },
        ),
    ],
)
def test_a_request_is_the_pages_sample_and_our_explicit_defaults(
    models: tuple[str, ...], wanted: dict[str, Any], body: dict[str, Any]
) -> None:
    for name in models:
        sent = KIND.request(CATALOG.model(name), BEIJING, checked(name, **wanted))

        assert (sent.path, sent.surface, sent.headers) == ("/chat/completions", "compatible", {})
        assert sent.body == {"model": name, **body}
        assert sent.streams is ("stream" in body)


def test_every_model_that_understands_makes_a_request() -> None:
    for model in CATALOG.models("understand"):
        sounds = {"sounds": SOUND} if model.sound_tokens else {"pictures": PICTURE}
        for region in model.regions:
            sent = KIND.request(model, region, checked(model.id, **sounds))
            assert sent.body["model"] == model.id
            assert model.price(KIND.estimate(model, checked(model.id, **sounds)), region, TODAY), (model.id, region)


# What is answered. Shapes of 'Qwen-VL, OpenAI-compatible', 'Qwen-Omni' and of recorded answers.
@pytest.mark.parametrize(
    ("model", "wanted", "told", "units", "cost"),
    [
        (
            "qwen3-vl-plus",
            {"pictures": PICTURE},
            {
                "prompt_tokens": 1259,
                "completion_tokens": 267,
                "prompt_tokens_details": {"audio_tokens": None, "cached_tokens": 0},
                "completion_tokens_details": {"text_tokens": 267, "reasoning_tokens": None},
            },
            {"input_tokens": 1259, "output_tokens": 267},
            1_259 + 2_670,
        ),
        (
            "qwen3-vl-plus",
            {"pictures": PICTURE},
            {
                "prompt_tokens": 40_000,
                "completion_tokens": 100,
                "prompt_tokens_details": {"image_tokens": 39_990, "text_tokens": 10, "cached_tokens": 20_000},
            },
            {"input_tokens": 40_000, "vision_tokens": 39_990, "text_tokens": 10, "cached_tokens": 20_000},
            (20_000 + 4_000) * 3 // 2 + 1_500,
        ),
        (
            "qwen3.5-omni-plus",
            {"clips": CLIP},
            {
                "prompt_tokens": 3_000,
                "completion_tokens": 50,
                "prompt_tokens_details": {"audio_tokens": 100, "video_tokens": 2_800, "text_tokens": 100},
            },
            {"audio_tokens": 100, "vision_tokens": 2_800, "text_tokens": 100, "output_tokens": 50},
            5_300 + 2_900 * 7 + 2_000,
        ),
        (  # no details: they are shared out as they were estimated
            "qwen3-omni-flash",
            {"sounds": SOUND},
            {"prompt_tokens": 500, "completion_tokens": 10},
            {"audio_tokens": 500, "vision_tokens": 0, "text_tokens": 0},
            7_900 + 127,
        ),
    ],
)
def test_tokens_are_read_by_what_they_are_of_and_billed_so(
    model: str, wanted: dict[str, Any], told: dict[str, Any], units: dict[str, Any], cost: int
) -> None:
    entry = CATALOG.model(model)
    answer = {"output": {"choices": [{"message": {"content": "a cat"}, "finish_reason": "stop"}]}, "usage": told}

    used = KIND.usage(entry, checked(model, **wanted), answer)

    assert units.items() <= used.units.items()
    assert sum(used.units[f"{name}_tokens"] for name in ("text", "vision", "audio")) == used.units["input_tokens"]
    assert entry.price(used, BEIJING, TODAY) == cost


@pytest.mark.parametrize("told", [None, {}, {"prompt_tokens": "many"}, {"prompt_tokens_details": 5}])
def test_an_answer_without_counts_is_billed_as_it_was_estimated(told: Any) -> None:
    entry, wanted = CATALOG.model("qwen3-vl-plus"), checked("qwen3-vl-plus", pictures=PICTURE)

    used = KIND.usage(entry, wanted, {"output": {"choices": [{"message": {"content": "a cat"}}]}, "usage": told})

    assert used.units["input_tokens"] == KIND.estimate(entry, wanted).units["input_tokens"]


# With the API and the engine


def test_files_are_held_against_the_model_and_the_seconds_that_were_told(http: httpx.Client, api: Served) -> None:
    def given(name: str, content: bytes) -> str:
        key: str = http.post("/v1/files", files={"file": (name, content)}).json()["key"]
        return key

    def asked(**wanted: Any) -> list[str]:
        body = {"kind": "understand", "model": "qwen3.5-omni-plus", "input": {"prompt": "What is said?", **wanted}}
        return [fault["message"] for fault in http.post("/v1/jobs?dry_run=true", json=body).json().get("errors", ())]

    picture, speech = given("a.png", PNG), given("a.wav", sound.wav("一二三" * 10, "Cherry"))

    assert asked(sounds=[speech], max_seconds=4) == asked(pictures=picture, sounds=speech) == []
    assert "plays 3.6 seconds, and max_seconds says 3" in asked(sounds=[speech], max_seconds=3)[0]
    assert "must be sound (WAV, MP3)" in asked(sounds=picture)[0]


def test_a_dry_run_tells_what_looking_may_cost(http: httpx.Client) -> None:
    body = {"kind": "understand", "model": "qwen3-vl-plus", "input": {"prompt": "What is it?", "pictures": PICTURE}}

    told = http.post("/v1/jobs?dry_run=true", json=body).json()

    # (2,562 + 4) tokens at 1 CNY a million, and 4,096 at 10
    assert told["cost"]["estimated"] == "0.043526"


@pytest.mark.parametrize(
    ("model", "sort", "name", "said"),
    [
        ("qwen3-vl-plus", "pictures", "0199.png", "I was shown image 0199.png."),
        ("qwen-vl-max", "clips", "0199.mp4", "I was shown video 0199.mp4."),
        ("qwen3.5-omni-flash", "sounds", "0199.wav", "I was shown audio 0199.wav."),
        ("qwen3.6-plus", "pictures", "0199.png", "I was shown image 0199.png."),
    ],
)
def test_a_file_is_shown_and_what_is_said_of_it_is_kept(
    play: Stage, model: str, sort: str, name: str, said: str
) -> None:
    kind = {"pictures": "image/png", "clips": "video/mp4", "sounds": "audio/wav"}[sort]
    key = play.file(PNG, kind, name)

    made = play.until(play.submit("understand", model, input={"prompt": "What is it?", sort: [key]}))

    assert made.state == State.SUCCEEDED, made.error
    assert made.result is not None
    assert made.result["content"].startswith(said)
    (task,) = play.sandbox.ledger()["tasks"]
    assert made.cost == task["billed_micros"] > 0


def test_an_answer_fits_the_schema_that_was_asked_for(play: Stage) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    wanted = {"prompt": "What is it?", "pictures": [PICTURE], "response_format": schema}

    made = play.until(play.submit("understand", "qwen3-vl-flash", input=wanted))

    assert made.state == State.SUCCEEDED, made.error
    assert made.result is not None
    assert set(made.result["json"]) == {"name"}


def test_a_file_of_many_is_one_batch(http: httpx.Client) -> None:
    table = "kind,model,prompt,pictures\n" + "".join(
        f"understand,qwen3-vl-flash,What is on it?,https://example.com/{n}.png\n" for n in range(50)
    )

    draft = http.post("/v1/batches", files={"file": ("rows.csv", table.encode())}).json()

    assert (draft["rows"]["good"], draft["report"]["faults"]) == (50, [])


def test_every_sort_of_job_describes_what_it_shows_for_openapi() -> None:
    assert {"pictures", "clips", "sounds"} <= KINDS["understand"].input.model_json_schema()["properties"].keys()
