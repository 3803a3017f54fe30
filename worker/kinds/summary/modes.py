"""Which way the documents go to the provider, and why."""

from __future__ import annotations

from collections.abc import Container

from worker import catalog
from worker.catalog import Variant
from worker.kinds.summary.form import Mode, Summary

FEW = 100  # documents, which calls do in minutes


def chosen(model: str, wanted: Summary, count: int, regions: Container[str]) -> tuple[Mode, str]:
    """The mode for so many documents, and the reason in a few words; `regions` are those of the accounts."""
    if wanted.mode is not Mode.AUTO:
        return wanted.mode, "as asked"
    why_not = _why_no_batch(model, wanted, count, regions)
    if why_not:
        return Mode.CALLS, why_not
    time = f"there are {wanted.deadline_hours:g} hours" if wanted.deadline_hours else "there is no deadline"
    return Mode.BATCH, f"it is half the price, and {time}"


def _why_no_batch(model: str, wanted: Summary, count: int, regions: Container[str]) -> str | None:
    batched = catalog.load().variant(model, Variant.BATCH)
    if batched is None or not any(region in regions for region in batched.regions):
        return f"{model} is not had in batches"
    if wanted.enable_thinking:
        return "models think only in calls"
    if wanted.deadline_hours is not None and wanted.deadline_hours < wanted.window_hours:
        return f"{wanted.deadline_hours:g} hours are too few for a batch, which may take {wanted.window_hours}"
    if count < FEW:
        return "they are few, and calls take minutes where a batch takes hours"
    return None
