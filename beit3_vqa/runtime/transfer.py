"""Fetch a file over https into `NAME.part`, from where an earlier try or an earlier process stopped."""

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.bar import progress_bar
from beit3_vqa.runtime.files import read_json, write_text
from beit3_vqa.runtime.https import opener, shown

# In messages, where whoever has installed the wheel can go: checkpoints/README.md says more, but isn't in it.
RELEASE_PAGE = "https://github.com/microsoft/unilm/tree/master/beit3"
_CHUNK = 1 << 18  # bytes
_WORTH_ANOTHER_TRY = (408, 416, 425, 429)  # of the HTTP statuses below 500
_NOBODY_THERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED)  # trying again is of no use


def fetch(
    address: str, part: Path, limit: int, *, attempts: int, pause: float, timeout: float, say: Callable[[str], None]
) -> None:
    """Bring `part` to the full length of the file at `address`.

    Args:
        address: https, or http on this machine.
        part: `NAME.part`; it exists and is empty or holds the file's beginning. `NAME.part.json` says of which file.
        limit: largest size in bytes; a larger file isn't begun.
        attempts: give up after this many failures in a row without a new byte; at once if there is no network.
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
            what = error.reason if error.code >= 400 else "a redirect in a circle or away from https is refused"
            reason = f"the server answered HTTP {error.code} ({what})"
            final = error.code < 500 and error.code not in _WORTH_ANOTHER_TRY
            if error.code == 416:  # the file is shorter by now
                os.truncate(part, 0)
        except URLError as error:
            reason, cause = f"no connection ({error.reason})", error.reason
            final = isinstance(cause, socket.gaierror) or getattr(cause, "errno", 0) in _NOBODY_THERE
        except (OSError, http.client.HTTPException) as error:
            reason, final = f"the transfer broke off ({error})", False
        size = part.stat().st_size
        failures, furthest = 1 if size > furthest else failures + 1, max(furthest, size)
        if final or failures >= attempts:
            kept = f"{_bytes(size)} are kept in {part}: run the same command again. " if size else ""
            advice = f"{RELEASE_PAGE} says where it is today, for --url; or fetch the file in a browser, and put it at"
            tried = f"{shown(address)}: {reason}. {kept}The file may have moved, or this machine can't reach it"
            raise InputError(f"{tried}: {advice} {part.with_suffix('')}")
        say(f"{reason}; trying again in {(wait := min(pause * 2 ** (failures - 1), 30)):g} s.")
        time.sleep(wait)


def _attempt(address: str, part: Path, limit: int, timeout: float) -> None:
    """Fetch what `part` lacks, once; OSError (URLError, HTTPError) or HTTPException if that fails."""
    known, offset = _known(address, part), part.stat().st_size
    if known and offset == known["total"]:
        return
    rest = {"Range": f"bytes={offset}-", "If-Range": known["etag"]} if known and offset else {}
    request = Request(address, headers={"User-Agent": "beit3_vqa", "Accept-Encoding": "identity", **rest})
    with opener(address).open(request, timeout=timeout) as answer, part.open("ab") as file:
        etag = answer.headers.get("ETag")
        if answer.status == 206 and rest:
            total = known["total"]
            # It must go on where `part` ends, in the very file that `part` began: some servers ignore If-Range.
            span = re.fullmatch(rf"bytes {offset}-[0-9]+/{total}", answer.headers.get("Content-Range", "").strip())
            if not span or etag not in (None, known["etag"]):
                file.truncate(0)
                raise OSError("the file has changed on the server, starting over")
        else:  # the first request, or a server that ignores Range, or another file by now
            total, offset = _length(answer.headers, address, part, limit), 0
            file.truncate(0)  # before the note: an empty part is never taken for the beginning of something else
            write_text(f"{part}.json", json.dumps({"address": shown(address), "total": total, "etag": etag}))
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
        note = read_json(Path(f"{part}.json"), 100_000)
        # A weak ETag, W/"...", doesn't promise the same bytes.
        if note["etag"][0] == '"' and note["address"] == shown(address) and part.stat().st_size <= note["total"]:
            return dict(note)
    return {}


def _length(headers: http.client.HTTPMessage, address: str, part: Path, limit: int) -> int:
    """Return the size of the whole file in bytes; InputError if it is unknown, over `limit` or over the disk's."""
    total = headers.get("Content-Length", "").strip()
    if not re.fullmatch("[0-9]{1,15}", total):
        raise InputError(
            f"{shown(address)} doesn't say how long the file is, so a broken transfer could not be told from a whole "
            f"one. Fetch it by hand and put it at {part.with_suffix('')}"
        )
    room = shutil.disk_usage(part.parent).free + part.stat().st_size  # `part` itself is overwritten
    for most, what in ((limit, "allowed"), (room, f"that {part.parent} has free")):
        if int(total) > most:
            raise InputError(f"{shown(address)} has {_bytes(int(total))}, more than the {_bytes(most)} {what}")
    return int(total)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count} bytes"
