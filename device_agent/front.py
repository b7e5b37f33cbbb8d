"""The listener: accepts every client, answers what concerns the whole device, hands the rest to the worker it is for.

The supervisor never reads a body: after the head it passes the connection on, with the bytes read so far. Between
two requests a worker hands a connection back when the next request is not its own, or when it drains.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

from device_agent import log
from device_agent.listen import Credentials, Listener
from device_agent.relay import Relays
from device_agent.serve.connections import Connections
from device_agent.serve.http import (
    Head,
    HttpError,
    PassOn,
    Request,
    Response,
    Route,
    Serve,
    Wait,
    json_response,
)
from device_agent.serve.peers import Peer
from device_agent.serve.routes import Target, target_of
from device_agent.workers import Workers
from edgekit import __version__

# Between two turns of the loop, so that those who are here already are served too.
_ACCEPTED_AT_ONCE = 64
MAX_HELD = 256
HOLD_S = 15.0


class Front:
    """`workers` by deployment, to which more may be added; `metrics` gives the Prometheus page.

    `names` are the deployments that `/predict` without a name is for, if it is one: those of the enrolment, so that one
    that is added later changes nothing for the clients of the first.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        names: tuple[str, ...],
        workers: Mapping[str, Workers],
        metrics: Callable[[], str],
        secured: Credentials | None = None,
    ) -> None:
        self._listeners = listeners
        self._workers = workers
        self._metrics = metrics
        self._secured = secured
        self._names = names
        self._connections = Connections(self._route)
        self._relays = Relays(secured.context, self._serve_relayed) if secured is not None else None
        self._held = 0
        self._is_closed = False
        self._answers: Mapping[str, Callable[[Request], Awaitable[Response]]] = {
            "live": self._live,
            "ready": self._ready,
            "server": self._server,
            "metrics": self._metrics_page,
        }

    def start(self) -> None:
        for listener in self._listeners:
            listener.sock.setblocking(False)
            self._listen_to(listener)

    async def close(self) -> None:
        """Take no new connection and end those that are here; workers end theirs."""
        self._is_closed = True
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener.sock)
            listener.close()
        await self._connections.drain(None, 2.0)
        if self._relays is not None:
            await self._relays.close()

    def given_back(self, descriptor: int, prefix: bytes) -> None:
        """A worker's connection comes back; what it asks next decides where it goes."""
        if self._is_closed:
            os.close(descriptor)
        else:
            self._connections.adopt(socket.socket(fileno=descriptor), prefix)

    def _accept(self, listener: Listener) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _address = listener.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # Out of descriptors, mostly: the client waits in the backlog until one is free.
                log.trouble("a connection could not be accepted", reason=error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.sock)
                loop.call_later(0.5, self._listen_to, listener)
                return
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if listener.is_tls and self._relays is not None:
                self._relays.adopt(client)
            else:
                self._connections.adopt(client, is_new=True)

    def _listen_to(self, listener: Listener) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(listener.sock, self._accept, listener)

    def _serve_relayed(self, sock: socket.socket) -> None:
        if self._is_closed:
            sock.close()
        else:
            self._connections.adopt(sock, is_new=True)

    def _route(self, head: Head, peer: Peer) -> Route:
        if peer.is_relayed and (
            self._secured is None or not self._secured.admits(head.headers.get("authorization", ""))
        ):
            raise HttpError(
                401, "this needs the header 'Authorization: Bearer TOKEN'", "auth", www_authenticate="Bearer"
            )
        target = target_of(head.path, self._names)
        if target.kind == "unknown":
            raise HttpError(404, f"there is nothing at {head.path}; see /v2 and /predict/DEPLOYMENT")
        if head.method != target.method and not (head.method == "HEAD" and target.method == "GET"):
            raise HttpError(405, f"{head.path} takes {target.method}", allow=target.method)
        if target.is_workers:
            return self._route_to_worker(target)
        return Serve(self._answers[target.kind])

    def _route_to_worker(self, target: Target) -> Route:
        if target.deployment not in self._workers:
            known = ", ".join(self._workers) or "none"
            raise HttpError(
                404, f"there is no deployment {target.deployment!r} here; this device has {known}"
            )
        workers = self._workers[target.deployment]
        if workers.serving is not None:
            return PassOn(workers.serving.give)
        if target.kind in ("infer", "predict") and workers.is_expected and self._held < MAX_HELD:
            return Wait(self._hold(target.deployment, workers))
        raise _no_model(target.deployment)

    async def _hold(self, deployment: str, workers: Workers) -> None:
        """Keep a request while its worker starts. Raises: HttpError if none serves in time."""
        self._held += 1
        try:
            await workers.wait_change(HOLD_S)
        finally:
            self._held -= 1
        if workers.serving is None:
            raise _no_model(deployment)

    async def _live(self, _request: Request) -> Response:
        return json_response(200, {"live": True})

    async def _ready(self, _request: Request) -> Response:
        missing = [name for name, workers in self._workers.items() if not workers.is_ready]
        if missing:
            return json_response(503, {"ready": False, "missing": missing}, retry_after="1")
        return json_response(200, {"ready": True})

    async def _server(self, _request: Request) -> Response:
        return json_response(
            200,
            {
                "name": "edgekit",
                "version": __version__,
                "extensions": ["binary_tensor_data", "sequence"],
                "deployments": list(self._workers),
            },
        )

    async def _metrics_page(self, _request: Request) -> Response:
        return Response(200, self._metrics().encode(), "text/plain; version=0.0.4")


def _no_model(deployment: str) -> HttpError:
    return HttpError(503, f"deployment {deployment!r} runs no model now; see 'edgekit agent status'")
