"""Teachers of other kinds: a flow-matching network, and the demonstrations themselves."""

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import nn

from skvdd import ScoreTeacher, VDDDistiller, verify_teacher

torch.manual_seed(0)
states = torch.rand(2000, 1) * 2 - 1
side = torch.randint(0, 2, (2000, 1)) * 2 - 1
actions = side * (1 + 0.5 * states) + 0.1 * torch.randn(2000, 1)  # left or right, wider with s

# [network]
network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))


def velocity(actions, time, states):
    """Return the direction from noise to data: actions (m, d_a), time (m,), states (m, T, d)."""
    return network(torch.cat([actions, time[:, None], states[:, -1]], dim=1))


optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(1000):
    rows = torch.randint(len(states), (256,))
    clean, noise, time = actions[rows], torch.randn(256, 1), torch.rand(256)
    between = (1 - time[:, None]) * noise + time[:, None] * clean
    error = velocity(between, time, states[rows, None]) - (clean - noise)
    optimizer.zero_grad()
    (error**2).mean().backward()
    optimizer.step()

# [distill]
teacher = ScoreTeacher.from_velocity(velocity, n_actions=1)
print(verify_teacher(teacher, states[:, None].numpy(), actions.numpy()))
small = {"n_experts": 2, "max_iter": 60, "init_iter": 200, "hidden_size": 32, "state_noise": 0.0}
student = VDDDistiller(random_state=0, **small).fit(states.numpy(), teacher=teacher)
means, _ = student.experts([[-0.5], [0.5]])
print(np.sort(means[..., 0]).round(1))  # near -0.75, 0.75; -1.25, 1.25


# [memory]
class Memory:
    """The density of demonstrated actions in similar states, by Gaussian kernels."""

    noise_min, noise_max = 0.1, 5.0  # the lowest level is the width of the kernels
    sees_states = True  # `prepare` changes nothing
    replayable = False  # a GPU is not to repeat the score without Python
    network = None  # there is none for a student to start from

    def __init__(self, states, actions, width):
        """Take states (N, d), actions (N, m), and the width of a kernel over states."""
        self.states, self.raw, self.width = states, actions, width
        self.action_mean, self.action_scale = actions.mean(axis=0), actions.std(axis=0)
        standard = (actions - self.action_mean) / self.action_scale
        self.actions = torch.tensor(standard, dtype=torch.float32)

    def prepare(self, X):
        return np.asarray(X, dtype=np.float64)

    def context(self, states):
        """Return log-weights (n, N) of the demonstrations in states (n, T, d): once a state."""
        last = states.reshape(len(states), -1)[:, -self.states.shape[1] :]
        away = torch.cdist(last, torch.tensor(self.states)) / self.width
        return torch.log_softmax(-0.5 * away**2, dim=1).float()

    def score(self, context, actions, sigma):
        """Return scores (n, S, m) at standardized actions (n, S, m), levels (n, 1) or (n, S)."""
        variance = sigma[:, :, None] ** 2
        away = self.actions - actions[:, :, None]  # (n, S, N, m)
        weights = torch.softmax(context[:, None] - 0.5 * (away**2).sum(-1) / variance, dim=-1)
        return (weights[..., None] * away).sum(dim=2) / variance

    def denoise(self, context, actions, sigma):
        return actions + sigma[:, :, None] ** 2 * self.score(context, actions, sigma)

    def sample(self, X, *, random_state=None):
        """Return a demonstrated action (n, m) for each state, raw."""
        rng = check_random_state(random_state)
        weights = self.context(torch.from_numpy(self.prepare(X))).double().exp().numpy()
        last = weights.shape[1] - 1
        chosen = [np.searchsorted(w.cumsum(), rng.uniform()) for w in weights]
        return self.raw[np.minimum(chosen, last)]


# [remember]
teacher = Memory(states[:300].double().numpy(), actions[:300].double().numpy(), width=0.1)
verify_teacher(teacher, states.numpy())
student = VDDDistiller(random_state=0, **small).fit(states.numpy(), teacher=teacher)
means, _ = student.experts([[-0.5], [0.5]])
print(np.sort(means[..., 0]).round(1))
