"""Robot tasks for Gymnasium, and the pool that steps many of them.

Importing this module registers ``skvdd/Avoiding-v0``. MuJoCo is loaded only when an
environment is made.
"""

from typing import TYPE_CHECKING, Any

import gymnasium

from skvdd.envs.vector import EnvPool

if TYPE_CHECKING:
    from skvdd.envs.avoiding import Avoiding

__all__ = ["Avoiding", "EnvPool"]

gymnasium.register(
    id="skvdd/Avoiding-v0",
    entry_point="skvdd.envs.avoiding:Avoiding",
    max_episode_steps=250,
)


def __getattr__(name: str) -> Any:
    if name == "Avoiding":
        from skvdd.envs.avoiding import Avoiding

        return Avoiding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
