"""A teacher of another kind: a flow-matching network, trained in plain torch, then distilled."""

import torch
from torch import nn

from skvdd import ScoreTeacher, VDDDistiller

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
student = VDDDistiller(
    n_experts=2, max_iter=60, init_iter=200, hidden_size=32, state_noise=0.0, random_state=0
)
student.fit(states.numpy(), teacher=teacher)
means, _ = student.experts([[-0.5], [0.5]])
print(means[..., 0].round(1))  # near -0.75, 0.75; -1.25, 1.25
