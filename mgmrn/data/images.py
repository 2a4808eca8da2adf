"""Pictures to tensors: decoding, transforms, loaders.

An augmentation is a pure function of (run seed, epoch, image id), drawn from a generator of its own: nothing to save for an exact resume,
and the same picture whatever the number of workers. Training and test use one scale. B images, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.v2 import functional as transforms

from mgmrn.config import ImageConfig
from mgmrn.data.episodes import Rows
from mgmrn.data.splits import Images
from mgmrn.errors import UserError

CROP_MARGIN = 8 / 7
"""The shorter side before a crop, in crop sizes: 256 for 224, 512 for 448."""

AUGMENTATION_STREAM = 2
"""Keeps the random numbers of augmentation apart from those of sampling, which share seed and epoch."""

Picture = UInt8[Tensor, "3 h w"]
Pixels = Float[Tensor, "3 H W"]


def decode(
    source: Path | BufferedIOBase, where: str = "", remedy: str = "get the file again", *, at_least: int | None = None
) -> Picture:
    """An image file as RGB, upright, whatever its mode.

    Args:
        source: the file, or a stream of its bytes.
        where: what an error calls it; a file is called by its path.
        remedy: what an error advises where the picture is broken.
        at_least: pixels that are needed of the shorter side. A JPEG that has twice as many or more is decoded at a half, a quarter or
            an eighth of its sides, which saves most of the time; None: at its own size.

    Raises:
        UserError: naming the picture when it is missing, cut short or no image.
    """
    where = where or (str(source) if isinstance(source, Path) else "")
    try:
        with Image.open(source) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255 instead of scaling.
                upright = Image.fromarray((np.asarray(upright, dtype=np.uint32) >> 8).clip(max=255).astype(np.uint8))
            pixels = np.array(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError("the picture does not exist", where, "`data verify` lists all that are missing") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture cannot be decoded: {error}", where, remedy) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def side_for_evaluation(config: ImageConfig) -> int:
    """Pixels of a picture's shorter side that `for_evaluation` has use for."""
    return config.size if config.resize == "squash" else round(config.size * CROP_MARGIN)


def side_for_training(config: ImageConfig) -> int:
    """Pixels of a picture's shorter side that `for_training` has use for, where the smallest crop is to be no coarser than a tensor."""
    if config.min_crop_area == 1:
        return side_for_evaluation(config)
    # The narrowest box has an aspect ratio of 3:4.
    return math.ceil(config.size / math.sqrt(config.min_crop_area * 3 / 4))


def for_evaluation(picture: Picture, config: ImageConfig) -> Pixels:
    """Resized (and cropped in the middle), scaled and normalised."""
    resized = _resized(picture, config)
    return _normalised(transforms.center_crop(resized, [config.size, config.size]), config)


def for_training(picture: Picture, config: ImageConfig, rng: np.random.Generator) -> Pixels:
    """Randomly cropped, flipped and coloured as the config says, then scaled and normalised."""
    if config.min_crop_area < 1:
        top, left, height, width = _random_box(picture, config.min_crop_area, rng)
        size = [config.size, config.size]
        picture = transforms.resized_crop(picture, top, left, height, width, size, antialias=True)
    else:
        picture = _resized(picture, config)
        height, width = picture.shape[-2:]
        top, left = int(rng.integers(height - config.size + 1)), int(rng.integers(width - config.size + 1))
        picture = transforms.crop(picture, top, left, config.size, config.size)
    if config.flip and rng.random() < 0.5:
        picture = transforms.horizontal_flip(picture)
    if config.colour_jitter:
        low, high = max(0.0, 1 - config.colour_jitter), 1 + config.colour_jitter
        picture = transforms.adjust_brightness(picture, rng.uniform(low, high))
        picture = transforms.adjust_contrast(picture, rng.uniform(low, high))
        picture = transforms.adjust_saturation(picture, rng.uniform(low, high))
    return _normalised(picture, config)


def train_loader(
    images: Images, config: ImageConfig, batches: list[Rows], seed: int, epoch: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """The augmented pictures of each batch of an epoch.

    Args:
        images: what is trained on.
        config: size and augmentation.
        batches: rows of `images`, batch by batch.
        seed: of the run.
        epoch: number of the epoch.
        workers: decoding processes; 0 decodes in the caller's.
    """
    return _load(_TrainingPictures(images, config, seed, epoch), batches, workers)


def evaluation_loader(
    images: Images, config: ImageConfig, batch: int, workers: int
) -> Iterator[Float[Tensor, "B 3 H W"]]:
    """All pictures in their order; the last batch is as short as it is."""
    rows = np.arange(len(images))
    return _load(
        _EvaluationPictures(images, config), [rows[i : i + batch] for i in range(0, len(rows), batch)], workers
    )


Item = Tensor | UserError
"""A picture, or why there is none: torch would turn an exception of a worker process into a traceback in a string."""


class _TrainingPictures(Dataset[Item]):
    def __init__(self, images: Images, config: ImageConfig, seed: int, epoch: int) -> None:
        self._images, self._config, self._key = images, config, (seed, epoch)

    def __getitem__(self, row: int) -> Item:
        rng = np.random.default_rng([*self._key, int(self._images.ids[row]), AUGMENTATION_STREAM])
        try:
            picture = decode(self._images.path(row), at_least=side_for_training(self._config))
            return for_training(picture, self._config, rng)
        except UserError as error:
            return error


class _EvaluationPictures(Dataset[Item]):
    def __init__(self, images: Images, config: ImageConfig) -> None:
        self._images, self._config = images, config

    def __getitem__(self, row: int) -> Item:
        try:
            picture = decode(self._images.path(row), at_least=side_for_evaluation(self._config))
            return for_evaluation(picture, self._config)
        except UserError as error:
            return error


def _load(pictures: Dataset[Item], batches: list[Rows], workers: int) -> Iterator[Tensor]:
    loader: DataLoader[Item] = DataLoader(
        pictures,
        batch_sampler=[rows.tolist() for rows in batches],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _collate(items: list[Item]) -> Item:
    broken = next((item for item in items if isinstance(item, UserError)), None)
    return broken if broken is not None else default_collate(items)


def _resized(picture: Picture, config: ImageConfig) -> UInt8[Tensor, "3 H W"]:
    size = [config.size, config.size] if config.resize == "squash" else [side_for_evaluation(config)]
    resized: Tensor = transforms.resize(picture, size, antialias=True)
    return resized


def _random_box(picture: Picture, min_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a box of a random share of the area and an aspect ratio between 3:4 and 4:3."""
    height, width = picture.shape[-2:]
    area = height * width * rng.uniform(min_area, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    box_height = min(height, max(1, round(math.sqrt(area / ratio))))
    box_width = min(width, max(1, round(math.sqrt(area * ratio))))
    return (
        int(rng.integers(height - box_height + 1)),
        int(rng.integers(width - box_width + 1)),
        box_height,
        box_width,
    )


def _normalised(picture: Picture, config: ImageConfig) -> Pixels:
    normalised: Tensor = transforms.normalize(picture.float() / 255, list(config.mean), list(config.std))
    return normalised
