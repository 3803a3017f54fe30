"""What a client is told about a task, field by field as the provider's generations of models tell it.

Sources: Alibaba docs, the Wan text-to-video, image-to-video, text-to-image and image generation API references, the
Qwen-Image ones, "Manage asynchronous tasks" (May 2026); recorded answers where these differ.
"""

from collections.abc import Callable
from typing import Any

from ops.sandbox import clock, generation
from ops.sandbox.models import Model
from ops.sandbox.orders import Order
from ops.sandbox.tasks import NEVER, Status, Task

REWRITE = ", cinematic light, rich detail, smooth camera movement"
UNINTERESTING = {
    "api_key_id": "42677",
    "caller_parent_id": "1493000000000000",
    "caller_uid": "1493000000000000",
}
COUNTED = ("text2image", "image2image")  # calls whose tasks tell how many of their pictures succeeded and failed
MODERATED = {"code": "DataInspectionFailed", "message": "Output data may contain inappropriate content."}


def made(task: Task, request_id: str) -> dict[str, Any]:
    """Return the answer to an asynchronous create."""
    return {"output": {"task_status": "PENDING", "task_id": task.id}, "request_id": request_id}


def unknown(task_id: str, request_id: str) -> dict[str, Any]:
    """Return the answer about a task that the account cannot see; HTTP 200, as recorded."""
    return {"request_id": request_id, "output": {"task_id": task_id, "task_status": "UNKNOWN"}}


def told(task: Task, model: Model, status: Status, links: list[str], now: float, request_id: str) -> dict[str, Any]:
    """Return the answer to a task query; `links` are the outputs' and are told on success only."""
    output: dict[str, Any] = {"task_id": task.id, "task_status": status} | _times(task, now)
    answer: dict[str, Any] = {"request_id": request_id, "output": output}
    if status is Status.FAILED and task.failure:
        output["code"], output["message"] = task.failure
    if task.order.call in COUNTED:
        output["task_metrics"] = _metrics(task, status)
    if status is Status.SUCCEEDED:
        output |= _outputs(task, model, links)
        answer["usage"] = _usage(task, model)
    return answer


def finished(task: Task, model: Model, links: list[str], request_id: str) -> dict[str, Any]:
    """Return the answer to a synchronous create of pictures."""
    output = _messages(task, model, links)
    if model.tells_metric:
        output["task_metric"] = _metrics(task, Status.SUCCEEDED)
    return {"output": output, "usage": USAGES[model.usage](task), "request_id": request_id}


def row(task: Task, model: Model, region: str, now: float) -> dict[str, Any]:
    """Return a task's row in a list: times are epoch milliseconds, the request id is the create's."""
    ended_at = task.ended_at if task.canceled_at is None else task.canceled_at
    listed: dict[str, Any] = UNINTERESTING | {"gmt_create": _millis(task.submitted_at)}
    if task.canceled_at is None and task.started_at <= now:
        listed["start_time"] = _millis(task.started_at)
    if ended_at <= now:
        listed["end_time"] = _millis(ended_at)
    return listed | {
        "model_name": task.order.model,
        "region": region,
        "request_id": task.request_id,
        "status": task.status(now),
        "task_id": task.id,
        "user_api_unique_key": _unique_key(task, model),
    }


def _unique_key(task: Task, model: Model) -> str:
    path = next(call.path for call in model.calls if call.name == task.order.call)
    return f"apikey:v1:{path.replace('/', ':')}:{model.id}"


def _times(task: Task, now: float) -> dict[str, str]:
    times = {"submit_time": task.submitted_at}
    if task.canceled_at is not None:
        times["end_time"] = task.canceled_at
    else:
        times |= {"scheduled_time": task.started_at, "end_time": task.ended_at}
    return {name: clock.stamp(at) for name, at in times.items() if at <= now and at != NEVER}


def _metrics(task: Task, status: Status) -> dict[str, int]:
    total = task.order.pictures
    failed = {Status.SUCCEEDED: task.failed_pictures, Status.FAILED: total}.get(status, 0)
    succeeded = total - failed if status is Status.SUCCEEDED else 0
    return {"TOTAL": total, "SUCCEEDED": succeeded, "FAILED": failed}


def _outputs(task: Task, model: Model, links: list[str]) -> dict[str, Any]:
    if task.answer is not None:
        return generation.output(task.answer, task.order.form)
    if task.order.call == "messages":
        return _messages(task, model, links)
    prompts = _prompts(task.order, model)
    if model.makes == "video":
        return prompts | {"video_url": links[0]}
    failed: list[dict[str, str]] = [MODERATED] * task.failed_pictures
    return {"results": [prompts | {"url": link} for link in links] + failed}


def _usage(task: Task, model: Model) -> dict[str, Any]:
    if task.answer is not None:
        return generation.usage(task.answer)
    return USAGES[model.usage if task.order.call not in COUNTED else "count"](task)


def _prompts(order: Order, model: Model) -> dict[str, str]:
    if not model.tells_prompt:
        return {}
    told_prompts = {"orig_prompt": order.prompt}
    if model.tells_rewrite and order.extends_prompt:
        told_prompts["actual_prompt"] = order.prompt + REWRITE
    return told_prompts


def _messages(task: Task, model: Model, links: list[str]) -> dict[str, Any]:
    """Return pictures as parts of one message, or, of models that type them, as a message each unless in sequence."""
    if not model.typed_parts:
        return {"choices": [_choice([{"image": link} for link in links])]}
    parts = [{"image": link, "type": "image"} for link in links]
    contents = [parts] if task.order.is_sequence else [[part] for part in parts]
    return {"choices": [_choice(content) for content in contents], "finished": True}


def _choice(content: list[dict[str, str]]) -> dict[str, Any]:
    return {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}


def _usage_with_size(task: Task) -> dict[str, Any]:
    return _usage_in_and_out(task) | {"size": task.order.size, "video_count": 1}


def _usage_in_and_out(task: Task) -> dict[str, Any]:
    order = task.order
    return {
        "duration": order.seconds + order.input_seconds,
        "input_video_duration": order.input_seconds,
        "output_video_duration": order.seconds,
        "SR": _lines(order),
        "video_count": 1,
    }


def _usage_with_audio(task: Task) -> dict[str, Any]:
    return _usage_in_and_out(task) | {"audio": task.order.has_audio}


def _usage_with_ratio(task: Task) -> dict[str, Any]:
    return _usage_in_and_out(task) | {"ratio": task.order.ratio}


def _usage_short(task: Task) -> dict[str, Any]:
    return {"duration": task.order.seconds, "SR": _lines(task.order), "video_count": 1}


def _usage_video_ratio(task: Task) -> dict[str, Any]:
    return {"video_duration": task.order.seconds, "video_ratio": task.order.size, "video_count": 1}


def _usage_standard(task: Task) -> dict[str, Any]:
    return {"video_duration": task.order.seconds, "video_ratio": "standard", "video_count": 1}


def _usage_count(task: Task) -> dict[str, Any]:
    return {"image_count": task.order.pictures - task.failed_pictures}


def _usage_output_count(task: Task) -> dict[str, Any]:
    return {"output_image_count": task.order.pictures - task.failed_pictures}


def _usage_picture(task: Task) -> dict[str, Any]:
    width, height = (int(side) for side in task.order.size.split("*"))
    return {"height": height, "width": width} | _usage_count(task)


def _usage_sized(task: Task) -> dict[str, Any]:
    tokens = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0)  # counted, but never billed
    return _usage_count(task) | {"size": task.order.size} | tokens


def _lines(order: Order) -> int:
    return int(order.tier.removesuffix("P"))


def _millis(instant: float) -> int:
    return int(instant * 1000)


USAGES: dict[str, Callable[[Task], dict[str, Any]]] = {
    "wan2.6-t2v": _usage_with_size,
    "wan2.6-i2v": _usage_in_and_out,
    "wan2.6-i2v-flash": _usage_with_audio,
    "wan2.7": _usage_with_ratio,
    "short": _usage_short,
    "video_ratio": _usage_video_ratio,
    "standard": _usage_standard,
    "count": _usage_count,
    "picture": _usage_picture,
    "sized": _usage_sized,
    "output_count": _usage_output_count,
}
