"""Published checkpoints as fitted policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from skvdd.diffusion.beso import gpt_from_state_dict, read_state_dict
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.diffusion.policy import DiffusionPolicy
from skvdd.encoders import TransformerEncoder
from skvdd.nn.layout import RowLayout


def load_beso_checkpoint(
    path: str | Path,
    *,
    n_heads: int,
    sigma_data: float = 0.5,
    noise_min: float = 0.1,
    noise_max: float = 1.0,
    window_size: int | None = None,
    state_mean: ArrayLike = 0.0,
    state_scale: ArrayLike = 1.0,
    action_mean: ArrayLike = 0.0,
    action_scale: ArrayLike = 1.0,
    goal_mean: ArrayLike | None = None,
    goal_scale: ArrayLike | None = None,
    schedule: str = "exponential",
    sampler: str = "euler_ancestral",
    n_steps: int = 16,
    device: str | torch.device = "auto",
) -> DiffusionPolicy:
    """Read a published BESO or D3IL checkpoint as a fitted policy, ready to be distilled.

    Layers, widths, window, goals and output head are read off the tensors; what no tensor
    tells, and the statistics of the scaler, are given here, with BESO's defaults. Nothing in
    the file is executed.

    Parameters
    ----------
    path : str or Path
        State dict of the preconditioned denoiser: ``.pth``, ``.pt``, ``.npz`` or
        ``.safetensors``.
    n_heads : int
        Attention heads.
    sigma_data, noise_min, noise_max : float, default=0.5, 0.1, 1.0
        Preconditioning and range of noise levels that the policy was trained with.
    window_size : int or None, default=None
        States in a row, needed only where the file has no attention masks.
    state_mean, state_scale : float or array-like of shape (d,), default=0.0, 1.0
        Normalization of the states.
    action_mean, action_scale : float or array-like of shape (d_a,), default=0.0, 1.0
        Normalization of the actions.
    goal_mean, goal_scale : float or array-like of shape (g,) or None, default=None
        Normalization of the goal, ``g`` numbers of all its frames; ``None`` is those of the states.
    schedule, sampler, n_steps, device : as in the constructor
        Parameters of the policy.

    Returns
    -------
    DiffusionPolicy
        Fitted, with ``architecture="gpt"``. A goal is the last ``goal_dim`` columns of a row.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is not such a state dict; the message has the missing
        and the unexpected names.

    Examples
    --------
    >>> from skvdd.diffusion import load_beso_checkpoint
    >>> load_beso_checkpoint("missing.pth", n_heads=4)
    Traceback (most recent call last):
    FileNotFoundError: ...
    """
    network = gpt_from_state_dict(
        read_state_dict(path), n_heads=n_heads, sigma_data=sigma_data, window_size=window_size
    )
    config, layout = network.config, network.layout
    policy = DiffusionPolicy(
        architecture="gpt",
        window_size=layout.window_size,
        goal_dim=layout.goal_dim,
        encoder=TransformerEncoder(config["hidden_size"], config["n_layers"], n_heads),
        noise_min=noise_min,
        noise_max=noise_max,
        schedule=schedule,
        sampler=sampler,
        n_steps=n_steps,
        device=device,
    )
    policy._validate_params()
    policy._check_parameters()
    network.row_normalization.set(
        *_row_statistics(layout, (state_mean, state_scale), (goal_mean, goal_scale))
    )
    network.action_normalization.set(
        *_statistics(network.n_actions, action_mean, action_scale, "action")
    )
    policy._restore(network.eval(), _learned(policy, network))
    return policy


def _learned(policy: DiffusionPolicy, network: GPTDenoiser) -> dict[str, object]:
    """Return what a policy that was fitted elsewhere has learned beside its network."""
    return {
        "action_shape_": (network.n_actions,),
        "horizon_": 1,
        "n_iter_": 0,
        "history_": [],
        "interrupted_": False,
        "n_features_in_": network.layout.n_columns,
        **policy._sampling_attributes(network.sigma_data),
    }


def _row_statistics(
    layout: RowLayout,
    state: tuple[ArrayLike, ArrayLike],
    goal: tuple[ArrayLike | None, ArrayLike | None],
) -> tuple[NDArray, NDArray]:
    """Return mean and scale of the columns of a row; those of a goal default to the state's."""
    state_parts = _statistics(layout.n_states, *state, "state")
    n_repeats = layout.goal_dim // layout.n_states
    as_states = (np.tile(part, n_repeats) for part in state_parts)
    mean, scale = (
        own if own is not None else its for own, its in zip(goal, as_states, strict=True)
    )
    goal_parts = _statistics(layout.goal_dim, mean, scale, "goal")
    both = zip(state_parts, goal_parts, strict=True)
    mean, scale = (np.concatenate([np.tile(s, layout.window_size), g]) for s, g in both)
    return mean, scale


def _statistics(n: int, mean: ArrayLike, scale: ArrayLike, name: str) -> tuple[NDArray, NDArray]:
    """Return mean and scale of ``n`` columns, having checked their shape and values."""
    statistics = []
    for kind, given in (("mean", mean), ("scale", scale)):
        values = np.asarray(given, dtype=np.float64)
        if values.shape not in {(), (n,)} or not np.all(np.isfinite(values)):
            raise ValueError(
                f"{name}_{kind} must be one finite number or {n} of them, got {given!r}."
            )
        statistics.append(np.broadcast_to(values, n).copy())
    if np.any(statistics[1] <= 0):
        raise ValueError(f"{name}_scale must be positive, got {scale!r}.")
    return statistics[0], statistics[1]
