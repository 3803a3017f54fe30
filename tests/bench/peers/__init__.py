"""The same work done otherwise: each module is run as a program of its own, beside the same servers and sandbox."""
