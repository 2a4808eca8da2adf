"""Transforms of pictures, and smaller decoding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgmrn.config import ImageConfig
from mgmrn.data.images import _random_box, for_evaluation, for_training, side_for_evaluation, side_for_training
from mgmrn.data.pictures import read_picture

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def write_photograph(path, size):
    """A picture with gradients and edges."""
    gradient = Image.radial_gradient("L").resize(size)
    Image.merge("RGB", (gradient, gradient.rotate(90), gradient.point(lambda v: 255 * (v > 99)))).save(path, quality=95)
    return path


@pytest.mark.parametrize(("at_least", "height"), [(None, 192), (100, 192), (96, 96), (48, 48), (1, 24)])
def test_a_large_jpeg_is_decoded_no_larger_than_it_is_needed(tmp_path, at_least, height):
    path = write_photograph(tmp_path / "x.jpg", (256, 192))
    assert read_picture(path, at_least=at_least).shape == (3, height, height * 4 // 3)


def test_turned_cameras_are_turned_back_and_other_formats_keep_their_size(tmp_path):
    red, turned = Image.new("RGB", (240, 160), "red"), Image.Exif()
    turned[0x0112] = 6
    for name, at_least, shape in (("x.jpg", 80, (120, 80)), ("x.png", 8, (240, 160))):
        red.save(tmp_path / name, exif=turned)
        assert read_picture(tmp_path / name, at_least=at_least).shape == (3, *shape)


@pytest.mark.parametrize(("resize", "side"), [("squash", 96), ("crop", 192)])
def test_smaller_decoding_changes_the_networks_input_by_rounding_alone(tmp_path, resize, side):
    config = ImageConfig(size=96, resize=resize, **UNIT)
    path = write_photograph(tmp_path / "x.jpg", (1024, 768))
    small = read_picture(path, at_least=side_for_evaluation(config))
    assert min(small.shape[1:]) == side
    difference = (for_evaluation(read_picture(path), config) - for_evaluation(small, config)).abs()
    assert difference.mean() < 2 / 255 and difference.max() < 0.2


@given(height=st.integers(20, 400), width=st.integers(20, 400), area=st.floats(0.05, 1), seed=st.integers(0, 999))
def test_the_smallest_crop_is_not_enlarged_because_of_smaller_decoding(height, width, area, seed):
    config = ImageConfig(size=32, min_crop_area=area)
    if min(height, width) < side_for_training(config):
        return  # Too small for the network at any decoding.
    picture = torch.empty(3, height, width, dtype=torch.uint8)
    _, _, box_height, box_width = _random_box(picture, area, np.random.default_rng(seed))
    assert area == 1 or min(box_height, box_width) >= config.size - 1


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("min_crop_area", [0.3, 1.0])
def test_inputs_have_the_configured_size(resize, min_crop_area):
    config = ImageConfig(size=32, resize=resize, min_crop_area=min_crop_area, colour_jitter=0.2, **UNIT)
    picture = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8)
    for pixels in (for_evaluation(picture, config), for_training(picture, config, np.random.default_rng(0))):
        assert pixels.shape == (3, 32, 32) and pixels.min() >= 0 and pixels.max() <= 1


def test_squash_keeps_the_borders_crop_cuts_them_and_both_normalise():
    picture = torch.zeros((3, 64, 64), dtype=torch.uint8)
    picture[:, :2] = 255
    squashed, cropped = (for_evaluation(picture, ImageConfig(size=32, resize=r, **UNIT)) for r in ("squash", "crop"))
    assert squashed[:, 0].mean() > 0.5 and cropped[:, 0].mean() < 0.1
    white = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    pixels = for_evaluation(white, ImageConfig(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125)))
    np.testing.assert_allclose(pixels[:, 0, 0], [1, 2, 4])
