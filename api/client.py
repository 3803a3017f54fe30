"""A small client of the API, for the command line and for scripts.

Every call may be repeated: a submission carries an Idempotency-Key, made here where the caller gives none. So calls
that were not answered, or were answered 429 or 503, are made again for half a minute, no sooner than the server says.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import quote

import httpx
import httpx_sse
import stamina

_TIMEOUT = httpx.Timeout(20, connect=5)
_STREAM_TIMEOUT = httpx.Timeout(45, connect=5)  # three of the server's heartbeats
_UPLOAD_TIMEOUT = httpx.Timeout(120, connect=5)  # until the file is in the bucket
_PATIENCE = 30.0  # seconds
_RECONNECTS = 30  # in a row that bring nothing, before following is given up
_PAUSE = 1.0  # seconds between two of them
_AGAIN = frozenset({429, 503})
_CHUNK = 1 << 20

stamina.instrumentation.set_on_retry_hooks([])  # they would write to standard output, which is the command's


class ApiError(Exception):
    """The API refused or failed; `problem` is its answer (RFC 9457), whose `code` is stable."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None) -> None:
        super().__init__(f"{problem.get('code', status)}: {problem.get('detail', problem.get('title', ''))}")
        self.status = status
        self.problem = dict(problem)
        self.retry_after = retry_after  # seconds

    @property
    def code(self) -> str:
        """What to decide on."""
        return str(self.problem.get("code", self.status))

    @property
    def faults(self) -> list[str]:
        """Every wrong field that the API names, as `input.size: …`; the error itself where it names none."""
        return [fault_in_words(fault) for fault in self.problem.get("errors", [])] or [str(self)]


class Client:
    """The API at `url`, with a key. Raises ApiError, and httpx's TransportError when nobody answers.

    `project` is for an operator's key: the project that it acts for.
    """

    def __init__(self, url: str, key: str, project: str | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} | ({"noria-project": project} if project else {})
        self._http = _client(url, base_url=url, headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def submit(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """The job, made, or found where it was made before under that key."""
        key = idempotency_key or str(uuid.uuid4())
        return self._json("POST", "/v1/jobs", json=body, headers={"idempotency-key": key})

    def dry_run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What `submit` would make and cost."""
        return self._json("POST", "/v1/jobs", json=body, params={"dry_run": "true"})

    def job(self, job_id: str) -> dict[str, Any]:
        """One job."""
        return self._json("GET", _path(job_id))

    def jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every job that the filters leave, the newest first; pages are fetched as they are needed.

        Filters are those of GET /v1/jobs; `metadata` is a mapping, `limit` the size of a page.
        """
        metadata: Mapping[str, str] = filters.pop("metadata", {})
        said = {name: value for name, value in filters.items() if value is not None}
        yield from self._pages("/v1/jobs", said | {f"metadata.{key}": value for key, value in metadata.items()})

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's history, as far as it has come."""
        yield from self._pages(_path(job_id, "/events"), {})

    def follow(self, job_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """The job's events after a sequence number, as they come, until it has ended, across lost streams."""
        lost = 0
        while True:
            try:
                with self._stream(job_id, after) as source:
                    if source.response.status_code == httpx.codes.NO_CONTENT:
                        return
                    for event in source.iter_sse():
                        after, lost = int(event.id), 0
                        yield event.json()
            except (httpx.TransportError, ApiError) as error:
                if lost >= _RECONNECTS or not _wait(error):
                    raise
            time.sleep(_PAUSE if lost else 0)
            lost += 1

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Every create call of the job."""
        return list(self._pages(_path(job_id, "/attempts"), {}))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """What became of the wish, as `outcome`, and the job."""
        return self._json("POST", _path(job_id, "/cancel"))

    def retry(self, job_id: str) -> dict[str, Any]:
        """The job, on its way again."""
        return self._json("POST", _path(job_id, "/retry"))

    def approve(self, job_id: str, comment: str | None = None) -> dict[str, Any]:
        """The job, whose outputs were kept."""
        return self._json("POST", _path(job_id, "/approve"), json={"comment": comment} if comment else {})

    def reject(self, job_id: str, comment: str, reroll: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The job, whose outputs were not kept, and the next take where `reroll` (seed, prompt) asks for one."""
        return self._json("POST", _path(job_id, "/reject"), json={"comment": comment, "reroll": reroll})

    def takes(self, job_id: str) -> list[dict[str, Any]]:
        """All takes of the job's row, the first first."""
        return list(self._pages(_path(job_id, "/takes"), {}))

    def make_batch(
        self, name: str, file: BinaryIO, options: Mapping[str, Any], idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """A draft of the jobs in a CSV or JSONL file, with the report on it; nothing is spent."""
        said = {"options": json.dumps(options)}
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
        return self._sent("/v1/batches", name, file, data=said, headers=headers)

    def make_items(self, items: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, Any]:
        """A draft of these jobs."""
        body, headers = {**options, "items": items}, {"idempotency-key": str(uuid.uuid4())}
        return self._json("POST", "/v1/batches", json=body, headers=headers, timeout=_UPLOAD_TIMEOUT)

    def batch(self, batch_id: str) -> dict[str, Any]:
        """One batch: its counts, what it cost, and when it ends."""
        return self._json("GET", _batch(batch_id))

    def batches(self, state: str | None = None) -> Iterator[dict[str, Any]]:
        """Every batch, the newest first."""
        yield from self._pages("/v1/batches", {"state": state} if state else {})

    def commit_batch(self, batch_id: str, skip_bad: bool = False) -> dict[str, Any]:
        """The batch, whose jobs are made."""
        params = {"skip_bad": str(skip_bad).lower()}
        return self._json("POST", _batch(batch_id, "/commit"), params=params, timeout=_UPLOAD_TIMEOUT)

    def delete_batch(self, batch_id: str) -> None:
        """Forgets a draft."""
        self._call("DELETE", _batch(batch_id))

    def change_batch(self, batch_id: str, action: Literal["pause", "resume", "cancel"]) -> dict[str, Any]:
        """The batch as it is then."""
        return self._json("POST", _batch(batch_id, f"/{action}"), timeout=_UPLOAD_TIMEOUT)

    def retry_failed(self, batch_id: str, dry_run: bool = False) -> dict[str, Any]:
        """How many of its jobs are made again, or with `dry_run` would be, and what that costs."""
        params = {"dry_run": str(dry_run).lower()}
        return self._json("POST", _batch(batch_id, "/retry-failed"), params=params, timeout=_UPLOAD_TIMEOUT)

    def batch_items(self, batch_id: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """The rows of a batch in their order, each with its job."""
        said = {name: value for name, value in filters.items() if value is not None}
        yield from self._pages(_batch(batch_id, "/items"), said)

    def export(self, batch_id: str, what: str, target: BinaryIO) -> None:
        """Writes `report.csv`, `results.jsonl` or `errors.jsonl` of a batch into the file."""
        with self._http.stream("GET", _batch(batch_id, f"/{what}"), timeout=_UPLOAD_TIMEOUT) as answer:
            if answer.is_error:
                answer.read()
            _refuse(answer)
            for chunk in answer.iter_bytes(_CHUNK):
                target.write(chunk)

    def children(self, job_id: str, state: str | None = None) -> Iterator[dict[str, Any]]:
        """The parts that a job is made in, in their order; those in the states that are named, with commas."""
        yield from self._pages(_path(job_id, "/children"), {"limit": 100} | ({"state": state} if state else {}))

    def upload(self, name: str, content: BinaryIO) -> dict[str, Any]:
        """The file in the bucket, whose `key` an input may name; the same content and name are one file."""
        return self._sent("/v1/files", name, content)

    def files(self) -> Iterator[dict[str, Any]]:
        """Every file, the newest first."""
        yield from self._pages("/v1/files", {"limit": 100})

    def delete_file(self, file_id: str) -> None:
        """Deletes a file that no unfinished job names."""
        self._call("DELETE", f"/v1/files/{quote(file_id, safe='')}")

    def schedules(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        """Every schedule, the newest first; with a name the one that has it."""
        yield from self._pages("/v1/schedules", {"limit": 100} | ({"name": name} if name else {}))

    def schedule(self, schedule_id: str) -> dict[str, Any]:
        """One schedule."""
        return self._json("GET", _schedule(schedule_id))

    def make_schedule(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The schedule, made, or found where it was made before in the same words."""
        return self._json("POST", "/v1/schedules", json=body)

    def change_schedule(self, schedule_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The schedule as it is then; what the body does not say stays."""
        return self._json("PATCH", _schedule(schedule_id), json=body)

    def pause_schedule(self, schedule_id: str) -> dict[str, Any]:
        """The schedule, which fires no more."""
        return self._json("POST", _schedule(schedule_id, "/pause"))

    def resume_schedule(self, schedule_id: str) -> dict[str, Any]:
        """The schedule, which fires again."""
        return self._json("POST", _schedule(schedule_id, "/resume"))

    def run_schedule(self, schedule_id: str, idempotency_key: str | None = None) -> dict[str, Any]:
        """A run of this instant, or the one that was made before under that key."""
        key = idempotency_key or str(uuid.uuid4())
        return self._json("POST", _schedule(schedule_id, "/run"), headers={"idempotency-key": key})

    def runs(self, schedule_id: str) -> Iterator[dict[str, Any]]:
        """What became of each fire time, the latest first."""
        yield from self._pages(_schedule(schedule_id, "/runs"), {"limit": 100})

    def delete_schedule(self, schedule_id: str) -> None:
        """Deletes a schedule with its history; its jobs stay."""
        self._call("DELETE", _schedule(schedule_id))

    def budgets(self) -> Iterator[dict[str, Any]]:
        """The project's budgets, with what is used of each."""
        yield from self._pages("/v1/budgets", {})

    def make_budget(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The budget, made."""
        return self._json("POST", "/v1/budgets", json=body)

    def change_budget(self, budget_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The budget as it is then; what the body does not say stays."""
        return self._json("PATCH", f"/v1/budgets/{quote(budget_id, safe='')}", json=body)

    def delete_budget(self, budget_id: str) -> None:
        """Deletes the budget; what was held for it alone goes on."""
        self._call("DELETE", f"/v1/budgets/{quote(budget_id, safe='')}")

    def endpoints(self) -> list[dict[str, Any]]:
        """Every webhook endpoint, the oldest first."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/webhook-endpoints")["data"]
        return found

    def make_endpoint(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The endpoint, with its secret."""
        return self._json("POST", "/v1/webhook-endpoints", json=body)

    def change_endpoint(
        self, endpoint_id: str, act: Literal["rotate", "test", "redeliver"], body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What became of it."""
        return self._json("POST", _endpoint(endpoint_id, f"/{act}"), json=body)

    def deliveries(self, endpoint_id: str, state: str | None = None) -> Iterator[dict[str, Any]]:
        """What was sent to an endpoint, the newest first."""
        yield from self._pages(_endpoint(endpoint_id, "/deliveries"), {"state": state} if state else {})

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Deletes an endpoint."""
        self._call("DELETE", _endpoint(endpoint_id))

    def candidates(self, job_id: str) -> dict[str, Any]:
        """The tasks that an uncertain job's call may have made, and the money at stake; takes an operator's key."""
        return self._json("GET", _path(job_id, "/candidates"))

    def resolve(self, job_id: str, decision: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """What became of a decision about an uncertain job, or with `dry_run` would; takes an operator's key."""
        params = {"dry_run": "true"} if dry_run else {}
        return self._json("POST", _path(job_id, "/resolve"), json=decision, params=params)

    def models(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The catalog."""
        return list(self._pages("/v1/models", {"kind": kind} if kind else {}))

    def model(self, name: str) -> dict[str, Any]:
        """One model, by id or alias."""
        return self._json("GET", f"/v1/models/{quote(name, safe='')}")

    def download(self, job_id: str, n: int, target: BinaryIO) -> str:
        """Writes an output into the file; its SHA-256 in hex, to be compared with the job's `outputs`."""
        link = self.link(job_id, n, download=True)
        digest = hashlib.sha256()
        # not with our client, whose key is none of the bucket's business
        with _client(link, timeout=_STREAM_TIMEOUT) as bucket, bucket.stream("GET", link) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
        return digest.hexdigest()

    def link(self, job_id: str, n: int, download: bool = False) -> str:
        """A link to an output, good for five minutes."""
        params = {"download": "true"} if download else {}
        return self._call("GET", _path(job_id, f"/outputs/{n}"), params=params).headers["location"]

    def _sent(self, path: str, name: str, content: BinaryIO, **said: Any) -> dict[str, Any]:
        """What the API answers to a file."""
        for attempt in _attempts():
            with attempt:
                content.seek(0)
                answer = self._http.post(path, files={"file": (name, content)}, timeout=_UPLOAD_TIMEOUT, **said)
                _refuse(answer)
        found: dict[str, Any] = answer.json()
        return found

    def _pages(self, path: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while True:
            page = self._json("GET", path, params=params | ({"cursor": cursor} if cursor else {}))
            yield from page["data"]
            cursor = page["next_cursor"]
            if not page["has_more"]:
                return

    def _json(self, method: str, path: str, **said: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._call(method, path, **said).json()
        return answer

    def _call(self, method: str, path: str, **said: Any) -> httpx.Response:
        for attempt in _attempts():
            with attempt:
                answer = self._http.request(method, path, **said)
                _refuse(answer)
        return answer

    @contextmanager
    def _stream(self, job_id: str, after: int) -> Iterator[httpx_sse.EventSource]:
        """One connection of a followed job."""
        path, headers = _path(job_id, "/events"), {"last-event-id": str(after)}
        with httpx_sse.connect_sse(self._http, "GET", path, headers=headers, timeout=_STREAM_TIMEOUT) as source:
            if source.response.is_error:
                source.response.read()
            _refuse(source.response)
            yield source


def fault_in_words(fault: Mapping[str, Any]) -> str:
    """`line 3, column Size: …` or `line 3, input.size: …` of a file's row, else `input.size: …`."""
    if line := fault.get("line"):
        field = fault["pointer"].strip("/").replace("/", ".")  # of JSON, or of the defaults
        where = f", column {fault['column']}" if fault.get("column") else f", {field}" if field else ""
        return f"line {line}{where}: {fault['message']}"
    return f"{fault['pointer'].strip('/').replace('/', '.') or 'body'}: {fault['message']}"


def _attempts() -> Iterator[stamina.Attempt]:
    return iter(stamina.retry_context(on=_wait, attempts=None, timeout=_PATIENCE, wait_initial=0.2))


def _client(url: str, **said: Any) -> httpx.Client:
    """A client for that address, through the environment's proxy; ProxyError where that can be none."""
    is_near = _is_loopback(url)
    try:
        return httpx.Client(trust_env=not is_near, **said)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        found = [name for name in os.environ if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
        advice = "make it http://host:port, unset it, or for SOCKS: pip install 'httpx[socks]'"
        raise httpx.ProxyError(f"no proxy is what {', '.join(sorted(found))} names: {advice}") from error


def _is_loopback(url: str) -> bool:
    """Whether it is on this machine, where no proxy of the environment is asked, or even read."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _path(job_id: str, suffix: str = "") -> str:
    return f"/v1/jobs/{quote(str(job_id), safe='')}{suffix}"


def _batch(batch_id: str, suffix: str = "") -> str:
    return f"/v1/batches/{quote(str(batch_id), safe='')}{suffix}"


def _schedule(schedule_id: str, suffix: str = "") -> str:
    return f"/v1/schedules/{quote(str(schedule_id), safe='')}{suffix}"


def _endpoint(endpoint_id: str, suffix: str = "") -> str:
    return f"/v1/webhook-endpoints/{quote(str(endpoint_id), safe='')}{suffix}"


def _refuse(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        problem = answer.json()
    except ValueError:  # a proxy's page
        problem = {}
    retry_after = answer.headers.get("retry-after", "")
    raise ApiError(
        answer.status_code,
        problem if isinstance(problem, dict) else {},
        float(retry_after) if retry_after.isdecimal() else None,
    )


def _wait(error: Exception) -> bool | float:
    """Whether a call may be made again, or after how many seconds."""
    if isinstance(error, ApiError):
        return error.status in _AGAIN and (error.retry_after or True)
    return isinstance(error, httpx.TransportError)
