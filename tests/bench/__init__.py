"""Measurements against the sandbox, each a program: `python -m ops.bench.NAME`."""
