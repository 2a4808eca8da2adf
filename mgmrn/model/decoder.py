"""VSD, the visual-semantic decoder: attribute attention (arXiv 2511.08163). One per level.

B images, N tokens, D width, S attributes, L word-vector length, M attention width.

    Q = W_q w,  K = W_k t,  V = W_v t,  A = softmax_N(Q Kᵀ / τ),  v_s = ⟨W_o (A V)_s, e_s⟩      all W with bias
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mgmrn.config import DecoderConfig


class AttributeDecoder(nn.Module):
    """Attends to the tokens with each attribute's word vector, and reads the attribute's strength.

    What does not depend on the image is folded, once per batch, into two vectors in token space per attribute,

        a_s = W_kᵀ Q_s / τ  (where to look)        g_s = W_vᵀ W_oᵀ e_s  (what to read)
        v_s = Σ_n softmax_n(⟨a_s, t_n⟩) ⟨g_s, t_n⟩ + ⟨W_o b_v + b_o, e_s⟩

    so that a batch costs one product of its tokens with a D × 2S matrix. The keys' bias cancels in the softmax; it is
    kept, untrained, for checkpoints of the authors' code.
    """

    def __init__(self, width: int, attributes: int, word_length: int, config: DecoderConfig) -> None:
        super().__init__()
        attention_width = config.attention_width
        self.query = nn.Linear(word_length, attention_width)
        self.key = nn.Linear(width, attention_width)
        self.key.bias.requires_grad_(False)
        self.value = nn.Linear(width, attention_width)
        self.output = nn.Linear(attention_width, width)
        self.attributes = nn.Parameter(torch.empty(attributes, width))
        self.fixed_temperature = math.sqrt(attention_width) if config.temperature == "sqrt" else 1.0
        self.log_temperature = nn.Parameter(torch.zeros(())) if config.temperature == "learned" else None

    def forward(self, tokens: Float[Tensor, "B N D"], word_vectors: Float[Tensor, "S L"]) -> Float[Tensor, "B S"]:
        """Attribute vector v of each image."""
        where: Tensor = (self.query(word_vectors) / self.fixed_temperature) @ self.key.weight
        if self.log_temperature is not None:
            where = where * torch.exp(-self.log_temperature)
        what = self.attributes @ self.output.weight
        looked, read = (tokens @ torch.cat([where, what @ self.value.weight]).mT).chunk(2, dim=2)
        constant = what @ self.value.bias + self.attributes @ self.output.bias
        return (looked.softmax(dim=1) * read).sum(dim=1) + constant
