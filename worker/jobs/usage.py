"""Usage: what a project's calls used and cost, by day and by what they were for, from the roll-up of the ledger.

The roll-up has a row for each day, kind, model, batch, schedule and set of chosen metadata, so a question reads rows by
the day and not by the job (ADR 0042). A line counts on the day in whose budget it counts: when it was reserved, in the
zone that the project had then. The runs of a schedule are read from the ledger itself: there is one job for each.
"""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection, Label, Row, Select, func, literal_column, select

from worker import money, text
from worker.document import Amount, Answer, Moment
from worker.errors import Fault, InvalidInput
from worker.tables import Entry, Project, Run, UsageSum

MOST = 10_000  # rows of an answer
METADATA = "metadata."
PERIODS = ("day", "week", "month")
NAMES = (*PERIODS, "kind", "model", "batch", "schedule", "run", "project")  # to group by; and metadata.KEY
_GREW = 2.0  # times as many tokens as the runs before it: then a run is marked
_BEFORE = 10  # runs that one is compared with
_DAYS = 30  # where no beginning is said


class Amounts(Answer):
    """What was used and what it cost, in CNY; what the provider does not count is 0."""

    jobs: int = Field(description="whose price was known; one that is made again counts again")
    calls: int = Field(description="that were billed, or may be")
    settled: Amount = Field(description="of calls whose bill is known")
    unknown: Amount = Field(description="of calls that are charged at their estimate: no answer yet, or no price")
    reserved: Amount = Field(description="for what has not been settled or given back yet")
    input_tokens: int
    cached_tokens: int = Field(description="of the input, those that the provider had in its cache")
    output_tokens: int
    seconds: float = Field(description="of video")
    characters: int = Field(description="that were spoken, as they are billed")
    images: int


class UsageLine(Amounts):
    """One group: null is what is not grouped by, and what has none, as a job without a batch."""

    object: Literal["usage"] = "usage"
    begins_on: date | None = Field(description="the first day of the day, week or month")
    project: str | None
    kind: str | None
    model: str | None
    batch_id: uuid.UUID | None
    schedule_id: uuid.UUID | None
    metadata: dict[str, str | None] = Field(description="by the keys that are grouped by")
    job_id: uuid.UUID | None = Field(description="of a run")
    fire_at: Moment | None = Field(description="of a run")
    grew: float | None = Field(description="of a run: how many times the tokens of those before it, from twice on")


class Usage(Answer):
    """Usage in groups, the latest first, the dearest first; and all of it together."""

    object: Literal["usage_report"] = "usage_report"
    since: date
    until: date = Field(description="the last day")
    group_by: list[str]
    currency: Literal["CNY"] = "CNY"
    data: list[UsageLine]
    has_more: bool = Field(description="there are more groups than `limit`: narrow it")
    total: Amounts


@dataclass(frozen=True)
class Question:
    """What is asked: of which days (inclusive), in which groups, and narrowed to what."""

    since: date
    until: date
    group_by: Sequence[str] = ("day",)
    limit: int = 1000
    kind: str | None = None
    model: str | None = None
    batch: uuid.UUID | None = None
    schedule: uuid.UUID | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The metadata that is grouped by."""
        return [name.removeprefix(METADATA) for name in self.group_by if name.startswith(METADATA)]


def days(since: date | None, until: date | None, today: date) -> tuple[date, date]:
    """The days that are meant: the last thirty where nothing is said."""
    last = until or today
    # by its number, since there may be fewer days before the last one
    return since or date.fromordinal(max(1, last.toordinal() - _DAYS + 1)), last


def report(connection: Connection, project: Project | None, asked: Question) -> Usage:
    """The answer, of one project or of all. Raises InvalidInput for groups that there are not."""
    _check(project, asked)
    rows = connection.execute(_runs(project, asked) if "run" in asked.group_by else _groups(project, asked)).all()
    total = connection.execute(_total(project, asked)).one()
    lines = [_line(row, asked) for row in rows[: asked.limit]]
    return Usage(
        since=asked.since,
        until=asked.until,
        group_by=list(asked.group_by),
        data=_marked(lines) if "run" in asked.group_by else lines,
        has_more=len(rows) > asked.limit,
        total=Amounts(**_amounts(total)),
    )


def csv(found: Usage) -> bytes:
    """The groups as CSV: what they are grouped by, then what was used and cost."""
    amounts = list(Amounts.model_fields)
    rows: list[list[Any]] = [[*found.group_by, *amounts]]
    for line in found.data:
        said = line.as_json() | {METADATA + key: value for key, value in line.metadata.items()}
        rows.append([said[_FIELDS.get(name, name)] for name in found.group_by] + [said[name] for name in amounts])
    return text.csv_of(rows)


def _check(project: Project | None, asked: Question) -> None:
    faults = [_unknown(name) for name in asked.group_by if not name.startswith(METADATA) and name not in NAMES]
    kept = project.usage_keys if project else []
    named = [*dict.fromkeys([*asked.keys, *asked.metadata])]
    faults += [_not_kept(key, kept) for key in named if project and key not in kept]
    if len(set(asked.group_by)) < len(asked.group_by):
        faults.append(Fault("/group_by", "group_twice", "names a group twice"))
    if len([name for name in asked.group_by if name in PERIODS]) > 1:
        faults.append(Fault("/group_by", "one_period", "is grouped by one of day, week and month"))
    further = [asked.kind, asked.model, asked.batch, *asked.metadata]
    if "run" in asked.group_by and (asked.schedule is None or len(asked.group_by) > 1 or any(further)):
        message = "run goes with schedule=ID, and with no other group or filter"
        faults.append(Fault("/group_by", "run_of_a_schedule", message))
    if asked.since > asked.until:
        faults.append(Fault("/since", "after_until", "is after until"))
    if faults:
        raise InvalidInput(faults)


def _unknown(name: str) -> Fault:
    return Fault("/group_by", "unknown_group", f"{name[:40]}: groups are {', '.join(NAMES)} and metadata.KEY")


def _not_kept(key: str, kept: Sequence[str]) -> Fault:
    message = (
        f"usage is not broken down by {key[:64]}: of metadata the project's keys are {', '.join(kept) or 'none'};"
        " an operator chooses them with `noria projects set PROJECT --usage-key KEY`, from then on"
    )
    return Fault("/group_by", "usage_key_not_kept", message)


def _groups(project: Project | None, asked: Question) -> Select[Any]:
    named = [_column(name) for name in asked.group_by]
    settled = func.sum(UsageSum.settled).desc()
    order = [column.desc() for name, column in zip(asked.group_by, named, strict=True) if name in PERIODS]
    found = _narrowed(select(*named, *_SUMS), project, asked)
    if "project" in asked.group_by:
        found = found.join(Project, Project.id == UsageSum.project_id)
    return found.group_by(*named).order_by(*order, settled, *named).limit(asked.limit + 1)


def _total(project: Project | None, asked: Question) -> Select[Any]:
    return _narrowed(select(*_SUMS), project, asked)


def _narrowed(found: Select[Any], project: Project | None, asked: Question) -> Select[Any]:
    found = found.where(UsageSum.day.between(asked.since, asked.until)).select_from(UsageSum)
    given = {
        UsageSum.project_id: project.id if project else None,
        UsageSum.kind: asked.kind,
        UsageSum.model: asked.model,
        UsageSum.batch_id: asked.batch,
        UsageSum.schedule_id: asked.schedule,
    }
    found = found.where(*(column == value for column, value in given.items() if value is not None))
    return found.where(*(UsageSum.labels[key].astext == value for key, value in asked.metadata.items()))


def _runs(project: Project | None, asked: Question) -> Select[Any]:
    """The runs of a schedule, the latest first, with what each one's job used."""
    is_billed = (Entry.entry == "settle") & ((Entry.micros != 0) | Entry.usage.is_not(None))
    sums = {
        "jobs": func.count().filter(Entry.entry == "reserve"),
        "calls": func.count().filter(is_billed),
        "settled": func.sum(Entry.micros).filter(Entry.entry == "settle", Entry.known),
        "unknown": func.sum(Entry.micros).filter(Entry.entry == "settle", ~Entry.known),
        "reserved": func.sum(Entry.micros).filter(Entry.entry != "settle"),
        **{name: func.sum(Entry.usage[name].as_float()) for name in money.COUNTED},
    }
    summed = (func.coalesce(value, 0).label(name) for name, value in sums.items())
    named: list[Any] = [Run.job_id, Run.fire_at, *summed]
    found: Select[Any] = select(*named).join(Entry, Entry.job_id == Run.job_id)
    found = found.where(Run.project_id == project.id) if project else found
    day = func.date(func.timezone(project.time_zone if project else "UTC", Run.fire_at))
    found = found.where(Run.schedule_id == asked.schedule, day.between(asked.since, asked.until))
    return found.group_by(Run.id).order_by(Run.fire_at.desc()).limit(asked.limit + 1)


def _marked(runs: list[UsageLine]) -> list[UsageLine]:
    """The runs, the latest first; one that grew beside the median of those before it says how much."""
    tokens = [run.input_tokens + run.output_tokens for run in runs]
    marked = []
    for n, run in enumerate(runs):
        before = [count for count in tokens[n + 1 : n + 1 + _BEFORE] if count]
        grew = tokens[n] / statistics.median(before) if before else 0
        marked.append(run.model_copy(update={"grew": round(grew, 1)}) if grew >= _GREW else run)
    return marked


def _column(name: str) -> Label[Any]:
    columns: dict[str, Any] = {
        "day": UsageSum.day,
        **{period: func.date(func.date_trunc(literal_column(f"'{period}'"), UsageSum.day)) for period in PERIODS[1:]},
        "kind": UsageSum.kind,
        "model": UsageSum.model,
        "batch": UsageSum.batch_id,
        "schedule": UsageSum.schedule_id,
        "project": Project.name,
    }
    if name.startswith(METADATA):
        columns[name] = UsageSum.labels[name.removeprefix(METADATA)].astext
    label: Label[Any] = columns[name].label(name)
    return label


def _line(row: Row[Any], asked: Question) -> UsageLine:
    said = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return UsageLine(
        **_amounts(row),
        begins_on=next((said[name] for name in PERIODS if name in said), None),
        batch_id=said.get("batch"),
        schedule_id=said.get("schedule"),
        metadata={key: said[METADATA + key] for key in asked.keys},
        **{name: said.get(name) for name in ("project", "kind", "model", "job_id", "fire_at")},
        grew=None,
    )


def _amounts(row: Row[Any]) -> dict[str, Any]:
    said = row._mapping  # noqa: SLF001
    counts = {name: int(said[name]) for name in ("jobs", "calls", *money.COUNTED) if name != "seconds"}
    costs = {name: money.shown(int(said[name])) for name in ("settled", "unknown", "reserved")}
    return counts | costs | {"seconds": float(said["seconds"])}


# The field of a line that a group is in.
_FIELDS = {
    **dict.fromkeys(PERIODS, "begins_on"),
    "batch": "batch_id",
    "schedule": "schedule_id",
    "run": "job_id",
}
_SUMS = tuple(
    func.coalesce(func.sum(getattr(UsageSum, name)), 0).label(name)
    for name in ("jobs", "calls", "settled", "unknown", "reserved", *money.COUNTED)
)
