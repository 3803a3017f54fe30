"""How pages are written: templates, in English or Chinese; times in the project's zone, amounts, sizes, bars.

Texts stand in the templates in English; `zh.po` has the Chinese. Whatever a user wrote is escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

from babel.core import Locale
from babel.dates import format_datetime, format_timedelta
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from jinja2 import Environment, PackageLoader, StrictUndefined

LANGUAGES = {"en": "English", "zh": "中文"}
_NUMBER = re.compile(r"\d+")
_HERE = Path(__file__).parent
# The colours of states; those that are not named are on their way.
_LOOKS = {
    "good": {"succeeded", "completed", "delivered"},
    "bad": {"failed", "expired", "rejected", "exhausted"},
    "waits": {"awaiting_review", "held", "uncertain", "paused"},
    "off": {"canceled", "draft"},
    "queued": {"queued"},
}
_LOOK = {state: look for look, states in _LOOKS.items() for state in states}
_FIRST = ("succeeded", "awaiting_review", "rejected", "failed", "expired", "canceled", "held", "uncertain")  # in a bar


def language(chosen: str | None, accepted: str) -> str:
    """The language that was chosen, else the one that the browser likes best of ours."""
    if chosen in LANGUAGES:
        return chosen
    liked = (part.strip()[:2].lower() for part in accepted[:200].split(","))
    return next((name for name in liked if name in LANGUAGES), "en")


@cache
def environment(language: str) -> Environment:
    """The templates in one language."""
    made = Environment(
        loader=PackageLoader("api.console"),
        autoescape=True,
        extensions=["jinja2.ext.i18n"],
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = translations(language)
    vars(made)["install_gettext_translations"](words, newstyle=True)  # which the extension put there
    made.filters |= {
        "state": lambda name: words.ugettext(name.replace("_", " ")),
        "text": lambda said: _told(words, said),
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "look": lambda name: _LOOK.get(name, "moving"),
        "bytes": _bytes,
        "share": _share,
        "said": _said,
        "yuan": _yuan,
        "quoted": shlex.quote,
    }
    made.tests["media"] = lambda content_type: content_type.startswith(("video/", "image/"))
    made.globals |= {
        "languages": LANGUAGES,
        "language": language,
        "parts": parts,
        "chart": chart,
        "once": lambda: uuid4().hex,
    }
    return made


@cache
def translations(language: str) -> NullTranslations:
    """The texts of a language, by the English ones."""
    file = _HERE / f"{language}.po"
    if not file.exists():
        return NullTranslations()
    compiled = BytesIO()
    with file.open("rb") as opened:
        write_mo(compiled, read_po(opened, locale=language))
    compiled.seek(0)
    return Translations(compiled)


def clock(zone: str, language: str, now: datetime) -> Mapping[str, Any]:
    """How templates write moments, which come as RFC 3339, in the project's zone: `when`, `ago`, and spans."""
    place, locale = ZoneInfo(zone), Locale.parse(language)

    def when(moment: str | None) -> str:
        return format_datetime(_read(moment), "MM-dd HH:mm", tzinfo=place, locale=locale) if moment else ""

    def ago(moment: str | None) -> str:
        return format_timedelta(_read(moment) - now, add_direction=True, locale=locale) if moment else ""

    def lasts(seconds: float | None) -> str:
        return format_timedelta(timedelta(seconds=seconds), locale=locale) if seconds is not None else ""

    def between(first: str | None, last: str | None) -> str:
        return lasts((_read(last) - _read(first)).total_seconds()) if first and last else ""

    return {"when": when, "ago": ago, "lasts": lasts, "between": between}


def parts(by_state: Mapping[str, int], total: int) -> list[dict[str, Any]]:
    """The pieces of a bar, from 0 to 1000 wide: what is well first, what only waits last."""
    order = {name: place for place, name in enumerate(_FIRST)}
    states = sorted(by_state, key=lambda name: (name == "queued", order.get(name, len(order))))
    found, at = [], 0.0
    for name in states:
        width = 1000 * by_state[name] / max(1, total)
        found.append({"state": name, "jobs": by_state[name], "x": round(at, 1), "width": round(width, 1)})
        at += width
    return found


def chart(rows: Sequence[Mapping[str, Any]], label: str, most: int = 90) -> list[dict[str, Any]]:
    """The bars of a chart of usage: a label, what was spent, and its share of the most, from 0 to 100."""
    spent = [(str(row[label] or ""), float(row["settled"]) + float(row["unknown"])) for row in rows[:most]]
    largest = max((amount for _, amount in spent), default=0.0) or 1.0
    return [
        {"label": name, "amount": f"{amount:.2f}", "share": round(100 * amount / largest, 1)} for name, amount in spent
    ]


def _read(moment: str | None) -> datetime:
    read = datetime.fromisoformat(moment or "1970-01-01T00:00:00+00:00")
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _told(words: NullTranslations, said: str) -> str:
    """One of the API's sentences in the page's language, if that is known; of its numbers each is a # there."""
    numbers = iter(_NUMBER.findall(said))
    return re.sub("#", lambda _: next(numbers, "#"), words.ugettext(_NUMBER.sub("#", said)))


def _yuan(amount: str) -> str:
    """To the fen, and less than a yuan to a hundredth of one."""
    yuan = Decimal(amount)
    return f"{yuan:.2f}" if abs(yuan) >= 1 or yuan == 0 else f"{yuan:.4f}".rstrip("0").ljust(4, "0")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _share(part: float | str, whole: float | str) -> int:
    return round(100 * float(part) / float(whole)) if float(whole) else 0


def _said(asked: Mapping[str, Any]) -> str:
    """What a job is about, in one line: its prompt, or the first text of its input."""
    texts = [*(asked.get(name) for name in ("prompt", "text", "markup")), *asked.values()]
    return next((text for text in texts if isinstance(text, str) and text), "")
