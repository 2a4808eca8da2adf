"""The training loss: per level cross-entropy over seen classes plus weighted regularisers (arXiv 2511.08163).

B images of this rank, G images of the global batch, U seen classes, S attributes.

    s_l = scale · cos(v_l, a_u)
    L = Σ_l ω_l [ CE(s_l, y) + λ_reg ‖v̂_l − â_y‖² + λ_occ occupancy_l + λ_dec decorrelation_l + λ_agr agreement_l ]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mgmrn.config import AgreementTeacher, Level, LossConfig
from mgmrn.model.network import NetworkOutput
from mgmrn.model.regions import Regions, decorrelation, gather_images, occupancy, occupancy_loss


class LossTerms(NamedTuple):
    """Each term summed over levels with the levels' weights, before its λ; `total` is the sum with them."""

    total: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    regression: Float[Tensor, ""]
    occupancy: Float[Tensor, ""]
    decorrelation: Float[Tensor, ""]
    agreement: Float[Tensor, ""]


def zsl_loss(
    output: NetworkOutput,
    targets: Int[Tensor, " B"],
    class_attributes: Float[Tensor, "U S"],
    config: LossConfig,
    *,
    global_batch: int,
    world_size: int = 1,
) -> LossTerms:
    """Loss of this rank's images, such that the mean over ranks of its gradients is the global batch's gradient.

    Terms of single images are summed and divided by `global_batch / world_size`, which holds for ranks with different
    numbers of images. Float32 also inside autocast. Above one rank the occupancy term needs torch.distributed.
    `targets` are rows of `class_attributes`; `global_batch` counts images over ranks and micro-batches.
    """
    zero = class_attributes.new_zeros(())
    classification = regression = occupied = correlated = agreed = zero
    scores: dict[Level, Tensor] = {}
    share = world_size / global_batch
    with torch.autocast(targets.device.type, enabled=False):
        classes = F.normalize(class_attributes.float(), dim=1)
        for level, attributes in output.attributes.items():
            weight = config.level_weights.get(level, 1.0)
            cosines = F.normalize(attributes.float(), dim=1) @ classes.mT
            scores[level] = config.scale * cosines
            cross_entropy = F.cross_entropy(
                scores[level], targets, reduction="sum", label_smoothing=config.label_smoothing
            )
            classification = classification + weight * share * cross_entropy
            # The squared distance of unit vectors is 2 − 2 cos.
            distance = (2 - 2 * cosines.gather(1, targets[:, None])).sum()
            if config.regression_reduction == "mean":
                distance = distance / attributes.shape[1]
            regression = regression + weight * share * distance
        for level, regions in output.regions.items():
            weight = config.level_weights.get(level, 1.0)
            if config.occupancy:
                occupied = occupied + weight * _global_occupancy(regions, global_batch, world_size)
            if config.decorrelation:
                correlated = correlated + weight * share * decorrelation(regions.descriptors).sum()
        if config.agreement and len(scores) > 1:
            for level, divergences in agreement(scores, targets, config.agreement_teacher).items():
                agreed = agreed + config.level_weights.get(level, 1.0) * share * divergences.sum()
    total = classification + config.regression * regression + config.occupancy * occupied
    total = total + config.decorrelation * correlated + config.agreement * agreed
    return LossTerms(total, classification, regression, occupied, correlated, agreed)


def agreement(
    scores: Mapping[Level, Float[Tensor, "B U"]], targets: Int[Tensor, " B"], teacher: AgreementTeacher
) -> dict[Level, Float[Tensor, " B"]]:
    """Divergence of each level's prediction from that of its neighbours, which teach it and get no gradient.

        KL(t_l ‖ softmax(s_l)),   t_l = softmax(Σ_m w_m s_m),   m: the levels next to l

    `even`: w_m is the same for all m. `reliable`: with r_m, the probability that level m gives to the right class of the image,
    w_m = r_m / Σ r, and the divergence is multiplied by 2 r̄ / (r̄ + r_l), r̄ = Σ w_m r_m: a level that knows little teaches little.
    Equal reliabilities give `even`. Each image stands for itself, so ranks and micro-batches need no exchange. `scores`
    holds s_l over the seen classes of at least two levels, finest first.
    """
    levels = list(scores)
    fixed = {level: s.detach() for level, s in scores.items()}
    rows = targets[:, None]
    reliability = {level: s.softmax(dim=1).gather(1, rows) for level, s in fixed.items()}
    divergences = {}
    for i, level in enumerate(levels):
        teachers = [levels[j] for j in (i - 1, i + 1) if 0 <= j < len(levels)]
        stacked = torch.stack([fixed[m] for m in teachers])
        known = torch.stack([reliability[m] for m in teachers])
        if teacher == "even":
            taught, strength = stacked.mean(dim=0), torch.ones_like(known[0])
        else:
            weights = known / known.sum(dim=0)
            taught, mean = (weights * stacked).sum(dim=0), (weights * known).sum(dim=0)
            strength = 2 * mean / (mean + reliability[level])
        student = scores[level].log_softmax(dim=1)
        divergence = F.kl_div(student, taught.log_softmax(dim=1), reduction="none", log_target=True).sum(dim=1)
        divergences[level] = strength[:, 0] * divergence
    return divergences


def _global_occupancy(regions: Regions, global_batch: int, world_size: int) -> Float[Tensor, ""]:
    """Occupancy prior over the images of all ranks, times their share in the global batch."""
    local = occupancy(regions.assignment)
    if world_size == 1:
        return occupancy_loss(local) * (len(local) / global_batch)
    images = gather_images(local)
    loss = occupancy_loss(images) * (len(images) / global_batch)
    # Every rank has the whole value but its own images' gradient alone, which the mean over ranks would shrink.
    return loss.detach() + world_size * (loss - loss.detach())
