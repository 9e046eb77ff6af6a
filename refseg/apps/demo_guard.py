"""What stands before the demo's pages: whose requests are answered, their size and time, what browsers may do."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS: Mapping[str, str] = {
    # Scripts, styles and requests of this server alone: the page can reach no other host, whatever an upload holds.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_LONGEST_SHOWN_HOST = 100


class RequestGuard:
    """Refuses foreign names, what other sites send, and bodies that are too large or too slow; adds headers to answers.

    A browser lets any page on the web send a form to a server on loopback, or show its pictures, and tells where from
    in `Origin` or `Sec-Fetch-Site`. That the page cannot read the answer is the browser's rule; that it cannot set
    this machine to work is ours. Following a link to here is no such request.
    Starlette's own limit of bodies gives no reason, and its answer is lost on who is still sending; of its check of
    names we take the verdict alone, since its refusal is no JSON.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_seconds: float, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI asks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if not await self._is_named(scope, receive):
            found = headers.get("host", "")[:_LONGEST_SHOWN_HOST]
            named = ", ".join(self.allowed_hosts)
            refusal = f"found Host: {found or 'none'}, expected one of {named}; open the demo by the address it printed"
            await JSONResponse({"detail": refusal}, 400)(scope, receive, send_guarded)
            return
        if (sender := _foreign_sender(headers, scope["method"])) is not None:
            refusal = f"found a request of {sender}, expected this server's own pages; open the demo by its address"
            await JSONResponse({"detail": refusal}, 403)(scope, receive, send_guarded)
            return
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            if headers.get("expect", "").lower() != "100-continue":
                await self._read_off(receive)
            too_large = {"detail": self._too_large(f"{int(declared) / 1e6:.1f} MB")}
            await JSONResponse(too_large, 413, {"Connection": "close"})(scope, receive, send_guarded)
            return
        num_bytes, more = 0, True
        end = asyncio.get_running_loop().time() + self.max_seconds

        async def receive_limited() -> Message:
            nonlocal num_bytes, more
            try:
                async with asyncio.timeout_at(end if more else None):
                    message = await receive()
            except TimeoutError as error:
                refusal = f"found {num_bytes / 1e6:.1f} MB after {self.max_seconds:g} s, expected the whole request"
                detail = f"{refusal}; scale the picture down first"
                raise HTTPException(408, detail, {"Connection": "close"}) from error
            more = message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                if more:
                    await self._read_off(receive)
                raise HTTPException(413, self._too_large("more"), {"Connection": "close"})
            return message

        await self.app(scope, receive_limited, send_guarded)

    async def _is_named(self, scope: Scope, receive: Receive) -> bool:
        """Whether the request names this server by a name that is answered."""
        is_named = False

        async def let_in(*_: object) -> None:
            nonlocal is_named
            is_named = True

        async def drop(_: Message) -> None:
            pass

        await TrustedHostMiddleware(let_in, list(self.allowed_hosts), www_redirect=False)(scope, receive, drop)
        return is_named

    async def _read_off(self, receive: Receive) -> None:
        """Read and forget: a client that is still sending when the connection closes never sees the answer."""
        num_bytes, more = 0, True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.max_seconds):
                while more and num_bytes < 8 * self.max_bytes:
                    message = await receive()
                    num_bytes += len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)

    def _too_large(self, found: str) -> str:
        return f"found {found}, expected at most {self.max_bytes / 1e6:g} MB; scale the picture down first"


def _foreign_sender(headers: Headers, method: str) -> str | None:
    """What another site is called whose page sent a request; None for our own pages and for programs."""
    origin = headers.get("origin")
    if origin is not None:
        return origin if urlsplit(origin).netloc != headers.get("host") else None
    is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    is_foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    return "another site" if is_foreign and not is_link else None
