"""API keys, and the projects (tenants) that they open.

A key is shown once, when it is made, and kept as its SHA-256: it holds 256 random bits, so no slow hash is needed. A
key without a project is an operator's. A key ends when it is revoked, or at `expires_at`. A rotated key works for a
while beside the one that replaces it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import retention, webhooks
from worker.claims import NOW
from worker.document import Answer, Moment
from worker.errors import Conflict, Fault, InvalidInput, KeyExpired, NotFound
from worker.lanes import slots
from worker.schedules import clock
from worker.tables import ApiKey, Project
from worker.text import moment

MOST_CACHED = 366  # days that an answer of the result cache may be old
MOST_USAGE_KEYS = 3  # each set of their values is a row of the roll-up, every day
_USAGE_KEY = 64  # characters, as keys of metadata have them
MOST_KEPT = 720  # hours that a rotated key may work beside its successor
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PREFIX = 14  # characters of a key that are kept to identify it: `noria_` and 48 of its 256 bits
_NOTHING: dict[str, Any] = {"max_in_flight": 0, "account": ""}  # as it is said that a project has none
_NOTED = timedelta(minutes=1)  # between two notes of a key's use: most requests then write nothing


class Scope(StrEnum):
    """What a project's key may do, each scope more than the one before."""

    READ = "read"  # look
    SUBMIT = "submit"  # make and change jobs, batches, files, schedules, reviews
    ADMIN = "admin"  # what sets the project up, too: its keys, budgets and webhook endpoints

    def includes(self, other: Scope) -> bool:
        """Whether a key of this scope may do what the other allows."""
        widening = list(Scope)
        return widening.index(self) >= widening.index(other)


@dataclass(frozen=True)
class Caller:
    """Who makes a request: a key, its project (None: an operator), and the request's time by Postgres.

    `ends_at` is when the key stops working; None: not by itself.
    """

    key_id: uuid.UUID
    project: Project | None
    now: datetime
    scope: Scope
    ends_at: datetime | None


class KeyDocument(Answer):
    """An API key, as it is listed: what it is for, what it may do, and when it ends."""

    object: Literal["key"] = "key"
    id: uuid.UUID
    prefix: str = Field(description="the key's first characters", examples=["noria_Zm9vYmFy"])
    name: str
    scope: Scope = Field(description="submit includes read, admin includes submit")
    created_at: Moment
    last_used_at: Moment | None = Field(description="to the minute; null: never")
    expires_at: Moment | None = Field(description="when it stops working; null: not by itself")
    revoked_at: Moment | None
    replaced_by: uuid.UUID | None = Field(description="the key that was made when this one was rotated")


class ProjectDocument(Answer):
    """A project: its share beside others, and what is set up for all of its jobs."""

    object: Literal["project"] = "project"
    id: uuid.UUID
    name: str
    weight: int = Field(description="its share of each model's slots, beside other projects' weights")
    time_zone: str = Field(description="where its days begin")
    max_in_flight: int | None = Field(description="of its tasks at the provider at once; null: no limit of its own")
    paused_at: Moment | None = Field(description="since when nothing new is sent for it; null: it is not paused")
    cache_days: int = Field(
        description="how old an answer of the result cache may be, where a job does not say; 0: none"
    )
    account: str | None = Field(description="the only account of the provider's that its jobs go to; null: any")
    created_at: Moment
    usage_keys: list[str] = Field(description="of metadata, by which GET /v1/usage can be grouped")
    retention: dict[str, int] = Field(description="days, by what is kept for so long; the rest is kept for ever")


def create_project(connection: Connection, name: str, weight: int = 1, time_zone: str = "Asia/Shanghai") -> Project:
    """A new project; raises InvalidInput for a wrong name, weight or zone, Conflict when the name is taken."""
    faults = [fault for fault in (_name_fault(name), *_faults(connection, weight, time_zone)) if fault]
    if faults:
        raise InvalidInput(faults)
    row = {"name": name, "weight": weight, "time_zone": time_zone, "webhook_secret": webhooks.new_secret()}
    made = connection.execute(_CREATE, row).mappings().one_or_none()
    if made is None:
        raise Conflict("project_exists", f"there is a project {name} already")
    return Project.of(made)


def project(connection: Connection, name: str) -> Project:
    """The project of that name; raises NotFound."""
    row = connection.execute(_NAMED, {"name": name}).mappings().one_or_none() if _NAME.fullmatch(name) else None
    if row is None:
        raise NotFound("no such project")
    return Project.of(row)


def projects(connection: Connection) -> list[Project]:
    """Every project, by name."""
    return [Project.of(row) for row in connection.execute(_PROJECTS).mappings()]


def set_project(connection: Connection, name: str, **changes: Any) -> Project:
    """The project with these columns changed; None changes nothing, `max_in_flight` 0 is no limit, `account` "" any.

    Raises as `create_project`.
    """
    columns = {column: value for column, value in changes.items() if value is not None}
    faults = [fault for fault in _faults(connection, columns.get("weight"), columns.get("time_zone")) if fault]
    if not 0 <= columns.get("cache_days", 0) <= MOST_CACHED:
        faults.append(Fault("/cache_days", "out_of_range", f"must be a number from 0 to {MOST_CACHED}"))
    account = columns.get("account")
    if account and account not in (known := slots.known_accounts(connection)):
        message = f"is none of the accounts that are set up: {', '.join(known) or 'there is none yet'}"
        faults.append(Fault("/account", "unknown_account", message))
    if faults:
        raise InvalidInput(faults)
    columns |= {name: None for name, nothing in _NOTHING.items() if columns.get(name) == nothing}
    return _change(connection, name, columns)


def set_retention(connection: Connection, name: str, days: Mapping[str, int | None]) -> Project:
    """The project with these days, by what is kept for so long; None: for ever. Raises InvalidInput, NotFound."""
    faults = [fault for what, count in days.items() if (fault := _retention_fault(what, count))]
    merged = {**project(connection, name).retention, **days}
    kept = {what: count for what, count in merged.items() if count is not None}
    if faults := faults or list(_order_faults(kept)):
        raise InvalidInput(faults)
    return _change(connection, name, {"retention": kept})


def set_usage_keys(connection: Connection, name: str, keys: Sequence[str]) -> Project:
    """The project whose usage is broken down by these keys of metadata from now on; raises InvalidInput, NotFound."""
    if len(keys) > MOST_USAGE_KEYS or not all(0 < len(key) <= _USAGE_KEY for key in keys):
        message = f"up to {MOST_USAGE_KEYS} keys of metadata, of up to {_USAGE_KEY} characters"
        raise InvalidInput([Fault("/usage_keys", "bad_usage_keys", message)])
    return _change(connection, name, {"usage_keys": sorted(set(keys))})


def rotate_secret(connection: Connection, name: str) -> Project:
    """The project with a new `webhook_secret`, which does not verify what the old one signed."""
    return _change(connection, name, {"webhook_secret": webhooks.new_secret()})


def new_key(
    connection: Connection,
    owner: Project | None,
    name: str = "",
    scope: Scope = Scope.SUBMIT,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key of the project, or of an operator, and its plain text, which cannot be read again.

    `expires_at` is when it stops working; None: never. An operator's key has no narrower scope.
    """
    wanted = scope if owner else Scope.ADMIN
    row = {"project_id": owner.id if owner else None, "name": name, "scope": wanted, "expires_at": expires_at}
    return _made(connection, row)


def keys(connection: Connection, owner: Project | None = None) -> list[ApiKey]:
    """The project's keys, or all keys without a project; the oldest first, ended ones too."""
    statement = select(*ApiKey.__table__.c).order_by(ApiKey.id)
    if owner is not None:
        statement = statement.where(ApiKey.project_id == owner.id)
    return [ApiKey.of(row) for row in connection.execute(statement).mappings()]


def page(connection: Connection, project_id: uuid.UUID, cursor: uuid.UUID | None, limit: int) -> list[ApiKey]:
    """The project's keys, the newest first, ended ones too; those before the cursor."""
    statement = select(*ApiKey.__table__.c).where(ApiKey.project_id == project_id).order_by(ApiKey.id.desc())
    if cursor is not None:
        statement = statement.where(ApiKey.id < cursor)
    return [ApiKey.of(row) for row in connection.execute(statement.limit(limit)).mappings()]


def one(connection: Connection, project_id: uuid.UUID, key_id: uuid.UUID) -> ApiKey:
    """The project's key; raises NotFound."""
    statement = select(*ApiKey.__table__.c).where(ApiKey.id == key_id, ApiKey.project_id == project_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no key {key_id}")
    return ApiKey.of(row)


def rotatable(connection: Connection, which: str) -> ApiKey:
    """The key of that id or prefix, or the one of that name that works and is not rotated yet; raises as `revoke`."""
    named = (ApiKey.name == which) & ApiKey.replaced_by.is_(None) & _LIVE
    return _found(connection, or_(_is(which), named))


def rotate(
    connection: Connection, key_id: uuid.UUID, keep: timedelta, latest: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key of the same name and scope, and its plain text; the old one ends after `keep`, or earlier.

    The new one works for as long as the old one was made for, but not after `latest`. Raises Conflict for a key that
    has ended, and for one that is rotated already: a repeated request makes no second key, and prolongs nothing.
    """
    row = connection.execute(_LOCKED, {"key_id": key_id}).mappings().one()
    old, now = ApiKey.of(row), row["now"]
    if old.replaced_by is not None:
        raise Conflict("already_rotated", f"this key is replaced by {old.replaced_by} already: rotate that one")
    if any(end is not None and end <= now for end in (old.revoked_at, old.expires_at)):
        raise Conflict("key_ended", "this key has ended: make a new one")
    lasting = now + (old.expires_at - old.created_at) if old.expires_at else None
    ends = [end for end in (lasting, latest) if end is not None]
    kept = {"project_id": old.project_id, "name": old.name, "scope": old.scope}
    made, plain = _made(connection, {**kept, "expires_at": min(ends, default=None)})
    connection.execute(_REPLACE, {"key_id": key_id, "successor": made.id, "until": now + keep})
    return made, plain


def revoke(connection: Connection, which: str) -> ApiKey:
    """Ends the key of that id or prefix; one that has been revoked stays as it is.

    Raises NotFound, and Conflict where several keys are meant.
    """
    found = _found(connection, _is(which))
    connection.execute(_REVOKE, {"key_id": found.id})
    row = connection.execute(select(*ApiKey.__table__.c).where(ApiKey.id == found.id)).mappings().one()
    return ApiKey.of(row)


def digest(plain: str) -> bytes:
    """What is kept of a key: its SHA-256."""
    return hashlib.sha256(plain.encode()).digest()


def authenticate(connection: Connection, key_hash: bytes) -> Caller | None:
    """The caller whose key has that digest; None when there is no such key, or it is revoked.

    The key's use is noted, once a minute. Raises KeyExpired, which only who has the key can learn.
    """
    row = connection.execute(_HOLDER, {"hash": key_hash}).mappings().one_or_none()
    if row is None:
        return None
    if row["expires_at"] is not None and row["expires_at"] <= row["now"]:
        raise KeyExpired(f"this key expired at {moment(row['expires_at'])}")
    if row["last_used_at"] is None or row["last_used_at"] < row["now"] - _NOTED:
        connection.execute(_NOTE_USE, {"key_id": row["key_id"], "now": row["now"], "before": row["now"] - _NOTED})
    return Caller(row["key_id"], _project_of(row), row["now"], Scope(row["scope"]), row["ends_at"])


def spend_link(connection: Connection, key_hash: bytes, made_at: datetime) -> bool:
    """Whether a link to sign in that was made then is unspent; it is spent by this, and with it all older ones."""
    return connection.execute(_SPEND_LINK, {"key_hash": key_hash, "made_at": made_at}).rowcount > 0


def _made(connection: Connection, row: dict[str, Any]) -> tuple[ApiKey, str]:
    plain = "noria_" + secrets.token_urlsafe(32)
    row = {**row, "prefix": plain[:_PREFIX], "hash": digest(plain)}
    return ApiKey.of(connection.execute(_NEW_KEY, row).mappings().one()), plain


def _is(which: str) -> ColumnElement[bool]:
    """Whether a key has that id or prefix."""
    key_id = _id(which)
    return ApiKey.prefix == which if key_id is None else ApiKey.id == key_id


def _found(connection: Connection, meant: ColumnElement[bool]) -> ApiKey:
    found = connection.execute(select(*ApiKey.__table__.c).where(meant)).mappings().all()
    if len(found) != 1:
        raise Conflict("ambiguous", "several keys are called so: give the id") if found else NotFound("no such key")
    return ApiKey.of(found[0])


def _project_of(row: Mapping[Any, Any]) -> Project | None:
    if row["project_id"] is None:
        return None
    return Project.of({name: row[label.name] for name, label in _PROJECT.items()})


def _change(connection: Connection, name: str, columns: dict[str, Any]) -> Project:
    found = project(connection, name)
    if not columns:
        return found
    changed = update(Project).where(Project.id == found.id).values(**columns).returning(*Project.__table__.c)
    return Project.of(connection.execute(changed).mappings().one())


def _name_fault(name: str) -> Fault | None:
    if _NAME.fullmatch(name):
        return None
    message = "must have 1 to 63 lower-case letters, digits and hyphens, and not begin with a hyphen"
    return Fault("/name", "bad_name", message)


def _retention_fault(what: str, days: int | None) -> Fault | None:
    if what not in retention.CLASSES:
        return Fault(f"/retention/{what}", "unknown", f"is none of {', '.join(retention.CLASSES)}")
    if days is not None and not 1 <= days <= retention.MOST_DAYS:
        return Fault(f"/retention/{what}", "out_of_range", f"must be 1 to {retention.MOST_DAYS} days")
    return None


def _order_faults(kept: Mapping[str, int]) -> Iterator[Fault]:
    """What goes in an order that cannot be: rows are the last of a job, and its objects the first."""
    for what, others in retention.AFTER.items():
        for other in others if what in kept else ():
            if kept.get(other, 0) > kept[what]:
                yield Fault(f"/retention/{what}", "out_of_range", f"must be as many days as {other}, which go first")
    if kept.get("rows", retention.LEAST_ROWS) < retention.LEAST_ROWS:
        message = f"must be {retention.LEAST_ROWS} days: an Idempotency-Key is kept so long"
        yield Fault("/retention/rows", "out_of_range", message)
    for what, other in (("rows", "outputs"), ("events", "deliveries")):
        if what in kept and other not in kept:
            yield Fault(f"/retention/{what}", "incomplete", f"wants days for {other} too, which go first")


def _faults(connection: Connection, weight: int | None, time_zone: str | None) -> list[Fault]:
    faults = []
    if weight is not None and not 1 <= weight <= 1000:
        faults.append(Fault("/weight", "out_of_range", "must be a number from 1 to 1000"))
    if time_zone is not None and (fault := clock.zone_fault(time_zone)):
        faults.append(fault)
    elif time_zone is not None and not connection.execute(_IS_ZONE, {"zone": time_zone}).scalar_one():
        # what is booked is counted on a day in that zone, by Postgres: no booking may fail for it
        faults.append(Fault("/time_zone", "unknown_zone", f"{time_zone} is no zone that Postgres knows"))
    return faults


def _id(which: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(which)
    except ValueError:
        return None


# Whether Postgres knows a zone.
_IS_ZONE = text("select exists (select from pg_timezone_names where lower(name) = lower(:zone))")
# A new project, unless the name is taken.
_CREATE = upsert(Project).on_conflict_do_nothing(index_elements=[Project.name]).returning(*Project.__table__.c)
# The project of a name.
_NAMED = select(*Project.__table__.c).where(Project.name == bindparam("name"))
# Every project.
_PROJECTS = select(*Project.__table__.c).order_by(Project.name)
# A key that has not ended.
_LIVE = or_(ApiKey.revoked_at.is_(None), ApiKey.revoked_at > NOW) & or_(
    ApiKey.expires_at.is_(None), ApiKey.expires_at > NOW
)
# A new key.
_NEW_KEY = insert(ApiKey).returning(*ApiKey.__table__.c)
# A key, for whoever rotates it first.
_LOCKED = select(*ApiKey.__table__.c, NOW.label("now")).where(ApiKey.id == bindparam("key_id")).with_for_update()
# A key's end after a while, unless it ends earlier.
_REPLACE = (
    update(ApiKey)
    .where(ApiKey.id == bindparam("key_id"), ApiKey.replaced_by.is_(None))
    .values(replaced_by=bindparam("successor"), expires_at=func.least(ApiKey.expires_at, bindparam("until")))
)
# A key's end now, unless it is revoked already.
_REVOKE = (
    update(ApiKey)
    .where(ApiKey.id == bindparam("key_id"), or_(ApiKey.revoked_at.is_(None), ApiKey.revoked_at > NOW))
    .values(revoked_at=NOW)
)
_PROJECT = {column.name: column.label(f"project_{column.name}") for column in Project.__table__.c}
# A key that is not revoked, and its project. Built once: building it takes as long as running it, and each request
# needs it.
_HOLDER = (
    select(ApiKey.id.label("key_id"), ApiKey.last_used_at, ApiKey.scope, ApiKey.expires_at, NOW.label("now"))
    .add_columns(func.least(ApiKey.revoked_at, ApiKey.expires_at).label("ends_at"), *_PROJECT.values())
    .outerjoin(Project, Project.id == ApiKey.project_id)
    .where(ApiKey.hash == bindparam("hash"), or_(ApiKey.revoked_at.is_(None), ApiKey.revoked_at > NOW))
)
_SPEND_LINK = (
    update(ApiKey)
    .where(ApiKey.hash == bindparam("key_hash"))
    .where(or_(ApiKey.link_used_at.is_(None), ApiKey.link_used_at < bindparam("made_at")))
    .values(link_used_at=NOW)
)
# A key's use, unless another request has noted it just before.
_NOTE_USE = (
    update(ApiKey)
    .where(ApiKey.id == bindparam("key_id"))
    .where(or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < bindparam("before")))
    .values(last_used_at=bindparam("now"))
)
