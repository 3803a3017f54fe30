"""Logs: JSON, one object a line, with the job, lane and claim that are bound to the thread; nothing secret.

No prompt, key or signed link is ever passed to a log call; the redaction here is the second wall.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET_KEYS = re.compile(r"(?i)prompt|password|secret|authorization|api_key|^input$|^body$|^text$")
_SECRET_TEXT = re.compile(
    r"(?i)(sk-[\w.-]{6,}|noria_\w{8,}|whsec_[\w+/=]+|(?:signature|ossaccesskeyid|x-amz-[\w-]+|expires)=[^&\s\"']+"
    r"|://[^/\s:@]+:[^/\s@]+@)"
)
_HIDDEN = "[hidden]"


def redact(text: str) -> str:
    """The text without keys, signatures of links, and passwords in addresses."""
    return _SECRET_TEXT.sub(_HIDDEN, text)


def _redacted(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if _SECRET_KEYS.search(key):
            event[key] = _HIDDEN
        elif isinstance(value, str):
            event[key] = redact(value)
    return event


_CHAIN: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
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
