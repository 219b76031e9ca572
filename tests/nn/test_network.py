"""What all networks share: their configuration, their normalization, and a checked encoder."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from skvdd.nn.layout import RowLayout
from skvdd.nn.network import PolicyNetwork, build_encoder

LAYOUT = RowLayout(n_states=3, window_size=2, goal_dim=1)


class Builds:
    """An encoder whose module is given."""

    def __init__(self, module):
        self.module = module

    def build(self, layout):
        return self.module


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, rows):
        return self.function(rows)


# -- networks -------------------------------------------------------------------------------


def test_the_configuration_builds_a_network_of_the_same_shape():
    network = PolicyNetwork(LAYOUT, 2, width=8, name="x")
    assert network.config == {"layout": LAYOUT, "n_actions": 2, "width": 8, "name": "x"}
    assert PolicyNetwork(**network.config).config == network.config
    assert (network.layout, network.n_actions) == (LAYOUT, 2)


def test_the_normalization_of_rows_and_actions_is_part_of_the_weights():
    network = PolicyNetwork(LAYOUT, 2)
    network.row_normalization.set(np.arange(7), np.arange(1, 8))
    network.action_normalization.set([5.0, 6.0], [7.0, 8.0])
    again = PolicyNetwork(LAYOUT, 2)
    again.load_state_dict(network.state_dict())
    for name in ("row_normalization", "action_normalization"):
        ours, theirs = (getattr(n, name).statistics for n in (again, network))
        np.testing.assert_array_equal(ours, theirs)


# -- encoders -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_features", [1, 5])
def test_the_number_of_features_is_what_the_module_gives(n_features):
    module = nn.Linear(7, n_features)
    assert build_encoder(Builds(module), LAYOUT) == (module, n_features)


def test_the_module_becomes_single_precision():
    module, _ = build_encoder(Builds(nn.Linear(7, 5).double()), LAYOUT)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_module_without_parameters_will_do():
    assert build_encoder(Builds(nn.Identity()), LAYOUT)[1] == 7


def test_the_trial_leaves_no_trace_in_the_module():
    """Neither in running statistics nor in gradients nor in the training mode."""
    for training in (True, False):
        module = nn.Sequential(nn.BatchNorm1d(7), nn.Dropout(), nn.Linear(7, 5)).train(training)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        build_encoder(Builds(module), LAYOUT)
        assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
        assert module.training is training
        assert all(parameter.grad is None for parameter in module.parameters())


def test_on_the_meta_device_nothing_is_computed():
    with torch.device("meta"):
        module, n_features = build_encoder(Builds(nn.Linear(7, 5)), LAYOUT)
        assert build_encoder(Builds(nn.Flatten()), LAYOUT)[1] == 7
    assert module.weight.is_meta
    assert n_features == 5


@pytest.mark.parametrize(
    ("module", "end"),
    [
        (Function(lambda rows: rows[:, None]), "two rows gave (2, 1, 7)."),
        (Function(lambda rows: rows[:, 0]), "two rows gave (2,)."),
        (Function(lambda rows: rows.sum()), "two rows gave ()."),
        (Function(lambda rows: rows[:1]), "two rows gave (1, 7)."),
        (Function(lambda rows: rows[:, :0]), "two rows gave (2, 0)."),
        (Function(lambda rows: (rows, rows)), "two rows gave tuple."),
        (Function(lambda rows: None), "two rows gave NoneType."),
        (nn.Linear(6, 5), "two rows raised mat1 and mat2 shapes cannot be multiplied"),
        (None, "its build returned NoneType."),
        (lambda rows: rows, "its build returned function."),
    ],
    ids=[
        "axis",
        "number",
        "scalar",
        "row",
        "columns",
        "tuple",
        "nothing",
        "width",
        "none",
        "function",
    ],
)
def test_a_module_that_gives_no_vector_for_each_row_is_refused(module, end):
    start = "encoder Builds must build a module that maps rows (n, 7) to features (n, h): "
    with pytest.raises(ValueError, match=f"^{re.escape(start + end)}"):
        build_encoder(Builds(module), LAYOUT)


def test_a_module_that_gives_features_of_another_type_is_refused():
    with pytest.raises(
        ValueError, match=r"features \(n, h\) in float32: two rows gave torch.float64"
    ):
        build_encoder(Builds(Function(lambda rows: rows.double())), LAYOUT)
