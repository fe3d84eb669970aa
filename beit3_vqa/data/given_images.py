"""Read an image that a caller of Python hands over: a Pillow image, an array, or the bytes of a file.

The limits of `data.images` hold for all of them: whatever isn't decoded yet goes through `open_image`.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from beit3_vqa.data.images import MAX_IMAGE_BYTES, check_size, open_image, upright_rgb
from beit3_vqa.errors import ImageError, InputError, first_line, short

if TYPE_CHECKING:
    from numpy.typing import NDArray

GivenImage: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8] | bytes"
KINDS = "a path, a Pillow image, a numpy array (H, W, 3) or (H, W) of uint8, or the bytes of an image file"


def read_given_image(image: Any) -> Image.Image:
    """Return an image that isn't a path: mode RGB, upright, decoded.

    Args:
        image: a Pillow image; a uint8 array (H, W, 3) of RGB or (H, W) of grey, 0 to 255; the bytes of an image file.

    Raises:
        InputError: it is something else, is too large, or can't be decoded.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(image))
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise InputError(f"the image is {short(image)}: give {KINDS}.")


def _from_bytes(content: bytes) -> Image.Image:
    if len(content) > MAX_IMAGE_BYTES:
        raise ImageError(f"the image has {len(content):,} bytes, more than {MAX_IMAGE_BYTES:,}: scale it down")
    # Through a file, since the decoders that run in a process of their own read one.
    with tempfile.TemporaryDirectory(prefix="beit3_vqa-") as folder:
        path = Path(folder, "image")
        path.write_bytes(content)
        try:
            return open_image(path)
        except ImageError as error:
            raise ImageError(str(error).replace(f"image {str(path)!r}", "the image")) from None


def _from_pillow(image: Image.Image) -> Image.Image:
    content = _undecoded(image)
    if content is not None:
        return _from_bytes(content)
    check_size(image.size, "the image")
    try:
        image.load()
        rgb = upright_rgb(image)
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise ImageError(f"the image can't be decoded ({first_line(error)}): replace or convert it") from error
    return rgb.copy() if rgb is image else rgb


def _undecoded(image: Image.Image) -> bytes | None:
    """Return the file of an image that Pillow has opened but not decoded; None if it is decoded, or has no such file.

    A later frame of an animation has none: in a file the first one is read.
    """
    decoded = image.__dict__.get("_im") is not None  # asking for `image.im` would raise or decode
    file = getattr(image, "fp", None)
    if decoded or file is None or image.tell():
        return None
    try:
        place = file.tell()
        file.seek(0)
        content: bytes = file.read(MAX_IMAGE_BYTES + 1)
        file.seek(place)
    except (OSError, ValueError, AttributeError):  # closed, or a stream that goes one way only
        return None
    return content


def _from_array(array: "NDArray[Any]") -> Image.Image:
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (grey or colour):
        shape = ", ".join(map(str, array.shape))
        raise InputError(
            f"the image is an array ({shape}) of {array.dtype}: give (height, width, 3) of RGB, or (height, width) of "
            "grey, as uint8 from 0 to 255."
        )
    check_size((array.shape[1], array.shape[0]), "the image")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
