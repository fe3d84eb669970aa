"""Clients that mean harm, or are broken, each in a thread until it is told to stop; `CLIENTS` lists them."""

import io
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from beit3_vqa.apps.serve.limits import MAX_BODY_BYTES, MAX_CONNECTIONS, MAX_UPLOAD_BYTES
from tests.helpers.serve_client import CHOICES, form

SECONDS = 30  # that a client waits for a reply
KIND = b"Content-Type: multipart/form-data; boundary=x"


class Abuser:
    """A client with a seed of its own, and the statuses of the replies that it got.

    Attributes:
        statuses: of replies; 0 for a connection that the server closed without one.
    """

    def __init__(self, url: str, images: list[Path], seed: int):
        place = urlsplit(url)
        self.address = (place.hostname, place.port)
        self.host = place.netloc.encode()
        self.images = images
        self.draw = random.Random(seed)
        self.statuses: list[int] = []

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(self.address, timeout=SECONDS)

    def send(self, pieces: Iterable[bytes], *, reads: bool = True, reset: bool = False) -> None:
        """Sends pieces, and reads the reply or hangs up, in order or by a reset."""
        with closing(self.connect()) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except OSError:  # refused before all of it was sent; the reply may be there
                pass
            if reads:
                self.statuses.append(self._status(connection))
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _status(self, connection: socket.socket) -> int:
        try:
            words = connection.recv(4096).split(b" ", 2)
        except (ConnectionError, BrokenPipeError):
            return 0
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0

    def post(self, body: bytes, *headers: bytes, length: int | None = None) -> bytes:
        """A request for an answer, as bytes."""
        said = [*headers] if any(h.lower().startswith(b"content-type") for h in headers) else [KIND, *headers]
        size = b"Content-Length: %d" % (len(body) if length is None else length)
        head = [b"POST /api/answer HTTP/1.1", b"Host: " + self.host, size, *said, b"Connection: close", b"", b""]
        return b"\r\n".join(head) + body

    def question(self, image: bytes | None = None, question: str | bytes = "What is it?", **fields: str) -> bytes:
        """A whole request; by itself a good one."""
        content = self.draw.choice(self.images).read_bytes() if image is None else image
        parts = [("image", content), ("question", question), *(("choices", choice) for choice in CHOICES)]
        body, headers = form([*parts, *fields.items()])
        return self.post(body, b"Content-Type: " + headers["Content-Type"].encode())


def drips(client: Abuser) -> None:
    """Headers, or a body, in drops."""
    whole = client.question() if client.draw.random() < 0.5 else b"GET / HTTP/1.1\r\nX-A: " + b"a" * 500

    def drops() -> Iterable[bytes]:
        for place in range(0, min(len(whole), 300), 10):
            yield whole[place : place + 10]
            time.sleep(0.1)

    client.send(drops(), reads=False)


def hangs_up(client: Abuser) -> None:
    """Half a request, or a whole one whose reply nobody reads."""
    whole = client.question(attention="true")
    cut = client.draw.choice([client.draw.randrange(len(whole)), len(whole)])
    client.send([whole[:cut]], reads=False, reset=client.draw.random() < 0.5)


def floods(client: Abuser) -> None:
    """More than may be sent: said beforehand, or not said."""
    way = client.draw.randrange(4)
    if way == 0:
        client.send([client.post(b"", length=client.draw.choice([MAX_BODY_BYTES + 1, 10**12, 10**17]))])
    elif way == 1:
        body, headers = form([("image", b"\0" * (MAX_UPLOAD_BYTES + 1)), ("question", "What?")])
        client.send([client.post(body, b"Content-Type: " + headers["Content-Type"].encode())])
    elif way == 2:
        head = [b"POST /api/answer HTTP/1.1", b"Host: " + client.host, KIND, b"Transfer-Encoding: chunked", b"", b""]
        part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        chunks = (b"%x\r\n%s\r\n" % (2**20, b"\0" * 2**20) for _ in range(MAX_BODY_BYTES // 2**20 + 4))
        client.send([b"\r\n".join(head), b"%x\r\n%s\r\n" % (len(part), part), *chunks])
    else:
        client.send([b"GET / HTTP/1.1\r\nHost: " + client.host + b"\r\nX-A: " + b"a" * 2**20 + b"\r\n\r\n"])


def speaks_otherwise(client: Abuser) -> None:
    """Text in other encodings, forms of other kinds, fields without end."""
    way = client.draw.randrange(7)
    if way == 0:
        body, headers = form([("image", b"x"), ("question", "무엇?")])
        kind = b"Content-Type: " + headers["Content-Type"].encode()
        client.send([client.post(body.replace("무엇?".encode(), "무엇?".encode("cp949")), kind)])
    elif way == 1:
        charset = client.draw.choice([b"utf-7", b"punycode", b"utf-16", b"idna", b"rot13"])
        client.send([client.post(b"--x--\r\n", KIND + b"; charset=" + charset)])
    elif way == 2:
        kind = client.draw.choice([b"application/json", b"application/x-www-form-urlencoded", b"", b"\xff"])
        client.send([client.post(b"a=b&" * 10_000, b"Content-Type: " + kind)])
    elif way == 3:
        client.send([client.post(form([("x", "y")] * 2000)[0].replace(b"--", b"--x", 1))])
    elif way == 4:
        client.send([client.question(question="\0" * 20)])
    elif way == 5:
        client.send([client.question(question="what " * client.draw.randrange(1, 2000))])
    else:
        client.send([client.post(b"--x\r\n" + client.draw.randbytes(5000))])


def crowds(client: Abuser) -> None:
    """More connections than there is place for, on which nothing is said."""
    held = []
    try:
        for _ in range(client.draw.randrange(10, 2 * MAX_CONNECTIONS)):
            held.append(client.connect())
        time.sleep(client.draw.uniform(0, 2))
    except OSError:
        pass
    finally:
        for connection in held:
            connection.close()
    time.sleep(client.draw.uniform(0, 8))  # others want to be heard too


def _file(draw: random.Random, format: str, size: tuple[int, int], **more: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (draw.randrange(256), 0, 0)).save(file, format, **more)
    return file.getvalue()


def shows_trash(client: Abuser) -> None:
    """Images that are damaged, endless, or none."""
    draw = client.draw
    good = draw.choice(client.images).read_bytes()
    way = draw.randrange(7)
    if way == 0:
        image = bytearray(good)
        for _ in range(draw.randrange(1, 50)):
            image[draw.randrange(len(image))] = draw.randrange(256)
    elif way == 1:
        image = bytearray(good[: draw.randrange(len(good))])
    elif way == 2:
        image = bytearray(draw.randbytes(draw.randrange(20_000)))
    elif way == 3:
        image = bytearray(_file(draw, "PNG", draw.choice([(1, 5000), (5000, 1), (3000, 3000), (9000, 9000)])))
    elif way == 4:
        image = bytearray(_file(draw, draw.choice(["GIF", "TIFF", "BMP", "WEBP", "JPEG"]), (300, 200)))
        image[draw.randrange(len(image))] ^= 255
    elif way == 5:  # a few pixels, and a megabyte beside them
        image = bytearray(_file(draw, draw.choice(["PNG", "JPEG"]), (2, 2), icc_profile=draw.randbytes(2**20)))
    else:
        image = bytearray(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    client.send([client.question(bytes(image), attention=draw.choice(["true", "false", "maybe"]))])


def breaks_http(client: Abuser) -> None:
    """What is no HTTP, or is HTTP in two ways."""
    host = b"Host: " + client.host
    lines = client.draw.choice(
        [
            [b"GET / HTTP/1.1", b"Host: evil.example@localhost"],
            [b"GET / HTTP/1.1", b"Host: localhost:99999"],
            [b"GET / HTTP/1.1"],
            [b"GET / HTTP/1.1", host, host],
            [b"GET http://evil.example/ HTTP/1.1", host],
            [b"POST /api/answer HTTP/1.1", host, KIND, b"Content-Length: 5", b"Transfer-Encoding: chunked"],
            [b"POST /api/answer HTTP/1.1", host, KIND, b"Content-Length: -5"],
            [b"POST /api/answer HTTP/1.1", host, KIND, b"Transfer-Encoding: chunked", b"", b"zz"],
            [b"CONNECT evil.example:443 HTTP/1.1", host],
            [b"GET /api/model HTTP/1.1", host, b"Connection: upgrade", b"Upgrade: websocket"],
            [b"\x16\x03\x01\x02\x00\x01"],
            [client.draw.randbytes(200)],
            [b"OPTIONS * HTTP/1.1", host],
            [b"GET /%00%ff/../../etc/passwd HTTP/1.1", host],
        ]
    )
    client.send([b"\r\n".join([*lines, b"", b""])], reads=client.draw.random() < 0.8)


def pipelines(client: Abuser) -> None:
    """Hundreds of requests at once on one connection."""
    client.send([b"GET /api/model HTTP/1.1\r\nHost: " + client.host + b"\r\n\r\n"] * client.draw.randrange(1, 300))


CLIENTS: tuple[Callable[[Abuser], None], ...] = (
    drips,
    hangs_up,
    floods,
    speaks_otherwise,
    crowds,
    shows_trash,
    breaks_http,
    pipelines,
)
