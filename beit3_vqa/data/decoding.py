"""Bound the time and memory of decoding an image: a file of a few bytes can ask for minutes.

- A JPEG may have many scans, each over all its pixels: they are counted first.
- The decoders that Pillow has in Python (chunks of a PNG, blocks of a GIF, numbers of a plain PPM) read the file bit by
  bit: each read looks at the clock.
- The others compute for as long as they like, and some take memory without bound: they run in a process of their own,
  which is killed after `MAX_DECODE_SECONDS`.
"""

import atexit
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from PIL import Image

from beit3_vqa.errors import ImageError

MAX_DECODE_SECONDS = 20
MAX_SCANS = 100  # programs write about 10
MAX_SCANNED_PIXELS = 2_000_000_000  # in all scans together: about 3 s
MAX_DECODER_BYTES = 4 * 2**30
# Formats whose decoders run in a process of their own.
APART = ("TIFF", "JPEG2000", "AVIF", "HEIF")

_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_BLOCK = 2**20
_MAX_SEGMENTS = 10_000
# The marker that begins a segment of a JPEG. In the data between segments, 0 or a restart's number follows 0xFF.
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")


class Watched:
    """A binary file that can be read for `MAX_DECODE_SECONDS` of this thread's processor time.

    Args:
        file: the file.
        name: name of the image, for the message.
    """

    def __init__(self, file: IO[bytes], name: str):
        self._file, self._name = file, name
        self._end = time.thread_time() + MAX_DECODE_SECONDS

    def read(self, size: int = -1) -> bytes:
        """Read as the file does; ImageError if the time is up."""
        if time.thread_time() > self._end:
            raise ImageError(
                f"image {self._name} takes more than {MAX_DECODE_SECONDS} s to decode: save it as an ordinary JPEG or "
                "PNG"
            )
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:  # whatever else Pillow asks of a file
        return getattr(self._file, name)


@contextmanager
def memory_for(path: str) -> Iterator[None]:
    """Turn a lack of memory in the block, which transforms the image of that path, into an ImageError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # as torch says it
            raise
        raise ImageError(f"image {path!r} needs more memory than there is: scale it down", path) from None


def check_scans(file: IO[bytes], pixels: int, name: str) -> None:
    """Raise ImageError if a JPEG has too many scans, or too many for its pixels; the file's position stays.

    Args:
        file: the JPEG.
        pixels: width times height.
        name: name of the image, for the message.
    """
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // pixels)
    position = file.tell()
    file.seek(0)
    found, last = 0, b""
    while block := file.read(_BLOCK):
        found += block.count(_SCAN) + (last + block[:1] == _SCAN)
        last = block[-1:]
    # Counting the two bytes is quick, but other data (a thumbnail, a video behind the image) may hold them too.
    if found > most:
        file.seek(0)
        found = _count_scans(file.read(), most)
    file.seek(position)
    if found > most:
        raise ImageError(
            f"image {name} is a JPEG of more than {most} scans, which takes too long to decode: save it as an ordinary "
            "JPEG or PNG"
        )


def _count_scans(data: bytes, most: int) -> int:
    """Count the scans that a JPEG's decoder would decode; stop at `most` + 1."""
    scans, position = 0, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None or marker[0] == _END:
            return scans
        scans += marker[0] == _SCAN
        if scans > most:
            return scans
        length = data[marker.end() : marker.end() + 2]
        position = marker.end() + int.from_bytes(length, "big")
    return most + 1


class _Decoder:
    """A process that decodes one image after the other."""

    def __init__(self) -> None:
        code = "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
        code += "from beit3_vqa.data.decode_worker import work\nwork()"
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def decode(self, path: str) -> Image.Image | str:
        """Return the image, or what is wrong with it.

        Raises:
            OSError, ValueError: the process has ended.
        """
        asked, answers = self.process.stdin, self.process.stdout
        assert asked is not None
        assert answers is not None
        timer = threading.Timer(MAX_DECODE_SECONDS, self.process.kill)
        timer.start()
        try:
            asked.write(json.dumps([os.getcwd(), path]).encode() + b"\n")  # noqa: PTH109
            asked.flush()
            size = json.loads(answers.readline())
            return size if isinstance(size, str) else Image.frombytes("RGB", size, answers.read(3 * size[0] * size[1]))
        finally:
            timer.cancel()

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was written to a process that had ended
                pipe.close()  # type: ignore[union-attr]


_decoder: _Decoder | None = None
_lock = threading.Lock()


def decode_apart(path: str, name: str) -> Image.Image:
    """Decode an image of one of the formats `APART` in a process of its own; mode RGB, upright.

    Args:
        path: the file.
        name: name of the image, for messages.

    Raises:
        ImageError: as `open_image`, or it takes too much time or memory.
    """
    global _decoder
    with _lock:
        if _decoder is None:
            _decoder = _Decoder()
        try:
            found = _decoder.decode(path)
        except (OSError, ValueError) as error:
            _end_decoder()
            raise ImageError(
                f"image {name} can't be decoded within {MAX_DECODE_SECONDS} s and {MAX_DECODER_BYTES // 2**30} GiB: "
                "save it as an ordinary JPEG or PNG"
            ) from error
        except BaseException:  # a Ctrl-C leaves an answer in the pipe, which the next image would get
            _end_decoder()
            raise
    if isinstance(found, str):
        raise ImageError(found)
    return found


@atexit.register
def _end_decoder() -> None:
    """End the decoder's process, if one runs."""
    global _decoder
    if _decoder is not None:
        _decoder.end()
    _decoder = None


def _forget_decoder() -> None:
    """Forget the parent's decoder in a forked process, whose pipe it would share."""
    global _decoder, _lock
    _decoder, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_decoder)
