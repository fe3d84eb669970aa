"""Reading images, before the questions about them join the queue."""

import asyncio
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from beit3_vqa.apps.serve.ensemble import Ensemble, Question
from beit3_vqa.apps.serve.limits import MAX_UPLOAD_BYTES
from beit3_vqa.errors import InputError


class TooLargeError(InputError):
    """The image has too many bytes."""


class UploadReader:
    """Reads an image at a time: decoding may take a gigabyte for a moment, and a second thread would double that.

    While an image is on disk, its content's hash is its name, so that the next question about it finds it decoded.

    Args:
        ensemble: models for which questions are made ready.
        folder: folder for images; each is deleted as soon as it is read.
    """

    def __init__(self, ensemble: Ensemble, folder: Path):
        self.ensemble = ensemble
        self.folder = folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    async def prepare(self, image: BinaryIO, question: str, choices: Sequence[str], *, attention: bool) -> Question:
        """Make a question ready for the model; raise InputError if that can't be done."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._prepare, image, question, choices, attention)

    def _prepare(self, image: BinaryIO, question: str, choices: Sequence[str], attention: bool) -> Question:
        data = image.read(MAX_UPLOAD_BYTES + 1)
        if len(data) > MAX_UPLOAD_BYTES:
            raise TooLargeError(f"an image may have {MAX_UPLOAD_BYTES:,} bytes: scale it down.")
        path = self.folder / hashlib.sha256(data).hexdigest()
        try:
            path.write_bytes(data)
            return self.ensemble.prepare(path, question, choices, attention=attention)
        except InputError as error:
            raise InputError(str(error).replace(f"image {str(path)!r}", "the image")) from None
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop reading images."""
        self._thread.shutdown(cancel_futures=True)
