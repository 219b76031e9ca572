"""Diffusion policies as scikit-learn estimators."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from skvdd._sklearn import Interval, StrOptions, fit_context, with_callbacks
from skvdd.base import (
    BasePolicy,
    RandomStates,
    check_n_samples,
    check_noise_range,
    draw_seed,
    resolve_device,
    row_noise,
    seeded_network,
)
from skvdd.diffusion.denoiser import ContextDenoiser
from skvdd.diffusion.likelihood import flow_log_prob
from skvdd.diffusion.noise import NOISE_DENSITIES, SCHEDULES
from skvdd.diffusion.samplers import SAMPLERS, STOCHASTIC, draw_actions
from skvdd.training import Loss, Update, add_noise

NOISE_DRAWS = 4  # noise levels for each row of a minibatch: the state is encoded once for all
LIKELIHOOD_STEPS = 48  # Runge-Kutta steps of `log_prob`


class DiffusionPolicy(BasePolicy):
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

    Parameters
    ----------
    sde : {"ve"}, default="ve"
        Noise process: variance exploding, ``a_sigma = a + sigma * eps``.
    architecture : {"context"}, default="context"
        The state window is encoded once; a small head, conditioned on that context and the noise
        level, is all that runs for each action.
    window_size : int, default=1
        States in a row, ``T``.
    encoder : {"mlp", "transformer"}, default="mlp"
        Network over the state window.
    hidden_size, n_layers, n_heads : int, default=128, 2, 4
        Width, layers of encoder and head, attention heads (transformer only).
    sigma_data : float, default=1.0
        Standard deviation of the standardised actions in the preconditioning.
    noise_min, noise_max : float, default=0.03, 5.0
        Range of noise levels, in standardised actions.
    noise_density : {"lognormal", "loglogistic"}, default="lognormal"
        Density of the noise levels in training: EDM's or BESO's.
    schedule : {"karras", "exponential", "linear"}, default="karras"
        Noise levels along which actions are drawn.
    sampler : {"euler", "euler_ancestral", "heun", "ddim", "dpmpp_2m"}, \
            default="euler_ancestral"
        How actions are drawn. Only ``"euler_ancestral"`` adds noise on the way.
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
    network_ : ContextDenoiser
        The trained denoiser, in standardised units.
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

    _network_class = ContextDenoiser
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePolicy._parameter_constraints,
        "sde": [StrOptions({"ve"})],
        "architecture": [StrOptions({"context"})],
        "sigma_data": [Interval(Real, 0, None, closed="neither")],
        "noise_min": [Interval(Real, 0, None, closed="neither")],
        "noise_max": [Interval(Real, 0, None, closed="neither")],
        "noise_density": [StrOptions(set(NOISE_DENSITIES))],
        "schedule": [StrOptions(set(SCHEDULES))],
        "sampler": [StrOptions(set(SAMPLERS))],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        sde: str = "ve",
        architecture: str = "context",
        *,
        window_size: int = 1,
        encoder: str = "mlp",
        hidden_size: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        sigma_data: float = 1.0,
        noise_min: float = 0.03,
        noise_max: float = 5.0,
        noise_density: str = "lognormal",
        schedule: str = "karras",
        sampler: str = "euler_ancestral",
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

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn to denoise the actions of demonstrations.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d)
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
        check_noise_range(self.noise_min, self.noise_max)
        states, actions = self._check_training_data(X, y)
        goes_on = self._goes_on(states)
        self._begin_fit(n_stages=1)
        rng = check_random_state(self.random_state)
        if not goes_on:
            self._fit_scalers(states, actions)
            self.network_ = self._build(states.shape[-1], draw_seed(rng))
        self._learn(states, actions, draw_seed(rng))
        return self._end_fit()

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
        X : array-like of shape (n, d), (n, T, d) or (n, T * d)
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
        noises = 1 + (n_steps - 1 if sampler in STOCHASTIC else 0)
        shape = (n_samples or 1, noises, self.n_actions_)
        noise = torch.from_numpy(row_noise(random_state, len(states), shape)).float()
        actions = self._sample(states, noise, n_steps, sampler)
        return self._raw_actions(actions[:, 0] if n_samples is None else actions)

    def predict(self, X: ArrayLike) -> NDArray:
        """Return one action for each window, without randomness.

        The probability-flow ODE is followed from the centre of the noise, with the deterministic
        sampler (``"euler"`` in place of ``"euler_ancestral"``).

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d)
            State windows.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        states = self._check_states(X)
        sampler = "euler" if self.sampler in STOCHASTIC else self.sampler
        centre = torch.zeros(len(states), 1, 1, self.n_actions_)
        return self._raw_actions(self._sample(states, centre, self.n_steps, sampler)[:, 0])

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        r"""Return the exact log-density of actions, by the probability-flow ODE.

        It is the density of the policy at ``noise_min``. 48 Runge-Kutta steps of fourth order,
        equal in :math:`\ln \sigma`, with the exact divergence: 192 evaluations of the network and
        ``d_a`` derivatives of each. The distribution at ``noise_max`` is taken as
        :math:`N(D(0; s, \sigma_{max}), (1 + \sigma_{max}^2) I)`.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Actions, raw units.

        Returns
        -------
        ndarray of shape (n,)
            Log-densities in nats, in raw action units.
        """
        states, actions = self._check_query(X, y)
        network = self._network()

        def rows(states: Tensor, actions: Tensor) -> Tensor:
            context = network.context(states)

            def denoise(actions: Tensor, sigma: Tensor) -> Tensor:
                level = sigma.expand(len(actions), 1)
                return network.denoise(context, actions[:, None], level)[:, 0]

            return flow_log_prob(denoise, actions, self.noise_min, self.noise_max, LIKELIHOOD_STEPS)

        standard = (self._standardise_states(states), self._standardise_actions(actions))
        log_scale = np.log(self.action_scaler_.scale_).sum()
        return self._evaluate(rows, *standard).double().numpy() - log_scale

    def score_function(self, X: ArrayLike, y: ArrayLike, noise_level: ArrayLike) -> NDArray:
        r"""Return the score :math:`\nabla_a \log \pi_\sigma(a|s)` of the noised policy.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d)
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
        X : array-like of shape (n, d), (n, T, d) or (n, T * d)
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

    def _build(self, n_states: int, seed: int) -> ContextDenoiser:
        return seeded_network(
            lambda: ContextDenoiser(
                self._encoder_config(n_states),
                self.n_actions_,
                self.hidden_size,
                self.n_layers,
                self.sigma_data,
            ),
            seed,
        )

    def _learn(self, states: NDArray, actions: NDArray, seed: int) -> None:
        device = resolve_device(self.device)
        network = self._network()
        generator = torch.Generator(device).manual_seed(seed)
        state_rows = self._standardise_states(states).to(device)
        action_rows = self._standardise_actions(actions).to(device)

        def loss(rows: Tensor, progress: float) -> Loss:
            context = network.context(
                add_noise(state_rows.index_select(0, rows), self.state_noise, generator)
            )
            clean = action_rows.index_select(0, rows)[:, None].expand(-1, NOISE_DRAWS, -1)
            noise = torch.randn(clean.shape, generator=generator, device=device)
            uniform = torch.rand(clean.shape[:2], generator=generator, device=device)
            sigma = NOISE_DENSITIES[self.noise_density](
                uniform, self.noise_min, self.noise_max, self.sigma_data
            )
            return Loss(network.residual(context, clean, noise, sigma).square().mean())

        update = Update("denoising", loss, list(network.parameters()), self.learning_rate)
        self._train(
            network,
            [update],
            len(states),
            stage="denoising",
            max_iter=self.max_iter,
            generator=generator,
        )

    def _sample(self, states: NDArray, noise: Tensor, n_steps: int, sampler: str) -> Tensor:
        """Walk from noise (n, S, 1 + steps, d_a) to standardised actions (n, S, d_a)."""
        network = self._network()
        sigmas = SCHEDULES[self.schedule](n_steps, self.noise_min, self.noise_max).tolist()

        def rows(states: Tensor, noise: Tensor) -> Tensor:
            return draw_actions(network, states, noise, sigmas, sampler)

        return self._evaluate(rows, self._standardise_states(states), noise, width=noise.shape[1])

    def _check_sampling(
        self, n_samples: int | None, n_steps: int | None, sampler: str | None
    ) -> tuple[int, str]:
        check_n_samples(n_samples)
        n_steps = self.n_steps if n_steps is None else n_steps
        sampler = self.sampler if sampler is None else sampler
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
