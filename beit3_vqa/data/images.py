"""Read image files of any format and mode as RGB; give one clear error for every file that can't be read.

Upstream's loader is `Image.open(path).convert("RGB")`. The differences:

- the EXIF orientation is applied, so that a phone's photograph stands upright (upstream shows it lying);
- transparent pixels become white, as in a browser (upstream shows the colour beneath, which is arbitrary and often
  black: black writing on a transparent ground would vanish); opaque pixels are the same;
- 16-bit, 32-bit and float grey are scaled to 8 bits (Pillow clips some of them, which turns a scan white).

Of an animation the first frame is read. Colour profiles are ignored, as upstream does."""

import math
import os
import posixpath
import re
import stat
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, ImageFile, UnidentifiedImageError

from beit3_vqa.data.decoding import APART, Watched, check_scans, decode_apart, memory_for
from beit3_vqa.errors import ImageError, InputError

T = TypeVar("T")

# These bound decoding to about a gigabyte and five seconds; without them a file of a few bytes could ask for more.
# JPEG's decoder needs half as much for a pixel as WebP's, JPEG 2000's, or that of an image with transparency.
MAX_IMAGE_PIXELS = 50_000_000
MAX_JPEG_PIXELS = 100_000_000
MAX_IMAGE_BYTES = 512 * 2**20
MAX_IMAGE_SIDE = 65_535  # JPEG's own limit; the first pass of a resize makes an image as high as the original

# A closed list: Pillow's EPS reader starts Ghostscript, and a data set has no need of the rare formats.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF", "HEIF")

_JPEG = ("JPEG", "MPO")  # an MPO is a JPEG with more images behind it, as some cameras write it
_DRIVE = re.compile("[A-Za-z]:")  # of Windows
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


def open_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Decode an image file: mode RGB, upright, loaded, the file closed.

    Args:
        path: the file; its content, not its extension, decides the format.
        at_least: if given, a JPEG is decoded at a half, a quarter or an eighth of its size, as long as neither side
            is shorter than this (in pixels). That skips most of the work; the pixels differ a little.

    Raises:
        ImageError: the file (it is named) is missing, no regular file, empty, larger than `MAX_IMAGE_BYTES`, none of
            `FORMATS`, truncated or damaged, has more pixels than `MAX_JPEG_PIXELS` (a JPEG that isn't CMYK) or
            `MAX_IMAGE_PIXELS`, or a side above `MAX_IMAGE_SIDE`, all of which its header says, or takes more time or
            memory than `data.decoding` allows. Pillow's own limit, twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million),
            applies too.
    """
    with _opened(Path(path)) as (file, name):
        if _is_for_another_process(file):
            return decode_apart(str(path), name)
        with _header(file, name) as image:
            return _decoded(image, name, at_least)


def open_with_size(path: str | Path, at_least: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return what `open_image` does with that `at_least`, and the (width, height) that it returns without.

    Raises:
        ImageError: as `open_image`.
    """
    with _opened(Path(path)) as (file, name):
        if _is_for_another_process(file):
            image = decode_apart(str(path), name)
            return image, image.size
        with _header(file, name) as header:
            width, height = header.size  # before a JPEG gets a smaller one
            image = _decoded(header, name, at_least)
            return image, (height, width) if _orientation(header) in _SWAPS_SIDES else (width, height)


def decode_here(path: str) -> Image.Image:
    """Decode an image as `open_image` does, but in this process whatever its format."""
    with _opened(Path(path)) as (file, name), _header(file, name) as image:
        return _decoded(image, name)


def _decoded(image: ImageFile.ImageFile, name: str, at_least: int | None = None) -> Image.Image:
    """Return the image decoded, upright and in mode RGB."""
    if image.format in _JPEG:
        assert image.fp is not None
        check_scans(image.fp, image.width * image.height, name)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
    image.load()
    return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image in mode RGB, turned as its EXIF says, as `open_image` returns a file's."""
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) in pixels of what `open_image` would return; only the header is read.

    Raises:
        ImageError: as `open_image`, except for damage that only decoding finds.
    """
    with _opened(Path(path)) as (file, name), _header(file, name) as image:
        width, height = image.size
        # Pillow turns a TIFF by itself, and would decode a whole PNG to look for EXIF behind the pixels.
        has_exif = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        return (height, width) if has_exif and _orientation(image) in _SWAPS_SIDES else (width, height)


def resolve_image_path(image_root: str | Path, relative: str) -> Path:
    """Return what `image_file` does as a path."""
    return Path(image_file(image_root, relative))


def image_file(image_root: str | Path, relative: str) -> str:
    r"""Return `image_root / relative`, the file that a row's image path means; refuse paths that leave `image_root`.

    Both `images\0.jpg`, as Windows writes it, and `./images/0.jpg` are understood. A data set supplies only the letters
    of the path, so the letters are checked. Symbolic links inside the folder belong to its owner, who may keep the
    images elsewhere: they are followed. `..` is resolved by its letters, as in `path_key`: behind a link the system
    would find another folder. The file needn't exist; `open_image` checks that.

    Raises:
        InputError: the path (it is quoted) is empty or absolute, holds a NUL character, leaves `image_root` through
            `..`, or can't be a file's name.
    """
    if "\0" in relative:
        raise InputError(f"image path {relative!r} holds a NUL character: the file it was read from is damaged")
    portable = relative.replace("\\", "/")
    if portable.startswith("/") or _DRIVE.match(portable):
        raise InputError(
            f"image path {relative!r} is absolute: write it relative to the image root ({str(image_root)!r})"
        )
    portable = posixpath.normpath(portable)
    if portable == ".":
        raise InputError(
            f"image path {relative!r} names no file: write it relative to the image root {str(image_root)!r}"
        )
    if portable.split("/", 1)[0] == "..":
        raise InputError(
            f"image path {relative!r} leaves the image root {str(image_root)!r}: copy the images into it, or link "
            "to their folder from there, or name a folder above both as the image root"
        )
    root = os.fspath(image_root)
    # Path is slow, and every example comes by here.
    path = portable if root in ("", ".") else os.path.join(root, portable)  # noqa: PTH118
    try:
        os.fsencode(path)
    except ValueError as error:  # a lone surrogate, which no file system takes
        raise InputError(f"image path {relative!r} can't be the name of a file: {error}") from error
    return path


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Open an image file, and yield it with its name for messages; any error in the block becomes an ImageError."""
    name = repr(str(path))
    _check_file(path, name)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # Pillow warns of large images (which we refuse), palettes and damaged metadata that we do without.
            warnings.simplefilter("ignore")
            if _is_heif(file):
                _register_heif(name)
            yield file, name
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"image {name} is no image that can be read ({', '.join(_formats())}): replace or convert it"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {name} has too many pixels ({_reason(error)}): scale it down") from error
    except MemoryError as error:
        raise ImageError(f"image {name} needs more memory than there is: scale it down") from error
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise ImageError(
            f"image {name} is truncated, damaged or of an unsupported kind ({_reason(error)}): replace or convert it"
        ) from error


@contextmanager
def _header(file: IO[bytes], name: str) -> Iterator[ImageFile.ImageFile]:
    """Yield the image with its header read and its size checked; ImageError if it is too large."""
    with Image.open(Watched(file, name), formats=_formats()) as image:
        photograph = image.format in _JPEG and image.mode != "CMYK"
        check_size(image.size, f"image {name}", MAX_JPEG_PIXELS if photograph else MAX_IMAGE_PIXELS)
        yield image


def _is_heif(file: IO[bytes]) -> bool:
    """Return whether the file is HEIF, as iPhones write photographs (.heic); its position stays at the start."""
    start = file.read(64)
    file.seek(0)
    if start[4:8] != b"ftyp":
        return False
    # HEIF and AVIF are the same container: the first brand, or those it goes with, say what is in it.
    box = start[: int.from_bytes(start[:4], "big")]
    brands = {box[place : place + 4] for place in range(8, len(box), 4)}
    return not brands.isdisjoint((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))


def _register_heif(name: str) -> None:
    """Let Pillow read HEIF; ImageError with the command that installs what it takes."""
    if "HEIF" in _formats():
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ImageError(
            f'image {name} is a HEIC photograph: pip install "beit3_vqa[heic]" to read it, or convert it to JPEG'
        ) from error
    register_heif_opener(thumbnails=False)
    _formats.cache_clear()


def check_size(size: tuple[int, int], name: str, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Raise ImageError, which begins with `name`, if an image of (width, height) pixels is empty or too large."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(f"{name} has {width} x {height} pixels, more than {max_pixels:,}: scale it down")
    if max(width, height) > MAX_IMAGE_SIDE:
        raise ImageError(f"{name} has {width} x {height} pixels, a side of more than {MAX_IMAGE_SIDE:,}: cut it")
    if width < 1 or height < 1:
        raise ImageError(f"{name} has {width} x {height} pixels: replace it")


def _is_for_another_process(file: IO[bytes]) -> bool:
    """Return whether Pillow would read the file as one of the formats `APART`; its position stays at the start."""
    if _is_heif(file):
        return True
    known = _formats()
    start = file.read(16)  # as many bytes as Pillow looks at
    file.seek(0)
    return any(name in known and Image.OPEN[name][1](start) for name in APART)  # type: ignore[misc]  # all have one


def _check_file(path: Path, name: str) -> None:
    """Raise ImageError if the file is missing, no regular file, empty or too large."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ImageError(f"image {name} doesn't exist: check the path and the image root") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"image {name} can't be opened ({_reason(error)})") from error
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise ImageError(f"image {name} is {kind}: an image file is needed")
    if status.st_size == 0:
        raise ImageError(f"image {name} is empty (0 bytes): copy it again")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ImageError(f"image {name} has {status.st_size:,} bytes, more than {MAX_IMAGE_BYTES:,}: scale it down")


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if there is none or it is nonsense."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF raises all sorts
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to mode RGB: transparent pixels become white, wide grey is scaled."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(rgba, mask=rgba.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or float grey to mode L, 0 to 255.

    White is 65535 for 16 bits. Wider integers and floats don't say what their white is: it is taken to be the first of
    1 (floats only), 255 and 65535 that covers the image. An image that none of them covers is stretched from its
    darkest to its brightest pixel.

    Raises:
        ValueError: a pixel is NaN or infinite.
    """
    # PNG and PGM hold 16 bits at most; some versions of Pillow widen them to mode I.
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    whites = (65535,) if sixteen_bits else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    low, high = (float(value) for value in image.getextrema())  # type: ignore[arg-type]  # one band
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("it holds values that aren't finite numbers")
    white = next((float(white) for white in whites if low >= 0 and high <= white), None)
    black = 0.0 if white is not None else low
    scale = 255 / ((white if white is not None else high) - black or 1.0)
    # Conversion to L cuts the fraction off: half a level turns that into rounding.
    return image.point(lambda value: value * scale + (0.5 - black * scale)).convert("L")


# Decoded images are kept for the next question about them.

CACHE_BYTES = 32 * 2**20
BYTES_PER_PIXEL = 4  # Pillow pads RGB to four bytes
BYTES_PER_ROW = 8  # the pointer to its beginning
BYTES_PER_IMAGE = 4096  # the objects around it: without them, millions of single pixels would count as nothing


class ImageCache:
    """`open_image` with a cache of the images used last.

    In evaluation the questions about an image come one after another, so it is decoded once. In training they are
    spread over the epoch: that helps with small images, of which thousands fit. The last result of a transform is kept
    too, however large its image. Not thread-safe.

    Args:
        max_bytes: memory for the images, in each process.
        at_least: see `open_image`; None: images as they are.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES, at_least: int | None = None):
        self.max_bytes = max_bytes
        self.at_least = at_least
        self.bytes = 0
        self._images: OrderedDict[str, Image.Image] = OrderedDict()
        self._last: tuple[str, object, Any] | None = None  # path, transform and result
        self._held: dict[str, Image.Image] = {}

    @contextmanager
    def holding(self, name: str, image: Image.Image) -> Iterator[None]:
        """Let `open(name)` return an image that is in no file, mode RGB, as long as the context lasts."""
        self._held[name], self._last = image, None  # the name may have been another image's
        try:
            yield
        finally:
            del self._held[name]
            self._last = None

    def clear(self) -> None:
        """Forget every image, as its file may have changed."""
        self._images.clear()
        self.bytes, self._last = 0, None

    def open(self, path: str | Path) -> Image.Image:
        """Return the image as `open_image` does; it is shared, so don't change it in place.

        Raises:
            ImageError: as `open_image`; its `path` says which image it was.
        """
        name = str(path)
        if name in self._held:
            return self._held[name]
        image = self._images.get(name)
        if image is not None:
            self._images.move_to_end(name)
            return image
        try:
            with memory_for(name):
                image = open_image(path, at_least=self.at_least)
        except ImageError as error:
            error.path = name  # an example may have several images
            raise
        cost = _count_bytes(image)
        if cost <= self.max_bytes:
            self.bytes += cost
            while self.bytes > self.max_bytes:
                self.bytes -= _count_bytes(self._images.popitem(last=False)[1])
            self._images[name] = image = _copy_pixels(image)
        return image

    def transformed(self, path: str | Path, transform: Callable[[Image.Image], T]) -> T:
        """Return what the transform makes of the image. If both are those of the last call, return its result again.

        So several questions about an image in a row decode and resize it once, even if it is too large to be kept. The
        result is shared, so don't change it in place.

        Raises:
            ImageError: as `open`.
        """
        name = str(path)
        if self._last is None or self._last[:2] != (name, transform):
            self._last = name, transform, transform(self.open(path))
        result: T = self._last[2]
        return result


def _count_bytes(image: Image.Image) -> int:
    return BYTES_PER_IMAGE + image.height * (BYTES_PER_ROW + image.width * BYTES_PER_PIXEL)


def _copy_pixels(image: Image.Image) -> Image.Image:
    """Return the image without what else is in its file: texts, profiles and EXIF may take megabytes."""
    pixels = image.copy()
    pixels.info = {}
    return pixels
