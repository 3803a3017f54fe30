"""Turns: who gets a free slot. Slots are simulated in SQL: what is admitted ends when the test says so."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from worker import catalog, keys, settings
from worker.document import Waiting
from worker.jobs import reading
from worker.lanes import slots
from worker.moves import fair_queue
from worker.tables import Job

MODEL = "wan2.5-t2v-preview"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass
class House:
    """One lane of five slots, and projects with jobs; the clock is the test's."""

    connection: Connection
    now: datetime = NOW

    def project(self, name: str, weight: int = 1) -> uuid.UUID:
        made = keys.create_project(self.connection, name)
        self.sql("update projects set weight = :weight where name = :name", weight=weight, name=name)
        return made.id

    def queue(self, project: uuid.UUID, count: int = 1, priority: int = 0, ago: timedelta = timedelta(0)) -> None:
        created_at = self.now - ago
        self.sql(
            "insert into jobs (project_id, kind, model, input, priority, rank_at, created_at, run_at, sequence)"
            " select :project, 'text-to-video', :model, '{}', :priority, :rank, :created, :created, 1"
            " from generate_series(1, :count)",
            project=project,
            model=MODEL,
            priority=priority,
            rank=fair_queue.rank(created_at, priority),
            created=created_at,
            count=count,
        )

    def admit(self) -> list[Job]:
        """The jobs that a tick admits, in the order of the events."""
        fair_queue.admit(self.connection, self.now)
        rows = self.sql(
            "select jobs.* from jobs join events on events.job_id = jobs.id and events.type = 'job.admitted'"
            " where state = 'admitted' and state_at = :now order by events.id",
            now=self.now,
        )
        return [Job.of(row) for row in rows]

    def end(self, count: int = 1) -> None:
        """Ends the tasks that run longest."""
        self.sql(
            "update jobs set state = 'succeeded', finished_at = now(), run_at = null where id in ("
            " select id from jobs where state = 'admitted' order by state_at, id limit :count)",
            count=count,
        )

    def served(self, slots: int) -> list[uuid.UUID]:
        """The projects of the jobs that get the next slots, one slot falling free after the other."""
        found = []
        for _ in range(slots):
            self.now += timedelta(seconds=1)
            found += [job.project_id for job in self.admit()]
            self.end()
        return found

    def waiting_on(self, project: uuid.UUID) -> list[Waiting | None]:
        rows = self.sql(
            "select * from jobs where project_id = :project and state = 'queued' order by id", project=project
        )
        jobs = [Job.of(row) for row in rows]
        found = reading.waiting_on(self.connection, jobs, self.now)
        return [found[job.id] for job in jobs]

    def sql(self, statement: str, **values: Any) -> list[Any]:
        result = self.connection.execute(text(statement), values)
        return list(result.mappings().all()) if result.returns_rows else []


@pytest.fixture
def house(engine: Engine) -> Iterator[House]:
    known = settings.Settings.model_validate({"database_url": "", "broker_url": ""})
    with engine.begin() as connection:
        slots.sync(connection, catalog.load(), known)
        connection.execute(text("update lanes set next_at = :now, tokens_at = :now"), {"now": NOW})
        yield House(connection)


def test_a_project_with_thousands_of_jobs_delays_anothers_one_by_one_slot(house: House) -> None:
    many, one = house.project("many"), house.project("one")
    house.queue(many, 5000)
    house.served(20)

    house.queue(one)

    assert house.served(1) == [one]


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (10, 3)])
def test_slots_are_shared_by_weight(house: House, weights: tuple[int, int]) -> None:
    heavy, light = (house.project(f"project-{n}", weight) for n, weight in enumerate(weights))
    house.queue(heavy, 400)
    house.queue(light, 400)

    share = Counter(house.served(200))

    expected = 200 * weights[0] / sum(weights)
    assert abs(share[heavy] - expected) <= 0.05 * expected
    assert sum(share.values()) >= 200


def test_equal_projects_alternate_from_the_first_slot_on(house: House) -> None:
    first, second = house.project("first"), house.project("second")
    house.queue(first, 50)
    house.queue(second, 50)

    assert Counter(job.project_id for job in house.admit()).most_common()[0][1] == 3
    house.end(5)
    order = house.served(10)

    assert all(one != next_one for one, next_one in pairwise(order[5:]))


def test_an_idle_time_is_not_saved_up(house: House) -> None:
    steady, late = house.project("steady"), house.project("late")
    house.queue(steady, 300)
    house.queue(late, 1)
    house.served(100)

    house.queue(late, 100)
    share = Counter(house.served(40))

    assert abs(share[late] - share[steady]) <= 2


def test_a_high_priority_goes_first_and_a_class_is_worth_ten_minutes_of_waiting(house: House) -> None:
    project = house.project("spring")
    house.queue(project, 1, priority=-1, ago=24 * MINUTE)
    house.queue(project, 1, priority=0, ago=5 * MINUTE)
    house.queue(project, 1, priority=0, ago=15 * MINUTE)
    house.queue(project, 1, priority=1)
    house.queue(project, 1, priority=-1)
    house.sql("update lanes set concurrency = 1")
    order = []
    for _ in range(5):
        house.now += timedelta(seconds=1)
        order += [(job.priority, NOW - job.created_at) for job in house.admit()]
        house.end()

    assert order == [(0, 15 * MINUTE), (-1, 24 * MINUTE), (1, 0 * MINUTE), (0, 5 * MINUTE), (-1, 0 * MINUTE)]


def test_a_project_has_no_more_in_flight_than_its_cap_and_the_others_go_on(house: House) -> None:
    capped, free = house.project("capped"), house.project("free")
    keys.set_project(house.connection, "capped", max_in_flight=2)
    house.queue(capped, 10)
    house.queue(free, 10)

    share = Counter(job.project_id for job in house.admit())

    assert share == {capped: 2, free: 3}
    assert {waiting.code for waiting in house.waiting_on(capped) if waiting} == {"project"}
    keys.set_project(house.connection, "capped", max_in_flight=0)
    assert keys.project(house.connection, "capped").max_in_flight is None
    assert house.waiting_on(capped)[0] == Waiting("turn", _TURN, None, 1)


_TURN = "waits for its turn: projects take turns in the model's concurrent tasks"


def test_a_cap_holds_in_all_lanes_together(house: House) -> None:
    capped = house.project("capped")
    keys.set_project(house.connection, "capped", max_in_flight=3)
    house.queue(capped, 10)
    house.sql(
        "insert into jobs (project_id, kind, model, input, run_at, sequence) select :project, 'text-to-video',"
        " 'wan2.2-t2v-plus', '{}', :now, 1 from generate_series(1, 5)",
        project=capped,
        now=house.now,
    )

    assert len(house.admit()) == 3


def test_a_job_that_backs_off_does_not_hold_up_the_line(house: House) -> None:
    project = house.project("spring")
    house.queue(project, 3, ago=MINUTE)
    house.sql("update jobs set run_at = :later", later=house.now + MINUTE)
    house.queue(project, 1)

    (admitted,) = house.admit()

    assert admitted.created_at == house.now
    assert {found.code for found in house.waiting_on(project) if found} == {"backoff"}


def test_slots_are_never_given_twice(house: House) -> None:
    house.queue(house.project("spring"), 20)

    assert len(house.admit()) == 5
    assert len(house.admit()) == 5  # the same ones: nothing new
    assert house.sql("select count(*) as n from jobs where state = 'admitted'")[0]["n"] == 5


def test_the_places_in_line_are_the_order_of_admission(house: House) -> None:
    project, other = house.project("spring"), house.project("summer")
    house.queue(project, 5)  # these get the slots
    house.admit()
    for priority in (0, -1, 1):
        house.queue(project, 1, priority=priority)
    house.now += timedelta(seconds=1)

    alone = house.waiting_on(project)
    house.queue(other)

    assert [found.position for found in alone if found] == [2, 3, 1]
    assert {found.code for found in alone if found} == {"slot"}
    assert {found.code for found in house.waiting_on(project) if found} == {"turn"}
    assert [found.position for found in house.waiting_on(other) if found] == [1]


def test_a_page_of_jobs_is_explained_in_three_statements(house: House, engine: Engine) -> None:
    project = house.project("spring")
    house.queue(project, 60)
    house.admit()
    jobs = [Job.of(row) for row in house.sql("select * from jobs order by id")]
    counted = _Counted(house.connection)

    found = reading.waiting_on(counted, jobs, house.now)  # type: ignore[arg-type]

    assert counted.statements == 3
    assert len(found) == 60
    assert Counter(each.code for each in found.values() if each) == {"slot": 55, "rate": 5}


@dataclass
class _Counted:
    """A connection that counts its statements."""

    connection: Connection
    statements: int = 0

    def execute(self, *said: Any) -> Any:
        self.statements += 1
        return self.connection.execute(*said)


def test_admission_reads_the_heads_of_lines_however_long_they_are(house: House) -> None:
    for n in range(10):
        house.queue(house.project(f"project-{n}"), 5000)
    house.connection.execute(text("analyze jobs"))
    whose = {"lane": _lane(house), "the_accounts": ["a", "b"], "the_region": "r", "the_model": MODEL}
    fill = fair_queue._FILL.compile(house.connection)
    bound = fill.construct_params(whose | {"free": 5, "the_left": None, "now": house.now})
    plan = house.connection.exec_driver_sql(f"explain (analyze, format json) {fill}", bound).scalar_one()

    nodes = list(_nodes(plan[0]["Plan"]))

    read = [node for node in nodes if node.get("Relation Name") == "jobs" and "Scan" in node["Node Type"]]
    assert {node["Node Type"] for node in read} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert {node["Index Name"] for node in nodes if "Index Name" in node} >= {"ix_jobs_queued"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) < 150
    assert plan[0]["Execution Time"] < 100  # milliseconds


def _lane(house: House) -> int:
    lane: int = house.sql("select id from lanes where model = :model", model=MODEL)[0]["id"]
    return lane


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def test_a_parent_stands_in_no_line(house: House) -> None:
    own, other = house.project("own"), house.project("other")
    house.sql("update lanes set concurrency = 0 where model = :model", model=MODEL)
    house.queue(own, 1, ago=timedelta(minutes=2))
    house.queue(other, 1, ago=timedelta(minutes=1))
    house.sql("update jobs set mode = 'parent'")
    house.queue(own, 1)

    (waiting,) = [found for found in house.waiting_on(own) if found and found.code != "parts"]

    assert (waiting.code, waiting.position) == ("slot", 1)
    assert [lane.queued for lane in slots.listed(house.connection, house.now) if lane.model == MODEL] == [1]
