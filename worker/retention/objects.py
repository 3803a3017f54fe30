"""Objects that nothing refers to any more, deleted from the bucket.

The transaction that lets go of an object writes its key into `doomed`; the object is deleted after that, outside of any
transaction, and then the key goes. So a slow bucket holds no row and no lock, and a run that is killed anywhere, or
finds the bucket away, leaves the keys to the next one: an object is deleted twice sooner than never.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Row, text

from worker import log
from worker.storage import Bucket, StorageTrouble

_AT_ONCE = 200
_MORE = 5.0  # seconds over the deadline: what a portion has let go of goes with it where the bucket is quick

_log = log.get(__name__)


def delete(engine: Engine, bucket: Bucket, deadline: float) -> None:
    """Deletes what is doomed, the oldest first, until all was tried or `deadline` of the monotonic clock is over.

    What the bucket does not let go of stays for the next run, and keeps nothing else from going.
    """
    place: dict[str, Any] = {"at": datetime.min.replace(tzinfo=UTC), "key": ""}
    while True:
        with engine.connect() as connection:
            found = connection.execute(_DOOMED, place | {"rows": _AT_ONCE}).all()
        gone = [row.key for row in found if _is_gone(bucket, row, deadline)]
        with engine.begin() as connection:
            connection.execute(_GONE, {"keys": gone})
        if len(found) < _AT_ONCE or time.monotonic() > deadline:
            return
        place = {"at": found[-1].at, "key": found[-1].key}


def _is_gone(bucket: Bucket, row: Row[Any], deadline: float) -> bool:
    """Whether the object, or all below the prefix, is deleted now; not where time is over."""
    if time.monotonic() > deadline + _MORE:
        return False
    try:
        for key in [key for key, _, _ in bucket.listing(row.key)] if row.is_prefix else [row.key]:
            bucket.delete(key)
    except StorageTrouble as trouble:
        _log.warning("an object could not be deleted; it is tried again in the next run", cause=trouble.code)
        return False
    return True


_DOOMED = text("select key, is_prefix, at from doomed where (at, key) > (:at, :key) order by at, key limit :rows")
_GONE = text("delete from doomed where key = any(:keys)")
