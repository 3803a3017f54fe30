"""`noria doctor --paid-probes`: what only a call on a live account can settle, for some ten fen.

The documents are silent on these, or contradict each other. A probe is one or two of the cheapest calls that there
are, straight to the provider: no job, in no lane, on nobody's budget. Without the switch none is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ops.doctor import Check, Exam, Found, Verdict, warning, well
from worker import money, timeouts
from worker.catalog import Model, Surface, Usage
from worker.dashscope import errors
from worker.dashscope.client import Client
from worker.dashscope.responses import Accepted, Refused
from worker.egress import transports
from worker.errors import CallFailed
from worker.kinds import Request, text
from worker.kinds.speech import speech_segment
from worker.settings import Account
from worker.states import Mode

_COUNT = "Count from 1 to 30, in digits, with spaces between."
_TOKENS = 8  # of an answer that would have sixty
_HAN = "今天天气好"  # five characters: 15 bytes of UTF-8, billed as 10
_NO_MODEL = "noria-asks-for-no-such-model"
_SECONDS = timeouts.CREATE.total_seconds()


@dataclass
class _Account:
    """Whom a probe asks, and what that has cost so far, in millionths of CNY."""

    exam: Exam
    account: Account
    client: Client
    cost: int = 0

    def ask(self, request: Request) -> Accepted | Refused:
        """The provider's answer; raises CallFailed where there is none."""
        return self.client.create(request, _SECONDS)

    def book(self, model: Model, usage: Usage) -> None:
        """Adds what an answer cost, by the catalog."""
        self.cost += model.price(usage, self.account.region, datetime.now(UTC).date()) or 0

    def cheapest(self, kind: str, fits: Callable[[Model], bool], usage: Usage) -> Model | None:
        """The model of that kind in the account's region that fits and would cost the least; None: there is none."""
        here, today = self.account.region, datetime.now(UTC).date()
        priced = {
            model.id: (price, model)
            for model in self.exam.catalog.models(kind)
            if not model.retired and fits(model) and (price := model.price(usage, here, today)) is not None
        }
        return min(priced.values(), key=lambda each: each[0])[1] if priced else None


def probes(exam: Exam) -> Iterator[Found]:
    """Which name of the longest answer holds, what the limit of a spoken text counts, and which models there are."""
    if not exam.paid:
        yield Found(
            Verdict.SKIPPED, "nothing was asked that costs money", "--paid-probes, for some 0.10 CNY an account"
        )
        return
    for account in exam.settings.all_accounts:
        asked = _Account(exam, account, Client(account, transports.keeping(), transports.single()))
        for probe in (_answer_limit, _speech_limit, _doubtful):
            try:
                yield from probe(asked)
            except CallFailed as error:
                yield warning(f"{account.name}: no answer: {error}", "ask again; this call may have been billed")
        yield well(f"{account.name}: by the catalog's prices this cost {money.shown(asked.cost)} CNY")


def _answer_limit(asked: _Account) -> Iterator[Found]:
    """Whether the compatible surface still takes what the catalog calls the longest answer, and keeps to it."""
    usage = Usage({"input_tokens": 40, "output_tokens": _TOKENS})
    model = asked.cheapest("text", lambda each: each.surface is Surface.COMPATIBLE, usage)
    if model is None:
        return
    wanted = text.Conversation(prompt=_COUNT, max_tokens=_TOKENS)
    request = text.request(model, asked.account.region, wanted)
    rest = {name: value for name, value in request.body.items() if name not in text.OTHER_LIMIT}
    said = {}
    for name in text.OTHER_LIMIT:
        answer = asked.ask(replace(request, body={**rest, name: _TOKENS}))
        if isinstance(answer, Refused):
            said[name] = f"is refused ({answer.code})"
            continue
        used = text.usage(model, wanted, answer.body)
        asked.book(model, used)
        said[name] = "holds" if used.units["output_tokens"] <= _TOKENS else "is taken and not kept"
    what = f"{asked.account.name}: {model.id}: " + ", ".join(f"{name} {how}" for name, how in said.items())
    other = text.OTHER_LIMIT[model.answer_limit]
    advice = f"`answer_limit: {other}` for such models in NORIA_CATALOG, if that one holds"
    yield well(what) if said[model.answer_limit] == "holds" else warning(what, advice)


def _speech_limit(asked: _Account) -> Iterator[Found]:
    """Whether the limit of one text to speak counts bytes, characters as they are billed, or characters."""
    usage = speech_segment.spoken(_HAN)
    model = asked.cheapest("speech-segment", lambda each: bool(each.text_limit and each.voices), usage)
    if model is None or model.text_limit is None:
        return
    unit = "bytes"
    # above the limit in bytes, and then above it as characters are billed
    for weight, above in ((3, "characters as they are billed"), (2, "characters")):
        spoken = (_HAN * model.text_limit)[: model.text_limit // weight + 1]
        wanted = speech_segment.SpeechSegment(text=spoken, voice=model.voices[0], language="Chinese")
        answer = asked.ask(speech_segment.request(model, asked.account.region, wanted))
        if isinstance(answer, Refused):
            break
        asked.book(model, speech_segment.usage(model, wanted, answer.body))
        unit = above
    what = f"{asked.account.name}: {model.id}: its limit of {model.text_limit} counts {unit}"
    ours = asked.exam.settings.speech_limit_unit
    if unit != "characters" and ours == "characters":
        yield warning(what, "set NORIA_SPEECH_LIMIT_UNIT=bytes, or texts that are too long are refused")
    else:
        fewer = "; NORIA_SPEECH_LIMIT_UNIT=characters makes fewer calls"
        yield well(what + (fewer if (unit, ours) == ("characters", "bytes") else ""))


def _doubtful(asked: _Account) -> Iterator[Found]:
    """Which models exist, of those that are gone by reports alone or have no known price.

    A request without all that the model needs is refused, unpaid. What is said of a model that nobody has tells whether
    the model is looked up first.
    """
    found: dict[str, list[str]] = {}
    for model in asked.exam.catalog.models():
        place = model.region(asked.account.region)
        if place and (model.retired_by == "reports" or place.unpriced):
            found.setdefault(_existence(asked, model, place.id), []).append(model.id)
    for how, names in found.items():
        yield well(f"{asked.account.name}: {how}: {', '.join(names)}")


def _existence(asked: _Account, model: Model, name: str) -> str:
    if _is_unknown(asked.ask(_lacking(model, name))):
        return "not there"
    if _is_unknown(asked.ask(_lacking(model, _NO_MODEL))):
        return "there"
    return "there or not (no model is looked up before its input)"


def _lacking(model: Model, name: str) -> Request:
    headers = {"X-DashScope-Async": "enable"} if model.mode is Mode.TASK else {}
    return Request(model.path, headers, {"model": name, "input": {"noria": "doctor"}, "parameters": {}})


def _is_unknown(answer: Accepted | Refused) -> bool:
    if not isinstance(answer, Refused):
        return False
    return errors.classify(answer.http_status, answer.code, answer.message).code == "model_not_served"


CHECKS = (Check("paid probes", probes, "may this machine reach the provider? See `provider`", needs="provider"),)
