"""Decoding and transforms of pictures."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgmrn.config import ImageConfig
from mgmrn.data.images import _random_box, decode, for_evaluation, for_training, side_for_evaluation, side_for_training
from mgmrn.errors import UserError

RED = (200, 30, 30)
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
TURNED = Image.Exif()
TURNED[0x0112] = 6


def save(path, mode="RGB", size=(24, 16), **options):
    Image.new("RGB", size, RED).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("RGB", "bmp")]
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    picture = decode(save(tmp_path / f"x.{suffix}", mode))
    assert picture.shape == (3, 16, 24) and picture.dtype == torch.uint8
    np.testing.assert_allclose(picture.float().mean(dim=(1, 2)), RED, atol=6)
    grey = decode(save(tmp_path / "x.jpg", "L"))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.array([[0, 300], [32768, 65535]], dtype=np.uint16)).save(path)
    assert torch.equal(decode(path), torch.tensor([[0, 1], [128, 255]], dtype=torch.uint8).expand(3, 2, 2))


def write_photograph(path, size):
    """A picture with gradients and edges."""
    gradient = Image.radial_gradient("L").resize(size)
    Image.merge("RGB", (gradient, gradient.rotate(90), gradient.point(lambda v: 255 * (v > 99)))).save(path, quality=95)
    return path


@pytest.mark.parametrize(
    ("at_least", "shape"),
    [(None, (192, 256)), (100, (192, 256)), (96, (96, 128)), (48, (48, 64)), (1, (24, 32))],
)
def test_a_large_jpeg_is_decoded_no_larger_than_it_is_needed(tmp_path, at_least, shape):
    path = write_photograph(tmp_path / "x.jpg", (256, 192))
    assert decode(path, at_least=at_least).shape == (3, *shape)


def test_turned_cameras_are_turned_back_and_other_formats_keep_their_size(tmp_path):
    turned = save(tmp_path / "x.jpg", size=(240, 160), exif=TURNED)
    assert decode(turned).shape == (3, 240, 160)
    assert decode(turned, at_least=80).shape == (3, 120, 80)
    assert decode(save(tmp_path / "x.png", size=(240, 160)), at_least=8).shape == (3, 160, 240)


@pytest.mark.parametrize(("resize", "side"), [("squash", 96), ("crop", 192)])
def test_smaller_decoding_changes_the_networks_input_by_rounding_alone(tmp_path, resize, side):
    config = ImageConfig(size=96, resize=resize, **UNIT)
    path = write_photograph(tmp_path / "x.jpg", (1024, 768))
    small = decode(path, at_least=side_for_evaluation(config))
    assert min(small.shape[1:]) == side
    difference = (for_evaluation(decode(path), config) - for_evaluation(small, config)).abs()
    assert difference.mean() < 2 / 255 and difference.max() < 0.2


@given(height=st.integers(20, 400), width=st.integers(20, 400), area=st.floats(0.05, 1), seed=st.integers(0, 999))
def test_the_smallest_crop_is_not_enlarged_because_of_smaller_decoding(height, width, area, seed):
    config = ImageConfig(size=32, min_crop_area=area)
    if min(height, width) < side_for_training(config):
        return  # Too small for the network at any decoding.
    picture = torch.empty(3, height, width, dtype=torch.uint8)
    _, _, box_height, box_width = _random_box(picture, area, np.random.default_rng(seed))
    assert area == 1 or min(box_height, box_width) >= config.size - 1


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_broken_and_missing_files_are_named(tmp_path, content):
    path = save(tmp_path / "bird.jpg", size=(64, 64))
    broken = path.read_bytes()[:400] if content is None else content
    path.write_bytes(broken)
    with pytest.raises(UserError, match=r"bird\.jpg"):
        decode(path)
    with pytest.raises(UserError, match=r"cannot be decoded.*\[row 3\] \(send another\)"):
        decode(io.BytesIO(broken), "row 3", "send another")
    with pytest.raises(UserError, match=r"gone\.jpg"):
        decode(tmp_path / "gone.jpg")


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
