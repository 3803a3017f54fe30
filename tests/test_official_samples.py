"""Each model's request against the sample of its official page: the same keys and values, and our explicit defaults.

A row is a sample's facts: what a user sends us, and what the page sends for that. Words and addresses are ours. `ours`
is what we add, so that nothing that is billed is left to the provider's defaults. The pages are Alibaba's API
references of Model Studio, in the editions of May 2026 where a row says nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from worker import catalog, kinds
from worker.catalog import Surface, Thinking, Variant
from worker.kinds import KINDS, text_batch
from worker.kinds.kind import CallKind
from worker.kinds.text import Conversation
from worker.states import Mode

CATALOG = catalog.load()
WORDS = "a kitten runs in the moonlight"
PICTURE, OTHER = "https://example.com/a.png", "https://example.com/b.png"
CLIP, SOUND = "https://example.com/a.mp4", "https://example.com/a.mp3"
VIDEO = "/services/aigc/video-generation/video-synthesis"


@dataclass(frozen=True)
class Sample:
    """A page's request: the models that share it, our input for it, its path, `input` and `parameters`."""

    page: str
    kind: str
    models: tuple[str, ...]
    wanted: dict[str, Any]
    path: str
    input: dict[str, Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)


def media(*shown: tuple[str, str]) -> list[dict[str, str]]:
    return [{"type": name, "url": url} for name, url in shown]


REFERENCES = [
    Sample(
        "Wan 2.7 reference-to-video",
        "reference-to-video",
        ("wan2.7-r2v", "wan2.7-r2v-2026-06-12"),
        {
            "prompt": WORDS,
            "references": [{"picture": PICTURE, "voice": SOUND}, {"clip": CLIP, "voice": SOUND}, {"picture": OTHER}],
            "resolution": "720P",
            "ratio": "16:9",
            "duration": 10,
            "prompt_extend": False,
            "watermark": True,
        },
        VIDEO,
        {
            "prompt": WORDS,
            "media": [
                {"type": "reference_image", "url": PICTURE, "reference_voice": SOUND},
                {"type": "reference_video", "url": CLIP, "reference_voice": SOUND},
                {"type": "reference_image", "url": OTHER},
            ],
        },
        {"resolution": "720P", "ratio": "16:9", "duration": 10, "prompt_extend": False, "watermark": True},
    ),
    Sample(
        "Wan reference-to-video, wan2.6",
        "reference-to-video",
        ("wan2.6-r2v-flash",),
        {
            "prompt": WORDS,
            "references": [{"clip": CLIP}, {"picture": PICTURE}],
            "size": "1280*720",
            "duration": 10,
            "audio": True,
            "shot_type": "multi",
            "watermark": True,
        },
        VIDEO,
        {"prompt": WORDS, "reference_urls": [CLIP, PICTURE]},
        {"size": "1280*720", "duration": 10, "audio": True, "shot_type": "multi", "watermark": True},
    ),
    Sample(
        "Wan reference-to-video, wan2.6",
        "reference-to-video",
        ("wan2.6-r2v",),
        {"prompt": WORDS, "references": [{"clip": CLIP}], "size": "1280*720", "duration": 5, "shot_type": "multi"},
        VIDEO,
        {"prompt": WORDS, "reference_urls": [CLIP]},
        {"size": "1280*720", "duration": 5, "shot_type": "multi"},
        {"watermark": False},
    ),
    Sample(
        "HappyHorse reference-to-video",
        "reference-to-video",
        ("happyhorse-1.0-r2v", "happyhorse-1.1-r2v"),
        {
            "prompt": WORDS,
            "references": [{"picture": PICTURE}, {"picture": OTHER}],
            "resolution": "720P",
            "ratio": "16:9",
            "duration": 5,
        },
        VIDEO,
        {"prompt": WORDS, "media": media(("reference_image", PICTURE), ("reference_image", OTHER))},
        {"resolution": "720P", "ratio": "16:9", "duration": 5},
        {"watermark": False},
    ),
    Sample(
        "announcement of wan3.0-video, 2026-10-15, and the Vercel AI SDK",
        "reference-to-video",
        ("wan3.0-video", "wan3.0-video-prime"),
        {"prompt": WORDS, "references": [{"picture": PICTURE}, {"clip": CLIP}, {"sound": SOUND}], "duration": -1},
        VIDEO,
        {
            "prompt": WORDS,
            "media": media(("reference_image", PICTURE), ("reference_video", CLIP), ("reference_audio", SOUND)),
        },
        {"duration": -1},
        {"resolution": "480P", "ratio": "adaptive", "audio": True, "prompt_extend": True, "watermark": False},
    ),
]
EDITS = [
    Sample(
        "Wan 2.7 video editing",
        "video-edit",
        ("wan2.7-videoedit",),
        {
            "prompt": WORDS,
            "video_url": CLIP,
            "pictures": [PICTURE],
            "resolution": "720P",
            "prompt_extend": True,
            "watermark": True,
        },
        VIDEO,
        {"prompt": WORDS, "media": media(("video", CLIP), ("reference_image", PICTURE))},
        {"resolution": "720P", "prompt_extend": True, "watermark": True},
        {"duration": 0, "audio_setting": "auto"},
    ),
    Sample(
        "HappyHorse video editing",
        "video-edit",
        ("happyhorse-1.0-video-edit",),
        {"prompt": WORDS, "video_url": CLIP, "pictures": [PICTURE], "resolution": "720P"},
        VIDEO,
        {"prompt": WORDS, "media": media(("video", CLIP), ("reference_image", PICTURE))},
        {"resolution": "720P"},
        {"audio_setting": "auto", "watermark": False},
    ),
]
FRAMES = [
    Sample(
        "Wan 2.7 image-to-video, first frame, last frame and sound",
        "image-to-video",
        ("wan2.7-i2v", "wan2.7-i2v-2026-04-25"),
        {
            "prompt": WORDS,
            "img_url": PICTURE,
            "last_frame_url": OTHER,
            "audio_url": SOUND,
            "resolution": "720P",
            "duration": 10,
            "prompt_extend": True,
            "watermark": True,
        },
        VIDEO,
        {
            "prompt": WORDS,
            "media": media(("first_frame", PICTURE), ("last_frame", OTHER), ("driving_audio", SOUND)),
        },
        {"resolution": "720P", "duration": 10, "prompt_extend": True, "watermark": True},
    ),
    Sample(
        "Wan 2.7 image-to-video, going on from a clip",
        "image-to-video",
        ("wan2.7-i2v", "wan2.7-i2v-2026-04-25"),
        {"prompt": WORDS, "clip_url": CLIP, "resolution": "720P", "duration": 10, "prompt_extend": True},
        VIDEO,
        {"prompt": WORDS, "media": media(("first_clip", CLIP))},
        {"resolution": "720P", "duration": 10, "prompt_extend": True},
        {"watermark": False},
    ),
    Sample(
        "announcement of wan3.0-video, 2026-10-15, and the Vercel AI SDK",
        "image-to-video",
        ("wan3.0-video", "wan3.0-video-prime"),
        {"prompt": WORDS, "img_url": PICTURE, "last_frame_url": OTHER, "duration": 8},
        VIDEO,
        {"prompt": WORDS, "media": media(("first_frame", PICTURE), ("last_frame", OTHER))},
        {"duration": 8},
        {"resolution": "480P", "audio": True, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "HappyHorse image-to-video",
        "image-to-video",
        ("happyhorse-1.0-i2v", "happyhorse-1.1-i2v"),
        {"prompt": WORDS, "img_url": PICTURE, "resolution": "720P", "duration": 5},
        VIDEO,
        {"prompt": WORDS, "media": media(("first_frame", PICTURE))},
        {"resolution": "720P", "duration": 5},
        {"watermark": False},
    ),
    Sample(
        "Wan image-to-video (first frame)",
        "image-to-video",
        ("wan2.6-i2v", "wan2.5-i2v-preview"),
        {
            "prompt": WORDS,
            "img_url": PICTURE,
            "audio_url": SOUND,
            "resolution": "720P",
            "prompt_extend": True,
            "duration": 10,
        },
        VIDEO,
        {"prompt": WORDS, "img_url": PICTURE, "audio_url": SOUND},
        {"resolution": "720P", "prompt_extend": True, "duration": 10},
        {"watermark": False},
    ),
    Sample(
        "Wan image-to-video (first frame), an effect",
        "image-to-video",
        ("wan2.2-i2v-plus", "wan2.2-i2v-flash", "wanx2.1-i2v-turbo"),
        {"img_url": PICTURE, "template": "flying", "resolution": "480P"},
        VIDEO,
        {"img_url": PICTURE, "template": "flying"},
        {"resolution": "480P"},
        {"duration": 5, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "Wan image-to-video (first frame), an effect",
        "image-to-video",
        ("wanx2.1-i2v-plus",),
        {"img_url": PICTURE, "template": "flying", "resolution": "720P"},
        VIDEO,
        {"img_url": PICTURE, "template": "flying"},
        {"resolution": "720P"},
        {"duration": 5, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "Wan image-to-video (first frame), without sound",
        "image-to-video",
        ("wan2.6-i2v-flash",),
        {
            "prompt": WORDS,
            "img_url": PICTURE,
            "audio": False,
            "resolution": "720P",
            "duration": 5,
        },
        VIDEO,
        {"prompt": WORDS, "img_url": PICTURE},
        {"audio": False, "resolution": "720P", "duration": 5},
        {"prompt_extend": True, "watermark": False},
    ),
    Sample(
        "Wan first-and-last-frame-to-video",
        "image-to-video",
        ("wan2.2-kf2v-flash", "wanx2.1-kf2v-plus"),
        {"img_url": PICTURE, "last_frame_url": OTHER, "prompt": WORDS, "resolution": "720P", "prompt_extend": True},
        "/services/aigc/image2video/video-synthesis",
        {"first_frame_url": PICTURE, "last_frame_url": OTHER, "prompt": WORDS},
        {"resolution": "720P", "prompt_extend": True},
        {"duration": 5, "watermark": False},
    ),
]
WORDS_TO_VIDEO = [
    Sample(
        "Wan text-to-video",
        "text-to-video",
        ("wan2.6-t2v", "wan2.5-t2v-preview"),
        {"prompt": WORDS, "audio_url": SOUND, "size": "1280*720", "duration": 10, "prompt_extend": True},
        VIDEO,
        {"prompt": WORDS, "audio_url": SOUND},
        {"size": "1280*720", "duration": 10, "prompt_extend": True},
        {"watermark": False},
    ),
    Sample(
        "Wan text-to-video, an older model",
        "text-to-video",
        ("wanx2.1-t2v-turbo", "wanx2.1-t2v-plus"),
        {"prompt": WORDS, "size": "1280*720"},
        VIDEO,
        {"prompt": WORDS},
        {"size": "1280*720"},
        {"duration": 5, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "Wan text-to-video, an older model",
        "text-to-video",
        ("wan2.2-t2v-plus",),
        {"prompt": WORDS, "negative_prompt": "flowers", "size": "832*480"},
        VIDEO,
        {"prompt": WORDS, "negative_prompt": "flowers"},
        {"size": "832*480"},
        {"duration": 5, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "Wan 2.7 text-to-video",
        "text-to-video",
        ("wan2.7-t2v", "wan2.7-t2v-2026-04-25", "wan2.7-t2v-2026-06-12"),
        {
            "prompt": WORDS,
            "resolution": "720P",
            "ratio": "16:9",
            "prompt_extend": True,
            "watermark": True,
            "duration": 15,
        },
        VIDEO,
        {"prompt": WORDS},
        {"resolution": "720P", "ratio": "16:9", "watermark": True, "duration": 15},
        {"prompt_extend": True},
    ),
    Sample(
        "HappyHorse text-to-video",
        "text-to-video",
        ("happyhorse-1.0-t2v", "happyhorse-1.1-t2v"),
        {"prompt": WORDS, "resolution": "720P", "ratio": "16:9", "duration": 5},
        VIDEO,
        {"prompt": WORDS},
        {"resolution": "720P", "ratio": "16:9", "duration": 5},
        {"watermark": False},
    ),
    Sample(
        "announcement of wan3.0-video, 2026-10-15, and the Vercel AI SDK",
        "text-to-video",
        ("wan3.0-video", "wan3.0-video-prime"),
        {"prompt": WORDS, "resolution": "1080P", "ratio": "9:16", "duration": 30},
        VIDEO,
        {"prompt": WORDS},
        {"resolution": "1080P", "ratio": "9:16", "duration": 30},
        {"audio": True, "prompt_extend": True, "watermark": False},
    ),
]
MULTIMODAL = "/services/aigc/multimodal-generation/generation"
IMAGES = "/services/aigc/image-generation/generation"


def asked(*parts: dict[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


PICTURES = [
    Sample(
        "Wan 2.7 image generation and editing, of words",
        "text-to-image",
        ("wan2.7-image", "wan2.7-image-pro"),
        {"prompt": WORDS, "size": "2K", "n": 1, "watermark": False, "thinking_mode": True},
        IMAGES,
        asked({"text": WORDS}),
        {"size": "2K", "n": 1, "watermark": False, "thinking_mode": True},
        {"enable_sequential": False},
    ),
    Sample(
        "Wan 2.7 image generation and editing, a sequence",
        "text-to-image",
        ("wan2.7-image", "wan2.7-image-pro"),
        {"prompt": WORDS, "sequence": True, "n": 4, "size": "2K"},
        IMAGES,
        asked({"text": WORDS}),
        {"enable_sequential": True, "n": 4, "size": "2K"},
        {"thinking_mode": True, "watermark": False},
    ),
    Sample(
        "Wan 2.7 image generation and editing, a sequence of a picture (its sample has the words first)",
        "image-edit",
        ("wan2.7-image", "wan2.7-image-pro"),
        {"prompt": WORDS, "pictures": [PICTURE], "sequence": True, "n": 4, "size": "2K"},
        IMAGES,
        asked({"image": PICTURE}, {"text": WORDS}),
        {"enable_sequential": True, "n": 4, "size": "2K"},
        {"watermark": False},
    ),
    Sample(
        "Wan 2.7 image generation and editing, editing where boxes are",
        "image-edit",
        ("wan2.7-image", "wan2.7-image-pro"),
        {
            "prompt": WORDS,
            "pictures": [PICTURE, OTHER],
            "boxes": [[], [[989, 515, 1138, 681]]],
            "size": "2K",
            "n": 1,
            "watermark": False,
        },
        IMAGES,
        asked({"image": PICTURE}, {"image": OTHER}, {"text": WORDS}),
        {"bbox_list": [[], [[989, 515, 1138, 681]]], "size": "2K", "n": 1, "watermark": False},
        {"enable_sequential": False},
    ),
    Sample(
        "Wan 2.6 image generation, editing (its sample has the words first)",
        "image-edit",
        ("wan2.6-image",),
        {"prompt": WORDS, "images": [PICTURE, OTHER], "prompt_extend": True, "watermark": False, "n": 1, "size": "1K"},
        IMAGES,
        asked({"image": PICTURE}, {"image": OTHER}, {"text": WORDS}),
        {"prompt_extend": True, "watermark": False, "n": 1, "enable_interleave": False, "size": "1K"},
    ),
    Sample(
        "Wan 2.5 general image editing",
        "image-edit",
        ("wan2.5-i2i-preview",),
        {"prompt": WORDS, "pictures": [PICTURE], "prompt_extend": True, "n": 1},
        "/services/aigc/image2image/image-synthesis",
        {"prompt": WORDS, "images": [PICTURE]},
        {"prompt_extend": True, "n": 1},
        {"watermark": False},
    ),
    Sample(
        "Qwen-Image editing",
        "image-edit",
        (
            "qwen-image-2.0-pro",
            "qwen-image-2.0-pro-2026-04-22",
            "qwen-image-2.0-pro-2026-03-03",
            "qwen-image-2.0",
            "qwen-image-2.0-2026-03-03",
            "qwen-image-edit-max",
            "qwen-image-edit-max-2026-01-16",
            "qwen-image-edit-plus",
            "qwen-image-edit-plus-2025-12-15",
            "qwen-image-edit-plus-2025-10-30",
        ),
        {
            "prompt": WORDS,
            "pictures": [PICTURE, OTHER],
            "n": 1,
            "negative_prompt": " ",
            "prompt_extend": True,
            "watermark": False,
            "size": "2048*2048",
        },
        MULTIMODAL,
        asked({"image": PICTURE}, {"image": OTHER}, {"text": WORDS}),
        {"n": 1, "negative_prompt": " ", "prompt_extend": True, "watermark": False, "size": "2048*2048"},
    ),
    Sample(
        "Qwen-Image editing, the first model",
        "image-edit",
        ("qwen-image-edit",),
        {"prompt": WORDS, "pictures": [PICTURE], "negative_prompt": " ", "watermark": False},
        MULTIMODAL,
        asked({"image": PICTURE}, {"text": WORDS}),
        {"negative_prompt": " ", "watermark": False},
        {"n": 1},
    ),
    Sample(
        "Qwen-Image text-to-image",
        "text-to-image",
        (
            "qwen-image-2.0-pro",
            "qwen-image-2.0-pro-2026-04-22",
            "qwen-image-2.0-pro-2026-03-03",
            "qwen-image-2.0",
            "qwen-image-2.0-2026-03-03",
        ),
        {
            "prompt": WORDS,
            "negative_prompt": "blurred",
            "prompt_extend": True,
            "watermark": False,
            "size": "2048*2048",
        },
        MULTIMODAL,
        asked({"text": WORDS}),
        {"negative_prompt": "blurred", "prompt_extend": True, "watermark": False, "size": "2048*2048"},
        {"n": 1},
    ),
    Sample(
        "reports of clients, November 2026",
        "image-edit",
        ("qwen-image-3.0", "qwen-image-3.0-pro"),
        {"prompt": WORDS, "pictures": [PICTURE]},
        IMAGES,
        asked({"image": PICTURE}, {"text": WORDS}),
        {},
        {"n": 1, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "reports of clients, November 2026",
        "text-to-image",
        ("qwen-image-3.0", "qwen-image-3.0-pro"),
        {"prompt": WORDS},
        IMAGES,
        asked({"text": WORDS}),
        {},
        {"size": "1024*1024", "n": 1, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "Qwen-Image text-to-image, as a call",
        "text-to-image",
        ("qwen-image-max", "qwen-image-max-2025-12-30", "qwen-image-plus-2026-01-09"),
        {"prompt": WORDS, "negative_prompt": "", "prompt_extend": True, "watermark": False, "size": "1664*928"},
        MULTIMODAL,
        asked({"text": WORDS}),
        {"negative_prompt": "", "prompt_extend": True, "watermark": False, "size": "1664*928"},
        {"n": 1},
    ),
    Sample(
        "Qwen-Image text-to-image, as a task",
        "text-to-image",
        ("qwen-image-plus", "qwen-image"),
        {"prompt": WORDS, "negative_prompt": "", "size": "1664*928", "n": 1, "prompt_extend": True, "watermark": False},
        "/services/aigc/text2image/image-synthesis",
        {"prompt": WORDS, "negative_prompt": ""},
        {"size": "1664*928", "n": 1, "prompt_extend": True, "watermark": False},
    ),
    Sample(
        "Z-Image",
        "text-to-image",
        ("z-image-turbo",),
        {"prompt": WORDS, "prompt_extend": False, "size": "1024*1536"},
        MULTIMODAL,
        asked({"text": WORDS}),
        {"prompt_extend": False, "size": "1024*1536"},
        {"n": 1},
    ),
    Sample(
        "Wan text-to-image V2, wan2.6",
        "text-to-image",
        ("wan2.6-t2i",),
        {
            "prompt": WORDS,
            "negative_prompt": "",
            "prompt_extend": True,
            "watermark": False,
            "n": 1,
            "size": "1280*1280",
        },
        IMAGES,
        asked({"text": WORDS}),
        {"negative_prompt": "", "prompt_extend": True, "watermark": False, "n": 1, "size": "1280*1280"},
    ),
    Sample(
        "Wan text-to-image V2",
        "text-to-image",
        (
            "wan2.5-t2i-preview",
            "wan2.2-t2i-plus",
            "wan2.2-t2i-flash",
            "wanx2.1-t2i-plus",
            "wanx2.1-t2i-turbo",
            "wanx2.0-t2i-turbo",
        ),
        {"prompt": WORDS, "size": "1280*1280", "n": 1},
        "/services/aigc/text2image/image-synthesis",
        {"prompt": WORDS},
        {"size": "1280*1280", "n": 1},
        {"prompt_extend": True, "watermark": False},
    ),
]
SPOKEN = [
    Sample(
        "Qwen-TTS",
        "speech-segment",
        (
            "qwen3-tts-flash",
            "qwen3-tts-flash-2025-11-27",
            "qwen3-tts-flash-2025-09-18",
            "qwen3-tts-vd-2026-01-26",
            "qwen3-tts-vc-2026-01-22",
        ),
        {"text": WORDS, "voice": "Cherry", "language": "Chinese"},
        MULTIMODAL,
        {"text": WORDS, "voice": "Cherry", "language_type": "Chinese"},
    ),
    Sample(
        "Qwen-TTS, with instructions",
        "speech-segment",
        ("qwen3-tts-instruct-flash", "qwen3-tts-instruct-flash-2026-01-26"),
        {
            "text": WORDS,
            "voice": "Cherry",
            "language": "Chinese",
            "instructions": "fast",
            "optimize_instructions": True,
        },
        MULTIMODAL,
        {
            "text": WORDS,
            "voice": "Cherry",
            "language_type": "Chinese",
            "instructions": "fast",
            "optimize_instructions": True,
        },
    ),
]
CHAT = "/chat/completions"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": WORDS}]
SHOWN = {"type": "image_url", "image_url": {"url": PICTURE}}
HEARD = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "mp3"}}


def about(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": WORDS}]}]}


def offered(kind: str, **traits: Any) -> tuple[str, ...]:
    """The models of the kind with these traits, but those that a notice retired."""
    return tuple(
        model.id
        for model in CATALOG.models(kind)
        if model.retired_by != "notice" and all(getattr(model, name) == trait for name, trait in traits.items())
    )


def answers_in_words(thinking: Thinking) -> list[Sample]:
    """The samples of text and sight of models that think so: they are told not to, since the default differs."""
    ours = {"max_tokens": 4096} | ({} if thinking is Thinking.NONE else {"enable_thinking": False})
    return [
        Sample(
            "First call to Qwen, DashScope",
            "text",
            offered("text", surface="native", thinking=thinking),
            {"messages": TURNS},
            "/services/aigc/text-generation/generation",
            {"messages": TURNS},
            {"result_format": "message"},
            ours,
        ),
        Sample(
            "First call to Qwen, OpenAI-compatible",
            "text",
            offered("text", surface="compatible", thinking=thinking),
            {"messages": TURNS},
            CHAT,
            {"messages": TURNS},
            ours=ours,
        ),
        Sample(
            "Qwen-VL, OpenAI-compatible (its sample has the words first)",
            "understand",
            offered("understand", streams=False, thinking=thinking),
            {"prompt": WORDS, "pictures": [PICTURE]},
            CHAT,
            about(SHOWN),
            ours=ours,
        ),
        Sample(
            "Qwen-Omni, sound in and words out",
            "understand",
            offered("understand", streams=True, thinking=thinking),
            {"prompt": WORDS, "sounds": [SOUND]},
            CHAT,
            about(HEARD),
            {"modalities": ["text"], "stream": True, "stream_options": {"include_usage": True}},
            ours,
        ),
    ]


EMBEDDED = [
    Sample(
        "Text embedding, synchronous API",
        "embedding-call",
        offered("embedding"),
        {"texts": [WORDS], "dimension": 1024, "output_type": "dense", "text_type": "document"},
        "/services/embeddings/text-embedding/text-embedding",
        {"texts": [WORDS]},
        {"dimension": 1024, "output_type": "dense"},
        {"text_type": "document"},
    )
]
SAID = [sample for thinking in Thinking for sample in answers_in_words(thinking)]
SAMPLES = [*WORDS_TO_VIDEO, *FRAMES, *REFERENCES, *EDITS, *PICTURES, *SPOKEN, *SAID, *EMBEDDED]
ROWS = [(sample, name) for sample in SAMPLES for name in sample.models]


@pytest.mark.parametrize(("sample", "name"), ROWS, ids=lambda part: getattr(part, "page", part))
def test_a_request_is_the_pages_sample_and_our_explicit_defaults(sample: Sample, name: str) -> None:
    model, kind = CATALOG.model(name), kinds.call(sample.kind)
    region = next(iter(model.regions))

    sent = kind.request(model, region, KINDS[sample.kind].check(CATALOG, model, sample.wanted, region))

    assert (sent.path, sent.headers) == (
        sample.path,
        {"X-DashScope-Async": "enable"} if model.mode is Mode.TASK else {},
    )
    assert sample.parameters.keys().isdisjoint(sample.ours)
    parameters = sample.parameters | sample.ours
    flat = sent.surface is Surface.COMPATIBLE
    asked = sample.input | parameters if flat else {"input": sample.input, "parameters": parameters}
    assert sent.body == {"model": model.regions[region].id, **asked}


@pytest.mark.parametrize("name", [name for name in offered("text") if CATALOG.variant(name, Variant.BATCH)])
def test_a_line_of_a_batch_is_the_pages_sample_and_our_explicit_defaults(name: str) -> None:
    batched = CATALOG.variant(name, Variant.BATCH)
    assert batched is not None
    region = next(iter(batched.regions))
    call = KINDS["text"].check(CATALOG, CATALOG.model(name), {"messages": TURNS}, region)
    assert isinstance(call, Conversation)

    line = json.loads(text_batch.line(batched, [region], "1", call))

    ours = {"max_tokens": 4096} | ({} if batched.thinking is Thinking.NONE else {"enable_thinking": False})
    assert line == {  # 'OpenAI compatible - Batch'
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": batched.regions[region].id, "messages": TURNS, **ours},
    }


def test_every_model_that_makes_a_call_is_held_against_a_sample() -> None:
    held = {(name, sample.kind) for sample in SAMPLES for name in sample.models}
    calls = {
        (model.id, kind)
        for model in CATALOG.models()
        for kind in model.kinds
        if model.retired_by != "notice" and isinstance(KINDS[kind], CallKind)
    }

    # of other regions: their requests are those of the same models in Beijing
    assert {(name, kind) for name, kind in calls - held if not name.endswith("-us")} == {
        *((f"qwen-tts-{version}", "speech-segment") for version in ("latest", "2025-05-22", "2025-04-10")),  # ended
    }
