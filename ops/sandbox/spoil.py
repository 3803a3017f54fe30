"""Carrying out a call under a fault: whether it is done at all, and what becomes of its answer."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from ops.sandbox import wire
from ops.sandbox.faults import Rule, What
from ops.sandbox.refusals import Refusal

FRAME_END = b"\n\n"
SIGN_IN = "<html><body>Sign in to continue</body></html>"

Perform = Callable[[], Awaitable[Response]]
Refuse = Callable[[Refusal], Response]


async def carry_out(rule: Rule | None, perform: Perform, refuse: Refuse) -> Response:
    """Return a call's answer as the fault leaves it; `perform` does the call, `refuse` words a Refusal."""
    if rule is None:
        return await _performed(perform, refuse)
    answer = await _performed(perform, refuse) if rule.carries_out else None
    instead = _instead(rule, refuse)
    if instead is not None:
        return instead
    assert answer is not None, "a fault that puts nothing in the answer's place carries its call out"
    if rule.what in (What.STREAM_ERROR, What.STREAM_ENDS) and isinstance(answer, StreamingResponse):
        last = refuse(Refusal(*rule.error)) if rule.what is What.STREAM_ERROR else None
        return await _half_streamed(answer, last)
    return await _spoiled(rule, answer)


async def _performed(perform: Perform, refuse: Refuse) -> Response:
    try:
        return await perform()
    except Refusal as refusal:
        return refuse(refusal)


def _instead(rule: Rule, refuse: Refuse) -> Response | None:
    match rule.what:
        case What.RESET | What.LOST_ANSWER | What.EXECUTED_LATE:
            return wire.Cut()
        case What.HANG:
            return wire.Silence()
        case What.HTML:
            return wire.gateway_page(rule.status or 502)
        case What.ERROR:
            return refuse(Refusal(*rule.error))
        case What.ERROR_IN_200:
            _, code, message = rule.error
            return refuse(Refusal(200, code, message))
        case What.REDIRECT:
            return RedirectResponse(rule.location, rule.status or 302)
        case What.WRONG_TYPE:
            return HTMLResponse(SIGN_IN)
        case _:
            return None


async def _half_streamed(answer: StreamingResponse, last: Response | None) -> Response:
    """Return the first half of a stream's frames; then `last`, framed if it is a bare error."""
    frames = (await wire.content_of(answer)).split(FRAME_END)[:-1]
    half = [frame + FRAME_END for frame in frames[: len(frames) // 2]]
    error = b"" if last is None else await wire.content_of(last)
    if error and not error.endswith(FRAME_END):
        error = b"data: " + error + FRAME_END
    return wire.streamed(iter([*half, error]), answer.status_code, dict(answer.headers))


async def _spoiled(rule: Rule, answer: Response) -> Response:
    match rule.what:
        case What.DELAY:
            await asyncio.sleep(rule.after_ms / 1000)
            return answer
        case What.LOST_BODY:
            return wire.CutShort(answer, await wire.content_of(answer), share=0)
        case What.TRUNCATED:
            return wire.CutShort(answer, await wire.content_of(answer), share=0.5)
        case What.SLOW_DRIP:
            return wire.drip(answer, await wire.content_of(answer), rule.bytes or 1)
        case _:
            return answer
