"""Schedules: jobs that the clock submits."""
