"""Serving the sandbox with uvicorn, as a process of its own or on a thread of a test."""

import socket

import uvicorn
from fastapi import FastAPI

BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 picks a free one."""
    return socket.create_server((host, port), backlog=BACKLOG)


def server(app: FastAPI) -> uvicorn.Server:
    """Return a server for the app, to be given its socket."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        # A fault may hold a connection open for ever; stopping must not wait for it.
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
