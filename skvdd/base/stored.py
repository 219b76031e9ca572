"""What a policy keeps of a fit, in files and pickles."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import numpy as np
import torch

from skvdd.devices import usable
from skvdd.nn.network import PolicyNetwork
from skvdd.registry import arguments_of, is_registered

# Learned by every policy beside its network and its features.
LEARNED = ("action_shape_", "horizon_", "n_iter_", "history_", "interrupted_")


class StoredMixin:
    """Learned attributes: listed once, for files and pickles."""

    network_: Any
    action_shape_: tuple[int, ...]
    horizon_: int
    history_: list[dict[str, Any]]
    n_iter_: int
    interrupted_: bool
    device: str | torch.device

    _network_classes: ClassVar[tuple[type[PolicyNetwork], ...]] = ()  # that a file may hold
    _learned_beside: ClassVar[tuple[str, ...]] = ()  # attributes of a subclass, beside `LEARNED`

    def _learned(self) -> dict[str, Any]:
        """Return the learned attributes that a file keeps beside the network."""
        names = [*LEARNED, *self._learned_beside, "n_features_in_"]
        learned = {name: getattr(self, name) for name in names}
        if hasattr(self, "feature_names_in_"):
            learned["feature_names_in_"] = list(self.feature_names_in_)
        return learned

    def _restore(self, network: PolicyNetwork, learned: dict[str, Any]) -> None:
        """Become the fitted policy of a file, or raise a ValueError."""
        expected = {*LEARNED, *self._learned_beside, "n_features_in_"}
        if not expected <= learned.keys() <= expected | {"feature_names_in_"}:
            raise ValueError("its attributes are not those of a fitted policy")
        learned["action_shape_"] = tuple(learned["action_shape_"])
        if "feature_names_in_" in learned:
            learned["feature_names_in_"] = np.array(learned["feature_names_in_"], dtype=object)
        self.__dict__.update(learned, network_=network)
        check_learned(self)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())  # type: ignore[call-overload]
        if "network_" in state:  # a policy fitted on a GPU unpickles anywhere
            state["network_"] = _cpu_copy(state["network_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if "network_" in state and not usable(self.device):
            self.device = "auto"


def check_learned(policy: Any) -> None:
    """Raise a ValueError unless learned attributes fit each other and the network."""
    network, shape = policy.network_, policy.action_shape_
    for name in ("n_features_in_", "n_iter_", "horizon_"):
        if type(getattr(policy, name)) is not int or getattr(policy, name) < 0:
            raise ValueError(f"its {name} is no number")
    if not all(type(size) is int and size > 0 for size in shape) or len(shape) > 2:
        raise ValueError(f"its actions have shape {shape}")
    if math.prod(shape) != network.n_actions:
        raise ValueError(f"its network has {network.n_actions} actions, the policy {shape}")
    if policy.n_features_in_ != network.layout.n_columns:
        raise ValueError(
            f"its network has {network.layout.n_columns} columns, the policy "
            f"{policy.n_features_in_} features"
        )
    if type(policy.interrupted_) is not bool:
        raise ValueError("its attributes are not those of a fitted policy")
    if not (isinstance(policy.history_, list) and all(type(r) is dict for r in policy.history_)):
        raise ValueError("its history is no list of rows")
    names = getattr(policy, "feature_names_in_", None)
    if names is not None and not (
        names.shape == (policy.n_features_in_,) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"it does not name its {policy.n_features_in_} features")
    _check_beside(policy)


def _check_beside(policy: Any) -> None:
    """Raise a ValueError where what was learned of a parameter breaks the parameter's rule."""
    parameters = policy.get_params(deep=False)
    for name in policy._learned_beside:
        value = getattr(policy, name)
        learned = arguments_of(value) if is_registered(value) else {name.removesuffix("_"): value}
        parameters |= {k: v for k, v in learned.items() if k in parameters}
    type(policy)(**parameters)._validate_params()


def _cpu_copy(network: PolicyNetwork) -> PolicyNetwork:
    if all(parameter.device.type == "cpu" for parameter in network.parameters()):
        return network
    return copy.deepcopy(network).cpu()
