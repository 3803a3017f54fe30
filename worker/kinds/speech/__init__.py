"""Speech of any length from words: cut below the provider's limit, spoken in segments, joined to one narration.

    expand     the script's segments as children, some hundreds at a time; when all are spoken, how long each is
    assemble   the sound as a stream: the segments' samples, and exact silence between; subtitles, and a manifest

The script is cut again in each step. That gives the same segments, since the parent's note keeps the limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from worker.catalog import Model, Usage
from worker.errors import ErrorClass, Failure
from worker.kinds import fields
from worker.kinds.kind import Child, Ended, Expansion, Outline, Parent, ParentKind, Piece, Store, Unfit
from worker.kinds.speech import audio, script, speech_segment, timeline
from worker.kinds.speech.audio import BadSound, Format, Sound
from worker.kinds.speech.input import Speech
from worker.kinds.speech.script import Segment
from worker.kinds.speech.timeline import Line, Take
from worker.settings import Settings

NAME = "speech"

_Heard = list[int] | str  # rate, channels, offset and length of a segment's sound; or why it cannot be used

_PAGE = 250  # children in one commit
_OUTLINED = 200  # segments that an outline shows
_MEASURES: dict[str, script.Measure] = {"bytes": script.in_bytes, "characters": len}


def estimate(model: Model, wanted: Speech) -> Usage:
    """Every character, as the provider counts them; of a preview those that its only segment may have at most."""
    spoken = wanted.spoken
    return speech_segment.spoken(_dearest(spoken, model.text_limit) if wanted.preview else spoken)


def outline(model: Model, wanted: Speech, settings: Settings) -> Outline:
    """The segments that would be spoken, in their order: text, voice, and the characters that are billed."""
    note = {"limit": model.text_limit or 0, "unit": settings.speech_limit_unit}
    segments = _cut(wanted, note)[: 1 if wanted.preview else None]
    shown = (
        {"text": segment.text, "voice": segment.voice, "characters": speech_segment.billed(segment.text)}
        for segment in segments[:_OUTLINED]
    )
    return Outline(tuple(shown), len(segments))


def words(wanted: Speech) -> str:
    """ "12,300 characters, Cherry", "840 characters, 2 voices"."""
    voices = {part.voice for part in wanted.voiced}
    return f"{len(wanted.spoken):,} characters, {voices.pop() if len(voices) == 1 else f'{len(voices)} voices'}"


def expand(parent: Parent, store: Store) -> Expansion:
    """The next segments to speak; when all are spoken, what they hold, or why they cannot be joined."""
    note = parent.note or _limits(parent)
    segments = _segments(parent, note)
    if parent.ended:
        return _measured(parent, store, note)
    page = segments[parent.made : parent.made + _PAGE]
    more = parent.made + len(page) < len(segments)
    return Expansion(tuple(_child(parent.model, segment) for segment in page), note, more)


def assemble(parent: Parent, store: Store) -> Iterator[Piece]:
    """The sound in each format asked for, subtitles, and a manifest of what is where."""
    wanted: Speech = parent.input
    takes = _takes(parent, parent.note)
    form, length = takes[0].sound.format, takes[-1].end
    if "wav" in wanted.formats:
        yield Piece("audio", "wav", "audio/wav", _wav(takes, length, store), form.seconds(length))
    if "mp3" in wanted.formats:
        yield Piece("audio", "mp3", "audio/mpeg", audio.mp3(_pcm(takes, store), form), form.seconds(length))
    lines = [Line(t.segment.text, form.seconds(t.start), form.seconds(t.end)) for t in takes]
    for kind in wanted.subtitles:
        yield Piece("subtitles", kind, timeline.CONTENT_TYPES[kind], [timeline.subtitles(lines, kind).encode()])
    yield Piece("manifest", "json", "application/json", [timeline.manifest(parent.model, takes).encode()])


def usage(parent: Parent) -> dict[str, Any]:
    """Characters as the provider counted them, segments, and seconds once known; of a preview also the whole's."""
    spoken = [child.usage or {} for child in parent.ended]
    shown = {"characters": sum(each.get("characters", 0) for each in spoken), "segments": len(spoken)}
    if parent.input.preview:
        whole = _cut(parent.input, parent.note or _limits(parent))
        shown["segments_in_all"] = len(whole)
        shown["characters_in_all"] = sum(speech_segment.billed(segment.text) for segment in whole)
    return {**shown, "seconds": parent.note["seconds"]} if "seconds" in parent.note else shown


def _limits(parent: Parent) -> dict[str, Any]:
    limit = parent.catalog.model(parent.model).text_limit
    assert limit is not None, "the catalog has a limit for each model of speech"
    return {"limit": limit, "unit": parent.settings.speech_limit_unit}


def _unmeasured(note: dict[str, Any]) -> dict[str, Any]:
    return {"limit": note["limit"], "unit": note["unit"]}


def _segments(parent: Parent, note: dict[str, Any]) -> list[Segment]:
    """What is spoken: of a preview the first segment alone, as the whole would have it."""
    wanted: Speech = parent.input
    segments = _cut(wanted, note)
    return [replace(segments[0], pause=0.0)] if wanted.preview else segments


def _cut(wanted: Speech, note: dict[str, Any]) -> list[Segment]:
    return script.segments(wanted.voiced, wanted.pause, note["limit"], _MEASURES[note["unit"]])


def _dearest(spoken: str, limit: int | None) -> str:
    """A text of as many characters as a segment may have, and as dear as any part of the whole may be."""
    dear = sorted(spoken, key=speech_segment.billed, reverse=True)
    return "".join(dear[:limit])


def _child(model: str, segment: Segment) -> Child:
    asked: dict[str, Any] = {"text": segment.text, "voice": segment.voice, "language": segment.language}
    if segment.instructions is not None:
        asked["instructions"] = segment.instructions
        if segment.optimize_instructions is not None:
            asked["optimize_instructions"] = segment.optimize_instructions
    note = {"paragraph": segment.paragraph, "characters": len(segment.text), "voice": segment.voice}
    return Child(speech_segment.NAME, model, asked, note)


def _measured(parent: Parent, store: Store, note: dict[str, Any]) -> Expansion:
    """The parent's note with the sound of each segment, as far as time allows; else with `more`."""
    if "seconds" in note:  # all were measured before, and then a retry made some of them again
        note = _unmeasured(note)
    sounds: list[_Heard] = list(note.get("sounds", ()))
    for child in parent.ended[len(sounds) :]:
        if store.is_late():
            return Expansion(note={**note, "sounds": sounds}, more=True)
        sounds.append(_heard(child, store))
    if wrong := _wrong(sounds):
        return _refused(parent, note, wrong)
    try:
        last = _takes(parent, {**note, "sounds": sounds})[-1]
    except Unfit as error:
        return Expansion(failure=_unfit(str(error)))
    seconds = round(last.sound.format.seconds(last.end), 3)
    return Expansion(note={**note, "sounds": sounds, "seconds": seconds}, failure=_too_long(last))


def _heard(child: Ended, store: Store) -> _Heard:
    """A segment's sound; or the reason why it cannot be joined to any other."""
    if not child.outputs:
        return "there is none"
    stored = child.outputs[0]
    try:
        heard = audio.measure(store.chunks(stored.key), stored.bytes)
    except BadSound as error:
        return str(error)
    if not heard.frames:
        return "it is empty"
    return [heard.format.rate, heard.format.channels, heard.offset, heard.frames]


def _wrong(sounds: Sequence[_Heard]) -> dict[int, str]:
    """Why segments cannot be joined, by their place: they are unusable, or not in the format that most have."""
    wrong = {place: heard for place, heard in enumerate(sounds) if isinstance(heard, str)}
    forms = {place: (heard[0], heard[1]) for place, heard in enumerate(sounds) if not isinstance(heard, str)}
    for usual, _ in Counter(forms.values()).most_common(1):
        odd = {place: form for place, form in forms.items() if form != usual}
        wrong |= {place: f"it has {_described(form)}, others {_described(usual)}" for place, form in odd.items()}
    return dict(sorted(wrong.items()))


def _described(form: tuple[int, int]) -> str:
    return f"{form[1]} channels at {form[0]} Hz"


def _refused(parent: Parent, note: dict[str, Any], wrong: dict[int, str]) -> Expansion:
    """The job's failure, with the first reason; a retry speaks these segments again."""
    first, why = next(iter(wrong.items()))
    others = f", and {len(wrong) - 1:,} others neither" if len(wrong) > 1 else ""
    failure = replace(_unfit(f"segment {first + 1} cannot be joined: {why}{others}"), retryable=True)
    unfit = tuple(parent.ended[place].id for place in wrong)
    return Expansion(note=_unmeasured(note), failure=failure, unfit=unfit)


def _takes(parent: Parent, note: dict[str, Any]) -> list[Take]:
    """The segments with their sound and places; raises Unfit if the script is now cut in another way."""
    segments = _segments(parent, note)
    if [len(segment.text) for segment in segments] != [child.note.get("characters") for child in parent.ended]:
        raise Unfit("the text would be cut otherwise now than when it was spoken: submit it again")
    takes: list[Take] = []
    start = 0
    for segment, child, heard in zip(segments, parent.ended, note["sounds"], strict=True):
        rate, channels, offset, frames = heard
        form = Format(rate, channels)
        take = Take(segment, child, Sound(form, offset, frames), start, form.frames(segment.pause))
        takes.append(take)
        start = take.end + take.silence
    return takes


def _wav(takes: Sequence[Take], length: int, store: Store) -> Iterator[bytes]:
    yield audio.header(takes[0].sound.format, length)
    yield from _pcm(takes, store)


def _pcm(takes: Sequence[Take], store: Store) -> Iterator[bytes]:
    for number, take in enumerate(takes, 1):
        try:
            yield from audio.samples(store.chunks(take.child.outputs[0].key), take.sound)
        except BadSound as error:
            raise Unfit(f"segment {number} is not what it was: {error}") from None
        yield from audio.silence(take.sound.format, take.silence)


def _unfit(message: str) -> Failure:
    return Failure("parts_unfit", ErrorClass.PROVIDER, message, billed="yes")


def _too_long(last: Take) -> Failure | None:
    if last.end * last.sound.format.frame <= audio.LONGEST:
        return None
    message = f"{last.sound.format.seconds(last.end):,.0f} s are more than one WAV holds, which is 4 GiB"
    hint = "cut the text in two; the segments that were spoken are in the bucket, as this job's children"
    return Failure("too_long", ErrorClass.VALIDATION, message, billed="yes", hint=hint)


KIND = ParentKind(
    name=NAME,
    input=Speech,
    check=partial(fields.check, NAME, Speech),
    estimate=estimate,
    words=words,
    expand=expand,
    assemble=assemble,
    usage=usage,
    outline=outline,
    all_or_none=True,
)
