"""The server: its socket, its signals, and the threads behind the application."""

import asyncio
import ipaddress
import logging
import re
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from beit3_vqa.apps.serve.app import OPEN_PATHS, make_app
from beit3_vqa.apps.serve.batching import Batcher
from beit3_vqa.apps.serve.ensemble import Answer, Ensemble, Question
from beit3_vqa.apps.serve.guard import CROWDED, LOOPBACK_NAMES, Guard
from beit3_vqa.apps.serve.limits import (
    BATCH_SIZE,
    MAX_CONNECTIONS,
    MAX_IDLE_SECONDS,
    MAX_PENDING,
    MAX_SOCKETS,
    SHUTDOWN_SECONDS,
)
from beit3_vqa.apps.serve.upload_reader import UploadReader
from beit3_vqa.engine.predictor import Predictor, load
from beit3_vqa.errors import InputError

# Connections: those that nobody uses are closed, and those for which there is no place are told so.


class IdleTimeout(H11Protocol):
    """uvicorn's protocol, but closing idle connections: uvicorn waits for ever for a request and for its headers.

    A connection is closed if for `MAX_IDLE_SECONDS` no request is being answered, and none begins.
    """

    def connection_made(self, transport: Any) -> None:
        """Take a new connection from asyncio: abort it, mark it as one too many, or watch whether it is used."""
        super().connection_made(transport)
        # uvicorn's own limit says so in plain text, and in the log, which whoever connects often enough would fill.
        self.app_state = {CROWDED: len(self.connections) > MAX_CONNECTIONS}
        if len(self.connections) > MAX_SOCKETS:
            transport.abort()
        else:
            self._look_again()

    def _should_upgrade(self) -> bool:
        """Return False: uvicorn's own method advises in the log to install a library for WebSockets."""
        return False

    def send_400_response(self, msg: str) -> None:
        """Reply to what isn't HTTP, and stop the application's own reply, which can't be sent any more."""
        super().send_400_response(msg)
        if self.cycle is not None:
            self.cycle.disconnected = True

    def _look_again(self) -> None:
        asyncio.get_running_loop().call_later(MAX_IDLE_SECONDS, self._close_if_idle, self.cycle)

    def _close_if_idle(self, before: Any) -> None:
        """Close the connection if the last request is still the one of `before`, and is answered."""
        if self.transport.is_closing():
            return
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        else:
            self._look_again()


# What can stand behind the # of an address as it is; shorter ones can be guessed.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")


def serve(
    checkpoint: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    sentencepiece_model: str = "",
    pretrained: str = "",
    token: str = "",
) -> None:
    """Load models and answer questions until a signal (SIGTERM, SIGINT) comes; open requests are still answered.

    Args:
        checkpoint: one, or several that vote.
        host: address to listen on; if other machines can reach it, they are served too, with the token.
        port: port to listen on; 0 takes a free one.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16, fp16 or int8.
        batch_size: largest number of questions that are answered together.
        sentencepiece_model: see `predictor.load`.
        pretrained: see `predictor.load`.
        token: token that requests must send; empty: one is made and printed if others can reach the address, else none.

    Raises:
        InputError: if a checkpoint, the token or the address can't be used.
    """
    if token and not _TOKEN.fullmatch(token):
        raise InputError(
            "--token: must have 16 to 200 characters, of letters, digits and - . _ ~ only; without --token the server "
            "makes one if --host lets others in."
        )
    with closing(listen(host, port)) as listener:
        ensemble = Ensemble(
            [_predictor(path, device, sentencepiece_model, pretrained, precision) for path in checkpoint]
        )
        made = "" if token or is_loopback(listener) else secrets.token_urlsafe()
        with serving(ensemble, listener, batch_size, token or made) as server, _signals_end_only(server):
            print(f"{greeting(ensemble, listener, made)}\nCtrl-C stops the server.", flush=True)
            server.run(sockets=[listener])
    print("stopped")


def _predictor(checkpoint: str, *options: str) -> Predictor:
    """Load a model; raise InputError if its task has no single questions."""
    predictor = load(checkpoint, *options)
    task = predictor.components.task
    if not task.spec.supports_questions:
        raise InputError(f"--checkpoint {checkpoint}: was trained on {task.spec.name}, which has no single questions.")
    return predictor


@contextmanager
def serving(
    ensemble: Ensemble, listener: socket.socket, batch_size: int = BATCH_SIZE, token: str = ""
) -> Iterator[uvicorn.Server]:
    """Start the threads and yield a server, ready to `run(sockets=[listener])`; see `Guard` for its token."""
    with (
        tempfile.TemporaryDirectory(prefix="beit3_vqa_") as folder,
        Batcher[Question, Answer](ensemble.answer, lambda question: question.kind, batch_size) as batcher,
        closing(UploadReader(ensemble, Path(folder))) as reader,
    ):
        hosts = LOOPBACK_NAMES if is_loopback(listener) else None
        # Not of what isn't HTTP: the client is told, and whoever sends it often enough would fill the log.
        settings: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False}
        settings |= {"lifespan": "off", "ws": "none", "http": IdleTimeout, "loop": "asyncio"}
        settings |= {"timeout_graceful_shutdown": SHUTDOWN_SECONDS, "backlog": MAX_PENDING}
        # Not behind a proxy: whoever sends X-Forwarded-For isn't believed.
        settings |= {"proxy_headers": False}
        # It reports each malformed form, which the client is told of.
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        app = Guard(make_app(ensemble, batcher, reader), hosts, token, OPEN_PATHS)
        yield uvicorn.Server(uvicorn.Config(app, **settings))


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; raise InputError if there can't be one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: no address of this machine ({error}).") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise InputError(
            f"--host {host} --port {port}: can't be listened on ({error.strerror}). Is another server there? "
            "--port 0 takes a free one."
        ) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def greeting(ensemble: Ensemble, listener: socket.socket, token: str = "") -> str:
    """Write out what to print at the start: the models, the address to open, and who can reach it.

    Args:
        ensemble: models that answer.
        listener: socket that is listened on.
        token: a token that was made, which nobody knows yet.
    """
    host, port = listener.getsockname()[:2]
    # An address that stands for all of this machine's can be listened on, but not opened.
    everywhere = ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    host = ("::1" if ":" in host else "127.0.0.1") if everywhere else host
    models = " and ".join(predictor.components.config.model.model for predictor in ensemble.predictors)
    counts = ensemble.option_counts
    asks = (
        "open-ended questions"
        if not counts
        else f"questions with {' to '.join(map(str, sorted({counts[0], counts[-1]})))} options"
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'#token={token}' if token else ''}"
    lines = [f"{models}, {asks}: {address}"]
    if not is_loopback(listener):
        there = f", with this machine's name or address in the place of {host}" if everywhere else ""
        lines.append(f"others can ask too{there}: whoever has the token. Nothing is encrypted.")
    return "\n".join(lines)


@contextmanager
def _signals_end_only(server: uvicorn.Server) -> Iterator[None]:
    """Let a signal only stop the server: uvicorn raises it again, which would end the process before its cleanup."""

    def stop(*_: object) -> None:
        server.should_exit = True  # already so, unless the signal came before the server listened for it

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
