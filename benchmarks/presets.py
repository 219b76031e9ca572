"""What the benchmarks set for a task: its demonstrations, and parameters of policies.

All else about a task says its `skvdd.envs.TaskSpec`. A task without a preset has the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from skvdd.envs import TaskSpec

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """Settings of a task.

    Parameters
    ----------
    n_demonstrations : int or None, default=100
        Demonstrations to learn from; None for all that come with the library.
    window_size : int, default=5
        States that a policy sees.
    n_experts : int, default=8
        Experts of the mixtures, as in the paper.
    settings : dict, default={}
        Parameters of every policy.
    parameters : dict of dict, default={}
        Parameters of single methods, by their names; what a search chose goes before them.
    """

    n_demonstrations: int | None = 100
    window_size: int = 5
    n_experts: int = 8
    settings: Parameters = field(default_factory=dict)
    parameters: dict[str, Parameters] = field(default_factory=dict)


def trained(teachers: int, mixtures: int | None = None, **students: Any) -> dict[str, Parameters]:
    """Return parameters by method: iterations of teachers and mixtures, and what VDD has."""
    parameters: dict[str, Parameters] = {name: {"max_iter": teachers} for name in ("VE", "VP")}
    if mixtures is not None:
        parameters |= {name: {"max_iter": mixtures} for name in ("EM", "IMC")}
    return parameters | {name: students for name in ("VDD-VE", "VDD-VP") if students}


# What an episode of hundreds of steps needs takes wider networks. In Pushing the rod has to touch
# a cube to a millimeter: noise of states that helps a hand to recover elsewhere blurs that.
WIDE = {"state_noise": 0.02, "hidden_size": 256}
FINE = {"state_noise": 0.005, "hidden_size": 256, "batch_size": 1024}
# A longer distillation: noise levels up to twice the spread of the actions show an expert modes
# that are far apart, and one sample in one step of the experts leaves time for many iterations.
LONGER = {"scale_floor": 0.05, "noise_min": 0.2, "noise_max": 2.0, "init_iter": 12_000}
LONGER |= {"max_iter": 5_000, "expert_steps": 1, "n_samples": 1}

PRESETS = {
    "avoiding": Preset(None),
    "pushing": Preset(
        1000,
        settings=FINE,
        parameters=trained(12_000, 8_000, noise_min=0.03, noise_max=0.25),
    ),
    "aligning": Preset(1000, settings=WIDE, parameters=trained(24_000, 12_000, **LONGER)),
    "sorting2": Preset(3000, settings={"state_noise": 0.02}, parameters=trained(12_000, 8_000)),
    "sorting4": Preset(
        3000, window_size=1, settings=WIDE, parameters=trained(24_000, 8_000, **LONGER)
    ),
    "sorting6": Preset(
        1000, window_size=1, settings=WIDE, parameters=trained(24_000, 8_000, **LONGER)
    ),
    "blockpush": Preset(
        1000,
        n_experts=4,
        settings={"state_noise": 0.02},
        parameters=trained(24_000, encoder="mlp", init_iter=12_000),
    ),
}


def preset_of(task: TaskSpec) -> Preset:
    """Return the preset of a task, the defaults where it has none."""
    return PRESETS.get(task.name, Preset())
