"""Region mining: pixels grouped around K learned centres (Huang & Li, CVPR 2020, arXiv 2005.10411), and regularisers.

B images, C channels, H W grid, N = H·W pixels, K regions, R width of the space in which pixels are grouped.

    q_k(p) = softmax_k( −‖x_p − c_k‖² / β_k )                                  assignment
    z_k    = normalise( (Σ_p q_k(p) x_p / max(Σ_p q_k(p), 1e-5) − c_k) / √(β_k/2) )      descriptor

| mode       | output of the unit                                                                       |
|------------|------------------------------------------------------------------------------------------|
| `none`     | x                                                                                        |
| `released` | x/K: the mean over k of q_k ⊙ x, and Σ_k q_k = 1. The centres have no effect              |
| `regions`  | x_p + W Σ_k q_k(p) z_k                                                                   |
| `tokens`   | x, and the z_k as further tokens for the decoder                                         |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import RegionConfig

OCCUPANCY_BETA = 0.001
"""b of the prior Beta(1, b) over a region's presence in an image."""
OCCUPANCY_EPSILON = 1e-5
"""Keeps the logarithm of an absent region finite."""
OCCUPANCY_BLUR = 0.5
"""σ in pixels of the 3×3 Gaussian over an assignment before its maximum, against single pixels."""
MASS_FLOOR = 1e-5
"""Smallest divisor Σ_p q_k(p) of a region's mean."""
INITIAL_TEMPERATURE = 0.37
"""Initial β: regions overlap, and sharpen in training."""


@dataclass(frozen=True)
class Regions:
    """The regions found in each image, float32."""

    assignment: Float[Tensor, "B K H W"]
    """q_k(p); sums to one over K."""
    descriptors: Float[Tensor, "B K R"]
    """z_k; unit vectors."""


@dataclass(frozen=True)
class ScatteredRegions:
    """The map Σ_k q_k(p) u_k that the mode `regions` adds to a level's, as its factors; float32."""

    assignment: Float[Tensor, "B K H W"]
    vectors: Float[Tensor, "B K C"]
    """u_k = W z_k."""

    def convolve(self, weight: Float[Tensor, "D C 3 3"], stride: tuple[int, ...]) -> Float[Tensor, "B D h w"]:
        """3×3 convolution of the map, padded by one pixel: of each assignment, with the kernel V u_k of its image."""
        kernels = torch.einsum("bkc,dcij->bdkij", self.vectors, weight)
        patches = F.unfold(self.assignment, 3, padding=1, stride=stride)
        sides = [(side - 1) // step + 1 for side, step in zip(self.assignment.shape[2:], stride, strict=True)]
        return (kernels.flatten(2) @ patches).reshape(*kernels.shape[:2], *sides)


class InertRegions(nn.Module):
    """Modes `none` and `released`: the features, divided by K as the released unit in effect does.

    The released unit's centres and smoothing factors cancel exactly. They are kept so that a checkpoint of the authors'
    code has its place, and are not trained: their gradient is zero.
    """

    def __init__(self, channels: int, config: RegionConfig) -> None:
        super().__init__()
        self.divisor = config.count if config.mode == "released" else 1
        if config.mode == "released":
            self.centres = nn.Parameter(torch.zeros(config.count, channels), requires_grad=False)
            self.smoothing = nn.Parameter(torch.zeros(config.count), requires_grad=False)

    def forward(
        self, x: Float[Tensor, "B c H W"], projection: Float[Tensor, "C c"] | None = None
    ) -> tuple[Float[Tensor, "B c H W"], None, None]:
        """x/K, or x."""
        return x / self.divisor if self.divisor > 1 else x, None, None


class RegionMining(nn.Module):
    """Modes `regions` and `tokens`: K centres on the unit sphere of a space of at most `reduced_width` channels."""

    def __init__(self, channels: int, config: RegionConfig) -> None:
        super().__init__()
        self.width = min(channels, config.reduced_width)
        self.reduce = nn.Conv2d(channels, self.width, 1, bias=False) if self.width < channels else nn.Identity()
        self.centres = nn.Parameter(torch.empty(config.count, self.width))
        self.log_temperature = nn.Parameter(torch.full((config.count,), math.log(INITIAL_TEMPERATURE)))
        self.scatter = nn.Linear(self.width, channels, bias=False) if config.mode == "regions" else None

    def forward(
        self, x: Float[Tensor, "B c H W"], projection: Float[Tensor, "C c"] | None = None
    ) -> tuple[Float[Tensor, "B c H W"], Regions, ScatteredRegions | None]:
        """x unchanged, the regions of P x, or of x without a projection P, and what is to be added (`regions`).

        float32 inside autocast.
        """
        height, width = x.shape[-2:]
        reduced = self._reduced(x, projection)
        with torch.autocast(x.device.type, enabled=False):
            pixels = F.normalize(reduced.float().flatten(2), dim=1)
            centres = F.normalize(self.centres, dim=1)
            # On the sphere −‖x − c‖² = 2⟨x, c⟩ − 2.
            logits = (2 * torch.matmul(centres, pixels) - 2) * torch.exp(-self.log_temperature)[:, None]
            assignment = logits.softmax(dim=1)
            mass = assignment.sum(dim=2, keepdim=True).clamp_min(MASS_FLOOR)
            mean = assignment @ pixels.mT / mass
            # The positive factor 1/√(β/2) falls out of the normalisation.
            descriptors = F.normalize(mean - centres, dim=2)
            regions = Regions(assignment.reshape(*assignment.shape[:2], height, width), descriptors)
            if self.scatter is None:
                return x, regions, None
            return x, regions, ScatteredRegions(regions.assignment, self.scatter(descriptors))

    def _reduced(
        self, x: Float[Tensor, "B c H W"], projection: Float[Tensor, "C c"] | None
    ) -> Float[Tensor, "B R H W"]:
        """The pixels of P x in the space in which they are grouped; P x itself is not computed."""
        if projection is None:
            return self.reduce(x)
        weight = projection if isinstance(self.reduce, nn.Identity) else self.reduce.weight.flatten(1) @ projection
        return F.conv2d(x, weight[:, :, None, None])


def build_regions(channels: int, config: RegionConfig) -> InertRegions | RegionMining:
    """The unit of a mode."""
    return (RegionMining if config.mode in ("regions", "tokens") else InertRegions)(channels, config)


def occupancy(assignment: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K"]:
    """Presence of each region in each image: the maximum of the blurred assignment."""
    side = math.exp(-0.5 / OCCUPANCY_BLUR**2)
    line = torch.full((3,), side, dtype=assignment.dtype, device=assignment.device)
    line[1].fill_(1.0)  # Both filled on the device: a CUDA graph records no copy from the host.
    line = line / line.sum()
    kernel = torch.outer(line, line)[None, None]
    padded = F.pad(assignment, (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(padded.flatten(0, 1)[:, None], kernel)
    return blurred.amax(dim=(1, 2, 3)).reshape(assignment.shape[:2])


def occupancy_loss(occupancies: Float[Tensor, "G K"]) -> Float[Tensor, ""]:
    """Distance of the regions' presence in a global batch of G images from the prior Beta(1, 0.001) (2005.10411).

    Mean over regions and ranks of |log(sorted occupancy) − log(quantile)|: the earth mover's distance on a log scale.
    Quantiles of Beta(1, b) in closed form: 1 − (1 − u)^(1/b) at u = (i − ½)/G.
    """
    count = len(occupancies)
    ranks = (torch.arange(count, dtype=torch.float64, device=occupancies.device) + 0.5) / count
    quantiles = -torch.expm1(torch.log1p(-ranks) / OCCUPANCY_BETA)
    target = torch.log(quantiles + OCCUPANCY_EPSILON).to(occupancies.dtype)[:, None]
    return (torch.log(occupancies.sort(dim=0).values + OCCUPANCY_EPSILON) - target).abs().mean()


def decorrelation(descriptors: Float[Tensor, "B K R"]) -> Float[Tensor, " B"]:
    """Mean cos² between different regions of an image."""
    count = descriptors.shape[1]
    squares = (descriptors @ descriptors.mT).square()
    return (squares.sum(dim=(1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(dim=1)) / (count * (count - 1))


def gather_images(local: Float[Tensor, "B K"]) -> Float[Tensor, "G K"]:
    """Rows of all ranks; this rank's own carry a gradient. Ranks may hold different numbers of images.

    The gradient of a function of the result, summed over ranks, is that of one process with all rows. The backward pass
    does not communicate.
    """
    world_size = torch.distributed.get_world_size()
    own = torch.tensor([len(local)], device=local.device)
    sizes = [torch.empty_like(own) for _ in range(world_size)]
    torch.distributed.all_gather(sizes, own)
    counts = [int(size) for size in sizes]
    padded = F.pad(local.detach(), (0, 0, 0, max(counts) - len(local)))
    rows = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(rows, padded)
    rank = torch.distributed.get_rank()
    return torch.cat([local if i == rank else rows[i][: counts[i]] for i in range(world_size)])
