"""Objects that nothing refers to any more, deleted from the bucket.

The transaction that lets go of an object writes its key into `doomed`; the object is deleted after that, outside of any
transaction, and then the key goes. So a slow bucket holds no row and no lock, and a run that is killed anywhere, or
finds the bucket away, leaves the keys to the next one: an object is deleted twice sooner than never.
"""

from __future__ import annotations

import time

from sqlalchemy import Engine, text

from worker.storage import Bucket

_AT_ONCE = 200


def delete(engine: Engine, bucket: Bucket, deadline: float) -> None:
    """Deletes what is doomed, until nothing is or `deadline` of the monotonic clock is over; at least a portion."""
    while True:
        with engine.connect() as connection:
            found = connection.execute(_DOOMED, {"rows": _AT_ONCE}).all()
        for row in found:
            keys = [key for key, _, _ in bucket.listing(row.key)] if row.is_prefix else [row.key]
            for key in keys:
                bucket.delete(key)
        with engine.begin() as connection:
            connection.execute(_GONE, {"keys": [row.key for row in found]})
        if len(found) < _AT_ONCE or time.monotonic() > deadline:
            return


_DOOMED = text("select key, is_prefix from doomed order by at, key limit :rows")
_GONE = text("delete from doomed where key = any(:keys)")
