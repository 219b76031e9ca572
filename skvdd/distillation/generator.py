"""What distilled generators share: policies that map noise to an action in one step or a few.

Axes: rows ``n``, noise levels (or samples) of each row ``S``, actions ``d_a``. Denoisers and
students are functions of noisy actions (n, S, d_a) and noise levels (n, S).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from skvdd._sklearn import Interval, StrOptions, fit_context, with_callbacks
from skvdd.base import (
    BasePolicy,
    RandomStates,
    check_n_samples,
    continuation,
    draw_seed,
    resolve_device,
    row_noise,
    seeded_network,
)
from skvdd.control.controller import Layout
from skvdd.control.graphs import SamplerGraph
from skvdd.diffusion.denoiser import ContextDenoiser
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.diffusion.noise import karras
from skvdd.diffusion.policy import NOISE_DRAWS
from skvdd.diffusion.teacher import StandardisedScore
from skvdd.distillation.base import TeacherMixin, TeacherView, needs_no_host
from skvdd.metrics import energy_score
from skvdd.streaming import Contexts, Rows
from skvdd.training import Loss, Update, add_noise, batch_generator, draw

RHO = 7.0  # spacing of the noise levels, that of EDM
HUBER = 0.03  # where the pseudo-Huber distance turns from a square to a norm, standardised actions
SCORE_SAMPLES = 64  # actions per row that `score` draws

Denoise = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[..., Loss]


class GeneratorNetwork(nn.Module):
    """A denoiser turned generator, with the noise levels between which it works.

    Parameters
    ----------
    denoiser : dict
        Arguments of a `ContextDenoiser`, or of a `GPTDenoiser` where there is no encoder.
    noise_min, noise_max : float
        The teacher's noise levels.
    start_scale : float
        Standard deviation of the noise that samples start from, at ``noise_max``.
    """

    def __init__(
        self, denoiser: dict[str, Any], noise_min: float, noise_max: float, start_scale: float
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "denoiser": denoiser,
            "noise_min": noise_min,
            "noise_max": noise_max,
            "start_scale": start_scale,
        }
        self.noise_min, self.noise_max, self.start_scale = noise_min, noise_max, start_scale
        kind = ContextDenoiser if "encoder" in denoiser else GPTDenoiser
        self.denoiser = kind(**denoiser)

    def conditioned(self, states: Tensor) -> Callable[..., Tensor]:
        """Encode states (n, T * d + g) and return the denoiser's `denoise` in them."""
        return partial(self.denoiser.denoise, self.denoiser.context(states))


class BaseGeneratorDistiller(TeacherMixin, BasePolicy):
    """Base class of students that turn noise into actions, with no density.

    A subclass gives the objective, how its denoiser differs from the teacher's, and how it is
    sampled.
    """

    network_: GeneratorNetwork
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePolicy._parameter_constraints,
        **TeacherMixin._teacher_constraints,
        "n_levels": [Interval(Integral, 2, None, closed="left")],
        "distance": [StrOptions({"l2", "pseudo_huber"})],
        "target_decay": [Interval(Real, 0, 1, closed="left")],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
    }

    n_levels: int
    distance: str
    target_decay: float
    n_steps: int

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, teacher: Any = None) -> Self:
        """Distil a teacher in the states of ``X``.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first.
        y : array-like of shape (n, d_a) or (n,), or None, default=None
            Demonstrated actions, to which noise is added. Without them one action is drawn from
            the teacher for each row, which must then be given.
        teacher : DiffusionPolicy, Pipeline, FrozenEstimator or ScoreTeacher, default=None
            A fitted teacher, used in place of the constructor's. Of a pipeline, the earlier steps
            are applied to the states.

        Returns
        -------
        self
            The fitted student.

        Raises
        ------
        ValueError
            If an argument, the data or the teacher break a rule; before any training.
        NotFittedError
            If the teacher given here is not fitted.
        FloatingPointError
            If a loss ceases to be finite.
        """
        return self._fit(X, y, teacher, partial=False)

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None, *, teacher: Any = None) -> Self:
        """Distil in more states: the first call is a `fit`, later ones go on from its weights.

        Each call takes ``max_iter`` iterations, with a learning rate that rises and falls anew, on
        the rows of this call alone: give old and new rows together if the old ones are not to be
        forgotten. ``history_`` and ``n_iter_`` count on; with an integer ``random_state`` each
        call has random numbers of its own.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first, with the columns of the first call.
        y : array-like of shape (n, d_a) or (n,), or None, default=None
            Demonstrated actions, as in `fit`.
        teacher : DiffusionPolicy, Pipeline, FrozenEstimator or ScoreTeacher, default=None
            A fitted teacher with the units and noise levels of the first call's. ``None`` is the
            ``teacher_`` that the first call fitted, as it is, or what the constructor was given
            to be used as it is. Where the teacher is to learn as well, call its ``partial_fit``,
            which keeps its units, and give it here.

        Returns
        -------
        self
            The fitted student.

        Raises
        ------
        ValueError
            If an argument, the data or the teacher break a rule; before any training.
        NotFittedError
            If the teacher given here is not fitted.
        FloatingPointError
            If a loss ceases to be finite.
        """
        with self._counting_on():
            return self._fit(X, y, teacher, partial=True)

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
            State windows.
        n_samples : int or None, default=None
            Actions for each window; ``None`` draws one and leaves the axis out.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise, drawn row by row, all steps at once: an action depends neither on
            its neighbours in the batch nor on the device.
        n_steps : int or None, default=None
            In place of the parameter of the same name.

        Returns
        -------
        ndarray of shape (n, d_a) or (n, n_samples, d_a)
            Actions in raw units; without the last axis if `fit` was given actions of shape (n,).
        """
        states = self._check_states(X)
        check_n_samples(n_samples)
        n_steps = self.n_steps if n_steps is None else n_steps
        if not isinstance(n_steps, Integral) or n_steps < 1:
            raise ValueError(f"n_steps must be an integer of at least 1, got {n_steps!r}.")
        shape = (n_samples or 1, int(n_steps), self.n_actions_)
        noise = torch.from_numpy(row_noise(random_state, len(states), shape)).float()
        actions = self._sample(states, noise)
        return self._raw_actions(actions[:, 0] if n_samples is None else actions)

    def predict(self, X: ArrayLike) -> NDArray:
        """Return one action for each window, without randomness: from the centre of the noise.

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
        centre = torch.zeros(len(states), 1, self.n_steps, self.n_actions_)
        return self._raw_actions(self._sample(states, centre)[:, 0])

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return minus the mean energy score of demonstrated actions; higher is better.

        This policy has no density: the number is not comparable with the ``score`` of those that
        have one, which is a log-likelihood. See `skvdd.metrics.energy_score`; 64 actions are drawn
        in each row, from the same noise at every call.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Actions taken in them.

        Returns
        -------
        float
            In raw action units.
        """
        _, actions = self._check_query(X, y)
        samples = self.sample(X, SCORE_SAMPLES, random_state=0)
        samples = samples.reshape(len(actions), SCORE_SAMPLES, self.n_actions_)
        return -float(np.mean(energy_score(samples, actions)))

    # -- what a subclass gives -------------------------------------------------------------------

    _loss_name: ClassVar[str]  # column of what is minimised in the history

    @abstractmethod
    def _loss(
        self,
        student: Callable[..., Tensor],
        target: Callable[..., Tensor],
        teacher: Denoise,
        actions: Tensor,
        noise: Tensor,
        levels: Tensor,
        generator: torch.Generator,
    ) -> Loss:
        """Return the loss at clean actions and noise (n, S, d_a), on levels ascending from zero."""

    @abstractmethod
    def _generate(
        self, network: GeneratorNetwork, levels: list[float], states: Tensor, noise: Tensor
    ) -> Tensor:
        """Turn standard normal noise (n, S, steps, d_a) into standardised actions (n, S, d_a).

        Each step starts from one of the levels.
        """

    @abstractmethod
    def _changes(self, noise_min: float) -> dict[str, Any]:
        """Return what the configuration of the denoiser has beside that of a teacher's."""

    # -- private steps ---------------------------------------------------------------------------

    def _fit(self, X: ArrayLike, y: ArrayLike | None, teacher: Any, *, partial: bool) -> Self:
        states, actions, teacher = self._check_fit(X, y, teacher, partial)
        digest = self._teacher_digest(teacher)
        rng = self._begin_fit(2, states, actions, partial=partial, teacher=digest)
        view = self._view_teacher(self._find_teacher(teacher, X, y, rng), X, states)
        self._check_actions(view, actions)
        self._check_encoder(view)
        if self._goes_on(partial):
            self._check_same_teacher(view, partial)
        else:
            self.state_scaler_, self.action_scaler_ = view.state_scaler, view.action_scaler
            self.network_ = self._build(view, draw_seed(rng))
        action_rows = self._action_rows(view, actions, draw_seed(rng))
        self._distil(view, self._state_rows(view, states), action_rows, draw_seed(rng))
        return self._end_fit()

    def _make_network(self, config: dict[str, Any]) -> GeneratorNetwork:
        return GeneratorNetwork(**config)

    def _check_encoder(self, view: TeacherView) -> None:
        if self.encoder == "teacher" and not has_network(view):
            raise ValueError(
                "encoder='teacher' needs a teacher with a network over the same states: not a "
                "ScoreTeacher, and not behind a Pipeline. Use encoder='mlp'."
            )

    def _check_same_teacher(self, view: TeacherView, partial: bool) -> None:
        """Raise a ValueError if going on would mix the units or noise of two teachers."""
        config = self.network_.config
        noise = {name: getattr(view, name) for name in ("noise_min", "noise_max", "start_scale")}
        if not self._has_units_of(view) or noise != {name: config[name] for name in noise}:
            goes_on, way_out = continuation(partial)
            raise ValueError(
                f"{goes_on} with the teacher of the last fit, but this teacher has other units or "
                f"noise levels. {way_out}"
            )

    def _build(self, view: TeacherView, seed: int) -> GeneratorNetwork:
        """Return a copy of the teacher's network, or a fresh one where it is not to be copied."""
        copied = self.encoder in {"auto", "teacher"} and has_network(view)
        config = view.model.config if copied else self._fresh_denoiser()
        config = config | self._changes(view.noise_min)
        if config.get("joint"):
            config["joint"] = False  # a student is asked for single actions, in training too
        network = seeded_network(
            lambda: GeneratorNetwork(config, view.noise_min, view.noise_max, view.start_scale),
            seed,
        )
        if copied:
            own = network.denoiser.state_dict()
            network.denoiser.load_state_dict({**own, **view.model.state_dict()})
        return network

    def _fresh_denoiser(self) -> dict[str, Any]:
        return {
            "encoder": self._encoder_config(),
            "n_actions": self.n_actions_,
            "hidden_size": self.hidden_size,
            "n_layers": self.n_layers,
            "sigma_data": 1.0,
        }

    def _distil(self, view: TeacherView, states: Rows, actions: Rows, seed: int) -> None:
        device = resolve_device(self.device)
        network = self._network()
        generator = batch_generator(device, seed)
        levels = karras(self.n_levels, view.noise_min, view.noise_max, RHO).flip(0)
        step = GeneratorStep(
            network=network,
            target=copy.deepcopy(network).requires_grad_(False),
            target_decay=self.target_decay,
            teacher=view.model,
            objective=self._loss,
            states=states,
            actions=actions,
            contexts=self._contexts(view),
            levels=levels.float().to(device),
            state_noise=self.state_noise,
            generator=generator,
        )
        update = Update(
            self._loss_name,
            step,
            list(network.parameters()),
            self.learning_rate,
            memory=dict(step.target.named_parameters()),
            replayable=needs_no_host(step),
        )
        self._train(
            network,
            [update],
            len(states),
            stage="distillation",
            max_iter=self.max_iter,
            generator=generator,
        )

    def _sample(self, states: NDArray, noise: Tensor) -> Tensor:
        """Turn noise (n, S, steps, d_a) into standardised actions (n, S, d_a)."""
        generate = self._generating(self._network(), noise.shape[2])
        return self._evaluate(
            generate, self._standardise_states(states), noise, width=len(noise[0])
        )

    def _generating(self, network: GeneratorNetwork, n_steps: int) -> Callable[..., Tensor]:
        """Return what maps states and noise to actions, all standardised."""
        return partial(self._generate, network, jump_levels(network, n_steps))

    def _deployed(self) -> tuple[SamplerGraph, Layout]:
        network, rows, actions = self._deployed_parts()
        draw = self._generating(network, self.n_steps)
        layout = self._layout((self.n_steps, self.n_actions_))
        return SamplerGraph(network, rows, actions, draw), layout


@dataclass(frozen=True)
class GeneratorStep:
    """The loss of an iteration.

    Parameters
    ----------
    network : GeneratorNetwork
        The student.
    target : GeneratorNetwork
        Moving average of the student, frozen.
    target_decay : float
        Factor of that average.
    teacher : object
        Answers ``context(states)`` and ``denoise(context, actions, sigma)``.
    objective : callable
        `BaseGeneratorDistiller._loss`.
    states : Tensor of shape (n, T * d + g) or StreamedRows
        Standardised rows: state windows and goals.
    actions : Tensor of shape (n, d_a) or StreamedRows
        A clean action in each state; standardised.
    contexts : Tensor of shape (n, h), StreamedContexts or None
        The teacher's contexts, where those of a row are always the same.
    levels : Tensor of shape (n_levels + 1,)
        Noise levels, ascending from zero.
    state_noise : float
        Standard deviation of the noise on the states.
    generator : torch.Generator
        Source of all noise.
    """

    network: GeneratorNetwork
    target: GeneratorNetwork
    target_decay: float
    teacher: Any
    objective: Objective
    states: Rows
    actions: Rows
    contexts: Contexts | None
    levels: Tensor
    state_noise: float
    generator: torch.Generator

    def __call__(self, rows: Tensor, progress: float | Tensor) -> Loss:
        """Return the loss on some rows, each at several noise levels."""
        self._follow()
        states = add_noise(self.states.index_select(0, rows), self.state_noise, self.generator)
        with torch.no_grad():
            target = self.target.conditioned(states)
            if self.contexts is None:
                context = self.teacher.context(states)
            else:
                context = self.contexts.index_select(0, rows)
        actions = self.actions.index_select(0, rows)[:, None].expand(-1, NOISE_DRAWS, -1)
        noise = draw(torch.randn, actions.shape, self.generator)
        return self.objective(
            self.network.conditioned(states),
            target,
            level_by_level(self.teacher, context),
            actions,
            noise,
            self.levels,
            self.generator,
        )

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the target towards what the last iteration made of the student."""
        target, own = ([*network.parameters()] for network in (self.target, self.network))
        torch._foreach_lerp_(target, own, 1.0 - self.target_decay)  # type: ignore[arg-type]


def has_network(view: TeacherView) -> bool:
    """Say whether a student can start from a copy of the teacher's network."""
    return view.own_states and not isinstance(view.model, StandardisedScore)


def level_by_level(teacher: Any, context: Tensor) -> Denoise:
    """Return a teacher's ``denoise(actions, sigma)`` with a noise level for each action (n, S)."""
    if not isinstance(teacher, StandardisedScore):
        return partial(teacher.denoise, context)

    def denoise(actions: Tensor, sigma: Tensor) -> Tensor:
        # A score function has been promised a single level for all the actions of a state.
        rows = context.repeat_interleave(actions.shape[1], dim=0)
        clean = teacher.denoise(rows, actions.flatten(0, 1)[:, None], sigma.reshape(-1, 1))
        return clean.view(actions.shape)

    return denoise


# ---------------------------------------------------------------------------------------
# Parts of the objectives
# ---------------------------------------------------------------------------------------


def heun_step(denoise: Denoise, actions: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    r"""Follow the probability-flow ODE :math:`da/d\sigma = (a - D) / \sigma` for one step.

    Heun's method from each action's level to the next; a step to zero is Euler's, and one from
    zero stays there.

    Parameters
    ----------
    denoise : callable
        ``D(actions, sigma)``.
    actions : Tensor of shape (n, S, d_a)
        Noisy actions.
    sigma, sigma_next : Tensor of shape (n, S)
        Where each begins and ends.

    Returns
    -------
    Tensor of shape (n, S, d_a)
    """
    step = (sigma_next - sigma)[..., None]
    # No slope is asked at level zero, where it is 0 / 0: any other will do in its place.
    sigma = torch.where(sigma > 0, sigma, 1.0)
    inside = torch.where(sigma_next > 0, sigma_next, 1.0)
    slope = (actions - denoise(actions, sigma)) / sigma[..., None]
    euler = actions + step * slope
    slope_next = (euler - denoise(euler, inside)) / inside[..., None]
    heun = actions + 0.5 * step * (slope + slope_next)
    return torch.where((sigma_next > 0)[..., None], heun, euler)


def measure(estimate: Tensor, target: Tensor, distance: str) -> Tensor:
    """Return the distance ``d(estimate, target)`` of actions (n, S, d_a), shape (n, S).

    ``"l2"`` is the squared norm of the difference, ``"pseudo_huber"`` is
    ``sqrt(|difference|^2 + c^2) - c`` with ``c = 0.03`` (Song and Dhariwal, 2024, for images).
    """
    squared = (estimate - target).square().sum(dim=-1)
    return squared if distance == "l2" else (squared + HUBER**2).sqrt() - HUBER


def jump_levels(network: GeneratorNetwork, n_steps: int) -> list[float]:
    """Return the levels from which the steps of a sampler start: ``noise_max`` and below."""
    # One more than there are steps, and the last left out: from noise_min nothing is left to do.
    return karras(n_steps + 1, network.noise_min, network.noise_max, RHO)[:n_steps].tolist()
