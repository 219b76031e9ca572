"""Robot tasks for Gymnasium, what each of them is, and the pool that steps many of them.

Importing this module registers ``skvdd/Avoiding-v0``, ``skvdd/Pushing-v0``,
``skvdd/Aligning-v0``, ``skvdd/Sorting2-v0``, ``skvdd/Sorting4-v0``, ``skvdd/Sorting6-v0`` and
``skvdd/BlockPush-v0``. MuJoCo is loaded only when an environment is made.
"""

from skvdd.envs.aligning import Aligning
from skvdd.envs.avoiding import Avoiding
from skvdd.envs.block_push import BlockPush
from skvdd.envs.pushing import Pushing
from skvdd.envs.sorting import Sorting2, Sorting4, Sorting6
from skvdd.envs.spec import Score, TaskSpec, find_task, get_task, register_task, task_names
from skvdd.envs.vector import EnvPool

__all__ = [
    "Aligning",
    "Avoiding",
    "BlockPush",
    "EnvPool",
    "Pushing",
    "Score",
    "Sorting2",
    "Sorting4",
    "Sorting6",
    "TaskSpec",
    "find_task",
    "get_task",
    "register_task",
    "task_names",
]
