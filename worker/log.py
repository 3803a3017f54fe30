"""Logs: JSON, one object a line, with the job, lane and claim that are bound to the thread; nothing secret.

No prompt, key or signed link is ever passed to a log call; the redaction here is the second wall. An exception may
hold any of them, since its text quotes what it was raised over: so of most only the type is shown, and where.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from functools import lru_cache
from typing import Any

import psycopg
import structlog
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.errors import NoriaError

_SECRET_KEYS = re.compile(r"(?i)prompt|password|secret|authorization|api_key|^input$|^body$|^text$")
_SECRET_TEXT = re.compile(
    r"(?i)(sk-[\w.-]{6,}|noria_\w{8,}|whsec_[\w+/=]+|(?:signature|ossaccesskeyid|x-amz-[\w-]+|expires)=[^&\s\"']+"
    # of robots' addresses, of the provider's temporary store, and of the broker's sentinels
    r"|(?:access_token|security-token|sentinel_password|(?<=[?&])key)=[^&\s\"']+|(?<=/hook/)[\w-]+"
    r"|://[^/\s:@]*:[^/\s@]+@)"
)
# What Postgres, SQLAlchemy and pydantic say of values: rows, parameters, input
_QUOTED = re.compile(
    r"(?s)(?:\n|\\n)(?:DETAIL|CONTEXT|QUERY|LINE \d+):.*|(?<=psycopg\.errors\.)\w+\).*|\[parameters: .*|input_value=.*"
)
_VALUE = re.compile(r'"[^"]*"?')
_HIDDEN = "[hidden]"
# exceptions whose text tells of code, names or hosts, not of values
_PLAIN = (NoriaError, PoolTimeout, OSError, TypeError, AttributeError, ImportError, AssertionError)


def redact(text: str) -> str:
    """The text without keys, signatures of links, passwords in addresses, and values that an error quotes."""
    return _QUOTED.sub(_HIDDEN, _SECRET_TEXT.sub(_HIDDEN, text))


def words(error: BaseException) -> str:
    """An exception's type, and its message where that quotes no value; of the driver only the primary message."""
    cause = getattr(error, "orig", None) or error  # SQLAlchemy's errors hold the driver's
    said = _of_driver(cause) if isinstance(cause, psycopg.Error) else str(cause) if isinstance(cause, _PLAIN) else ""
    return f"{type(cause).__name__}: {redact(said)}" if said else type(cause).__name__


def _of_driver(error: psycopg.Error) -> str:
    """SQLSTATE and message; without a code it is about the connection, or quotes a value."""
    if error.sqlstate is None:
        is_of_connection = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return str(error).partition("\n")[0] if is_of_connection else ""
    said = error.diag.message_primary or ""
    return f"{error.sqlstate} {_VALUE.sub(_HIDDEN, said) if error.sqlstate.startswith('22') else said}"


def _traceback(exc_info: Any) -> str:
    """Where an exception and what led to it were raised, in `words`."""
    return "\n".join(
        "".join(traceback.format_tb(error.__traceback__)) + words(error) for error in reversed([*_chain(exc_info[1])])
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    met: set[int] = set()
    while error is not None and id(error) not in met:
        yield error
        met.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _in_words(record: logging.LogRecord) -> bool:
    """Puts exceptions that a library would write into its line in `words`; every record passes."""
    if isinstance(record.args, tuple):
        record.args = tuple(words(one) if isinstance(one, BaseException) else one for one in record.args)
    return True


def _redacted(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        event[key] = _HIDDEN if _is_secret(key) else _clean(value)
    return event


@lru_cache(maxsize=512)
def _is_secret(key: str) -> bool:
    return _SECRET_KEYS.search(key) is not None


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | logging.LogRecord):
        return value
    if isinstance(value, BaseException):
        return words(value)
    if isinstance(value, dict):
        return {name: _HIDDEN if _is_secret(str(name)) else _clean(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(held) for held in value]
    return redact(str(value))


_CHAIN: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.ExceptionRenderer(_traceback),
    _redacted,
]


def configure(level: str) -> None:
    """Sends everything, the libraries' own lines too, through one formatter to standard error."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_CHAIN,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_in_words)
    logging.raiseExceptions = False  # its report of a line that could not be written shows the line as it was
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Celery would write two lines for each message; what matters of them is in the lines of the moves
    for noisy in (
        "celery.app.trace",
        "celery.worker.strategy",
        "celery.beat",
        "httpx",
        "httpcore",
        "botocore",
        "boto3",
        "urllib3",
        "s3transfer",
        "kombu",
        "amqp",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.excepthook = lambda *exc_info: root.critical("the process ends by an error", exc_info=exc_info)
    threading.excepthook = lambda ended: root.critical("a thread ended by an error", exc_info=ended.exc_value)
    structlog.configure(
        processors=[*_CHAIN, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger by module name."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
