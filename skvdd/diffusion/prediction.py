"""Scores of networks that predict noise, clean actions or velocity."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Function = Callable[[Tensor, Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False)
class NoisePredictionScore:
    """The score behind `ScoreTeacher.from_noise_prediction`, whose arguments it takes; pickles.

    ``log_sigma`` are the logarithms of the noise levels of ``timesteps``, ascending.
    """

    network: Function
    timesteps: NDArray[np.integer]
    log_sigma: NDArray[np.float64]
    prediction_type: str = "epsilon"
    clip: float | None = None

    def __call__(self, states: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores (n, S, m) at standardized actions (n, S, m), noise levels (n, 1)."""
        grid = torch.tensor(self.log_sigma, dtype=sigma.dtype, device=sigma.device)
        wanted = sigma[:, 0].log().contiguous()
        above = torch.searchsorted(grid, wanted).clamp(1, len(grid) - 1)
        share = (wanted - grid[above - 1]) / (grid[above] - grid[above - 1])
        # Times 1 + sigma^2 it bends least, between levels as far apart as 64 and 2029 too, where
        # the score falls a thousandfold: those are the last two of 100 steps of the cosine.
        weighted = torch.lerp(
            self._weighted(states, actions, above - 1, grid),
            self._weighted(states, actions, above, grid),
            share.clamp(0.0, 1.0)[:, None, None],  # rounding must not leave the timesteps
        )
        variance = sigma[..., None].square()
        score = weighted / (1.0 + variance)
        if self.clip is None:
            return score
        clean = torch.addcmul(actions, variance, score).clamp(-self.clip, self.clip)
        return (clean - actions) / variance

    def _weighted(self, states: Tensor, actions: Tensor, index: Tensor, grid: Tensor) -> Tensor:
        """Return ``(1 + sigma**2) * score`` at one timestep for each state, given by its index."""
        timesteps = torch.tensor(self.timesteps, dtype=torch.int64, device=index.device)[index]
        sigma = grid[index, None, None].exp()
        scale = (1.0 + sigma.square()).sqrt()  # sqrt(alpha_bar) = 1 / scale
        output = ask_rows(self.network, "network", actions / scale, timesteps, states)
        if self.prediction_type == "sample":
            return (output - actions) * (scale / sigma).square()
        if self.prediction_type == "v_prediction":
            output = (output + sigma * actions / scale) / scale
        return -output * scale.square() / sigma


@dataclass(frozen=True, eq=False)
class VelocityScore:
    """The score behind `ScoreTeacher.from_velocity`, of its ``velocity``; pickles."""

    network: Function

    def __call__(self, states: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores (n, S, m) at standardized actions (n, S, m), noise levels (n, 1)."""
        sigma = sigma[..., None]
        t = 1.0 / (1.0 + sigma)
        velocity = ask_rows(self.network, "velocity", t * actions, t[:, 0, 0], states)
        return (velocity - actions) / (sigma * (1.0 + sigma))


def ask_rows(network: Function, name: str, actions: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """Ask a network of rows for actions (n, S, m) of n states at n times; same shape back."""
    rows, n_samples = actions.flatten(0, 1), actions.shape[1]
    output = network(rows, *(part.repeat_interleave(n_samples, dim=0) for part in (t, states)))
    return like_actions(rows, output, name).reshape(actions.shape)


def like_actions(actions: Tensor, output: Any, name: str) -> Tensor:
    """Return what a user's function gave for actions, on their device, in their dtype."""
    if isinstance(output, Tensor) and output.shape == actions.shape:
        return output.detach().to(actions)
    came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"{name} must return a tensor of the shape of its actions, {tuple(actions.shape)}, got "
        f"{came}. Wrap it in a function that does."
    )


def require(holds: bool, message: str) -> None:
    """Raise a ValueError unless a rule holds."""
    if not holds:
        raise ValueError(message)


def check_noise_levels(n_actions: int, noise_min: float, noise_max: float) -> None:
    """Raise a ValueError for an impossible number of actions or range of noise."""
    require(
        isinstance(n_actions, Integral) and n_actions >= 1,
        f"n_actions must be an integer of at least 1, got {n_actions!r}.",
    )
    require(
        0.0 < noise_min < noise_max < float("inf"),
        "noise_min and noise_max must be positive, finite and in this order, got "
        f"noise_min={noise_min} and noise_max={noise_max}.",
    )


def check_unit(name: str, value: ArrayLike, n_actions: int) -> NDArray[np.float64]:
    """Return a mean or scale as one number for each action dimension."""
    unit = np.asarray(value, dtype=np.float64)
    kind = "positive and finite" if name == "action_scale" else "finite"
    valid = np.isfinite(unit) & ((unit > 0.0) | (name != "action_scale"))
    require(
        unit.shape in {(), (1,), (n_actions,)} and bool(valid.all()),
        f"{name} must be {kind}, one number or one for each of the {n_actions} action "
        f"dimensions, got {value!r}.",
    )
    return np.broadcast_to(unit, (n_actions,)).copy()


def check_prediction(prediction_type: str, clip: float | None) -> None:
    """Raise a ValueError for an unknown prediction or a clip that is not positive."""
    allowed = ("epsilon", "sample", "v_prediction")
    require(
        prediction_type in allowed,
        f"prediction_type must be one of {allowed}, got {prediction_type!r}.",
    )
    require(
        clip is None or 0.0 < clip < float("inf"),
        f"clip must be a positive, finite number, or None to clamp nothing, got {clip!r}.",
    )


def check_schedule(alphas_cumprod: ArrayLike) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return the timesteps that have a score, and their noise levels; float64, on the CPU."""
    if isinstance(alphas_cumprod, Tensor):
        alphas_cumprod = alphas_cumprod.detach().cpu().numpy()
    alphas = np.asarray(alphas_cumprod, dtype=np.float64)
    require(
        alphas.ndim == 1,
        f"alphas_cumprod must be a vector, one number per timestep, got shape {alphas.shape}.",
    )
    outside = alphas[~((alphas >= 0.0) & (alphas <= 1.0))]
    require(not len(outside), f"alphas_cumprod must lie between 0 and 1, got {outside[:1].sum()}.")
    rising = np.append(np.flatnonzero(np.diff(alphas) >= 0.0), -1)[0]
    require(
        rising < 0,
        "alphas_cumprod must fall strictly, least noise first, got "
        f"{alphas[rising + 1]} after {alphas[rising]}.",
    )
    timesteps = np.flatnonzero((alphas > 0.0) & (alphas < 1.0))
    require(
        len(timesteps) >= 2,
        "alphas_cumprod needs at least two timesteps strictly between 0 and 1, got "
        f"{len(timesteps)}.",
    )
    warn_of_alphas(alphas)
    return timesteps, np.sqrt((1.0 - alphas[timesteps]) / alphas[timesteps])


def warn_of_alphas(alphas: NDArray[np.float64]) -> None:
    """Warn of a schedule that looks like the factors of ``alphas_cumprod``, or ends early."""
    # Half way, the schedules in use are at 0.5 or below. Their factors stay above 0.9 for longer,
    # and end above 0.9 too, but for the cosine's.
    if alphas[-1] > 0.5 or np.median(alphas) > 0.9:
        warnings.warn(
            f"alphas_cumprod is {np.median(alphas):.3g} half way and {alphas[-1]:.3g} at its end, "
            "far from pure noise. If these are the factors, scheduler.alphas, pass "
            "scheduler.alphas_cumprod. If they are the products, actions cannot be drawn from "
            "pure noise: lengthen the schedule, or use this teacher at low noise only.",
            UserWarning,
            stacklevel=4,
        )
