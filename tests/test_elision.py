"""What is long is cut short in lists."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.elision import TEXT, WHOLE, elided

SCALARS = st.none() | st.booleans() | st.integers(-10, 10) | st.text("猫a", max_size=9)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text("ab", max_size=4), inner))


def test_what_is_short_stays_as_it_is() -> None:
    clip = {"prompt": "a kitten runs", "size": "832*480", "duration": 5, "seed": None, "tags": ["a", "b"]}

    assert elided(clip) == clip
    assert elided(None) is None


def test_a_long_text_is_cut_and_ends_in_an_ellipsis() -> None:
    cut = elided({"text": "猫" * (TEXT + 1), "voice": "Cherry"})

    assert cut == {"text": "猫" * TEXT + "…", "voice": "Cherry"}


def test_of_many_things_the_first_are_shown_and_the_rest_are_counted() -> None:
    documents = [{"id": f"{n}.txt", "text": "x" * 500} for n in range(1000)]

    cut = elided({"documents": documents})["documents"]

    assert cut[0] == documents[0]
    assert cut[-1] == f"{1000 - len(cut) + 1} more …"


@settings(max_examples=25, deadline=None)
@given(value=VALUES, times=st.sampled_from([1, 5000]))
def test_whatever_a_value_is_made_of_it_is_short_afterwards(value: Any, times: int) -> None:
    """Each character that is kept takes six at the most as JSON, and each thing a few for its brackets."""
    cut = elided([value] * times)

    assert len(json.dumps(cut)) < 16 * WHOLE
