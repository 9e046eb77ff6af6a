"""The demo's server keeps answering while clients hold connections open, over real sockets on loopback.

Time limits are either so short that they pass while the test waits for the server to close a connection, or so long
that they do not pass within a test: nothing rests on how fast this machine is.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from refseg.apps.demo_guard import RequestGuard
from refseg.apps.demo_server import ServerLimits, make_server

LONG = 600.0
PATIENCE = 60.0
"""Seconds after which a test gives up on the server."""
HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ANSWER_BYTES = 30_000_000
"""More than the buffers of a connection on loopback hold."""

Start = Callable[..., int]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the request, then answers: at `/large` with more than a client's buffers hold."""
    while (await receive()).get("more_body", False):
        pass
    body = bytes(ANSWER_BYTES) if scope["path"] == "/large" else b"whole"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server with limits; gives its port."""
    stops: list[Callable[[], None]] = []

    def start(app: ASGIApp = application, **limits: float) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        chosen = ServerLimits(**{"connections": 8, "head_seconds": LONG, "answer_seconds": LONG, **limits})
        server = make_server(app, chosen)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop() -> None:
            server.should_exit = server.force_exit = True
            thread.join()
            listener.close()

        stops.append(stop)
        return int(listener.getsockname()[1])

    yield start
    for stop in stops:
        stop()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    client.sendall(sent)
    return client


def read_all(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def get(port: int) -> bytes:
    with closing(connect(port, HEAD + b"Connection: close\r\n\r\n")) as client:
        return read_all(client)


@pytest.mark.parametrize(
    "held", [b"", HEAD, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", HEAD + b"\r\n"],
    ids=["nothing sent", "half a head", "half a body", "idle after an answer"],
)  # fmt: skip
def test_connections_that_are_held_open_do_not_keep_others_out(start: Start, held: bytes) -> None:
    port = start()
    with ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(closing(connect(port, held)))

        assert [get(port)[-5:] for _ in range(3)] == [b"whole"] * 3


@pytest.mark.parametrize(
    ("requests", "sent", "seconds"),
    [(0, b"", 0.2), (0, HEAD, 0.2), (1, HEAD, 2.0)],  # the first head has to arrive in time on a loaded machine too
    ids=["no first", "half the first", "half the second"],
)
def test_a_head_that_does_not_come_ends_the_connection(
    start: Start, requests: int, sent: bytes, seconds: float
) -> None:
    with closing(connect(start(head_seconds=seconds))) as client:
        for _ in range(requests):
            client.sendall(HEAD + b"\r\n")
            answer = b""
            while not answer.endswith(b"whole"):
                received = client.recv(65536)
                assert received, "the server closed the connection before it answered"
                answer += received
        client.sendall(sent)

        assert read_all(client) == b""


def test_a_head_that_comes_byte_by_byte_gains_no_time(start: Start) -> None:
    ended = threading.Event()
    with closing(connect(start(head_seconds=0.5), HEAD)) as client:
        threading.Thread(target=lambda: (read_all(client), ended.set()), daemon=True).start()
        with suppress(OSError):
            for _ in range(int(PATIENCE / 0.02)):
                client.sendall(b"X")
                if ended.wait(0.02):
                    break
        assert ended.wait(PATIENCE)


def test_an_answer_that_is_not_read_ends_the_connection(start: Start) -> None:
    port = start(answer_seconds=0.2)
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        client.recv(1)
        threading.Event().wait(2.0)  # ten times the limit

        assert len(read_all(client)) < ANSWER_BYTES


def test_a_body_that_does_not_come_is_refused_with_the_reason(start: Start) -> None:
    guard = RequestGuard(_refusing, max_bytes=100, max_seconds=0.2, allowed_hosts=["*"])
    sent = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf"

    with closing(connect(start(guard), sent)) as client:
        answer = read_all(client)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b"found 0.0 MB after 0.2 s, expected the whole request; scale the picture down first")


def test_a_body_that_is_too_large_and_does_not_come_is_refused(start: Start) -> None:
    guard = RequestGuard(_refusing, max_bytes=4, max_seconds=0.2, allowed_hosts=["*"])
    for head in (b"Content-Length: 900\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhalf!\r\n"):
        with closing(connect(start(guard), b"POST / HTTP/1.1\r\nHost: a\r\n" + head)) as client:
            assert read_all(client).startswith(b"HTTP/1.1 413 ")


async def _refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """The application with the answer to an `HTTPException` that FastAPI gives."""
    from starlette.exceptions import HTTPException
    from starlette.responses import PlainTextResponse

    try:
        await application(scope, receive, send)
    except HTTPException as error:
        await PlainTextResponse(error.detail, error.status_code, error.headers)(scope, receive, send)
