"""What the demo has made: a campaign, a narration in two voices, and a night's summaries by a schedule.

Campaign and narration are submitted. The summaries are a schedule's, of what came into the project's inbox; as the
clock fires at most once a minute and the demo takes half of one, the schedule is run by hand, which is a run like any
other, and paused, so that no later night finds it and spends money.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from api.client import Client
from ops.cli import show
from ops.cli.show import Job
from ops.local.supervise import LocalError
from worker import text
from worker.kinds.speech import script
from worker.kinds.summary import documents
from worker.settings import Settings
from worker.storage import Bucket, Expected

CAMPAIGN = Path(__file__).with_name("campaign.csv")
NARRATION = Path(__file__).with_name("narration.txt")
DOCUMENTS = Path(__file__).with_name("documents")
NIGHTLY = Path(__file__).with_name("nightly.json")  # of the project `demo`, in whose inbox it looks
_VOICES = {True: "Ethan", False: "Cherry"}  # by whether a paragraph is English

Body = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """All that is to be submitted, and what it would cost in CNY (None: not known).

    `campaign` is a draft of the API's, `narration` a job and `schedule` a schedule as the API takes them.
    """

    campaign: Body
    narration: Body
    schedule: Body
    spoken: Decimal | None
    summed: Decimal | None

    def priced(self) -> list[str]:
        """A line for each of the three, and one for all."""
        rows, said = self.campaign["rows"], self.campaign["report"]
        clips = Decimal(said["cost"] or 0)
        unknown = said["unpriced"] + [self.spoken, self.summed].count(None)
        whole = clips + sum(filter(None, (self.spoken, self.summed)), Decimal(0))
        more = f" and {unknown} without a known price" if unknown else ""
        return [
            f"{CAMPAIGN.name}: {show.count(rows['total'], 'job')}, {show.money(clips)}",
            f"{NARRATION.name}, {len(_text()):,} characters: {show.price([self.spoken])}",
            f"{DOCUMENTS.name}, {len(brought())} of them: {show.price([self.summed])}",
            f"In all: {rows['total'] + 2} jobs, {show.money(whole)}{more}",
        ]


def offered(client: Client, shared: Mapping[str, Any], count: int | None) -> Work:
    """The work, checked and priced; `shared` is in every body, `count` how many rows of the campaign.

    The cheapest clips are taken where that is not all. ApiError names what cannot be submitted.
    """
    with CAMPAIGN.open("rb") as file:
        draft = client.make_batch(CAMPAIGN.name, file, {"defaults": shared}).as_json()
    if count is not None and count < draft["rows"]["total"]:
        items = client.batch_items(draft["id"])
        asked = [(item.asked or {}) | {"custom_id": item.custom_id} for item in items]
        client.delete_batch(draft["id"])
        chosen = sorted(asked, key=_clips_first_cheapest_first)[:count]
        bodies = [{name: row[name] for name in ("kind", "model", "input", "custom_id")} for row in chosen]
        draft = client.make_items(bodies, {"name": CAMPAIGN.name, "defaults": shared}).as_json()
    narration, schedule = _narration(shared), _schedule(shared)
    spoken = show.estimated(client.dry_run(narration).as_json())
    return Work(draft, narration, schedule, spoken, _price_of_summaries(client, schedule["template"]))


def submitted(client: Client, bucket: Bucket, work: Work) -> list[Job]:
    """The jobs, all on their way. `LocalError` where the schedule makes none."""
    run = _run(client, bucket, work.schedule)
    made = client.commit_batch(work.campaign["id"])
    # of an interrupted run, which are not made again, too
    clips = [item.job.as_json() for item in client.batch_items(made.id) if item.job]
    narration = client.submit(work.narration, _key(work.narration))
    return [*clips, narration.as_json(), client.job(run["job_id"]).as_json()]


def brought() -> list[Path]:
    """The documents that the demo brings."""
    return sorted(path for path in DOCUMENTS.iterdir() if not path.name.startswith("."))


def bucket(environment: Mapping[str, str]) -> Bucket:
    """The bucket of a stack with these settings, as whoever brings documents has it."""
    ours = {name.removeprefix("NORIA_").lower(): value for name, value in environment.items() if "_S3_" in name}
    return Bucket(Settings.model_validate({"database_url": "", "broker_url": "", **ours}))


def _narration(shared: Mapping[str, Any]) -> Body:
    parts = [{"text": part, "voice": _VOICES[part.isascii()]} for part in script.paragraphs(_text())]
    return {**shared, "kind": "speech", "custom_id": "narration", "input": {"paragraphs": parts}}


def _schedule(shared: Mapping[str, Any]) -> Body:
    schedule: Body = json.loads(NIGHTLY.read_text(encoding="utf-8"))
    [inbox] = schedule["template"]["input"]["documents"]
    del inbox["until"]  # a minute before the run: what the demo brings would be left to the next
    schedule["template"] |= shared
    return schedule | {"missed": "skip"}  # no night that passed meanwhile is made up for


def _run(client: Client, bucket: Bucket, schedule: Body) -> Body:
    """The run of the schedule, over what was put into the inbox just now."""
    inbox = schedule["template"]["input"]["documents"][0]["prefix"]
    for path in brought():
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        bucket.put_stream(inbox + path.name, [path.read_bytes()], content_type, Expected())
    made = client.make_schedule(schedule)
    client.pause_schedule(made.id)
    run = client.run_schedule(made.id, _key(schedule)).as_json()
    if run["job_id"] is None:
        raise LocalError(f"The schedule made no job: {run['why']}.")
    return run


def _price_of_summaries(client: Client, template: Body) -> Decimal | None:
    """What the summaries cost at most: every document in full, and a digest that reads all of them in full.

    The API cannot tell before the inbox is listed.
    """
    texts = [documents.text_of(path.read_bytes()) for path in brought()]
    inline = {**template["input"], "documents": [{"text": text} for text in texts]}
    mapped = client.dry_run({"kind": "summary", "input": inline}).as_json()
    whole = {"documents": [{"text": "\n".join(texts)}], "length": "long"}
    reduced = client.dry_run({"kind": "summary", "model": mapped["input"]["reduce_model"], "input": whole}).as_json()
    prices = show.estimated(mapped), show.estimated(reduced)
    return None if None in prices else sum(filter(None, prices), Decimal(0))


def _clips_first_cheapest_first(asked: Mapping[str, Any]) -> tuple[bool, Decimal]:
    price = show.estimated(asked)
    return asked["kind"] == "text-to-image", Decimal("Infinity") if price is None else price


def _key(body: Body) -> str:
    """The Idempotency-Key of a body: an interrupted run finds what it made."""
    return f"demo-{text.digest(body).hex()[:32]}"


def _text() -> str:
    return NARRATION.read_text(encoding="utf-8")
