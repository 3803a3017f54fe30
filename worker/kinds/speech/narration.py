"""A narration out of its segments: one call for each, then one WAV, subtitles by their true lengths, a manifest.

    expand     the script's segments as children, some hundreds at a time; when all are spoken, how long each is
    assemble   the sound as a stream: the segments' samples, and exact silence between them

The script is cut again each time, which gives the same segments, since the parent's note keeps by what limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from worker import catalog
from worker.errors import ErrorClass, Failure
from worker.kinds.kind import Child, Ended, Expansion, FanOut, Parent, Piece, Store, Unfit
from worker.kinds.speech import cutting, manifest, mp3, script, speech_segment, subtitles, wav_files
from worker.kinds.speech.form import Speech
from worker.kinds.speech.manifest import Take
from worker.kinds.speech.script import Segment
from worker.kinds.speech.wav_files import BadSound, Format, Sound

_Heard = list[int] | str  # rate, channels, offset and length of a segment's sound; or why it is no use

_PORTION = 250  # children in one commit
_MEASURES: dict[str, cutting.Measure] = {"bytes": cutting.in_bytes, "characters": len}


def expand(parent: Parent, store: Store) -> Expansion:
    """The next segments to speak; when all are spoken, what they hold, or why they do not go together."""
    note = parent.note or _limits(parent)
    segments = _segments(parent, note)
    if parent.ended:
        return _measured(parent, store, note)
    portion = segments[parent.made : parent.made + _PORTION]
    more = parent.made + len(portion) < len(segments)
    return Expansion(tuple(_child(parent.model, segment) for segment in portion), note, more)


def assemble(parent: Parent, store: Store) -> Iterator[Piece]:
    """The sound in each format asked for, subtitles, and a manifest of what is where."""
    wanted, takes = _wanted(parent), _takes(parent, parent.note)
    form, length = takes[0].sound.format, takes[-1].end
    if "wav" in wanted.formats:
        yield Piece("audio", "wav", "audio/wav", _wav(takes, length, store), form.seconds(length))
    if "mp3" in wanted.formats:
        yield Piece("audio", "mp3", "audio/mpeg", mp3.encoded(_pcm(takes, store), form), form.seconds(length))
    lines = [subtitles.Line(t.segment.text, form.seconds(t.start), form.seconds(t.end)) for t in takes]
    for kind in wanted.subtitles:
        yield Piece("subtitles", kind, subtitles.CONTENT_TYPES[kind], [subtitles.written(lines, kind).encode()])
    yield Piece("manifest", "json", "application/json", [manifest.written(parent.model, takes).encode()])


def usage(parent: Parent) -> dict[str, Any]:
    """Characters as the provider counted them, segments, and seconds once they are known."""
    spoken = [child.usage or {} for child in parent.ended]
    shown = {"characters": sum(said.get("characters", 0) for said in spoken), "segments": len(spoken)}
    return {**shown, "seconds": parent.note["seconds"]} if "seconds" in parent.note else shown


FAN_OUT = FanOut(expand=expand, assemble=assemble, usage=usage, all_or_none=True)


def _wanted(parent: Parent) -> Speech:
    assert isinstance(parent.input, Speech)
    return parent.input


def _limits(parent: Parent) -> dict[str, Any]:
    limit = catalog.load().model(parent.model).text_limit
    assert limit is not None, "the catalog knows how much a model of speech takes"
    return {"limit": limit, "unit": parent.settings.speech_limit_unit}


def _unmeasured(note: dict[str, Any]) -> dict[str, Any]:
    return {"limit": note["limit"], "unit": note["unit"]}


def _segments(parent: Parent, note: dict[str, Any]) -> list[Segment]:
    wanted = _wanted(parent)
    return script.segments(wanted.voiced, wanted.pause, note["limit"], _MEASURES[note["unit"]])


def _child(model: str, segment: Segment) -> Child:
    said = {"text": segment.text, "voice": segment.voice, "language": segment.language}
    if segment.instructions is not None:
        said["instructions"] = segment.instructions
    note = {"paragraph": segment.paragraph, "characters": len(segment.text), "voice": segment.voice}
    return Child(speech_segment.NAME, model, said, note)


def _measured(parent: Parent, store: Store, note: dict[str, Any]) -> Expansion:
    """The parent's note with what each segment holds; as far as time allows, with `more`."""
    if "seconds" in note:  # all were measured before, and then some of them made again
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
    """What a segment's sound is; a reason, where it cannot be joined to any other."""
    if not child.outputs:
        return "there is none"
    stored = child.outputs[0]
    try:
        heard = wav_files.measure(store.chunks(stored.key), stored.bytes)
    except BadSound as error:
        return str(error)
    if not heard.frames:
        return "it is empty"
    return [heard.format.rate, heard.format.channels, heard.offset, heard.frames]


def _wrong(sounds: Sequence[_Heard]) -> dict[int, str]:
    """Why segments cannot be joined, by their place: they are unusable, or not in the format that most of them have."""
    wrong = {place: heard for place, heard in enumerate(sounds) if isinstance(heard, str)}
    forms = {place: (heard[0], heard[1]) for place, heard in enumerate(sounds) if not isinstance(heard, str)}
    for usual, _ in Counter(forms.values()).most_common(1):
        odd = {place: form for place, form in forms.items() if form != usual}
        wrong |= {place: f"it has {_spelled(form)}, others {_spelled(usual)}" for place, form in odd.items()}
    return dict(sorted(wrong.items()))


def _spelled(form: tuple[int, int]) -> str:
    return f"{form[1]} channels at {form[0]} Hz"


def _refused(parent: Parent, note: dict[str, Any], wrong: dict[int, str]) -> Expansion:
    """The end, with the first reason; a retry speaks the segments again that are to blame."""
    first, why = next(iter(wrong.items()))
    others = f", and {len(wrong) - 1:,} others neither" if len(wrong) > 1 else ""
    failure = replace(_unfit(f"segment {first + 1} cannot be joined: {why}{others}"), retryable=True)
    unfit = tuple(parent.ended[place].id for place in wrong)
    return Expansion(note=_unmeasured(note), failure=failure, unfit=unfit)


def _takes(parent: Parent, note: dict[str, Any]) -> list[Take]:
    """The segments with their sound and places; raises Unfit if these are not the ones that were spoken."""
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
    yield wav_files.header(takes[0].sound.format, length)
    yield from _pcm(takes, store)


def _pcm(takes: Sequence[Take], store: Store) -> Iterator[bytes]:
    for number, take in enumerate(takes, 1):
        try:
            yield from wav_files.samples(store.chunks(take.child.outputs[0].key), take.sound)
        except BadSound as error:
            raise Unfit(f"segment {number} is not what it was: {error}") from None
        yield from wav_files.silence(take.sound.format, take.silence)


def _unfit(message: str) -> Failure:
    return Failure("parts_unfit", ErrorClass.PROVIDER, message, billed="yes")


def _too_long(last: Take) -> Failure | None:
    if last.end * last.sound.format.frame <= wav_files.LONGEST:
        return None
    message = f"{last.sound.format.seconds(last.end):,.0f} s are more than one WAV holds, which is 4 GiB"
    hint = "cut the text in two; the segments that were spoken are in the bucket, as this job's children"
    return Failure("too_long", ErrorClass.VALIDATION, message, billed="yes", hint=hint)
