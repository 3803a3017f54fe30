"""The database: who may be one, its connections, and which of its failures are waited out."""
