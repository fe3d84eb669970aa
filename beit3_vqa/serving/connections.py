"""Connections: those that nobody uses are closed, and those for which there is no place are told so."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from beit3_vqa.serving.guard import CROWDED
from beit3_vqa.serving.limits import MAX_CONNECTIONS, MAX_IDLE_SECONDS, MAX_SOCKETS


class Impatient(H11Protocol):
    """uvicorn's protocol, which waits for ever for the first request and for headers that come in drops.

    A connection is closed where for `MAX_IDLE_SECONDS` no request is being answered, and none begins.
    """

    def connection_made(self, transport: Any) -> None:
        """asyncio's call for a new connection."""
        super().connection_made(transport)
        # uvicorn's own limit says so in plain text, and in the log, which whoever connects often enough would fill.
        self.app_state = {CROWDED: len(self.connections) > MAX_CONNECTIONS}
        if len(self.connections) > MAX_SOCKETS:
            transport.abort()
        else:
            self._look_again()

    def _should_upgrade(self) -> bool:
        """uvicorn's question, at which it advises in the log to install a library for WebSockets, which aren't here."""
        return False

    def send_400_response(self, msg: str) -> None:
        """uvicorn's reply to what isn't HTTP, after which the application's own can't be sent any more."""
        super().send_400_response(msg)
        if self.cycle is not None:
            self.cycle.disconnected = True

    def _look_again(self) -> None:
        asyncio.get_running_loop().call_later(MAX_IDLE_SECONDS, self._close_if_idle, self.cycle)

    def _close_if_idle(self, before: Any) -> None:
        """Closes it if the last request is still the one of `before`, and is answered."""
        if self.transport.is_closing():
            return
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        else:
            self._look_again()
