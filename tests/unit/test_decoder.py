from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mgmrn.config import DecoderConfig
from mgmrn.model.decoder import AttributeDecoder
from mgmrn.model.network import init_weights

B, N, D, S, L, M = 3, 7, 12, 5, 9, 10


def decoder(temperature: str) -> AttributeDecoder:
    torch.manual_seed(0)
    module = AttributeDecoder(D, S, L, DecoderConfig(attention_width=M, temperature=temperature)).apply(init_weights)
    for linear in (module.query, module.key, module.value, module.output):
        torch.nn.init.normal_(linear.bias)
    if module.log_temperature is not None:
        torch.nn.init.constant_(module.log_temperature, 0.7)
    return module


def plain(module: AttributeDecoder, tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """The module's equation without any folding."""
    temperature = {None: module.fixed_temperature}.get(module.log_temperature)
    if temperature is None:
        temperature = module.log_temperature.exp()
    logits = module.query(words) @ module.key(tokens).mT / temperature
    attention = logits.softmax(dim=2)
    return (module.output(attention @ module.value(tokens)) * module.attributes).sum(dim=2), attention


@pytest.mark.parametrize("temperature", ["none", "sqrt", "learned"])
def test_folded_readout_is_the_plain_one_in_value_and_gradient(temperature: str) -> None:
    module = decoder(temperature)
    words = torch.randn(S, L)
    gradients = []
    for compute in (lambda t: module(t, words), lambda t: plain(module, t, words)[0]):
        tokens = torch.randn(B, N, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
        module.zero_grad()
        out = compute(tokens)
        out.square().sum().backward()
        gradients.append([out, tokens.grad, *(p.grad.clone() for p in module.parameters() if p.requires_grad)])
    for folded, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)


def test_keys_bias_has_no_part_and_is_not_trained() -> None:
    module = decoder("none")
    tokens, words = torch.randn(B, N, D), torch.randn(S, L)
    logits = module.query(words) @ (module.key(tokens)).mT
    module.key.bias.data += 3
    shifted = module.query(words) @ (module.key(tokens)).mT
    assert not torch.allclose(logits, shifted)
    torch.testing.assert_close(logits.softmax(dim=2), shifted.softmax(dim=2), rtol=1e-4, atol=1e-6)
    assert not module.key.bias.requires_grad


def test_a_zero_word_vector_gives_finite_values_and_gradients() -> None:
    module = decoder("learned")
    words = torch.randn(S, L)
    words[2] = 0
    tokens = torch.randn(B, N, D, requires_grad=True)
    out = module(tokens, words)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(tokens.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.requires_grad)
