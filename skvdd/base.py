"""The contract of every policy: a conditional density p(action | state window).

Axes: rows ``n`` (one row, one decision), window ``T``, state ``d``, goal ``g``, action ``d_a``,
samples ``S``. Inside, a row is flat, ``T * d + g`` columns: the window, oldest state first, then
the goal, where there is one.
"""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags, check_array, check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skvdd._sklearn import (
    CallbackSupportMixin,
    Interval,
    ProgressBar,
    StrOptions,
    fixed_scaler,
    is_fitted,
    validate_data,
)
from skvdd.control.controller import Controller, Layout
from skvdd.control.graphs import Graph
from skvdd.persistence import INITIALISING, register, save
from skvdd.streaming import Rows, is_streamed, raw_blocks, standard_rows, standardise
from skvdd.training import FitStart, Update, from_first, is_first_process, n_processes, train

Network = TypeVar("Network", bound=nn.Module)
RandomStates = int | np.random.RandomState | Sequence[np.random.RandomState] | None

# Matrix products of few rows, and the rows left over at the end of many, take other kernels, which
# round differently: in a multiple of so many rows each gives the same bits alone as in any batch.
ROW_MULTIPLE = 16
# Actions evaluated at once, so that a query of millions needs no memory of that size.
MAX_ACTIONS = 8192


class BasePolicy(CallbackSupportMixin, DensityMixin, BaseEstimator):
    """Base class of all policies: validation, windows, scaling, device and seeds.

    A subclass trains ``network_`` (standardised states in) in `fit` and implements `sample`,
    `predict` and `score`; one whose density can be evaluated is a `DensityPolicy`.
    """

    network_: Any  # of the class below, whose calls each subclass knows
    history_: list[dict[str, Any]]
    n_iter_: int

    _doc_link_module = "skvdd"
    _doc_link_template = (
        "https://skvdd.readthedocs.io/en/stable/api/generated/skvdd.{estimator_name}.html"
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "window_size": [Interval(Integral, 1, None, closed="left")],
        "goal_dim": [Interval(Integral, 0, None, closed="left")],
        "encoder": [StrOptions({"mlp", "transformer"})],
        "hidden_size": [Interval(Integral, 1, None, closed="left")],
        "n_layers": [Interval(Integral, 0, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "state_noise": [Interval(Real, 0, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
    }

    # -- what a user calls -----------------------------------------------------------------------

    @abstractmethod
    def sample(
        self, X: ArrayLike, n_samples: int | None = None, *, random_state: RandomStates = None
    ) -> NDArray:
        """Draw actions from ``p(a|s)``."""

    @abstractmethod
    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return how well demonstrated actions are explained; higher is better."""

    def act(self, X: ArrayLike, *, random_state: RandomStates = None) -> NDArray:
        """Return the actions that control uses: one sample for each state window.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, one row a decision.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise; a sequence gives each row a stream of its own.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,) if `fit` was given such actions
            Actions in raw units.
        """
        return self.sample(X, random_state=random_state)

    def save(self, path: str | Path) -> None:
        """Write the fitted policy to one safetensors file, without pickle.

        Parameters
        ----------
        path : str or Path
            File to write; a file of that name is replaced only once the new one is complete.
            Of several processes that train together, the first writes it.
        """
        if is_first_process():
            save(self, path)

    def set_callbacks(self, *callbacks: Any) -> Self:
        """Set the callbacks of `fit`: those of `sklearn.callback` and of `skvdd.callbacks`.

        Parameters
        ----------
        *callbacks : callback
            They replace those set before. Of several processes that train together, only the
            first shows progress bars.

        Returns
        -------
        self : object
        """
        if not is_first_process():
            callbacks = tuple(c for c in callbacks if not isinstance(c, ProgressBar))
        return super().set_callbacks(*callbacks)

    def controller(
        self, engine: str = "auto", *, random_state: int | np.random.RandomState | None = None
    ) -> Controller:
        """Return the policy as an object for real-time control.

        It keeps the window of states, and has neither validation nor autograd nor allocation of
        more than the arithmetic needs on the way from an observation to an action. It is a copy:
        later fits do not change it.

        Parameters
        ----------
        engine : {"auto", "torch", "onnx", "numpy"}, default="auto"
            What runs the network: torch; ONNX Runtime (the ``onnx`` extra); NumPy alone; or the
            fastest of them in a quick trial. All run on the CPU, NumPy and ONNX Runtime on one
            thread.
        random_state : int, RandomState or None, default=None
            Source of what `Controller.act` draws: with the same numbers its actions are those of
            `act`.

        Returns
        -------
        Controller
            With ``reset()`` and ``act(observation)``.

        Raises
        ------
        ModuleNotFoundError
            If ``engine="onnx"`` and the ``onnx`` extra is not installed.
        NotImplementedError
            If ``engine="numpy"`` and the network has an operator that it does not know.
        """
        from skvdd.control.engines import make_controller

        check_is_fitted(self)
        graph, layout = self._deployed()
        return make_controller(graph, layout, engine, random_state)

    def export_onnx(self, path: str | Path) -> None:
        """Write the fitted policy to an ONNX file, for any number of rows, with its units inside.

        Inputs are ``states`` (n, T * d + g), float64, and of a policy that turns noise into actions
        ``noise`` (n, m, d_a), float64, standard normal. Outputs are ``gates`` (n, K), ``means``
        (n, K, d_a) and ``scale_trils`` (n, K, d_a, d_a), the Cholesky factors of the covariances;
        of others ``actions`` (n, d_a). The model is compared with torch at several batch sizes
        before it is written.

        Parameters
        ----------
        path : str or Path
            File to write; a file of that name is replaced only once the new one is complete.

        Raises
        ------
        ModuleNotFoundError
            If the ``onnx`` extra is not installed.
        RuntimeError
            If the model gives other numbers than torch; nothing is written then.
        """
        from skvdd.control.engines import example_inputs
        from skvdd.control.onnx import export_onnx

        check_is_fitted(self)
        graph, layout = self._deployed()
        export_onnx(graph, example_inputs(layout), path)

    @abstractmethod
    def _deployed(self) -> tuple[Graph, Layout]:
        """Return a copy of the network with its units, for control, and its sizes."""

    def _layout(self, noise_shape: tuple[int, ...] | None) -> Layout:
        return Layout(self._n_states, self.window_size, self.goal_dim, noise_shape)

    def _deployed_parts(self) -> tuple[Any, StandardScaler, StandardScaler]:
        """Return a copy of the network on the CPU, and the units of rows and actions."""
        network = copy.deepcopy(self.network_).cpu().eval().requires_grad_(False)
        rows = row_scaler(self.state_scaler_, self.window_size, self.goal_dim)
        return network, rows, self.action_scaler_

    @abstractmethod
    def _make_network(self, config: dict[str, Any]) -> nn.Module:
        """Return a network of this policy, as its ``config`` describes it."""

    # -- checks ----------------------------------------------------------------------------------

    def _check_training_data(
        self, X: ArrayLike, y: ArrayLike | None, *, reset: bool = True
    ) -> tuple[NDArray, NDArray]:
        """Validate ``(X, y)`` and return them as (n, T * d + g) and (n, d_a).

        Both are float64, or as they came if they are streamed. Without ``reset`` the columns must
        be those of the last fit.
        """
        self._check_machine()
        flat, actions = validate_data(
            self,
            self._flatten(X),
            y,
            reset=reset,
            validate_separately=(_kept(X), {**_kept(y), "ensure_2d": False}),
        )
        check_consistent_length(flat, actions)
        self._check_window(flat)
        self._single_output = actions.ndim == 1
        actions = self._as_columns(actions)
        self.n_actions_ = actions.shape[1]
        return flat, actions

    def _check_training_states(self, X: ArrayLike, *, reset: bool = True) -> NDArray:
        """Validate rows without actions and return them as (n, T * d + g), types as above."""
        self._check_machine()
        flat = validate_data(self, self._flatten(X), reset=reset, **_kept(X))
        self._check_window(flat)
        return flat

    def _check_machine(self) -> None:
        check_device(self.device)
        self._check_heads()

    def _check_heads(self) -> None:
        if self.encoder == "transformer" and self.hidden_size % self.n_heads:
            raise ValueError(
                "hidden_size must be a multiple of n_heads for encoder='transformer', got "
                f"hidden_size={self.hidden_size} and n_heads={self.n_heads}."
            )

    def _check_window(self, flat: NDArray) -> None:
        n_columns = flat.shape[1] - self.goal_dim
        if self.goal_dim and (n_columns < self.window_size or n_columns % self.window_size):
            raise ValueError(
                f"X has {flat.shape[1]} columns, which does not fit window_size="
                f"{self.window_size} and goal_dim={self.goal_dim}: a flat row holds window_size "
                "states, oldest first, then the goal. skvdd.datasets.append_goals builds such rows."
            )
        if n_columns % self.window_size:
            raise ValueError(
                f"X has {flat.shape[1]} columns, which is no multiple of "
                f"window_size={self.window_size}: a flat row holds window_size states, oldest "
                "first. Give X as (n, window_size, d), or set window_size=1."
            )

    def _check_states(self, X: ArrayLike) -> NDArray:
        """Validate the rows of a query and return them as (n, T * d + g), types as above."""
        check_is_fitted(self)
        return validate_data(self, self._flatten(X), reset=False, **_kept(X))

    def _check_query(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
        """Validate rows and actions, return them as (n, T * d + g) and (n, d_a), float64."""
        states = self._check_states(X)
        actions = check_array(y, dtype=np.float64, order="C", ensure_2d=False, input_name="y")
        actions = self._as_columns(actions)
        check_consistent_length(states, actions)
        if actions.shape[1] != self.n_actions_:
            raise ValueError(
                f"y has {actions.shape[1]} columns, but {type(self).__name__} was fitted with "
                f"{self.n_actions_} action dimensions."
            )
        return states, actions

    def _flatten(self, X: ArrayLike) -> ArrayLike:
        """Bring (n, T, d) to the canonical (n, T * d); leave everything else as it came."""
        if hasattr(X, "columns") or np.ndim(X) != 3:
            return X
        windows = np.asarray(X)
        if self.goal_dim:
            raise ValueError(
                f"X must be flat, (n, window_size * d + goal_dim), for goal_dim={self.goal_dim}, "
                f"got shape {windows.shape}. skvdd.datasets.append_goals(windows, goals) builds it."
            )
        if windows.shape[1] != self.window_size:
            raise ValueError(
                f"X has windows of {windows.shape[1]} states (shape {windows.shape}), but "
                f"window_size={self.window_size}."
            )
        return windows.reshape(len(windows), -1)

    @staticmethod
    def _as_columns(actions: NDArray) -> NDArray:
        if actions.ndim > 2:
            raise ValueError(
                f"y must have shape (n, d_a) or (n,), got {actions.shape}: one row is one decision."
            )
        kept = actions if is_streamed(actions) else np.asarray(actions, dtype=np.float64)
        return kept.reshape(len(actions), -1)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        return tags

    # -- standardised tensors --------------------------------------------------------------------

    def _fit_scalers(self, rows: NDArray, actions: NDArray) -> None:
        """Learn the units; every state of a window shares one scale, a constant column gets one."""
        self.state_scaler_ = fit_state_scaler(rows, self.window_size, self.goal_dim)
        self.action_scaler_ = fit_scaler(raw_blocks(actions))

    def _rows_of_states(self, rows: NDArray, device: torch.device) -> Rows:
        """Return rows (n, T * d + g) in standardised units, for training on a device."""
        scaler = row_scaler(self.state_scaler_, self.window_size, self.goal_dim)
        return standard_rows(scaler, rows, device)

    def _rows_of_actions(self, actions: NDArray, device: torch.device) -> Rows:
        """Return actions (n, d_a) in standardised units, for training on a device."""
        return standard_rows(self.action_scaler_, actions, device)

    def _standardise_states(self, rows: NDArray) -> Tensor:
        """Return rows (n, T * d + g) as a float32 tensor in standardised units, on the CPU."""
        return standardise(row_scaler(self.state_scaler_, self.window_size, self.goal_dim), rows)

    def _standardise_actions(self, actions: NDArray) -> Tensor:
        """Return actions (n, d_a) as a float32 tensor in standardised units, on the CPU."""
        return standardise(self.action_scaler_, actions)

    def _raw_actions(self, actions: Tensor) -> NDArray:
        """Return standardised actions (n, ..., d_a) in raw units, one dimension as `fit` had it."""
        values = actions.double().cpu().numpy()
        raw = values * self.action_scaler_.scale_ + self.action_scaler_.mean_
        return raw[..., 0] if self._single_output else raw

    @property
    def _n_states(self) -> int:
        """Dimension ``d`` of a state in the data of `fit`."""
        return (self.n_features_in_ - self.goal_dim) // self.window_size

    def _encoder_config(self) -> dict[str, Any]:
        """Return the arguments of `build_encoder` for rows like those of `fit`."""
        return {
            # A distiller with "auto" comes here where there is no encoder to take over.
            "kind": "mlp" if self.encoder == "auto" else self.encoder,
            "n_states": self._n_states,
            "window_size": self.window_size,
            "n_goals": self.goal_dim,
            "hidden_size": self.hidden_size,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
        }

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _goes_on(self, partial: bool) -> bool:
        """Say whether this fit goes on from the last one, whose shapes it must then share."""
        if not self._continues(partial):
            return False
        before = (len(self.state_scaler_.scale_), len(self.action_scaler_.scale_))
        now = (self._n_states + self.goal_dim, self.n_actions_)
        if now != before:
            goes_on, way_out = continuation(partial)
            columns = "states and goals" if self.goal_dim else "states"
            raise ValueError(
                f"{goes_on} from a fit with {columns} of {before[0]} and actions of "
                f"{before[1]} dimensions, got {now[0]} and {now[1]}. {way_out}"
            )
        return True

    def _continues(self, partial: bool) -> bool:
        return (partial or self.warm_start) and is_fitted(self)

    @contextmanager
    def _counting_on(self) -> Iterator[None]:
        """Add what a call of `partial_fit` leaves to the record of the calls before it."""
        history, n_iter = (self.history_, self.n_iter_) if is_fitted(self) else ([], 0)
        yield
        self.history_, self.n_iter_ = history + self.history_, n_iter + self.n_iter_

    def _begin_fit(
        self,
        n_stages: int,
        states: NDArray,
        actions: NDArray | None,
        *,
        partial: bool,
        teacher: str | None = None,
    ) -> np.random.RandomState:
        """Tell the callbacks that a fit of so many training runs begins, with an empty record.

        Returns the source of its seeds, which a callback that resumes a fit brings with it.
        """
        start = FitStart(
            self._random_numbers(partial),
            lambda: {
                "class": type(self).__name__,
                "parameters": plain_parameters(self),
                "X": digest([states]),
                "y": None if actions is None else digest([actions]),
                "teacher": teacher,
                "start": policy_digest(self) if self._continues(partial) else None,
            },
        )
        self._init_callback_context(max_subtasks=n_stages)
        self._callback_fit_ctx.call_on_fit_task_begin(estimator=self, metadata={"fit": start})
        self.history_ = []
        self.interrupted_ = False
        return start.rng

    def _random_numbers(self, partial: bool) -> np.random.RandomState:
        """Return the source of the seeds of a fit, the same in all processes."""
        seed = self.random_state
        if partial and is_fitted(self) and isinstance(seed, Integral):
            seed = np.random.RandomState([int(seed), self.n_iter_])  # not those of earlier calls
        rng = check_random_state(seed)
        if n_processes() > 1:
            state = from_first(rng.get_state)
            if not is_first_process():
                rng = np.random.RandomState()
                rng.set_state(state)
        return rng

    def _end_fit(self) -> Self:
        self._callback_fit_ctx.call_on_fit_task_end(estimator=self)
        return self

    def _train(
        self,
        network: nn.Module,
        updates: Sequence[Update],
        n_rows: int,
        *,
        stage: str,
        max_iter: int,
        generator: torch.Generator,
    ) -> None:
        """Run the training loop with this estimator's settings and keep what it leaves."""
        if self.interrupted_:  # whoever interrupted an earlier run of this fit wants no later one
            self.network_, self.n_iter_ = network.eval(), 0
            return
        training = train(
            self,
            network,
            updates,
            n_rows,
            stage=stage,
            max_iter=max_iter,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            ema_decay=self.ema_decay,
            generator=generator,
        )
        self.network_ = training.network
        self.history_ = self.history_ + training.history
        self.n_iter_ = training.n_iter
        self.interrupted_ = training.interrupted

    def _network(self) -> Any:
        """Return the trained network on the device of this estimator."""
        device = resolve_device(self.device)
        if next(self.network_.parameters()).device != device:  # to ask costs less than to move
            self.network_.to(device)
        return self.network_

    def _evaluate(
        self, function: Callable[..., Tensor], *tensors: Tensor, width: int = 1
    ) -> Tensor:
        """Call ``function`` on blocks of rows, without autograd, and return the joined result.

        Parameters
        ----------
        function : callable
            Maps tensors of equal length, on this estimator's device, to one such tensor.
        *tensors : Tensor of shape (n, ...)
            The rows, on the CPU.
        width : int, default=1
            Actions that each row stands for, so that a block has a bounded number of them.

        Returns
        -------
        Tensor of shape (n, ...)
            On the CPU.
        """
        n = len(tensors[0])
        device = resolve_device(self.device)
        size = ROW_MULTIPLE * max(1, MAX_ACTIONS // (ROW_MULTIPLE * width))
        blocks = []
        with torch.no_grad():  # not inference mode: likelihoods differentiate inside
            for start in range(0, n, size):
                rows = [pad_rows(t[start : start + size]).to(device) for t in tensors]
                blocks.append(function(*rows)[: min(size, n - start)].cpu())
        return torch.cat(blocks)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        if "network_" in state:  # device-free: a policy fitted on a GPU unpickles anywhere
            state["network_"] = _cpu_copy(state["network_"])
        return state


class DensityPolicy(BasePolicy):
    """Base class of policies whose density can be evaluated."""

    @abstractmethod
    def log_prob(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Return the log-density of actions."""

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the mean log-density of demonstrated actions; higher is better.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Actions taken in them.

        Returns
        -------
        float
            Mean of `log_prob`, in nats per decision.
        """
        return float(np.mean(self.log_prob(X, y)))


def fit_state_scaler(rows: NDArray, window_size: int, goal_dim: int) -> StandardScaler:
    """Learn the units of a state's columns, from all states of all windows, then of the goal's."""
    n_columns = rows.shape[1] - goal_dim
    n_states = n_columns // window_size
    windows = (block[:, :n_columns] for block in raw_blocks(rows))
    parts = [fit_scaler(window.reshape(-1, n_states) for window in windows)]
    if goal_dim:
        parts.append(fit_scaler(block[:, n_columns:] for block in raw_blocks(rows)))
    return fixed_scaler(
        np.concatenate([part.mean_ for part in parts]),
        np.concatenate([part.scale_ for part in parts]),
    )


def fit_scaler(blocks: Iterable[NDArray]) -> StandardScaler:
    """Learn the units of columns from rows that come in blocks."""
    scaler = StandardScaler()
    for block in blocks:
        scaler.partial_fit(block)
    return scaler


def row_scaler(scaler: StandardScaler, window_size: int, goal_dim: int) -> StandardScaler:
    """Return the units of a flat row's columns, given those of one state and the goal."""
    n_states = len(scaler.scale_) - goal_dim

    def spread(unit: NDArray) -> NDArray:
        return np.concatenate([np.tile(unit[:n_states], window_size), unit[n_states:]])

    return fixed_scaler(spread(scaler.mean_), spread(scaler.scale_))


def pad_rows(rows: Tensor) -> Tensor:
    """Repeat the last row until there are a multiple of `ROW_MULTIPLE`."""
    missing = -len(rows) % ROW_MULTIPLE
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def row_noise(random_state: RandomStates, n: int, shape: tuple[int, ...]) -> NDArray:
    """Return standard normal noise of shape (n, *shape), drawn row by row.

    A row's numbers do not depend on how many rows follow it; given one ``RandomState`` a row, they
    do not depend on the other rows at all.

    Parameters
    ----------
    random_state : int, RandomState, sequence of n RandomState, or None
        Source of the numbers.
    n : int
        Number of rows.
    shape : tuple of int
        Shape of one row's noise.

    Returns
    -------
    ndarray of shape (n, *shape), float64

    Raises
    ------
    ValueError
        If a sequence holds anything but one ``RandomState`` a row.
    """
    if isinstance(random_state, Sequence):
        streams: Sequence[Any] = random_state
        others = [rng for rng in streams if not isinstance(rng, np.random.RandomState)]
        if others or len(streams) != n:
            found = repr(others[0]) if others else f"{len(streams)} for {n} rows"
            raise ValueError(
                "random_state, given as a sequence, must hold one RandomState for each row of X: "
                f"got {found}."
            )
        return np.stack([rng.standard_normal(shape) for rng in random_state])
    return check_random_state(random_state).standard_normal((n, *shape))


def draw_seed(rng: np.random.RandomState) -> int:
    """Draw a seed for another generator."""
    return int(rng.randint(np.iinfo(np.int32).max))


def seeded_network(build: Callable[[], Network], seed: int) -> Network:
    """Build a network whose initial weights depend on ``seed`` and on nothing else."""
    with INITIALISING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a ``device`` parameter means; ``"auto"`` prefers a GPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:  # as tensors name where they are
        return torch.device("cuda", torch.cuda.current_device())
    return device


def check_device(device: str | torch.device) -> None:
    """Raise a ValueError that names the parameter if ``device`` cannot be used here."""
    try:
        torch.empty(0, device=resolve_device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={str(device)!r} cannot be used on this machine. Use 'auto', 'cpu', or a "
            "device that torch finds."
        ) from error


def continuation(partial: bool) -> tuple[str, str]:
    """Return what goes on from the last fit, and the way out, for messages."""
    if partial:
        return "partial_fit goes on", "Call fit to start anew."
    return "warm_start=True goes on", "Set warm_start=False."


def digest(arrays: Sequence[NDArray]) -> str:
    """Return a short text that differs where arrays differ, in shape or in any bit."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.shape} {array.dtype};".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # no copy
    shape = " x ".join(map(str, arrays[0].shape))
    return f"{shape}, sha256 {sha.hexdigest()}"


def policy_digest(policy: BasePolicy) -> str:
    """Return a short text that differs where fitted policies have other weights or units."""
    units = [getattr(policy, name) for name in ("state_scaler_", "action_scaler_")]
    weights = [value.cpu().numpy() for value in policy.network_.state_dict().values()]
    return digest([*weights, *(unit.mean_ for unit in units), *(unit.scale_ for unit in units)])


def plain_parameters(estimator: BaseEstimator) -> dict[str, Any]:
    """Return the parameters that decide a result, nested ones too, as JSON knows them."""
    parameters = estimator.get_params(deep=True)
    # Where it is computed may change.
    decisive = {k: v for k, v in sorted(parameters.items()) if k.split("__")[-1] != "device"}
    return {name: _as_json(value) for name, value in decisive.items()}


def _as_json(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    known = isinstance(value, bool | int | float | str | None)
    return value if known else type(value).__name__


def _kept(values: Any) -> dict[str, Any]:
    """Return how `check_array` keeps values: in their own way if streamed, else float64, by rows.

    Sums and products round otherwise where numbers lie in another order in memory.
    """
    return {"dtype": "numeric"} if is_streamed(values) else {"dtype": np.float64, "order": "C"}


def check_n_samples(n_samples: int | None) -> None:
    """Raise a ValueError unless ``n_samples`` is None or a positive integer."""
    if n_samples is not None and (not isinstance(n_samples, Integral) or n_samples < 1):
        raise ValueError(f"n_samples must be None or an integer of at least 1, got {n_samples!r}.")


def _cpu_copy(network: nn.Module) -> nn.Module:
    if all(parameter.device.type == "cpu" for parameter in network.parameters()):
        return network
    return copy.deepcopy(network).cpu()
