"""Projects, the tenants, and the keys that open them."""
