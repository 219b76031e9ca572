"""An encoder: objects that can stand in for one another, in whatever order they come."""

import tempfile

import numpy as np
import torch
from torch import nn

import skvdd
from skvdd import GaussianMoEPolicy
from skvdd.encoders import Encoder


# [module]
class Pooled(nn.Module):
    """Encode each object of a state by the same layers, and take the maximum over the objects."""

    def __init__(self, layout, n_objects, hidden_size):
        super().__init__()
        self.layout, self.n_objects = layout, n_objects
        self.each = nn.Sequential(
            nn.Linear(layout.n_window // n_objects, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, rows):
        """Map standardized rows (n, T * d + g) to features (n, h + g)."""
        windows, goals = self.layout.split(rows)  # (n, T, d) and (n, g)
        objects = windows.unflatten(2, (self.n_objects, -1)).transpose(1, 2)
        return torch.cat([self.each(objects.flatten(2)).amax(dim=1), goals], dim=1)


# [encoder]
class SetEncoder(Encoder):
    """Features of objects whose order does not matter.

    Parameters
    ----------
    n_objects : int, default=4
        Objects in a state, all of equally many numbers.
    hidden_size : int, default=64
        Width of the layers.
    """

    def __init__(self, n_objects=4, hidden_size=64):
        self.n_objects = n_objects
        self.hidden_size = hidden_size

    def build(self, layout):
        if layout.n_states % self.n_objects:
            raise ValueError(
                f"n_objects must divide the {layout.n_states} numbers of a state, got "
                f"{self.n_objects}."
            )
        return Pooled(layout, self.n_objects, self.hidden_size)


# [use]
if __name__ == "__main__":
    rng = np.random.RandomState(0)
    objects = rng.uniform(-1, 1, size=(1500, 4, 2))  # the hand is in the middle
    nearest = np.linalg.norm(objects, axis=2).argmin(axis=1)
    actions = objects[np.arange(1500), nearest] + 0.02 * rng.standard_normal((1500, 2))
    states, other_order = objects.reshape(-1, 8), objects[:, ::-1].reshape(-1, 8)
    for encoder in ("mlp", SetEncoder(n_objects=4)):
        policy = GaussianMoEPolicy(
            4, encoder=encoder, max_iter=300, scale_floor=0.05, state_noise=0.0, random_state=0
        )
        policy.fit(states[:1000], actions[:1000])
        score = policy.score(states[1000:], actions[1000:])
        moved = np.abs(policy.predict(states) - policy.predict(other_order)).mean()
        print(f"{encoder!s:25} held out {score:5.2f} nats, another order moves actions {moved:.3f}")

    path = tempfile.mkdtemp() + "/nearest.safetensors"
    policy.save(path)
    loaded = skvdd.load(path)
    print(loaded.encoder, np.array_equal(loaded.predict(states), policy.predict(states)))
