"""A client of the API, for scripts and for the command line: ten lines of it are in the README, under From Python.

Every answer is a `Document` of `api.documents`: the fields that OpenAPI shows, and `as_json()`. A newer server may say
more; what this version does not know is left out. A state that is not known is unfinished unless `is_terminal`.

Every call raises `ApiError` for a refusal, and httpx's TransportError where nobody answers; `transport` says what is
asked again before that. A submission may always be: its Idempotency-Key is made here where the caller gives none.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent

from api import transport
from api.document import Document
from api.documents import (
    AttemptDocument,
    BatchDocument,
    BudgetDocument,
    BulkDocument,
    Cancellation,
    CandidateList,
    DeliveryDocument,
    EndpointDocument,
    EndpointSecret,
    Estimate,
    EventDocument,
    Feed,
    FileDocument,
    ItemDocument,
    JobDocument,
    JobEvent,
    KeyDocument,
    LaneDocument,
    LedgerLine,
    ModelDocument,
    NewKey,
    ProjectDocument,
    Redelivery,
    Rejection,
    Resolution,
    RunDocument,
    ScheduleDocument,
    Submitted,
    TestDocument,
    Usage,
)
from api.transport import CHUNK, STREAM_TIMEOUT, UPLOAD_TIMEOUT, Transport

_RECONNECTS = 30  # in a row that bring nothing, before following is given up
_PAUSE = 1.0  # seconds between two of them, and between two looks at a batch
_HEARTBEATS = 45.0  # seconds, three of the server's, before a stream is taken for lost
_SHORTEST = 0.05  # seconds, of a timeout
_BEGINNING = "0-0"  # of the feed
_UNSAFE = re.compile(r"[^\w.-]+")  # in a file's name
_NAME_BYTES = 150  # of the 255 that a file's name may have; the rest is for an id

ApiError = transport.ApiError
fault_in_words = transport.fault_in_words
Id = str | uuid.UUID
T = TypeVar("T", bound=Document)


class NotEnded(TimeoutError):
    """The time to wait is over; `found` is the job or the batch as it is then."""

    def __init__(self, found: JobDocument | BatchDocument) -> None:
        super().__init__(f"{found.object} {found.id} is {found.state}")
        self.found = found


class Damaged(Exception):
    """A downloaded file is not what was stored; it is left beside its place, as `….part`."""


class Client:
    """The API at `url`, with a key. Raises ApiError, and httpx's TransportError when nobody answers.

    `project` is for an operator's key: the project that it acts for.
    """

    def __init__(self, url: str, key: str, project: str | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} | ({"noria-project": project} if project else {})
        self._transport = Transport(url, headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def console_link(self) -> str:
        """An address of the console that signs in as this key, once, within a day."""
        url: str = self._transport.call("POST", "/console/link").json()["url"]
        return url

    def submit(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> Submitted:
        """The job, made, or found where it was made before under that key."""
        key = idempotency_key or str(uuid.uuid4())
        return self._one(Submitted, "POST", "/v1/jobs", json=body, headers={"idempotency-key": key})

    def dry_run(self, body: Mapping[str, Any]) -> Estimate:
        """What `submit` would make and cost."""
        return self._one(Estimate, "POST", "/v1/jobs", json=body, params={"dry_run": "true"})

    def job(self, job_id: Id) -> JobDocument:
        """One job."""
        return self._one(JobDocument, "GET", _path(job_id))

    def jobs(self, **filters: Any) -> Iterator[JobDocument]:
        """Every job that the filters leave, the newest first; pages are fetched as they are needed.

        Filters are those of GET /v1/jobs; `metadata` is a mapping, `limit` the size of a page.
        """
        metadata: Mapping[str, str] = filters.pop("metadata", {})
        return self._all(
            JobDocument, "/v1/jobs", _said(filters) | {f"metadata.{key}": value for key, value in metadata.items()}
        )

    def events(self, job_id: Id) -> Iterator[JobEvent]:
        """The job's history, as far as it has come."""
        return self._all(JobEvent, _path(job_id, "/events"), {})

    def follow(self, job_id: Id, after: int = 0, timeout: float | None = None) -> Iterator[JobEvent]:
        """The job's events after a sequence number, as they come, across lost streams.

        It ends when the job has ended, or after `timeout` seconds; None: never before.
        """
        return self._follow(JobEvent, _path(job_id, "/events"), str(after), timeout)

    def wait(self, job_id: Id, timeout: float) -> JobDocument:
        """The job, once it has ended. Raises NotEnded after `timeout` seconds, with the job as it is then.

        A job that awaits a review has not ended: that may take days.
        """
        for _ in self.follow(job_id, timeout=timeout):
            pass
        found = self.job(job_id)
        if not found.is_terminal:
            raise NotEnded(found)
        return found

    def attempts(self, job_id: Id) -> list[AttemptDocument]:
        """Every create call of the job."""
        return list(self._all(AttemptDocument, _path(job_id, "/attempts"), {}))

    def cancel(self, job_id: Id) -> Cancellation:
        """What became of the wish, as `outcome`, and the job."""
        return self._one(Cancellation, "POST", _path(job_id, "/cancel"))

    def retry(self, job_id: Id) -> JobDocument:
        """The job, on its way again."""
        return self._one(JobDocument, "POST", _path(job_id, "/retry"))

    def approve(self, job_id: Id, comment: str | None = None) -> JobDocument:
        """The job, whose outputs were kept."""
        return self._one(JobDocument, "POST", _path(job_id, "/approve"), json={"comment": comment} if comment else {})

    def reject(self, job_id: Id, comment: str, reroll: Mapping[str, Any] | None = None) -> Rejection:
        """The job, whose outputs were not kept, and the next take where `reroll` (seed, prompt) asks for one."""
        return self._one(Rejection, "POST", _path(job_id, "/reject"), json={"comment": comment, "reroll": reroll})

    def takes(self, job_id: Id) -> list[JobDocument]:
        """All takes of the job's row, the first first."""
        return list(self._all(JobDocument, _path(job_id, "/takes"), {}))

    def make_batch(
        self, name: str, file: BinaryIO, options: Mapping[str, Any], idempotency_key: str | None = None
    ) -> BatchDocument:
        """A draft of the jobs in a CSV or JSONL file, with the report on it; nothing is spent."""
        said = {"options": json.dumps(options)}
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
        return self._sent(BatchDocument, "/v1/batches", name, file, data=said, headers=headers)

    def make_items(self, items: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> BatchDocument:
        """A draft of these jobs."""
        body, headers = {**options, "items": items}, {"idempotency-key": str(uuid.uuid4())}
        return self._one(BatchDocument, "POST", "/v1/batches", json=body, headers=headers, timeout=UPLOAD_TIMEOUT)

    def batch(self, batch_id: Id) -> BatchDocument:
        """One batch: its counts, what it cost, and when it ends."""
        return self._one(BatchDocument, "GET", _batch(batch_id))

    def submit_batch(
        self,
        rows: Path | Iterable[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        skip_bad: bool = False,
    ) -> BatchDocument:
        """The batch of a CSV or JSONL file, or of any number of jobs, made. `options` are those of POST /v1/batches.

        Rows that were made before are not made again. Raises ApiError, whose `faults` name the lines, where rows have
        faults, unless `skip_bad` leaves those out; then nothing was made.
        """
        if isinstance(rows, Path):
            with rows.open("rb") as file:
                draft = self.make_batch(rows.name, file, options or {}, idempotency_key)
        else:
            with tempfile.TemporaryFile() as lines:
                lines.writelines(f"{json.dumps(row)}\n".encode() for row in rows)
                draft = self.make_batch("rows.jsonl", lines, options or {}, idempotency_key)
        return self.commit_batch(draft.id, skip_bad)

    def wait_batch(self, batch_id: Id, timeout: float) -> BatchDocument:
        """The batch, once it is complete. Raises NotEnded after `timeout` seconds, with the batch as it is then."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.batch(batch_id)
            if found.completed_at is not None:
                return found
            if _left(deadline) <= 0:
                raise NotEnded(found)
            time.sleep(min(_PAUSE, _left(deadline)))

    def download_batch(self, batch_id: Id, folder: Path) -> Iterator[Path]:
        """Puts the outputs of all jobs that succeeded into the folder, by their rows; see `download_job`."""
        for item in self.batch_items(batch_id, state="succeeded", limit=100):
            if item.job is not None:
                yield from self.download_job(item.job, folder)

    def batches(self, state: str | None = None) -> Iterator[BatchDocument]:
        """Every batch, the newest first."""
        return self._all(BatchDocument, "/v1/batches", {"state": state} if state else {})

    def commit_batch(self, batch_id: Id, skip_bad: bool = False) -> BatchDocument:
        """The batch, whose jobs are made."""
        params = {"skip_bad": str(skip_bad).lower()}
        return self._one(BatchDocument, "POST", _batch(batch_id, "/commit"), params=params, timeout=UPLOAD_TIMEOUT)

    def delete_batch(self, batch_id: Id) -> None:
        """Forgets a draft."""
        self._delete(_batch(batch_id))

    def change_batch(self, batch_id: Id, action: Literal["pause", "resume", "cancel"]) -> BatchDocument:
        """The batch as it is then."""
        return self._one(BatchDocument, "POST", _batch(batch_id, f"/{action}"), timeout=UPLOAD_TIMEOUT)

    def retry_failed(self, batch_id: Id, dry_run: bool = False) -> BulkDocument:
        """How many of its jobs are made again, or with `dry_run` would be, and what that costs."""
        params = {"dry_run": str(dry_run).lower()}
        return self._one(BulkDocument, "POST", _batch(batch_id, "/retry-failed"), params=params, timeout=UPLOAD_TIMEOUT)

    def batch_items(self, batch_id: Id, **filters: Any) -> Iterator[ItemDocument]:
        """The rows of a batch in their order, each with its job."""
        said = {name: value for name, value in filters.items() if value is not None}
        return self._all(ItemDocument, _batch(batch_id, "/items"), said)

    def export(self, batch_id: Id, what: str, target: BinaryIO) -> None:
        """Writes `report.csv`, `results.jsonl` or `errors.jsonl` of a batch into the file."""
        with self._transport.stream(_batch(batch_id, f"/{what}"), UPLOAD_TIMEOUT) as answer:
            for chunk in answer.iter_bytes(CHUNK):
                target.write(chunk)

    def children(self, job_id: Id, state: str | None = None) -> Iterator[JobDocument]:
        """The parts that a job is made in, in their order; those in the states that are named, with commas."""
        return self._all(JobDocument, _path(job_id, "/children"), {"limit": 100} | ({"state": state} if state else {}))

    def upload(self, name: str, content: BinaryIO) -> FileDocument:
        """The file in the bucket, whose `key` an input may name; the same content and name are one file."""
        return self._sent(FileDocument, "/v1/files", name, content)

    def files(self) -> Iterator[FileDocument]:
        """Every file, the newest first."""
        return self._all(FileDocument, "/v1/files", {"limit": 100})

    def delete_file(self, file_id: Id) -> None:
        """Deletes a file that no unfinished job names."""
        self._delete(f"/v1/files/{_quoted(file_id)}")

    def schedules(self, name: str | None = None) -> Iterator[ScheduleDocument]:
        """Every schedule, the newest first; with a name the one that has it."""
        return self._all(ScheduleDocument, "/v1/schedules", {"limit": 100} | ({"name": name} if name else {}))

    def schedule(self, schedule_id: Id) -> ScheduleDocument:
        """One schedule."""
        return self._one(ScheduleDocument, "GET", _schedule(schedule_id))

    def make_schedule(self, body: Mapping[str, Any]) -> ScheduleDocument:
        """The schedule, made, or found where it was made before in the same words."""
        return self._one(ScheduleDocument, "POST", "/v1/schedules", json=body)

    def change_schedule(self, schedule_id: Id, body: Mapping[str, Any]) -> ScheduleDocument:
        """The schedule as it is then; what the body does not say stays."""
        return self._one(ScheduleDocument, "PATCH", _schedule(schedule_id), json=body)

    def pause_schedule(self, schedule_id: Id) -> ScheduleDocument:
        """The schedule, which fires no more."""
        return self._one(ScheduleDocument, "POST", _schedule(schedule_id, "/pause"))

    def resume_schedule(self, schedule_id: Id) -> ScheduleDocument:
        """The schedule, which fires again."""
        return self._one(ScheduleDocument, "POST", _schedule(schedule_id, "/resume"))

    def run_schedule(self, schedule_id: Id, idempotency_key: str | None = None) -> RunDocument:
        """A run of this instant, or the one that was made before under that key."""
        key = idempotency_key or str(uuid.uuid4())
        return self._one(RunDocument, "POST", _schedule(schedule_id, "/run"), headers={"idempotency-key": key})

    def runs(self, schedule_id: Id) -> Iterator[RunDocument]:
        """What became of each fire time, the latest first."""
        return self._all(RunDocument, _schedule(schedule_id, "/runs"), {"limit": 100})

    def delete_schedule(self, schedule_id: Id) -> None:
        """Deletes a schedule with its history; its jobs stay."""
        self._delete(_schedule(schedule_id))

    def budgets(self) -> Iterator[BudgetDocument]:
        """The project's budgets, with what is used of each."""
        return self._all(BudgetDocument, "/v1/budgets", {})

    def make_budget(self, body: Mapping[str, Any]) -> BudgetDocument:
        """The budget, made."""
        return self._one(BudgetDocument, "POST", "/v1/budgets", json=body)

    def change_budget(self, budget_id: Id, body: Mapping[str, Any]) -> BudgetDocument:
        """The budget as it is then; what the body does not say stays."""
        return self._one(BudgetDocument, "PATCH", f"/v1/budgets/{_quoted(budget_id)}", json=body)

    def delete_budget(self, budget_id: Id) -> None:
        """Deletes the budget; what was held for it alone goes on."""
        self._delete(f"/v1/budgets/{_quoted(budget_id)}")

    def ledger(self, **filters: Any) -> Iterator[LedgerLine]:
        """What was reserved, billed and given back, the newest first; filters are those of GET /v1/ledger."""
        return self._all(LedgerLine, "/v1/ledger", filters)

    def usage(self, **asked: Any) -> Usage:
        """What was used and what it cost, in groups; `asked` is what GET /v1/usage takes."""
        return self._one(
            Usage, "GET", "/v1/usage", params={name: value for name, value in asked.items() if value is not None}
        )

    def usage_csv(self, **asked: Any) -> bytes:
        """The same groups as CSV."""
        return self._transport.call(
            "GET",
            "/v1/usage",
            params={name: value for name, value in asked.items() if value is not None},
            headers={"accept": "text/csv"},
        ).content

    def project(self) -> ProjectDocument:
        """The key's project, and what is set up for its jobs."""
        return self._one(ProjectDocument, "GET", "/v1/project")

    def limits(self) -> Iterator[LaneDocument]:
        """The lanes that the provider's limits apply to."""
        return self._all(LaneDocument, "/v1/limits", {})

    def keys(self) -> Iterator[KeyDocument]:
        """The project's keys, the newest first; takes an admin's key."""
        return self._all(KeyDocument, "/v1/keys", {"limit": 100})

    def make_key(self, body: Mapping[str, Any]) -> NewKey:
        """A key, with its plain text, which is shown here alone."""
        return self._one(NewKey, "POST", "/v1/keys", json=body)

    def rotate_key(self, key_id: Id, keep_hours: int = 24) -> NewKey:
        """The key in the place of that one, which works beside it for so long."""
        return self._one(NewKey, "POST", f"/v1/keys/{_quoted(key_id)}/rotate", json={"keep_hours": keep_hours})

    def revoke_key(self, key_id: Id) -> None:
        """Ends a key, within a second."""
        self._delete(f"/v1/keys/{_quoted(key_id)}")

    def feed(self, after: str = _BEGINNING, timeout: float | None = None) -> Iterator[EventDocument]:
        """What webhooks say of the project after a cursor, as it comes, each event once, across lost streams.

        Keep the `cursor` of the last event that was dealt with, and go on there. It ends after `timeout` seconds; None:
        never. Raises after half a minute in which nobody answered.
        """
        return self._follow(EventDocument, "/v1/events", after, timeout)

    def feed_so_far(self, after: str = _BEGINNING) -> Iterator[EventDocument]:
        """What webhooks have said of the project after a cursor, each event once, as far as it has come."""
        while True:
            page = self._one(Feed, "GET", "/v1/events", params={"after": after})
            yield from page.data
            after = page.after
            if not page.has_more:
                return

    def endpoints(self) -> list[EndpointDocument]:
        """Every webhook endpoint, the oldest first."""
        return list(self._all(EndpointDocument, "/v1/webhook-endpoints", {}))

    def make_endpoint(self, body: Mapping[str, Any]) -> EndpointSecret:
        """The endpoint, with its secret."""
        return self._one(EndpointSecret, "POST", "/v1/webhook-endpoints", json=body)

    def rotate_endpoint(self, endpoint_id: Id) -> EndpointSecret:
        """The endpoint, with a new secret; for 24 h the one before signs too."""
        return self._one(EndpointSecret, "POST", _endpoint(endpoint_id, "/rotate"))

    def test_endpoint(self, endpoint_id: Id) -> TestDocument:
        """What came back of a `test.ping`."""
        return self._one(TestDocument, "POST", _endpoint(endpoint_id, "/test"))

    def redeliver(self, endpoint_id: Id, which: Mapping[str, Any]) -> Redelivery:
        """How many deliveries are due again, of those that `ids`, or `since` and `status`, name."""
        return self._one(Redelivery, "POST", _endpoint(endpoint_id, "/redeliver"), json=which)

    def bulk(self, body: Mapping[str, Any]) -> BulkDocument:
        """What became of many jobs that are canceled or made again, or with `dry_run` in the body would."""
        return self._one(BulkDocument, "POST", "/v1/jobs/bulk", json=body, timeout=UPLOAD_TIMEOUT)

    def deliveries(self, endpoint_id: Id, state: str | None = None) -> Iterator[DeliveryDocument]:
        """What was sent to an endpoint, the newest first."""
        return self._all(DeliveryDocument, _endpoint(endpoint_id, "/deliveries"), {"state": state} if state else {})

    def delete_endpoint(self, endpoint_id: Id) -> None:
        """Deletes an endpoint."""
        self._delete(_endpoint(endpoint_id))

    def candidates(self, job_id: Id) -> CandidateList:
        """The tasks that an uncertain job's call may have made, and the money at stake; takes an operator's key."""
        return self._one(CandidateList, "GET", _path(job_id, "/candidates"))

    def resolve(self, job_id: Id, decision: Mapping[str, Any], dry_run: bool = False) -> Resolution:
        """What became of a decision about an uncertain job, or with `dry_run` would; takes an operator's key."""
        params = {"dry_run": "true"} if dry_run else {}
        return self._one(Resolution, "POST", _path(job_id, "/resolve"), json=decision, params=params)

    def models(self, kind: str | None = None) -> list[ModelDocument]:
        """The catalog."""
        return list(self._all(ModelDocument, "/v1/models", {"kind": kind} if kind else {}))

    def model(self, name: str) -> ModelDocument:
        """One model, by id or alias."""
        return self._one(ModelDocument, "GET", f"/v1/models/{quote(name, safe='')}")

    def download_job(self, job: JobDocument, folder: Path) -> Iterator[Path]:
        """Puts the job's outputs into the folder, each whole or not at all; what is there already is not fetched again.

        They are named by the job's custom id, or by that and the job's id where a file of that name is another's.
        Raises Damaged where one is not what was stored.
        """
        folder.mkdir(parents=True, exist_ok=True)
        own = _file_name(job.custom_id or str(job.id))
        for output in job.outputs:
            ending = f"-{output.n}{PurePosixPath(output.key).suffix}"
            path = folder / f"{own}{ending}"
            if not _is_free(path, output.sha256):
                path = folder / f"{own}-{job.id}{ending}"
            if not _is_there(path, output.sha256):
                draft = folder / f"{job.id}{ending}.part"
                with draft.open("wb") as file:
                    digest = self.download(job.id, output.n, file)
                if digest != output.sha256:
                    raise Damaged(f"{draft} has another SHA-256 than the object that was stored.")
                draft.replace(path)
            yield path

    def download(self, job_id: Id, n: int, target: BinaryIO) -> str:
        """Writes an output into the file; its SHA-256 in hex, to be compared with the job's `outputs`."""
        link = self.link(job_id, n, download=True)
        digest = hashlib.sha256()
        # not with our client, whose key is none of the bucket's business
        with transport.client_for(link, timeout=STREAM_TIMEOUT) as bucket, bucket.stream("GET", link) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes(CHUNK):
                target.write(chunk)
                digest.update(chunk)
        return digest.hexdigest()

    def link(self, job_id: Id, n: int, download: bool = False) -> str:
        """A link to an output, good for five minutes."""
        params = {"download": "true"} if download else {}
        return self._transport.call("GET", _path(job_id, f"/outputs/{n}"), params=params).headers["location"]

    def poster(self, job_id: Id, n: int) -> str:
        """A link to an output's small JPEG, good for five minutes; its `poster` says whether it has one."""
        return self._transport.call("GET", _path(job_id, f"/outputs/{n}/poster")).headers["location"]

    def _sent(self, form: type[T], path: str, name: str, content: BinaryIO, **said: Any) -> T:
        """What the API answers to a file."""
        return self._one(form, "POST", path, files={"file": (name, content)}, timeout=UPLOAD_TIMEOUT, **said)

    def _follow(self, form: type[T], path: str, after: str, timeout: float | None) -> Iterator[T]:
        """The events of a stream, taken up again after the last one wherever it is lost."""
        deadline = None if timeout is None else time.monotonic() + timeout
        lost = 0
        while lost == 0 or _left(deadline) > 0:
            try:
                for event in self._stream(path, after, deadline):
                    if event is None:
                        lost = min(lost, 1)  # the server is there, and has nothing to say
                        continue
                    after, lost = event.id, 0
                    yield form.model_validate(event.json())
            except _Over:
                return
            except (httpx.TransportError, ApiError) as error:
                if lost >= _RECONNECTS or not transport.later(error):
                    raise
            time.sleep(min(_PAUSE, max(0, _left(deadline))) if lost else 0)
            lost += 1

    def _stream(self, path: str, after: str, deadline: float | None) -> Iterator[ServerSentEvent | None]:
        """One connection, None for each heartbeat. Raises _Over where nothing more can come."""
        seconds = max(_SHORTEST, min(_HEARTBEATS, _left(deadline)))
        timeout = httpx.Timeout(seconds, connect=min(5, seconds))
        with self._transport.stream(path, timeout, last_event_id=after, accept="text/event-stream") as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                raise _Over
            for event in transport.events(answer):
                yield event
                if event is None and _left(deadline) < seconds - _PAUSE:
                    return  # so that the next stream's timeout is what is left

    def _all(self, form: type[T], path: str, params: Mapping[str, Any]) -> Iterator[T]:
        return map(form.model_validate, self._transport.pages(path, params))

    def _one(self, form: type[T], method: str, path: str, **said: Any) -> T:
        return form.model_validate(self._transport.call(method, path, **said).json())

    def _delete(self, path: str) -> None:
        self._transport.call("DELETE", path)


class _Over(Exception):
    """Nothing more comes of a stream."""


def _left(deadline: float | None) -> float:
    """Seconds until then; for ever, where there is none."""
    return math.inf if deadline is None else deadline - time.monotonic()


def _file_name(own: str) -> str:
    """The name as a file may have it: no separators, and not over what file systems take."""
    return _UNSAFE.sub("_", own).encode()[:_NAME_BYTES].decode(errors="ignore")


def _is_free(path: Path, digest: str) -> bool:
    """Whether the name is ours: nobody's so far, or that file is the output already."""
    return not path.exists() or _is_there(path, digest)


def _is_there(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _quoted(its_id: Id) -> str:
    return quote(str(its_id), safe="")


def _said(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say something."""
    return {name: value for name, value in filters.items() if value is not None}


def _path(job_id: Id, suffix: str = "") -> str:
    return f"/v1/jobs/{_quoted(job_id)}{suffix}"


def _batch(batch_id: Id, suffix: str = "") -> str:
    return f"/v1/batches/{_quoted(batch_id)}{suffix}"


def _schedule(schedule_id: Id, suffix: str = "") -> str:
    return f"/v1/schedules/{_quoted(schedule_id)}{suffix}"


def _endpoint(endpoint_id: Id, suffix: str = "") -> str:
    return f"/v1/webhook-endpoints/{_quoted(endpoint_id)}{suffix}"
