"""Consistency trajectory distillation: jumps between any two points of a path of the ODE.

Notation is that of Kim et al. (2024). Axes: rows ``n``, noise levels of each row ``S``, actions
``d_a``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from skvdd._sklearn import Interval
from skvdd.diffusion.teacher import Teacher
from skvdd.distillation.generator import BaseGeneratorDistiller
from skvdd.distillation.paths import (
    EMA_TARGET,
    Denoise,
    GeneratorNetwork,
    PathBatch,
    draw_jumps,
    heun_step,
    measure,
)
from skvdd.encoders import Encoder
from skvdd.training.fit import Fit
from skvdd.training.loop import Loss
from skvdd.training.minibatches import draw

Guess = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrajectoryLoss:
    """The objective of consistency trajectory distillation and its parts.

    Parameters
    ----------
    total : Tensor of shape ()
        What is minimized.
    consistency : Tensor of shape (n, S)
        Distance between the student's jump and the teacher's walk, both taken on to level zero.
    denoising : Tensor of shape (n, S)
        Squared error of ``g(a_t, t, t)`` as an estimate of the clean action.

    Examples
    --------
    >>> import torch
    >>> from skvdd.distillation.trajectory import TrajectoryLoss
    >>> TrajectoryLoss(torch.tensor(0.5), torch.tensor([[0.4]]), torch.tensor([[1.0]])).total
    tensor(0.5000)
    """

    total: Tensor
    consistency: Tensor
    denoising: Tensor


def jump(guess: Guess, actions: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""Jump from noise level ``t`` to ``s``.

    .. math:: G(a_t, t, s) = \frac{s}{t}\, a_t + \Big(1 - \frac{s}{t}\Big)\, g(a_t, t, s)

    Parameters
    ----------
    guess : callable
        ``g(actions, t, s)``.
    actions : Tensor of shape (n, S, d_a)
        Noisy actions.
    t, s : Tensor of shape (n, S) or (n, 1)
        Levels with ``t >= s``; from level zero there is nowhere to go, and the actions stay.

    Returns
    -------
    Tensor of shape (n, S, d_a)
        Actions at level ``s``.

    Examples
    --------
    A guess that the clean action is zero leaves the fraction ``s / t`` of the noisy one:

    >>> import torch
    >>> from skvdd.distillation.trajectory import jump
    >>> start, t, s = torch.ones(1, 1, 2), torch.tensor([[2.0]]), torch.tensor([[0.5]])
    >>> jump(lambda actions, t, s: torch.zeros_like(actions), start, t, s)
    tensor([[[0.2500, 0.2500]]])
    """
    # The network takes the logarithm of the level: at zero another one stands in, unused.
    level = torch.where(t > 0, t, 1.0)
    fraction = torch.where(t > 0, s / level, 1.0)[..., None]
    return torch.lerp(guess(actions, level, s), actions, fraction)


def trajectory_loss(
    student: Guess,
    target: Guess,
    teacher: Denoise,
    actions: Tensor,
    noise: Tensor,
    path: Tensor,
    s: Tensor,
    *,
    dsm_weight: float = 0.1,
    distance: str = "l2",
) -> TrajectoryLoss:
    r"""Return soft consistency and denoising score matching, without the adversarial term.

    .. math:: E\, d\big( G_{sg}(G_\theta(a_t, t, s), s, 0),\;
              G_{sg}(G_{sg}(\mathrm{Solver}(a_t, t \to u), u, s), s, 0) \big)
              + \lambda \| a - g_\theta(a_t, t, t) \|^2

    Heun's method follows the teacher's probability-flow ODE from :math:`t` to :math:`u \ge s`.
    Both ends of the comparison are taken to level zero by the frozen ``sg``, through which
    gradients pass to the jump inside.

    Parameters
    ----------
    student, target : callable
        ``g(actions, t, s)``, with the parameters that are learned and with their moving average.
    teacher : callable
        ``D(actions, sigma)``.
    actions, noise : Tensor of shape (n, S, d_a)
        Clean actions, and standard normal noise for each.
    path : Tensor of shape (k + 1, n, S)
        Levels of the solver's ``k`` steps, not increasing from ``t`` to ``u``.
    s : Tensor of shape (n, S)
        Levels that the jumps end at, below ``t``.
    dsm_weight : float, default=0.1
        Weight of the denoising term.
    distance : {"l2", "pseudo_huber"}, default="l2"
        The distance ``d``: the square, or robust.

    Returns
    -------
    TrajectoryLoss

    Examples
    --------
    A teacher of actions that are all zero, and a student that has learned it, over one step of the
    solver from level 2 to 1:

    >>> import torch
    >>> from skvdd.distillation.trajectory import trajectory_loss
    >>> zero = lambda actions, t, s=None: torch.zeros_like(actions)
    >>> actions, noise = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    >>> path, s = torch.tensor([[[2.0]], [[1.0]]]), torch.tensor([[0.5]])
    >>> loss = trajectory_loss(zero, zero, zero, actions, noise, path, s)
    >>> loss.total, loss.denoising
    (tensor(0.), tensor([[0.]]))
    """
    t, u, zero = path[0], path[-1], torch.zeros_like(s)
    noisy = actions + t[..., None] * noise
    with torch.no_grad():
        solved = noisy
        for sigma, sigma_next in pairwise(path):
            solved = heun_step(teacher, solved, sigma, sigma_next)
        wanted = jump(target, jump(target, solved, u, s), s, zero)
    estimate = jump(target, jump(student, noisy, t, s), s, zero)
    consistency = measure(estimate, wanted, distance)
    denoising = (actions - student(noisy, t, t)).square().sum(dim=-1)
    total = consistency.mean() + dsm_weight * denoising.mean()
    return TrajectoryLoss(total, consistency, denoising)


def generate(
    network: GeneratorNetwork, rows: Tensor, noise: Tensor, *, levels: list[float], gamma: float
) -> Tensor:
    """Jump from noise to an action, with fresh noise on the way for ``gamma > 0``.

    Parameters are those of `skvdd.distillation.consistency.generate`, and ``gamma``, the fraction
    of noise that is drawn anew between two jumps.
    """
    guess = network.conditioned(rows)
    start, *fresh = noise.unbind(dim=2)
    first, *later = levels
    actions, t = network.start_scale * start, start.new_full((start.shape[0], 1), first)
    for sigma, normal in zip(later, fresh, strict=True):
        below = torch.full_like(t, (1.0 - gamma**2) ** 0.5 * sigma)
        actions = jump(guess, actions, t, below) + gamma * sigma * normal
        t = torch.full_like(t, sigma)
    return jump(guess, actions, t, torch.zeros_like(t))


class ConsistencyTrajectoryDistiller(BaseGeneratorDistiller):
    r"""Distill a teacher into jumps along its paths, from noise to an action in one or a few.

    A consistency trajectory model (CTM) [1]_ learns to jump between any two noise levels of a path
    of the teacher's probability-flow ODE:

    .. math:: G(a_t, t, s) = \frac{s}{t}\, a_t + \Big(1 - \frac{s}{t}\Big)\, g(a_t, t, s),

    where :math:`g` starts as the teacher's denoiser, to which :math:`g(a_t, t, t)` stays equal.
    As in robot policies [2]_, there is no adversarial term. A jump to :math:`s = 0` is what
    `ConsistencyDistiller` learns; the others draw actions in several jumps without new noise.

    It has no density: there is no ``log_prob``, and `score` is minus an energy score.

    Parameters
    ----------
    teacher : DiffusionPolicy, Pipeline, FrozenEstimator, Teacher or None, default=None
        Teacher to use when `fit` is given none. A policy, or a pipeline that ends in one, is
        cloned and fitted on the data of `fit`; wrapped in ``FrozenEstimator`` it is used as it is,
        and so is a `ScoreTeacher`. ``None`` stands for ``DiffusionPolicy()`` of this
        ``window_size`` and ``goal_dim``.
    n_levels : int, default=18
        Noise levels of a path, ``N``, spaced from the teacher's ``noise_min`` to its
        ``noise_max`` as in EDM; zero comes in addition.
    solver_steps : int, default=2
        Levels that the teacher walks down, in steps of Heun's method, before the student jumps
        the rest.
    distance : {"l2", "pseudo_huber"}, default="l2"
        Between two answers: the squared norm, or one that grows like the norm beyond 0.03.
    dsm_weight : float, default=0.1
        Weight of denoising score matching, the squared error of :math:`g(a_t, t, t)`.
    target_decay : float, default=0.95
        Factor of the exponential moving average (EMA) of the weights that gives the target; 0 for
        the student itself.
    n_steps : int, default=1
        Jumps in which an action is drawn.
    gamma : float, default=0.0
        Fraction of noise that is drawn anew between two jumps: 0 is deterministic, 1 jumps to level
        zero and back, as a consistency model does.
    window_size : int, default=1
        States in a row, ``T``; that of the teacher.
    goal_dim : int, default=0
        Columns ``g`` of the goal at the end of a row, as the teacher has them; 0 for none.
    encoder : {"auto", "teacher", "mlp", "transformer"} or Encoder, default="auto"
        Where the student starts: from a copy of the teacher's network, of the teacher's size, or
        from a fresh one with an encoder of that kind, see `skvdd.encoders`. ``"auto"`` is the copy
        where the teacher has a network over the same states, else ``"mlp"``.
    hidden_size, n_layers : int, default=128, 2
        Width and layers of the head of a fresh network, and of an encoder given by name.
    max_iter, batch_size : int, default=3000, 256
        Iterations, and rows in a minibatch, each of them at four noise levels.
    learning_rate, weight_decay : float, default=5e-4, 1e-3
        AdamW's step size (after a warm-up, decaying as a cosine) and decay.
    ema_decay : float, default=0.998
        Factor of the EMA of the weights that predicts; 0 for none.
    state_noise : float, default=0.035
        Standard deviation of Gaussian noise on the standardized states in training.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Source of initial weights, minibatches and training noise.
    warm_start : bool, default=False
        Whether `fit` continues from the weights and normalization of the last one, with the teacher
        that it trained.

    Attributes
    ----------
    teacher_ : DiffusionPolicy or Pipeline
        The teacher, only if it was fitted here.
    network_ : GeneratorNetwork
        The trained network, with its normalization, which is the teacher's where it has one.
    n_steps_, gamma_ : int, float
        Jumps in which an action is drawn, and fraction of new noise between them.
    action_shape_ : tuple of int
        Shape of an action as `fit` was given it: ``(d_a,)``, ``()`` or ``(H, d_a)``.
    horizon_ : int
        Actions in a chunk, ``H``; 1 for single actions.
    n_iter_ : int
        Iterations done.
    history_ : list of dict
        One row for each report: stage, iteration, learning rate, means of the loss ``trajectory``
        and of its terms ``consistency`` and ``denoising``.
    interrupted_ : bool
        Whether a KeyboardInterrupt ended `fit`.
    n_features_in_ : int
        Columns of a flat row, ``T * d``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    References
    ----------
    .. [1] Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon (2024), "Consistency
       trajectory models: learning probability flow ODE trajectory of diffusion", ICLR.
    .. [2] Prasad, Lin, Wu, Zhou, Bohg (2024), "Consistency policy: accelerated visuomotor policies
       via consistency distillation", RSS.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import ConsistencyTrajectoryDistiller, DiffusionPolicy
    >>> rng = np.random.RandomState(0)
    >>> states = rng.uniform(-1, 1, size=(200, 1))
    >>> actions = np.sign(rng.standard_normal((200, 1))) * (1 + states)  # left or right
    >>> teacher = DiffusionPolicy(max_iter=100, hidden_size=32, random_state=0)
    >>> student = ConsistencyTrajectoryDistiller(teacher, max_iter=50, random_state=0)
    >>> student.fit(states, actions).sample(states[:3], n_samples=5, random_state=0).shape
    (3, 5, 1)
    """

    gamma_: float

    _loss_name: ClassVar[str] = "trajectory"
    _learned_beside: ClassVar[tuple[str, ...]] = (*BaseGeneratorDistiller._learned_beside, "gamma_")
    _generate = staticmethod(generate)
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseGeneratorDistiller._parameter_constraints,
        **EMA_TARGET,
        "solver_steps": [Interval(Integral, 1, None, closed="left")],
        "dsm_weight": [Interval(Real, 0, None, closed="left")],
        "gamma": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        teacher: BaseEstimator | Teacher | None = None,
        *,
        n_levels: int = 18,
        solver_steps: int = 2,
        distance: str = "l2",
        dsm_weight: float = 0.1,
        target_decay: float = 0.95,
        n_steps: int = 1,
        gamma: float = 0.0,
        window_size: int = 1,
        goal_dim: int = 0,
        encoder: str | Encoder = "auto",
        hidden_size: int = 128,
        n_layers: int = 2,
        max_iter: int = 3000,
        batch_size: int = 256,
        learning_rate: float = 5e-4,
        weight_decay: float = 1e-3,
        ema_decay: float = 0.998,
        state_noise: float = 0.035,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
    ) -> None:
        self.teacher = teacher
        self.n_levels = n_levels
        self.solver_steps = solver_steps
        self.distance = distance
        self.dsm_weight = dsm_weight
        self.target_decay = target_decay
        self.n_steps = n_steps
        self.gamma = gamma
        self.window_size = window_size
        self.goal_dim = goal_dim
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.n_layers = n_layers
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

    def _loss(self, batch: PathBatch) -> Loss:
        shape = (2, *batch.actions.shape[:2])
        uniform = draw(torch.rand, shape, batch.generator, dim=1)
        path, s = draw_jumps(uniform, batch.levels, self.solver_steps)
        loss = trajectory_loss(
            batch.student,
            batch.target,
            batch.teacher,
            batch.actions,
            batch.noise,
            path,
            s,
            dsm_weight=self.dsm_weight,
            distance=self.distance,
        )
        terms = {"consistency": loss.consistency, "denoising": loss.denoising}
        return Loss(loss.total, {name: term.detach().mean() for name, term in terms.items()})

    def _attributes(self, fit: Fit) -> dict[str, Any]:
        return {**super()._attributes(fit), "gamma_": float(self.gamma)}

    def _schedule(self, n_steps: int) -> dict[str, Any]:
        return {**super()._schedule(n_steps), "gamma": self.gamma_}

    def _overrides(self, noise_min: float) -> dict[str, Any]:
        return {"target_min": noise_min}
