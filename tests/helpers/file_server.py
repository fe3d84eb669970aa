"""A server of one file that can be told to misbehave."""

import contextlib
import re
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "beit3_base_indomain_patch16_224.pth"


@dataclass
class Behaviour:
    """What the server does; lists are used up one entry a request, then it behaves."""

    body: bytes
    etag: str | None = '"v1"'
    statuses: list[int] = field(default_factory=list)
    drop_after: list[int] = field(default_factory=list)  # bytes of the body sent before the connection is cut
    ignore_range: bool = False
    ignore_if_range: bool = False
    claimed_length: int | None = None
    without_length: bool = False
    redirect: str | None = None
    seconds_per_block: float = 0.0
    requests: list[dict[str, str | None]] = field(default_factory=list)

    @property
    def ranges(self) -> list[str | None]:
        return [request["Range"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: "FileServer"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(*self.decide())

    def decide(self) -> tuple[int, dict[str, str], bytes]:
        told = self.server.behaviour
        told.requests.append({"path": self.path, **{key: self.headers.get(key) for key in ("Range", "If-Range")}})
        if told.redirect and self.path != "/moved":
            return 302, {"Location": told.redirect}, b""
        if told.statuses and (status := told.statuses.pop(0)) != 200:
            return status, {}, b""
        start, status, headers = 0, 200, {}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        unchanged = told.ignore_if_range or self.headers.get("If-Range") == told.etag
        if wanted and unchanged and not told.ignore_range:
            start, status = int(wanted[1]), 206
            if start >= len(told.body):
                return 416, {"Content-Range": f"bytes */{len(told.body)}"}, b""
            headers["Content-Range"] = f"bytes {start}-{len(told.body) - 1}/{len(told.body)}"
        if not told.without_length:
            headers["Content-Length"] = str(told.claimed_length or len(told.body) - start)
        if told.etag:
            headers["ETag"] = told.etag
        end = start + told.drop_after.pop(0) if told.drop_after else len(told.body)
        return status, headers, told.body[start:end]

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if not body and "Content-Length" not in headers:
            self.send_header("Content-Length", "0")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client was killed
            for block in range(0, len(body), 65536):
                self.wfile.write(body[block : block + 65536])
                self.wfile.flush()
                time.sleep(self.server.behaviour.seconds_per_block)
        self.close_connection = True


class FileServer(ThreadingHTTPServer):
    behaviour: Behaviour

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{NAME}"
