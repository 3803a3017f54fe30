"""The provider: its HTTP API as values, and what its error codes mean."""
