"""API keys: what each may do, when it ends, and how one replaces another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from serving import CLIP, Served, eventually

from api import callers
from worker import keys
from worker.errors import Conflict, NotFound
from worker.keys import Scope
from worker.tables import ApiKey, Project

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def admin(api: Served) -> Iterator[httpx.Client]:
    with api.http(api.key("spring")) as client:
        yield client


def made(api: Served, name: str = "ci", scope: Scope = Scope.SUBMIT, lasts: timedelta | None = None) -> tuple[str, str]:
    """A key of spring, which works for so long: its id and its plain text."""
    with api.engine.begin() as connection:
        found = [project for project in keys.projects(connection) if project.name == "spring"]
        owner = found[0] if found else keys.create_project(connection, "spring")
        key, plain = keys.new_key(connection, owner, name, scope, now(api) + lasts if lasts else None)
        return str(key.id), plain


def now(api: Served) -> datetime:
    moment: datetime = api.sql("select clock_timestamp() as now")[0]["now"]
    return moment


def row(api: Served, key_id: str) -> ApiKey:
    return ApiKey.of(api.sql("select * from api_keys where id = :id", id=key_id)[0])


def status(api: Served, plain: str, path: str = "/v1/models") -> int:
    return api.http(plain).get(path).status_code


class TestScopes:
    def test_each_scope_includes_the_ones_before_it(self) -> None:
        allowed = {scope: {other for other in Scope if scope.includes(other)} for scope in Scope}

        assert allowed == {
            Scope.READ: {Scope.READ},
            Scope.SUBMIT: {Scope.READ, Scope.SUBMIT},
            Scope.ADMIN: {Scope.READ, Scope.SUBMIT, Scope.ADMIN},
        }

    def test_a_key_of_a_narrower_scope_is_told_which_one_it_takes(self, api: Served) -> None:
        http = api.http(made(api, scope=Scope.READ)[1])

        looked, submitted, looked_again = http.get("/v1/jobs"), http.post("/v1/jobs", json=CLIP), http.get("/v1/jobs")

        assert (looked.status_code, looked_again.status_code) == (200, 200)
        assert (submitted.status_code, submitted.json()["code"]) == (403, "wrong_scope")
        assert submitted.json()["detail"] == "this takes a key of the scope submit; this key's is read"
        assert submitted.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="submit"'
        assert api.sql("select from jobs") == []

    def test_a_key_submits_unless_something_else_is_said_and_an_operators_may_do_all(self, api: Served) -> None:
        key_id, _ = made(api)
        with api.engine.begin() as connection:
            operators, _ = keys.new_key(connection, None, scope=Scope.READ)

        assert (row(api, key_id).scope, operators.scope) == ("submit", "admin")


class TestExpiry:
    def test_a_key_that_is_remembered_expires_in_time(self, api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(callers, "REMEMBERED", 3600.0)
        _, plain = made(api, lasts=timedelta(milliseconds=500))

        before = status(api, plain)
        eventually(lambda: status(api, plain) == 401)

        assert before == 200

    def test_only_who_has_the_key_learns_that_it_has_expired(self, api: Served) -> None:
        key_id, plain = made(api, lasts=HOUR)
        api.sql("update api_keys set expires_at = '2026-01-01T06:00:00Z'")

        own, guessed = (api.http(key).get("/v1/jobs") for key in (plain, plain[:-1] + "?"))
        other = api.http(plain[:14] + "x" * 35).get("/v1/jobs")
        with api.engine.begin() as connection:
            keys.revoke(connection, key_id)
        revoked = api.http(plain).get("/v1/jobs")

        assert {answer.status_code for answer in (own, guessed, other, revoked)} == {401}
        assert {answer.json()["code"] for answer in (own, guessed, other, revoked)} == {"unauthorized"}
        assert own.json()["detail"] == "this key expired at 2026-01-01T06:00:00.000Z"
        assert own.headers["www-authenticate"] == "Bearer"
        assert guessed.json()["detail"] == other.json()["detail"] == revoked.json()["detail"]

    def test_an_expired_key_is_not_noted_as_used(self, api: Served) -> None:
        key_id, plain = made(api, lasts=HOUR)
        api.sql("update api_keys set expires_at = now()")

        assert status(api, plain) == 401
        assert row(api, key_id).last_used_at is None


class TestMaking:
    def test_a_key_is_made_shown_once_and_works(self, api: Served, admin: httpx.Client) -> None:
        answer = admin.post("/v1/keys", json={"name": "ci", "scope": "read"})

        new = answer.json()
        plain = new.pop("key")
        listed = admin.get("/v1/keys")
        assert answer.status_code == 201
        assert (new["name"], new["scope"], new["expires_at"], new["last_used_at"]) == ("ci", "read", None, None)
        assert listed.json()["data"][0] == new
        assert plain not in listed.text
        assert status(api, plain) == 200

    def test_a_key_ends_with_the_one_that_made_it_at_the_latest(self, api: Served) -> None:
        maker_id, plain = made(api, scope=Scope.ADMIN, lasts=DAY)
        maker, ends = api.http(plain), row(api, maker_id).expires_at
        assert ends is not None

        unsaid = maker.post("/v1/keys", json={}).json()
        earlier = maker.post("/v1/keys", json={"expires_at": (ends - HOUR).isoformat()}).json()
        later = maker.post("/v1/keys", json={"expires_at": (ends + HOUR).isoformat()})

        assert row(api, unsaid["id"]).expires_at == ends
        assert row(api, earlier["id"]).expires_at == ends - HOUR
        assert [fault["pointer"] for fault in later.json()["errors"]] == ["/expires_at"]
        assert "when the key that makes it ends" in later.json()["detail"]

    def test_a_wrong_body_is_refused_with_every_fault(self, api: Served, admin: httpx.Client) -> None:
        cases: list[tuple[dict[str, Any], dict[str, str]]] = [
            (
                {"scope": "root", "name": "n" * 65, "x": 1},
                {"/scope": "not_allowed", "/name": "too_long", "/x": "unknown_field"},
            ),
            ({"expires_at": "2020-01-01T00:00:00Z"}, {"/expires_at": "out_of_range"}),
            ({"expires_at": "9998-01-01T00:00:00Z"}, {"/expires_at": "out_of_range"}),
            ({"expires_at": "soon"}, {"/expires_at": "bad_time"}),
        ]

        for body, wrong in cases:
            answer = admin.post("/v1/keys", json=body)
            assert {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]} == wrong
        assert len(api.sql("select from api_keys")) == 1

    def test_a_revoked_key_makes_none_although_it_is_remembered(
        self, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(callers, "REMEMBERED", 3600.0)
        key_id, plain = made(api, scope=Scope.ADMIN)
        http = api.http(plain)
        assert http.get("/v1/keys").status_code == 200
        with api.engine.begin() as connection:
            keys.revoke(connection, key_id)

        still, refused = http.get("/v1/models"), http.post("/v1/keys", json={})

        assert (still.status_code, refused.status_code) == (200, 401)
        assert len(api.sql("select from api_keys")) == 1

    def test_keys_are_listed_page_by_page_the_newest_first(self, api: Served, admin: httpx.Client) -> None:
        names = [f"key-{n}" for n in range(3)]
        for name in names:
            admin.post("/v1/keys", json={"name": name})

        first = admin.get("/v1/keys", params={"limit": 2}).json()
        rest = admin.get("/v1/keys", params={"limit": 2, "cursor": first["next_cursor"]}).json()

        assert [key["name"] for key in first["data"] + rest["data"]] == [*reversed(names), ""]
        assert rest["has_more"] is False

    def test_a_revoked_key_stays_revoked_and_listed(self, api: Served, admin: httpx.Client) -> None:
        key = admin.post("/v1/keys", json={}).json()

        statuses, times = [], set()
        for _ in range(2):
            statuses.append(admin.delete(f"/v1/keys/{key['id']}").status_code)
            times.add(admin.get("/v1/keys").json()["data"][0]["revoked_at"])

        assert statuses == [204, 204]
        assert len(times) == 1
        assert None not in times
        assert eventually(lambda: status(api, key["key"]) == 401)


class TestRotating:
    def test_two_keys_work_side_by_side_until_the_old_one_expires(self, api: Served, admin: httpx.Client) -> None:
        key_id, plain = made(api, scope=Scope.READ)

        answer = admin.post(f"/v1/keys/{key_id}/rotate", json={"keep_hours": 2})

        new, old = answer.json(), row(api, key_id)
        assert answer.status_code == 201
        assert (new["name"], new["scope"], new["expires_at"]) == ("ci", "read", None)
        assert old.expires_at is not None
        assert timedelta(0) < old.expires_at - now(api) - timedelta(hours=1, minutes=59) < timedelta(minutes=1)
        assert str(old.replaced_by) == new["id"]
        assert (status(api, plain), status(api, new["key"])) == (200, 200)
        api.sql("update api_keys set expires_at = now() where id = :id", id=key_id)
        api.app.state.context.callers.forget()
        assert (status(api, plain), status(api, new["key"])) == (401, 200)

    def test_the_overlap_is_a_day_unless_something_else_is_said(self, api: Served, admin: httpx.Client) -> None:
        (kept, _), (dropped, plain) = made(api), made(api)

        admin.post(f"/v1/keys/{kept}/rotate")
        admin.post(f"/v1/keys/{dropped}/rotate", json={"keep_hours": 0})
        wrong = [admin.post(f"/v1/keys/{kept}/rotate", json={"keep_hours": hours}) for hours in (-1, 721, "1")]

        until = row(api, kept).expires_at
        assert until is not None
        assert timedelta(0) < now(api) + DAY - until < timedelta(minutes=1)
        assert status(api, plain) == 401
        assert {answer.status_code for answer in wrong} == {422}

    def test_the_new_key_works_as_long_as_the_old_one_was_made_for(self, api: Served, admin: httpx.Client) -> None:
        key_id, _ = made(api, lasts=DAY)
        api.sql(
            "update api_keys set created_at = now() - interval '89 days', expires_at = now() + interval '1 day'"
            " where id = :id",
            id=key_id,
        )

        new = row(api, admin.post(f"/v1/keys/{key_id}/rotate").json()["id"])

        assert new.expires_at is not None
        assert abs(new.expires_at - new.created_at - timedelta(days=90)) < timedelta(minutes=1)

    def test_no_rotation_prolongs_the_old_key_nor_the_one_that_rotates(self, api: Served, admin: httpx.Client) -> None:
        key_id, _ = made(api, lasts=HOUR)
        before = row(api, key_id).expires_at
        own_id, own = made(api, scope=Scope.ADMIN, lasts=HOUR)
        api.sql("update api_keys set created_at = created_at - interval '89 days' where id = :id", id=own_id)
        ends = row(api, own_id).expires_at

        admin.post(f"/v1/keys/{key_id}/rotate", json={"keep_hours": 24})
        itself = api.http(own).post(f"/v1/keys/{own_id}/rotate").json()

        assert row(api, key_id).expires_at == before
        assert row(api, itself["id"]).expires_at == ends
        assert row(api, own_id).expires_at == ends

    def test_a_key_is_rotated_once_however_often_it_is_asked_for(self, api: Served, admin: httpx.Client) -> None:
        key_id, _ = made(api)
        begun = len(api.sql("select from api_keys"))

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: admin.post(f"/v1/keys/{key_id}/rotate"), range(4)))

        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
        assert {answer.json().get("code") for answer in answers} == {None, "already_rotated"}
        assert len(api.sql("select from api_keys")) == begun + 1

    @pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
    def test_a_key_that_has_ended_is_not_rotated(self, api: Served, admin: httpx.Client, end: str) -> None:
        key_id, _ = made(api)
        api.sql(f"update api_keys set {end} = now() where id = :id", id=key_id)

        answer = admin.post(f"/v1/keys/{key_id}/rotate")

        assert (answer.status_code, answer.json()["code"]) == (409, "key_ended")

    def test_a_name_means_the_key_that_is_to_be_rotated_next(self, api: Served) -> None:
        first, _ = made(api, "ci")
        revoked, _ = made(api, "ci")
        with api.engine.begin() as connection:
            keys.revoke(connection, revoked)
            second, _ = keys.rotate(connection, keys.rotatable(connection, "ci").id, DAY)
            named, by_prefix = keys.rotatable(connection, "ci"), keys.rotatable(connection, second.prefix)
            keys.new_key(connection, Project.of(api.sql("select * from projects")[0]), "ci")
            with pytest.raises(Conflict, match="give the id"):
                keys.rotatable(connection, "ci")
            with pytest.raises(NotFound):
                keys.rotatable(connection, "nobody's")

        assert row(api, first).replaced_by == second.id == named.id == by_prefix.id
