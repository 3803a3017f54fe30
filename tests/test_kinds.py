"""The kinds: inputs checked, requests spelled, answers read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from worker import catalog, kinds
from worker.catalog import Model
from worker.errors import Fault, InvalidInput
from worker.kinds import KINDS, Kind, ParentKind, Request, Source, fields, visual
from worker.states import Mode

TODAY = date(2026, 11, 21)
BEIJING, SINGAPORE = "cn-beijing", "ap-southeast-1"
PROMPT = "a kitten runs in the moonlight"
PICTURE = "https://example.com/cat.png?Signature=a%2Bb"
CLIP, SOUND = "https://example.com/cat.mp4", "https://example.com/cat.mp3"
SHAPE = ("size", "resolution", "ratio", "duration", "n")
INPUTS: dict[str, dict[str, Any]] = {
    "text-to-video": {"prompt": PROMPT},
    "image-to-video": {"img_url": PICTURE},
    "reference-to-video": {"prompt": PROMPT, "references": [{"picture": PICTURE}]},
    "video-edit": {"prompt": PROMPT, "video_url": CLIP},
    "text-to-image": {"prompt": PROMPT},
    "image-edit": {"prompt": PROMPT, "pictures": [PICTURE]},
}
CATALOG = catalog.load()
MEDIA = [(model, kind) for model in CATALOG.models() for kind in model.kinds if kind in INPUTS]


def complete(model: Model, kind: str = "", **more: Any) -> dict[str, Any]:
    """The least that this model needs for a kind, by default its first, and more."""
    least = INPUTS[kind or model.kinds[0]]
    needed = [name for name in model.requires if name in KINDS[kind or model.kinds[0]].input.model_fields]
    return {**dict.fromkeys(needed, PICTURE), **least, **more}


def checked(name: str, region: str | None = BEIJING, /, **raw: Any) -> dict[str, Any]:
    """The checked input as it is stored."""
    model = catalog.load().model(name)
    return KINDS[model.kinds[0]].check(CATALOG, model, raw, region).model_dump(exclude_none=True)


def faults(name: str, raw: Any, region: str | None = BEIJING, kind: str | None = None) -> dict[str, Fault]:
    """The faults of such an input by pointer."""
    model = catalog.load().model(name)
    with pytest.raises(InvalidInput) as raised:
        KINDS[kind or model.kinds[0]].check(CATALOG, model, raw, region)
    return {fault.pointer: fault for fault in raised.value.faults}


def request(name: str, region: str = BEIJING, **raw: Any) -> Request:
    model = catalog.load().model(name)
    kind = KINDS[model.kinds[0]]
    return kind.request(model, region, kind.check(CATALOG, model, raw, region))


def storable(value: Any) -> bool:
    """Whether Postgres takes it as jsonb: no NaN, no NUL, no half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "\\u0000" not in text and bool(text.encode())


# The input


def test_what_the_user_leaves_out_is_filled_in_from_the_catalog() -> None:
    assert checked("wan2.5-t2v-plus", prompt=PROMPT) == {
        "prompt": PROMPT,
        "size": "832*480",
        "duration": 5,
        "prompt_extend": True,
        "watermark": False,
    }


def test_what_the_user_says_stands() -> None:
    said = {"prompt": PROMPT, "size": "1920*1080", "duration": 10, "prompt_extend": False, "watermark": True, "seed": 0}

    assert checked("wan2.5-t2v-preview", **said) == said


def test_null_means_left_out() -> None:
    assert checked("wan2.6-t2i", prompt=PROMPT, n=None, seed=None)["n"] == 1


@pytest.mark.parametrize(
    ("name", "field", "written", "taken"),
    [
        ("wan2.5-t2v-preview", "size", "1280x720", "1280*720"),
        ("wan2.5-t2v-preview", "size", "1280 × 720", "1280*720"),
        ("wan2.5-t2v-preview", "duration", "10", 10),
        ("wan2.5-t2v-preview", "watermark", "true", True),
        ("wan2.7-t2v", "resolution", "1080p", "1080P"),
        ("wan2.7-image", "size", "1k", "1K"),
    ],
)
def test_values_may_be_written_as_a_table_of_text_has_them(name: str, field: str, written: str, taken: Any) -> None:
    assert checked(name, **{"prompt": PROMPT, field: written})[field] == taken


@pytest.mark.parametrize("name", ["img_url", "image_url", "first_frame_url"])
def test_the_first_picture_goes_by_the_names_that_people_know(name: str) -> None:
    assert checked("wan2.6-i2v", **{name: PICTURE})["img_url"] == PICTURE


def test_every_wrong_field_is_named_at_once() -> None:
    wrong = {
        "prompt": "x" * 1501,
        "negative_prompt": "\0",
        "size": "1:1",
        "duration": 7,
        "seed": -1,
        "watermark": "maybe",
        "audio_url": "file:///etc/passwd",
        "shot_type": "multi",
        "ratio": "16:9",
        "sseed": 1,
        "a/b~c": 1,
    }

    found = faults("wan2.5-t2v-preview", wrong)

    assert {pointer: fault.code for pointer, fault in found.items()} == {
        "/input/prompt": "too_long",
        "/input/negative_prompt": "bad_text",
        "/input/size": "not_allowed",
        "/input/duration": "not_allowed",
        "/input/seed": "greater_than_equal",
        "/input/watermark": "bool_parsing",
        "/input/audio_url": "bad_link",
        "/input/shot_type": "not_taken",
        "/input/ratio": "not_taken",
        "/input/sseed": "unknown_field",
        "/input/a~1b~0c": "unknown_field",
    }


def test_an_overlong_prompt_is_refused_with_its_length_and_the_limit() -> None:
    message = faults("wan2.2-t2v-plus", {"prompt": "猫" * 801})["/input/prompt"].message

    assert "801" in message
    assert "800" in message
    assert "bill" in message
    assert checked("wan2.2-t2v-plus", prompt="猫" * 800)["prompt"] == "猫" * 800


def test_a_value_out_of_its_list_is_told_the_list() -> None:
    found = faults("wan2.6-t2v-us", {"prompt": PROMPT, "size": "832*480", "duration": 7}, "us-east-1")

    assert "1280*720, 720*1280" in found["/input/size"].message
    assert "5, 10" in found["/input/duration"].message


def test_a_field_that_the_model_does_not_take_names_the_models_that_do() -> None:
    message = faults("wan2.6-i2v", {"img_url": PICTURE, "audio": False})["/input/audio"].message

    assert "models that take audio: wan2.6-i2v-flash" in message


def test_a_misspelled_field_is_told_the_nearest_one() -> None:
    assert (
        "negative_prompt?"
        in faults("wan2.6-t2i", {"prompt": PROMPT, "negativ_prompt": "x"})["/input/negativ_prompt"].message
    )


@pytest.mark.parametrize(
    ("name", "raw", "pointer"),
    [
        ("wan2.6-t2v", {}, "/input/prompt"),
        ("wan2.6-t2i", {"prompt": None}, "/input/prompt"),
        ("wan2.6-i2v", {"prompt": PROMPT}, "/input/img_url"),
        ("wan2.2-kf2v-flash", {"img_url": PICTURE}, "/input/last_frame_url"),
    ],
)
def test_what_is_missing_is_required(name: str, raw: dict[str, Any], pointer: str) -> None:
    assert faults(name, raw)[pointer].code == "required"


def test_an_effect_needs_no_last_frame() -> None:
    assert "last_frame_url" not in checked("wan2.2-kf2v-flash", img_url=PICTURE, template="hufu-1")


def test_a_prompt_of_blanks_says_nothing() -> None:
    assert faults("wan2.6-t2v", {"prompt": " \n"})["/input/prompt"].code == "blank"


def test_a_model_of_another_kind_is_told_its_kind() -> None:
    found = faults("wan2.6-i2v", {"prompt": PROMPT}, kind="text-to-video")

    assert found["/model"].code == "wrong_kind"
    assert "image-to-video" in found["/model"].message
    assert "wan2.6-t2v" in found["/model"].message


def test_a_model_that_the_region_does_not_serve_names_the_regions() -> None:
    found = faults("wan2.2-kf2v-flash", INPUTS["image-to-video"], SINGAPORE)

    assert found["/model"].code == "not_in_region"
    assert BEIJING in found["/model"].message


def test_a_retired_model_is_refused() -> None:
    ended = {"retired": date(2026, 11, 1), "retired_by": "notice", "successor": "wan2.7-t2v"}
    retired = catalog.load().model("wan2.6-t2v").model_copy(update=ended)

    with pytest.raises(InvalidInput) as raised:
        KINDS["text-to-video"].check(CATALOG, retired, INPUTS["text-to-video"], None)

    assert raised.value.faults[0].code == "retired_model"
    assert "on 2026-11-01: take wan2.7-t2v;" in raised.value.faults[0].message


def test_a_model_that_only_others_call_retired_is_taken() -> None:
    assert checked("qwen-image-max", prompt=PROMPT)["n"] == 1


def test_a_summary_is_reduced_by_no_model_that_has_ended() -> None:
    model, documents = catalog.load().model("qwen-flash"), [{"text": "words"}]

    with pytest.raises(InvalidInput) as raised:
        KINDS["summary"].check(CATALOG, model, {"documents": documents, "reduce_model": "qwen-turbo"}, None)

    assert [(fault.pointer, fault.code) for fault in raised.value.faults] == [("/input/reduce_model", "retired_model")]
    assert "take qwen3.6-flash" in raised.value.faults[0].message


def test_shots_are_chosen_only_while_the_prompt_is_extended() -> None:
    raw = {"prompt": PROMPT, "shot_type": "multi"}

    assert checked("wan2.6-t2v", **raw)["shot_type"] == "multi"
    assert faults("wan2.6-t2v", {**raw, "prompt_extend": False})["/input/shot_type"].code == "needs_prompt_extend"


def test_silence_and_a_sound_track_contradict_each_other() -> None:
    raw = {"img_url": PICTURE, "audio": False, "audio_url": "https://example.com/a.mp3"}

    assert faults("wan2.6-i2v-flash", raw)["/input/audio"].code == "contradiction"


@pytest.mark.parametrize(("name", "most"), [("wan2.6-t2i", 4), ("z-image-turbo", 1), ("qwen-image-2.0", 6)])
def test_a_call_makes_at_most_as_many_pictures_as_its_model(name: str, most: int) -> None:
    assert checked(name, prompt=PROMPT, n=most)["n"] == most
    assert faults(name, {"prompt": PROMPT, "n": most + 1})["/input/n"].code == "not_allowed"
    assert faults(name, {"prompt": PROMPT, "n": 0})["/input/n"].code == "not_allowed"


def test_happyhorse_is_asked_as_its_pages_show_and_never_for_more_than_it_reads() -> None:
    clip = request("happyhorse-1.0-t2v", prompt=PROMPT).body
    still = request("happyhorse-1.0-i2v", img_url=PICTURE, prompt=PROMPT).body

    shape = {"resolution": "720P", "duration": 5, "watermark": False}
    assert (clip["input"], clip["parameters"]) == ({"prompt": PROMPT}, {**shape, "ratio": "16:9"})
    assert still["input"] == {"prompt": PROMPT, "media": [{"type": "first_frame", "url": PICTURE}]}
    assert still["parameters"] == shape
    refused = faults("happyhorse-1.0-t2v", {"prompt": "猫" * 2501, "duration": 2, "negative_prompt": "blurred"})
    assert {pointer: fault.code for pointer, fault in refused.items()} == {
        "/input/prompt": "too_long",
        "/input/duration": "not_allowed",
        "/input/negative_prompt": "not_taken",
    }


@pytest.mark.parametrize(
    "link",
    [
        PICTURE,
        "http://example.com/cat.png",
        "oss://dashscope-instant/52af/2026-07-12/b744/cat.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "https://例子.测试/猫.png",
        "https://[2001:db8::1]/cat.png",
    ],
)
def test_a_picture_is_a_link_or_inline(link: str) -> None:
    assert checked("wan2.6-i2v", img_url=link)["img_url"] == link


@pytest.mark.parametrize(
    "link",
    [
        "",
        "cat.png",
        "ftp://example.com/cat.png",
        "file:///etc/passwd",
        "https://",
        "https://user:pass@example.com/cat.png",
        "https://example.com/a b.png",
        "https://example.com/\r\nHost: evil",
        "https://example.com\\@evil.com/",
        "https://[::1",
        "javascript:alert(1)",
        "data:text/html;base64,PGI+",
        "data:image/png;base64,not base64!",
        "data:image/svg+xml;base64,PGI+",
        "https://example.com/\ud800",
    ],
)
def test_nothing_else_is_a_picture(link: str) -> None:
    assert faults("wan2.6-i2v", {"img_url": link})["/input/img_url"].code == "bad_link"


def test_links_and_inline_pictures_have_an_end() -> None:
    long_link = "https://example.com/" + "x" * fields.LINK_LIMIT
    long_picture = "data:image/png;base64," + "A" * fields.INLINE_LIMIT

    assert faults("wan2.6-i2v", {"img_url": long_link})["/input/img_url"].code == "too_long"
    assert faults("wan2.6-i2v", {"img_url": long_picture})["/input/img_url"].code == "too_long"


def test_sound_is_never_inline() -> None:
    raw = {"prompt": PROMPT, "audio_url": "data:image/png;base64,AAAA"}

    assert faults("wan2.6-t2v", raw)["/input/audio_url"].code == "bad_link"


@pytest.mark.parametrize("raw", [None, [], "prompt", 5, [["prompt", "x"]]])
def test_an_input_that_is_no_object_is_refused(raw: Any) -> None:
    assert faults("wan2.6-t2v", raw)["/input"].code == "not_an_object"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=60),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KNOWN = sorted({name for kind in KINDS.values() for name in kind.input.model_fields} | {"image_url"})
VALUES = JSON | st.sampled_from(
    [PROMPT, PICTURE, "1280*720", "720P", "16:9", "1024*1024", "2K", 5, 1, True, "multi", "x" * 6000, "\ud800", "\0"]
)
INPUT = st.dictionaries(st.sampled_from(KNOWN) | st.text(st.characters(), max_size=8), VALUES, max_size=8) | JSON


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from([KINDS[name] for name in INPUTS]),
    model=st.sampled_from(catalog.load().models()),
    raw=INPUT,
    region=st.sampled_from([None, BEIJING, SINGAPORE]),
)
def test_a_check_gives_a_sendable_input_or_faults_that_can_be_stored(
    kind: Kind, model: Model, raw: Any, region: str | None
) -> None:
    try:
        taken = kind.check(CATALOG, model, raw, region)
    except InvalidInput as invalid:
        found: list[Any] = [[fault.pointer, fault.code, fault.message] for fault in invalid.faults]
    else:
        sent = (
            kind.request(model, region or next(iter(model.regions)), taken).body
            if not isinstance(kind, ParentKind)
            else None
        )
        found = [sent or taken.model_dump(mode="json")]

    assert found
    assert storable(found)


# The request


def test_a_clip_from_words_is_asked_for_as_documented() -> None:
    assert request("wan2.5-t2v-plus", prompt=PROMPT, negative_prompt="blur", size="1280*720", seed=7) == Request(
        path="/services/aigc/video-generation/video-synthesis",
        headers={"X-DashScope-Async": "enable"},
        body={
            "model": "wan2.5-t2v-preview",
            "input": {"prompt": PROMPT, "negative_prompt": "blur"},
            "parameters": {
                "size": "1280*720",
                "duration": 5,
                "prompt_extend": True,
                "watermark": False,
                "seed": 7,
            },
        },
    )


def test_wan_27_takes_resolution_and_ratio() -> None:
    sent = request("wan2.7-t2v", prompt=PROMPT, audio_url="https://example.com/a.mp3").body

    assert sent["input"] == {"prompt": PROMPT, "audio_url": "https://example.com/a.mp3"}
    assert sent["parameters"] == {
        "resolution": "720P",
        "ratio": "16:9",
        "duration": 5,
        "prompt_extend": True,
        "watermark": False,
    }


def test_a_clip_from_a_picture_is_asked_for_as_documented() -> None:
    sent = request("wan2.6-i2v-flash", img_url=PICTURE, prompt=PROMPT, audio=False)

    assert sent.path == "/services/aigc/video-generation/video-synthesis"
    assert sent.body["input"] == {"img_url": PICTURE, "prompt": PROMPT}
    assert sent.body["parameters"]["audio"] is False
    assert sent.body["parameters"]["resolution"] == "720P"


def test_key_frames_have_a_path_and_names_of_their_own() -> None:
    sent = request("wan2.1-kf2v-plus", SINGAPORE, img_url=PICTURE, last_frame_url="https://example.com/end.png")

    assert sent.path == "/services/aigc/image2video/video-synthesis"
    assert sent.body["model"] == "wan2.1-kf2v-plus"
    assert sent.body["input"] == {"first_frame_url": PICTURE, "last_frame_url": "https://example.com/end.png"}


def test_wan_27_takes_a_list_of_media() -> None:
    sent = request(
        "wan2.7-i2v",
        img_url=PICTURE,
        last_frame_url="https://example.com/end.png",
        audio_url="https://example.com/a.mp3",
    )

    assert sorted(sent.body["input"]["media"], key=lambda item: str(item["type"])) == [
        {"type": "driving_audio", "url": "https://example.com/a.mp3"},
        {"type": "first_frame", "url": PICTURE},
        {"type": "last_frame", "url": "https://example.com/end.png"},
    ]
    assert sent.body["input"].keys() == {"media"}


def test_pictures_are_asked_for_by_either_protocol() -> None:
    older, newer = request("wan2.5-t2i-preview", prompt=PROMPT, n=2), request("wan2.6-t2i", prompt=PROMPT, n=2)

    assert older.path == "/services/aigc/text2image/image-synthesis"
    assert older.body["input"] == {"prompt": PROMPT}
    assert newer.path == "/services/aigc/image-generation/generation"
    assert newer.body["input"] == {"messages": [{"role": "user", "content": [{"text": PROMPT}]}]}
    assert older.body["parameters"] == newer.body["parameters"]
    assert newer.body["parameters"] == {"size": "1280*1280", "n": 2, "prompt_extend": True, "watermark": False}


def test_a_sequence_of_pictures_is_never_made_by_default() -> None:
    assert request("wan2.7-image", prompt=PROMPT).body["parameters"]["enable_sequential"] is False


def test_a_model_that_answers_in_the_call_gets_no_async_header() -> None:
    assert request("qwen-image-2.0-pro", prompt=PROMPT).headers == {}


def shapes(model: Model, kind: Kind) -> Iterator[dict[str, Any]]:
    """Every combination of size or resolution, ratio, duration and number that the model can be asked for."""
    sizes = (model.edited_sizes if kind.name == "image-edit" else None) or model.sizes
    for size in sizes.named if sizes else [None]:
        for resolution in model.resolutions or [None]:
            for ratio in model.ratios if model.ratios and "ratio" in kind.input.model_fields else [None]:
                for duration in model.durations or [None]:
                    for n in range(1, model.n_max + 1) or [None]:
                        shape = zip(SHAPE, (size, resolution, ratio, duration, n), strict=True)
                        yield {name: value for name, value in shape if value is not None}


@pytest.mark.parametrize(("model", "name"), MEDIA, ids=str)
def test_every_model_makes_a_complete_request_of_every_shape(model: Model, name: str) -> None:
    kind = KINDS[name]
    told = {*model.choices, *({"prompt_extend", "watermark", "audio", "thinking_mode"} & model.fields)}
    billed = told & kind.input.model_fields.keys()  # and a size, which every shape has
    for shape in shapes(model, kind):
        for region, there in model.regions.items():
            taken = kind.check(CATALOG, model, complete(model, name, **shape), region)

            sent = kind.request(model, region, taken)

            assert sent.path == model.path
            assert sent.body.keys() == {"model", "input", "parameters"}
            assert sent.body["model"] == there.id
            assert billed <= sent.body["parameters"].keys()
            assert shape.items() <= sent.body["parameters"].items()
            assert ("X-DashScope-Async" in sent.headers) is (model.mode is Mode.TASK)
            assert kind.input.model_validate(taken.model_dump(exclude_none=True)) == taken


@pytest.mark.parametrize(("model", "name"), MEDIA, ids=str)
def test_every_priced_shape_has_an_estimate(model: Model, name: str) -> None:
    kind = KINDS[name]
    for shape in shapes(model, kind):
        for region, there in model.regions.items():
            taken = kind.check(CATALOG, model, complete(model, name, **shape), region)

            cost = model.price(kind.estimate(model, taken), region, TODAY)

            unpriced = model.id == "wan2.2-i2v-flash" and region == SINGAPORE and shape["resolution"] == "1080P"
            assert (cost is not None and cost > 0) == (bool(there.prices) and not unpriced)


# The answer


@pytest.mark.parametrize(
    ("kind", "output", "links"),
    [
        ("text-to-video", {"video_url": "https://oss/x.mp4?Signature=a%3D"}, ["https://oss/x.mp4?Signature=a%3D"]),
        ("image-to-video", {"results": {"video_url": "http://oss/x.mp4"}}, ["http://oss/x.mp4"]),
        (
            "text-to-image",
            {"results": [{"url": "https://oss/1.png"}, {"code": "X"}, {"url": "https://oss/2.png"}]},
            ["https://oss/1.png", "https://oss/2.png"],
        ),
        (
            "text-to-image",
            {
                "choices": [
                    {"message": {"content": [{"image": "https://oss/1.png"}, {"text": "a"}]}},
                    {"message": {"content": [{"image": "https://oss/2.png"}]}},
                ]
            },
            ["https://oss/1.png", "https://oss/2.png"],
        ),
        (
            "text-to-image",
            {"results": [{"url": "https://oss/1.png"}, {"url": "https://oss/1.png"}]},
            ["https://oss/1.png"],
        ),
        ("text-to-video", {}, []),
        ("text-to-video", {"video_url": None, "results": "none", "choices": [None, {"message": 3}]}, []),
        ("text-to-video", {"video_url": "ftp://x"}, []),
    ],
)
def test_links_are_found_wherever_a_protocol_puts_them(kind: str, output: dict[str, Any], links: list[str]) -> None:
    role, extension = ("image", "png") if kind == "text-to-image" else ("video", "mp4")

    assert KINDS[kind].outputs(output) == tuple(Source(link, role, extension) for link in links)


def test_the_parts_that_failed_are_told() -> None:
    output = {
        "results": [
            {"url": "https://oss/1.png"},
            {"code": "DataInspectionFailed", "message": "Output data may contain inappropriate content."},
        ]
    }

    assert KINDS["text-to-image"].failures(output) == (
        {"code": "DataInspectionFailed", "message": "Output data may contain inappropriate content."},
    )
    assert KINDS["text-to-video"].failures({"results": {"video_url": "https://oss/x"}}) == ()


@pytest.mark.parametrize(
    ("name", "raw", "reported", "seconds", "tier"),
    [
        # 2.6 and later, text to video; numbers as floats and strings in some recordings
        (
            "wan2.6-t2v",
            {},
            {"duration": 10.0, "input_video_duration": 0, "output_video_duration": 10, "SR": "720", "size": "1280*720"},
            10,
            "720P",
        ),
        ("wan2.7-i2v", {}, {"duration": 5, "output_video_duration": 5, "SR": 1080, "ratio": "16:9"}, 5, "1080P"),
        ("wan2.6-i2v", {}, {"duration": "7.5", "SR": "1080P"}, 7.5, "1080P"),
        ("wan2.6-i2v", {}, {"duration": "5.0", "SR": 1080.0}, 5, "1080P"),
        # 2.5 and 2.2, image to video
        ("wan2.5-i2v-preview", {}, {"SR": 480, "duration": 5, "video_count": 1}, 5, "480P"),
        # 2.5 and older, text to video
        ("wan2.5-t2v-preview", {}, {"video_duration": 5, "video_ratio": "832*480", "video_count": 1}, 5, "480P"),
        ("wan2.5-t2v-preview", {}, {"video_duration": 5, "video_ratio": "1440*1440"}, 5, "1080P"),
        # 2.1, image to video: the ratio says nothing, the request does
        ("wanx2.1-i2v-turbo", {"resolution": "720P"}, {"video_duration": 3, "video_ratio": "standard"}, 3, "720P"),
        # silent answers: the request's own numbers
        ("wan2.5-t2v-preview", {"size": "720*1280", "duration": 10}, None, 10, "720P"),
        ("wan2.5-t2v-preview", {"duration": 10}, {"video_duration": 0, "video_ratio": ""}, 10, "480P"),
        ("wan2.5-t2v-preview", {}, {"duration": "five", "SR": True}, 5, "480P"),
        ("wan2.5-t2v-preview", {}, {"duration": float("nan"), "SR": None}, 5, "480P"),
    ],
)
def test_seconds_and_tier_are_read_from_every_generation(
    name: str, raw: dict[str, Any], reported: Any, seconds: float, tier: str
) -> None:
    model = catalog.load().model(name)
    kind = KINDS[model.kinds[0]]
    taken = kind.check(CATALOG, model, complete(model, **raw), None)

    units = kind.usage(model, taken, {"output": {}, "usage": reported}).units

    assert units["seconds"] == seconds
    assert units["tier"] == tier


@pytest.mark.parametrize(("reported", "audio"), [({"audio": False}, False), ({"audio": True}, True), ({}, False)])
def test_whether_a_clip_has_sound_moves_its_price(reported: dict[str, Any], audio: bool) -> None:
    model = catalog.load().model("wan2.6-i2v-flash")
    kind = KINDS["image-to-video"]
    taken = kind.check(CATALOG, model, {"img_url": PICTURE, "audio": False}, None)

    usage = kind.usage(model, taken, {"usage": {"duration": 10, "SR": 720, **reported}})

    assert usage.units["audio"] is audio
    assert model.price(usage, BEIJING, TODAY) == (3_000_000 if audio else 1_500_000)


@pytest.mark.parametrize(
    ("answer", "images"),
    [
        ({"usage": {"image_count": 1}, "output": {"results": [{"url": "https://o/1"}, {"code": "X"}]}}, 1),
        ({"usage": {"image_count": "2"}}, 2),
        ({"usage": {"output_image_count": 2, "width": 1664}}, 2),  # of qwen-image-3.0
        ({"output": {"results": [{"url": "https://o/1"}, {"url": "https://o/2"}, {"url": "https://o/3"}]}}, 3),
        ({"usage": {"height": 928, "image_count": 1, "width": 1664}}, 1),
        ({"usage": None, "output": None}, 4),
        ({}, 4),
    ],
)
def test_pictures_are_counted_as_the_provider_or_the_links_say(answer: dict[str, Any], images: int) -> None:
    model = catalog.load().model("wan2.6-t2i")
    kind = KINDS["text-to-image"]
    taken = kind.check(CATALOG, model, {"prompt": PROMPT, "n": 4}, None)

    assert kind.usage(model, taken, answer).units["images"] == images


def test_what_else_was_reported_is_kept_where_it_can_be_stored() -> None:
    model = catalog.load().model("wan2.6-t2v")
    kind = KINDS["text-to-video"]
    taken = kind.check(CATALOG, model, {"prompt": PROMPT}, None)

    odd = {"novelty": "x", "nan": float("nan"), "vast": 10**400, "nul": "\0", "list": [1]}
    units = kind.usage(model, taken, {"usage": {"duration": 5, "SR": 720, "video_count": 1, **odd}}).units

    assert units["video_count"] == 1
    assert units["novelty"] == "x"
    assert units.keys() & {"nan", "vast", "nul", "list"} == set()


@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from([catalog.load().model(name) for name in ("wan2.6-t2v", "wan2.6-i2v-flash", "wan2.6-t2i")]),
    answer=st.fixed_dictionaries(
        {},
        optional={
            "output": JSON
            | st.fixed_dictionaries({}, optional=dict.fromkeys(("results", "choices", "video_url"), JSON)),
            "usage": JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(("duration", "SR", "image_count"), JSON)),
        },
    ),
)
def test_no_answer_is_too_odd_to_be_billed(model: Model, answer: dict[str, Any]) -> None:
    kind = KINDS[model.kinds[0]]
    taken = kind.check(CATALOG, model, complete(model), None)
    output = answer.get("output")

    usage = kind.usage(model, taken, answer)

    assert usage.units["images" if model.n_max else "seconds"] > 0
    assert storable(usage.units)
    assert isinstance(kind.echoed(model, answer), dict)
    assert isinstance(kind.outputs(output if isinstance(output, Mapping) else {}), tuple)


# Words and echoes


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("wan2.5-t2v-preview", {"size": "1280*720"}, "1280*720 5 s"),
        ("wan2.7-t2v", {}, "720P 16:9 5 s"),
        ("wan2.6-i2v", {"duration": 12}, "720P 12 s"),
        ("wan2.2-t2i-plus", {"n": 2}, "1024*1024 ×2"),
    ],
)
def test_an_input_is_described_without_its_prompt(name: str, raw: dict[str, Any], words: str) -> None:
    model = catalog.load().model(name)
    kind = KINDS[model.kinds[0]]

    assert kind.words(kind.check(CATALOG, model, complete(model, prompt=PROMPT, **raw), None)) == words


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (
            "wan2.6-t2v",
            {"output": {"orig_prompt": PROMPT}, "usage": {"duration": 5.0, "SR": "720", "size": "1280*720"}},
        ),
        ("wan2.6-t2v", {"output": {"orig_prompt": PROMPT}, "usage": {"video_duration": 5, "video_ratio": "1280*720"}}),
        ("wan2.6-i2v", {"output": {"orig_prompt": PROMPT}, "usage": {"duration": 5, "SR": 720, "video_count": 1}}),
        ("wan2.6-t2i", {"output": {"results": [{"code": "X"}, {"orig_prompt": PROMPT}], "task_metrics": {"TOTAL": 1}}}),
    ],
)
def test_a_tasks_echoes_are_those_of_its_own_request(name: str, answer: dict[str, Any]) -> None:
    model = catalog.load().model(name)
    kind = KINDS[model.kinds[0]]
    own = kind.echoes(model, kind.check(CATALOG, model, complete(model, prompt=PROMPT), None))

    echoed = kind.echoed(model, answer)

    assert echoed["orig_prompt"] == PROMPT
    assert echoed.items() <= own.items()


def test_a_task_of_another_request_differs_in_an_echo() -> None:
    model = catalog.load().model("wan2.6-t2v")
    kind = KINDS["text-to-video"]
    own = kind.echoes(model, kind.check(CATALOG, model, {"prompt": PROMPT, "size": "720*1280"}, None))

    other = kind.echoed(
        model, {"output": {"orig_prompt": PROMPT}, "usage": {"duration": 5, "SR": 720, "size": "1280*720"}}
    )

    assert other["size"] != own["size"]
    assert other["tier"] == own["tier"]


# The interface


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_describes_its_input_for_openapi(kind: Kind) -> None:
    schema = kind.input.model_json_schema()

    assert schema["additionalProperties"] is False
    assert all(described.get("description") for described in schema["properties"].values())
    assert KINDS[kind.name] is kind


def test_every_field_of_the_catalog_is_a_field_of_its_kind() -> None:
    for model, _ in MEDIA:
        assert model.fields <= {name for kind in model.kinds for name in KINDS[kind].input.model_fields}, model.id


def test_the_fields_that_may_name_a_file_are_found_by_their_types() -> None:
    assert fields.media(KINDS["image-to-video"].input) == {
        ("audio_url",): "sound",
        ("clip_url",): "clip",
        ("img_url",): "picture",
        ("image_url",): "picture",  # as others call it
        ("first_frame_url",): "picture",
        ("last_frame_url",): "picture",
    }
    assert fields.media(KINDS["summary"].input) == {}


def test_the_fields_that_may_name_a_file_are_found_in_lists_and_nested_objects() -> None:
    class Part(BaseModel):
        picture: fields.Picture | None = None
        clip: fields.Clip | None = None
        note: str = ""

    class Form(BaseModel):
        pictures: Annotated[list[fields.Picture] | None, Field(max_length=3)] = None
        parts: list[Part] = []

    assert fields.media(Form) == {
        ("pictures", "*"): "picture",
        ("parts", "*", "picture"): "picture",
        ("parts", "*", "clip"): "clip",
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_is_asked_only_as_what_it_is(kind: Kind) -> None:
    right, wrong = (kinds.parent, kinds.call) if isinstance(kind, ParentKind) else (kinds.call, kinds.parent)

    assert right(kind.name) is kind
    with pytest.raises(AssertionError, match=kind.name):
        wrong(kind.name)


def test_an_input_that_is_read_back_is_not_held_against_the_catalog() -> None:
    taken = KINDS["text-to-video"].input.model_validate({"prompt": "x" * 5000, "size": "1*1", "duration": 99})

    assert isinstance(taken, visual.MediaInput)
