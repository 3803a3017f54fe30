"""Clips from references and clips that are changed: what is checked before anything is paid, priced, and made."""

from __future__ import annotations

import io
import json
import struct
from base64 import b64encode
from datetime import date
from typing import Any

import httpx
import pytest
from serving import Served
from stage import Stage

from ops.sandbox import media as drawn
from ops.sandbox.orders import Order
from worker import catalog
from worker.errors import InvalidInput
from worker.inputs import naming
from worker.kinds import KINDS, CallKind
from worker.states import State
from worker.steps import poll

CATALOG = catalog.load()
TODAY = date(2026, 11, 27)
BEIJING = "cn-beijing"
PICTURE, CLIP, SOUND = "https://example.com/a.png", "https://example.com/a.mp4", "https://example.com/a.mp3"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24
HEADER = PNG[:8] + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)  # of a picture of one pixel
SMALL = f"data:image/png;base64,{b64encode(HEADER).decode()}"


def mp4(seconds: int) -> bytes:
    return drawn.render(Order("", "", "a cat", size="64*64", tier="480P", seconds=seconds), "t", 0, true_size=False)


def references(**counts: int) -> list[dict[str, str]]:
    links = {"picture": PICTURE, "clip": CLIP, "sound": SOUND}
    return [{name: links[name]} for name, count in counts.items() for _ in range(count)]


def faults(kind: str, model: str, **wanted: Any) -> dict[str, str]:
    """Pointer → code; empty where the input is taken."""
    try:
        KINDS[kind].check(CATALOG, CATALOG.model(model), {"prompt": "it purrs", **wanted}, None)
    except InvalidInput as refused:
        return {fault.pointer: fault.code for fault in refused.faults}
    return {}


@pytest.mark.parametrize(
    ("model", "counts", "code"),
    [
        ("wan2.7-r2v", {"picture": 3, "clip": 2}, None),
        ("wan2.7-r2v", {"picture": 3, "clip": 3}, "too_many"),  # five in all
        ("wan2.7-r2v", {"sound": 1, "picture": 1}, "too_many"),
        ("wan2.6-r2v", {"clip": 3, "picture": 2}, None),
        ("wan2.6-r2v", {"clip": 4}, "too_many"),
        ("happyhorse-1.1-r2v", {"picture": 9}, None),
        ("happyhorse-1.1-r2v", {"picture": 10}, "too_many"),
        ("happyhorse-1.1-r2v", {"picture": 1, "clip": 1}, "too_many"),
        ("wan3.0-video", {"picture": 10, "clip": 5, "sound": 5}, None),
        ("wan3.0-video", {"sound": 2}, "nothing_shown"),
        ("wan3.0-video", {"picture": 21}, "too_long"),
        ("wan3.0-video", {}, "too_short"),
    ],
)
def test_references_are_counted_before_anything_is_paid(model: str, counts: dict[str, int], code: str | None) -> None:
    found = faults("reference-to-video", model, references=references(**counts))

    assert found == ({"/input/references": code} if code else {})


@pytest.mark.parametrize(
    ("kind", "model", "wanted", "found"),
    [
        (
            "reference-to-video",
            "wan2.7-r2v",
            {"references": references(clip=1), "duration": 11},
            {"/input/references": "contradiction"},
        ),
        ("reference-to-video", "wan2.7-r2v", {"references": references(picture=1), "duration": 15}, {}),
        (
            "reference-to-video",
            "wan2.6-r2v",
            {"references": [{"picture": PICTURE, "voice": SOUND}]},
            {"/input/references": "not_taken"},
        ),
        (
            "reference-to-video",
            "wan2.7-r2v",
            {"references": [{"picture": PICTURE, "clip": CLIP}]},
            {"/input/references/0": "one_of"},
        ),
        ("reference-to-video", "wan2.7-r2v", {"references": [{}]}, {"/input/references/0": "one_of"}),
        (
            "reference-to-video",
            "wan3.0-video",
            {"references": [{"sound": SOUND, "voice": SOUND}]},
            {"/input/references/0": "contradiction"},
        ),
        (
            "reference-to-video",
            "wan2.7-r2v",
            {"references": [{"picture": "cat.png"}]},
            {"/input/references/0/picture": "bad_link"},
        ),
        (
            "reference-to-video",
            "wan2.7-r2v",
            {"references": [{"picture": SMALL}]},
            {"/input/references": "picture_unfit"},
        ),
        (
            "reference-to-video",
            "wan3.0-video",
            {"references": references(picture=1), "first_frame_url": PICTURE},
            {"/input/first_frame_url": "not_taken"},
        ),
        (
            "image-to-video",
            "wan3.0-video",
            {"img_url": PICTURE, "references": []},
            {"/input/references": "unknown_field"},
        ),
        ("image-to-video", "wan3.0-video", {}, {"/input/img_url": "required"}),
        ("image-to-video", "wan2.7-i2v", {}, {"/input/img_url": "required"}),
        ("image-to-video", "wan2.7-i2v", {"clip_url": CLIP, "img_url": PICTURE}, {"/input/img_url": "contradiction"}),
        (
            "image-to-video",
            "wan2.7-i2v",
            {"clip_url": CLIP, "audio_url": SOUND},
            {"/input/clip_url": "contradiction", "/input/img_url": "required"},
        ),
        ("image-to-video", "wan2.7-i2v", {"clip_url": CLIP, "last_frame_url": PICTURE}, {}),
        ("text-to-video", "wan3.0-video", {"negative_prompt": "dogs"}, {"/input/negative_prompt": "not_taken"}),
        ("text-to-video", "wan3.0-video", {"duration": 31}, {"/input/duration": "not_allowed"}),
        (
            "video-edit",
            "wan2.7-videoedit",
            {"video_url": CLIP, "pictures": [PICTURE] * 5},
            {"/input/pictures": "too_many"},
        ),
        ("video-edit", "wan2.7-videoedit", {}, {"/input/video_url": "required"}),
        ("video-edit", "happyhorse-1.0-video-edit", {"video_url": CLIP, "prompt": None}, {"/input/prompt": "required"}),
        (
            "video-edit",
            "happyhorse-1.0-video-edit",
            {"video_url": CLIP, "duration": 5},
            {"/input/duration": "not_taken"},
        ),
    ],
)
def test_what_a_model_does_not_take_together_is_named(
    kind: str, model: str, wanted: dict[str, Any], found: dict[str, str]
) -> None:
    assert faults(kind, model, **wanted) == found


@pytest.mark.parametrize(
    ("kind", "model", "wanted", "seconds", "shown"),
    [
        ("reference-to-video", "wan2.7-r2v", {"references": references(picture=2), "duration": 10}, 10, None),
        ("reference-to-video", "wan2.7-r2v", {"references": references(clip=2), "duration": 10}, 15, 5),
        ("reference-to-video", "wan2.6-r2v", {"references": references(clip=1)}, 10, 5),
        ("reference-to-video", "wan3.0-video", {"references": references(clip=1), "duration": -1}, 45, 15),
        ("text-to-video", "wan3.0-video", {"duration": -1}, 30, None),
        ("image-to-video", "wan2.7-i2v", {"clip_url": CLIP, "duration": 15}, 15, None),  # the clip's are part of them
        ("video-edit", "wan2.7-videoedit", {"video_url": CLIP}, 20, 10),
        ("video-edit", "wan2.7-videoedit", {"video_url": CLIP, "duration": 3}, 13, 10),
        ("video-edit", "happyhorse-1.0-video-edit", {"video_url": CLIP}, 30, 15),
    ],
)
def test_seconds_that_are_shown_are_priced_as_far_as_they_may_be_billed(
    kind: str, model: str, wanted: dict[str, Any], seconds: int, shown: int | None
) -> None:
    entry = CATALOG.model(model)
    checked = KINDS[kind].check(CATALOG, entry, {"prompt": "it purrs", **wanted}, None)

    units = KINDS[kind].estimate(entry, checked).units

    assert (units["seconds"], units.get("input_seconds")) == (seconds, shown)


# The usage of the samples of 'Wan 2.7 reference-to-video', '… video editing' and 'HappyHorse video editing' (May 2026).
@pytest.mark.parametrize(
    ("kind", "model", "wanted", "told", "units", "cost"),
    [
        (
            "reference-to-video",
            "wan2.7-r2v",
            {"references": references(clip=1), "duration": 10},
            {"duration": 15.0, "input_video_duration": 5.0, "output_video_duration": 10, "SR": 720, "video_count": 1},
            {"seconds": 15, "input_seconds": 5, "tier": "720P"},
            9_000_000,
        ),
        (
            "video-edit",
            "happyhorse-1.0-video-edit",
            {"video_url": CLIP},
            {"duration": 13.24, "input_video_duration": 6.62, "output_video_duration": 6.62, "SR": 720},
            {"seconds": 13.24, "input_seconds": 6.62, "tier": "720P"},
            11_916_000,
        ),
        (
            "reference-to-video",
            "happyhorse-1.0-r2v",
            {"references": references(picture=3)},
            {"duration": 5, "input_video_duration": 0, "output_video_duration": 5, "SR": 720, "video_count": 1},
            {"seconds": 5, "tier": "720P"},
            4_500_000,
        ),
        (
            "video-edit",
            "wan2.7-videoedit",
            {"video_url": CLIP},
            {"duration": "10.04", "input_video_duration": "5.02", "output_video_duration": "5.02", "SR": "1080"},
            {"seconds": 10.04, "input_seconds": 5.02, "tier": "1080P"},
            10_040_000,
        ),
        (
            "video-edit",
            "wan2.7-videoedit",
            {"video_url": CLIP},
            None,
            {"seconds": 20, "input_seconds": 10, "tier": "720P"},
            12_000_000,
        ),
    ],
)
def test_input_and_output_seconds_are_read_apart_and_billed_together(
    kind: str, model: str, wanted: dict[str, Any], told: Any, units: dict[str, Any], cost: int
) -> None:
    entry = CATALOG.model(model)
    checked = KINDS[kind].check(CATALOG, entry, {"prompt": "it purrs", **wanted}, None)

    used = KINDS[kind].usage(entry, checked, {"output": {}, "usage": told})

    assert {name: used.units.get(name) for name in ("seconds", "input_seconds", "tier")} == {
        "input_seconds": None,
        **units,
    }
    assert entry.price(used, BEIJING, TODAY) == cost


# With the API


def given(http: httpx.Client, name: str, content: bytes) -> str:
    key: str = http.post("/v1/files", files={"file": (name, io.BytesIO(content))}).json()["key"]
    return key


def asked(http: httpx.Client, model: str, **wanted: Any) -> httpx.Response:
    kind = "video-edit" if "video_url" in wanted else "reference-to-video"
    return http.post("/v1/jobs", json={"kind": kind, "model": model, "input": {"prompt": "it purrs", **wanted}})


def refused(answer: httpx.Response) -> dict[str, str]:
    return {fault["pointer"]: fault["message"] for fault in answer.json().get("errors", ())}


def test_files_among_references_are_held_against_the_model(http: httpx.Client, api: Served) -> None:
    picture, short, long = given(http, "a.png", PNG), given(http, "a.mp4", mp4(2)), given(http, "b.mp4", mp4(12))

    assert asked(http, "wan2.7-r2v", references=[{"picture": picture}, {"clip": short}]).status_code == 201
    wrong = refused(asked(http, "wan2.7-r2v", references=[{"picture": short}, {"clip": picture}]))
    assert list(wrong) == ["/input/references/0/picture", "/input/references/1/clip"]
    assert "must be a clip (MP4, MOV)" in wrong["/input/references/1/clip"]
    assert (
        "plays 12 seconds, and must play 2 to 10"
        in refused(asked(http, "wan2.7-videoedit", video_url=long))["/input/video_url"]
    )
    together = refused(asked(http, "wan3.0-video", references=[{"clip": long}, {"clip": short}, {"clip": short}]))
    assert "plays 16 seconds with the others, and together 15 are taken" in together["/input/references/0/clip"]
    gone = refused(asked(http, "wan2.7-r2v", references=[{"picture": picture + "x"}]))
    assert list(gone) == ["/input/references/0/picture"]


def test_a_file_among_references_is_kept_while_its_job_has_not_ended(http: httpx.Client) -> None:
    file = http.post("/v1/files", files={"file": ("a.png", PNG)}).json()
    job = asked(http, "wan2.7-r2v", references=[{"clip": CLIP}, {"picture": file["key"]}]).json()

    assert http.delete(f"/v1/files/{file['id']}").json()["code"] == "file_in_use"
    http.post(f"/v1/jobs/{job['id']}/cancel")
    assert http.delete(f"/v1/files/{file['id']}").status_code == 204


def test_a_row_of_a_file_names_its_references_as_its_user_calls_them(http: httpx.Client) -> None:
    key = given(http, "a.png", PNG)
    cell = json.dumps([{"picture": "cat.png"}, {"clip": CLIP}]).replace('"', '""')
    table = f'kind,model,prompt,references\nreference-to-video,wan2.7-r2v,it purrs,"{cell}"\n'

    draft = http.post(
        "/v1/batches",
        files={"file": ("rows.csv", table.encode())},
        data={"options": json.dumps({"files": {"cat.png": key}})},
    )

    assert draft.status_code == 201, draft.text
    assert draft.json()["rows"]["good"] == 1, draft.text


def test_names_are_found_and_replaced_at_every_depth() -> None:
    key = "00000000-0000-4000-8000-000000000000/files/2026/01/02/a.png"
    wanted = {"references": [{"clip": CLIP}, {"picture": "cat.png", "voice": "cat.png"}], "prompt": "cat.png"}

    placed = naming.with_keys(wanted, {"cat.png": key})

    assert placed == {
        "references": [{"clip": CLIP}, {"picture": key, "voice": key}],
        "prompt": "cat.png",
    }
    assert naming.links(placed) == {"/input/references/1/picture": key, "/input/references/1/voice": key}
    assert wanted["references"][1]["picture"] == "cat.png"  # type: ignore[index]


# With the engine


def test_a_clip_of_references_is_made_and_billed_with_what_was_shown(play: Stage) -> None:
    keys = [play.file(PNG), play.file(mp4(2), "video/mp4", "0199.mp4")]
    wanted = {"prompt": "it purrs", "references": [{"picture": keys[0]}, {"clip": keys[1]}], "duration": 2}
    job = play.submit("reference-to-video", "wan2.7-r2v", input=wanted)

    made = play.until(job)

    assert made.state == State.SUCCEEDED, made.error
    assert made.usage is not None
    assert (made.usage["seconds"], made.usage["input_seconds"]) == (7, 5)
    (task,) = play.sandbox.ledger()["tasks"]
    assert made.cost == task["billed_micros"] == 4_200_000


@pytest.mark.parametrize(
    ("kind", "model", "wanted", "cost"),
    [
        (
            "reference-to-video",
            "wan2.6-r2v-flash",
            {"references": references(clip=1), "duration": 2, "audio": False},
            1_050_000,
        ),
        ("reference-to-video", "happyhorse-1.1-r2v", {"references": references(picture=2), "duration": 3}, 2_700_000),
        ("video-edit", "wan2.7-videoedit", {"video_url": CLIP, "duration": 2}, 4_200_000),
        ("video-edit", "happyhorse-1.0-video-edit", {"video_url": CLIP, "pictures": [PICTURE]}, 9_000_000),
        ("image-to-video", "wan2.7-i2v", {"clip_url": CLIP, "duration": 3}, 1_800_000),
        ("text-to-video", "wan3.0-video-prime", {"duration": -1}, 21_600_000),  # 12 s, and 1080P whatever was asked for
    ],
)
def test_what_each_model_bills_is_what_the_job_costs(
    play: Stage, kind: str, model: str, wanted: dict[str, Any], cost: int
) -> None:
    made = play.until(play.submit(kind, model, input={"prompt": "it purrs", **wanted}))

    assert made.state == State.SUCCEEDED, made.error
    (task,) = play.sandbox.ledger()["tasks"]
    assert made.cost == task["billed_micros"] == cost


@pytest.mark.parametrize(
    ("kind", "model", "wanted", "told"),
    [
        (
            "video-edit",
            "wan2.7-videoedit",
            {"video_url": CLIP, "duration": 3},
            {"output_video_duration": 2.5, "SR": 720},
        ),
        ("video-edit", "happyhorse-1.0-video-edit", {"video_url": CLIP}, {"output_video_duration": 4.04, "SR": 1080}),
        ("image-to-video", "wan2.7-i2v", {"clip_url": CLIP, "duration": 5}, {"duration": 3, "SR": 720}),
        ("text-to-video", "wan3.0-video", {"duration": 5}, {"output_video_duration": 6, "SR": 1080}),
        ("text-to-video", "wan2.7-t2v", {"duration": 5}, {"output_video_duration": 5.02, "SR": 720}),
        ("reference-to-video", "wan2.6-r2v", {"references": references(clip=1), "duration": 5}, {"duration": 10}),
    ],
)
def test_a_clip_that_came_otherwise_than_it_was_asked_for_is_still_its_jobs(
    kind: str, model: str, wanted: dict[str, Any], told: dict[str, Any]
) -> None:
    entry, maker = CATALOG.model(model), KINDS[kind]
    asked = maker.check(CATALOG, entry, {"prompt": "it purrs", **wanted}, None)
    assert isinstance(maker, CallKind)

    echoed = maker.echoed(entry, {"output": {"orig_prompt": "it purrs"}, "usage": told})

    assert not poll.differences(maker.echoes(entry, asked), echoed)


@pytest.mark.parametrize("model", ["wan2.7-t2v", "wan2.7-i2v"])
def test_a_clip_of_another_length_or_tier_is_another_jobs(model: str) -> None:
    entry = CATALOG.model(model)
    kind, wanted = ("text-to-video", {}) if model == "wan2.7-t2v" else ("image-to-video", {"img_url": PICTURE})
    maker = KINDS[kind]
    assert isinstance(maker, CallKind)
    asked = maker.check(CATALOG, entry, {"prompt": "it purrs", "duration": 5, "resolution": "720P", **wanted}, None)

    echoed = maker.echoed(entry, {"output": {}, "usage": {"output_video_duration": 6, "SR": 1080}})

    assert poll.differences(maker.echoes(entry, asked), echoed) == ("duration", "tier")


@pytest.mark.parametrize(
    ("kind", "model", "wanted"),
    [
        ("text-to-video", "wan3.0-video", {"duration": 2}),
        ("video-edit", "wan2.7-videoedit", {"video_url": CLIP, "duration": 2}),
        ("reference-to-video", "wan2.6-r2v-flash", {"references": references(clip=1), "duration": 2}),
    ],
)
def test_a_lost_answer_is_found_again_and_never_paid_twice(
    play: Stage, kind: str, model: str, wanted: dict[str, Any]
) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)

    made = play.until(play.submit(kind, model, input={"prompt": "it purrs", **wanted}))

    assert made.state == State.SUCCEEDED, made.error
    assert "uncertain" in play.states(made)
    assert len(play.sandbox.ledger()["tasks"]) == 1
