"""Building blocks: what a fresh one does, and which position sees which."""

import math

import pytest
import torch
from torch import nn

from skvdd.nn.blocks import (
    CausalAttentionBlock,
    ModulatedBlock,
    NoiseEmbedding,
    ResidualBlock,
    zero_,
)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def perturb(module):
    """Move every parameter, so that nothing is at its special initial value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_a_fresh_stack_of_residual_blocks_is_the_identity():
    hidden = torch.randn(5, 8)
    stack = nn.Sequential(*(ResidualBlock(8) for _ in range(3)))
    assert torch.equal(stack(hidden), hidden)


def test_a_fresh_residual_block_can_learn():
    block = ResidualBlock(8)
    block(torch.randn(5, 8)).square().sum().backward()
    assert block.outer.weight.grad.abs().sum() > 0


def test_a_fresh_stack_of_modulated_blocks_is_the_identity_under_any_condition():
    hidden, condition = torch.randn(5, 3, 8), 100.0 * torch.randn(5, 1, 8)
    out = hidden
    for block in [ModulatedBlock(8) for _ in range(3)]:
        out = block(out, condition)
    assert torch.equal(out, hidden)


def test_a_modulated_block_scales_and_shifts_the_normalized_state():
    block = perturb(ModulatedBlock(8)).double()
    hidden, condition = torch.randn(2, 5, 8, dtype=torch.float64)
    scale, shift = block.modulation(condition).chunk(2, dim=-1)
    centered = hidden - hidden.mean(dim=-1, keepdim=True)
    normalized = centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    inner = block.inner(normalized + normalized * scale + shift)
    expected = hidden + block.outer(inner * torch.sigmoid(inner))
    torch.testing.assert_close(block(hidden, condition), expected)


def test_one_condition_serves_all_actions_of_a_row():
    block = perturb(ModulatedBlock(8)).double()
    hidden = torch.randn(4, 3, 8, dtype=torch.float64)
    condition = torch.randn(4, 1, 8, dtype=torch.float64)
    torch.testing.assert_close(
        block(hidden, condition), block(hidden, condition.expand(4, 3, 8).contiguous())
    )


@pytest.mark.parametrize("position", range(4))
def test_attention_sees_earlier_tokens_and_no_later_ones(position):
    block = perturb(CausalAttentionBlock(8, n_heads=2))
    tokens = torch.randn(3, 4, 8)
    changed = tokens.clone()
    changed[:, position, 0] += 1.0  # one channel: the norm takes back what moves all alike
    moved = (block(changed) - block(tokens)).abs().amax(dim=(0, 2))
    assert moved[:position].tolist() == [0.0] * position
    assert (moved[position:] > 1e-4).all()


def test_attention_treats_rows_apart():
    block = perturb(CausalAttentionBlock(8, n_heads=2)).double()
    tokens = torch.randn(5, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(block(tokens[2:3]), block(tokens)[2:3])


def test_attention_is_softmax_of_scaled_products_by_hand():
    block = perturb(CausalAttentionBlock(4, n_heads=2)).double()
    tokens = torch.randn(1, 3, 4, dtype=torch.float64)
    query, key, value = block.qkv(block.norm(tokens))[0].split(4, dim=-1)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        logits = query[:, head] @ key[:, head].T / math.sqrt(2.0)
        later = torch.ones(3, 3, dtype=torch.bool).triu(1)
        heads.append(logits.masked_fill(later, -torch.inf).softmax(dim=-1) @ value[:, head])
    mixed = tokens + block.projection(torch.cat(heads, dim=-1))
    torch.testing.assert_close(block(tokens), mixed + block.feed_forward(mixed))


def test_a_noise_level_is_embedded_by_waves_of_its_logarithm():
    embedding = NoiseEmbedding(6, n_frequencies=3).double()
    sigma = torch.tensor([[0.02], [5.0]], dtype=torch.float64)
    waves = [
        [[math.sin(f * math.log(s)) for f in (0.25, 1.0, 4.0)]
         + [math.cos(f * math.log(s)) for f in (0.25, 1.0, 4.0)]]
        for s in (0.02, 5.0)
    ]  # fmt: skip
    expected = embedding.linear(torch.tensor(waves, dtype=torch.float64))
    torch.testing.assert_close(embedding(sigma), expected, rtol=1e-6, atol=1e-6)
    assert embedding(sigma).shape == (2, 1, 6)


def test_the_frequencies_are_not_part_of_a_saved_state():
    assert set(NoiseEmbedding(6).state_dict()) == {"linear.weight", "linear.bias"}


def test_zero_makes_a_linear_layer_vanish_and_returns_it():
    linear = nn.Linear(3, 2)
    assert zero_(linear) is linear
    assert linear(torch.randn(4, 3)).tolist() == [[0.0, 0.0]] * 4
