"""Scripted demonstrators at work: many episodes, in parallel, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from skvdd.datasets.demonstrations import Demonstrations
from skvdd.datasets.episode import Behavior, Episode
from skvdd.envs import Score, TaskSpec, find_task, get_task, task_names
from skvdd.envs.spec import LONGEST
from skvdd.envs.verdicts import Verdict

Array = NDArray[np.float64]
Act = Callable[[Array], NDArray[np.floating]]
Seed = tuple[int, ...]

ATTEMPTS_IN_CONTEXT = 5  # before a context is given up for one that is drawn anew
MAX_ATTEMPTS = 100
SEED = 0  # of the sets that `load_demonstrations` returns
CHUNK = 8  # episodes that a process records at a time


@dataclass(frozen=True)
class Demonstrator:
    """A scripted expert of a task, which its `~skvdd.envs.TaskSpec` names.

    Parameters
    ----------
    make_actor : callable
        ``make_actor(task, behavior, rng)`` is called after each reset and returns
        ``act(observation)``, which returns the next action, (d_a,). ``task`` is the unwrapped
        environment and tells how the episode starts; ``act`` must look at its observation only,
        because nothing else is recorded beside the action.
    version : int
        To be raised whenever the same number gives another episode.
    description : str
        What it does, for the metadata of a set.
    max_length : int or None, default=None
        Actions in an episode at most; None is the task's limit, or 10 000 where it has none.
    state_dtype : {"float32", "float64"}, default="float32"
        Precision in which states are recorded.
    plan : callable or None, default=None
        ``plan(number, random_state)`` returns the behavior of an episode and its seed, a tuple of
        integers. None shows episode ``number`` in behavior ``number % K`` of the task's K.

    Examples
    --------
    A hand that goes straight ahead:

    >>> import numpy as np
    >>> from skvdd.datasets.experts.recording import Demonstrator
    >>> straight = Demonstrator(
    ...     make_actor=lambda task, behavior, rng: lambda observation: np.array([1.0]),
    ...     version=1,
    ...     description="one unit a step",
    ... )
    >>> straight.make_actor(None, "ahead", np.random.default_rng(0))(np.array([0.0]))
    array([1.])
    """

    make_actor: Callable[[Any, Any, np.random.Generator], Act]
    version: int
    description: str
    max_length: int | None = None
    state_dtype: str = "float32"
    plan: Callable[[int, int], tuple[Behavior, Seed]] | None = None


def demonstrate(
    demonstrator: Demonstrator,
    env: gymnasium.Env[Any, Any],
    behavior: Behavior,
    rng: np.random.Generator,
    *,
    options: dict[str, Any] | None = None,
    seed: int | None = None,
    score: Score | None = None,
) -> Episode | None:
    """Try a behavior once.

    Parameters
    ----------
    demonstrator : Demonstrator
        The one that tries.
    env : gymnasium.Env
        An environment of its task.
    behavior : str, int or None
        Which to show; None where the task does not tell behaviors apart.
    rng : numpy.random.Generator
        Draws all variation of the demonstrator.
    options : dict or None, default=None
        Of the reset: ``{"context": 3, "split": "train"}`` says where to start.
    seed : int or None, default=None
        Of the reset.
    score : Score or None, default=None
        How the task judges; None takes the default keys of the infos.

    Returns
    -------
    Episode or None
        The recording; None without success, if it shows another behavior, or if it is too long.

    Raises
    ------
    ValueError
        If the infos tell a success that is neither true nor false.

    Examples
    --------
    >>> import gymnasium
    >>> import numpy as np
    >>> from skvdd.datasets.experts.pushing import DEMONSTRATOR
    >>> from skvdd.datasets.experts.recording import demonstrate
    >>> env = gymnasium.make("skvdd/Pushing-v0")
    >>> rng = np.random.default_rng(0)
    >>> demonstrate(DEMONSTRATOR, env, 0, rng, options={"context": 0, "split": "train"})
    Episode(...)
    """
    score = Score() if score is None else score
    episode, _ = _attempt(demonstrator, env, behavior, rng, options=options, seed=seed, score=score)
    return episode


def _attempt(
    demonstrator: Demonstrator,
    env: gymnasium.Env[Any, Any],
    behavior: Behavior,
    rng: np.random.Generator,
    *,
    options: dict[str, Any] | None,
    seed: int | None,
    score: Score,
) -> tuple[Episode | None, bool]:
    """Return what `demonstrate` does, and whether the attempt was cut."""
    observation, info = env.reset(seed=seed, options=options)
    # Here and below are copies: the environment and the actor may use their arrays again.
    goal = None if info.get("goal") is None else np.array(info["goal"], np.float32)
    act = demonstrator.make_actor(env.unwrapped, behavior, rng)
    verdict, longest = Verdict(score), _longest(demonstrator, env)
    states: list[Any] = []
    actions: list[Any] = []
    over = False
    while not over:
        if len(states) == longest:
            return None, True
        states.append(np.array(observation))
        actions.append(np.array(act(observation), dtype=np.float32))
        observation, _, terminated, truncated, info = env.step(_playable(actions[-1], env))
        try:
            verdict.hear(info)
        except ValueError as error:
            raise ValueError(f"{error} in step {len(states) - 1} of a demonstration.") from error
        over = terminated or truncated
    if not verdict.success or (behavior is not None and verdict.behavior != behavior):
        return None, False
    goals = None if goal is None else np.tile(goal, (len(states), 1))
    made = Episode(np.array(states, demonstrator.state_dtype), np.array(actions), behavior, goals)
    return made, False


def _longest(demonstrator: Demonstrator, env: gymnasium.Env[Any, Any]) -> int | None:
    """Return after how many actions an attempt is cut; None where the environment sees to it."""
    if demonstrator.max_length is not None:
        return demonstrator.max_length
    is_limited = env.spec is not None and env.spec.max_episode_steps is not None
    return None if is_limited else LONGEST


def _playable(action: NDArray[np.float32], env: gymnasium.Env[Any, Any]) -> NDArray[Any]:
    """Return an action as the environment is given it in evaluations too: of its type."""
    dtype = env.action_space.dtype
    if dtype is not None and dtype.kind in "iu":
        action = np.rint(action)
    return np.array(action, dtype=dtype)


def record(
    task: str | TaskSpec,
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
    task : str or TaskSpec
        A task, the name of one, or of one of its sets of demonstrations.
    n_episodes : int
        Number of the last episode, plus one.
    first : int, default=0
        Number of the first one. An episode depends on its number and the seed only: of K
        behaviors it shows behavior ``number % K``, in context ``number // K`` of the train list,
        so that every start is shown in every behavior. Where five attempts fail, contexts are
        drawn anew.
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
        Episodes ``first`` to ``n_episodes - 1``. The metadata of each tell how many attempts it
        took, and its context: None where that was drawn anew, or where the task has none.

    Raises
    ------
    RuntimeError
        If 100 attempts at an episode fail.

    Examples
    --------
    >>> from skvdd.datasets.experts.recording import record
    >>> demos = record("pushing", 1, n_jobs=1, progress=False)
    >>> demos
    Demonstrations('pushing', 1 episode, ... rows, 10 states, 2 actions)
    >>> demos[0].metadata
    {'context': 0, 'attempts': 1}
    """
    spec, set_name = find_set(task) if isinstance(task, str) else (task, task.name)
    numbers = range(first, n_episodes)
    episodes = recorded_episodes(spec, set_name, numbers, random_state, n_jobs, progress)
    return Demonstrations(tuple(episodes), set_name, metadata_of(spec, set_name, random_state))


def find_set(name: str) -> tuple[TaskSpec, str]:
    """Return a task and one of its sets of demonstrations.

    Parameters
    ----------
    name : str
        Name of the task, which means its main set, or of a set.

    Raises
    ------
    ValueError
        If there is no such set.
    """
    task = find_task(name)
    set_name = name if task is None or name in task.demonstrators else task.name
    if task is None or set_name not in task.demonstrators:
        sets = [s for task_name in task_names() for s in get_task(task_name).demonstrators]
        raise ValueError(
            f"set_name must be one of {', '.join(map(repr, sets))}, got {name!r}. "
            "skvdd.envs.register_task makes others known."
        )
    return task, set_name


def metadata_of(task: TaskSpec, set_name: str, random_state: int = SEED) -> dict[str, Any]:
    """Return what a recorded set says of itself.

    Parameters
    ----------
    task : TaskSpec
        The task.
    set_name : str
        Which of its sets.
    random_state : int, default=0
        The seed.
    """
    demonstrator = task.demonstrator(set_name)
    return {
        "environment": task.env_id,
        "demonstrator": demonstrator.description,
        "version": demonstrator.version,
        "random_state": random_state,
        "mujoco": version("mujoco"),
        "states": list(task.states),
        "actions": list(task.actions),
        **task.metadata,
    }


def recorded_episodes(
    task: TaskSpec,
    set_name: str,
    numbers: Sequence[int],
    random_state: int = SEED,
    n_jobs: int | None = -1,
    progress: bool = True,
) -> Iterator[Episode]:
    """Yield episodes in their order, as they come.

    Parameters
    ----------
    task : TaskSpec
        The task.
    set_name : str
        Which of its sets.
    numbers : sequence of int
        Which episodes.
    random_state, n_jobs, progress : as in `record`
        The seed, workers, and whether to show a progress bar.

    Yields
    ------
    Episode
        One for each number.
    """
    demonstrator = task.demonstrator(set_name)
    env_spec = gymnasium.spec(task.env_id)  # a process that works may not know the id
    chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    with (
        Parallel(n_jobs=n_jobs, return_as="generator") as parallel,
        tqdm(total=len(numbers), desc=set_name, unit="ep", disable=not progress) as bar,
    ):
        for chunk in parallel(
            delayed(_record_chunk)(task, demonstrator, env_spec, c, random_state) for c in chunks
        ):
            yield from chunk
            bar.update(len(chunk))


def _record_chunk(
    task: TaskSpec,
    demonstrator: Demonstrator,
    env_spec: Any,
    numbers: Sequence[int],
    random_state: int,
) -> list[Episode]:
    """Return the episodes of some numbers."""
    env = gymnasium.make(env_spec, disable_env_checker=True)
    try:
        return [_first_success(task, demonstrator, env, n, random_state) for n in numbers]
    finally:
        env.close()


def _first_success(
    task: TaskSpec,
    demonstrator: Demonstrator,
    env: gymnasium.Env[Any, Any],
    number: int,
    random_state: int,
) -> Episode:
    """Return the first successful attempt at an episode."""
    behaviors = tuple(task.score.behaviors) or (None,)
    plan = demonstrator.plan
    turn = (behaviors[number % len(behaviors)], (random_state, number))
    behavior, seed = turn if plan is None else plan(number, random_state)
    n_cut = 0
    for attempt in range(MAX_ATTEMPTS):
        is_listed = task.n_contexts is not None and attempt < ATTEMPTS_IN_CONTEXT
        context = number // len(behaviors) if is_listed else None
        episode, was_cut = _attempt(
            demonstrator,
            env,
            behavior,
            np.random.default_rng([*seed, attempt]),
            options={"context": context, "split": "train"} if is_listed else None,
            seed=int(np.random.SeedSequence([*seed, attempt]).generate_state(1)[0]),
            score=task.score,
        )
        if episode is not None:
            episode.metadata.update(context=context, attempts=attempt + 1)
            return episode
        n_cut += was_cut
    shown = "" if behavior is None else f" in behavior {behavior!r}"
    cut = f", {n_cut} of them cut after {_longest(demonstrator, env)} actions" if n_cut else ""
    remedy = " max_length of the Demonstrator says after how many actions." if n_cut else ""
    keys = f"{task.score.success_key!r} and {task.score.behavior_key!r}"
    raise RuntimeError(
        f"{task.name!r} was not solved{shown} in {MAX_ATTEMPTS} attempts{cut}. Infos must tell "
        f"{keys}, as the task's Score has them, and the demonstrator reach them.{remedy}"
    )
