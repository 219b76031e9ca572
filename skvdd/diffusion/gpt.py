"""The published transformer denoiser: states and noisy actions interleaved in one sequence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from skvdd.diffusion.denoiser import TargetEmbedding, precondition, unbounded
from skvdd.nn.blocks import CausalAttentionBlock, zero_

# Windows denoised at a time where no gradient is needed: their activations stay in the cache.
CHUNK_SIZE = 128


class GPTDenoiser(nn.Module):
    r"""The transformer denoiser of BESO (Reuss et al., 2023) in Karras' preconditioning.

    One causal sequence holds the noise level, the goals, and then a state and a noisy action for
    each time step: :math:`\sigma, g, s_1, a_1, s_2, a_2, \ldots` The state and the action of one
    time step share a position embedding. Everything is in standardised units.

    The token of an action comes after the states it answers to, so a state cannot be encoded
    ahead of the actions: the ``context`` of this teacher is the row itself.

    **Earlier actions.** A query has one noisy action :math:`a`, whereas the sequence has a token
    for the action of every time step. All of them hold the queried action. A policy that is fitted
    here sees that in training too (`residual`), so nothing is added to what it is told about the
    decision, and the score is exactly that of :math:`p_\sigma(a|s)`. A published checkpoint
    (``joint=True``) was trained with the window's own noisy actions. Its sampler denoises all the
    actions of the window together and keeps the last, which `denoise` does for actions of shape
    (n, S, T, d_a). Its distiller fills the earlier tokens with draws of the same expert in the
    earlier states; the queried action, held over the window, stands in for them.

    Parameters
    ----------
    n_states, n_goals, n_actions : int
        Dimension ``d`` of a state, of all goals together (0 for none), and ``d_a`` of an action.
    window_size : int
        Number ``T`` of time steps.
    hidden_size, n_layers, n_heads : int
        Width of a token, number of blocks (at least one), attention heads.
    sigma_data : float
        Standard deviation of the data in the preconditioning.
    head_size : int, default=None
        Width of the hidden layer of the output; ``None`` for one linear layer.
    joint : bool, default=False
        Whether the network was trained on windows of actions rather than on single ones.
    preconditioning : {"edm", "noise"}, default="edm"
        What the network predicts, as `skvdd.diffusion.denoiser.precondition` has it.
    n_goal_tokens : int, default=1
        Number of tokens that the goals are cut into; divides ``n_goals``.
    boundary : float, default=0.0
        Noise level at which ``D`` is the identity; above zero in a consistency model.
    target_min : float or None, default=None
        In a consistency trajectory model, the lowest level above zero that a jump may end at:
        `denoise` is then told the end too. ``None`` is a plain denoiser.

    Examples
    --------
    The network of a policy with ``architecture="gpt"``:

    >>> import torch
    >>> from skvdd import DiffusionPolicy
    >>> states = actions = torch.linspace(-1, 1, 20)[:, None].numpy()
    >>> policy = DiffusionPolicy(
    ...     architecture="gpt", max_iter=1, hidden_size=8, n_layers=1, n_heads=2
    ... ).fit(states, actions)
    >>> network = policy.network_
    >>> type(network).__name__
    'GPTDenoiser'
    >>> network.score(torch.zeros(4, 1), torch.zeros(4, 3, 1), torch.ones(4, 1)).shape
    torch.Size([4, 3, 1])
    """

    def __init__(
        self,
        n_states: int,
        n_goals: int,
        n_actions: int,
        window_size: int,
        hidden_size: int,
        n_layers: int,
        n_heads: int,
        sigma_data: float,
        head_size: int | None = None,
        joint: bool = False,
        preconditioning: str = "edm",
        n_goal_tokens: int = 1,
        boundary: float = 0.0,
        target_min: float | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "n_states": n_states,
            "n_goals": n_goals,
            "n_actions": n_actions,
            "window_size": window_size,
            "hidden_size": hidden_size,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "sigma_data": sigma_data,
            "head_size": head_size,
            "joint": joint,
            "preconditioning": preconditioning,
            "n_goal_tokens": n_goal_tokens,
            "boundary": boundary,
            "target_min": target_min,
        }
        if n_goals % n_goal_tokens:
            raise ValueError(f"n_goals={n_goals} cannot be cut into {n_goal_tokens} tokens")
        self.n_states, self.n_goals, self.n_actions = n_states, n_goals, n_actions
        self.n_goal_tokens = n_goal_tokens if n_goals else 0
        self.window_size = window_size
        self.sigma_data = sigma_data
        self.joint = joint
        self.preconditioning = preconditioning
        self.boundary = boundary

        self.noise_embedding = nn.Linear(1, hidden_size)
        if target_min is not None:
            self.target_embedding = TargetEmbedding(hidden_size, target_min)
        self.state_embedding = nn.Linear(n_states, hidden_size)
        if n_goals:
            self.goal_embedding = nn.Linear(n_goals // n_goal_tokens, hidden_size)
        self.action_embedding = nn.Linear(n_actions, hidden_size)
        n_positions = self.n_goal_tokens + window_size
        self.position = nn.Parameter(0.02 * torch.randn(n_positions, hidden_size))
        blocks = [CausalAttentionBlock(hidden_size, n_heads) for _ in range(n_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size)
        self.output = _output_head(hidden_size, head_size, n_actions)
        self.action_range: Tensor  # lowest and highest action of the training data
        self.register_buffer("action_range", unbounded(n_actions))

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of what a sampler draws for a state: an action, or a window of them if joint."""
        return (self.window_size, self.n_actions) if self.joint else (self.n_actions,)

    def forward(
        self, states: Tensor, noisy_actions: Tensor, sigma: Tensor, goals: Tensor | None = None
    ) -> Tensor:
        """Denoise the actions of every time step of a window, which may be a short one.

        Parameters
        ----------
        states : Tensor of shape (n, T', d)
            States, the oldest first; ``T'`` is at most ``window_size``.
        noisy_actions : Tensor of shape (n, T', d_a)
            The noisy action of each time step.
        sigma : Tensor of shape (n,)
            Noise levels.
        goals : Tensor of shape (n, n_goals), default=None
            Goals; ``None`` is the unconditional model, whose goals are zeros.

        Returns
        -------
        Tensor of shape (n, T', d_a)
        """
        c_skip, c_out, c_in = self._preconditioning(sigma[:, None, None])
        tokens = self._observe(states, goals)
        output = self._head(tokens, c_in * noisy_actions, sigma, last_only=False)
        return c_skip * noisy_actions + c_out * output

    def context(self, rows: Tensor) -> Tensor:
        """Return the rows as they are: nothing can be encoded without the actions.

        Parameters
        ----------
        rows : Tensor of shape (n, T * d + n_goals)
            Windows, oldest state first, then goals.

        Returns
        -------
        Tensor of shape (n, T * d + n_goals)
            The same.
        """
        return rows

    def denoise(
        self, context: Tensor, actions: Tensor, sigma: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """Return ``D(a; s, sigma)``, the expected clean action.

        Parameters
        ----------
        context : Tensor of shape (n, T * d + n_goals)
            Rows.
        actions : Tensor of shape (n, S, d_a) or (n, S, T, d_a)
            Noisy actions, several for each row: single ones, which hold over the window and are
            answered for its last time step, or whole windows, denoised together.
        sigma : Tensor of shape (n, S) or (n, 1)
            Noise levels.
        target : Tensor of the shape of ``sigma``, default=None
            Levels that jumps end at, for a network with ``target_min``.

        Returns
        -------
        Tensor of the shape of ``actions``
        """
        c_skip, c_out, _ = self._preconditioning(_like(sigma, actions))
        return c_skip * actions + c_out * self._answer(context, actions, sigma, target)

    def score(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        r"""Return the score :math:`\nabla_a \log \pi_\sigma(a|s) = (D - a) / \sigma^2`.

        Parameters
        ----------
        context, actions, sigma : Tensor
            As for `denoise`.

        Returns
        -------
        Tensor of the shape of ``actions``
            In standardised units.
        """
        gap = self.denoise(context, actions, sigma) - actions
        return gap / _like(sigma, actions).square()

    def residual(self, context: Tensor, actions: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return ``F - (a - c_skip a_sigma) / c_out``, whose mean square is the training loss.

        Parameters
        ----------
        context : Tensor of shape (n, T * d + n_goals)
            Rows.
        actions : Tensor of shape (n, S, d_a) or (n, S, T, d_a)
            Clean actions, as for `denoise`.
        noise : Tensor of the shape of ``actions``
            Standard normal numbers.
        sigma : Tensor of shape (n, S)
            Noise levels.

        Returns
        -------
        Tensor of the shape of ``actions``
        """
        level = _like(sigma, actions)
        noisy = actions + level * noise
        c_skip, c_out, _ = self._preconditioning(level)
        return self._answer(context, noisy, sigma) - (actions - c_skip * noisy) / c_out

    def _preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return precondition(self.preconditioning, sigma, self.sigma_data, self.boundary)

    def _answer(
        self, context: Tensor, noisy: Tensor, sigma: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """Return the network's output ``F`` for the queries of each row."""
        n, n_queries = noisy.shape[:2]
        *_, c_in = self._preconditioning(_like(sigma, noisy))
        single = noisy.ndim == 3
        # One list of windows, whatever row they are of: (m, 1 or T, d_a).
        queries = (c_in * noisy).flatten(0, 1)
        queries = queries[:, None] if single else queries
        levels = sigma.expand(n, n_queries).reshape(-1)
        ends = levels if target is None else target.expand(n, n_queries).reshape(-1)
        row = torch.arange(n, device=noisy.device).repeat_interleave(n_queries)
        states, goals = context.split([self.window_size * self.n_states, self.n_goals], dim=1)
        observed = self._observe(states.unflatten(1, (self.window_size, -1)), goals)
        # Chunks of nearly equal size: a short last one would take kernels that round differently.
        n_chunks = 1 if torch.is_grad_enabled() else max(1, math.ceil(len(queries) / CHUNK_SIZE))
        chunks = (part.tensor_split(n_chunks) for part in (row, queries, levels, ends))
        outputs = [
            self._head(
                observed.index_select(0, rows),
                actions,
                level,
                None if target is None else end,
                last_only=single,
            )
            for rows, actions, level, end in zip(*chunks, strict=True)
        ]
        return torch.cat(outputs).view(noisy.shape)

    def _observe(self, states: Tensor, goals: Tensor | None) -> Tensor:
        """Return the tokens of goals and states, (n, G + T', h)."""
        tokens = self.state_embedding(states)
        if self.n_goals:
            if goals is None:
                goals = states.new_zeros(states.shape[0], self.n_goals)
            goal_tokens = self.goal_embedding(goals.unflatten(1, (self.n_goal_tokens, -1)))
            tokens = torch.cat([goal_tokens, tokens], dim=1)
        return tokens + self.position[: tokens.shape[1]]

    def _head(
        self,
        observed: Tensor,
        scaled: Tensor,
        sigma: Tensor,
        target: Tensor | None = None,
        *,
        last_only: bool,
    ) -> Tensor:
        """Return ``F`` for scaled actions (m, T', d_a), or (m, 1, d_a) to hold over the window."""
        n_goals = self.n_goal_tokens
        goals, states = observed[:, :n_goals], observed[:, n_goals:]
        position = self.position[n_goals : observed.shape[1]]
        actions = self.action_embedding(scaled) + position
        noise = self.noise_embedding(0.25 * sigma.log()[:, None, None])
        if target is not None:
            noise = noise + self.target_embedding(target)[:, None]
        interleaved = torch.stack([states, actions], dim=2).flatten(1, 2)
        tokens = torch.cat([noise, goals, interleaved], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        tokens = last(tokens, last_only=last_only)
        # The first action follows the noise level, the goals and the first state.
        return self.output(self.norm(tokens if last_only else tokens[:, n_goals + 2 :: 2]))


def _output_head(hidden_size: int, head_size: int | None, n_actions: int) -> nn.Module:
    if head_size is None:
        return zero_(nn.Linear(hidden_size, n_actions))
    last = zero_(nn.Linear(head_size, n_actions))
    return nn.Sequential(nn.Linear(hidden_size, head_size), nn.SiLU(), last)


def _like(sigma: Tensor, actions: Tensor) -> Tensor:
    """Give noise levels (n, S) as many axes as actions have."""
    return sigma.reshape(sigma.shape + (1,) * (actions.ndim - sigma.ndim))
