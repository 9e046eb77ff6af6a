"""The demo's HTTP server: clients that are slow or silent cannot keep others out.

uvicorn limits how many connections there are, and how long one may be idle after an answer. It does not limit how
long a client takes to send the head of a request or to read an answer, so that a few dozen half-open connections would
use up the limit. Here each of these has a time limit, and at the limit of connections a new one replaces the one that
has kept the server waiting for longest.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one client may take of the server.

    Attributes:
        connections: At once, of all clients together.
        head_seconds: From a connection, or from the first byte of its next request, to the end of the request's head.
        answer_seconds: To read an answer.
    """

    connections: int = 64
    head_seconds: float = 10.0
    answer_seconds: float = 120.0


def make_server(app: ASGIApp, limits: ServerLimits | None = None) -> uvicorn.Server:
    """A server of an application, to be run on a listening socket."""
    chosen = limits or ServerLimits()

    class LimitedConnection(_Connection):
        limits = chosen

    # uvicorn's own log lines would go to stdout, one per request; what matters is logged where it is done.
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
    """One connection. It waits for its client, or works on a request whose head it has.

    Only a waiting connection has a time limit and can be replaced. The time for a request's body is limited by
    `RequestGuard`, which can say so to the client.
    """

    limits: ClassVar[ServerLimits]
    _timer: asyncio.TimerHandle | None = None
    _waits_since = 0.0
    _reads_head = False

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a head; at the limit of connections, end the one that has waited for longest."""
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
        """Take bytes of a request."""
        if not self._reads_head and self._awaits_request():
            self._reads_head = True
            self._wait(self.limits.head_seconds)
        super().data_received(data)
        self._stop_waiting_for_head()

    def on_response_complete(self) -> None:
        """The whole answer was given to the transport; a pipelined request begins at once."""
        self._reads_head = False
        self._wait(self.limits.answer_seconds)
        super().on_response_complete()
        if not self._awaits_request():
            self._end_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._end_wait()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read its answer as fast as it is written."""
        super().pause_writing()
        self._wait(self.limits.answer_seconds)

    def resume_writing(self) -> None:
        """The client has read nearly all that was written."""
        super().resume_writing()
        if not self._awaits_request():
            self._end_wait()

    def waits_for_client(self) -> bool:
        """True if nothing but the client keeps this connection busy."""
        return self._awaits_request() or self.reads_body() or self.flow.write_paused

    def reads_body(self) -> bool:
        """True between the head of a request and the end of its body."""
        return not self._awaits_request() and self.cycle.more_body

    def _awaits_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop_waiting_for_head(self) -> None:
        if self._reads_head and not self._awaits_request():
            self._reads_head = False
            self._end_wait()
            self._waits_since = self.loop.time()  # now for the body

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
