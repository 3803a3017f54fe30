"""The least that an API on FastAPI takes for a request: what others take is to be held against that."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.post("/v1/jobs")
async def nothing() -> dict[str, str]:
    """Nothing."""
    return {}
