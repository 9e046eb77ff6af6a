"""Checks sender, size and duration of the demo's requests before they are answered. Sets headers of answers."""

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
    # Only scripts, styles and requests of this server: the page cannot reach another host, whatever an upload contains.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_LONGEST_SHOWN_HOST = 100


class RequestGuard:
    """Refuses other host names, requests of other sites, and bodies that are too large or slow. Adds headers.

    A browser lets any page on the web send a form to a server on loopback, or show its pictures, and names the sender
    in `Origin` or `Sec-Fetch-Site`. The browser prevents that page from reading the answer. This class prevents the
    page from starting work on this machine. A link to the demo is allowed. Starlette's own limit of bodies gives no
    reason, and a client that is still sending does not receive its answer. Of Starlette's check of host names only the
    result is used, because its refusal is not JSON.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_seconds: float, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if not await self._is_allowed_host(scope, receive):
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
                await self._discard_body(receive)
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
                    await self._discard_body(receive)
                raise HTTPException(413, self._too_large("more"), {"Connection": "close"})
            return message

        await self.app(scope, receive_limited, send_guarded)

    async def _is_allowed_host(self, scope: Scope, receive: Receive) -> bool:
        """Return True if the request's Host header is an allowed name."""
        is_allowed = False

        async def accept(*_: object) -> None:
            nonlocal is_allowed
            is_allowed = True

        async def drop(_: Message) -> None:
            pass

        await TrustedHostMiddleware(accept, list(self.allowed_hosts), www_redirect=False)(scope, receive, drop)
        return is_allowed

    async def _discard_body(self, receive: Receive) -> None:
        """Discard the body. A client that is still sending when the connection closes would lose the answer."""
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
    """Return the name of the other site whose page sent a request.

    Return None for the demo's own pages and for programs.
    """
    origin = headers.get("origin")
    if origin is not None:
        return origin if urlsplit(origin).netloc != headers.get("host") else None
    is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    is_foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    return "another site" if is_foreign and not is_link else None
