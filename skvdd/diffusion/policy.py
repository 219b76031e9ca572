"""Diffusion policies as scikit-learn estimators."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from skvdd._sklearn import Interval, StrOptions
from skvdd.diffusion.base import BaseDiffusionPolicy
from skvdd.diffusion.denoiser import ContextDenoiser, Denoiser
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.diffusion.noise import NOISE_DENSITIES, PROCESSES, SCHEDULES, NoiseLevels
from skvdd.encoders import Encoder, TransformerEncoder, check_heads
from skvdd.nn.normalization import blocks_of
from skvdd.nn.samplers import SAMPLERS
from skvdd.training.fit import Fit, Stage
from skvdd.training.loop import Loss, Update
from skvdd.training.minibatches import draw
from skvdd.training.rows import is_resident

NOISE_DRAWS = 4  # noise levels for each row of a minibatch: the state is encoded once for all


def denoising_loss(
    network: Denoiser,
    context: Tensor,
    actions: Tensor,
    noise: Tensor,
    sigma: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the mean square of the network's residual at noised actions.

    Parameters
    ----------
    network : Denoiser
        In training.
    context : Tensor of shape (n, h)
        Its context of ``n`` rows.
    actions, noise : Tensor of shape (n, S, d_a)
        Clean actions and standard normal numbers.
    sigma : Tensor of shape (n, S)
        Noise levels.
    weight : Tensor of shape (n,), default=None
        Weight of each row; ``None`` is one for all.

    Returns
    -------
    Tensor of shape ()
    """
    square = network.residual(context, actions, noise, sigma).square()
    return (square if weight is None else weight[:, None, None] * square).mean()


class DiffusionPolicy(BaseDiffusionPolicy):
    r"""A diffusion policy: slow, expressive, and the teacher of everything else here.

    A network :math:`D` learns to remove Gaussian noise from actions, given the state window, by
    minimizing

    .. math:: E_{(s, a),\, \sigma,\, \epsilon}\;
              \lambda(\sigma)\, \| D(a + \sigma\epsilon;\, s, \sigma) - a \|^2 ,

    with the preconditioning and weights of Karras et al. [2]_. Then
    :math:`(D - a) / \sigma^2` is the score of the noised policy, actions are sampled from high
    noise to none, and exact likelihoods come from the probability-flow ODE. With these
    choices it is the variance-exploding teacher ("BESO" [1]_) of Variational Diffusion
    Distillation.

    With ``sde="vp"`` it is the variance-preserving one ("DDPM" [3]_): the network predicts the
    noise in :math:`a_t = \alpha_t a + \sqrt{1 - \alpha_t^2}\, \epsilon` and minimizes
    :math:`\| \hat\epsilon - \epsilon \|^2` at times uniform in the process, and actions are drawn
    by the discrete process of ``n_steps``, with every estimate of the clean action clipped to the
    range of the data. Divided by :math:`\alpha_t`, the noised action is
    :math:`a + \sigma \epsilon` with :math:`\sigma = \sqrt{1 - \alpha_t^2} / \alpha_t`: every noise
    level, score and likelihood here speaks of that variable, so that both families are used and
    distilled alike. Times are drawn from the whole interval, not from the steps alone; the levels
    between them are then learned too, and the number of steps can be chosen anew in `sample`.

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
    encoder : {"mlp", "transformer"} or Encoder, default="mlp"
        Network over the row of ``"context"``: a name, then of this policy's ``hidden_size`` and
        ``n_layers``, or an object of `skvdd.encoders`. With ``"gpt"``, a `TransformerEncoder` gives
        the transformer's width, layers and heads; otherwise it has this policy's, and 4 heads.
    hidden_size, n_layers : int, default=128, 2
        Width and layers of the head, and of an encoder given by name.
    noise_min, noise_max : float, default=0.03, 5.0
        Range of noise levels, in standardized actions; a variance-preserving process ends where
        it reaches ``noise_max``.
    noise_density : {"auto", "lognormal", "loglogistic"}, default="auto"
        Density of the noise levels in training: EDM's or BESO's. ``"auto"`` is EDM's for
        ``sde="ve"`` and times uniform in the process for ``sde="vp"``.
    schedule : {"auto", "karras", "exponential", "linear", "cosine", "vp"}, default="auto"
        Noise levels along which actions are drawn. For ``"ve"``: ``"karras"`` (``"auto"``),
        ``"exponential"`` or ``"linear"``. For ``"vp"`` the noise process itself: ``"cosine"``
        (``"auto"``), ``"linear"`` or ``"vp"``, the last two with linearly growing rates.
    sampler : {"auto", "euler", "euler_ancestral", "heun", "dpmpp_2m"}, default="auto"
        How actions are drawn. ``"auto"`` is ``"euler_ancestral"``, the only one that adds noise on
        the way; for ``sde="vp"`` that is DDPM's sampler. ``"euler"`` is DDIM's.
    n_steps : int, default=16
        Steps of the sampler; one step gives ``D(noise_max * eps; s, noise_max)``.
    max_iter, batch_size : int, default=6000, 256
        Iterations, and rows in a minibatch.
    learning_rate, weight_decay : float, default=1e-3, 1e-3
        AdamW's step size (after a warm-up, decaying as a cosine) and decay.
    ema_decay : float, default=0.998
        Factor of the exponential moving average (EMA) of the weights, which predicts; 0 for none.
    state_noise : float, default=0.035
        Standard deviation of Gaussian noise on the standardized states in training. It teaches
        the policy to recover from its own errors.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Source of initial weights, minibatches and training noise.
    warm_start : bool, default=False
        Whether `fit` continues from the weights and normalization of the last one.

    Attributes
    ----------
    network_ : ContextDenoiser or GPTDenoiser
        The trained denoiser, with its normalization.
    noise_levels_ : NoiseLevels
        Noise process and range of the fit.
    sampler_, n_steps_ : str, int
        How actions are drawn.
    action_shape_ : tuple of int
        Shape of an action as `fit` was given it: ``(d_a,)``, ``()`` or ``(H, d_a)``.
    horizon_ : int
        Actions in a chunk, ``H``; 1 for single actions.
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
        **BaseDiffusionPolicy._parameter_constraints,
        "sde": [StrOptions({"ve", "vp"})],
        "architecture": [StrOptions({"context", "gpt"})],
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
        encoder: str | Encoder = "mlp",
        hidden_size: int = 128,
        n_layers: int = 2,
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

    # -- private steps ---------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._parameter_levels().check()
        if self.architecture == "gpt":
            sizes = self._transformer()
            if sizes.n_layers < 1:
                raise ValueError(
                    f"n_layers must be at least 1 for architecture='gpt', got {sizes.n_layers}."
                )
            check_heads(sizes.hidden_size, sizes.n_heads, "architecture='gpt'")

    def _transformer(self) -> TransformerEncoder:
        """Return the sizes of the transformer of ``architecture="gpt"``."""
        if isinstance(self.encoder, TransformerEncoder):
            return self.encoder
        return TransformerEncoder(self.hidden_size, self.n_layers)

    def _parameter_levels(self, sigma_data: float = 1.0) -> NoiseLevels:
        return NoiseLevels(
            self.sde,
            self.noise_min,
            self.noise_max,
            self.noise_density,
            self.schedule,
            sigma_data,
        )

    def _build(self, fit: Fit) -> Denoiser:
        preconditioning = "edm" if self.sde == "ve" else "noise"
        sizes: dict[str, Any] = {
            "layout": fit.data.layout,
            "n_actions": fit.data.n_actions,
            "preconditioning": preconditioning,
        }
        if self.architecture == "gpt":
            return GPTDenoiser(
                **sizes, **self._transformer().get_params(), **self._like_before(fit)
            )
        return ContextDenoiser(
            **sizes,
            encoder=self._make_encoder(),
            hidden_size=self.hidden_size,
            n_layers=self.n_layers,
        )

    def _like_before(self, fit: Fit) -> dict[str, Any]:
        """Return what a network read from a checkpoint has and no parameter describes."""
        names = ("head_size", "joint", "n_goal_tokens", "sigma_data")
        config = {} if fit.is_fresh else self.network_.config
        return {name: config[name] for name in names if name in config}

    def _stages(self, fit: Fit) -> Iterator[Stage]:
        network: Any = fit.network
        widen_action_range(network, fit)
        levels = self._parameter_levels(network.sigma_data)

        def loss(index: Tensor, progress: float | Tensor) -> Loss:
            context = network.context(fit.noised_rows(index))
            clean = fit.actions.index_select(0, index)[:, None].expand(-1, NOISE_DRAWS, -1)
            noise = draw(torch.randn, clean.shape, fit.generator)
            sigma = levels.of_training(draw(torch.rand, clean.shape[:2], fit.generator))
            return Loss(denoising_loss(network, context, clean, noise, sigma))

        update = Update(
            "denoising",
            loss,
            list(network.parameters()),
            replayable=is_resident(fit.rows, fit.actions),
        )
        yield Stage("denoising", [update], self.max_iter)

    def _attributes(self, fit: Fit) -> dict[str, Any]:
        network: Any = fit.network
        return self._sampling_attributes(network.sigma_data)

    def _sampling_attributes(self, sigma_data: float) -> dict[str, Any]:
        return {
            "noise_levels_": self._parameter_levels(sigma_data),
            "sampler_": "euler_ancestral" if self.sampler == "auto" else self.sampler,
            "n_steps_": int(self.n_steps),
        }


def widen_action_range(network: Denoiser, fit: Fit) -> None:
    """Take new actions into the range of the data, which a fit that continues has from before."""
    standardize = network.action_normalization.standardize
    ends = [
        standardize(np.stack([b.min(0), b.max(0)])) for b in blocks_of(np.asarray(fit.data.actions))
    ]
    bounds = network.action_range
    seen = torch.cat(ends).to(bounds.device)
    if torch.isfinite(bounds).all():
        seen = torch.cat([seen, bounds])
    bounds.copy_(torch.stack([seen.amin(0), seen.amax(0)]))
