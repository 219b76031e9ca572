"""The published transformer denoiser: states and noisy actions interleaved in one sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skvdd.diffusion.denoiser import Denoiser, TargetEmbedding
from skvdd.nn.blocks import CausalAttentionBlock, zero_
from skvdd.nn.layout import RowLayout

# Windows denoised at a time where no gradient is needed: their activations stay in the cache.
CHUNK_SIZE = 128


class GPTDenoiser(Denoiser):
    r"""The transformer denoiser of BESO (Reuss et al., 2023) in Karras' preconditioning.

    One causal sequence holds the noise level, the goals, and then a state and a noisy action for
    each time step: :math:`\sigma, g, s_1, a_1, s_2, a_2, \ldots` The state and the action of one
    time step share a position embedding. Everything is standardized.

    The token of an action comes after the states it answers to, so a state cannot be encoded
    ahead of the actions: the ``context`` of this teacher is the row itself.

    **Earlier actions.** A query has one noisy action :math:`a`, whereas the sequence has a token
    for the action of every time step. All of them hold the queried action. A policy that is fitted
    here sees that in training too (`residual`), so it learns nothing more about the
    decision, and the score is exactly that of :math:`p_\sigma(a|s)`. A published checkpoint
    (``joint=True``) was trained with the window's own noisy actions. Its sampler denoises all the
    actions of the window together and keeps the last, which `denoise` does for actions of shape
    (n, S, T, d_a). Its distiller fills the earlier tokens with draws of the same expert in the
    earlier states; the queried action, held over the window, stands in for them.

    Parameters
    ----------
    layout : RowLayout
        Columns of a row; the goal holds the numbers of all goals together.
    n_actions : int
        Numbers ``d_a`` in an action.
    hidden_size, n_layers, n_heads : int
        Width of a token, number of blocks (at least one), attention heads.
    head_size : int, default=None
        Width of the hidden layer of the output; ``None`` for one linear layer.
    joint : bool, default=False
        Whether the network was trained on windows of actions rather than on single ones.
    n_goal_tokens : int, default=1
        Number of tokens that the goals are cut into; divides ``goal_dim``.
    sigma_data, boundary : float, default=1.0, 0.0
        As in `skvdd.diffusion.denoiser.Denoiser`.
    preconditioning : {"edm", "noise"}, default="edm"
        Likewise.
    target_min : float or None, default=None
        Likewise.

    Examples
    --------
    The network of a policy with ``architecture="gpt"``:

    >>> import torch
    >>> from skvdd import DiffusionPolicy
    >>> states = actions = torch.linspace(-1, 1, 20)[:, None].numpy()
    >>> policy = DiffusionPolicy(architecture="gpt", max_iter=1, hidden_size=8, n_layers=1).fit(
    ...     states, actions
    ... )
    >>> network = policy.network_
    >>> type(network).__name__
    'GPTDenoiser'
    >>> network.score(torch.zeros(4, 1), torch.zeros(4, 3, 1), torch.ones(4, 1)).shape
    torch.Size([4, 3, 1])
    """

    def __init__(
        self,
        layout: RowLayout,
        n_actions: int,
        hidden_size: int,
        n_layers: int,
        n_heads: int,
        head_size: int | None = None,
        joint: bool = False,
        n_goal_tokens: int = 1,
        sigma_data: float = 1.0,
        preconditioning: str = "edm",
        boundary: float = 0.0,
        target_min: float | None = None,
    ) -> None:
        super().__init__(
            layout,
            n_actions,
            sigma_data=sigma_data,
            preconditioning=preconditioning,
            boundary=boundary,
            target_min=target_min,
            hidden_size=hidden_size,
            n_layers=n_layers,
            n_heads=n_heads,
            head_size=head_size,
            joint=joint,
            n_goal_tokens=n_goal_tokens,
        )
        if layout.goal_dim % n_goal_tokens:
            raise ValueError(
                f"goal_dim={layout.goal_dim} cannot be cut into {n_goal_tokens} tokens"
            )
        self.n_goal_tokens = n_goal_tokens if layout.goal_dim else 0
        self.joint = joint
        self.noise_embedding = nn.Linear(1, hidden_size)
        if target_min is not None:
            self.target_embedding = TargetEmbedding(hidden_size, target_min)
        self.state_embedding = nn.Linear(layout.n_states, hidden_size)
        if layout.goal_dim:
            self.goal_embedding = nn.Linear(layout.goal_dim // n_goal_tokens, hidden_size)
        self.action_embedding = nn.Linear(n_actions, hidden_size)
        n_positions = self.n_goal_tokens + layout.window_size
        self.position = nn.Parameter(0.02 * torch.randn(n_positions, hidden_size))
        blocks = [CausalAttentionBlock(hidden_size, n_heads) for _ in range(n_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size)
        self.output = _output_head(hidden_size, head_size, n_actions)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of what a sampler draws for a state: an action, or a window of them if joint."""
        return (self.layout.window_size, self.n_actions) if self.joint else (self.n_actions,)

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
        c_skip, c_out, c_in = self._coefficients(sigma, noisy_actions)
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

    def _output(
        self, context: Tensor, scaled: Tensor, sigma: Tensor, target: Tensor | None
    ) -> Tensor:
        """Return ``F`` for single actions (n, S, d_a), or whole windows (n, S, T, d_a).

        Single actions hold over the window and are answered for its last time step; the actions of
        a window are denoised together.
        """
        n, n_queries = scaled.shape[:2]
        single = scaled.ndim == 3
        # One list of windows, whatever row they are of: (m, 1 or T, d_a).
        queries = scaled.flatten(0, 1)
        queries = queries[:, None] if single else queries
        levels = sigma.expand(n, n_queries).reshape(-1)
        ends = levels if target is None else target.expand(n, n_queries).reshape(-1)
        row = torch.arange(n, device=scaled.device).repeat_interleave(n_queries)
        observed = self._observe(*self.layout.split(context))
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
        return torch.cat(outputs).view(scaled.shape)

    def _observe(self, states: Tensor, goals: Tensor | None) -> Tensor:
        """Return the tokens of goals and states, (n, G + T', h)."""
        tokens = self.state_embedding(states)
        if self.n_goal_tokens:
            if goals is None:
                goals = states.new_zeros(states.shape[0], self.layout.goal_dim)
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
