"""Pictures from pictures, and sequences: what is checked before anything is paid, what is made, and what it costs."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import httpx
import pytest
from serving import Served, served
from stage import Stage, stage

from ops.sandbox.testing import Sandbox
from worker import catalog, kinds
from worker.errors import InvalidInput
from worker.kinds import KINDS, CallKind
from worker.states import TERMINAL, State
from worker.steps import poll

CATALOG = catalog.load()
PICTURE, OTHER = "https://example.com/a.png", "https://example.com/b.png"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24
SQUARE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\2\0\0\0\2\0\10\2\0\0\0"  # the head of one of 512 by 512


def faults(kind: str, model: str, **wanted: Any) -> dict[str, str]:
    """Pointer → code; empty where the input is taken."""
    try:
        KINDS[kind].check(CATALOG, CATALOG.model(model), {"prompt": "a hat", **wanted}, None)
    except InvalidInput as refused:
        return {fault.pointer: fault.code for fault in refused.faults}
    return {}


@pytest.mark.parametrize(
    ("kind", "model", "wanted", "found"),
    [
        ("image-edit", "qwen-image-edit-plus", {"pictures": [PICTURE] * 3, "n": 6}, {}),
        ("image-edit", "qwen-image-edit-plus", {"pictures": [PICTURE] * 4}, {"/input/pictures": "too_many"}),
        ("image-edit", "qwen-image-edit-plus", {"pictures": []}, {"/input/pictures": "too_short"}),
        ("image-edit", "qwen-image-edit-plus", {}, {"/input/pictures": "required"}),
        ("image-edit", "qwen-image-edit", {"pictures": [PICTURE], "n": 2}, {"/input/n": "not_allowed"}),
        ("image-edit", "qwen-image-edit", {"pictures": [PICTURE], "size": "1K"}, {"/input/size": "not_taken"}),
        ("image-edit", "wan2.7-image-pro", {"pictures": [PICTURE], "size": "4K"}, {"/input/size": "not_allowed"}),
        ("text-to-image", "wan2.7-image-pro", {"size": "4K"}, {}),
        ("text-to-image", "wan2.7-image-pro", {"sequence": True, "n": 4, "size": "4K"}, {"/input/size": "not_allowed"}),
        ("text-to-image", "wan2.7-image", {"sequence": True, "n": 12}, {}),
        ("text-to-image", "wan2.7-image", {"sequence": True}, {"/input/n": "required"}),
        ("text-to-image", "wan2.7-image", {"n": 5}, {"/input/n": "not_allowed"}),
        ("text-to-image", "wan2.7-image", {"sequence": True, "n": 13}, {"/input/n": "not_allowed"}),
        ("text-to-image", "wan2.6-t2i", {"sequence": True}, {"/input/sequence": "not_taken"}),
        ("image-edit", "wan2.7-image", {"pictures": [PICTURE], "boxes": [[], []]}, {"/input/boxes": "wrong_length"}),
        (
            "image-edit",
            "wan2.7-image",
            {"pictures": [PICTURE], "boxes": [[[1, 2, 3]]]},
            {"/input/boxes/0/0": "too_short"},
        ),
        (
            "image-edit",
            "wan2.7-image",
            {"pictures": [PICTURE], "boxes": [[[0, 0, 9, 9], [9, 0, 9, 9]]]},
            {"/input/boxes/0/1": "empty_box"},
        ),
        (
            "image-edit",
            "wan2.7-image",
            {"pictures": [PICTURE], "boxes": [[[0, 9, 9, 0]]]},
            {"/input/boxes/0/0": "empty_box"},
        ),
        ("image-edit", "qwen-image-2.0", {"pictures": [PICTURE], "boxes": [[]]}, {"/input/boxes": "not_taken"}),
        ("image-edit", "wan2.6-t2i", {"pictures": [PICTURE]}, {"/model": "wrong_kind"}),
        ("text-to-image", "wan2.6-image", {}, {"/model": "wrong_kind"}),
    ],
)
def test_what_a_model_does_not_take_is_named_before_it_is_paid(
    kind: str, model: str, wanted: dict[str, Any], found: dict[str, str]
) -> None:
    assert faults(kind, model, **wanted) == found


def test_a_sequence_is_estimated_at_the_most_that_it_may_have_and_billed_as_it_comes() -> None:
    model, kind = CATALOG.model("wan2.7-image"), KINDS["text-to-image"]
    checked = kind.check(CATALOG, model, {"prompt": "four seasons", "sequence": True, "n": 8}, None)
    told = {"usage": {"image_count": 4, "size": "2048*2048", "input_tokens": 10867, "output_tokens": 2}}

    estimate, used = kind.estimate(model, checked), kind.usage(model, checked, {"output": {}, **told})

    assert (estimate.units["images"], used.units["images"]) == (8, 4)
    assert model.price(used, "cn-beijing", date(2026, 11, 27)) == 800_000


def test_files_among_pictures_are_held_against_the_model(http: httpx.Client, api: Served) -> None:
    key = http.post("/v1/files", files={"file": ("a.png", PNG)}).json()["key"]
    api.sql("update files set width = 120, height = 5001")

    def codes(model: str) -> list[str]:
        wanted = {"prompt": "a hat", "pictures": [PICTURE, key]}
        answer = http.post("/v1/jobs?dry_run=true", json={"kind": "image-edit", "model": model, "input": wanted})
        return [fault["pointer"] for fault in answer.json().get("errors", ())]

    assert codes("qwen-image-2.0") == []
    assert codes("wan2.7-image") == codes("wan2.5-i2i-preview") == ["/input/pictures/1"]


@pytest.mark.parametrize("handover", ["link", "upload"])
@pytest.mark.parametrize("model", ["qwen-image-2.0", "wan2.7-image", "wan2.5-i2i-preview"])
def test_files_reach_the_provider_in_the_order_in_which_the_prompt_counts_them(
    environment: dict[str, str], sandbox: Sandbox, handover: str, model: str
) -> None:
    with stage(environment, sandbox, input_handover=handover) as play:
        keys = [play.file(PNG, name=name) for name in ("hat.png", "cat.png")]
        job = play.submit("image-edit", model, input={"prompt": "put 1 on 2", "pictures": [*keys, OTHER]})
        kind = kinds.call(job.kind)
        asked = kind.request(CATALOG.model(model), "cn-beijing", kind.input.model_validate(job.input))

        sent = play.ctx.handover.request(play.ctx.client(job), job, asked).body["input"]

        parts = sent["messages"][0]["content"] if "messages" in sent else [{"image": link} for link in sent["images"]]
        links = [part["image"].partition("?")[0] for part in parts if "image" in part]
        assert [link.rpartition("/")[2] for link in links] == ["hat.png", "cat.png", "b.png"]
        assert ["text" in part for part in parts] == [False] * 3 + [True] * ("messages" in sent)
        assert {link.partition(":")[0] for link in links[:2]} == {"oss" if handover == "upload" else "http"}
        assert play.until(job).state == State.SUCCEEDED


def test_a_file_of_edits_is_one_batch_that_costs_what_it_was_said_to(environment: dict[str, str], play: Stage) -> None:
    table = (
        "kind,model,prompt,pictures,n,sequence\n"
        'image-edit,wan2.6-image,put 1 on 2,"[""hat.png"", ""cat.png""]",2,\n'
        "image-edit,qwen-image-2.0,make it red,cat.png,,\n"
        "image-edit,wan2.7-image,four seasons,cat.png,4,true\n"
    )
    with served(environment) as api, api.http(api.key(play.project.name)) as http:
        keys = {
            name: http.post("/v1/files", files={"file": (name, SQUARE)}).json()["key"]
            for name in ("hat.png", "cat.png")
        }
        draft = http.post(
            "/v1/batches",
            files={"file": ("edits.csv", table.encode())},
            data={"options": json.dumps({"files": keys})},
        ).json()
        assert draft["rows"]["good"] == 3, draft
        http.post(draft["urls"]["commit"])
        ended = play.drive(
            lambda: play.sql("select * from jobs order by batch_row"),
            lambda jobs: len(jobs) == 3 and all(job["state"] in TERMINAL for job in jobs),
        )

    assert [job["state"] for job in ended] == ["succeeded"] * 3
    assert ended[0]["input"]["pictures"] == [keys["hat.png"], keys["cat.png"]]
    assert [job["usage"]["images"] for job in ended] == [2, 1, 4]
    billed = sum(task["billed_micros"] for task in play.sandbox.ledger()["tasks"])
    assert (draft["report"]["cost"], sum(job["cost"] for job in ended)) == ("1.40", billed) == ("1.40", 1_400_000)


@pytest.mark.parametrize(
    ("model", "n", "cost"),
    [
        ("qwen-image-edit-plus", 2, 400_000),
        ("qwen-image-2.0-pro", 1, 500_000),
        ("wan2.6-image", 2, 400_000),
        ("wan2.5-i2i-preview", 3, 600_000),
    ],
)
def test_pictures_are_made_of_pictures_and_cost_what_was_made(play: Stage, model: str, n: int, cost: int) -> None:
    pictures = [play.file(PNG, name="hat.png"), play.file(PNG, name="cat.png")]
    job = play.submit("image-edit", model, input={"prompt": "a hat", "pictures": pictures, "n": n})

    made = play.until(job)

    assert made.state == State.SUCCEEDED, made.error
    assert made.usage is not None
    assert made.usage["images"] == n == len(play.sql("select 1 from outputs where job_id = :id", id=job.id))
    (task,) = play.sandbox.ledger()["tasks"]
    assert made.cost == task["billed_micros"] == cost


def test_a_sequence_is_made_and_billed(play: Stage) -> None:
    wanted = {"prompt": "four seasons", "sequence": True, "n": 4}

    made = play.until(play.submit("text-to-image", "wan2.7-image", input=wanted))

    assert made.state == State.SUCCEEDED, made.error
    assert made.cost == play.sandbox.ledger()["tasks"][0]["billed_micros"] == 800_000


def test_a_sequence_that_came_shorter_is_still_its_jobs() -> None:
    model, kind = CATALOG.model("wan2.7-image"), KINDS["text-to-image"]
    assert isinstance(kind, CallKind)
    asked = kind.check(CATALOG, model, {"prompt": "four seasons", "sequence": True, "n": 4}, None)

    echoed = kind.echoed(model, {"output": {"task_metrics": {"TOTAL": 3, "SUCCEEDED": 3, "FAILED": 0}}})

    assert not poll.differences(kind.echoes(model, asked), echoed)
