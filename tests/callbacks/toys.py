"""What the tests of callbacks train and read."""

import csv

import torch

from skvdd import GaussianMoEPolicy
from tests.estimators import SMALL


def mixture(**parameters):
    return GaussianMoEPolicy(2, window_size=2, **{**SMALL, **parameters})


def peak(at):
    """Return a metric that is best after so many iterations."""
    return lambda policy, X, y: -abs(policy.n_iter_ - at)


def weights_of(policy):
    return {name: value.clone() for name, value in policy.network_.state_dict().items()}


def same_weights(first, second):
    first, second = weights_of(first), weights_of(second)
    return all(torch.equal(first[name], second[name]) for name in first)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
