"""The API as the console asks it: calls of the same app, in this process, with the session's own key.

So the console may do what its key may, and nothing else: scopes, projects, limits and gates are the API's, and whatever
a page shows, `curl` shows too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp

from api.sessions import Session


class Refused(Exception):
    """A request was refused, or failed: its status, and the problem document that says why."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or status))
        self.status = status
        self.problem = problem


class Api:
    """The API, as one session may use it. Every call gives the answer's JSON, and raises Refused."""

    def __init__(self, app: ASGIApp, session: Session | None) -> None:
        headers = {"authorization": f"Session {session.token}"} if session else {}
        transport = httpx.ASGITransport(app)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers, trust_env=False)

    async def get(self, path: str, **query: Any) -> Any:
        """What GET answers; of the query, what is None or empty is left out."""
        return await self.call("GET", path, params={name: value for name, value in query.items() if value})

    async def post(self, path: str, body: Any = None, *, once: str = "", **query: Any) -> Any:
        """What POST answers. `once`: under that word it is done one time only."""
        headers = {"idempotency-key": once.encode()} if once else {}
        return await self.call("POST", path, json=body, headers=headers, params=query)

    async def send(self, path: str, file: UploadFile, options: Mapping[str, Any]) -> Any:
        """What POST answers to a file and its options."""
        part = (file.filename, file.file, file.content_type or "application/octet-stream")
        return await self.call("POST", path, files={"file": part}, data={"options": json.dumps(options)})

    async def call(self, method: str, path: str, **said: Any) -> Any:
        """What the API answers; `said` is what httpx takes."""
        answer = await self._http.request(method, path, **said)
        if answer.is_error:
            raise Refused(answer.status_code, answer.json())
        return answer.json() if answer.content else None
