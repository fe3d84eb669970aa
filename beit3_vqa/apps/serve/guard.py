"""The application's guard: who may send requests, how large they may be, and what browsers may do with replies."""

import asyncio
import hmac
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from beit3_vqa.apps.serve.limits import MAX_BODY_BYTES, MAX_BODY_SECONDS, MAX_CONNECTIONS, MAX_REFUSED_SECONDS

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
# Everything the page needs comes from this server; nothing it shows may run or fetch anything.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_SAFE = ("GET", "HEAD", "OPTIONS")
_ONCE = ("host", "origin", "sec-fetch-site", "content-type", "content-length", "transfer-encoding", "authorization")
# A name, an IPv4 address or an IPv6 one in brackets, and a port. `urlsplit` finds a host in far more than that.
_HOST = re.compile(r"(?:\[([0-9a-f]*:[0-9a-f:.]*)\]|([0-9a-z._-]+))(?::([0-9]{0,5}))?", re.IGNORECASE | re.ASCII)
_HIGHEST_PORT = 65535
CROWDED = "crowded"  # in a request's state: true if there are more connections than are served
_ALSO = {401: [(b"www-authenticate", b"Bearer")], 503: [(b"retry-after", b"1")]}
_NO_TOKEN = (
    "this server asks for a token: open the address that it printed when it was started, or send the header "
    "Authorization: Bearer TOKEN."
)


class Guard:
    """ASGI middleware that refuses other hosts and pages, asks for the token, bounds the body, adds security headers.

    A web page somewhere can make a browser send requests to this machine. With a name of its own that resolves to
    127.0.0.1 (DNS rebinding) it could read the answers too: so only this machine's names are answered to. And it may
    post a form from its own origin, which the browser names in a header: so only this server's pages may post.
    Programs such as curl send no origin.

    Args:
        app: application to guard.
        hosts: names, without a port, by which the server may be called; None: any, if others may reach it.
        token: token that a request must send as `Authorization: Bearer TOKEN`; empty: none.
        open_paths: paths that are answered without it; everybody can read their files in this package anyway.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str] | None, token: str = "", open_paths: Collection[str] = frozenset()
    ):
        self.app = app
        self.hosts = hosts
        self.token = token
        self.open_paths = open_paths
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take an ASGI call, and count the requests that are being answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.running += 1
        try:
            await self._guarded(scope, receive, send)
        finally:
            self.running -= 1

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on with its body bounded; add the security headers to the reply."""
        # Requests are counted too: after a client hangs up, its question is still being answered.
        crowded = scope.get("state", {}).get(CROWDED) or self.running > MAX_CONNECTIONS

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        names = [name.decode("latin-1") for name, _ in scope["headers"]]
        headers = dict(zip(names, (value.decode("latin-1") for _, value in scope["headers"]), strict=True))
        twice = [name for name in _ONCE if names.count(name) > 1]
        # Of two values, a proxy in front and the application might each take another.
        refused = (400, f"the header {twice[0]} is there twice.") if twice else None
        if crowded:
            refused = 503, f"{MAX_CONNECTIONS} requests or connections are open already: ask again in a moment."
        elif "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] < "1.1"):
            refused = 400, "the request has Content-Length and Transfer-Encoding, or the latter in HTTP/1.0."
        refused = refused or refusal(scope["method"], headers, self.hosts)
        if not refused and self.token and scope["path"] not in self.open_paths:
            refused = None if _brings(headers, self.token) else (401, _NO_TOKEN)
        if refused:
            if not crowded and refused[0] not in (400, 413) and "expect" not in headers:
                await _read_on(receive)
            await _refuse(send_guarded, *refused)
            return
        await self.app(scope, _Bounded(receive), send_guarded)


def refusal(method: str, headers: Mapping[str, str], hosts: frozenset[str] | None) -> tuple[int, str] | None:
    """Return status and reason if a request must be refused, else None.

    Args:
        method: method of HTTP.
        headers: values by lower-case name.
        hosts: see `Guard`.
    """
    host = headers.get("host", "")
    if host and not _host_name(host):
        return 400, "the header host isn't a name or an address, and a port."
    if hosts is not None and _host_name(host) not in hosts:
        return 421, f"the server answers to {', '.join(sorted(hosts))} only; use one of these in the address."
    if method not in _SAFE:
        site, here = headers.get("sec-fetch-site", "none"), f"http://{host}"
        if site not in ("same-origin", "none") or _place(headers.get("origin", here)) != _place(here):
            return 403, "pages of other sites may not send requests to this server."
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > MAX_BODY_BYTES:
        return 413, _too_large()
    return None


def form_problem(content_type: str) -> str:
    """Return why a form of this content type isn't read; empty if it is."""
    kind = content_type.lower().replace('"', "")
    if kind.partition(";")[0].strip() != "multipart/form-data":
        return "send a form as multipart/form-data."  # the reader of other forms takes a minute for some megabytes
    if "charset" in kind.replace("charset=utf-8", "", 1):
        return "text must be UTF-8."  # others are decoders of Python's, some of them slow on long input
    return ""


def _brings(headers: Mapping[str, str], token: str) -> bool:
    """Return whether a request has the token, in a time that doesn't tell how much of a wrong one is right."""
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(sent.strip().encode("latin-1"), token.encode())


def _host_name(host: str) -> str:
    """Turn `localhost:8000` into `localhost`, `[::1]:8000` into `::1`; return an empty text if it is no host."""
    found = _HOST.fullmatch(host)
    if not found or (found[3] and not 0 < int(found[3]) <= _HIGHEST_PORT):
        return ""
    return (found[1] or found[2]).lower()


def _place(origin: str) -> str:
    """Turn `http://localhost:8000` into `localhost:8000`; return an empty text if it is no origin, such as `null`.

    The scheme is left out, since a proxy may speak https to the browser.
    """
    try:
        split = urlsplit(origin)
    except ValueError:
        return ""
    return split.netloc.lower() if split.scheme in ("http", "https") else ""


def _too_large() -> str:
    return f"a request may have {MAX_BODY_BYTES:,} bytes: scale the image down."


async def _read_on(receive: Receive) -> None:
    """Read the body for a moment: a client still sending when the connection is closed never sees the reply."""

    async def to_its_end() -> None:
        while (await receive()).get("more_body", False):
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(to_its_end(), MAX_REFUSED_SECONDS)


async def _refuse(send: Send, status: int, reason: str) -> None:
    """Reply with the reason as JSON, and close the connection."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), *_ALSO.get(status, ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Bounded:
    """A `receive` that counts the body as it comes, whatever its header says, and doesn't wait for ever."""

    def __init__(self, receive: Receive):
        self.receive = receive
        self.bytes = 0
        self.complete = False
        self.end = asyncio.get_running_loop().time() + MAX_BODY_SECONDS

    async def __call__(self) -> Message:
        if self.complete:  # whoever asks now waits for the client to go away
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), self.end - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise HTTPException(408, f"the request took more than {MAX_BODY_SECONDS:.0f} s to arrive.") from error
        self.bytes += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        if self.bytes > MAX_BODY_BYTES:
            raise HTTPException(413, _too_large())
        return message
