"""What the API takes: bodies and filters, as pydantic models that name every wrong field."""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Mapping
from datetime import MAXYEAR, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, LiteralString, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticCustomError

from worker import catalog
from worker.egress import transports
from worker.jobs import bulk, reading, review, usage
from worker.keys import MOST_KEPT
from worker.kinds import OFFERED, Kind
from worker.kinds.fields import SEED_LIMIT, Filled, Line, Text, no
from worker.money import MICROS
from worker.moves.bulk import AGAIN
from worker.schedules import clock
from worker.schedules.plan import VARIABLES
from worker.states import State
from worker.webhooks import JOB_EVENTS, endpoints, registry

REF = "#/components/schemas/{model}"
METADATA_PREFIX = "metadata."
_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_KEYS, _KEY_LENGTH, _VALUE_LENGTH = 16, 64, 512
_TEMPLATE = (
    "a job as POST /v1/jobs takes it; its strings may hold variables, told from the fire time in the schedule's zone: "
    + "; ".join(f"{{{{{name}}}}} {meaning}" for name, meaning in VARIABLES.items())
    + ". {{{{ stands for two braces."
)


_TYPES = sorted(endpoints.EVENTS | endpoints.ALL)


def _known_event(name: str) -> str:
    if name not in JOB_EVENTS:
        raise no("not_allowed", f"must be one of {', '.join(sorted(JOB_EVENTS))}")
    return name


def _known_type(name: str) -> str:
    if name not in _TYPES:
        raise no("not_allowed", f"must be one of {', '.join(_TYPES)}")
    return name


def _known_state(name: str) -> str:
    if name not in list(State):
        raise no("not_allowed", f"must be one of {', '.join(State)}")
    return name


def _known_end(name: str) -> str:
    if name not in AGAIN:
        raise no("not_allowed", f"must be one of {', '.join(sorted(AGAIN))}: only these are made again")
    return name


def _no_filter(name: str, code: LiteralString, message: str) -> PydanticCustomError:
    return PydanticCustomError(code, "{message}", {"message": message, "at": name[:80]})


def _id(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return uuid.UUID(value)
    except ValueError:
        raise no("bad_id", "must be an id, a UUID") from None


def apart(value: Any) -> Any:
    """`state=queued,running` and `state=queued&state=running` are the same; so are a word and a list in a body."""
    value = [value] if isinstance(value, str) else value
    return [part for item in value for part in str(item).split(",")] if isinstance(value, list) else value


def _called(url: str | None, info: ValidationInfo) -> str | None:
    fault = transports.check_url(url, info.context) if url is not None and info.context else None
    if fault is not None:
        raise no("url_not_allowed", fault.message)
    return url


def _moment(value: Any) -> Any:
    """JSON has no times: one is a text. Years that other calendars or Postgres do not have are none."""
    if not isinstance(value, str):
        return value
    try:
        at = datetime.fromisoformat(value[:40])
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise no("bad_time", "must be a time as RFC 3339 writes it, with its zone: 2026-12-01T06:00:00Z")
    if not 1 < at.year < MAXYEAR:
        raise no("bad_time", "must be of a year between 2 and 9998")
    return at


def _amount(value: Any) -> Any:
    """Micro-CNY."""
    if not isinstance(value, str) or _AMOUNT.fullmatch(value) is None:
        raise no("bad_amount", "must be an amount in CNY, with six decimals at most, like 7.00")
    return int(Decimal(value) * MICROS)


# Written as text, since JSON's numbers are binary fractions to many.
Money = Annotated[
    int, BeforeValidator(_amount), WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,6})?$"})
]
# JSON has neither ids nor times, so that strictly read there would be none
Id = Annotated[uuid.UUID, BeforeValidator(_id)]
Time = Annotated[AwareDatetime, BeforeValidator(_moment)]
Key = Annotated[str, Field(min_length=1, max_length=_KEY_LENGTH)]
Value = Annotated[str, Field(max_length=_VALUE_LENGTH)]
EventName = Annotated[str, AfterValidator(_known_event), Field(json_schema_extra={"enum": sorted(JOB_EVENTS)})]
EventType = Annotated[str, AfterValidator(_known_type), Field(json_schema_extra={"enum": _TYPES})]
EndName = Annotated[Text, AfterValidator(_known_end), Field(json_schema_extra={"enum": sorted(AGAIN)})]
StateName = Annotated[Text, AfterValidator(_known_state), Field(json_schema_extra={"enum": list(State)})]


class JobForm(BaseModel):
    """A job to submit, of any kind. What the kind takes as `input` is checked with the model that is named."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(description="what to make")
    model: str | None = Field(
        None,
        description="the provider's id of a model, or an alias, as GET /v1/models lists them; some kinds have one",
        examples=["wan2.5-t2v-preview"],
    )
    input: dict[str, Any] = Field(
        description="what the kind takes; GET /v1/models says which fields and values each model takes"
    )
    metadata: dict[Key, Value] = Field(
        default_factory=dict,
        max_length=_KEYS,
        description=f"yours, to find the job by; {_KEYS} keys of {_KEY_LENGTH} characters, values of {_VALUE_LENGTH}",
        examples=[{"sku": "A17"}],
    )
    custom_id: Line | None = Field(None, min_length=1, max_length=128, description="your own id", examples=["row-17"])
    priority: Literal["high", "normal", "low"] = Field("normal", description="among this project's jobs")
    webhook_url: str | None = Field(
        None, max_length=2048, description="is called when the job ends", examples=["https://example.com/hooks/noria"]
    )
    webhook_events: list[EventName] | None = Field(
        None,
        max_length=len(JOB_EVENTS),
        description="the events it is called for; null: those that end the job, and that it awaits a review",
    )
    review: Literal["required"] | None = Field(
        None, description="required: its outputs wait until a person approves or rejects them"
    )
    not_after: Time | None = Field(
        None,
        description="RFC 3339; what has not been sent to the provider by then ends unpaid",
        examples=["2026-12-01T06:00:00Z"],
    )
    cache_days: int | None = Field(
        None,
        ge=0,
        le=366,
        description="an equal call's answer of the last so many days will do; 0: none; null: as the project says",
    )

    @field_validator("webhook_url")
    @classmethod
    def _may_be_called(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _called(value, info)


class JobDefaults(JobForm):
    """Parts of a job's body, for what a row leaves out; of `input` and `metadata` field by field."""

    kind: str | None = Field(None, description="what to make")  # type: ignore[assignment]
    input: dict[str, Any] = Field(default_factory=dict, description="fields of the kind's input")
    custom_id: None = Field(None, exclude=True, description="of no use here: it tells rows apart")


class BatchForm(BaseModel):
    """How the rows of a batch are to be taken."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Line, Field(min_length=1, max_length=200)] | None = Field(
        None, description="by default the file's", examples=["spring"]
    )
    defaults: JobDefaults = Field(default_factory=JobDefaults, description="for what a row leaves out")
    files: dict[Text, Text] = Field(
        default_factory=dict,
        max_length=50_000,
        description="what rows call a file, in the place of a link or a document's key, and its key in the bucket",
        examples=[{"cat.png": "0198c0de-0000-7000-8000-000000000000/files/2026/11/27/cat.png"}],
    )
    repeat: Annotated[Text, Field(max_length=200)] = Field(
        "", description="rows that were made before are made once more under another text", examples=["again, in red"]
    )
    webhook_url: str | None = Field(None, max_length=2048, description="is told `batch.completed`")

    @field_validator("webhook_url")
    @classmethod
    def _may_be_called(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _called(value, info)


class BatchCreate(BatchForm):
    """A batch whose rows come as JSON."""

    items: list[dict[str, Any]] = Field(description="jobs, each as POST /v1/jobs takes it but for its defaults")


class ResolveCreate(BaseModel):
    """What a person decides about a job whose outcome nobody can prove."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["adopt", "requeue", "give_up"] = Field(
        description="adopt: the task is the job's; requeue: its call made nothing, make it again; give_up: it failed",
        examples=["requeue"],
    )
    task_id: str | None = Field(None, min_length=1, max_length=128, description="with adopt: the provider's task")
    billed: Literal["yes", "no"] | None = Field(None, description="with give_up: whether the call cost money")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.action == "adopt" and self.task_id is None:
            raise no("required", "adopt needs the task_id")
        return self


class ApproveCreate(BaseModel):
    """What a person says of outputs that are as they should be."""

    model_config = ConfigDict(extra="forbid")

    comment: Text | None = Field(None, max_length=review.COMMENT_LENGTH, examples=["the light is right"])


class KeyCreate(BaseModel):
    """An API key to make."""

    model_config = ConfigDict(extra="forbid")

    name: Line = Field("", max_length=64, description="what it is for, to tell it from others", examples=["ci"])
    scope: Literal["read", "submit", "admin"] = Field("submit", description="submit includes read, admin submit")
    expires_at: Time | None = Field(
        None, description="when it stops working; not after the key that makes it, as which it ends if nothing is said"
    )


class KeyRotate(BaseModel):
    """How an API key is rotated."""

    model_config = ConfigDict(extra="forbid")

    keep_hours: int = Field(24, ge=0, le=MOST_KEPT, description="how long the old key works beside the new one")


class Reroll(BaseModel):
    """What is to be different in another take; nothing: another seed, where the model takes one."""

    model_config = ConfigDict(extra="forbid")

    seed: int | None = Field(None, ge=0, le=SEED_LIMIT, description="another seed", examples=[7])
    prompt: Filled | None = Field(None, description="another prompt", examples=["a kitten runs, seen from behind"])


class RejectCreate(BaseModel):
    """Why outputs are not as they should be, and whether another take is to be made."""

    model_config = ConfigDict(extra="forbid")

    comment: Filled = Field(max_length=review.COMMENT_LENGTH, examples=["the cat has five legs"])
    reroll: Reroll | None = Field(None, description="makes another take, a job of its own; null: none is made")


class ScheduleCreate(BaseModel):
    """A job for the clock to submit."""

    model_config = ConfigDict(extra="forbid")

    name: Line = Field(min_length=1, max_length=100, description="unique in the project", examples=["nightly"])
    cron: str = Field(
        max_length=200,
        description="minute, hour, day, month, weekday; where clocks change, Debian's rules hold",
        examples=["30 2 * * *"],
    )
    time_zone: str | None = Field(
        None, max_length=64, description="of the tz database; by default the project's", examples=["Asia/Shanghai"]
    )
    template: dict[str, Any] = Field(description=_TEMPLATE, examples=[{"kind": "text-to-video"}])
    overlap: Literal["skip", "queue", "cancel"] = Field(
        "skip", description="what happens at a fire time while the job of the run before has not ended"
    )
    missed: Literal["run_once", "skip"] = Field(
        "run_once", description="what becomes of fire times at which no clock ran: run the latest once, or none"
    )


class BudgetUpdate(BaseModel):
    """What of a budget is to be different; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    limit: Money | None = Field(None, description="CNY", examples=["7.00"])
    over: Literal["refuse", "hold"] | None = Field(
        None, description="what happens to a job that it has no room for: refused (402), or held until there is room"
    )
    time_zone: Text | None = Field(
        None, max_length=64, description="of the tz database, in which its days begin", examples=["Asia/Shanghai"]
    )

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, value: str | None) -> str | None:
        fault = clock.zone_fault(value) if value is not None else None
        if fault is not None:
            raise no("unknown_zone", fault.message)
        return value


class BudgetCreate(BudgetUpdate):
    """How much a project may spend."""

    period: Literal["day", "month", "total"] = Field(description="in a day, in a month, or in all", examples=["day"])
    limit: Money = Field(description="CNY", examples=["7.00"])
    over: Literal["refuse", "hold"] = Field(
        "refuse",
        description="what happens to a job that it has no room for: refused (402), or held until there is room",
    )


class LedgerQuery(BaseModel):
    """Which lines of the ledger to list."""

    model_config = ConfigDict(extra="forbid")

    job: uuid.UUID | None = Field(None, description="a job's id")
    since: AwareDatetime | None = Field(None, description="RFC 3339, inclusive: when it was booked")
    until: AwareDatetime | None = Field(None, description="RFC 3339, exclusive")
    cursor: int | None = Field(None, ge=0, lt=2**63, description="the next_cursor of the page before")
    limit: int = Field(20, ge=1, le=100, description="lines on a page")


class EndpointCreate(BaseModel):
    """A receiver of events of the project's jobs and batches."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2048, description="is called", examples=["https://example.com/hooks/noria"])
    events: list[EventType] | None = Field(
        None,
        min_length=1,
        max_length=len(_TYPES),
        description="the types that it is told of, `job.*` for all of jobs; null: how jobs and batches end, that a job"
        " awaits a review, and that an endpoint is disabled",
        examples=[["job.*", "batch.completed"]],
    )
    description: Annotated[Line, Field(max_length=200)] = Field("", description="yours", examples=["the shop"])

    @field_validator("url")
    @classmethod
    def _may_be_called(cls, value: str, info: ValidationInfo) -> str:
        return _called(value, info) or ""


class EndpointUpdate(BaseModel):
    """What of an endpoint to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(None, max_length=2048, description="what waits still goes to where it was to go")
    events: list[EventType] | None = Field(
        None, min_length=1, max_length=len(_TYPES), description="instead of those before; null: the default ones"
    )
    description: Annotated[Line, Field(max_length=200)] | None = Field(None, description="yours")
    disabled: bool | None = Field(None, description="false: enabled again", examples=[False])

    @field_validator("url")
    @classmethod
    def _may_be_called(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _called(value, info)


class RedeliverCreate(BaseModel):
    """Which deliveries of an endpoint to send again: these, or those of events since then, or of a status."""

    model_config = ConfigDict(extra="forbid")

    ids: list[Id] | None = Field(None, min_length=1, max_length=registry.REDELIVERED, description="of deliveries")
    since: Time | None = Field(None, description="RFC 3339, of the event", examples=["2026-11-27T06:00:00Z"])
    status: Literal["delivered", "exhausted"] | None = Field(
        None, description="exhausted: those that were given up", examples=["exhausted"]
    )
    cursor: Id | None = Field(None, description="the next_cursor of the call before")

    @model_validator(mode="after")
    def _narrows(self) -> Self:
        """To send again everything that ever was sent is nobody's wish."""
        if (self.ids is None) == (self.since is None and self.status is None):
            raise no("ids_or_filter", "name the deliveries by either ids, or since and status")
        return self


class ByMetadata(BaseModel):
    """Filters of a list, and `metadata.KEY=value`."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _no_other(self) -> Self:
        """A misspelt filter would list everything."""
        for name, value in (self.model_extra or {}).items():
            if not name.startswith(METADATA_PREFIX):
                near = difflib.get_close_matches(name[:40], type(self).model_fields, n=1)
                advice = f"; did you mean {near[0]}?" if near else ""
                raise _no_filter(name, "unknown_filter", f"is not a filter{advice}")
            if not isinstance(value, str) or "\0" in name + value:
                raise _no_filter(name, "bad_text", "must be one value that can be stored")
        return self

    @property
    def by_metadata(self) -> dict[str, str]:
        """The values that are asked for, by their keys."""
        extra: Mapping[str, str] = self.model_extra or {}
        return {name.removeprefix(METADATA_PREFIX): value for name, value in extra.items()}


class JobQuery(ByMetadata):
    """Which jobs to list; filters narrow together. `metadata.KEY=value` finds by metadata."""

    state: Annotated[list[StateName], BeforeValidator(apart)] = Field([], description="one or several states")
    kind: Text | None = Field(None, description="what the job makes")
    model: Text | None = Field(None, description="a model's id or alias")
    batch: uuid.UUID | None = Field(None, description="the id of a batch")
    schedule: uuid.UUID | None = Field(None, description="the id of a schedule, also of one that was deleted")
    custom_id: Text | None = Field(None, description="your own id")
    created_after: AwareDatetime | None = Field(None, description="RFC 3339, exclusive")
    created_before: AwareDatetime | None = Field(None, description="RFC 3339, exclusive")
    q: Annotated[Text, Field(max_length=200)] | None = Field(
        None, description="a part of the prompt or custom_id; a page looks through 10,000 jobs"
    )
    cursor: uuid.UUID | None = Field(None, description="the next_cursor of the page before")
    limit: int = Field(20, ge=1, le=100, description="jobs on a page")

    def filter(self, model: str | None) -> reading.Filter:
        """The filter as the engine takes it; `model` is the catalog's id of the model."""
        return reading.Filter(
            states=tuple(self.state),
            model=model,
            metadata=self.by_metadata,
            before=self.cursor,
            schedule=self.schedule,
            **self.model_dump(include={"kind", "custom_id", "created_after", "created_before", "q", "batch"}),
        )


class UsageQuery(ByMetadata):
    """Which usage, in which groups; filters narrow together, `metadata.KEY=value` by the project's usage keys."""

    since: date | None = Field(None, description="the first day, in the project's zone; 30 days with today")
    until: date | None = Field(None, description="the last day; today")
    group_by: Annotated[list[Text], Field(max_length=6), BeforeValidator(apart)] = Field(
        ["day"], description=f"{', '.join(usage.NAMES)}, and metadata.KEY; several with commas", examples=["day,model"]
    )
    kind: Text | None = Field(None, description="what the jobs make")
    model: Text | None = Field(None, description="a model's id or alias")
    batch: uuid.UUID | None = Field(None, description="the id of a batch")
    schedule: uuid.UUID | None = Field(None, description="the id of a schedule")
    limit: int = Field(1000, ge=1, le=usage.MOST, description="groups")


class BulkFilter(BaseModel):
    """Which jobs, as GET /v1/jobs finds them; conditions narrow together, and there must be one."""

    model_config = ConfigDict(extra="forbid")

    state: Annotated[list[StateName], BeforeValidator(apart)] = Field(
        [], description="one or several states; none: all for which the action may do something"
    )
    kind: Text | None = Field(None, description="what the job makes")
    model: Text | None = Field(None, description="a model's id or alias")
    batch: Id | None = Field(None, description="the id of a batch")
    custom_id: Text | None = Field(None, description="your own id")
    metadata: dict[Key, Value] = Field(default_factory=dict, max_length=_KEYS, description="all of these")
    created_after: Time | None = Field(None, description="RFC 3339, exclusive")
    created_before: Time | None = Field(None, description="RFC 3339, exclusive")

    @model_validator(mode="after")
    def _narrows(self) -> Self:
        """A filter that was meant to say something, and does not, would take all jobs."""
        if not any(self.model_dump().values()):
            raise no("empty_filter", "must have a condition: without one it would be all jobs of the project")
        return self


class BulkCreate(BaseModel):
    """Many jobs to cancel, or to make again: by their ids, or by a filter."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["cancel", "retry"] = Field(
        description="cancel, as POST …/cancel does; retry what failed, expired or was canceled", examples=["cancel"]
    )
    ids: list[Id] | None = Field(None, min_length=1, max_length=bulk.MOST, description="of jobs")
    filter: BulkFilter | None = Field(None, description="instead of ids")
    cursor: Id | None = Field(None, description="with a filter: the next_cursor of the call before")
    dry_run: bool = Field(False, description="count and price only")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise no("ids_or_filter", "name the jobs by either ids or a filter")
        return self

    def wanted(self, model: str | None) -> reading.Filter:
        """The filter as the engine takes it; `model` is the catalog's id of the model."""
        assert self.filter is not None, "the jobs are named by their ids"
        said = self.filter.model_dump(exclude={"state", "model"})
        return reading.Filter(states=tuple(self.filter.state), model=model, before=self.cursor, **said)


class ChildQuery(BaseModel):
    """Which of a job's children to list."""

    model_config = ConfigDict(extra="forbid")

    state: Annotated[list[StateName], BeforeValidator(apart)] = Field([], description="one or several states")
    cursor: str | None = Field(
        None, pattern=r"^[0-9]{1,4}-[0-9]{1,9}$", description="the next_cursor of the page before"
    )
    limit: int = Field(50, ge=1, le=100, description="children on a page")

    @property
    def after(self) -> tuple[int, int]:
        """The (round, place) that was listed last."""
        number, _, place = (self.cursor or "0-0").partition("-")
        return int(number), int(place)


def job_schema() -> dict[str, Any]:
    """The JSON schema of a submission: one of the kinds' forms, told apart by `kind`; with `$defs`.

    It is shown and not validated with. Where the kind is unknown, pydantic would name no other fault; it would put the
    kind into every pointer; and the kind's own check, with the defaults and rules of the model, reads the input anyway.
    """
    forms = {kind.name: _of_kind(kind) for kind in OFFERED.values()}
    _, made = models_json_schema([(form, "validation") for form in forms.values()], ref_template=REF)
    mapping = {name: REF.format(model=form.__name__) for name, form in forms.items()}
    return {
        "title": "JobCreate",
        "description": "A job to submit.",
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "kind", "mapping": mapping},
        **made,
    }


def update_schema(create: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a change, by that of what is changed: nothing is required, and nothing is filled in."""
    fields = {name: {**field} for name, field in create["properties"].items()}
    for field in fields.values():
        field.pop("default", None)
    about = "The fields to change; the others stay. A template is replaced as a whole."
    return {
        "title": "ScheduleUpdate",
        "description": about,
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
    }


def _of_kind(kind: Kind) -> type[JobForm]:
    """The form of one kind's jobs."""
    types = {"kind": Literal[kind.name], "input": kind.input}
    fields: Any = {name: (of, Field(description=JobForm.model_fields[name].description)) for name, of in types.items()}
    made: type[JobForm] = create_model(
        f"{kind.input.__name__}Job", __base__=JobForm, __doc__=f"A job to submit: {kind.name}.", **fields
    )
    return made


def example(kind: str) -> dict[str, Any]:
    """A body that can be sent as it is: the kind's first model, and the fields that it needs, or its first field."""
    model = next(model for model in catalog.shipped().models(kind) if not model.retired)
    form = OFFERED[kind].input
    must: set[str] = {*model.requires, *getattr(form, "example_fields", ())}
    fields = {name: field for name, field in form.model_fields.items() if field.examples}
    needed = [name for name, field in fields.items() if field.is_required() or name in must]
    wanted = {name: (fields[name].examples or [None])[0] for name in needed or list(fields)[:1]}
    return {"kind": kind, "model": model.id, "input": wanted}


def body(name: str, required: bool = True, **more: Any) -> dict[str, Any]:
    """The request body, for OpenAPI, of a route that reads it itself, by the name of its form."""
    content = {"application/json": {"schema": {"$ref": REF.format(model=name)}, **more}}
    return {"requestBody": {"required": required, "content": content}}


def job_body() -> dict[str, Any]:
    """The request body of a submission, with an example for each kind."""
    return body("JobCreate", examples={kind: {"summary": kind, "value": example(kind)} for kind in OFFERED})


def file_body() -> dict[str, Any]:
    """The request body of the route that takes a file."""
    file = {"type": "string", "format": "binary", "description": "the file, with its name"}
    form = {"type": "object", "properties": {"file": file}, "required": ["file"], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def batch_body() -> dict[str, Any]:
    """The request body of the route that takes a batch: a file and its options, or JSON."""
    file = {"type": "string", "format": "binary", "description": "CSV, JSONL or JSON, with its name; 64 MiB"}
    options = {"type": "string", "description": "a JSON object: BatchForm", "examples": ['{"repeat": "again"}']}
    form = {
        "type": "object",
        "properties": {"file": file, "options": options},
        "required": ["file"],
        "additionalProperties": False,
    }
    described = body("BatchCreate")
    described["requestBody"]["content"]["multipart/form-data"] = {"schema": form}
    return described
