"""Which environment is meant, whether it can be played, and how other processes get to know it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from joblib import wrap_non_picklable_objects

from skvdd.envs import EnvPool, TaskSpec, find_task, register_task, task_names

UNKNOWN_ROLLOUTS = 100  # of an environment that is no registered task


def resolve_task(env_id: str) -> TaskSpec:
    """Return the task that is meant.

    Parameters
    ----------
    env_id : str
        Name of a registered task or id of a registered environment; ``"module:id"`` imports what
        registers it.

    Returns
    -------
    TaskSpec
        The registered one. Of an environment that is no task, one with its id for a name: success
        is what its infos tell, behaviors are not told apart, every episode starts alike.

    Raises
    ------
    TypeError
        If it is no text.
    ValueError
        If nobody registered it.

    Examples
    --------
    >>> from skvdd.rollouts import resolve_task
    >>> resolve_task("skvdd.envs:skvdd/Pushing-v0").name
    'pushing'
    >>> resolve_task("Acrobot-v1").n_episodes
    100
    """
    _, name = _split(env_id)
    task = find_task(name)
    if task is not None:
        return task
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise ValueError(
            "env_id must be the name of a task or the id of a registered environment, got "
            f"{env_id!r}. The tasks are {', '.join(map(repr, task_names()))}; another environment "
            "becomes known by gymnasium.register, by importing the package that registers it, or "
            "as 'module:id'."
        ) from error
    return TaskSpec(name, name, n_rollouts=UNKNOWN_ROLLOUTS)


def _split(env_id: str) -> tuple[str | None, str]:
    """Return the module, imported, and the name of ``"module:name"``; None without a module."""
    if not isinstance(env_id, str):
        raise TypeError(
            "env_id must be a str, the name of a task or the id of a registered environment, got "
            f"{type(env_id).__name__}. gymnasium.register gives a class, or a function that makes "
            "an environment, an id."
        )
    module, colon, name = env_id.rpartition(":")
    if not colon:
        return None, env_id
    import_module(module)
    return module, name


# ---------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------


def registered(env_id: str) -> Registration:
    """Return what makes an environment known to the process that it is sent to.

    Parameters
    ----------
    env_id : str
        As in `resolve_task`.

    Returns
    -------
    Registration
        To be kept in what is pickled.
    """
    module, _ = _split(env_id)
    task = resolve_task(env_id)
    return Registration(module, gymnasium.spec(task.env_id), find_task(task.env_id))


@dataclass(frozen=True, eq=False)
class Registration:
    """An environment that registers itself where it is unpickled and not known, and its task.

    Parameters
    ----------
    module : str or None
        What registers the environment when it is imported, if somebody has said so.
    spec : EnvSpec
        As it is registered here; perhaps a class of a script, which other processes cannot import.
    task : TaskSpec or None
        The registered task, if there is one.
    """

    module: str | None
    spec: EnvSpec
    task: TaskSpec | None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value what is defined in a script."""
        spec = self.spec if self.module is None else self.spec.id
        try:
            content = pickle.dumps(
                wrap_non_picklable_objects((spec, self.task), keep_wrapper=False)
            )
        except Exception as error:
            raise pickle.PicklingError(
                f"{self.spec.id} cannot be sent to other processes: {type(error).__name__}: "
                f"{error}. Stay in this one with n_jobs=1, or register the environment in a module "
                "and name both, env_id='module:id'."
            ) from error
        return _receive, (self.module, content)


_RECEIVED: set[str] = set()  # ids that came from another process, which may send newer ones


def _receive(module: str | None, content: bytes) -> Registration:
    """Register what came from another process; what this one has by itself is left alone."""
    if module is not None:
        import_module(module)
    spec, task = pickle.loads(content)
    if isinstance(spec, str):
        spec = gymnasium.spec(spec)
    known = spec.id in gymnasium.registry and (task is None or find_task(spec.id) is not None)
    if not known or spec.id in _RECEIVED:
        _RECEIVED.add(spec.id)
        gymnasium.registry.pop(spec.id, None)  # Gymnasium would warn that it is there already
        if task is not None:
            register_task(task)
        gymnasium.registry[spec.id] = spec
    return Registration(module, spec, task)


# ---------------------------------------------------------------------------------------
# Spaces
# ---------------------------------------------------------------------------------------


def check_spaces(pool: EnvPool) -> None:
    """Refuse environments whose observations or actions are no vectors.

    Parameters
    ----------
    pool : EnvPool
        The environments.

    Raises
    ------
    ValueError
        If one of the two spaces is no `gymnasium.spaces.Box` with one axis.
    """
    for name, remedy in REMEDIES.items():
        space = getattr(pool, f"{name}_space")
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"the {name}s of {pool.env_id} must be vectors, got {describe(space)}. {remedy}"
            )


REMEDIES = {
    "observation": "Register the environment wrapped in gymnasium.wrappers.FlattenObservation.",
    "action": "Register the environment in a gymnasium.ActionWrapper that takes one vector.",
}


def describe(space: spaces.Space[Any]) -> str:
    """Return what a space is, in few words: a dictionary by its keys."""
    if isinstance(space, spaces.Dict):
        return f"a Dict of {', '.join(map(repr, space))}"
    if isinstance(space, spaces.Tuple):
        return f"a Tuple of {len(space)} spaces"
    return str(space)
