"""Narrations: what may be asked, how a segment is asked for, and whole stories on real servers."""

from __future__ import annotations

import io
import itertools
import json
import time
import wave
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from typing import Any

import httpx
import pytest
from stage import Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import catalog
from worker.errors import Fault, InvalidInput
from worker.jobs import submission
from worker.kinds import speech
from worker.kinds.kind import Source
from worker.kinds.speech import audio, speech_segment
from worker.kinds.speech import input as form
from worker.kinds.speech import script as scripts
from worker.settings import Settings
from worker.tables import Job

CATALOG = catalog.load()
MODEL, INSTRUCTED, OLD = (
    CATALOG.model(name) for name in ("qwen3-tts-flash", "qwen3-tts-instruct-flash", "qwen-tts-2025-04-10")
)
LINK = "http://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/a.wav?Expires=1"
BILINGUAL = (
    "很久以前，河边有一架水车。它日夜不停地转动，把河水一桶一桶地提上来，倒进水渠里。价格是 ¥1,299.00，真的！"
    "Once upon a time, Dr. Smith came to see the wheel. “It never stops,” he said. The bill was $1,299.00. "
)
TEXT = "\n\n".join([BILINGUAL * (1000 // len(BILINGUAL) + 1)] * 3)


def checked(**raw: Any) -> dict[str, Any]:
    return speech.KIND.check(CATALOG, MODEL, raw, None).model_dump(mode="json", exclude_none=True)


def faults(model: Any = MODEL, **raw: Any) -> dict[str, Fault]:
    with pytest.raises(InvalidInput) as raised:
        speech.KIND.check(CATALOG, model, raw, None)
    return {fault.pointer: fault for fault in raised.value.faults}


# The input


def test_a_text_is_enough() -> None:
    assert checked(text="Hello.") == {
        "text": "Hello.",
        "markup": "pauses",
        "voice": "Cherry",
        "language": "Auto",
        "pause": 0.25,
        "paragraph_pause": 0.7,
        "formats": ["wav"],
        "subtitles": ["srt", "vtt"],
    }


def test_voices_and_languages_may_be_written_in_any_case() -> None:
    script = [{"text": "Who is there?", "voice": "ELDRIC SAGE"}, {"text": "你好", "language": "chinese"}]

    taken = checked(paragraphs=script, voice="cherry")

    assert taken["voice"] == "Cherry"
    assert [part.get("voice") or part.get("language") for part in taken["paragraphs"]] == ["Eldric Sage", "Chinese"]


def test_formats_may_be_written_as_a_table_of_text_has_them() -> None:
    taken = checked(text="Hello.", formats="WAV, mp3 wav", subtitles="srt", pause="0.5")

    assert (taken["formats"], taken["subtitles"], taken["pause"]) == (["wav", "mp3"], ["srt"], 0.5)


@pytest.mark.parametrize(
    ("raw", "pointer", "code"),
    [
        ({}, "/input/text", "required"),
        ({"text": "Hello.", "paragraphs": [{"text": "Hello."}]}, "/input/text", "contradiction"),
        ({"text": " …\n***"}, "/input/text", "blank"),
        ({"text": "\0"}, "/input/text", "bad_text"),
        ({"text": "\ud800"}, "/input/text", "bad_text"),
        ({"text": "x" * 200_001}, "/input/text", "too_long"),
        ({"text": "x\n\n" * 5001}, "/input/text", "too_many"),
        ({"paragraphs": []}, "/input/paragraphs", "blank"),
        ({"paragraphs": [{"text": "x" * 100_001}] * 2}, "/input/paragraphs", "too_long"),
        ({"paragraphs": [{"text": "x"}] * 5001}, "/input/paragraphs", "too_many"),
        ({"paragraphs": [{"text": "x"}, {"voice": "Cherry"}]}, "/input/paragraphs/1/text", "required"),
        ({"paragraphs": [{"text": "x", "vioce": "Cherry"}]}, "/input/paragraphs/0/vioce", "unknown_field"),
        ({"paragraphs": [{"text": "x", "voice": "Chery"}]}, "/input/paragraphs/0/voice", "not_allowed"),
        ({"text": "x", "voice": "x" * 201}, "/input/voice", "too_long"),
        ({"text": "x", "language": "Klingon"}, "/input/language", "not_allowed"),
        ({"text": "x", "instructions": "slowly"}, "/input/instructions", "not_taken"),
        ({"text": "x", "pause": 11}, "/input/pause", "less_than_equal"),
        ({"text": "x", "pause": float("nan")}, "/input/pause", "finite_number"),
        ({"text": "x", "formats": ["ogg"]}, "/input/formats/0", "literal_error"),
        ({"text": "x", "formats": []}, "/input/formats", "too_short"),
        ({"text": "x", "texts": "y"}, "/input/texts", "unknown_field"),
        ({"text": "x[pause 1s]" * 5001}, "/input/text", "too_many"),
        ({"text": "x[pause 60s]y"}, "/input/text", "too_long"),
        ({"text": "x[pause 10s]" * 2161 + "y"}, "/input/paragraph_pause", "too_long"),
        ({"text": "[pause 2s]"}, "/input/text", "blank"),
        ({"text": 'slowly <prosody rate="slow">now</prosody>'}, "/input/text", "tag_not_taken"),
        ({"paragraphs": [{"text": "x"}, {"text": "<b>y</b>"}]}, "/input/paragraphs", "tag_not_taken"),
        ({"text": "**x** <em>y</em>", "markup": "markdown"}, "/input/text", "tag_not_taken"),
        ({"text": "```\ncode\n```", "markup": "markdown"}, "/input/text", "blank"),
        ({"paragraphs": [{"text": "x"}], "markup": "markdown"}, "/input/paragraphs", "contradiction"),
        ({"text": "x", "markup": "html"}, "/input/markup", "literal_error"),
        (
            {"paragraphs": [{"text": "x", "pause_after": 10}] * 2161},
            "/input/paragraph_pause",
            "too_long",
        ),
    ],
)
def test_what_cannot_be_spoken_is_refused_before_it_is_paid_for(raw: dict[str, Any], pointer: str, code: str) -> None:
    assert faults(**raw)[pointer].code == code


def spoken(**raw: Any) -> list[tuple[str, float]]:
    """The paragraphs as they are spoken, and the silence after each."""
    wanted = speech.KIND.check(CATALOG, MODEL, raw, None)
    assert isinstance(wanted, form.Speech)
    return [(part.text.strip(), part.pause) for part in wanted.voiced]


@pytest.mark.parametrize(
    "mark",
    ['<break time="2s"/>', "<break time='2000ms' />", "[pause 2s]", "[Pause: 2 seconds]", "（停顿2秒）", "(pause 2)"],
)
def test_a_pause_that_a_text_asks_for_is_silence_and_not_spoken(mark: str) -> None:
    assert spoken(text=f"水是不会等人的。{mark} 谁来？\n\n好的。") == [
        ("水是不会等人的。", 2.0),
        ("谁来？", 0.7),
        ("好的。", 0.7),
    ]
    assert spoken(paragraphs=[{"text": f"Go{mark}{mark}on.", "pause_after": 3}]) == [("Go", 4.0), ("on.", 3.0)]


def test_a_pause_of_no_length_is_a_second_and_is_not_billed() -> None:
    wanted = speech.KIND.check(CATALOG, MODEL, {"text": "<speak>水。（停顿）[pause]<break/>好。</speak>"}, None)

    assert spoken(text="水。（停顿）[pause]<break/>好。") == [("水。", 3.0), ("好。", 0.7)]
    assert speech.estimate(MODEL, wanted).units["characters"] == len(" 水水。好好。 ")


def test_a_tag_that_would_be_read_out_is_named() -> None:
    assert "the tag <prosody>" in faults(text="x\n\n<prosody rate='slow'>y</prosody>")["/input/text"].message
    assert spoken(text="if a < b or b > c: <3 & List<", markup="pauses")[0][0] == "if a < b or b > c: <3 & List<"


def test_what_is_wanted_as_it_stands_is_spoken_so() -> None:
    text = "**x** [pause 2s] <prosody>y</prosody>"

    assert spoken(text=text, markup="none") == [(text, 0.7)]
    read = form.Speech.model_validate({"text": text, "voice": "Cherry"})  # of a job from before
    assert [part.text for part in read.voiced] == [text]


def test_markdown_is_taken_off_by_choice() -> None:
    text = (
        "# 第一章 *水车*\n\n**老李**说：_水_。详见 [手册](https://a.example/?b=c)![图](x.png)。\n\n- 第一条：`闸门`\n\n"
        "| 日期 | 水位 |\n|---|---|\n| 6月1日 | 12.5m<!-- of all --> |\n\n<!-- a\n\ndraft -->\n\n"
        "---\n\n```python\nprint(1)\n```\n\n    indented\n"
    )

    assert [part for part, _ in spoken(text=text, markup="markdown")] == [
        "第一章 水车",
        "老李说：水。详见 手册图。",
        "第一条：闸门",
        "日期, 水位",
        "6月1日, 12.5m",
        "indented",
    ]
    assert spoken(text="`<!--` and \\<!-- x", markup="markdown") == [("<!-- and <!-- x", 0.7)]
    assert spoken(text="**x**") == [("**x**", 0.7)]


@pytest.mark.parametrize("sign", ["[", "![", "<", "<a ", "[pause", "(pause ", "<break ", "<p ", "*a_ ", "`", "|"])
def test_a_text_of_marks_is_looked_through_in_seconds(sign: str) -> None:
    text = ("x " + sign * 200_000)[:200_000]
    began = time.process_time()

    for said in ("pauses", "markdown"):
        with suppress(InvalidInput):
            speech.KIND.check(CATALOG, MODEL, {"text": text, "markup": said}, None)

    assert time.process_time() - began < 10  # of ours; Markdown is read by a process of its own


def test_a_misspelled_voice_is_told_the_nearest_and_a_strange_one_all() -> None:
    assert "did you mean Cherry?" in faults(text="x", voice="Chery")["/input/voice"].message
    assert "Serena" in faults(OLD, text="x", voice="zzz")["/input/voice"].message
    assert faults(OLD, text="x", voice="Momo")["/input/voice"].code == "not_allowed"


def test_a_voice_of_other_versions_is_told_with_them() -> None:
    first = CATALOG.model("qwen3-tts-flash-2025-09-18")

    message = faults(first, text="x", voice="serena")["/input/voice"].message

    assert "models that have it: qwen3-tts-flash, qwen3-tts-flash-2025-11-27" in message
    assert speech.KIND.check(CATALOG, first, {"text": "x", "voice": "kiki"}, None).voice == "Kiki"  # type: ignore[attr-defined]


def test_a_voice_of_the_accounts_own_has_to_be_named_and_may_be_any() -> None:
    own = CATALOG.model("qwen3-tts-vc-2026-01-22")
    script = [{"text": "x", "voice": "our-voice"}, {"text": "y"}]

    assert faults(own, text="x")["/input/text"].code == "required"
    assert "paragraph 2 has no voice" in faults(own, paragraphs=script)["/input/paragraphs"].message
    assert speech.KIND.check(CATALOG, own, {"text": "x", "voice": "our-voice"}, None).voice == "our-voice"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "voices", "dialects"),
    [
        ("qwen3-tts-flash", 49, 10),
        ("qwen3-tts-flash-2025-11-27", 49, 10),
        ("qwen3-tts-flash-2025-09-18", 17, 10),
        ("qwen3-tts-instruct-flash", 24, 0),
        ("qwen3-tts-instruct-flash-2026-01-26", 24, 0),
        ("qwen3-tts-vd-2026-01-26", 0, 0),
        ("qwen-tts-latest", 7, 3),
        ("qwen-tts-2025-04-10", 4, 0),
    ],
)
def test_each_version_shows_its_own_voices_and_those_of_them_that_speak_a_dialect(
    name: str, voices: int, dialects: int
) -> None:
    shown = CATALOG.model(name).as_json()

    assert (len(set(shown["voices"])), len(shown["dialects"])) == (voices, dialects)
    assert shown["dialects"].keys() <= {*shown["voices"]}


def test_a_voice_that_follows_no_instructions_is_told_with_the_models_that_have_it() -> None:
    message = faults(INSTRUCTED, text="x", voice="Sunny", instructions="slowly")["/input/voice"].message

    assert "models that have it: qwen3-tts-flash" in message
    assert "instruct" not in message.partition("models that have it")[2]


def test_instructions_may_be_put_better_where_they_are_taken() -> None:
    wanted = {"text": "x", "instructions": "slowly", "optimize_instructions": True}
    segment = speech_segment.SpeechSegment(
        text="x", voice="Cherry", language="Auto", instructions="slowly", optimize_instructions=True
    )

    assert faults(text="x", optimize_instructions=True)["/input/optimize_instructions"].code == "not_taken"
    assert speech.KIND.check(CATALOG, INSTRUCTED, wanted, None).optimize_instructions  # type: ignore[attr-defined]
    assert speech_segment.request(INSTRUCTED, "cn-beijing", segment).body["input"]["optimize_instructions"] is True


# Before the whole is paid


def test_an_outline_tells_each_segment_and_what_is_billed_of_it() -> None:
    settings = Settings.model_construct(speech_limit_unit="bytes")
    wanted = speech.KIND.check(CATALOG, MODEL, {"text": "一二。\n\nabc."}, None)

    assert speech.KIND.outline is not None
    outline = speech.KIND.outline(MODEL, wanted, settings)

    assert outline.total == 2
    assert [(each["text"], each["voice"], each["characters"]) for each in outline.children] == [
        ("一二。", "Cherry", 5),
        ("abc.", "Cherry", 4),
    ]


@pytest.mark.parametrize(
    "text", ["…" * 700 + "\n\n" + "一" * 700, "一" * 700 + "a" * 5000, "a" * 5000 + "一" * 700, "short", TEXT]
)
def test_a_preview_is_reserved_as_the_dearest_segment_that_the_text_may_have(text: str) -> None:
    wanted = speech.KIND.check(CATALOG, MODEL, {"text": text, "preview": True}, None)
    settings = Settings.model_construct(speech_limit_unit="characters")
    assert speech.KIND.outline is not None
    (first,) = speech.KIND.outline(MODEL, wanted, settings).children

    reserved = speech.KIND.estimate(MODEL, wanted).units["characters"]

    assert first["characters"] <= reserved <= 1200


def test_a_preview_speaks_the_first_segment_alone_and_tells_how_many_there_are(play: Stage) -> None:
    whole = play.submit("speech", MODEL.id, input={"text": TEXT})
    job = play.submit("speech", MODEL.id, input={"text": TEXT, "preview": True})

    heard, entire = play.until(job), play.until(whole)

    assert heard.state == "succeeded", heard.error
    assert heard.usage is not None
    assert entire.usage is not None
    assert heard.usage["segments"] == 1
    assert heard.usage["segments_in_all"] == entire.usage["segments"] > 5
    assert heard.usage["characters_in_all"] == entire.usage["characters"]
    assert heard.cost is not None
    assert entire.cost is not None
    assert heard.cost < entire.cost / 5
    spoken = play.sql("select input->>'text' as text from jobs where parent_id = :id", id=job.id)
    assert TEXT.startswith(spoken[0]["text"])


def test_an_mp3_is_refused_where_it_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio.importlib.util, "find_spec", lambda _: None)  # as on a machine without PyAV

    assert "`media`" in faults(text="x", formats=["mp3"])["/input/formats"].message
    assert checked(text="x")["formats"] == ["wav"]


def test_an_input_that_is_read_back_stays_as_it_was_taken() -> None:
    taken = speech.KIND.check(
        catalog.load(), INSTRUCTED, {"paragraphs": [{"text": "x", "instructions": "slowly"}]}, None
    )

    assert form.Speech.model_validate(taken.model_dump(mode="json", exclude_none=True)) == taken


def test_words_hold_no_text_and_the_estimate_counts_every_character() -> None:
    script = [{"text": "字" * 1000}, {"text": "word", "voice": "Ethan"}]
    dialogue = speech.KIND.check(CATALOG, MODEL, {"paragraphs": script}, None)
    plain = speech.KIND.check(CATALOG, MODEL, {"text": "x" * 12_300}, None)

    assert speech.words(dialogue) == "1,004 characters, 2 voices"
    assert speech.words(plain) == "12,300 characters, Cherry"
    assert speech.estimate(MODEL, dialogue).units["characters"] == 2004
    assert speech.estimate(MODEL, plain).units["characters"] == 12_300


# The sample of 'Qwen-TTS API reference', whose answer says `"usage": {"characters": 195}`.
SAMPLE = (
    "那我来给大家推荐一款T恤，这款呢真的是超级好看，这个颜色呢很显气质，而且呢也是搭配的绝佳单品，大家可以闭眼入，"
    "真的是非常好看，对身材的包容性也很好，不管啥身材的宝宝呢，穿上去都是很好看的。推荐宝宝们下单哦。"
)


@pytest.mark.parametrize(
    ("text", "billed"),
    [
        (SAMPLE, 195),
        ("word, 1", 7),
        ("你好，世界！", 10),
        ("漢字 and 汉字", 13),
        ("ひらがなカタカナ", 8),
        ("한국어 大韓民國", 12),
        ("㐀𠀀\uf900", 6),  # an extension, another above 16 bits, a compatibility ideograph
        ("人々〇", 6),
        ("、。「」ー", 5),
        ("🙂", 1),
    ],
)
def test_a_han_character_is_billed_twice_and_all_others_once(text: str, billed: int) -> None:
    segment = speech_segment.SpeechSegment(text=text, voice="Cherry", language="Auto")
    whole = form.Speech(text=text)

    assert speech_segment.estimate(MODEL, segment).units["characters"] == billed
    assert speech.estimate(MODEL, whole).units["characters"] == billed
    assert speech_segment.usage(MODEL, segment, {}).units["characters"] == billed


def test_models_that_bill_tokens_have_an_estimate_too() -> None:
    wanted = speech.KIND.check(CATALOG, OLD, {"text": "字" * 100}, None)

    assert OLD.price(speech.estimate(OLD, wanted), "cn-beijing", date(2026, 11, 21)) == 160 + 13_000


# A segment


def test_a_segment_is_asked_for_as_documented() -> None:
    wanted = speech_segment.SpeechSegment(text="你好", voice="Cherry", language="Auto", instructions="slowly")

    sent = speech_segment.request(INSTRUCTED, "cn-beijing", wanted)

    assert sent.path == "/services/aigc/multimodal-generation/generation"
    assert sent.headers == {}
    assert sent.body == {
        "model": "qwen3-tts-instruct-flash",
        "input": {"text": "你好", "voice": "Cherry", "language_type": "Auto", "instructions": "slowly"},
        "parameters": {},
    }


@pytest.mark.parametrize(
    ("output", "links"),
    [
        ({"audio": {"data": "", "url": LINK, "expires_at": 1}, "finish_reason": "stop"}, [LINK]),
        ({"audio": {"data": "", "url": ""}}, []),
        ({"audio": {"url": "file:///etc/passwd"}}, []),
        ({"audio": {"url": 7}}, []),
        ({"audio": None}, []),
        ({}, []),
    ],
)
def test_the_recording_is_where_the_answer_says(output: dict[str, Any], links: list[str]) -> None:
    assert speech_segment.outputs(output) == tuple(Source(link, "audio", "wav") for link in links)


@pytest.mark.parametrize(
    ("answer", "units"),
    [
        ({"usage": {"characters": 4}}, {"characters": 4}),
        ({"usage": {"characters": "4", "input_tokens": 0}}, {"characters": 4}),
        (
            {"usage": {"input_tokens": 2, "output_tokens": 50}},
            {"characters": 4, "input_tokens": 2, "output_tokens": 50},
        ),
        ({"usage": [1]}, {"characters": 4}),
        ({}, {"characters": 4}),
    ],
)
def test_use_is_what_the_provider_counted(answer: dict[str, Any], units: dict[str, Any]) -> None:
    wanted = speech_segment.SpeechSegment(text="你好", voice="Cherry", language="Auto")

    assert speech_segment.usage(MODEL, wanted, answer).units == units


# Stories


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    fast = {MODEL.id: Limits(rpm=60_000)}
    with running(Options(call_seconds=0.02, limits=fast, speech_unit="bytes")) as made:
        yield made


@pytest.fixture
def play(sandbox: Sandbox, environment: dict[str, str]) -> Iterator[Stage]:
    with stage(environment, sandbox, limits={MODEL.id: {"rpm": 60_000}}) as made:
        yield made


def submit(play: Stage, **said: Any) -> Job:
    return play.submit("speech", MODEL.id, input=said)


def children(play: Stage, job: Job) -> list[Any]:
    return list(play.sql("select * from jobs where parent_id = :id order by round, place", id=job.id))


def outputs(play: Stage, job: Job) -> dict[str, bytes]:
    """The job's objects by extension."""
    found = play.document(job)["outputs"]
    return {output["key"].rpartition(".")[2]: b"".join(play.ctx.bucket.chunks(output["key"])) for output in found}


def frames(content: bytes) -> int:
    with wave.open(io.BytesIO(content)) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (24_000, 1, 2)
        assert len(content) == 44 + 2 * reader.getnframes()
        return reader.getnframes()


def recorded(play: Stage, job: Job) -> list[bytes]:
    """What the provider made of each segment."""
    found = play.sql(
        "select key from outputs join jobs on jobs.id = job_id where parent_id = :id order by round, place", id=job.id
    )
    return [b"".join(play.ctx.bucket.chunks(row["key"])) for row in found]


def test_a_bilingual_script_becomes_one_narration_of_the_right_length(play: Stage) -> None:
    job = play.until(submit(play, text=TEXT))

    made, notes = outputs(play, job), [part["note"] for part in children(play, job)]
    assert (job.state, list(made)) == ("succeeded", ["wav", "srt", "vtt", "json"])
    breaks = [one["paragraph"] < two["paragraph"] for one, two in itertools.pairwise(notes)]
    silence = sum(round((0.7 if is_paragraph else 0.25) * 24_000) for is_paragraph in breaks)
    assert frames(made["wav"]) == sum(map(frames, recorded(play, job))) + silence
    assert job.usage == {
        "characters": sum(speech_segment.billed(part["input"]["text"]) for part in children(play, job)),
        "segments": len(notes),
        "seconds": round(frames(made["wav"]) / 24_000, 3),
    }


def test_every_character_is_sent_once_and_in_order(play: Stage) -> None:
    text = BILINGUAL * 6
    job = play.until(submit(play, text=text, formats=["mp3"], subtitles=[]))

    sent = [part["input"]["text"] for part in children(play, job)]
    assert sorted(sent) == sorted(create["prompt"] for create in play.sandbox.ledger()["creates"])
    assert "".join("".join(sent).split()) == "".join(text.split())
    made = outputs(play, job)
    assert list(made) == ["mp3", "json"]
    told = json.loads(made["json"])["segments"]
    assert [segment["text"] for segment in told] == sent


def test_calls_are_paced_by_the_minute_and_what_they_cost_is_what_the_narration_cost(
    sandbox: Sandbox, environment: dict[str, str]
) -> None:
    sandbox.set(limits={})
    with stage(environment, sandbox) as play:  # at the catalog's rate, 180 a minute
        job = play.until(submit(play, paragraphs=[{"text": f"Line {n}."} for n in range(6)]))

    ledger = sandbox.ledger()
    at = sorted(create["received_at"] for create in ledger["creates"])
    assert (job.state, len(at), ledger["totals"]["refused"]) == ("succeeded", 6, 0)
    assert at[-1] - at[0] >= 5 / 3 - 0.2  # spread over the minute, so that no window of the provider's is overrun
    assert (job.cost, job.billed) == (ledger["totals"]["billed_micros"], "yes")


def test_a_segment_that_fails_fails_the_narration_and_a_retry_repeats_it_alone(play: Stage) -> None:
    refused = {"where": "create", "what": "error", "code": "DataInspectionFailed", "status": 400, "times": 1}
    play.sandbox.fault(**refused, prompt_contains="Two")
    job = submit(play, paragraphs=[{"text": "One."}, {"text": "Two."}, {"text": "Three."}])
    failed = play.until(job)
    assert (failed.state, outputs(play, failed)) == ("failed", {})

    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job.id, play.now())
    done = play.until(job)

    assert done.state == "succeeded"
    assert sorted(task["prompt"] for task in play.sandbox.ledger()["tasks"]) == ["One.", "Three.", "Two."]


def test_a_narration_that_dies_between_portions_is_made_once(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0 where model = :model", model=MODEL.id)
    script = [{"text": f"Line {n}."} for n in range(300)]
    job = submit(play, paragraphs=script)
    play.drive(lambda: play.job(job), lambda found: found.state == "gathering")
    for is_recorded in (False, True):
        taken, step, clock = play.begin(job)
        move = next(step)
        if is_recorded:
            play.ctx.record(taken, move, clock)
        step.close()  # type: ignore[attr-defined]
        play.lapse(job)

    found = play.drive(lambda: children(play, job), lambda made: len(made) >= 300)

    assert [child["input"]["text"] for child in found] == [part["text"] for part in script]


def test_a_narration_that_dies_while_it_is_joined_is_joined_again(play: Stage) -> None:
    job = submit(play, paragraphs=[{"text": "One."}, {"text": "Two."}])
    play.until(job, "copying")
    _, step, _ = play.begin(job)
    next(step)  # everything is in the bucket, and nothing on record
    step.close()  # type: ignore[attr-defined]
    play.lapse(job)

    done = play.until(job)

    assert done.state == "succeeded"
    assert list(outputs(play, done)) == ["wav", "srt", "vtt", "json"]
    assert len(play.sandbox.ledger()["tasks"]) == 2


def test_a_limit_in_bytes_is_never_overstepped(play: Stage) -> None:
    done = play.until(submit(play, text="我们今天去公园，" * 60))

    assert done.state == "succeeded"
    sent = play.sandbox.ledger()["creates"]
    assert max(scripts.in_bytes(create["prompt"]) for create in sent) <= 600
    assert [create["refusal"] for create in sent] == [None] * len(sent)


def test_a_dry_run_shows_how_a_text_would_be_cut_and_what_a_preview_costs(http: httpx.Client) -> None:
    def told(**wanted: Any) -> dict[str, Any]:
        body = {"kind": "speech", "input": {"text": TEXT, **wanted}}
        answer: dict[str, Any] = http.post("/v1/jobs?dry_run=true", json=body).json()
        return answer

    whole, first = told(), told(preview=True)

    assert whole["segments"]["total"] == len(whole["segments"]["first"]) > 5
    assert "".join(each["text"] for each in whole["segments"]["first"]).replace(" ", "")[:500] in TEXT.replace(" ", "")
    assert first["segments"] == {"total": 1, "first": whole["segments"]["first"][:1]}
    assert float(first["cost"]["estimated"]) < float(whole["cost"]["estimated"]) / 3


def test_an_outline_is_bounded(http: httpx.Client) -> None:
    body = {"kind": "speech", "input": {"text": "Words of many kinds. " * 9_000}}

    segments = http.post("/v1/jobs?dry_run=true", json=body).json()["segments"]

    assert segments["total"] > 300
    assert len(segments["first"]) == 200
