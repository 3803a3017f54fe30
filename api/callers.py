"""Who asks: the holders of keys, looked up by their hashes, and remembered for a second.

A key that is revoked works for a second longer at most, in each process that has just seen it; one that expires stops
in time. One that is not known is looked up each time, so a new key works at once. Without this a third of a
submission's time was the look-up.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine

from worker import keys
from worker.errors import NotFound
from worker.keys import Caller

REMEMBERED = 1.0  # seconds
_MOST = 10_000  # callers that are remembered

_Asked = tuple[bytes, str | None]  # a key's hash, and the project that it acts for


class Callers:
    """Finds callers; used by the event loop alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[_Asked, tuple[Caller, float]] = {}

    async def find(self, key: bytes, acting: str | None, within: float) -> Caller | None:
        """The caller whose key has that digest, and Postgres's time now; None for no key, or one that is revoked.

        `acting` is the project that the caller names; raises NotFound where that is not the caller's, and KeyExpired.
        `within` is how many seconds ago the key may have been looked up.
        """
        if not key:
            return None
        asked = (key, acting)
        caller, at = self._seen.get(asked, (None, 0.0))
        passed = time.monotonic() - at
        if caller is not None and passed < within:
            now = caller.now + timedelta(seconds=passed)
            if caller.ends_at is None or now < caller.ends_at:
                return replace(caller, now=now)
        self._seen.pop(asked, None)
        found = await run_in_threadpool(self._look_up, key, acting)
        if found is not None:
            self._remember(asked, found)
        return found

    def forget(self) -> None:
        """Looks up every caller anew."""
        self._seen.clear()

    def _remember(self, asked: _Asked, found: Caller) -> None:
        if len(self._seen) >= _MOST:
            self._seen.clear()
        self._seen[asked] = (found, time.monotonic())

    def _look_up(self, key: bytes, acting: str | None) -> Caller | None:
        # autocommit: one round trip; a transaction would take three
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            known = keys.authenticate(connection, key)
            connection.commit()  # costs nothing; through a pooler this is a transaction
            if known is None or acting is None:
                return known
            if known.project is None:
                return replace(known, project=keys.project(connection, acting))
        if known.project.name != acting:
            raise NotFound("no such project")
        return known
