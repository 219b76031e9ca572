"""MuJoCo, loaded when it is first used: what a task is can be read without its simulator."""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["mujoco"]


def _load_lazily(name: str) -> ModuleType:
    """Return a module that runs when one of its attributes is first asked for."""
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec.loader = LazyLoader(spec.loader)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import mujoco
else:
    mujoco = _load_lazily("mujoco")
