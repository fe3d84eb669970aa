"""Fetch a file over https into `NAME.part`, from where an earlier try or an earlier process stopped."""

import contextlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.bar import progress_bar
from beit3_vqa.runtime.files import read_json, write_text

_CHUNK = 1 << 18  # bytes
_MAX_NOTE = 100_000  # bytes
_VERSION = {"etag": "ETag", "last_modified": "Last-Modified"}  # name in `NAME.part.json` -> HTTP header


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

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request to make next; InputError if its address `newurl` is refused."""
        require_https(newurl, local_allowed=_is_local(req.full_url))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def sole_writer(part: Path) -> Iterator[None]:
    """Lock `part` for this process: two downloads that append to one file would mix their bytes."""
    with part.open("ab") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another download is writing {part}: wait for it, or stop it") from None
        except (ImportError, OSError):  # Windows, where an open file can't be renamed, or a file system without locks
            lock.close()
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
            if not part.exists():
                Path(f"{part}.json").unlink(missing_ok=True)


def fetch(
    address: str, part: Path, limit: int, *, attempts: int, pause: float, timeout: float, say: Callable[[str], None]
) -> None:
    """Bring `part` to the full length of the file at `address`.

    Args:
        address: https, or http on this machine.
        part: `NAME.part`; it exists and is empty or holds the file's beginning. `NAME.part.json` says of which file.
        limit: largest size in bytes; a larger file isn't begun.
        attempts: give up after this many failures in a row without a new byte.
        pause: seconds before the second attempt; doubled each time, at most 30.
        timeout: seconds without an answer after which an attempt has failed.
        say: called with the reason of each new attempt.

    Raises:
        InputError: the address is refused, or the file is moved, too large, of unknown length or out of reach; the
            bytes that came stay in `part`.
    """
    failures, furthest = 0, part.stat().st_size
    while True:
        try:
            return _attempt(address, part, limit, timeout)
        except HTTPError as error:
            error.close()
            reason = f"the server answered HTTP {error.code}"
            if error.code == 416:  # the file is shorter by now
                os.truncate(part, 0)
            elif error.code < 500 and error.code not in (408, 425, 429):
                what = "a redirect in a circle or away from https is refused" if error.code < 400 else error.reason
                raise InputError(
                    f"{shown(address)} answered HTTP {error.code} ({what}): the file may have moved. "
                    "checkpoints/README.md says where else to look; fetch it from there with another url, or put it "
                    f"at {part.with_suffix('')} yourself"
                ) from error
        except URLError as error:
            reason = f"no connection ({error.reason})"
        except (OSError, http.client.HTTPException) as error:
            reason = f"the transfer broke off ({error})"
        size = part.stat().st_size
        failures, furthest = 1 if size > furthest else failures + 1, max(furthest, size)
        if failures >= attempts:
            kept = f"{_bytes(size)} are kept in {part}: run the same command again to go on from there"
            advice = kept if size else "Try again later, or give another url"
            tried = f"{reason}, and {failures} tries in a row brought nothing more"
            raise InputError(f"{shown(address)}: {tried}. {advice}")
        wait = min(pause * 2 ** (failures - 1), 30)
        say(f"{reason}; trying again in {wait:g} s.")
        time.sleep(wait)


def _attempt(address: str, part: Path, limit: int, timeout: float) -> None:
    """Fetch what `part` lacks, once; OSError (URLError, HTTPError) or HTTPException if that fails."""
    known, offset = _known(address, part), part.stat().st_size
    if known and offset == known["total"]:
        return
    rest = {"Range": f"bytes={offset}-", "If-Range": known["validator"]} if known and offset else {}
    headers = {"User-Agent": "beit3_vqa", "Accept-Encoding": "identity", **rest}
    proxies = [urllib.request.ProxyHandler({})] if _is_local(address) else []  # one would take the request elsewhere
    opener = urllib.request.build_opener(SafeRedirects, *proxies)
    request = urllib.request.Request(address, headers=headers)
    with opener.open(request, timeout=timeout) as answer, part.open("ab") as file:
        version = {name: answer.headers.get(field) for name, field in _VERSION.items()}
        if answer.status == 206 and rest:
            total = known["total"]
            # It must go on where `part` ends, in the very file that `part` began: some servers ignore If-Range.
            span = re.fullmatch(rf"bytes {offset}-[0-9]+/{total}", answer.headers.get("Content-Range", "").strip())
            if not span or any(value not in (None, known[name]) for name, value in version.items()):
                file.truncate(0)
                raise OSError("the file has changed on the server, starting over")
        else:  # the first request, or a server that ignores Range, or another file by now
            total, offset = _length(answer.headers, address, part, limit), 0
            file.truncate(0)  # before the note: an empty part is never taken for the beginning of something else
            write_text(f"{part}.json", json.dumps({"address": shown(address), "total": total, **version}, indent=2))
        with progress_bar(total=total, initial=offset, unit="B", unit_scale=True, desc=part.stem) as bar:
            while offset < total:
                chunk = answer.read(min(_CHUNK, total - offset))
                if not chunk:
                    raise OSError(f"the connection ended after {_bytes(offset)} of {_bytes(total)}")
                offset += file.write(chunk)
                bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _known(address: str, part: Path) -> dict[str, Any]:
    """Return the note about the file that `part` begins; empty if there is none or it doesn't let us continue."""
    with contextlib.suppress(Exception):  # a damaged note only costs a fresh start
        note = read_json(Path(f"{part}.json"), _MAX_NOTE)
        strong = note["etag"] and not note["etag"].startswith("W/")  # a weak ETag doesn't promise the same bytes
        validator = note["etag"] if strong else note["last_modified"]
        if note["address"] == shown(address) and validator and part.stat().st_size <= note["total"]:
            return {**note, "validator": validator}
    return {}


def _length(headers: http.client.HTTPMessage, address: str, part: Path, limit: int) -> int:
    """Return the size of the whole file in bytes; InputError if it is unknown, over `limit` or over the disk's."""
    total = headers.get("Content-Length", "").strip()
    free = shutil.disk_usage(part.parent).free + part.stat().st_size  # `part` itself is overwritten
    if not re.fullmatch("[0-9]{1,15}", total):
        raise InputError(
            f"{shown(address)} doesn't say how long the file is, so a broken transfer could not be told from a whole "
            f"one. Fetch it by hand and put it at {part.with_suffix('')}"
        )
    if int(total) > limit:
        raise InputError(f"{shown(address)} has {_bytes(int(total))}, more than the {_bytes(limit)} allowed")
    if int(total) > free:
        raise InputError(f"{part.parent} has {_bytes(free)} free, {part.stem} needs {_bytes(int(total))}")
    return int(total)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count} bytes"
