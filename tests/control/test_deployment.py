"""What is deployed: modules from raw observations to raw actions, and how their outputs compare."""

import numpy as np
import pytest
import torch

from tests.control.toys import make_data, observations, spread, windows


def inputs_of(deployment, n=3):
    X, _ = make_data(n)
    rng = np.random.RandomState(0)
    examples = deployment.examples()[1:]
    noise = [rng.standard_normal((n, *example.shape[1:])) for example in examples]
    return X, noise


def test_a_graph_maps_raw_rows_to_raw_actions(policy):
    deployment = policy._deployment()
    X, noise = inputs_of(deployment)
    outputs = deployment.graph(*map(torch.from_numpy, (X, *noise)))
    assert {output.dtype for output in outputs} == {torch.float64}
    assert len(outputs) == len(deployment.graph.outputs)
    if noise:
        assert outputs[0].shape == (3, 2)
        assert np.abs(outputs[0].numpy() - 50.0).max() < 20 * spread(policy).max()
    else:
        np.testing.assert_allclose(outputs[0], policy.gating(X), atol=1e-5)
        np.testing.assert_allclose(
            outputs[1], policy.experts(X)[0], rtol=0, atol=1e-5 * spread(policy).max()
        )


def test_outputs_are_compared_in_standard_deviations_of_the_actions(policy):
    """One of them is one whatever the unit is: the spread here is a hundredth."""
    deployment = policy._deployment()
    X, noise = inputs_of(deployment)
    outputs = deployment.graph(*map(torch.from_numpy, (X, *noise)))
    scale = torch.from_numpy(spread(policy))
    if noise:
        moved, expected = (outputs[0] + scale,), (1.0,)
    else:
        gates, means, factors = outputs
        moved = (gates + 0.5, means + scale, factors + torch.diag(scale))
        expected = (0.5, 1.0, torch.eye(2, dtype=torch.float64))
    graph = deployment.graph
    pairs = zip(graph.standardized(*outputs), graph.standardized(*moved), strict=True)
    for (one, other), size in zip(pairs, expected, strict=True):
        torch.testing.assert_close(other - one, size * torch.ones_like(one), atol=1e-9, rtol=1e-9)


def test_a_deployment_is_a_copy_on_the_cpu_that_nothing_trains(policy):
    network = policy._deployment().graph.network
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training
    shared = {p.data_ptr() for p in policy.network_.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in network.parameters())


def test_sizes_and_range_of_readings_are_those_of_the_fit(policy):
    sizes = policy._deployment().sizes
    assert (sizes.n_states, sizes.window_size, sizes.goal_dim) == (4, 3, 0)
    assert sizes.action_shape == (2,)
    rows = windows(observations())[0].ravel()
    assert ((sizes.low < rows) & (rows < sizes.high)).all()
    assert np.isfinite([sizes.low, sizes.high]).all()


@pytest.mark.parametrize("name", ["ConsistencyDistiller", "GaussianMoEPolicy"])
def test_only_a_sampler_of_many_steps_runs_in_a_loop(name, policies):
    assert policies[name]._deployment().sampling is None
    sampling = policies["DiffusionPolicy"]._deployment().sampling
    assert sampling.keys() == {"sigmas", "sampler", "start_scale", "bounds"}
