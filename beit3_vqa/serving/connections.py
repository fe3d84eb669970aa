"""Connections that nobody uses, of which there could be so many that others find no place."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from beit3_vqa.serving.limits import MAX_IDLE_SECONDS


class Impatient(H11Protocol):
    """uvicorn's protocol, which waits for ever for the first request and for headers that come in drops.

    A connection is closed where for `MAX_IDLE_SECONDS` no request is being answered, and none begins.
    """

    def connection_made(self, transport: Any) -> None:
        """asyncio's call for a new connection."""
        super().connection_made(transport)
        self._look_again()

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
