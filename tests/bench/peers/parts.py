"""What the peers do at each step, as one writes it with SQLAlchemy, httpx and boto3: create, look, store, note, tell.

Clients are made once a process, at their first use: after Celery has forked.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from typing import Any

import boto3
import httpx
from botocore.config import Config
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

CREATE = "/api/v1/services/aigc/video-generation/video-synthesis"
POLL_SECONDS = 2.0


class Base(DeclarativeBase):
    """The peers' tables."""


class Clip(Base):
    """A clip that was asked for, and how far it is."""

    __tablename__ = "clips"

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt: Mapped[str]
    webhook_url: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued")
    task_id: Mapped[str | None]
    object_key: Mapped[str | None]
    bytes: Mapped[int | None]
    finished_at: Mapped[datetime | None]


@cache
def sessions() -> sessionmaker[Session]:
    """Sessions on the peers' database."""
    return sessionmaker(create_engine(os.environ["BENCH_DATABASE_URL"]))


@cache
def http() -> httpx.Client:
    """A client that keeps its connections."""
    return httpx.Client(timeout=20)


@cache
def s3() -> Any:
    """A client of the bucket."""
    return boto3.client(
        "s3",
        endpoint_url=os.environ["NORIA_S3_ENDPOINT_URL"],
        aws_access_key_id=os.environ["NORIA_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["NORIA_S3_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


def create(clip_id: int) -> str:
    """The id of the task that makes the clip."""
    with sessions()() as session:
        prompt = session.get_one(Clip, clip_id).prompt
    task_id = ask(prompt)
    note(clip_id, state="running", task_id=task_id)
    return task_id


def ask(prompt: str) -> str:
    """The provider's id of a new task."""
    size = {"size": os.environ["BENCH_SIZE"]}
    body = {"model": os.environ["BENCH_MODEL"], "input": {"prompt": prompt}, "parameters": size}
    headers = {"authorization": f"Bearer {key()}", "x-dashscope-async": "enable"}
    answer = http().post(os.environ["NORIA_DASHSCOPE_URL"] + CREATE, json=body, headers=headers)
    answer.raise_for_status()
    task_id: str = answer.json()["output"]["task_id"]
    return task_id


def look(task_id: str) -> str | None:
    """The link to the task's output; None while it runs."""
    url = f"{os.environ['NORIA_DASHSCOPE_URL']}/api/v1/tasks/{task_id}"
    answer = http().get(url, headers={"authorization": f"Bearer {key()}"})
    answer.raise_for_status()
    output = answer.json()["output"]
    if output["task_status"] in ("PENDING", "RUNNING"):
        return None
    link: str = output["video_url"]
    return link


def store(clip_id: int, link: str) -> None:
    """Copies the output into the bucket."""
    object_key = f"clips/{clip_id}.mp4"
    size = copy(link, object_key)
    note(clip_id, state="succeeded", object_key=object_key, bytes=size, finished_at=datetime.now(UTC))


def copy(link: str, object_key: str) -> int:
    """Streams what is at the link into an object; its bytes."""
    with http().stream("GET", link) as answer:
        answer.raise_for_status()
        body = _Body(answer)
        s3().upload_fileobj(body, os.environ["NORIA_S3_BUCKET"], object_key, ExtraArgs={"ContentType": "video/mp4"})
    return body.bytes


def tell(clip_id: int) -> None:
    """Calls the user back."""
    with sessions()() as session:
        clip = session.get_one(Clip, clip_id)
        body = {"type": f"clip.{clip.state}", "data": {"id": clip.id, "key": clip.object_key}}
        url = clip.webhook_url
    http().post(url, json=body, headers={"webhook-id": f"clip_{clip_id}"}).raise_for_status()


def note(clip_id: int, **values: Any) -> None:
    """Puts on record how far a clip is."""
    with sessions().begin() as session:
        clip = session.get_one(Clip, clip_id)
        for name, value in values.items():
            setattr(clip, name, value)


def key() -> str:
    """The provider's."""
    return os.environ["NORIA_DASHSCOPE_API_KEY"]


class _Body:
    """An answer as a file that is read once."""

    def __init__(self, answer: httpx.Response) -> None:
        self._pieces = answer.iter_bytes(1 << 20)
        self._left = b""
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer at the end; all that is left where no number is given."""
        while size < 0 or len(self._left) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._left += piece
        given, self._left = (self._left, b"") if size < 0 else (self._left[:size], self._left[size:])
        self.bytes += len(given)
        return given
