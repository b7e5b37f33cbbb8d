"""uvicorn's server, which waits for open responses when it ends; streams that never end are ended first."""

import socket

import uvicorn

from fleet.server.events import Hub


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.close()
        await super().shutdown(sockets)
