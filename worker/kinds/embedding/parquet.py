"""Vectors as Parquet, a row group a page; needs PyArrow, which the extra `parquet` installs.

Dense numbers are written as 32-bit floats, as vector stores keep them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from worker.kinds.embedding.texts import Lost
from worker.kinds.embedding.vectors import Made

CONTENT_TYPE = "application/vnd.apache.parquet"


class _Sink(io.RawIOBase):
    """What was written since it was last emptied: Parquet is written from its beginning to its end, without a seek."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        """True: nothing else is done with it."""
        return True

    def write(self, data: Any) -> int:
        """Holds the bytes."""
        self._held += data
        return len(data)

    def emptied(self) -> bytes:
        """The bytes that it held."""
        held, self._held = bytes(self._held), bytearray()
        return held


def chunks(pages: Iterable[Sequence[Made]], dimension: int) -> Iterator[bytes]:
    """The file of all pages."""
    import pyarrow  # the extra `parquet`
    from pyarrow import parquet

    sink, schema = _Sink(), _schema(pyarrow, dimension)
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        for page in pages:
            writer.write_table(pyarrow.Table.from_pylist(list(map(_row, page)), schema=schema))
            yield sink.emptied()
    yield sink.emptied()


def _schema(pyarrow: Any, dimension: int) -> Any:
    token = pyarrow.struct([("index", pyarrow.int64()), ("value", pyarrow.float64()), ("token", pyarrow.string())])
    return pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("index", pyarrow.int64()),
            ("embedding", pyarrow.list_(pyarrow.float32(), dimension)),
            ("sparse_embedding", pyarrow.list_(token)),
            ("error_code", pyarrow.string()),
            ("error_message", pyarrow.string()),
        ]
    )


def _row(made: Made) -> dict[str, Any]:
    told: dict[str, Any] = {"id": made.id, "index": made.index}
    if isinstance(made.end, Lost):
        return told | {"error_code": made.end.code, "error_message": made.end.message}
    dense = None if made.end.dense is None else made.end.dense.tolist()
    return told | {"embedding": dense, "sparse_embedding": made.end.sparse}
