"""Which scope of a key each route takes: `read` to look, else `submit`, but for what is listed here.

A request is held to it in `context.Door`; OpenAPI shows the same.
"""

from __future__ import annotations

from worker.keys import Scope

# What sets a project up: whatever changes it takes an admin's key; beside each, what it takes to look.
_SET_UP = {"/v1/keys": Scope.ADMIN, "/v1/budgets": Scope.READ, "/v1/webhook-endpoints": Scope.READ}
_OTHERS = {
    # no scope is enough: it takes an operator's key, and says so
    ("POST", "/v1/jobs/{job_id}/resolve"): Scope.READ,
    # whoever signs in by it may do what the key may
    ("POST", "/console/link"): Scope.READ,
}


def needed(method: str, route: str) -> Scope:
    """The narrowest scope that may ask this of the route, which is given as its template."""
    if (method, route) in _OTHERS:
        return _OTHERS[method, route]
    look, change = Scope.READ, Scope.SUBMIT
    for prefix, scope in _SET_UP.items():
        if route.startswith(prefix):
            look, change = scope, Scope.ADMIN
    return look if method == "GET" else change
