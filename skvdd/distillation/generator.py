"""What distilled generators share: policies that map noise to an action in one step or a few.

Axes: rows ``n``, noise levels (or samples) of each row ``S``, actions ``d_a``.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from skvdd._sklearn import Interval
from skvdd.base import BasePolicy
from skvdd.base.validation import check_n_samples, check_n_steps
from skvdd.control.deployment import Deployment, SamplerGraph
from skvdd.diffusion.base import PREDICT_DRAWS
from skvdd.diffusion.denoiser import ContextDenoiser
from skvdd.diffusion.noise import karras
from skvdd.diffusion.policy import NOISE_DRAWS
from skvdd.distillation.base import TeacherContexts, TeacherMixin, another_teacher
from skvdd.distillation.paths import RHO, GeneratorNetwork, PathBatch, jump_levels
from skvdd.metrics import energy_score
from skvdd.nn.samplers import densest
from skvdd.randomness import RandomStates, row_noise
from skvdd.training.fit import Fit, Stage
from skvdd.training.loop import Loss, Update
from skvdd.training.minibatches import draw

SCORE_SAMPLES = 64  # actions per row that `score` draws


class BaseGeneratorDistiller(TeacherMixin, BasePolicy):
    """Base class of students that turn noise into actions, without a density.

    A subclass gives the objective (`_loss`), how its denoiser differs from the teacher's
    (`_overrides`), and a function that generates actions: ``_generate(network, rows, noise, *,
    levels)`` maps standardized rows (n, F) and standard normal noise (n, S, steps, d_a) to
    standardized actions (n, S, d_a); each step starts from one of the levels.
    """

    network_: GeneratorNetwork
    n_steps_: int
    max_iter: int
    n_levels: int
    n_steps: int
    target_decay = 0.0  # factor of the EMA that gives the target; 0 for the student itself

    _network_classes = (GeneratorNetwork,)
    _learned_beside: ClassVar[tuple[str, ...]] = ("n_steps_",)
    _generate: ClassVar[Callable[..., Tensor]]
    _loss_name: ClassVar[str]  # column of the objective in the history
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePolicy._parameter_constraints,
        **TeacherMixin._teacher_constraints,
        "n_levels": [Interval(Integral, 2, None, closed="left")],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
    }

    def sample(
        self,
        X: ArrayLike,
        n_samples: int | None = None,
        *,
        random_state: RandomStates = None,
        n_steps: int | None = None,
    ) -> NDArray:
        """Draw actions from the policy.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        n_samples : int or None, default=None
            Actions for each row; ``None`` draws one and leaves the axis out.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise, drawn row by row, all steps at once: an action depends neither on
            its neighbors in the batch nor on the device.
        n_steps : int or None, default=None
            In place of the parameter of the same name.

        Returns
        -------
        ndarray of shape (n, d_a) or (n, n_samples, d_a)
            Actions in raw units, each in the shape that `fit` was given.
        """
        rows = self._check_rows(X)
        check_n_samples(n_samples)
        n_steps = self.n_steps_ if n_steps is None else check_n_steps(n_steps)
        shape = (n_samples or 1, n_steps, self.network_.n_actions)
        noise = torch.from_numpy(row_noise(random_state, len(rows), shape)).float()
        actions = self._sample(rows, noise)
        return self._raw_actions(actions[:, 0] if n_samples is None else actions)

    def predict(self, X: ArrayLike) -> NDArray:
        """Return one action for each row, without randomness: a typical sample.

        Eight actions are drawn from the same fixed noise for every row, and the one that is closest
        to its two nearest neighbors is returned.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.

        Returns
        -------
        ndarray of shape (n, d_a), or as `fit` was given actions
            Actions in raw units.
        """
        rows = self._check_rows(X)
        shape = (PREDICT_DRAWS, self.n_steps_, self.network_.n_actions)
        noise = torch.from_numpy(row_noise(0, 1, shape)).float()
        return self._raw_actions(densest(self._sample(rows, noise.expand(len(rows), *shape))))

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return minus the mean energy score of demonstrated actions; higher is better.

        This policy has no density: the number cannot be compared with the ``score`` of those that
        have one, which is a log-likelihood. See `skvdd.metrics.energy_score`; 64 actions are drawn
        in each row, from the same noise at every call.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            Actions taken in them.

        Returns
        -------
        float
            In standardized actions, so that no unit outweighs the others.
        """
        rows, actions = self._check_query(X, y)
        shape = (SCORE_SAMPLES, self.n_steps_, self.network_.n_actions)
        noise = torch.from_numpy(row_noise(0, len(rows), shape)).float()
        samples = self._sample(rows, noise).double().numpy()
        observed = self._standard_actions(actions).double().numpy()
        return -float(np.mean(energy_score(samples, observed)))

    # -- what a subclass gives -------------------------------------------------------------------

    @abstractmethod
    def _loss(self, batch: PathBatch) -> Loss:
        """Return the loss on a minibatch."""

    @abstractmethod
    def _overrides(self, noise_min: float) -> dict[str, Any]:
        """Return the arguments of the denoiser that differ from a teacher's."""

    # -- private steps ---------------------------------------------------------------------------

    def _check_same_teacher(self, fit: Fit, partial: bool) -> None:
        super()._check_same_teacher(fit, partial)
        its = levels_of(fit.teacher)
        if its != {name: self.network_.config[name] for name in its}:
            raise ValueError(another_teacher("other noise levels", partial))

    def _complete(self, fit: Fit) -> Any:
        if self.encoder == "teacher" and fit.teacher.network is None:
            raise ValueError(
                "encoder='teacher' needs a teacher with a network over the same states: not a "
                "ScoreTeacher, and not behind a Pipeline. Use encoder='mlp'."
            )
        return super()._complete(fit)

    def _build(self, fit: Fit) -> GeneratorNetwork:
        """Return a copy of the teacher's network, or a fresh one where it is not to be copied."""
        teacher = fit.teacher
        copied = teacher.network if self.encoder in ("auto", "teacher") else None
        if copied is None:
            config = ContextDenoiser(
                fit.data.layout,
                fit.data.n_actions,
                self._make_encoder(),
                self.hidden_size,
                self.n_layers,
            ).config
        else:
            config = copied.config
        config = config | self._overrides(teacher.noise_min)
        if config.get("joint"):
            config["joint"] = False  # a student gives single actions, in training too
        return GeneratorNetwork(config, **levels_of(teacher))

    def _initialize(self, fit: Fit) -> None:
        network: Any = fit.network
        copied = fit.teacher.network
        if copied is not None and self.encoder in ("auto", "teacher"):
            own = network.denoiser.state_dict()
            network.denoiser.load_state_dict({**own, **copied.state_dict()})
        super()._initialize(fit)

    def _stages(self, fit: Fit) -> Iterator[Stage]:
        step = GeneratorStep(fit, self._loss, self.n_levels, self.target_decay)
        update = Update(
            self._loss_name,
            step,
            list(fit.network.parameters()),
            memory=dict(step.target.named_parameters()),
            replayable=step.contexts.is_resident,
        )
        yield Stage("distillation", [update], self.max_iter)

    def _attributes(self, fit: Fit) -> dict[str, Any]:
        return {**super()._attributes(fit), "n_steps_": int(self.n_steps)}

    def _sample(self, rows: NDArray, noise: Tensor) -> Tensor:
        """Turn noise (n, S, steps, d_a) into standardized actions (n, S, d_a)."""
        schedule = self._schedule(noise.shape[2])
        generate = partial(type(self)._generate, self._network(), **schedule)
        return self._evaluate(generate, self._standard_rows(rows), noise)

    def _schedule(self, n_steps: int) -> dict[str, Any]:
        """Return the arguments of `_generate` that do not change from row to row."""
        return {"levels": jump_levels(self.network_, n_steps)}

    def _deployment(self) -> Deployment:
        return Deployment.of(
            self,
            SamplerGraph,
            noise_shape=(self.n_steps_, self.network_.n_actions),
            draw=type(self)._generate,
            **self._schedule(self.n_steps_),
        )


class GeneratorStep:
    """The loss of an iteration.

    Parameters
    ----------
    fit : Fit
        With a `GeneratorNetwork`, rows, actions and a teacher.
    objective : callable
        `BaseGeneratorDistiller._loss`.
    n_levels : int
        Noise levels of a path.
    target_decay : float
        Factor of the EMA of the student's weights that gives the target.

    Attributes
    ----------
    target : GeneratorNetwork
        EMA of the student, frozen.
    levels : Tensor of shape (n_levels + 1,)
        Noise levels, ascending from zero.
    """

    def __init__(
        self, fit: Fit, objective: Callable[[PathBatch], Loss], n_levels: int, target_decay: float
    ) -> None:
        self.fit, self.objective, self.target_decay = fit, objective, target_decay
        self.network: Any = fit.network
        self.target: Any = copy.deepcopy(self.network).requires_grad_(False)
        self.contexts = TeacherContexts(fit)
        levels = karras(n_levels, fit.teacher.noise_min, fit.teacher.noise_max, RHO).flip(0)
        self.levels = levels.float().to(fit.device)

    def __call__(self, index: Tensor, progress: float | Tensor) -> Loss:
        """Return the loss on some rows, each at several noise levels."""
        self._update_target()
        rows = self.fit.noised_rows(index)
        with torch.no_grad():
            target = self.target.conditioned(rows)
            context = self.contexts.of(index, rows)
        clean = self.fit.actions.index_select(0, index)[:, None].expand(-1, NOISE_DRAWS, -1)
        noise = draw(torch.randn, clean.shape, self.fit.generator)
        batch = PathBatch(
            self.network.conditioned(rows),
            target,
            partial(self.fit.teacher.denoise, context),
            clean,
            noise,
            self.levels,
            self.fit.generator,
        )
        return self.objective(batch)

    @torch.no_grad()
    def _update_target(self) -> None:
        """Move the target toward what the last iteration made of the student."""
        target, own = ([*network.parameters()] for network in (self.target, self.network))
        torch._foreach_lerp_(target, own, 1.0 - self.target_decay)


def levels_of(teacher: Any) -> dict[str, float]:
    """Return the noise levels between which a teacher's samples are drawn."""
    return {
        "noise_min": float(teacher.noise_min),
        "noise_max": float(teacher.noise_max),
        "start_scale": float(getattr(teacher, "start_scale", teacher.noise_max)),
    }
