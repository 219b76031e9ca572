"""Diffusion policies as scikit-learn estimators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skvdd._sklearn import Interval, StrOptions, fit_context, is_fitted, with_callbacks
from skvdd.base import (
    DensityPolicy,
    RandomStates,
    check_n_samples,
    draw_seed,
    resolve_device,
    row_noise,
    seeded_network,
)
from skvdd.control.controller import Layout
from skvdd.control.graphs import SamplerGraph
from skvdd.diffusion.checkpoint import (
    checkpoint_units,
    gpt_from_state_dict,
    read_state_dict,
)
from skvdd.diffusion.denoiser import ContextDenoiser
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.diffusion.likelihood import flow_log_prob, likelihood_steps
from skvdd.diffusion.noise import NOISE_DENSITIES, PROCESSES, SCHEDULES, NoiseLevels
from skvdd.diffusion.samplers import SAMPLERS, STOCHASTIC, draw_actions
from skvdd.streaming import BLOCK, Rows, is_resident
from skvdd.training import Loss, Update, add_noise, batch_generator, draw

NOISE_DRAWS = 4  # noise levels for each row of a minibatch: the state is encoded once for all
EXACT_DIMENSIONS = 32  # up to which `log_prob` takes the divergence exactly
GRADIENT_WIDTH = 16  # queries that one of the transformer counts for, where its graph is kept
PROBES = 32  # random directions of its estimate above


class DiffusionPolicy(DensityPolicy):
    r"""A diffusion policy: slow, expressive, and the teacher of everything else here.

    A network :math:`D` learns to remove Gaussian noise from actions, given the state window, by
    minimising

    .. math:: E_{(s, a),\, \sigma,\, \epsilon}\;
              \lambda(\sigma)\, \| D(a + \sigma\epsilon;\, s, \sigma) - a \|^2 ,

    with the preconditioning and weights of Karras et al. [2]_. Then
    :math:`(D - a) / \sigma^2` is the score of the noised policy, actions are drawn by walking from
    high noise to none, and exact likelihoods come from the probability-flow ODE. With these
    choices it is the variance-exploding teacher ("BESO" [1]_) of Variational Diffusion
    Distillation.

    With ``sde="vp"`` it is the variance-preserving one ("DDPM" [3]_): the network predicts the
    noise in :math:`a_t = \alpha_t a + \sqrt{1 - \alpha_t^2}\, \epsilon` and minimises
    :math:`\| \hat\epsilon - \epsilon \|^2` at times uniform in the process, and actions are drawn
    by the discrete process of ``n_steps``, with every estimate of the clean action clipped to the
    range of the data. Divided by :math:`\alpha_t`, the noised action is
    :math:`a + \sigma \epsilon` with :math:`\sigma = \sqrt{1 - \alpha_t^2} / \alpha_t`: every noise
    level, score and likelihood here speaks of that variable, so that both families are asked and
    distilled alike. Times are drawn from the whole interval, not from the steps alone; the levels
    between them are then learnt too, and the number of steps can be chosen anew in `sample`.

    Parameters
    ----------
    sde : {"ve", "vp"}, default="ve"
        Noise process: variance exploding, ``a_sigma = a + sigma * eps``, or variance preserving.
    architecture : {"context", "gpt"}, default="context"
        ``"context"``: the state window is encoded once; a small head, conditioned on that context
        and the noise level, is all that runs for each action. ``"gpt"``: the published
        transformer over interleaved states and noisy actions, all of which runs for each action
        (`skvdd.diffusion.gpt.GPTDenoiser`); ``n_layers`` of width ``hidden_size``, and no encoder.
    window_size : int, default=1
        States in a row, ``T``.
    goal_dim : int, default=0
        Columns ``g`` of the goal at the end of a row; 0 for none.
    encoder : {"mlp", "transformer"}, default="mlp"
        Network over the state window of ``"context"``.
    hidden_size, n_layers, n_heads : int, default=128, 2, 4
        Width, layers of encoder and head, attention heads (transformers only).
    sigma_data : float, default=1.0
        Standard deviation of the standardised actions in the preconditioning of ``"ve"``.
    noise_min, noise_max : float, default=0.03, 5.0
        Range of noise levels, in standardised actions; a variance-preserving process ends where
        it reaches ``noise_max``.
    noise_density : {"auto", "lognormal", "loglogistic"}, default="auto"
        Density of the noise levels in training: EDM's or BESO's. ``"auto"`` is EDM's for
        ``sde="ve"`` and times uniform in the process for ``sde="vp"``.
    schedule : {"auto", "karras", "exponential", "linear", "cosine", "vp"}, default="auto"
        Noise levels along which actions are drawn. For ``"ve"``: ``"karras"`` (``"auto"``),
        ``"exponential"`` or ``"linear"``. For ``"vp"`` the noise process itself: ``"cosine"``
        (``"auto"``), ``"linear"`` or ``"vp"``, the last two with linearly growing rates.
    sampler : {"auto", "euler", "euler_ancestral", "heun", "ddim", "dpmpp_2m", "ddpm"}, \
            default="auto"
        How actions are drawn. Only ``"euler_ancestral"`` and ``"ddpm"``, two names of one
        sampler, add noise on the way; ``"auto"`` is that one. ``"ddim"`` is ``"euler"``.
    n_steps : int, default=16
        Steps of the sampler; one step gives ``D(noise_max * eps; s, noise_max)``.
    max_iter, batch_size : int, default=6000, 256
        Iterations, and rows in a minibatch.
    learning_rate, weight_decay : float, default=1e-3, 1e-3
        AdamW's step size (after a warm-up, decaying as a cosine) and decay.
    ema_decay : float, default=0.998
        Factor of the moving average of the weights that predicts; 0 for none.
    state_noise : float, default=0.035
        Standard deviation of Gaussian noise on the standardised states in training. It teaches
        the policy to recover from its own errors.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Source of initial weights, minibatches and training noise.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights and units of the last one.

    Attributes
    ----------
    network_ : ContextDenoiser or GPTDenoiser
        The trained denoiser, in standardised units; also as ``denoiser_``.
    state_scaler_, action_scaler_ : StandardScaler
        Units of states and actions.
    n_actions_ : int
        Action dimension ``d_a``.
    n_iter_ : int
        Iterations done.
    history_ : list of dict
        One row for each report: iteration, learning rate, mean loss.
    interrupted_ : bool
        Whether a KeyboardInterrupt ended `fit`.
    n_features_in_ : int
        Columns of a flat row, ``T * d``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    References
    ----------
    .. [1] Reuss, Li, Jia, Lioutikov (2023), "Goal conditioned imitation learning using
       score-based diffusion policies".
    .. [2] Karras, Aittala, Aila, Laine (2022), "Elucidating the design space of diffusion-based
       generative models".
    .. [3] Ho, Jain, Abbeel (2020), "Denoising diffusion probabilistic models"; Nichol, Dhariwal
       (2021), "Improved denoising diffusion probabilistic models".

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import DiffusionPolicy
    >>> rng = np.random.RandomState(0)
    >>> states = rng.uniform(-1, 1, size=(200, 1))
    >>> actions = np.sign(rng.standard_normal((200, 1))) * (1 + states)  # left or right
    >>> policy = DiffusionPolicy(max_iter=100, hidden_size=32, random_state=0).fit(states, actions)
    >>> policy.sample(states[:3], n_samples=5, random_state=0).shape
    (3, 5, 1)
    >>> policy.log_prob(states[:3], actions[:3]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **DensityPolicy._parameter_constraints,
        "sde": [StrOptions({"ve", "vp"})],
        "architecture": [StrOptions({"context", "gpt"})],
        "sigma_data": [Interval(Real, 0, None, closed="neither")],
        "noise_min": [Interval(Real, 0, None, closed="neither")],
        "noise_max": [Interval(Real, 0, None, closed="neither")],
        "noise_density": [StrOptions({"auto", *NOISE_DENSITIES})],
        "schedule": [StrOptions({"auto", *SCHEDULES, *PROCESSES})],
        "sampler": [StrOptions({"auto", *SAMPLERS})],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        sde: str = "ve",
        architecture: str = "context",
        *,
        window_size: int = 1,
        goal_dim: int = 0,
        encoder: str = "mlp",
        hidden_size: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        sigma_data: float = 1.0,
        noise_min: float = 0.03,
        noise_max: float = 5.0,
        noise_density: str = "auto",
        schedule: str = "auto",
        sampler: str = "auto",
        n_steps: int = 16,
        max_iter: int = 6000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        ema_decay: float = 0.998,
        state_noise: float = 0.035,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
    ) -> None:
        self.sde = sde
        self.architecture = architecture
        self.window_size = window_size
        self.goal_dim = goal_dim
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.sigma_data = sigma_data
        self.noise_min = noise_min
        self.noise_max = noise_max
        self.noise_density = noise_density
        self.schedule = schedule
        self.sampler = sampler
        self.n_steps = n_steps
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.state_noise = state_noise
        self.device = device
        self.random_state = random_state
        self.warm_start = warm_start

    @classmethod
    def from_beso_checkpoint(
        cls,
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
    ) -> Self:
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
            Units of the states.
        action_mean, action_scale : float or array-like of shape (d_a,), default=0.0, 1.0
            Units of the actions.
        goal_mean, goal_scale : float or array-like of shape (g,) or None, default=None
            Units of the goal, ``g`` numbers of all its frames; ``None`` is those of the states.
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
        """
        network = gpt_from_state_dict(
            read_state_dict(path), n_heads=n_heads, sigma_data=sigma_data, window_size=window_size
        )
        config = network.config
        policy = cls(
            architecture="gpt",
            window_size=config["window_size"],
            goal_dim=config["n_goals"],
            hidden_size=config["hidden_size"],
            n_layers=config["n_layers"],
            n_heads=n_heads,
            sigma_data=sigma_data,
            noise_min=noise_min,
            noise_max=noise_max,
            schedule=schedule,
            sampler=sampler,
            n_steps=n_steps,
            device=device,
        )
        policy._validate_params()
        policy._noise().check()
        policy._check_machine()
        policy.state_scaler_, policy.action_scaler_ = checkpoint_units(
            network,
            state=(state_mean, state_scale),
            action=(action_mean, action_scale),
            goal=(goal_mean, goal_scale),
        )
        policy.n_features_in_ = config["window_size"] * config["n_states"] + config["n_goals"]
        policy.n_actions_, policy._single_output = config["n_actions"], False
        policy.n_iter_, policy.history_, policy.interrupted_ = 0, [], False
        policy.network_ = network.eval()
        return policy

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn to denoise the actions of demonstrations.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first.
        y : array-like of shape (n, d_a) or (n,)
            The action taken after each window.

        Returns
        -------
        self : DiffusionPolicy

        Raises
        ------
        ValueError
            If an argument or the data break a rule; before any training.
        FloatingPointError
            If the loss ceases to be finite.
        """
        return self._fit(X, y, partial=False)

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from more demonstrations: the first call is a `fit`, later ones go on from it.

        Each call takes ``max_iter`` iterations, with a learning rate that rises and falls anew, on
        the rows of this call alone: give old and new rows together if the old ones are not to be
        forgotten. The units of states and actions stay those of the first call. ``history_`` and
        ``n_iter_`` count on; with an integer ``random_state`` each call has random numbers of its
        own.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first, with the columns of the first call.
        y : array-like of shape (n, d_a) or (n,)
            The action taken after each window.

        Returns
        -------
        self : DiffusionPolicy

        Raises
        ------
        ValueError
            If an argument or the data break a rule; before any training.
        FloatingPointError
            If the loss ceases to be finite.
        """
        with self._counting_on():
            return self._fit(X, y, partial=True)

    def sample(
        self,
        X: ArrayLike,
        n_samples: int | None = None,
        *,
        random_state: RandomStates = None,
        n_steps: int | None = None,
        sampler: str | None = None,
    ) -> NDArray:
        """Draw actions from the policy.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        n_samples : int or None, default=None
            Actions for each window; ``None`` draws one and leaves the axis out.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise, drawn row by row, all steps at once: an action depends neither on
            its neighbours in the batch nor on the device.
        n_steps, sampler : int, str or None, default=None
            In place of the parameters of the same names.

        Returns
        -------
        ndarray of shape (n, d_a) or (n, n_samples, d_a)
            Actions in raw units; without the last axis if `fit` was given actions of shape (n,).
        """
        states = self._check_states(X)
        n_steps, sampler = self._check_sampling(n_samples, n_steps, sampler)
        shape = (n_samples or 1, _n_noises(n_steps, sampler), *self.network_.action_shape)
        noise = torch.from_numpy(row_noise(random_state, len(states), shape)).float()
        actions = self._sample(states, noise, n_steps, sampler)
        return self._raw_actions(actions[:, 0] if n_samples is None else actions)

    def predict(self, X: ArrayLike) -> NDArray:
        """Return one action for each window, without randomness.

        The probability-flow ODE is followed from the centre of the noise, with the deterministic
        sampler (``"euler"`` in place of ``"euler_ancestral"`` or ``"ddpm"``).

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        states = self._check_states(X)
        sampler = "euler" if self.sampler in {"auto", *STOCHASTIC} else self.sampler
        centre = torch.zeros(len(states), 1, 1, *self.network_.action_shape)
        return self._raw_actions(self._sample(states, centre, self.n_steps, sampler)[:, 0])

    def log_prob(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        tolerance: float = 1e-3,
        random_state: int | np.random.RandomState | None = 0,
    ) -> NDArray:
        r"""Return the exact log-density of actions, by the probability-flow ODE.

        It is the density of the policy at ``noise_min``. Runge-Kutta steps of fourth order, equal
        in :math:`\ln \sigma`: 12 for each nat of the noise range at a tolerance of 1e-3 (62 steps,
        248 evaluations of the network, at the default range), and more as the inverse fourth root
        of the tolerance. The divergence is exact up to 32 action dimensions, at the price of
        ``d_a`` derivatives for each evaluation; above, it is Hutchinson's estimate along 32 random
        directions. The density at ``noise_max`` is read off the denoiser, by line integrals of the
        score and a cubature that makes it integrate to one (without derivatives, 41 and 251
        evaluations in one and two dimensions, ``10 d_a^2 + 11`` above). It should be near to a
        Gaussian there: above two dimensions, ``noise_max`` of at least 3 keeps the tolerance.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Actions, raw units.
        tolerance : float, default=1e-3
            Error in nats of the integral; float32 arithmetic ends at about 1e-4.
        random_state : int, RandomState or None, default=0
            Source of the directions, above 32 dimensions.

        Returns
        -------
        ndarray of shape (n,)
            Log-densities in nats, in raw action units.
        """
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance!r}.")
        n_steps = likelihood_steps(self.noise_min, self.noise_max, tolerance)
        probes = self._probes(random_state)
        states, actions = self._check_query(X, y)
        network = self._network()

        def rows(states: Tensor, actions: Tensor) -> Tensor:
            context = network.context(states)

            def denoise(actions: Tensor, sigma: Tensor) -> Tensor:
                level = sigma.expand(len(actions), 1)
                return network.denoise(context, actions[:, None], level)[:, 0]

            return flow_log_prob(denoise, actions, self.noise_min, self.noise_max, n_steps, probes)

        standard = (self._standardise_states(states), self._standardise_actions(actions))
        log_scale = np.log(self.action_scaler_.scale_).sum()
        width = GRADIENT_WIDTH if self.architecture == "gpt" else 1
        return self._evaluate(rows, *standard, width=width).double().numpy() - log_scale

    def score_function(self, X: ArrayLike, y: ArrayLike, noise_level: ArrayLike) -> NDArray:
        r"""Return the score :math:`\nabla_a \log \pi_\sigma(a|s)` of the noised policy.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Noised actions, raw units.
        noise_level : float or array-like of shape (n,)
            Standard deviation of the noise, in standardised actions.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Gradient of the log-density with respect to the raw action.
        """
        # Eq. 7 needs the gradient in raw units: the chain rule divides by the scale.
        score = self._at_noise_level(X, y, noise_level, "score") / self.action_scaler_.scale_
        return score[:, 0] if self._single_output else score

    def denoise(self, X: ArrayLike, y: ArrayLike, noise_level: ArrayLike) -> NDArray:
        """Return the expected clean action, given noised ones.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Noised actions, raw units.
        noise_level : float or array-like of shape (n,)
            Standard deviation of the noise, in standardised actions.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        denoised = self._at_noise_level(X, y, noise_level, "denoise")
        return self._raw_actions(torch.from_numpy(denoised))

    # -- private steps ---------------------------------------------------------------------------

    def _fit(self, X: ArrayLike, y: ArrayLike, *, partial: bool) -> Self:
        self._noise().check()
        states, actions = self._check_training_data(X, y, reset=not (partial and is_fitted(self)))
        goes_on = self._goes_on(partial)
        rng = self._begin_fit(1, states, actions, partial=partial)
        if not goes_on:
            self._fit_scalers(states, actions)
            self.network_ = self._build(draw_seed(rng))
        device = resolve_device(self.device)
        action_rows = self._rows_of_actions(actions, device)
        self._widen_action_range(action_rows)
        self._learn(self._rows_of_states(states, device), action_rows, draw_seed(rng))
        return self._end_fit()

    def _noise(self) -> NoiseLevels:
        return NoiseLevels(
            self.sde,
            self.noise_min,
            self.noise_max,
            self.noise_density,
            self.schedule,
            self.sigma_data,
        )

    def _make_network(self, config: dict[str, Any]) -> ContextDenoiser | GPTDenoiser:
        return (GPTDenoiser if self.architecture == "gpt" else ContextDenoiser)(**config)

    @property
    def denoiser_(self) -> ContextDenoiser | GPTDenoiser:
        """The trained denoiser."""
        return self.network_

    def _check_heads(self) -> None:
        if self.architecture == "context":
            return super()._check_heads()
        if self.n_layers < 1:
            raise ValueError(
                f"n_layers must be at least 1 for architecture='gpt', got {self.n_layers}."
            )
        if self.hidden_size % self.n_heads:
            raise ValueError(
                "hidden_size must be a multiple of n_heads for architecture='gpt', got "
                f"hidden_size={self.hidden_size} and n_heads={self.n_heads}."
            )

    def _build(self, seed: int) -> ContextDenoiser | GPTDenoiser:
        preconditioning = "edm" if self.sde == "ve" else "noise"
        sizes: dict[str, Any] = {
            "n_actions": self.n_actions_,
            "hidden_size": self.hidden_size,
            "n_layers": self.n_layers,
            "sigma_data": self.sigma_data,
            "preconditioning": preconditioning,
        }
        if self.architecture == "gpt":
            sizes |= {
                "n_states": self._n_states,
                "n_goals": self.goal_dim,
                "window_size": self.window_size,
                "n_heads": self.n_heads,
            }
        else:
            sizes["encoder"] = self._encoder_config()
        return seeded_network(lambda: self._make_network(sizes), seed)

    def _widen_action_range(self, actions: Rows) -> None:
        """Take new actions into the range of the data, which a fit that goes on has from before."""
        bounds = self.network_.action_range
        ends = [torch.stack([rows.amin(0), rows.amax(0)]) for rows in actions.split(BLOCK)]
        seen = torch.cat(ends).to(bounds.device)
        if torch.isfinite(bounds).all():
            seen = torch.cat([seen, bounds])
        bounds.copy_(torch.stack([seen.amin(0), seen.amax(0)]))

    def _learn(self, state_rows: Rows, action_rows: Rows, seed: int) -> None:
        network = self._network()
        generator = batch_generator(resolve_device(self.device), seed)
        levels = self._noise()

        def loss(rows: Tensor, progress: float | Tensor) -> Loss:
            context = network.context(
                add_noise(state_rows.index_select(0, rows), self.state_noise, generator)
            )
            clean = action_rows.index_select(0, rows)[:, None].expand(-1, NOISE_DRAWS, -1)
            noise = draw(torch.randn, clean.shape, generator)
            uniform = draw(torch.rand, clean.shape[:2], generator)
            sigma = levels.of_training(uniform)
            return Loss(network.residual(context, clean, noise, sigma).square().mean())

        update = Update(
            "denoising",
            loss,
            list(network.parameters()),
            self.learning_rate,
            replayable=is_resident(state_rows, action_rows),
        )
        self._train(
            network,
            [update],
            len(state_rows),
            stage="denoising",
            max_iter=self.max_iter,
            generator=generator,
        )

    def _sample(self, states: NDArray, noise: Tensor, n_steps: int, sampler: str) -> Tensor:
        """Walk from noise (n, S, 1 + steps, d_a) to standardised actions (n, S, d_a)."""
        draw = self._drawing(self._network(), n_steps, sampler)
        return self._evaluate(draw, self._standardise_states(states), noise, width=noise.shape[1])

    def _drawing(self, network: Any, n_steps: int, sampler: str) -> Callable[..., Tensor]:
        """Return what maps states and noise to actions, all standardised."""
        levels = self._noise()
        return partial(
            draw_actions,
            network,
            sigmas=levels.of_sampling(n_steps),
            sampler=sampler,
            start_scale=levels.start_scale,
            bounds=tuple(network.action_range) if self.sde == "vp" else None,
        )

    def _deployed(self) -> tuple[SamplerGraph, Layout]:
        network, rows, actions = self._deployed_parts()
        n_steps, sampler = self._check_sampling(None, None, None)
        draw = self._drawing(network, n_steps, sampler)
        noise_shape = (_n_noises(n_steps, sampler), *network.action_shape)
        return SamplerGraph(network, rows, actions, draw), self._layout(noise_shape)

    def _probes(self, random_state: int | np.random.RandomState | None) -> Tensor | None:
        """Return directions (m, d_a) of Hutchinson's estimate, None where none is needed."""
        check_is_fitted(self)
        if self.n_actions_ <= EXACT_DIMENSIONS:
            return None
        signs = check_random_state(random_state).choice([-1.0, 1.0], (PROBES, self.n_actions_))
        return torch.tensor(signs, dtype=torch.float32, device=resolve_device(self.device))

    def _check_sampling(
        self, n_samples: int | None, n_steps: int | None, sampler: str | None
    ) -> tuple[int, str]:
        check_n_samples(n_samples)
        n_steps = self.n_steps if n_steps is None else n_steps
        sampler = self.sampler if sampler is None else sampler
        sampler = "euler_ancestral" if sampler == "auto" else sampler
        if not isinstance(n_steps, Integral) or n_steps < 1:
            raise ValueError(f"n_steps must be an integer of at least 1, got {n_steps!r}.")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {sampler!r}.")
        return int(n_steps), sampler

    def _at_noise_level(
        self, X: ArrayLike, y: ArrayLike, noise_level: ArrayLike, call: str
    ) -> NDArray:
        """Evaluate a call of the denoiser and return it in standardised units, (n, d_a)."""
        states, actions = self._check_query(X, y)
        sigma = np.asarray(noise_level, dtype=np.float64)
        if sigma.shape not in {(), (len(states),)} or not np.all((sigma > 0) & np.isfinite(sigma)):
            raise ValueError(
                f"noise_level must be one positive number or one for each of the {len(states)} "
                f"rows, got {noise_level!r}."
            )
        function = getattr(self._network(), call)
        context = self._network().context

        def rows(states: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
            return function(context(states), actions[:, None], sigma)[:, 0]

        level = torch.from_numpy(np.broadcast_to(sigma, len(states)).astype(np.float32))[:, None]
        standard = (self._standardise_states(states), self._standardise_actions(actions))
        return self._evaluate(rows, *standard, level).double().numpy()


def _n_noises(n_steps: int, sampler: str) -> int:
    """Return how many standard normal actions a walk takes: its start, and what it adds."""
    return n_steps if sampler in STOCHASTIC else 1
