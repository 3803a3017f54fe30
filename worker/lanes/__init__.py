"""Lanes: the provider's limits, and who may create now."""
