"""The process in which rare formats are decoded: what it takes in time and memory ends with it, see `data.decoding`."""

import json
import os
import signal
import sys
from contextlib import suppress

from beit3_vqa.data.decoding import MAX_DECODER_BYTES
from beit3_vqa.data.images import decode_here
from beit3_vqa.errors import ImageError


def work() -> None:
    """Decode the images whose paths come in on standard input, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are meant for the parent, which ends this process
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_DECODER_BYTES, MAX_DECODER_BYTES))
    for line in sys.stdin.buffer:
        folder, path = json.loads(line)
        try:
            os.chdir(folder)
            image = decode_here(path)
            answer = json.dumps(image.size).encode() + b"\n" + image.tobytes()
        except (ImageError, OSError, MemoryError) as error:
            answer = json.dumps(str(error) or "not enough memory").encode() + b"\n"
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
