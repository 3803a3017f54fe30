"""Objects that nothing refers to any more, deleted from the bucket.

The transaction that deletes a row writes the keys of its objects into `deletions`. The objects are deleted after it,
outside of any transaction, and then the keys. So a slow bucket holds no row and no lock. A run that is killed, or finds
the bucket away, leaves the keys to the next one: an object may be deleted twice, and is never forgotten.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Row, text

from worker import log
from worker.storage import Bucket, StorageTrouble

_AT_ONCE = 200
_MORE = 5.0  # seconds over the deadline: a quick bucket then deletes the whole portion

_log = log.get(__name__)


def delete(engine: Engine, bucket: Bucket, deadline: float) -> None:
    """Tries all `deletions` once, the oldest first, until `deadline` of the monotonic clock.

    An object that cannot be deleted stays for the next run, and does not stop the others.
    """
    place: dict[str, Any] = {"at": datetime.min.replace(tzinfo=UTC), "key": ""}
    while True:
        with engine.connect() as connection:
            found = connection.execute(_DUE, place | {"rows": _AT_ONCE}).all()
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


_DUE = text("select key, is_prefix, at from deletions where (at, key) > (:at, :key) order by at, key limit :rows")
_GONE = text("delete from deletions where key = any(:keys)")
