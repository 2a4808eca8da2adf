"""Pictures for prediction, prepared one by one; bad ones are refused with one sentence.

Besides image files these may be arrays: bytes of a `.npy` file with `H W 3` (or `H W`) values from 0 to 255.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from mgmrn.config import ImageConfig
from mgmrn.data.images import Picture, Pixels, decode, for_evaluation, side_for_evaluation
from mgmrn.errors import UserError

LARGEST_PIXELS = 50_000_000
"""Largest picture; a file of a few kilobytes can decode to a picture that fills the memory."""
# Pillow warns of pictures that are refused here with a sentence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of picture files in a folder; a file that the user names may have any ending."""
_ARRAY = b"\x93NUMPY"
"""First bytes of a `.npy` file."""
_REMEDY = "send an image file, or a .npy file with H W 3 values from 0 to 255"


def prepared(content: bytes, where: str, config: ImageConfig) -> Pixels:
    """One picture, given as the bytes of an image file or of a `.npy` file, as the input of a network.

    Raises UserError, which calls the picture `where`, when it is broken, of another format, or too large.
    """
    is_array = content.startswith(_ARRAY)
    picture = _from_array(content, where) if is_array else _from_image(content, where, side_for_evaluation(config))
    return for_evaluation(picture, config)


def prepared_file(path: Path, config: ImageConfig) -> Pixels:
    """The same for a file. Raises UserError as `prepared` does, or when the file cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the picture cannot be read: {error.strerror}", str(path)) from error
    return prepared(content, str(path), config)


def _from_image(content: bytes, where: str, at_least: int) -> Picture:
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise UserError("this is no picture", where, _REMEDY) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture cannot be decoded: {error}", where, _REMEDY) from error
    _check_size(height, width, where)
    return decode(io.BytesIO(content), where, _REMEDY, at_least=at_least)


def _from_array(content: bytes, where: str) -> Picture:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OSError) as error:
        raise UserError(f"the array cannot be read: {error}", where, _REMEDY) from error
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or array.dtype.kind not in "iuf":
        raise UserError(f"the array is {array.shape} of {array.dtype}, no picture", where, _REMEDY)
    _check_size(array.shape[0], array.shape[1], where)
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 255):
        raise UserError("the array holds values outside 0 to 255", where, _REMEDY)
    if array.dtype.kind == "f" and array.max() <= 1:
        raise UserError("the array holds values from 0 to 1", where, "multiply them by 255")
    return torch.from_numpy(array.astype(np.uint8)).permute(2, 0, 1)


def _check_size(height: int, width: int, where: str) -> None:
    if height * width > LARGEST_PIXELS:
        message = f"the picture has {height} × {width} pixels, more than {LARGEST_PIXELS // 10**6} million"
        raise UserError(message, where, "make it smaller")
    if max(height, width) > 100 * min(height, width):
        raise UserError(f"the picture has {height} × {width} pixels", where, "cut out what it is of")
