"""Posters: small stills of videos and pictures, made once, beside their outputs."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import av
import pytest
from serving import served
from sqlalchemy import text
from stage import Stage, stage
from structlog.testing import capture_logs

from api.client import Client
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import keys, retention, storage, tick
from worker.retention import holds
from worker.runner import posters
from worker.storage import Bucket, Expected, StorageTrouble
from worker.tables import Job

SENT = tick.Message("noria.posters", "transfer", ())
PICTURE: dict[str, Any] = {
    "kind": "text-to-image",
    "model": "wan2.2-t2i-flash",
    "input": {"prompt": "a heron", "size": "1024*768"},
}
OUTPUTS = {"outputs": 30}
ROWS = {"outputs": 30, "deliveries": 30, "events": 30, "rows": 30}
NOT_A_PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(5000)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.01, queue_seconds=0, true_size=True)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, posters=True) as made:
        yield made


def made(play: Stage, **more: Any) -> Job:
    """A succeeded job, whose poster is wanted still."""
    # an hour ahead no duty is due
    play.sql("update duties set due_at = now() + interval '1 hour'")
    job = play.until(play.submit(**more))
    assert job.state == "succeeded", job.error
    return job


def put(play: Stage, job: Job, content: bytes, content_type: str = "image/png") -> str:
    """The key of the job's output, which has those bytes from now on."""
    key: str = play.sql("select key from outputs where job_id = :id", id=job.id)[0]["key"]
    play.ctx.bucket.put_stream(key, (content,), content_type, Expected())
    play.sql("update outputs set content_type = :type where job_id = :id", id=job.id, type=content_type)
    return key


def state(play: Stage, job: Job) -> Any:
    return play.sql("select poster from outputs where job_id = :id", id=job.id)[0]["poster"]


def poster(play: Stage, job: Job) -> str:
    """The key of the poster of the job's output, whether or not it is there."""
    return storage.poster(play.sql("select key from outputs where job_id = :id", id=job.id)[0]["key"])


def is_there(play: Stage, key: str) -> bool:
    return play.ctx.bucket.head(key) is not None


def shape(content: bytes) -> tuple[str, int, int]:
    """Codec and sides of a picture."""
    with av.open(io.BytesIO(content)) as container:
        frame = next(container.decode(video=0))
        return container.streams.video[0].codec_context.name, frame.width, frame.height


def drawn(width: int, height: int, pixels: str = "rgb24") -> bytes:
    """A grey PNG."""
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, pixels, 1
    frame = av.VideoFrame(width, height, "gray")
    frame.planes[0].update(bytes([200]) * frame.planes[0].buffer_size)
    frame = frame.reformat(format=pixels)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))


class Away(Bucket):
    """A bucket that is away for one of its calls."""

    def __init__(self, play: Stage, call: str) -> None:
        super().__init__(play.ctx.settings)
        setattr(self, call, self._fail)

    def _fail(self, *_: Any) -> Any:
        raise StorageTrouble("get: SlowDown (HTTP 503)")


def run(play: Stage, bucket: Bucket | None = None) -> None:
    posters.carry_out(replace(play.ctx, bucket=bucket) if bucket else play.ctx, 20)


@pytest.mark.parametrize(("more", "sides"), [({}, (480, 276)), (PICTURE, (480, 360))], ids=["a clip", "a picture"])
def test_an_output_gets_a_small_jpeg_of_its_shape_beside_it(
    play: Stage, more: dict[str, Any], sides: tuple[int, int]
) -> None:
    job = made(play, **more)
    assert (state(play, job), play.document(job)["outputs"][0]["poster"]) == ("wanted", None)

    play.play([SENT])

    head = play.ctx.bucket.head(poster(play, job))
    assert head is not None
    assert head.content_type == "image/jpeg"
    assert shape(play.ctx.bucket.read(poster(play, job), 1 << 20)) == ("mjpeg", *sides)
    assert play.document(job)["outputs"][0]["poster"] == f"/v1/jobs/{job.id}/outputs/0/poster"


@pytest.mark.parametrize(
    ("sides", "small"),
    [((3000, 1500), (480, 240)), ((301, 77), (300, 76)), ((10, 9000), (2, 480)), ((700, 1001), (336, 480))],
)
def test_the_longer_side_is_480_at_most_and_both_are_even(sides: tuple[int, int], small: tuple[int, int]) -> None:
    assert shape(posters.still(io.BytesIO(drawn(*sides)), "image/png"))[1:] == small


def test_the_colours_of_a_clip_stay_what_they_were() -> None:
    """Large clips have other coefficients than JPEGs."""
    frame = av.VideoFrame(640, 360, "rgb24")
    frame.planes[0].update(bytes([20, 200, 60]) * 640 * 360)
    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    frame.pts, clip = 0, io.BytesIO()
    with av.open(clip, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        container.mux([*stream.encode(frame), *stream.encode()])

    clip.seek(0)
    still = posters.still(clip, "video/mp4")

    with av.open(io.BytesIO(still)) as container:
        found = bytes(next(container.decode(video=0)).reformat(format="rgb24").planes[0])[:3]
    assert [abs(one - other) <= 6 for one, other in zip(found, (20, 200, 60), strict=True)] == [True] * 3, found


def test_more_pixels_than_there_is_memory_for_are_not_decoded() -> None:
    with pytest.raises(ValueError, match=r"."):
        posters.still(io.BytesIO(drawn(8200, 8200, pixels="gray")), "image/png")


def test_a_file_is_read_as_what_it_was_stored_as_and_as_nothing_else() -> None:
    """FFmpeg would guess, and knows playlists that name other files."""
    with pytest.raises(ValueError, match=r"Invalid data"):
        posters.still(io.BytesIO(drawn(64, 64)), "video/mp4")


def test_a_broken_file_has_none_and_is_not_tried_again(play: Stage) -> None:
    job = made(play, **PICTURE)
    put(play, job, NOT_A_PICTURE)

    with capture_logs() as said:
        run(play)
        run(play)

    assert state(play, job) == "none"
    assert not is_there(play, poster(play, job))
    assert [line["event"] for line in said] == ["an output has no poster"]
    assert play.document(job)["outputs"][0]["poster"] is None


def test_a_file_on_which_a_worker_dies_is_not_met_again(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made(play, **PICTURE), made(play, **PICTURE)

    def dies(*_: Any) -> bytes:
        raise KeyboardInterrupt  # past all that catches a mistake, as a signal is

    with monkeypatch.context() as patched:
        patched.setattr(posters, "still", dies)
        with pytest.raises(KeyboardInterrupt):
            run(play)
    run(play)

    assert (state(play, second), state(play, first)) == ("none", "made"), "the newest was first"


def test_a_large_output_is_not_read(play: Stage) -> None:
    job = made(play, **PICTURE)
    play.sql("update outputs set bytes = :more", more=(128 << 20) + 1)

    run(play, Away(play, "chunks"))

    assert state(play, job) == "none"


def test_where_it_is_switched_off_none_is_wanted(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox, posters=False) as play:
        job = made(play)

        assert state(play, job) is None
        assert play.tick() == []


def test_sound_and_words_have_none(play: Stage) -> None:
    speech = {"kind": "speech", "model": "qwen3-tts-flash", "input": {"text": "A heron.", "voice": "Cherry"}}
    made(play, **speech)

    assert {row["poster"] for row in play.sql("select poster from outputs")} == {None}


@pytest.mark.parametrize("call", ["chunks", "put_stream"])
def test_while_the_bucket_is_away_they_stay_wanted_and_the_message_ends(play: Stage, call: str) -> None:
    jobs = [made(play, **PICTURE), made(play, **PICTURE)]

    with capture_logs() as said:
        run(play, Away(play, call))

    assert [state(play, job) for job in jobs] == ["wanted", "wanted"]
    assert len(said) == 1
    run(play)
    assert [state(play, job) for job in jobs] == ["made", "made"]


def test_an_object_that_is_gone_has_none(play: Stage) -> None:
    job = made(play, **PICTURE)
    play.ctx.bucket.delete(put(play, job, b""))

    run(play)

    assert state(play, job) == "none"


def test_one_worker_at_a_time_makes_them(play: Stage) -> None:
    job = made(play, **PICTURE)

    with posters.alone(play.ctx.engine) as first:
        run(play)
        assert (first, state(play, job)) == (True, "wanted")

    run(play)
    assert state(play, job) == "made"


def test_a_worker_that_died_at_them_is_followed_by_another(play: Stage) -> None:
    job = made(play, **PICTURE)

    with posters.alone(play.ctx.engine):
        play.sql("update duties set leased_until = now() - interval '1 s' where name = 'posters'")  # its lease is over
        with posters.alone(play.ctx.engine) as second:
            pass
        run(play)

    assert (second, state(play, job)) == (True, "made")


def test_a_message_ends_when_its_time_is_over(play: Stage) -> None:
    first, second = made(play, **PICTURE), made(play, **PICTURE)

    posters.carry_out(play.ctx, 0)

    assert (state(play, first), state(play, second)) == ("wanted", "made")


def test_a_message_is_sent_only_where_one_is_wanted(play: Stage) -> None:
    play.sql("update duties set due_at = now() + interval '1 hour' where name <> 'posters'")
    assert play.tick() == []
    job = made(play, **PICTURE)
    play.sql("update duties set due_at = now() where name = 'posters'")

    assert play.tick() == [SENT]
    assert play.tick() == [], "its next time is in two seconds"
    play.play([SENT])
    play.sql("update duties set due_at = now() where name = 'posters'")

    assert (play.tick(), state(play, job)) == ([], "made")


def test_the_look_for_what_is_wanted_is_by_its_index(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        connection.execute(text("set local enable_seqscan = off"))
        statement = tick._WANTED.compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.execute(text(f"explain {statement}")).scalars().all()

    assert "Index Only Scan using ix_outputs_poster" in " ".join(plan)


def test_a_worker_without_pyav_takes_none_and_says_so_once(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    job = made(play, **PICTURE)
    posters._is_installed.cache_clear()
    monkeypatch.setitem(sys.modules, "av", None)

    with capture_logs() as said:
        run(play)
        run(play)
    posters._is_installed.cache_clear()

    assert state(play, job) == "wanted"
    assert len(said) == 1


def prune(play: Stage, **days: int) -> None:
    with play.ctx.engine.begin() as connection:
        keys.set_retention(connection, play.project.name, days)
    retention.prune(play.ctx.engine, play.ctx.bucket, None, play.now() + timedelta(days=99), 60)


@pytest.mark.parametrize("days", [OUTPUTS, ROWS], ids=["outputs", "rows"])
@pytest.mark.parametrize("said", ["made", "none"])
def test_a_poster_goes_with_its_output(play: Stage, days: dict[str, int], said: str) -> None:
    """Where a worker died before it said `made`, too."""
    job = made(play, **PICTURE)
    run(play)
    key = poster(play, job)
    play.sql("update outputs set poster = :said", said=said)
    if "rows" in days:
        play.sql("update jobs set state = 'failed'")  # whose outputs go with their rows

    prune(play, **days)

    assert not is_there(play, key)
    assert not is_there(play, key.removesuffix(storage.POSTER))
    assert play.sql("select * from deletions") == []


def test_a_legal_hold_holds_a_poster_too(play: Stage) -> None:
    job = made(play, **PICTURE)
    run(play)
    with play.ctx.engine.begin() as connection:
        holds.add(connection, play.project.id, job.id, None, "a lawsuit")

    prune(play, outputs=30)

    assert is_there(play, poster(play, job))


def test_a_poster_that_was_made_while_its_output_went_goes_too(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    job = made(play, **PICTURE)
    real = posters.still

    def late(file: Any, content_type: str) -> bytes:
        prune(play, outputs=30)
        return real(file, content_type)

    monkeypatch.setattr(posters, "still", late)
    run(play)
    retention.prune(play.ctx.engine, play.ctx.bucket, None, play.now(), 60)

    assert not is_there(play, poster(play, job))
    assert state(play, job) == "none"


def test_the_api_leads_to_the_poster_of_ones_own_output(play: Stage, environment: dict[str, str]) -> None:
    job = made(play, **PICTURE)
    path = f"/v1/jobs/{job.id}/outputs/0/poster"

    with served(environment) as there:
        with there.http(there.key(play.project.name, scope=keys.Scope.READ)) as mine, there.http(None) as nobody:
            early = mine.get(path)
            run(play)
            link = mine.get(path)
            content = nobody.get(link.headers["location"])
            shown = mine.get(f"/v1/jobs/{job.id}").json()["outputs"][0]["poster"]
            absent = mine.get(f"/v1/jobs/{job.id}/outputs/1/poster")
            asked = nobody.get(path)
        with Client(there.url, there.key(play.project.name)) as client, there.http(None) as nobody:
            fetched = nobody.get(client.poster(job.id, 0)).content
        with there.http(there.key("another")) as others:
            strange = others.get(path)
        prune(play, outputs=30)
        with there.http(there.key(play.project.name)) as mine:
            gone = mine.get(path)
            then = mine.get(f"/v1/jobs/{job.id}").json()["outputs"][0]["poster"]

    assert (early.status_code, early.json()["code"]) == (404, "not_found")
    assert (link.status_code, shown) == (302, path)
    assert content.headers["content-type"] == "image/jpeg"
    assert shape(content.content)[0] == "mjpeg"
    assert fetched == content.content
    assert [absent.status_code, asked.status_code, strange.status_code] == [404, 401, 404]
    assert (gone.status_code, gone.json()["code"], then) == (410, "pruned", None)
