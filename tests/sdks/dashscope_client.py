"""What the client of the official SDK's 2.x gets from a DashScope at URL; one JSON object goes to stdout."""

import json
import os

import dashscope
from dashscope.v2.errors import DashScopeError

URL = os.environ["URL"]
WORDS = "The wheel lifts water out of the river. It never stops."
PICTURE = "https://example.com/cat.png"
WAITS = {"poll_interval": 0.1, "timeout": 60}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {}},
    },
}
client = dashscope.Client(api_key="sk-one", base_url=f"{URL}/api/v1")
compatible = dashscope.Client(api_key="sk-one", base_url=f"{URL}/compatible-mode/v1", protocol="openai")


def asked(words=WORDS, **more):
    return {"model": "qwen-plus", "messages": [{"role": "user", "content": words}], "enable_thinking": False, **more}


def said(opened):
    whole = opened.chat.completions.create(**asked())
    pieces = "".join(opened.chat.completions.create(**asked(), stream=True).text_stream)
    return [whole.choices[0].message.content, pieces]


def called(opened):
    answer = opened.chat.completions.create(**asked("Use weather for Hangzhou.", tools=[TOOL]))
    return answer.choices[0].message.tool_calls[0].function.name


def formed(opened):
    wanted = {"response_format": {"type": "json_object"}}
    answer = opened.chat.completions.create(**asked(f"Answer in JSON. {WORDS}", **wanted))
    return list(json.loads(answer.choices[0].message.content))


def seen():
    content = [{"image": PICTURE}, {"text": "What is it?"}]
    answer = client.multimodal.chat.create(model="qwen3-vl-plus", messages=[{"role": "user", "content": content}])
    return str(answer.choices[0].message.content)


def spoken():
    answer = client.audio.tts.http.synthesize(model="qwen3-tts-flash", text="水车", voice="Cherry")
    return [answer.output["audio"]["url"][:4], answer.usage["characters"]]


def embedded():
    answer = client.embeddings.create(model="text-embedding-v4", input=["one", "two"], dimension=256)
    return [len(each.embedding) for each in answer.embeddings]


def video():
    made = client.videos.generate(model="wan2.6-t2v", prompt=WORDS, size="1280*720", duration=2, **WAITS)
    going = client.videos.generate(
        model="wan2.7-i2v", prompt=WORDS, image_url=PICTURE, resolution="720P", duration=2, **WAITS
    )
    return [made.succeeded, made.video_url[:4], going.succeeded]


def pictures():
    made = client.images.generate(model="wan2.2-t2i-flash", prompt=WORDS, n=2, size="1024*1024", **WAITS)
    called = client.images.generate(model="wan2.6-t2i", prompt=WORDS, n=1, size="1280*1280", **WAITS)
    return [len(made.image_urls), len(called.image_urls)]


def refused():
    try:
        client.videos.jobs.create(model="wan2.6-t2v", prompt=WORDS, size="1:1")
    except DashScopeError as error:
        return [error.status_code, error.code]
    return None


told = {
    "version": dashscope.version.__version__,
    "native": [*said(client), called(client), formed(client)],
    "compatible": [*said(compatible), called(compatible), formed(compatible)],
    "seen": seen(),
    "spoken": spoken(),
    "embedded": embedded(),
    "video": video(),
    "pictures": pictures(),
    "refused": refused(),
}
print(json.dumps(told))
