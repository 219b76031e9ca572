"""Robot tasks for Gymnasium, and the pool that steps many of them.

Importing this module registers ``skvdd/Avoiding-v0``, ``skvdd/Pushing-v0``,
``skvdd/Aligning-v0``, ``skvdd/Sorting2-v0``, ``skvdd/Sorting4-v0``, ``skvdd/Sorting6-v0`` and
``skvdd/BlockPush-v0``. MuJoCo is loaded only when an environment is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium

from skvdd.envs.vector import EnvPool

if TYPE_CHECKING:
    from skvdd.envs.aligning import Aligning
    from skvdd.envs.avoiding import Avoiding
    from skvdd.envs.block_push import BlockPush
    from skvdd.envs.pushing import Pushing
    from skvdd.envs.sorting import Sorting2, Sorting4, Sorting6

__all__ = [
    "Aligning",
    "Avoiding",
    "BlockPush",
    "EnvPool",
    "Pushing",
    "Sorting2",
    "Sorting4",
    "Sorting6",
]

# Module and time limit, by class.
TASKS = {
    "Avoiding": ("avoiding", 250),
    "Pushing": ("pushing", 400),
    "Aligning": ("aligning", 400),
    "Sorting2": ("sorting", 500),
    "Sorting4": ("sorting", 700),
    "Sorting6": ("sorting", 1200),
    "BlockPush": ("block_push", 299),
}
for _name, (_module, _limit) in TASKS.items():
    gymnasium.register(
        id=f"skvdd/{_name}-v0",
        entry_point=f"skvdd.envs.{_module}:{_name}",
        max_episode_steps=_limit,
    )


def __getattr__(name: str) -> Any:
    if name in TASKS:
        return getattr(import_module(f"skvdd.envs.{TASKS[name][0]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
