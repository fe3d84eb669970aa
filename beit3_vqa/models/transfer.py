"""Fetching a file over https: resumed where it broke, never half-written under its name."""

import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from beit3_vqa.errors import InputError

CHUNK_BYTES = 1 << 18


# Which addresses are allowed


def require_safe(address: str, local_allowed: bool) -> None:
    """Refuse everything but https; http is allowed to this machine itself, where nothing travels over a network."""
    safe = False
    with contextlib.suppress(ValueError):  # no such host or port
        parts = urlsplit(address)
        well_formed = bool(re.fullmatch("[!-~]+", address) and parts.hostname and parts.port != 0)
        safe = well_formed and (parts.scheme == "https" or (local_allowed and _is_local(address)))
    if not safe:
        raise InputError(f"{shown(address)!r} is refused: files are fetched over https only. Give an https address")


def _is_local(address: str) -> bool:
    parts = urlsplit(address)
    with contextlib.suppress(ValueError):
        return parts.scheme == "http" and ip_address(parts.hostname or "").is_loopback
    return parts.scheme == "http" and parts.hostname == "localhost"


def shown(address: str) -> str:
    """The address without user and query, which may hold somebody's key."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", address)[0])


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, local_allowed: bool) -> None:
        self.local_allowed = local_allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        require_safe(newurl, self.local_allowed)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(address: str) -> urllib.request.OpenerDirector:
    """urllib's opener, less redirects that leave https and, to this machine, proxies."""
    local = _is_local(address)
    proxies = [urllib.request.ProxyHandler({})] if local else []  # a proxy would take a local request elsewhere
    return urllib.request.build_opener(_SafeRedirects(local), *proxies)


# The transfer


@dataclass(frozen=True)
class _Progress:
    """What `.part` holds the beginning of, kept beside it in `.part.json`."""

    address: str
    total: int
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a weak ETag doesn't promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    @classmethod
    def read(cls, part: Path) -> "_Progress | None":
        try:
            return cls(**json.loads(Path(f"{part}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # an unknown beginning is fetched again

    def write(self, part: Path) -> None:
        temporary = Path(f"{part}.json.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        temporary.replace(f"{part}.json")


class _BrokenTransferError(Exception):
    """The transfer failed in a way that another attempt may mend."""


_NETWORK_ERRORS = (OSError, http.client.HTTPException)  # URLError, TimeoutError and ConnectionError are OSErrors


def fetch(transfer: "Transfer", attempts: int, pause: float, say: Callable[[str], None]) -> None:
    """Attempts a transfer until it is complete; InputError after `attempts` in a row that gained nothing."""
    failures, furthest = 0, transfer.part.stat().st_size
    while reason := transfer.attempt():
        size = transfer.part.stat().st_size
        failures = 1 if size > furthest else failures + 1
        furthest = max(furthest, size)
        if failures >= attempts:
            kept = f"{_bytes(size)} are kept in {transfer.part}: run the same command again to go on from there"
            raise InputError(
                f"{shown(transfer.address)}: {reason}, and {failures} tries in a row brought nothing more. "
                + (kept if size else "Try again later, or give another url")
            )
        wait = min(pause * 2 ** (failures - 1), 30)
        say(f"{reason}; trying again in {wait:g} s.")
        time.sleep(wait)


@dataclass(frozen=True)
class Transfer:
    """Brings `part` to its full length, one request an attempt."""

    opener: urllib.request.OpenerDirector
    address: str
    part: Path
    target: Path
    limit: int
    timeout: float

    def attempt(self) -> str | None:
        """None when `part` is complete, else why it isn't and another attempt may help."""
        try:
            self._request()
        except _BrokenTransferError as broken:
            return str(broken)
        return None

    def _request(self) -> None:
        known, offset = _Progress.read(self.part), self.part.stat().st_size
        if known and not (known.address == shown(self.address) and known.validator and offset <= known.total):
            known = None
        if known and offset == known.total:
            return
        headers = {"User-Agent": "beit3_vqa", "Accept-Encoding": "identity"}
        if known and offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": str(known.validator)}
        with self._open(urllib.request.Request(self.address, headers=headers)) as response:
            require_safe(response.geturl(), local_allowed=_is_local(self.address))
            if response.status == 206 and known and offset:
                self._require_continuation(response.headers, offset, known)
                self._receive(response, offset, known.total)
            elif response.status == 200:  # the first request, or a server that ignores Range, or another file by now
                self._receive(response, 0, self._start_over(response.headers))
            else:
                raise InputError(f"{shown(self.address)} answered HTTP {response.status}, which is no file")

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            return self.opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                os.truncate(self.part, 0)
                raise _BrokenTransferError("the server no longer has the rest of this file, starting over") from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _BrokenTransferError(f"the server answered HTTP {error.code}") from error
            if error.code < 400:
                raise InputError(
                    f"{shown(self.address)}: it redirects in a circle or away from https: refused"
                ) from error
            raise InputError(
                f"{shown(self.address)} answered HTTP {error.code} ({error.reason}): the file may have moved. "
                f"checkpoints/README.md says where else to look; fetch it from there with another url, or put it at "
                f"{self.target} yourself"
            ) from error
        except _NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(f"{shown(self.address)}: its certificate can't be trusted ({reason})") from error
            raise _BrokenTransferError(f"no connection ({reason})") from error

    def _require_continuation(self, headers: http.client.HTTPMessage, offset: int, known: _Progress) -> None:
        """A 206 must go on where `part` ends, in the very file that `part` began: some servers ignore If-Range."""
        span = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})", headers.get("Content-Range", "").strip())
        same_place = span and (int(span[1]), int(span[2])) == (offset, known.total)
        version = headers.get("ETag", known.etag), headers.get("Last-Modified", known.last_modified)
        if not same_place or version != (known.etag, known.last_modified):
            os.truncate(self.part, 0)
            raise _BrokenTransferError("the file has changed on the server, starting over")

    def _start_over(self, headers: http.client.HTTPMessage) -> int:
        """Empty `part`, note what it will hold, return its full length in bytes."""
        length = headers.get("Content-Length", "").strip()
        if not re.fullmatch("[0-9]{1,15}", length):
            raise InputError(
                f"{shown(self.address)} doesn't say how long the file is, so a broken transfer could not be told "
                f"from a whole one. Fetch it by hand and put it at {self.target}"
            )
        total = int(length)
        if total > self.limit:
            raise InputError(f"{shown(self.address)} has {_bytes(total)}, more than the {_bytes(self.limit)} allowed")
        # In this order: killed in between, an empty part is never taken for the beginning of something else.
        os.truncate(self.part, 0)
        free = shutil.disk_usage(self.part.parent).free
        if total > free:
            raise InputError(f"{self.part.parent} has {_bytes(free)} free, {self.target.name} needs {_bytes(total)}")
        _Progress(shown(self.address), total, headers.get("ETag"), headers.get("Last-Modified")).write(self.part)
        return total

    def _receive(self, response: http.client.HTTPResponse, offset: int, total: int) -> None:
        from tqdm import tqdm

        bar = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=self.target.name, disable=None)
        with bar, self.part.open("ab") as file:
            while offset < total:
                try:
                    chunk = response.read(min(CHUNK_BYTES, total - offset))
                except _NETWORK_ERRORS as error:
                    raise _BrokenTransferError(f"the connection broke after {_bytes(offset)} ({error})") from error
                if not chunk:
                    raise _BrokenTransferError(f"the connection ended after {_bytes(offset)} of {_bytes(total)}")
                file.write(chunk)
                offset += len(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def sole_writer(part: Path) -> Iterator[None]:
    """Hold `part` for this process: two downloads that append to one file would mix their bytes."""
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None  # type: ignore[assignment]
    with contextlib.ExitStack() as stack:
        held = False
        while not held:
            handle = stack.enter_context(part.open("ab"))
            if fcntl:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(f"Another download is writing {part}: wait for it, or stop it") from None
                except OSError:
                    pass  # a file system without locks
            else:
                handle.close()  # an open file can't be renamed there
            # Whoever held the lock may have given the file we opened its final name: then that one isn't ours.
            with contextlib.suppress(FileNotFoundError):
                held = not fcntl or os.path.samestat(os.fstat(handle.fileno()), part.stat())
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
            if not part.exists():
                Path(f"{part}.json").unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Puts a rename on disk."""
    with contextlib.suppress(OSError):  # Windows can't open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count} bytes"
