"""What decoding an image may take where its number of pixels doesn't bound that: a few bytes can ask for minutes.

- A JPEG may come in many scans, each of which goes over all its pixels: they are counted before.
- What Pillow does in Python (chunks of a PNG, blocks of a GIF, numbers of a plain PPM) reads the file bit by bit: each
  read looks at the clock.
- The other decoders compute for as long as they like, and some take memory without bound: they work in a process of
  their own, which is ended.
"""

import atexit
import json
import os
import re
import signal
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
MAX_SCANNED_PIXELS = 2_000_000_000  # of all scans together: about 3 s
MAX_DECODER_BYTES = 4 * 2**30
# Formats whose decoders are given a process of their own.
APART = ("TIFF", "JPEG2000", "AVIF")

_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_BLOCK = 2**20
_MAX_SEGMENTS = 10_000
# A segment of a JPEG begins with it. In the data between segments 0xFF is followed by 0 or by the number of a restart.
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")


class Watched:
    """A binary file that is read for `MAX_DECODE_SECONDS` of this thread's processor time at most.

    Args:
        file: the file.
        name: of the image, for the message.
    """

    def __init__(self, file: IO[bytes], name: str):
        self._file, self._name = file, name
        self._end = time.thread_time() + MAX_DECODE_SECONDS

    def read(self, size: int = -1) -> bytes:
        """Read as the file does; ImageError when the time is up."""
        if time.thread_time() > self._end:
            raise ImageError(
                f"image {self._name} takes more than {MAX_DECODE_SECONDS} s to decode: save it as an ordinary JPEG or "
                "PNG"
            )
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def memory_for(path: str) -> Iterator[None]:
    """Turn a lack of memory, while the image of that path is transformed, into an ImageError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # as torch says it
            raise
        raise ImageError(f"image {path!r} needs more memory than there is: scale it down", path) from None


def check_scans(file: IO[bytes], pixels: int, name: str) -> None:
    """Raise ImageError for a JPEG whose scans are too many, or too many for its pixels; the file's position stays.

    Args:
        file: the JPEG.
        pixels: width times height.
        name: of the image, for the message.
    """
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // pixels)
    position = file.tell()
    file.seek(0)
    found, last = 0, b""
    while block := file.read(_BLOCK):
        found += block.count(_SCAN) + (last + block[:1] == _SCAN)
        last = block[-1:]
    # Data of other kinds (a thumbnail, a video behind the image) may hold the two bytes too.
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
    """Count the scans that a JPEG's decoder would go through, up to one more than `most`."""
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
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from beit3_vqa.data.decoding import work; work()"
        )
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def decode(self, path: str, max_pixels: int | None) -> Image.Image | str:
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
            asked.write(json.dumps([os.getcwd(), path, max_pixels]).encode() + b"\n")  # noqa: PTH109
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


def decode_apart(path: str, max_pixels: int | None, name: str) -> Image.Image:
    """Decode an image of one of the formats `APART` in a process of its own; mode RGB, upright.

    Args:
        path: the file.
        max_pixels: as `open_image` has it.
        name: of the image, for messages.

    Raises:
        ImageError: as `open_image`, or when it takes too much time or memory.
    """
    global _decoder
    with _lock:
        if _decoder is None:
            _decoder = _Decoder()
        try:
            found = _decoder.decode(path, max_pixels)
        except (OSError, ValueError) as error:
            _end_decoder()
            raise ImageError(
                f"image {name} can't be decoded within {MAX_DECODE_SECONDS} s and {MAX_DECODER_BYTES // 2**30} GiB: "
                "save it as an ordinary JPEG or PNG"
            ) from error
        except BaseException:  # a Ctrl-C leaves an answer in the pipe
            _end_decoder()
            raise
    if isinstance(found, str):
        raise ImageError(found)
    return found


@atexit.register
def _end_decoder() -> None:
    global _decoder
    if _decoder is not None:
        _decoder.end()
    _decoder = None


def _forget_decoder() -> None:
    """Leave the decoder to the process that was forked."""
    global _decoder, _lock
    _decoder, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_decoder)


def work() -> None:
    """Decode the images whose paths come in on standard input, until it ends: what a `_Decoder` runs."""
    from beit3_vqa.data.images import decode_here

    for number in (signal.SIGINT, signal.SIGTERM):  # which are meant for the process that asks
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_DECODER_BYTES, MAX_DECODER_BYTES))
    for line in sys.stdin.buffer:
        folder, path, max_pixels = json.loads(line)
        try:
            os.chdir(folder)
            image = decode_here(path, max_pixels)
            answer = json.dumps(image.size).encode() + b"\n" + image.tobytes()
        except (ImageError, OSError, MemoryError) as error:
            answer = json.dumps(str(error) or "not enough memory").encode() + b"\n"
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
