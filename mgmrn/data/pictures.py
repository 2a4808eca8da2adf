"""Reading of pictures: all verbs read them here, so that they accept and refuse the same ones.

docs/reference/inputs.md lists both. Besides image files these may be arrays: `.npy` files with `h w 3` (or `h w`)
values from 0 to 255. h w pixels.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mgmrn.errors import UserError

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TIFF", "WEBP")
"""Formats that are read, recognised by the content alone."""
UNREAD = frozenset({".cr2", ".dng", ".eps", ".heic", ".heif", ".ico", ".jxl", ".nef", ".psd", ".svg", ".tga"})
"""Endings of pictures of other formats, which are refused; they are not left out of a folder silently."""
ENDINGS = UNREAD.union(
    (".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm"),
    (".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tif", ".tiff", ".webp"),
)
"""Endings of picture files in a folder; a file that the user names may have any ending."""
LARGEST_PIXELS = 50_000_000
"""Largest picture; a file of a few kilobytes can decode to a picture that fills the memory."""
LARGEST_RATIO = 100
"""Largest ratio of the sides; a strip whose shorter side is enlarged would fill the memory."""
# Pillow warns of damaged metadata, which is ignored, and of large pictures, which are refused with their name.
warnings.filterwarnings("ignore", module=r"PIL\.")

_EIGHT_BITS = "save it with 8 bits a value"

Picture = UInt8[Tensor, "3 h w"]


def read_picture(source: Path | bytes, where: str = "", *, at_least: int | None = None) -> Picture:
    """A picture of any format and mode as upright RGB, on white where it is transparent.

    `source` is a file or its content, `where` its name in errors (default: the file's path). `at_least` is the least
    number of pixels of the shorter side: a JPEG with at least twice as many is decoded at a half, a quarter or an eighth
    of its sides, which saves most of the time; None: full size. Raises UserError for all that cannot be read rightly.
    """
    remedy = "send an image file, or a .npy file with H W 3 values from 0 to 255"
    if isinstance(source, Path):
        where, remedy = where or str(source), "get the file again, or convert it to PNG"
    try:
        with open_picture(source) if isinstance(source, Path) else io.BytesIO(source) as file:
            is_array = file.read(6) == np.lib.format.MAGIC_PREFIX
            file.seek(0)
            pixels = _pixels_of_array(file) if is_array else _pixels_of_image(file, at_least)
    except UserError as error:
        raise UserError(error.message, error.where or where, error.hint or remedy) from error
    except UnidentifiedImageError as error:
        hint = f"{remedy}; {', '.join(FORMATS)} are known"
        raise UserError("this is no picture of a known format", where, hint) from error
    except Exception as error:  # Decoders raise many kinds of exception on broken bytes.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the picture cannot be decoded: {reason}", where, remedy) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_picture(path: Path) -> io.BufferedIOBase:
    """Opens a picture's file. Raises UserError when it is missing, unreadable or no regular file."""
    where = str(path).encode(errors="backslashreplace").decode()
    if where != str(path):
        raise UserError("the name of the picture is not UTF-8", where, "rename it")
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except OSError as error:
        raise UserError(f"the picture cannot be read: {error.strerror}", where, "check its path and rights") from error
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise UserError(f"this is {kind}, no picture", where, "put a file in its place")


def files_below(folder: Path) -> list[Path]:
    """Files of a folder and its subfolders, linked ones included, sorted; without names that begin with a dot.

    Raises UserError when a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder cannot be listed: {error.strerror}", str(error.filename)) from error

    found, visited = [], set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = os.path.realpath(parent)
        # A link may lead to a folder above.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and place not in visited)
        found += [Path(parent, name) for name in files if not name.startswith(".") and place not in visited]
        visited.add(place)
    return sorted(found)


def _pixels_of_array(file: io.BufferedIOBase) -> UInt8[np.ndarray, "h w 3"]:
    array = np.load(file, allow_pickle=False)
    shape = array.shape
    if not (len(shape) in (2, 3) and shape[2:] in ((), (3,)) and array.size and array.dtype.kind in "iuf"):
        raise UserError(f"the array is {shape} of {array.dtype}, no picture")
    _check_size(shape[0], shape[1])
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 255):
        raise UserError("the array holds values outside 0 to 255")
    if array.dtype.kind == "f" and array.max() <= 1:
        raise UserError("the array holds values from 0 to 1", hint="multiply them by 255")
    return np.broadcast_to(np.atleast_3d(array), (*shape[:2], 3)).astype(np.uint8)


def _pixels_of_image(file: io.BufferedIOBase, at_least: int | None) -> UInt8[np.ndarray, "h w 3"]:
    with _opened(file) as image:
        _check_size(image.height, image.width)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        layout = f"{image.mode} {image.tile}"
        is_deep = re.search("[ILABXaK];16", layout) is not None
        is_negative = image.format == "TIFF" and image.tag_v2.get(262) == 0
        _load_upright(image)
        if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
            raise UserError("the range of the picture's 32-bit values is unknown", hint=_EIGHT_BITS)
        if is_deep and "transparency" in image.info:
            raise UserError("the picture has 16 bits a value and a transparent colour", hint=_EIGHT_BITS)
        if image.mode.startswith("I"):  # Pillow would cut values off at 255 instead of scaling them.
            values = np.asarray(image, dtype=np.uint32) >> (4 if "I;12" in layout else 8)
            image = Image.fromarray(values.astype(np.uint8))
            image = ImageOps.invert(image) if is_negative else image
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getextrema()[3][1] == 0:
                raise UserError("the picture is transparent everywhere", hint="save it without transparency")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("RGB"))
        if is_deep and pixels.max() < 64:
            message = "no 16-bit value of the picture is above 16383: they seem to have 12 or 14 bits"
            raise UserError(message, hint=f"scale them to 65535, or {_EIGHT_BITS}")
        return pixels


def _opened(file: io.BufferedIOBase) -> Any:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(12)
        if b"ftypavi" not in start:
            raise
        # Pillow takes an AVIF with damaged EXIF for no picture; EXIF of another name is ignored.
        content = start + file.read().replace(b"Exif", b"none", 1)
        return Image.open(io.BytesIO(content), formats=("AVIF",))


def _load_upright(image: Any) -> None:
    """Decodes a picture and turns it by its EXIF; metadata that cannot be understood counts as absent."""
    if image.format != "TIFF":
        image.load()  # EXIF of a PNG may follow the pixels.
    with suppress(Exception):
        exif = image.getexif()
        # Pillow encodes all tags again when it turns a picture, a TIFF while it loads it, and fails where one is odd.
        for tag in set(exif) - {ExifTags.Base.Orientation}:
            del exif[tag]
        for name in ("exif", "Raw profile type exif"):
            image.info.pop(name, None)
    ImageOps.exif_transpose(image, in_place=True)


def _check_size(height: int, width: int) -> None:
    if height * width > LARGEST_PIXELS:
        message = f"the picture has {height} × {width} pixels, more than {LARGEST_PIXELS // 10**6} million"
        raise UserError(message, hint="make it smaller")
    if max(height, width) > LARGEST_RATIO * min(height, width):
        raise UserError(f"the picture has {height} × {width} pixels", hint="cut out what it is of")
