"""Transforms of a picture. h w pixels of the file, H W of the network's input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mgmrn.config import ImageConfig
from mgmrn.data.pictures import Picture, read_picture

CROP_MARGIN = 8 / 7
"""The shorter side before a crop, in crop sizes: 256 for 224, 512 for 448."""

Pixels = Float[Tensor, "3 H W"]


def prepared(source: Path | bytes, config: ImageConfig, where: str = "") -> Pixels:
    """A file, or its content, as the input of a network. Raises UserError as `read_picture` does."""
    return for_evaluation(read_picture(source, where, at_least=side_for_evaluation(config)), config)


def side_for_evaluation(config: ImageConfig) -> int:
    """Pixels of a picture's shorter side that `for_evaluation` needs."""
    return config.size if config.resize == "squash" else round(config.size * CROP_MARGIN)


def side_for_training(config: ImageConfig) -> int:
    """Pixels of a picture's shorter side at which the smallest crop of `for_training` is not enlarged."""
    if config.min_crop_area == 1:
        return side_for_evaluation(config)
    # The narrowest box has an aspect ratio of 3:4.
    return math.ceil(config.size / math.sqrt(config.min_crop_area * 3 / 4))


def for_evaluation(picture: Picture, config: ImageConfig) -> Pixels:
    """Resized, cropped in the middle, scaled and normalised."""
    resized = _resized(picture, config)
    return _normalised(transforms.center_crop(resized, [config.size, config.size]), config)


def for_training(picture: Picture, config: ImageConfig, rng: np.random.Generator) -> Pixels:
    """Randomly cropped, flipped and coloured by the config, then scaled and normalised."""
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


def _resized(picture: Picture, config: ImageConfig) -> UInt8[Tensor, "3 H W"]:
    size = [config.size, config.size] if config.resize == "squash" else [side_for_evaluation(config)]
    return transforms.resize(picture, size, antialias=True)


def _random_box(picture: Picture, min_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box with a random share of the area and an aspect ratio between 3:4 and 4:3."""
    height, width = picture.shape[-2:]
    area = height * width * rng.uniform(min_area, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    box_height = min(height, max(1, round(math.sqrt(area / ratio))))
    box_width = min(width, max(1, round(math.sqrt(area * ratio))))
    top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


def _normalised(picture: Picture, config: ImageConfig) -> Pixels:
    return transforms.normalize(picture.float() / 255, list(config.mean), list(config.std))
