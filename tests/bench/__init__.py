"""Measurements against the sandbox, each a program: `python -m tests.bench.NAME`."""
