"""Consistency distillation: every point of a path of the probability-flow ODE to its end.

Equation numbers are those of Song et al. (2023). Axes: rows ``n``, noise levels of each row ``S``,
actions ``d_a``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from skvdd.diffusion.teacher import Teacher
from skvdd.distillation.generator import BaseGeneratorDistiller
from skvdd.distillation.paths import (
    EMA_TARGET,
    Denoise,
    GeneratorNetwork,
    PathBatch,
    heun_step,
    measure,
)
from skvdd.encoders import Encoder
from skvdd.training.loop import Loss
from skvdd.training.minibatches import draw


@dataclass(frozen=True)
class ConsistencyLoss:
    """The objective of consistency distillation.

    Parameters
    ----------
    total : Tensor of shape ()
        What is minimized, the mean distance.
    distance : Tensor of shape (n, S)
        Between the student's answers at two neighboring points of a path.

    Examples
    --------
    >>> import torch
    >>> from skvdd.distillation.consistency import ConsistencyLoss
    >>> distance = torch.tensor([[0.0, 0.5]])
    >>> ConsistencyLoss(distance.mean(), distance).total
    tensor(0.2500)
    """

    total: Tensor
    distance: Tensor


def consistency_loss(
    student: Denoise,
    target: Denoise,
    teacher: Denoise,
    actions: Tensor,
    noise: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    distance: str = "l2",
) -> ConsistencyLoss:
    r"""Return the objective of consistency distillation (eq. 7).

    .. math:: E\, d\big( f_\theta(a_{\sigma_{n+1}}, \sigma_{n+1}),\;
              f_{\theta^-}(\hat a_{\sigma_n}, \sigma_n) \big)

    where one step of Heun's method along the teacher's probability-flow ODE leads from
    :math:`a_{\sigma_{n+1}}` to :math:`\hat a_{\sigma_n}` (eq. 6).

    Parameters
    ----------
    student, target : callable
        ``f(actions, sigma)``, with the parameters that are learned and with their moving average.
    teacher : callable
        ``D(actions, sigma)``.
    actions, noise : Tensor of shape (n, S, d_a)
        Clean actions, and standard normal noise for each.
    sigma, sigma_next : Tensor of shape (n, S)
        Noise levels :math:`\sigma_{n+1}` and :math:`\sigma_n`.
    distance : {"l2", "pseudo_huber"}, default="l2"
        The distance ``d``: the square, or robust.

    Returns
    -------
    ConsistencyLoss

    Examples
    --------
    A teacher of actions that are all zero, and a student that has learned it:

    >>> import torch
    >>> from skvdd.distillation.consistency import consistency_loss
    >>> zero = lambda actions, sigma: torch.zeros_like(actions)
    >>> actions, noise = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    >>> sigma, sigma_next = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    >>> consistency_loss(zero, zero, zero, actions, noise, sigma, sigma_next).total
    tensor(0.)

    One that takes the noisy action for the clean one has a loss in both dimensions:

    >>> same = lambda actions, sigma: actions
    >>> consistency_loss(same, zero, zero, actions, noise, sigma, sigma_next).total
    tensor(8.)
    """
    noisy = actions + sigma[..., None] * noise
    with torch.no_grad():
        wanted = target(heun_step(teacher, noisy, sigma, sigma_next), sigma_next)  # eq. 6
    distances = measure(student(noisy, sigma), wanted, distance)
    return ConsistencyLoss(distances.mean(), distances)


def generate(
    network: GeneratorNetwork, rows: Tensor, noise: Tensor, *, levels: list[float]
) -> Tensor:
    """Sample in one step, or in several with fresh noise before each (algorithm 1).

    Parameters
    ----------
    network : GeneratorNetwork
        The student.
    rows : Tensor of shape (n, T * d + g)
        Standardized rows.
    noise : Tensor of shape (n, S, steps, d_a)
        Standard normal.
    levels : list of float
        Noise level that each step starts from.

    Returns
    -------
    Tensor of shape (n, S, d_a)
        Standardized actions.
    """
    consistency = network.conditioned(rows)
    start, *fresh = noise.unbind(dim=2)
    first, *later = levels
    n = start.shape[0]
    actions = consistency(network.start_scale * start, start.new_full((n, 1), first))
    for sigma, normal in zip(later, fresh, strict=True):
        noisy = actions + (sigma**2 - network.noise_min**2) ** 0.5 * normal
        actions = consistency(noisy, start.new_full((n, 1), sigma))
    return actions


class ConsistencyDistiller(BaseGeneratorDistiller):
    r"""Distill a teacher into a consistency model, which turns noise into an action in one step.

    Consistency distillation (CD) [1]_ learns the function that maps any point of a path of the
    teacher's probability-flow ODE to where the path ends, at ``noise_min``:

    .. math:: f(a, \sigma) = c_{skip}\, a + c_{out}\, F(c_{in}\, a, s, \sigma), \quad
              c_{skip} = \frac{\sigma_d^2}{(\sigma - \epsilon)^2 + \sigma_d^2}, \quad
              c_{out} = \frac{\sigma_d (\sigma - \epsilon)}{\sqrt{\sigma^2 + \sigma_d^2}},

    so that :math:`f(a, \epsilon) = a` at :math:`\epsilon` = ``noise_min``. Of a teacher that
    predicts the noise (``sde="vp"``), it is :math:`f = a - (\sigma - \epsilon) F` instead. It is
    trained to give the same answer at neighboring points of a path.

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
        ``noise_max`` as in EDM.
    distance : {"l2", "pseudo_huber"}, default="l2"
        Between two answers: the squared norm, or one that grows like the norm beyond 0.03.
    target_decay : float, default=0.95
        Factor of the exponential moving average (EMA) of the weights that gives the target; 0 for
        the student itself.
    n_steps : int, default=1
        Steps in which an action is drawn. Between two of them noise is added again.
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
    n_steps_ : int
        Steps in which an action is drawn.
    action_shape_ : tuple of int
        Shape of an action as `fit` was given it: ``(d_a,)``, ``()`` or ``(H, d_a)``.
    horizon_ : int
        Actions in a chunk, ``H``; 1 for single actions.
    n_iter_ : int
        Iterations done.
    history_ : list of dict
        One row for each report: stage, iteration, learning rate, mean loss ``consistency``.
    interrupted_ : bool
        Whether a KeyboardInterrupt ended `fit`.
    n_features_in_ : int
        Columns of a flat row, ``T * d``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    See Also
    --------
    ConsistencyTrajectoryDistiller : Learns jumps between any two levels.
    VDDDistiller : Distills into a mixture, which has a density.

    References
    ----------
    .. [1] Song, Dhariwal, Chen, Sutskever (2023), "Consistency models", ICML.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import ConsistencyDistiller, DiffusionPolicy
    >>> rng = np.random.RandomState(0)
    >>> states = rng.uniform(-1, 1, size=(200, 1))
    >>> actions = np.sign(rng.standard_normal((200, 1))) * (1 + states)  # left or right
    >>> teacher = DiffusionPolicy(max_iter=100, hidden_size=32, random_state=0)
    >>> student = ConsistencyDistiller(teacher, max_iter=50, random_state=0)
    >>> student.fit(states, actions).sample(states[:3], n_samples=5, random_state=0).shape
    (3, 5, 1)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseGeneratorDistiller._parameter_constraints,
        **EMA_TARGET,
    }
    _loss_name: ClassVar[str] = "consistency"
    _generate = staticmethod(generate)

    def __init__(
        self,
        teacher: BaseEstimator | Teacher | None = None,
        *,
        n_levels: int = 18,
        distance: str = "l2",
        target_decay: float = 0.95,
        n_steps: int = 1,
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
        self.distance = distance
        self.target_decay = target_decay
        self.n_steps = n_steps
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
        positive = batch.levels[1:]  # a path ends at noise_min
        index = partial(torch.randint, len(positive) - 1)
        n = draw(index, batch.actions.shape[:2], batch.generator)
        loss = consistency_loss(
            batch.student,
            batch.target,
            batch.teacher,
            batch.actions,
            batch.noise,
            positive[n + 1],
            positive[n],
            distance=self.distance,
        )
        return Loss(loss.total)

    def _overrides(self, noise_min: float) -> dict[str, Any]:
        return {"boundary": noise_min}
