"""Whether the broker, the workers, the bucket, the provider, the webhooks, the alarms and Flower do their work."""

from __future__ import annotations

import secrets
import socket
import uuid
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import md5
from ipaddress import ip_address
from urllib.parse import urlsplit

from ops.cli.show import seconds
from ops.doctor import Check, Exam, Found, Verdict, failure, warning, well
from worker import broker as messages
from worker import egress, inputs, timeouts
from worker.catalog import Surface, Variant
from worker.dashscope import errors
from worker.dashscope.client import Client
from worker.dashscope.responses import Refused, ServerTrouble
from worker.egress import Bounds, NotAllowed, transports
from worker.errors import CallFailed, NotSent
from worker.kinds import Request
from worker.settings import Account, addresses
from worker.storage import Bucket, Expected, Mismatch
from worker.storage.bucket import PART
from worker.webhooks import alerts

_PAGE = 100  # rows; the provider names no maximum for a page of its task list
_ABANDONED = timedelta(days=1)
_WAITING = 1000  # messages in one queue
_SKEW = timedelta(seconds=30), timedelta(minutes=5)  # beyond the first it is told, beyond the second it does harm
_METADATA = "https://169.254.169.254/latest/"  # what no webhook may ever reach
_BOUNDS = Bounds(timeouts.QUERY.total_seconds(), cap=1 << 20)


def broker(exam: Exam) -> Iterator[Found]:
    """It answers, drops no message, and no queue grows."""
    if why := messages.why_unfit(exam.settings):
        yield failure(why, "NORIA_BROKER_URL")
        return
    with messages.client(exam.settings, 5) as client:
        client.ping()
        info = client.info()
        yield well(f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])} answers")
        if evicted := info.get("evicted_keys"):
            yield failure(f"it has thrown {evicted} keys away for want of memory", "give it more memory")
        if (policy := info.get("maxmemory_policy")) != "noeviction":
            yield warning(f"its maxmemory-policy is {policy}", "set it to noeviction, or it drops messages")
        if not info.get("aof_enabled"):
            what = "it keeps nothing over a restart, so messages are sent again a minute later"
            yield warning(what, "appendonly yes, appendfsync everysec")
        for queue in messages.QUEUES:
            waiting = client.llen(f"noria:{queue}")
            if isinstance(waiting, int) and waiting > _WAITING:
                yield failure(f"{waiting} messages wait in the queue {queue}", "is a worker at it?")


def workers(exam: Exam) -> Iterator[Found]:
    """Each queue has a worker, as the workers themselves answer."""
    at = messages.consumers(messages.celery_app(exam.settings), seconds=2.0)
    for queue in messages.QUEUES:
        if not at.get(queue):
            advice = f"celery -A worker.tasks worker -P threads -c 32 -Q {queue}"
            yield failure(f"no worker is at the queue {queue}", advice)
    if all(at.get(queue) for queue in messages.QUEUES):
        yield well(f"{len({name for names in at.values() for name in names})} workers are at all queues")


def bucket(exam: Exam) -> Iterator[Found]:
    """Objects can be stored, whole and in parts, checked, read, linked to and deleted: through the code that copies."""
    exam.bucket.check()
    stem = f"noria-doctor/{uuid.uuid4()}"
    small, large = secrets.token_bytes(2000), bytes(PART + 1)
    try:
        _put(exam.bucket, f"{stem}/small", small)
        if b"".join(exam.bucket.chunks(f"{stem}/small")) != small:
            yield failure("it gives other bytes than it was given", "is a proxy in between that rewrites bodies?")
        yield from _refuses(exam.bucket, f"{stem}/wrong", small)
        yield from _linked(exam, f"{stem}/small", small)
        _put(exam.bucket, f"{stem}/large", large)
        yield well("it stores, in one piece and in parts, gives back, links and deletes")
    finally:
        for name in ("small", "wrong", "large"):
            exam.bucket.delete(f"{stem}/{name}")


def uploads(exam: Exam) -> Iterator[Found]:
    """No upload in parts was abandoned: its parts are stored and paid for, though no listing of objects shows them."""
    old = [upload for upload in exam.bucket.uploads() if upload.began_at < datetime.now(UTC) - _ABANDONED]
    if old and exam.fix:
        for upload in old:
            exam.bucket.abort(upload)
        yield Found(Verdict.FIXED, f"{len(old)} uploads that never ended are ended")
    elif old:
        yield warning(f"{len(old)} uploads were begun over a day ago and never ended", "`noria doctor --fix` ends them")
    else:
        yield well("no upload was abandoned")


def provider(exam: Exam) -> Iterator[Found]:
    """Each account's key is accepted, its region has models, inputs reach it, and its clock agrees with ours."""
    for account in exam.settings.all_accounts:
        client = Client(account, transports.keeping(), transports.single())
        now = datetime.now(UTC)
        page = client.tasks(now - timedelta(hours=23), now, 1, _PAGE)
        if isinstance(page, Refused):
            what = f"{account.name}: the task list was refused: HTTP {page.http_status} {page.code} {page.message}"
            row = errors.classify(page.http_status, page.code, page.message)
            known = row.hint if row is errors.NOT_DASHSCOPE else _ADVICE.get(page.http_status)
            yield failure(what.rstrip(), known or "look the code up in the provider's error table")
            continue
        offered = sum(1 for model in exam.catalog.models() if model.region(account.region))
        if not offered:
            yield failure(f"{account.name}: the catalog has no model in {account.region}", "is the region right?")
        shown = f"pages of {len(page.rows)}" if page.total > len(page.rows) else f"{page.total} tasks in a day"
        yield well(f"{account.name}: its key is accepted in {account.region}, {offered} models, {shown}")
        yield from _handed_over(exam, account, client)
        yield from _provider_clock(exam, account)


def batch_chat(exam: Exam) -> Iterator[Found]:
    """The host of Batch Chat takes each account's key: it is asked what it must refuse, and refusals are not billed."""
    model = next((each for each in exam.catalog.every if each.variant is Variant.CHAT), None)
    for account in exam.settings.all_accounts:
        here = model.region(account.region) if model else None
        if model is None or here is None or account.batch_chat is None:
            lacks = f"{account.region} has none" if here is None else "its host is not known"
            yield Found(Verdict.SKIPPED, f"{account.name}: {lacks}", "" if here is None else _BATCH_CHAT_HOST)
            continue
        asked = Request(model.path, {}, {"model": here.id, "messages": []}, Surface.BATCH_CHAT)
        try:
            said = Client(account, transports.keeping(), transports.single()).create(asked, _BOUNDS.deadline)
        except (CallFailed, ServerTrouble) as error:
            yield warning(f"{account.name}: {account.batch_chat} gave no answer: {error}", _BY_CALLS)
            continue
        told = f"HTTP {said.http_status} {said.code or ''}".rstrip() if isinstance(said, Refused) else "an answer"
        if isinstance(said, Refused) and said.http_status == 400:
            what = (
                f"{account.name}: {account.batch_chat} takes its key (it refused an empty call, as it should: {told})"
            )
            yield well(f"{what}; the first summary will show whether it has the model")
        else:
            yield warning(f"{account.name}: {account.batch_chat} gave {told} to a call without a message", _BY_CALLS)


def webhooks(exam: Exam) -> Iterator[Found]:
    """The guard of outgoing webhooks refuses private addresses."""
    try:
        with egress.stream(transports.webhooks(exam.settings), "GET", _METADATA, _BOUNDS, {}, b""):
            pass
    except NotAllowed:
        yield well("private addresses are refused")
        return
    except CallFailed:
        pass
    yield failure("a private address may be called", "take it out of NORIA_EGRESS_ALLOW")


def alerted(exam: Exam) -> Iterator[Found]:
    """Alarms have an allowed address; none is sent."""
    url = exam.settings.alert_url
    if url is None:
        yield Found(Verdict.SKIPPED, "none is set: a stopped account is told in the log alone", "NORIA_ALERT_URL")
        return
    host = urlsplit(url).hostname
    if fault := transports.check_url(url, exam.settings):
        advice = "NORIA_ALERT_URL must be https on port 443, or lie in NORIA_EGRESS_ALLOW"
        yield failure(f"no alarm reaches {host}: {fault.message}", advice)
        return
    robot = alerts.robot(exam.settings, url)
    form = next((name for name, each in alerts.ROBOTS.items() if each is robot), "json")
    yield well(f"alarms go to {host} as {form}")


def flower(exam: Exam) -> Iterator[Found]:
    """It answers, if its address is known."""
    if exam.flower is None:
        yield Found(Verdict.SKIPPED, "its address was not given", "--flower URL")
        return
    answer = egress.call(transports.keeping(), "GET", f"{exam.flower.rstrip('/')}/healthcheck", _BOUNDS, {})
    if answer.status == 200:
        yield well(f"it answers at {exam.flower}")
    else:
        yield warning(f"it answers HTTP {answer.status}", "it only shows; jobs run without it")


_BATCH_CHAT_HOST = "set NORIA_DASHSCOPE_BATCH_CHAT_URL, or the account's batch_chat_url, if it has one"
_BY_CALLS = "summaries of the mode chat are then made by calls, at the full price: see the console, or its host"
_ADVICE = {
    401: "the key is wrong, missing, or of another region: set NORIA_DASHSCOPE_API_KEY",
    403: "the key may not list tasks: give it that permission, or lost answers cannot be found",
}


def _put(store: Bucket, key: str, content: bytes) -> None:
    digest = b64encode(md5(content, usedforsecurity=False).digest()).decode()
    store.put_stream(key, [content], "application/octet-stream", Expected(length=len(content), md5=digest))


def _refuses(store: Bucket, key: str, content: bytes) -> Iterator[Found]:
    """The bucket must refuse bytes with a wrong checksum."""
    try:
        store.put_stream(key, [content], "application/octet-stream", Expected(crc64="1"))
    except Mismatch:
        if store.head(key) is None:
            return
    yield failure("bytes with a wrong checksum were stored", "report it")


def _linked(exam: Exam, key: str, content: bytes) -> Iterator[Found]:
    """Signed links work: a failure where the provider gets links too, else a warning, since users may be elsewhere."""
    link = exam.bucket.presign(key, timedelta(minutes=1), None)
    given = [account for account in exam.settings.all_accounts if not inputs.why_uploaded(exam.settings, account.url)]
    told = failure if given else warning
    advice = "NORIA_S3_PUBLIC_ENDPOINT_URL must be what users reach, and the bucket must take signed links"
    if given:
        advice += "; or set NORIA_INPUT_HANDOVER=upload, so that the provider needs none"
    try:
        answer = egress.call(transports.keeping(), "GET", link, _BOUNDS, {})
    except NotSent as error:
        yield told(f"links to it lead nowhere from here: {_cause(error)}", advice)
        return
    if answer.status != 200 or answer.body != content:
        yield failure(f"a signed link to it answers HTTP {answer.status}", advice)
    elif any(not addresses.is_near(account.url) for account in given) and (inside := _private_addresses(link)):
        yield warning(f"links for the provider lead to {inside} from here: it may not reach them", advice)


def _cause(error: NotSent) -> str:
    """What went wrong, with its cause, such as a certificate that does not verify."""
    return f"{error} ({error.__cause__})" if error.__cause__ else str(error)


def _private_addresses(link: str) -> str:
    """The addresses of the link's host, if all of them are private; else nothing."""
    found = {str(row[4][0]) for row in socket.getaddrinfo(urlsplit(link).hostname, None)}
    return "" if any(ip_address(each).is_global for each in found) else ", ".join(sorted(found))


def _handed_over(exam: Exam, account: Account, client: Client) -> Iterator[Found]:
    """A small file can be uploaded to the provider, where inputs are; the provider drops it after 48 h."""
    why = inputs.why_uploaded(exam.settings, account.url)
    models = (model.region(account.region) for model in exam.catalog.models("image-to-video"))
    here = next((model for model in models if model), None)
    if why is None or here is None:
        return
    try:
        client.upload(here.id, "noria-doctor.txt", b"noria", "text/plain")
    except CallFailed as error:
        advice = "may this machine reach the provider's store (*.oss-*.aliyuncs.com)? Jobs with files wait until then"
        yield failure(f"{account.name}: inputs are uploaded ({why}), and that fails: {error}", advice)
        return
    if exam.settings.input_handover == "upload":
        return
    advice = "it works; NORIA_INPUT_HANDOVER=upload says that it is meant, a public https endpoint makes them links"
    yield warning(f"{account.name}: inputs are uploaded, since {why}", advice)


def _provider_clock(exam: Exam, account: Account) -> Iterator[Found]:
    """The provider's clock agrees with ours within minutes: lost answers are looked for in a window of time."""
    answer = egress.call(transports.keeping(), "GET", account.url, _BOUNDS, {})
    stamp = answer.headers.get("date")
    if stamp is None:
        return
    skew = abs(datetime.now(UTC) - parsedate_to_datetime(stamp))
    what = f"{account.name}: the provider's clock and ours differ by {seconds(skew.total_seconds())}"
    if skew > _SKEW[1]:
        yield failure(what, "run NTP: lost answers are looked for in the wrong window")
    elif skew > _SKEW[0]:
        yield warning(what, "run NTP")


CHECKS = (
    Check("broker", broker, "is NORIA_BROKER_URL right, and does Redis run? Jobs wait, none is lost"),
    Check("workers", workers, "see the broker", needs="broker"),
    Check("bucket", bucket, "are the NORIA_S3 settings right, and may the key put, get, list and delete?"),
    Check("uploads", uploads, "may the key list uploads?", needs="bucket"),
    Check("provider", provider, "is NORIA_DASHSCOPE_URL right, and may this machine reach it?"),
    Check("batch chat", batch_chat, "is NORIA_DASHSCOPE_BATCH_CHAT_URL right?", needs="provider"),
    Check("webhooks", webhooks, "report it"),
    Check("alerts", alerted, "report it"),
    Check("Flower", flower, "it only shows; jobs run without it"),
)
