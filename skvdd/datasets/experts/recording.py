"""Scripted demonstrators at work: many episodes, in parallel, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import mujoco
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

import skvdd.envs  # noqa: F401  registers the environments
from skvdd.datasets.demonstrations import Behavior, Demonstrations, Episode
from skvdd.envs.task import Task

Array = NDArray[np.float64]

ATTEMPTS_IN_CONTEXT = 5  # before a context is given up for one that is drawn anew
MAX_ATTEMPTS = 50
SEED = 0  # of the sets that `load_demonstrations` returns
CHUNK = 8  # episodes that a process records at a time


@dataclass(frozen=True)
class Demonstrator:
    """A scripted expert of one task.

    Parameters
    ----------
    name : str
        The task, as `load_demonstrations` knows it.
    env_id : str
        Its environment.
    version : int
        To be raised whenever the same seed gives another episode.
    behaviors : tuple of str or int
        What it can show; episodes take turns.
    make_actor : callable
        ``make_actor(task, behavior, rng)`` returns ``act(observation)``, which returns the next
        action, (d_a,). It is called after the reset, and may look at everything in the task.
    description : str
        What it does, for the metadata of a set.
    states, actions : tuple of str
        Names of the columns.
    metadata : dict, default={}
        What else the metadata of a set say.

    Examples
    --------
    A hand that goes straight ahead, on a line of one's own:

    >>> import numpy as np
    >>> from skvdd.datasets.experts.recording import Demonstrator
    >>> straight = Demonstrator(
    ...     name="line",
    ...     env_id="Line-v0",
    ...     version=1,
    ...     behaviors=("ahead",),
    ...     make_actor=lambda task, behavior, rng: lambda observation: np.array([1.0]),
    ...     description="one unit a step",
    ...     states=("place",),
    ...     actions=("step",),
    ... )
    >>> straight.make_actor(None, "ahead", np.random.default_rng(0))(np.array([0.0]))
    array([1.])
    """

    name: str
    env_id: str
    version: int
    behaviors: tuple[Behavior, ...]
    make_actor: Callable[[Any, Any, np.random.Generator], Callable[[Array], Array]]
    description: str
    states: tuple[str, ...]
    actions: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


def demonstrate(
    demonstrator: Demonstrator,
    env: gymnasium.Env,
    behavior: Behavior,
    context: int | Array,
    rng: np.random.Generator,
    split: str = "train",
) -> Episode | None:
    """Try a behaviour once.

    Parameters
    ----------
    demonstrator : Demonstrator
        Who.
    env : gymnasium.Env
        An environment of its task.
    behavior : str or int
        What.
    context : int or ndarray of shape (k,)
        Where it starts: number in a list, or the context itself.
    rng : numpy.random.Generator
        Draws all variation.
    split : {"train", "test"}, default="train"
        Which list.

    Returns
    -------
    Episode or None
        The recording, float32; None without success, or if it shows another behaviour.

    Examples
    --------
    >>> import gymnasium
    >>> import numpy as np
    >>> from skvdd.datasets.experts.pushing import DEMONSTRATORS
    >>> from skvdd.datasets.experts.recording import demonstrate
    >>> env = gymnasium.make("skvdd/Pushing-v0")
    >>> rng = np.random.default_rng(0)
    >>> demonstrate(DEMONSTRATORS["pushing"], env, behavior=0, context=0, rng=rng)
    Episode(...)
    """
    observation, info = env.reset(options={"context": context, "split": split})
    goal = info.get("goal")
    act = demonstrator.make_actor(env.unwrapped, behavior, rng)
    states, actions, over = [], [], False
    while not over:
        action = np.asarray(act(observation), dtype=np.float32)
        states.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    if info["success"] and info["behavior"] == behavior:
        goals = None if goal is None else np.tile(np.float32(goal), (len(states), 1))
        return Episode(np.array(states, np.float32), np.array(actions), behavior, goals)
    return None


def record(
    demonstrator: Demonstrator,
    n_episodes: int,
    *,
    first: int = 0,
    random_state: int = SEED,
    n_jobs: int | None = -1,
    progress: bool = True,
) -> Demonstrations:
    """Record successful demonstrations in the simulator, in parallel.

    Parameters
    ----------
    demonstrator : Demonstrator
        Who demonstrates.
    n_episodes : int
        Number of the last episode, plus one.
    first : int, default=0
        Number of the first one. An episode depends on its number and the seed only: it shows
        behaviour ``number % len(behaviors)``, in context ``number`` of the train list. Where
        five attempts fail, contexts are drawn anew.
    random_state : int, default=0
        The seed.
    n_jobs : int or None, default=-1
        Workers of joblib; -1 takes all that its backend has, None what `joblib.parallel_config`
        says.
    progress : bool, default=True
        Whether to show a progress bar.

    Returns
    -------
    Demonstrations
        Episodes ``first`` to ``n_episodes - 1``; the metadata tell how many attempts they took.

    Examples
    --------
    >>> from skvdd.datasets.experts.pushing import DEMONSTRATORS
    >>> from skvdd.datasets.experts.recording import record
    >>> record(DEMONSTRATORS["pushing"], 1, n_jobs=1, progress=False)
    Demonstrations('pushing', 1 episode, ... rows, 10 states, 2 actions)
    """
    numbers = range(first, n_episodes)
    chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    with Parallel(n_jobs=n_jobs, return_as="generator") as parallel:
        results = parallel(delayed(_record_chunk)(demonstrator, c, random_state) for c in chunks)
        bar = tqdm(total=len(numbers), desc=demonstrator.name, unit="ep", disable=not progress)
        episodes: list[Episode] = []
        n_attempts = 0
        with bar:
            for recorded, attempts in results:
                episodes += recorded
                n_attempts += attempts
                bar.update(len(recorded))
    metadata = {
        "environment": demonstrator.env_id,
        "demonstrator": demonstrator.description,
        "version": demonstrator.version,
        "random_state": random_state,
        "attempts_per_episode": round(n_attempts / len(episodes), 3),
        "mujoco": mujoco.__version__,
        "states": list(demonstrator.states),
        "actions": list(demonstrator.actions),
        **demonstrator.metadata,
    }
    return Demonstrations(tuple(episodes), demonstrator.name, metadata)


def _record_chunk(
    demonstrator: Demonstrator, numbers: Sequence[int], seed: int
) -> tuple[list[Episode], int]:
    """Return the episodes of some numbers, and how many attempts they took."""
    env = gymnasium.make(demonstrator.env_id, disable_env_checker=True)
    try:
        results = [_first_success(demonstrator, env, number, seed) for number in numbers]
    finally:
        env.close()
    return [episode for episode, _ in results], sum(attempts for _, attempts in results)


def _first_success(
    demonstrator: Demonstrator, env: gymnasium.Env, number: int, seed: int
) -> tuple[Episode, int]:
    """Return the first successful attempt at an episode, and its number."""
    behavior = demonstrator.behaviors[number % len(demonstrator.behaviors)]
    task: Task = env.unwrapped  # type: ignore[assignment]
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, number, attempt])
        context = number if attempt < ATTEMPTS_IN_CONTEXT else task.draw_context(rng)
        episode = demonstrate(demonstrator, env, behavior, context, rng)
        if episode is not None:
            return episode, attempt + 1
    raise RuntimeError(
        f"Behaviour {behavior} of {demonstrator.name} did not succeed in {MAX_ATTEMPTS} attempts."
    )
