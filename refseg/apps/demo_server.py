"""The demo's HTTP server. Slow or silent clients cannot block other clients.

uvicorn limits the number of connections and the idle time after an answer. It does not limit the time in which a client
sends the head of a request or reads an answer. A few dozen half-open connections would therefore reach the limit. This
server limits both times. If the maximum number of connections is reached, a new connection replaces the one that has
kept the server waiting for longest.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits of connections.

    Attributes:
        connections: Largest number of connections at once, of all clients together.
        head_seconds: Maximum time in seconds from the opening of a connection, or from the first byte of a further
            request, to the end of the request's head.
        answer_seconds: Maximum time in seconds to read an answer.
    """

    connections: int = 64
    head_seconds: float = 10.0
    answer_seconds: float = 120.0


def make_server(app: ASGIApp, limits: ServerLimits | None = None) -> uvicorn.Server:
    """Make the server of an application. The server runs on a listening socket."""
    chosen = limits or ServerLimits()

    class LimitedConnection(_Connection):
        limits = chosen

    # uvicorn's own log would print a line per request to stdout.
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=LimitedConnection,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            limit_concurrency=chosen.connections,
        )
    )


class _Connection(H11Protocol):
    """A connection. It either waits for its client, or processes a request whose head was received.

    Only a waiting connection has a time limit and can be replaced. `RequestGuard` limits the time of a request's body,
    because it can answer with the reason.
    """

    limits: ClassVar[ServerLimits]
    _timer: asyncio.TimerHandle | None = None
    _waits_since = 0.0
    _reads_head = False

    def connection_made(self, transport: Any) -> None:
        """Wait for the head of a request. At the limit of connections, abort the one that has waited for longest."""
        super().connection_made(transport)
        self._reads_head = True
        self._wait(self.limits.head_seconds)
        waiting = sorted(
            (other for other in self._others() if other.waits_for_client()),
            key=lambda other: (other.reads_body(), other._waits_since),
        )
        for other in waiting:
            if len(self.connections) < self.limits.connections:
                break
            self.connections.discard(other)
            other.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on the bytes of a request, and start or stop the time limit for the request's head."""
        if not self._reads_head and self._awaits_request():
            self._reads_head = True
            self._wait(self.limits.head_seconds)
        super().data_received(data)
        self._stop_waiting_for_head()

    def on_response_complete(self) -> None:
        """Start the client's time limit for reading the response.

        If a further request is already buffered, it is processed now.
        """
        self._reads_head = False
        self._wait(self.limits.answer_seconds)
        super().on_response_complete()
        if not self._awaits_request():
            self._end_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._end_wait()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the time limit, because the client reads the answer more slowly than the server writes it."""
        super().pause_writing()
        self._wait(self.limits.answer_seconds)

    def resume_writing(self) -> None:
        """Stop the time limit, because the client has read nearly all of the answer."""
        super().resume_writing()
        if not self._awaits_request():
            self._end_wait()

    def waits_for_client(self) -> bool:
        """Return True if the connection waits for the client and not for the server."""
        return self._awaits_request() or self.reads_body() or self.flow.write_paused

    def reads_body(self) -> bool:
        """Return True while the request's header has arrived but its body has not."""
        return not self._awaits_request() and self.cycle.more_body

    def _awaits_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop_waiting_for_head(self) -> None:
        if self._reads_head and not self._awaits_request():
            self._reads_head = False
            self._end_wait()
            self._waits_since = self.loop.time()  # for the body, from now on

    def _others(self) -> list["_Connection"]:
        return [other for other in self.connections if isinstance(other, _Connection) and other is not self]

    def _wait(self, seconds: float) -> None:
        self._end_wait()
        self._waits_since = self.loop.time()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
