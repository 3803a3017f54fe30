"""The official SDK's blocking call in a Celery task, which does all the rest too."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import os

import dashscope
from celery import Celery
from dashscope import VideoSynthesis

from tests.bench.peers import parts

dashscope.base_http_api_url = os.environ["NORIA_DASHSCOPE_URL"] + "/api/v1"
app = Celery("sdk", broker=os.environ["BENCH_BROKER_URL"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task(name="sdk.start")
def clip(clip_id: int) -> None:
    """One clip from its prompt to its webhook."""
    with parts.sessions()() as session:
        prompt = session.get_one(parts.Clip, clip_id).prompt
    parts.note(clip_id, state="running")
    answer = VideoSynthesis.call(
        model=os.environ["BENCH_MODEL"], prompt=prompt, size=os.environ["BENCH_SIZE"], api_key=parts.key()
    )
    if answer.status_code != 200 or not answer.output.video_url:
        raise RuntimeError(f"{answer.code}: {answer.message}")
    parts.store(clip_id, answer.output.video_url)
    parts.tell(clip_id)
