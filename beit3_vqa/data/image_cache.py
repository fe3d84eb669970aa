"""Decoded images, kept for the next question about them."""

from collections import OrderedDict
from pathlib import Path

from PIL import Image

from beit3_vqa.data.images import open_image

CACHE_BYTES = 32 * 2**20
BYTES_PER_PIXEL = 4  # Pillow stores RGB so
BYTES_PER_ROW = 8  # where it begins
BYTES_PER_IMAGE = 4096  # the objects around it: without them, millions of single pixels would count as nothing


class ImageCache:
    """`open_image` with a memory of the images used last.

    In evaluation the questions about an image stand side by side in the index, and it is decoded once. In training
    they are spread over the epoch: small images, of which thousands fit, are still decoded only now and then.

    Args:
        max_bytes: memory that the images may take, in each process.
        at_least: see `open_image`; None: images as they are.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES, at_least: int | None = None):
        self.max_bytes = max_bytes
        self.at_least = at_least
        self.bytes = 0
        self._images: OrderedDict[str, Image.Image] = OrderedDict()

    def open(self, path: str | Path) -> Image.Image:
        """The image of a file, as `open_image` returns it; it is shared, so it must not be changed in place."""
        name = str(path)
        image = self._images.get(name)
        if image is not None:
            self._images.move_to_end(name)
            return image
        image = open_image(path, at_least=self.at_least)
        cost = _bytes_of(image)
        if cost <= self.max_bytes:
            self.bytes += cost
            while self.bytes > self.max_bytes:
                self.bytes -= _bytes_of(self._images.popitem(last=False)[1])
            self._images[name] = image = _pixels_of(image)
        return image


def _bytes_of(image: Image.Image) -> int:
    return BYTES_PER_IMAGE + image.height * (BYTES_PER_ROW + image.width * BYTES_PER_PIXEL)


def _pixels_of(image: Image.Image) -> Image.Image:
    """Return the image without the rest of its file: texts, profiles and EXIF may be megabytes beside one pixel."""
    pixels = image.copy()
    pixels.info = {}
    return pixels
