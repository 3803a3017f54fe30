"""Jobs: submitted, canceled, retried, read, explained, shown."""
