"""Serving the sandbox with uvicorn, as a process of its own or on a thread of a test."""

import asyncio
import socket

import uvicorn
from fastapi import FastAPI

BACKLOG = 2048
_LOOK_SECONDS = 0.01


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 picks a free one."""
    return socket.create_server((host, port), backlog=BACKLOG)


def configuration(app: FastAPI) -> uvicorn.Config:
    """Return how the app is served."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        # A fault may hold a connection open for ever; stopping must not wait for it.
        timeout_graceful_shutdown=1,
    )


class PromptServer(uvicorn.Server):
    """A server for tests that stops in milliseconds, where uvicorn's own sleeps for tenths of a second."""

    async def main_loop(self) -> None:
        """Serve until `should_exit`."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            await asyncio.sleep(_LOOK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end within the grace of the configuration; break off the others."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            await asyncio.wait_for(self._idle(), self.config.timeout_graceful_shutdown)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()

    async def _idle(self) -> None:
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(_LOOK_SECONDS)
