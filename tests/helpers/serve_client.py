"""A server of this test's own, and requests to it as a program sends them."""

import http.client
import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beit3_vqa.apps.serve.ensemble import Ensemble
from beit3_vqa.apps.serve.server import listen, serving

CHOICES = ("a cat", "a rocket", "a cup of coffee", "galaxies")


@contextmanager
def running(ensemble: Ensemble, host: str = "127.0.0.1", token: str = "") -> Iterator[str]:
    """The address of a server, in a thread, that asks `ensemble`."""
    with closing(listen(host, 0)) as listener, serving(ensemble, listener, token=token) as server:
        url = f"http://{host}:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def form(parts: Sequence[tuple[str, str | bytes]]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a multipart form; bytes are a file."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in parts:
        file = '; filename="image"' if isinstance(value, bytes) else ""
        content = value if isinstance(value, bytes) else value.encode()
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def send(url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and JSON (or text) of a reply."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        text = reply.read().decode()
    return reply.status, json.loads(text) if reply.getheader("content-type") == "application/json" else text


def ask(
    url: str,
    image: bytes | Path,
    question: str = "What is in the picture?",
    choices: Sequence[str] = CHOICES,
    headers: dict[str, str] | None = None,
    **fields: str,
) -> tuple[int, Any]:
    """Asks a question; status and JSON."""
    content = image if isinstance(image, bytes) else image.read_bytes()
    parts = [("image", content), ("question", question), *(("choices", choice) for choice in choices), *fields.items()]
    body, kind = form(parts)
    return send(url, "POST", "/api/answer", body, {**kind, **(headers or {})})
