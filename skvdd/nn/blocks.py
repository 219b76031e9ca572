"""Small building blocks of the networks: residual layers, modulation, embeddings."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class ResidualBlock(nn.Module):
    """``h + W2 silu(W1 norm(h))``: a pre-normalized residual layer of constant width.

    The second matrix starts at zero, so a fresh stack of blocks is the identity.

    Parameters
    ----------
    hidden_size : int
        Width ``h`` of the input and the output.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = zero_(nn.Linear(hidden_size, hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., h) to (..., h)."""
        return self.outer(silu(self.inner(self.norm(hidden)))).add_(hidden)


class ModulatedBlock(nn.Module):
    """A residual layer whose normalized input is scaled and shifted by a condition.

    The modulation is that of FiLM (Perez et al., 2018). It depends on the condition alone and
    broadcasts over whatever axes the hidden state has more, so it is computed once for all the
    actions of a row.

    Parameters
    ----------
    hidden_size : int
        Width ``h`` of the hidden state and of the condition.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = zero_(nn.Linear(hidden_size, hidden_size))

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Map hidden (..., h) under a condition that broadcasts against it to (..., h)."""
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        # In place on what no gradient needs: fresh memory costs as much as the arithmetic.
        modulated = self.norm(hidden).mul_(1.0 + scale).add_(shift)
        return self.outer(silu(self.inner(modulated))).add_(hidden)


class NoiseEmbedding(nn.Module):
    """Embed a noise level: sines and cosines of ``ln sigma``, then a linear layer.

    Parameters
    ----------
    hidden_size : int
        Width ``h`` of the embedding.
    n_frequencies : int
        How many frequencies, spaced geometrically from 1/4 to 4 radians per nat: the noise levels
        of a policy span a few nats, and finer detail would only be overfitted.
    """

    def __init__(self, hidden_size: int, n_frequencies: int = 8) -> None:
        super().__init__()
        self.frequencies: Tensor
        frequencies = torch.logspace(math.log10(0.25), math.log10(4.0), n_frequencies)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.linear = nn.Linear(2 * n_frequencies, hidden_size)

    def forward(self, sigma: Tensor) -> Tensor:
        """Map noise levels of shape (...) to embeddings (..., h)."""
        phase = sigma.log()[..., None] * self.frequencies
        return self.linear(torch.cat([phase.sin(), phase.cos()], dim=-1))


class CausalAttentionBlock(nn.Module):
    """A pre-normalized transformer block with causal self-attention.

    Parameters
    ----------
    hidden_size : int
        Width ``h`` of a token.
    n_heads : int
        Number of attention heads; divides ``hidden_size``.

    Raises
    ------
    ValueError
        If it does not.
    """

    def __init__(self, hidden_size: int, n_heads: int) -> None:
        super().__init__()
        if n_heads < 1 or hidden_size % n_heads:
            raise ValueError(
                f"n_heads must divide hidden_size, got n_heads={n_heads} and "
                f"hidden_size={hidden_size}."
            )
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.projection = nn.Linear(hidden_size, hidden_size)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
        )

    def forward(self, tokens: Tensor, *, last_only: bool = False) -> Tensor:
        """Map tokens (n, T, h) to (n, T, h); position ``t`` sees positions up to ``t``.

        Parameters
        ----------
        tokens : Tensor of shape (n, T, h)
            The sequence.
        last_only : bool, default=False
            Return the last token alone, (n, 1, h): only its query is computed.
        """
        query, key, value = self._query_key_value(self.norm(tokens), last_only)
        # The other kernels of a GPU add up gradients in an order that changes from run to run.
        trained = query.is_cuda and torch.is_grad_enabled()
        with sdpa_kernel(SDPBackend.MATH) if trained else nullcontext():
            mixed = nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=not last_only
            )
        if last_only:
            tokens = tokens[:, -1:]
        tokens = tokens + self.projection(mixed.transpose(1, 2).flatten(2))
        return tokens + self.feed_forward(tokens)

    def _query_key_value(self, normed: Tensor, last_only: bool) -> list[Tensor]:
        """Return query, key and value, (n, heads, T, h / heads) each; one query if last only."""
        if not last_only:
            parts = self.qkv(normed).chunk(3, dim=-1)
        else:
            size = normed.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            query = nn.functional.linear(normed[:, -1:], weight[:size], bias[:size])
            key_value = nn.functional.linear(normed, weight[size:], bias[size:])
            parts = (query, *key_value.chunk(2, dim=-1))
        return [part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts]


def silu(values: Tensor) -> Tensor:
    """Return ``x * sigmoid(x)``; in place where no gradient needs the argument."""
    return nn.functional.silu(values, inplace=not torch.is_grad_enabled())


def zero_(linear: nn.Linear) -> nn.Linear:
    """Set a linear layer's weights and bias to zero and return it."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
