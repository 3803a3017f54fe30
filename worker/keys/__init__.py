"""API keys, and the projects (tenants) that they open.

A key is shown once, when it is made, and kept as its SHA-256: it holds 256 random bits, so no slow hash is needed. A
key without a project is an operator's. A key ends at `revoked_at`, which may lie ahead: an old key then works beside
its successor for a while.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import webhooks
from worker.claims import NOW, Now
from worker.errors import Conflict, Fault, InvalidInput, NotFound
from worker.schedules import clock
from worker.tables import ApiKey, Project

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEY = re.compile(r"noria_[A-Za-z0-9_-]{43}")
_PREFIX = 14  # characters of a key that are kept to identify it: `noria_` and 48 of its 256 bits
_NOTED = timedelta(minutes=1)  # between two notes of a key's use: most requests then write nothing


@dataclass(frozen=True)
class Caller:
    """Who makes a request: a key, its project (None: an operator), and the request's time by Postgres."""

    key_id: uuid.UUID
    project: Project | None
    now: datetime


def create_project(connection: Connection, name: str, weight: int = 1, time_zone: str = "Asia/Shanghai") -> Project:
    """A new project; raises InvalidInput for a wrong name, weight or zone, Conflict when the name is taken."""
    faults = [fault for fault in (_name_fault(name), *_faults(weight, time_zone)) if fault]
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


def set_project(
    connection: Connection,
    name: str,
    weight: int | None = None,
    time_zone: str | None = None,
    max_in_flight: int | None = None,
) -> Project:
    """The project with another weight (1 to 1000), zone, or most tasks at once (0: no limit); None changes nothing.

    Raises as `create_project`.
    """
    faults = [fault for fault in _faults(weight, time_zone) if fault]
    if faults:
        raise InvalidInput(faults)
    given = {"weight": weight, "time_zone": time_zone, "max_in_flight": max_in_flight}
    columns = {column: value for column, value in given.items() if value is not None}
    return _change(connection, name, columns | ({"max_in_flight": None} if max_in_flight == 0 else {}))


def rotate_secret(connection: Connection, name: str) -> Project:
    """The project with a new `webhook_secret`, which does not verify what the old one signed."""
    return _change(connection, name, {"webhook_secret": webhooks.new_secret()})


def new_key(
    connection: Connection, owner: Project | None, name: str = "", until: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key of the project, or of an operator, and its plain text, which cannot be read again.

    `until` is when it stops working; None: never.
    """
    plain = "noria_" + secrets.token_urlsafe(32)
    row = {
        "project_id": owner.id if owner else None,
        "name": name,
        "prefix": plain[:_PREFIX],
        "hash": digest(plain),
        "revoked_at": until,
    }
    return ApiKey.of(connection.execute(_NEW_KEY, row).mappings().one()), plain


def keys(connection: Connection, owner: Project | None = None) -> list[ApiKey]:
    """The project's keys, or all keys without a project; the oldest first, revoked ones too."""
    statement = select(*ApiKey.__table__.c).order_by(ApiKey.id)
    if owner is not None:
        statement = statement.where(ApiKey.project_id == owner.id)
    return [ApiKey.of(row) for row in connection.execute(statement).mappings()]


def revoke(connection: Connection, which: str, at: Now = NOW) -> ApiKey:
    """Ends the key of that id or prefix at `at`; one that ends earlier stays as it is.

    Raises NotFound, and Conflict where several keys have that prefix.
    """
    named = ApiKey.prefix == which
    if (key_id := _id(which)) is not None:
        named = ApiKey.id == key_id
    found = connection.execute(select(ApiKey.id).where(named)).scalars().all()
    if len(found) != 1:
        raise Conflict("ambiguous", "several keys begin so: give the id") if found else NotFound("no such key")
    ended = update(ApiKey).where(ApiKey.id == found[0], or_(ApiKey.revoked_at.is_(None), ApiKey.revoked_at > at))
    connection.execute(ended.values(revoked_at=at))
    row = connection.execute(select(*ApiKey.__table__.c).where(ApiKey.id == found[0])).mappings().one()
    return ApiKey.of(row)


def digest(plain: str) -> bytes:
    """What is kept of a key: its SHA-256."""
    return hashlib.sha256(plain.encode()).digest()


def authenticate(connection: Connection, plain: str) -> Caller | None:
    """The caller with that key; None when there is no such key, or it has ended. Its use is noted, once a minute."""
    if not _KEY.fullmatch(plain):
        return None
    row = connection.execute(_HOLDER, {"hash": digest(plain)}).mappings().one_or_none()
    if row is None:
        return None
    if row["last_used_at"] is None or row["last_used_at"] < row["now"] - _NOTED:
        connection.execute(_NOTE_USE, {"key_id": row["key_id"], "now": row["now"], "before": row["now"] - _NOTED})
    return Caller(row["key_id"], _project_of(row), row["now"])


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


def _faults(weight: int | None, time_zone: str | None) -> list[Fault]:
    faults = []
    if weight is not None and not 1 <= weight <= 1000:
        faults.append(Fault("/weight", "out_of_range", "must be a number from 1 to 1000"))
    if time_zone is not None and (fault := clock.zone_fault(time_zone)):
        faults.append(fault)
    return faults


def _id(which: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(which)
    except ValueError:
        return None


# A new project, unless the name is taken.
_CREATE = upsert(Project).on_conflict_do_nothing(index_elements=[Project.name]).returning(*Project.__table__.c)
# The project of a name.
_NAMED = select(*Project.__table__.c).where(Project.name == bindparam("name"))
# Every project.
_PROJECTS = select(*Project.__table__.c).order_by(Project.name)
# A new key.
_NEW_KEY = insert(ApiKey).returning(*ApiKey.__table__.c)
_PROJECT = {column.name: column.label(f"project_{column.name}") for column in Project.__table__.c}
# A key that works and its project. Built once: building it takes as long as running it, and every request needs it.
_HOLDER = (
    select(ApiKey.id.label("key_id"), ApiKey.last_used_at, NOW.label("now"), *_PROJECT.values())
    .outerjoin(Project, Project.id == ApiKey.project_id)
    .where(ApiKey.hash == bindparam("hash"), or_(ApiKey.revoked_at.is_(None), ApiKey.revoked_at > NOW))
)
# A key's use, unless another request has noted it just before.
_NOTE_USE = (
    update(ApiKey)
    .where(ApiKey.id == bindparam("key_id"))
    .where(or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < bindparam("before")))
    .values(last_used_at=bindparam("now"))
)
