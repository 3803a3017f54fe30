"""The provider's clock, as its queries want times written."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

# The provider's wall clock. A recorded task created at 09:38:24 GMT shows 17:38:24.
BEIJING = timezone(timedelta(hours=8))


def written(moment: datetime) -> str:
    """`20261121020000`."""
    assert moment.tzinfo is not None, "the provider's clock is eight hours ahead: the zone must be known"
    return moment.astimezone(BEIJING).strftime("%Y%m%d%H%M%S")
