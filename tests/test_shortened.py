"""What is long is cut short in lists, in Postgres: a page of jobs must not be megabytes because their inputs are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

TEXT = 1000  # characters of one text
WHOLE = 4000  # characters of a value in all
SCALARS = st.none() | st.booleans() | st.integers(-10, 10) | st.text("猫a", max_size=9)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text("ab", max_size=4), inner))
CUT = text("select shortened(:value)").bindparams(bindparam("value", type_=JSONB(none_as_null=True)))


def shortened(engine: Engine, value: Any) -> Any:
    with engine.connect() as connection:
        return connection.execute(CUT, {"value": value}).scalar_one()


def test_what_is_short_stays_as_it_is(engine: Engine) -> None:
    clip = {"prompt": "a kitten runs", "size": "832*480", "duration": 5, "seed": None, "tags": ["a", "b"], "o": {}}

    assert shortened(engine, clip) == clip
    assert shortened(engine, clip | {"pad": "x" * TEXT}) == clip | {"pad": "x" * TEXT}
    assert shortened(engine, None) is None


def test_a_long_text_is_cut_and_ends_in_an_ellipsis(engine: Engine) -> None:
    cut = shortened(engine, {"text": "猫" * (TEXT + 1), "voice": "Cherry", "n": 1.5})

    assert cut == {"text": "猫" * TEXT + "…", "voice": "Cherry", "n": 1.5}


def test_of_many_things_the_first_are_shown_and_the_rest_are_counted(engine: Engine) -> None:
    documents = [{"id": f"{n}.txt", "text": "x" * 500} for n in range(1000)]

    cut = shortened(engine, {"documents": documents})["documents"]

    assert cut[0] == documents[0]
    assert cut[-1] == f"{1000 - len(cut) + 1} more …"


def test_what_is_nested_deeper_than_a_user_may_nest_it_ends_there(engine: Engine) -> None:
    deep: Any = "x" * TEXT
    for _ in range(900):
        deep = [deep]

    assert json.dumps(shortened(engine, deep)).strip("[]") == json.dumps("1 more …")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, times=st.sampled_from([1, 5000]))
@pytest.mark.parametrize("keyed", [False, True])
def test_whatever_a_value_is_made_of_it_is_short_afterwards(
    engine: Engine, keyed: bool, value: Any, times: int
) -> None:
    """Each character that is kept takes six at the most as JSON, and each thing a few for its brackets."""
    cut = shortened(engine, {f"{n}": value for n in range(times)} if keyed else [value] * times)

    assert len(json.dumps(cut)) < 16 * WHOLE
