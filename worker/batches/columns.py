"""The columns of a table: which field of a job each one is, and what its cells mean.

A table was often in a spreadsheet before, which writes numbers and errors in its own way, and was typed by people, who
write `Custom ID`, `５` and `16：9`. So names are found whatever their case, width and blanks, and the cells of numbers,
switches and words to choose from are read as the ASCII that they stand for. Free text, ids and links are what they are;
of any cell the blanks around it are no part.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from pydantic import AliasChoices

from worker import catalog, text
from worker.batches.lines import POINTER, refused
from worker.errors import Fault, InvalidInput
from worker.jobs.submission import Submission
from worker.kinds import OFFERED

MOST = 200  # columns
_METADATA = "metadata"
_INPUT = "input"
_NAME = 100  # characters; keys of metadata have at most 64
_SHOWN = 40  # characters of what others wrote, in a message

_BETWEEN = re.compile(r"[\s_-]+")
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060"))  # remnants of byte-order marks, and their like
_QUOTES = ('""', "''", "“”", "‘’", "„“", "「」", "『』", "«»", "””", "““")
_REFUSED = {"，": "full-width commas", "；": "full-width semicolons", "、": "ideographic commas", "|": "bars"}

# As spreadsheets show long numbers, in English and, with a comma, in German. Never without the sign: 5E10 may be an id.
_SHORTENED = re.compile(r"[+-]?\d(?:[.,]\d{0,30})?[eE]\+\d{1,3}", re.ASCII)
_FAILED = re.compile(
    r"#(?:REF|VALUE|NAME|NULL|NUM|DIV/0|SPILL|CALC|FIELD|BLOCKED|CONNECT)[!?]|#N/A|#GETTING_DATA|#{3,}"
)
_TIME = re.compile(r"\d{1,2}:(?:0\d|\d\d:\d\d)", re.ASCII)  # 16:09, 9:16:00; never a ratio that a person writes
_ODD = 40  # characters; neither of the two is longer
_AS_TEXT = ": format the column as text, enter it again, and save the file anew"
_MAY_BEGIN_ODD = frozenset("+-0123456789#")
_OF_THE_JOB = frozenset(each.name for each in fields(Submission)) - {_INPUT, _METADATA}
_WORDS = frozenset({"kind", "model", "priority", "review"})  # of the job's fields, those with words to choose from
_LISTS = frozenset({"webhook_events"})
_NUMBERS = frozenset({"cache_days"})
_BRACKETS = ("[", "{")


class BadCell(Exception):  # not an error of ours: the row gets a fault
    """A cell that means nothing; a stable code, and a message for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Column:
    """A column that has a name: where in a job its cells go."""

    at: int  # from 0
    header: str  # as the file has it, but for the blanks around it
    group: str | None  # input, metadata, or None for a field of the job itself
    name: str
    meaning: Callable[[str], Any]  # of a cell that is not empty; raises BadCell

    @property
    def pointer(self) -> str:
        return text.pointer([self.group, self.name] if self.group else [self.name])


def columns(header: Sequence[str]) -> list[Column]:
    """What the columns of a file are, by its first row; raises InvalidInput with every one that is nothing."""
    named = [(at, cell.strip(), _plain(cell)) for at, cell in enumerate(header)]
    named = [each for each in named if each[2]]
    if len(named) > MOST:  # before names that are none are compared with those that are
        raise refused("too_many_columns", f"has {len(named)} columns; at most {MOST} are taken")
    made = [_column(at, cell, name) for at, cell, name in named]
    if not any(isinstance(each, Column) for each in made):
        raise refused("no_header", _no_header(header))
    unknown = [each for each in made if isinstance(each, Fault)]
    found = [each for each in made if isinstance(each, Column)]
    if faults := unknown + _twice(found):
        raise InvalidInput(faults)
    if all(_unquoted(each.header) != each.header for each in found):  # so its author believes that these are quotes
        return [replace(each, header=_unquoted(each.header), meaning=_bare(each.meaning)) for each in found]
    return found


def known(header: Iterable[str]) -> int:
    """How many of the names are those of columns."""
    return sum(_place(_plain(name)) is not None for name in header)


def letters(at: int) -> str:
    """A column without a name as a spreadsheet calls it: A, B, … AA; `at` from 0."""
    name, at = "", at + 1
    while at:
        at, rest = divmod(at - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; raises ValueError where a name stands in it twice: Python takes the last without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = text.storable(max(times, key=lambda name: times[name])[:_SHOWN])
        raise ValueError(f"the name {twice} stands twice in an object")
    return made


DECODER = json.JSONDecoder(parse_int=text.integer, object_pairs_hook=once)


def parsed(written: str) -> Any:
    """The JSON value; raises ValueError for what is none, RecursionError for what is nested too deep."""
    return DECODER.decode(written)


def reason(error: ValueError) -> str:
    """Why a text is no JSON, and where; its line is the caller's to say."""
    return f"{error.msg}, at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _column(at: int, header: str, name: str) -> Column | Fault:
    place = _place(name)
    if place is None or text.UNSTORABLE.search(name) or len(header) > _NAME:
        said = f"column {letters(at)}, {text.storable(header[:_SHOWN])}, {_unknown(name)}"
        return Fault(POINTER, "unknown_column", said)
    group, field = place
    if group == _METADATA:
        return Column(at, header, group, field, _written)
    return Column(at, header, group, field, _of_the_job(field) if group is None else _meanings()[field])


def _plain(header: str) -> str:
    """The name in half-width characters, without quotes and without what nobody sees."""
    return _unquoted(unicodedata.normalize("NFKC", header).translate(_INVISIBLE).strip())


def _place(name: str) -> tuple[str | None, str] | None:
    """The field that a name means, and whether it is one of the input, of the metadata, or of the job."""
    group, dot, rest = (part.strip() for part in name.partition("."))
    if dot and _key(group) == _METADATA:
        return (_METADATA, rest) if rest else None
    return _names().get(_key(rest if dot and _key(group) == _INPUT else name))


def _key(name: str) -> str:
    """`Custom ID`, `custom-id`, `customId`: one name."""
    return _BETWEEN.sub("", name.casefold())


@cache
def _names() -> dict[str, tuple[str | None, str]]:
    """All fields by what `_key` makes of their names; those of the job go before those of an input."""
    inputs: dict[str, tuple[str | None, str]] = {}
    for kind in OFFERED.values():
        for name, field in kind.input.model_fields.items():
            others = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
            inputs |= {_key(str(each)): (_INPUT, name) for each in (name, *others)}
    return inputs | {_key(name): (None, name) for name in _OF_THE_JOB}


def _unknown(name: str) -> str:
    if _key(name) in (_METADATA, _METADATA + "."):
        return "has to say which: metadata.sku, metadata.channel"
    if len(name) > _NAME:
        return f"has a name of over {_NAME} characters"
    near = difflib.get_close_matches(_key(name)[:_SHOWN], _names(), n=2)
    meant = f"did you mean {' or '.join(_names()[each][1] for each in near)}? Else " if near else ""
    own = name[:_SHOWN] if name.isprintable() else "NAME"
    return f"is no field of a job: {meant}call it metadata.{own}, or take it out"


def _twice(found: Sequence[Column]) -> list[Fault]:
    first: dict[str, Column] = {}
    twice = [each for each in found if first.setdefault(each.pointer, each) is not each]
    said = "columns {} and {} are both {}: leave one of them out"
    return [
        Fault(POINTER, "duplicate_column", said.format(letters(first[each.pointer].at), letters(each.at), each.name))
        for each in twice
    ]


def _no_header(header: Sequence[str]) -> str:
    wide = next((words for mark, words in _REFUSED.items() if any(mark in cell for cell in header)), None)
    if wide and known(re.split("[，；、|]", "，".join(header))):
        return f"has {wide} between its columns: separate them by commas, semicolons or tabs"
    return "names no column in its first row: it has to, e.g. kind, model, prompt, custom_id, metadata.sku"


def _of_the_job(name: str) -> Callable[[str], Any]:
    if name in _LISTS:
        return _listed
    if name in _NUMBERS:
        return _whole
    return _chosen if name in _WORDS else _written


@cache
def _meanings() -> dict[str, Callable[[str], Any]]:
    """How cells of the inputs' fields are read, by what any kind's field of that name takes."""
    chosen = {name for model in catalog.load().models() for name in model.choices}
    found: dict[str, set[str]] = {}
    for kind in OFFERED.values():
        schema = kind.input.model_json_schema(by_alias=False)
        for name, types in schema["properties"].items():
            found.setdefault(name, set()).update(_types(types, schema.get("$defs", {})))
    return {name: _meaning(types, name in chosen) for name, types in found.items()}


def _types(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Iterable[str]:
    """JSON's types of a field; `word` for a string that is one of a few."""
    if "$ref" in schema:
        yield from _types(shared[schema["$ref"].rpartition("/")[2]], shared)
    for each in schema.get("anyOf", ()):
        yield from _types(each, shared)
    if "enum" in schema or "const" in schema:
        yield "word"
    elif schema.get("type", "null") != "null":
        yield str(schema["type"])


def _meaning(types: set[str], is_chosen: bool) -> Callable[[str], Any]:
    is_free = "string" in types and not is_chosen
    if types & {"array", "object"}:
        return _text_or_json if is_free else _word_or_json
    if is_free:
        return _written
    return _real if types == {"number"} else _chosen


def _bare(meaning: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same of a cell without the quotes around it."""
    return lambda cell: meaning(_unquoted(cell))


def _written(cell: str) -> str:
    """Free text, an id or a link."""
    if "\0" in cell:
        raise BadCell("bad_text", text.BAD_TEXT)
    if len(cell) < _ODD and cell[:1] in _MAY_BEGIN_ODD:
        _hold_whole(cell)
    return cell


def _chosen(cell: str) -> str:
    """A number, a switch, or one of a few words, e.g. 16:9, which a spreadsheet takes for a time."""
    plain = _half_width(cell)
    if _TIME.fullmatch(plain):
        raise BadCell("became_a_time", f"{plain} is a time that a spreadsheet made of something like 16:9{_AS_TEXT}")
    return _written(plain)


def _real(cell: str) -> str:
    """A number with a fraction: 1.5E+01 says all of it."""
    plain = _half_width(cell)
    return plain if _SHORTENED.fullmatch(plain) else _written(plain)


def _whole(cell: str) -> int | str:
    """A whole number; what is none stays as it is, for its form to refuse."""
    plain = _chosen(cell)
    return int(plain) if plain.isdecimal() and len(plain) < _ODD else plain


def _half_width(cell: str) -> str:
    is_plain = cell.isascii() and not cell.startswith(("'", '"'))
    return cell if is_plain else _unquoted(unicodedata.normalize("NFKC", cell).strip())


def _word_or_json(cell: str) -> Any:
    return _json(cell) if cell.startswith(_BRACKETS) else _chosen(cell)


def _text_or_json(cell: str) -> Any:
    """A text that begins with a bracket is JSON only if it is JSON."""
    if not cell.startswith(_BRACKETS):
        return _written(cell)
    try:
        return _json(cell)
    except BadCell as bad:
        if bad.code != "invalid_json":
            raise
        return _written(cell)


def _listed(cell: str) -> Any:
    return _json(cell) if cell.startswith("[") else [part for part in re.split(r"[\s,;]+", _chosen(cell)) if part]


def _json(cell: str) -> Any:
    try:
        value, slips = text.scrubbed(parsed(cell))
    except ValueError as error:
        raise BadCell("invalid_json", f"is not JSON: {reason(error)}") from None
    except RecursionError:
        raise BadCell("too_deep", f"is nested more than {text.DEPTH} levels deep") from None
    for where, code, message in slips:
        raise BadCell(code, f"{where[:_SHOWN]}: {message}")
    return value


def _hold_whole(cell: str) -> None:
    """Raises BadCell where a spreadsheet wrote something else than what was meant."""
    if _SHORTENED.fullmatch(cell):
        raise BadCell("lost_digits", f"{cell} is a number that a spreadsheet shortened, so digits are lost{_AS_TEXT}")
    if _FAILED.fullmatch(cell):
        what = "a column was too narrow to show" if cell.startswith("##") else "is an error, not a value"
        raise BadCell("spreadsheet_error", f"{cell} is what the spreadsheet wrote: {what}")


def _unquoted(value: str) -> str:
    """Without the quotes around all of it."""
    is_quoted = len(value) > 1 and value[0] + value[-1] in _QUOTES
    return value[1:-1].strip() if is_quoted else value
