"""Make the films of the guide in ``_static``: ``python docs/films.py``, about a minute.

Without a screen, ``MUJOCO_GL=egl`` draws the robot.
"""

from pathlib import Path

import matplotlib
import numpy as np

from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations
from skvdd.evaluation import record_episode
from skvdd.plotting import ExpertsDisplay, TrainingSnapshots

FOLDER = Path(__file__).parent / "_static"
SMALL = {"hidden_size": 64, "learning_rate": 2e-3}


def film_training(path: Path) -> None:
    """Film experts that spread over a ring; ``examples/plot_toy_experts.py`` trains for longer."""
    rng = np.random.RandomState(0)
    angles = 2 * np.pi * rng.randint(8, size=2000) / 8
    actions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    actions += 0.12 * rng.standard_normal(actions.shape)
    states = np.zeros((2000, 1))
    teacher = DiffusionPolicy(max_iter=800, random_state=0, **SMALL).fit(states, actions)
    snapshots = TrainingSnapshots(every=4)
    student = VDDDistiller(
        n_experts=8,
        init="random",
        init_iter=0,
        likelihood_weight=0.0,
        noise="anneal",
        noise_max=1.5,
        n_samples=8,
        encoder="mlp",
        max_iter=300,
        batch_size=64,
        state_noise=0.0,
        random_state=0,
        **SMALL,
    )
    student.set_callbacks(snapshots).fit(states, actions, teacher=teacher)
    display = ExpertsDisplay.from_estimator(
        student, states[:1], teacher=teacher, score_level=0.4, grid_size=32
    )
    film = display.animate(snapshots.policies_, states[:1], interval=200)
    film.save(path, writer="pillow", dpi=60)


def film_episode(path: Path) -> None:
    """Film a mixture that was fitted to demonstrations of Avoiding."""
    states, actions, _ = load_demonstrations("avoiding").windows(window_size=2)
    policy = GaussianMoEPolicy(8, window_size=2, max_iter=800, batch_size=256, **SMALL)
    policy.set_params(random_state=0).fit(states, actions)
    size = {"width": 320, "height": 240}
    for seed in range(20):
        outcome = record_episode(
            policy, "skvdd/Avoiding-v0", path, random_state=seed, fps=10, env_kwargs=size
        )
        if outcome["success"]:
            return


if __name__ == "__main__":
    matplotlib.use("agg")
    film_episode(FOLDER / "episode.gif")
    film_training(FOLDER / "training.gif")
