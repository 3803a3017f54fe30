"""Which scope of a key each route takes: by its method, but for the routes that are listed here.

A request is held to it in `context.Door`; OpenAPI shows the same table.
"""

from __future__ import annotations

from worker.keys import Scope

_OF_METHODS = {"GET": Scope.READ}  # of the others: SUBMIT
_OF_ROUTES = {
    ("GET", "/v1/keys"): Scope.ADMIN,
    ("POST", "/v1/keys"): Scope.ADMIN,
    ("POST", "/v1/keys/{key_id}/rotate"): Scope.ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): Scope.ADMIN,
    # no scope is enough: it takes an operator's key, and says so
    ("POST", "/v1/jobs/{job_id}/resolve"): Scope.READ,
}


def needed(method: str, route: str) -> Scope:
    """The narrowest scope that may ask this of the route, which is given as its template."""
    return _OF_ROUTES.get((method, route)) or _OF_METHODS.get(method, Scope.SUBMIT)
