"""What tells fits apart: digests of data, networks and parameters."""

import json

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import DiffusionPolicy, GaussianMoEPolicy, MLPEncoder, VDDDistiller
from skvdd.training.fingerprint import digest, network_digest, plain_parameters
from tests.estimators import SMALL


def test_a_digest_tells_shapes_types_and_every_bit_apart():
    values = np.arange(12.0).reshape(3, 4)
    others = [values.T, values.reshape(4, 3), values.astype(np.float32), values.astype(np.int64)]
    changed = values.copy()
    changed[2, 3] = np.nextafter(changed[2, 3], 0.0)
    negative_zero = values.copy()
    negative_zero[0, 0] = -0.0
    digests = {digest([array]) for array in [values, *others, changed, negative_zero]}
    assert len(digests) == 7
    assert digest([np.zeros(0)]) != digest([np.zeros(1)])
    assert digest([values, values]) != digest([values])
    assert digest([values]).startswith("3 x 4, sha256 ")


def test_a_digest_does_not_depend_on_the_layout_in_memory():
    values = np.arange(12.0).reshape(3, 4)
    assert digest([np.asfortranarray(values)]) == digest([values])
    wide = np.zeros((3, 8))
    wide[:, ::2] = values
    assert digest([wide[:, ::2]]) == digest([values])


def test_a_network_is_told_apart_by_weights_and_by_normalization():
    states, actions = np.random.RandomState(0).standard_normal((2, 20, 1))
    network = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 1}).fit(states, actions).network_
    before = network_digest(network)
    assert network_digest(network) == before
    network.action_normalization.mean += 1e-9
    moved = network_digest(network)
    assert moved != before
    with torch.no_grad():
        network.output.bias[0] += 1e-3
    assert network_digest(network) not in {before, moved}


def test_parameters_are_plain_and_those_of_parts_are_among_them():
    teacher = make_pipeline(StandardScaler(), DiffusionPolicy(noise_max=np.float64(3.0)))
    student = VDDDistiller(teacher, encoder=MLPEncoder(hidden_size=np.int64(24)), random_state=None)
    found = plain_parameters(student)
    assert json.loads(json.dumps(found)) == found
    assert found["encoder__hidden_size"] == 24
    assert found["teacher__diffusionpolicy__noise_max"] == 3.0
    assert found["teacher__standardscaler__with_mean"] is True
    assert found["random_state"] is None
    assert found["encoder"] == "MLPEncoder"


@pytest.mark.parametrize(
    "changed",
    [{"n_experts": 3}, {"encoder__n_layers": 3}, {"teacher__noise_max": 4.0}, {"random_state": 1}],
    ids=str,
)
def test_parameters_that_decide_a_result_tell_fits_apart(changed):
    def student():
        return VDDDistiller(DiffusionPolicy(), encoder=MLPEncoder())

    assert plain_parameters(student()) == plain_parameters(student())
    assert plain_parameters(student()) != plain_parameters(student().set_params(**changed))


def test_where_a_fit_is_computed_decides_nothing():
    student = VDDDistiller(DiffusionPolicy())
    before = plain_parameters(student)
    student.set_params(device="cpu", teacher__device="cpu")
    assert plain_parameters(student) == before
    assert not any(name.endswith("device") for name in before)


@pytest.mark.parametrize("other", [(64, 32), (64,), [32, 64], np.array([64, 64]), {"width": 64}])
def test_lists_and_arrays_of_parameters_are_told_apart(other):
    """An encoder of a user's own may have them."""

    class Wide(MLPEncoder):
        def __init__(self, hidden_size=8, n_layers=1, widths=(64, 64)):
            super().__init__(hidden_size, n_layers)
            self.widths = widths

    before = plain_parameters(GaussianMoEPolicy(encoder=Wide()))
    after = plain_parameters(GaussianMoEPolicy(encoder=Wide(widths=other)))
    assert json.loads(json.dumps(before)) == before  # as a file gives it back
    assert before != after
