"""What the networks of all policies share: normalization, and the arguments that built them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skvdd.nn.layout import RowLayout
from skvdd.nn.normalization import Normalization


class BuildsEncoder(Protocol):
    """What a network needs of an encoder's configuration, such as `skvdd.encoders.MLPEncoder`."""

    def build(self, layout: RowLayout) -> nn.Module:
        """Return a module that maps standardized rows (n, T * d + g) to features (n, h)."""


class PolicyNetwork(nn.Module):
    """Base class of the networks: standardized rows and actions inside, statistics beside them.

    Parameters
    ----------
    layout : RowLayout
        Columns of a row.
    n_actions : int
        Numbers in an action; a chunk of ``H`` actions is one flat action of ``H * d_a`` numbers.
    **config
        The other arguments of the constructor.

    Attributes
    ----------
    config : dict
        Arguments that build a network of the same shape.
    row_normalization, action_normalization : Normalization
        Statistics of rows (n, T * d + g) and of actions (n, n_actions).
    """

    def __init__(self, layout: RowLayout, n_actions: int, **config: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"layout": layout, "n_actions": n_actions, **config}
        self.layout, self.n_actions = layout, n_actions
        self.row_normalization = Normalization(layout.n_columns)
        self.action_normalization = Normalization(n_actions)


def build_encoder(encoder: BuildsEncoder, layout: RowLayout) -> tuple[nn.Module, int]:
    """Return an encoder's module and the number of features that it gives for a row.

    Parameters
    ----------
    encoder : object
        Has ``build(layout)``.
    layout : RowLayout
        Columns of a row.

    Returns
    -------
    module : torch.nn.Module
        In float32.
    n_features : int

    Raises
    ------
    ValueError
        If the module does not map (n, T * d + g) to (n, h).
    """
    module = encoder.build(layout)
    rule = (
        f"encoder {type(encoder).__name__} must build a module that maps rows (n, "
        f"{layout.n_columns}) to features (n, h)"
    )
    if not isinstance(module, nn.Module):
        raise ValueError(f"{rule}: its build returned {type(module).__name__}.")
    module.to(torch.float32)
    device = next((p.device for p in module.parameters()), torch.empty(0).device)
    trial = torch.zeros(2, layout.n_columns, dtype=torch.float32, device=device)
    training = module.training
    try:
        with torch.no_grad():
            features = module.eval()(trial)
    except RuntimeError as error:  # which torch raises for shapes that do not fit
        raise ValueError(f"{rule}: two rows raised {error}.") from error
    module.train(training)
    came = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if came[:1] != (2,) or len(came) != 2 or came[1] == 0:
        raise ValueError(f"{rule}: two rows gave {came}.")
    if features.dtype != torch.float32:
        raise ValueError(f"{rule} in float32: two rows gave {features.dtype}.")
    return module, features.shape[1]
