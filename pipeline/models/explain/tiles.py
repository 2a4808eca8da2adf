"""Maps drawn over pictures. P pixels of a side of the network's input, K regions."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

SIDE = 128
"""Of a tile, in pixels."""
STRENGTH = 0.85
"""How much of the picture the strongest attention covers, and a region that is certain."""
FAINTEST = 0.3
"""How much of it a region covers that is as likely as any other."""
GREY = np.array([0.299, 0.587, 0.114])


def plain_tile(pixels: UInt8[np.ndarray, "P P 3"]) -> Any:
    """The picture itself."""
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def attention_tile(pixels: UInt8[np.ndarray, "P P 3"], attention: Float[Tensor, "P P"]) -> Any:
    """The picture in grey, hotter where there is more attention; the largest is the hottest, however little it is."""
    from matplotlib import colormaps

    share = (attention / attention.max().clamp_min(1e-12)).numpy()
    heat = colormaps["inferno"](share)[..., :3] * 255
    cover = STRENGTH * share[..., None]
    return _tile(_grey(pixels) * (1 - cover) + heat * cover)


def region_tile(pixels: UInt8[np.ndarray, "P P 3"], regions: Float[Tensor, "K P P"]) -> Any:
    """The picture in grey, each pixel in the colour of its largest region, the stronger the surer the assignment is."""
    from matplotlib import colormaps

    colours = np.array([colormaps["tab10"](k % 10)[:3] for k in range(len(regions))]) * 255
    largest, owner = (found.numpy() for found in regions.max(dim=0))
    sureness = np.clip((largest - 1 / len(regions)) / (1 - 1 / len(regions)), 0, 1)
    cover = (FAINTEST + (STRENGTH - FAINTEST) * sureness)[..., None]
    return _tile(_grey(pixels) * (1 - cover) + colours[owner] * cover)


def data_uri(tile: Any) -> str:
    """A tile inside a page."""
    encoded = io.BytesIO()
    tile.save(encoded, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _grey(pixels: UInt8[np.ndarray, "P P 3"]) -> Float[np.ndarray, "P P 1"]:
    return np.asarray(pixels @ GREY)[..., None]


def _tile(colours: Float[np.ndarray, "P P 3"]) -> Any:
    return plain_tile(np.clip(colours, 0, 255).astype(np.uint8))
