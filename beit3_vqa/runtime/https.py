"""Which addresses a file may be fetched from: https, and never away from it."""

import contextlib
import re
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from beit3_vqa.errors import InputError


def require_https(address: str, local_allowed: bool) -> None:
    """Raise InputError unless it is https, or (if `local_allowed`) http to this machine, which no network sees."""
    with contextlib.suppress(ValueError):  # no such host or port
        parts = urlsplit(address)
        allowed = parts.scheme == "https" or (local_allowed and _is_local(address))
        if allowed and re.fullmatch("[!-~]+", address) and parts.hostname and parts.port != 0:
            return
    raise InputError(f"{shown(address)!r} is refused: files are fetched over https only. Give an https address")


def _is_local(address: str) -> bool:
    return urlsplit(address).scheme == "http" and urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")


def shown(address: str) -> str:
    """Return the address for messages, without user and query, which may hold somebody's key."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", address)[0])


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Refuse redirects that leave https, or that lead to this machine from elsewhere."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request to make next; InputError if its address `newurl` is refused."""
        require_https(newurl, local_allowed=_is_local(req.full_url))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(address: str) -> urllib.request.OpenerDirector:
    """Return what opens `address`; a proxy would take a request to this very machine elsewhere."""
    return urllib.request.build_opener(SafeRedirects, *[urllib.request.ProxyHandler({})] * _is_local(address))
