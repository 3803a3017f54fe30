"""What the calls of the official SDK, 1.x and 2.x, get from a DashScope at URL; one JSON object goes to stdout."""

import json
import os

import dashscope
from dashscope import Generation, ImageSynthesis, MultiModalConversation, TextEmbedding, VideoSynthesis

URL = os.environ["URL"]
WORDS = "The wheel lifts water out of the river. It never stops."
dashscope.base_http_api_url, dashscope.api_key = f"{URL}/api/v1", "sk-one"


def plain():
    answer = Generation.call(model="qwen-plus", prompt=WORDS, result_format="message", enable_thinking=False)
    return [answer.status_code, answer.output.choices[0].message.content, answer.usage.output_tokens]


def streamed():
    asked = {"model": "qwen-plus", "messages": [{"role": "user", "content": WORDS}], "result_format": "message"}
    pieces = Generation.call(**asked, stream=True, incremental_output=True, enable_thinking=False)
    return "".join(piece.output.choices[0].message.content for piece in pieces)


def called():
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": "Use weather for Hangzhou."}]
    answer = Generation.call(model="qwen-plus", messages=messages, tools=[tool], result_format="message")
    return answer.output.choices[0].message.tool_calls[0]["function"]["name"]


def formed():
    asked = {"response_format": {"type": "json_object"}, "result_format": "message"}
    answer = Generation.call(model="qwen-plus", prompt=f"Answer in JSON. {WORDS}", **asked)
    return list(json.loads(answer.output.choices[0].message.content))


def seen(streams):
    content = [{"image": "https://example.com/cat.png"}, {"text": "What is it?"}]
    asked = {"model": "qwen3-vl-plus", "messages": [{"role": "user", "content": content}]}
    if streams:
        pieces = list(MultiModalConversation.call(**asked, stream=True, incremental_output=True))
        parts = [part for piece in pieces for part in piece.output.choices[0].message.content]
        return "".join(part["text"] for part in parts)
    return MultiModalConversation.call(**asked).output.choices[0].message.content[0]["text"]


def spoken():
    answer = MultiModalConversation.call(model="qwen3-tts-flash", text="水车", voice="Cherry", language_type="Chinese")
    return [answer.output.audio["url"][:4], answer.usage["characters"]]


def embedded():
    answer = TextEmbedding.call(model="text-embedding-v4", input=["one", "two"], dimension=256)
    return [len(each["embedding"]) for each in answer.output["embeddings"]]


def video():
    answer = VideoSynthesis.call(model="wan2.6-t2v", prompt=WORDS, size="1280*720", duration=2)
    return [answer.output.task_status, answer.output.video_url[:4], answer.usage["duration"]]


def pictures():
    answer = ImageSynthesis.call(model="wan2.2-t2i-flash", prompt=WORDS, n=2, size="1024*1024")
    return [answer.output.task_status, len(answer.output.results)]


def refused():
    answer = VideoSynthesis.async_call(model="wan2.6-t2v", prompt=WORDS, size="1:1")
    return [answer.status_code, answer.code]


told = {
    "version": dashscope.version.__version__,
    "plain": plain(),
    "streamed": streamed(),
    "called": called(),
    "formed": formed(),
    "seen": [seen(streams=False), seen(streams=True)],
    "spoken": spoken(),
    "embedded": embedded(),
    "video": video(),
    "pictures": pictures(),
    "refused": refused(),
}
print(json.dumps(told))
